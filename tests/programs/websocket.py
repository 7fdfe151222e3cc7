"""Websockets: a server that echoes and greets first, a client that has messages of many sizes echoed.

usage: websocket.py serve PORT | websocket.py call ADDRESS COUNT
"""
import asyncio
import hashlib
import sys

import websockets


async def echo(socket):
    await socket.send("the server speaks first")
    async for message in socket:
        await socket.send(message)


async def serve(port):
    async with websockets.serve(echo, "0.0.0.0", port, max_size=None):
        await asyncio.Future()


async def call(address, count):
    async with websockets.connect(f"ws://{address}/", max_size=None) as socket:
        print(await socket.recv())
        digest = hashlib.sha256()
        for n in range(count):
            message = bytes([n % 251]) * (1 + n * 997 % 70000)
            await socket.send(message)
            answer = await socket.recv()
            assert answer == message, n
            digest.update(answer)
        await (await socket.ping())
        print(count, digest.hexdigest())
    print("closed with", socket.close_code, repr(socket.close_reason))


if sys.argv[1] == "serve":
    asyncio.run(serve(int(sys.argv[2])))
else:
    asyncio.run(call(sys.argv[2], int(sys.argv[3])))
