"""gRPC's own server and client, with messages that are plain bytes.

server [CERT KEY CA]            prints its port, and serves until its input ends
client TARGET [CERT KEY CA]     makes each kind of call and prints what came of it as JSON
statuses TARGET                 calls what answers by HTTP alone
"""

import json
import sys
import threading
import time
from concurrent import futures

import grpc

AS_IT_IS = bytes
LIMIT = 20
cancelled = threading.Event()


def unary(request, context):
    seen = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", "1"), ("x-bin-bin", b"\x00\x01\xff")))
    context.set_trailing_metadata((("x-trailing", "2"), ("x-end-bin", b"\xff\x00")))
    told = {key: seen.get(key) for key in ("x-text", "x-more", "user-agent")}
    told["user-agent"] = bool(told["user-agent"])
    told["x-blob-bin"] = list(seen.get("x-blob-bin", b""))
    told["body"] = request.decode()
    return json.dumps(told).encode()


def fail(request, context):
    code, text = json.loads(request)
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(next(one for one in grpc.StatusCode if one.name == code), text)


def late_fail(request, context):
    yield b"one"
    yield b"two"
    context.abort(grpc.StatusCode.DATA_LOSS, "after two")


def many(request, context):
    for n in range(int(request)):
        yield b"%d" % n


def gather(requests, context):
    sizes = [len(request) for request in requests]
    return json.dumps([len(sizes), sum(sizes)]).encode()


def chat(requests, context):
    for request in requests:
        yield b"you said " + request


def slow(request, context):
    done = threading.Event()
    cancelled.clear()
    context.add_callback(lambda: (cancelled.set(), done.set()))
    done.wait(LIMIT)
    return b"late"


def was_cancelled(request, context):
    return b"yes" if cancelled.wait(LIMIT) else b"no"


def remaining(request, context):
    left = context.time_remaining()
    return b"none" if left is None or left > 3600 else b"some" if 1 < left <= 60 else str(left).encode()


HANDLERS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "LateFail": grpc.unary_stream_rpc_method_handler(late_fail),
    "Echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
    "Many": grpc.unary_stream_rpc_method_handler(many),
    "Gather": grpc.stream_unary_rpc_method_handler(gather),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
    "Remaining": grpc.unary_unary_rpc_method_handler(remaining),
}


def read(path):
    with open(path, "rb") as file:
        return file.read()


def serve(files):
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", HANDLERS),))
    if files:
        cert, key, ca = map(read, files)
        credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(json.dumps({"event": "listening", "port": port}), flush=True)
    sys.stdin.read()
    server.stop(0)


def channel(target, files):
    # No proxy of the environment, and no retries of gRPC's own.
    options = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    if not files:
        return grpc.insecure_channel(target, options)
    cert, key, ca = map(read, files)
    options.append(("grpc.ssl_target_name_override", "proxy.test"))
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, cert), options)


def failed(error):
    trailing = dict(error.trailing_metadata() or ())
    return [error.code().name, error.details(), trailing.get("x-why")]


def attempt(call):
    try:
        return call()
    except grpc.RpcError as error:
        return failed(error)


def cases(made):
    def one(name):
        return made.unary_unary(f"/test.Service/{name}")

    def metadata():
        sent = (("x-text", "plain"), ("x-more", "a, b"), ("x-blob-bin", bytes(range(32))))
        answer, call = one("Unary").with_call(b"hello", metadata=sent, timeout=LIMIT)
        initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
        return [
            json.loads(answer),
            initial.get("x-initial"),
            list(initial.get("x-bin-bin", b"")),
            trailing.get("x-trailing"),
            list(trailing.get("x-end-bin", b"")),
            call.code().name,
        ]

    def stream_fails():
        got = []
        try:
            for answer in made.unary_stream("/test.Service/LateFail")(b"", timeout=LIMIT):
                got.append(answer.decode())
        except grpc.RpcError as error:
            return [got, failed(error)]
        return [got, "no failure"]

    def gather(messages, size):
        answer = made.stream_unary("/test.Service/Gather")((bytes(size) for _ in range(messages)), timeout=LIMIT)
        return json.loads(answer)

    def chat():
        got, turn = [], threading.Semaphore(1)

        def ask():
            for n in range(20):
                turn.acquire()
                yield b"%d" % n

        for answer in made.stream_stream("/test.Service/Chat")(ask(), timeout=LIMIT):
            got.append(answer.decode())
            turn.release()
        return got

    def echo(size):
        sent = bytes(n * 31 % 251 for n in range(size))
        return one("Echo")(sent, timeout=LIMIT) == sent

    def cancel():
        pending = one("Slow").future(b"", timeout=LIMIT)
        time.sleep(0.5)
        pending.cancel()
        return [pending.cancelled(), one("WasCancelled")(b"", timeout=LIMIT).decode()]

    def at_once():
        pending = [one("Unary").future(b"%d" % n, timeout=LIMIT) for n in range(100)]
        return sum(json.loads(one.result())["body"] == str(n) for n, one in enumerate(pending))

    def many(count):
        got = [int(answer) for answer in made.unary_stream("/test.Service/Many")(b"%d" % count, timeout=LIMIT)]
        return [got == list(range(count)), len(got)]

    yield "unary with metadata", metadata
    for code in ("NOT_FOUND", "INVALID_ARGUMENT", "UNAVAILABLE", "INTERNAL", "UNAUTHENTICATED"):
        yield f"fails: {code}", lambda: one("Fail")(json.dumps([code, "no, \u00fc 100%\n"]).encode(), timeout=LIMIT)
    yield "an unknown method", lambda: one("Nothing")(b"", timeout=LIMIT)
    yield "a stream that fails", stream_fails
    yield "server streaming", lambda: many(5000)
    yield "server streaming, none", lambda: many(0)
    yield "client streaming", lambda: gather(200, 10_000)
    yield "client streaming, none", lambda: gather(0, 0)
    yield "bidirectional", chat
    yield "a large message", lambda: echo(3 << 20)
    yield "an empty message", lambda: echo(0)
    yield "the deadline goes on", lambda: one("Remaining")(b"", timeout=50).decode()
    yield "no deadline", lambda: one("Remaining")(b"").decode()
    # In gRPC's own words, which differ from time to time.
    yield "a deadline that passes", lambda: attempt(lambda: one("Slow")(b"", timeout=0.3))[0]
    yield "a cancelled call", cancel
    yield "a hundred at once", at_once


def client(target, files):
    with channel(target, files) as made:
        grpc.channel_ready_future(made).result(LIMIT)
        print(json.dumps({name: attempt(call) for name, call in cases(made)}))


def statuses(target):
    with channel(target, ()) as made:
        found = {}
        for name in ("Gone", "None", "NoCluster", "NoRoute", "400", "401", "403", "404", "429", "500", "502", "503"):
            call = made.unary_unary(f"/test.Http/{name}")
            found[name] = attempt(lambda: call(b"x", timeout=LIMIT).decode())
        print(json.dumps(found))


if __name__ == "__main__":
    what, rest = sys.argv[1], sys.argv[2:]
    if what == "server":
        serve(rest)
    elif what == "client":
        client(rest[0], rest[1:])
    else:
        statuses(rest[0])
