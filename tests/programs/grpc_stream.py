"""gRPC with streams both ways, without generated code.

usage: grpc_stream.py serve PORT          answers each message with its length and itself, upper case
       grpc_stream.py call ADDRESS COUNT  COUNT messages on one stream, four streams at once; prints what came back
"""
import concurrent.futures
import hashlib
import sys

import grpc

METHOD = "/mesh.Echo/Stream"


def stream(requests, context):
    for message in requests:
        yield str(len(message)).encode() + b" " + message.upper()


def serve(port):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=8))
    handler = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("mesh.Echo", {"Stream": handler}),))
    if server.add_insecure_port(f"0.0.0.0:{port}") == 0:
        sys.exit(f"cannot listen at {port}")
    server.start()
    server.wait_for_termination()


def one(channel, count, number):
    digest, seen = hashlib.sha256(), 0
    messages = (f"stream {number} message {n} ".encode() * (1 + n % 200) for n in range(count))
    for answer in channel.stream_stream(METHOD)(messages, timeout=60):
        digest.update(answer)
        seen += 1
    return f"stream {number}: {seen} {digest.hexdigest()}"


def call(address, count):
    with grpc.insecure_channel(address) as channel, concurrent.futures.ThreadPoolExecutor() as pool:
        for line in pool.map(lambda number: one(channel, count, number), range(4)):
            print(line)
        try:
            list(channel.stream_stream("/mesh.Echo/Nothing")(iter([b"x"]), timeout=60))
        except grpc.RpcError as error:
            print(error.code())


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    call(sys.argv[2], int(sys.argv[3]))
