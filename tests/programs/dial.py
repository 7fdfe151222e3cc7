"""Connects as Python does, by a socket and by asyncio: `dial.py ADDRESS PORT`; a line for each."""

import asyncio
import socket
import sys


def blocking(to):
    with socket.create_connection(to, timeout=20) as sock:
        peer = sock.getpeername()[0]  # once both ends have closed, a socket has none to tell
        sock.sendall(b"sent by python")
        sock.shutdown(socket.SHUT_WR)
        return peer, b"".join(iter(lambda: sock.recv(65536), b"")).decode()


async def stream(to):
    reader, writer = await asyncio.wait_for(asyncio.open_connection(*to), 20)
    writer.write(b"sent by python")
    writer.write_eof()
    return writer.get_extra_info("peername")[0], (await reader.read()).decode()


failed = False
for name, way in {"blocking": blocking, "asyncio": lambda to: asyncio.run(stream(to))}.items():
    try:
        print(name, "peer=%s received=%s" % way((sys.argv[1], int(sys.argv[2]))))
    except OSError as error:
        failed = True
        print(name, f"error={error}")
sys.exit(failed)
