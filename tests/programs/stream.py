"""What a program can observe of a TCP stream, and a server that makes it observable.

    stream.py serve PORT              until killed; both families
    stream.py observe ADDRESS PORT    each case on a connection of its own; prints one line of JSON, case -> observations

A connection's first line names the case. What the server's side saw of a case is asked for by the case `report`.
Nothing in an observation depends on time or on the size of buffers, so that two runs can be compared.
"""

import errno
import fcntl
import json
import os
import select
import socket
import struct
import sys
import termios
import threading

LIMIT = float(os.environ.get("STREAM_LIMIT", "20"))
SO_ZEROCOPY, MSG_ZEROCOPY, IP_RECVERR = 60, 0x4000000, 11
BIG = 4 << 20


def name_of(error):
    if isinstance(error, socket.timeout):
        return "TIMEOUT"
    return errno.errorcode.get(error.errno, str(error))


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return name_of(error)


def read_all(sock):
    """Everything up to the end, and how it ended."""
    data = bytearray()
    while True:
        try:
            part = sock.recv(65536)
        except OSError as error:
            return bytes(data), name_of(error)
        if not part:
            return bytes(data), "eof"
        data += part


def text(data_and_end):
    data, end = data_and_end
    return [data.decode(), end]


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def events(sock, wanted, until):
    """The names of the poll events that are there once `until` is among them."""
    poll = select.poll()
    poll.register(sock, wanted)
    names = ["POLLIN", "POLLOUT", "POLLPRI", "POLLERR", "POLLHUP", "POLLRDHUP"]
    seen = 0
    for _ in range(int(LIMIT * 20)):
        seen = dict(poll.poll(50)).get(sock.fileno(), 0)
        if seen & until:
            break
    return [n for n in names if seen & getattr(select, n)]


# --- the server: what it does for a case, and what it returns is its report


class Served:
    def __init__(self):
        self.reports = {}
        self.go = threading.Event()

    def attend(self, sock):
        sock.settimeout(LIMIT)
        line = bytearray()
        while not line.endswith(b"\n"):
            part = attempt(sock.recv, 1)
            if not part or isinstance(part, str):
                return
            line += part
        case = line.decode().strip()
        # What an earlier client of the case did is not this one's, whoever asks first.
        self.reports.pop(case, None)
        seen = getattr(self, "do_" + case.replace("-", "_"), self.do_echo)(sock)
        sock.close()
        if case != "report":
            self.reports[case] = seen

    def do_report(self, sock):
        line = bytearray()
        while not line.endswith(b"\n"):
            line += sock.recv(1)
        case = line.decode().strip()
        for _ in range(int(LIMIT * 100)):
            if case in self.reports:
                break
            threading.Event().wait(0.01)
        sock.sendall(json.dumps(self.reports.pop(case, "nothing")).encode())
        sock.close()

    def do_echo(self, sock):
        data, end = read_all(sock)
        attempt(sock.sendall, data)
        return [len(data), end]

    def do_count(self, sock):
        data, end = read_all(sock)
        attempt(sock.sendall, str(len(data)).encode())
        return [len(data), end]

    def do_greet(self, sock):
        sock.sendall(b"hello")
        return text(read_all(sock))

    def do_reset(self, sock):
        reset(sock)

    def do_reset_after_data(self, sock):
        sock.sendall(b"hello")
        sock.recv(1)
        reset(sock)

    def do_close(self, sock):
        sock.close()

    def do_close_unread(self, sock):
        # It is there, and is not read: the kernel answers the close with a reset.
        sock.recv(1, socket.MSG_PEEK)
        sock.close()

    def do_half_close(self, sock):
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        return text(read_all(sock))

    def do_what_the_client_did(self, sock):
        return text(read_all(sock))

    def do_oob_inline(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.sendall(b"ready")
        return text(read_all(sock))

    def do_oob_answered(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.sendall(b"ready")
        data = b""
        while len(data) < 3:
            data += sock.recv(3)
        sock.sendall(data.upper())
        return text(read_all(sock))

    def do_slow(self, sock):
        # Not read before the client says, on another connection, that it was made to wait.
        self.go.clear()
        self.go.wait(LIMIT)
        data, end = read_all(sock)
        sock.sendall(str(len(data)).encode())
        return end

    def do_go_on(self, sock):
        self.go.set()
        sock.close()


def serve(port):
    served = Served()
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=served.attend, args=(sock,), daemon=True).start()


# --- the client


class Observer:
    def __init__(self, address, port):
        self.to = (address, int(port))

    def open(self, case):
        sock = socket.create_connection(self.to, timeout=LIMIT)
        sock.sendall(case.encode() + b"\n")
        return sock

    def report(self, case):
        sock = self.open("report")
        sock.sendall(case.encode() + b"\n")
        return json.loads(read_all(sock)[0] or b'"no report"')

    def case_options(self):
        sock = self.open("greet")
        state = lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[0]
        seen = {"peer": sock.getpeername() == self.to, "local": sock.getsockname()[0], "error": 0}
        options = [
            ("nodelay", socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            ("keepalive", socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            ("keepidle", socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 33),
            ("user_timeout", socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12345),
            ("cork", socket.IPPROTO_TCP, socket.TCP_CORK, 1),
            ("rcvlowat", socket.SOL_SOCKET, socket.SO_RCVLOWAT, 5),
        ]
        for name, level, option, value in options:
            seen[name] = attempt(lambda: sock.setsockopt(level, option, value)) or sock.getsockopt(level, option)
        seen["error"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        seen["state"] = state()
        seen["domain"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
        seen["cork"] = attempt(lambda: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0))
        # Less than the low-water mark does not wake: there are exactly as many.
        seen["events"] = events(sock, select.POLLIN | select.POLLRDHUP, select.POLLIN)
        seen["fionread"] = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"0000"))[0]
        seen["peek"] = sock.recv(3, socket.MSG_PEEK).decode()
        seen["waitall"] = sock.recv(5, socket.MSG_WAITALL).decode()
        sock.setblocking(False)
        seen["empty"] = attempt(sock.recv, 1)
        # Its end is seen before another case is greeted, whose report it would be.
        sock.close()
        self.report("greet")
        return seen

    def case_half_close_by_the_client(self):
        sock = self.open("count")
        sock.sendall(b"12345")
        sock.shutdown(socket.SHUT_WR)
        seen = {"answer": text(read_all(sock)), "write": attempt(sock.send, b"x")}
        return seen

    def case_half_close_by_the_server(self):
        sock = self.open("half-close")
        seen = {"read": text(read_all(sock))}
        seen["events"] = events(sock, select.POLLIN | select.POLLRDHUP, select.POLLRDHUP)
        sock.sendall(b"and back")
        sock.close()
        return {**seen, "server": self.report("half-close")}

    def case_close_by_the_server(self):
        sock = self.open("close")
        seen = {"events": events(sock, select.POLLIN | select.POLLRDHUP, select.POLLRDHUP)}
        return {**seen, "read": text(read_all(sock)), "error": sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)}

    def case_reset_by_the_server(self):
        sock = self.open("reset")
        seen = {"events": events(sock, select.POLLIN | select.POLLRDHUP, select.POLLERR)}
        seen["read"] = text(read_all(sock))
        seen["again"] = text(read_all(sock))
        seen["write"] = attempt(sock.send, b"x")
        seen["peer"] = attempt(sock.getpeername)
        return seen

    def case_reset_seen_by_a_writer(self):
        sock = self.open("reset")
        events(sock, 0, select.POLLERR)
        return {"first": attempt(sock.send, b"x"), "second": attempt(sock.send, b"x")}

    def case_reset_as_so_error(self):
        sock = self.open("reset")
        events(sock, 0, select.POLLERR)
        read = lambda: errno.errorcode.get(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "none")
        return {"first": read(), "second": read()}

    def case_reset_after_data(self):
        sock = self.open("reset-after-data")
        first = sock.recv(5, socket.MSG_WAITALL).decode()
        sock.sendall(b"x")
        return {"first": first, "rest": text(read_all(sock))}

    def case_close_with_unread_data(self):
        sock = self.open("close-unread")
        sock.sendall(b"x" * 1000)
        return {"read": text(read_all(sock))}

    def case_reset_by_the_client(self):
        sock = self.open("greet")
        # The server has the case's name: a reset overtakes what was not read yet, on plain TCP as well.
        sock.recv(5, socket.MSG_WAITALL)
        sock.sendall(b"12345")
        reset(sock)
        return {"end": self.report("greet")[1]}

    def case_close_with_unread_data_by_the_client(self):
        sock = self.open("greet")
        sock.recv(1, socket.MSG_PEEK)
        sock.close()
        return {"server": self.report("greet")}

    def case_shutdown_of_reading(self):
        sock = self.open("count")
        sock.shutdown(socket.SHUT_RD)
        seen = {"read": attempt(sock.recv, 1) == b""}
        sock.sendall(b"12345")
        sock.shutdown(socket.SHUT_WR)
        return {**seen, "server": self.report("count")}

    def case_urgent_byte(self):
        sock = self.open("what-the-client-did")
        sock.sendall(b"ab")
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b"cd")
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)
        return {"server": self.report("what-the-client-did")}

    def case_urgent_byte_inline(self):
        sock = self.open("oob-inline")
        sock.recv(5, socket.MSG_WAITALL)
        sock.sendall(b"ab")
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b"cd")
        sock.shutdown(socket.SHUT_WR)
        return {"read": text(read_all(sock)), "server": self.report("oob-inline")}

    def case_urgent_byte_is_the_last_of_a_request(self):
        sock = self.open("oob-answered")
        sock.recv(5, socket.MSG_WAITALL)
        sock.send(b"ab!", socket.MSG_OOB)
        answer = attempt(sock.recv, 3, socket.MSG_WAITALL)
        sock.close()
        return {"answer": str(answer), "server": self.report("oob-answered")}

    def case_slow_reader(self):
        sock = self.open("slow")
        sock.setblocking(False)
        sent, block = 0, b"x" * 65536
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        # Until nothing more is taken for a second.
        while sent < 256 << 20 and poll.poll(1000):
            sent += sock.send(block)
        blocked = sent < 256 << 20
        read_all(self.open("go-on"))
        sock.settimeout(LIMIT)
        sock.shutdown(socket.SHUT_WR)
        data, end = read_all(sock)
        return {"blocked": blocked, "complete": int(data or 0) == sent, "end": end, "server": self.report("slow")}

    def case_big_transfer(self):
        sock = self.open("echo")
        data = os.urandom(BIG)
        sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        sender.start()
        back, end = read_all(sock)
        sender.join()
        return {"same": back == data, "end": end}

    def case_zerocopy(self):
        sock = self.open("count")
        if isinstance(attempt(sock.setsockopt, socket.SOL_SOCKET, SO_ZEROCOPY, 1), str):
            return {"supported": False}
        data = bytes(1 << 20)
        sent = 0
        while sent < len(data):
            sent += sock.send(memoryview(data)[sent:], MSG_ZEROCOPY)
        completed = "POLLERR" in events(sock, 0, select.POLLERR)
        sock.recvmsg(0, 1024, socket.MSG_ERRQUEUE)
        sock.shutdown(socket.SHUT_WR)
        return {"completed": completed, "answer": text(read_all(sock))}


def observe(address, port):
    observer = Observer(address, port)
    cases = [name for name in dir(Observer) if name.startswith("case_")]
    seen = {}
    for name in cases:
        try:
            seen[name[5:]] = getattr(observer, name)()
        except Exception as error:  # also this is an observation
            seen[name[5:]] = {"failed": name_of(error) if isinstance(error, OSError) else repr(error)}
    print(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        observe(*sys.argv[2:])
