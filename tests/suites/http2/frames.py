"""RFC 9113, 6: each type of frame."""

import struct

from suite import *  # noqa: F403


# --- 6.1, DATA


rows("6.1", [
    ("DATA on stream 0", sends(lambda c: c.data(0, b"x"), connection(PROTOCOL))),
    ("padding as long as the payload", posted(lambda c: raw(DATA, PADDED | END_STREAM, 1, b"\x05abcde"[:5]), connection(PROTOCOL))),
    ("padding longer than the payload", posted(lambda c: raw(DATA, PADDED | END_STREAM, 1, b"\xffab"), connection(PROTOCOL))),
    ("padded, but without the length of its padding", posted(lambda c: raw(DATA, PADDED | END_STREAM, 1), connection(PROTOCOL, SIZE))),
    ("padding is taken off", posted(lambda c: raw(DATA, PADDED | END_STREAM, 1, b"\x04hello\0\0\0\0"), answered)),
    ("padding of no length", posted(lambda c: raw(DATA, PADDED | END_STREAM, 1, b"\x00hello"), answered)),
    ("nothing but padding", posted(lambda c: raw(DATA, PADDED | END_STREAM, 1, b"\x04\0\0\0\0"), answered)),
    ("an empty last frame", posted(lambda c: c.data(1, b"hello", end=False) + c.data(1), answered)),
    ("a body in many frames", posted(lambda c: c.data(1, b"x", end=False) * 50 + c.data(1, b"x"), answered)),
])

# --- 6.2, HEADERS


def padded(c, pad, flags=0, before=b"", zeros=None):
    block = c.block_of(c.request())
    zeros = pad if zeros is None else zeros
    payload = bytes([pad]) + before + block + b"\0" * zeros
    return raw(HEADERS, PADDED | END_STREAM | END_HEADERS | flags, 1, payload)


rows("6.2", [
    ("HEADERS on stream 0", sends(lambda c: c.headers(0), connection(PROTOCOL))),
    ("padding longer than the payload",
     sends(lambda c: raw(HEADERS, PADDED | END_STREAM | END_HEADERS, 1, b"\xff" + c.block_of(c.request())),
           connection(PROTOCOL))),
    ("padded, but empty",
     sends(lambda c: raw(HEADERS, PADDED | END_STREAM | END_HEADERS, 1), connection(PROTOCOL, SIZE))),
    ("padding is taken off", sends(lambda c: padded(c, 16), answered)),
    ("padding of no length", sends(lambda c: padded(c, 0), answered)),
    ("with a priority",
     sends(lambda c: raw(HEADERS, HAS_PRIORITY | END_STREAM | END_HEADERS, 1,
                         struct.pack(">IB", 0, 10) + c.block_of(c.request())), answered)),
    ("with an exclusive priority on a stream that is not",
     sends(lambda c: raw(HEADERS, HAS_PRIORITY | END_STREAM | END_HEADERS, 1,
                         struct.pack(">IB", 0x80000007, 255) + c.block_of(c.request())), answered)),
    ("with padding and a priority",
     sends(lambda c: padded(c, 8, HAS_PRIORITY, struct.pack(">IB", 0, 10)), answered)),
    ("too short for its priority",
     sends(lambda c: raw(HEADERS, HAS_PRIORITY | END_STREAM | END_HEADERS, 1, b"\0\0\0"), connection(SIZE, PROTOCOL))),
    ("an empty header block is malformed",
     lambda c: (c.send(raw(HEADERS, END_STREAM | END_HEADERS, 1)), c.malformed(1))),
])

rows("6.3", [
    ("PRIORITY on stream 0", sends(lambda c: priority(0), connection(PROTOCOL))),
    ("PRIORITY of four bytes", posted(lambda c: raw(PRIORITY, 0, 1, b"\0\0\0\0"), stream(SIZE))),
    ("PRIORITY of six bytes", posted(lambda c: raw(PRIORITY, 0, 1, b"\0\0\0\0\0\0"), stream(SIZE))),
    ("PRIORITY between HEADERS and DATA", posted(lambda c: priority(1) + c.data(1, b"hello"), answered)),
])

rows("6.4", [
    ("RST_STREAM on stream 0", sends(lambda c: reset(0), connection(PROTOCOL))),
    ("RST_STREAM of three bytes", posted(lambda c: raw(RST, 0, 1, b"\0\0\0"), connection(SIZE))),
    ("RST_STREAM of five bytes", posted(lambda c: raw(RST, 0, 1, b"\0\0\0\0\0"), connection(SIZE))),
    ("after RST_STREAM nothing of the stream comes",
     lambda c: (c.send(settings((4, 0)) + c.headers(1)), c.wait(lambda f: f.type == HEADERS, "HEADERS"),
                c.send(reset(1) + window(0, 1000)), c.quiet(0.2, (DATA,)), c.alive())),
])

# --- 6.5, SETTINGS

rows("6.5", [
    ("an ACK with a payload", sends(lambda c: raw(SETTINGS, ACK, 0, b"\0\0\0\0\0\0"), connection(SIZE))),
    ("SETTINGS on a stream", sends(lambda c: settings(stream=1), connection(PROTOCOL))),
    ("an ACK on a stream", sends(lambda c: settings(ack=True, stream=1), connection(PROTOCOL))),
    ("SETTINGS of three bytes", sends(lambda c: raw(SETTINGS, 0, 0, b"\0\x03\0"), connection(SIZE))),
    ("SETTINGS of seven bytes", sends(lambda c: raw(SETTINGS, 0, 0, b"\0\x03\0\0\0\1\0"), connection(SIZE))),
])

rows("6.5.2", [
    ("ENABLE_PUSH of 2", sends(lambda c: settings((2, 2)), connection(PROTOCOL))),
    ("ENABLE_PUSH of 0", sends(lambda c: settings((2, 0)) + c.headers(1), answered)),
    ("INITIAL_WINDOW_SIZE of 2^31", sends(lambda c: settings((4, 1 << 31)), connection(FLOW))),
    ("INITIAL_WINDOW_SIZE of 2^31-1", sends(lambda c: settings((4, (1 << 31) - 1)) + c.headers(1), answered)),
    ("MAX_FRAME_SIZE of 16383", sends(lambda c: settings((5, 16383)), connection(PROTOCOL))),
    ("MAX_FRAME_SIZE of 2^24", sends(lambda c: settings((5, 1 << 24)), connection(PROTOCOL))),
    ("MAX_FRAME_SIZE of 2^24-1", sends(lambda c: settings((5, (1 << 24) - 1)) + c.headers(1), answered)),
    ("ENABLE_CONNECT_PROTOCOL of 2", sends(lambda c: settings((8, 2)), connection(PROTOCOL))),
    ("HEADER_TABLE_SIZE of 0", sends(lambda c: settings((1, 0)) + c.headers(1), answered)),
    ("HEADER_TABLE_SIZE of 2^32-1", sends(lambda c: settings((1, (1 << 32) - 1)) + c.headers(1), answered)),
    ("MAX_CONCURRENT_STREAMS of 0", sends(lambda c: settings((3, 0)) + c.headers(1), answered)),
    ("MAX_HEADER_LIST_SIZE of 2^32-1", sends(lambda c: settings((6, (1 << 32) - 1)) + c.headers(1), answered)),
])


def acks(n):
    def run(c):
        before = sum(f.type == SETTINGS and "ACK" in f.flags for f in c.seen)
        c.send(settings() * n)
        c.alive()
        after = sum(f.type == SETTINGS and "ACK" in f.flags for f in c.seen)
        if after - before != n:
            raise Failed(f"{after - before} ACKs of {n}")

    return run


@case("6.5.3: the last of two values of a setting holds")
def _(c):
    c.send(settings((4, 100), (4, 1)) + c.headers(1))
    data = c.wait(lambda f: f.type == DATA, "DATA")
    if len(data.data) != 1:
        raise Failed(f"DATA of {len(data.data)} bytes")


rows("6.5.3", [
    ("SETTINGS are acknowledged", acks(1)),
    ("each SETTINGS is acknowledged", acks(5)),
])

rows("6.6", [
    ("PUSH_PROMISE of a client",
     sends(lambda c: c.headers(1, end=False) + raw(PUSH, END_HEADERS, 1, b"\0\0\0\2" + c.block_of(c.request())),
           connection(PROTOCOL))),
    ("PUSH_PROMISE on stream 0",
     sends(lambda c: raw(PUSH, END_HEADERS, 0, b"\0\0\0\2" + c.block_of(c.request())), connection(PROTOCOL))),
])


@case("6.7: a PING is answered with its bytes")
def _(c):
    c.send(ping(b"\0\1\2\3\xff\xfe\xfd\xfc"))
    answer = c.wait(lambda f: f.type == PING, "PING")
    if "ACK" not in answer.flags or answer.opaque_data != b"\0\1\2\3\xff\xfe\xfd\xfc":
        raise Failed(f"{answer}")


@case("6.7: an ACK of a PING is not answered")
def _(c):
    c.send(ping(b"unasked!", ACK) + ping(b"question"))
    answer = c.wait(lambda f: f.type == PING, "PING")
    if answer.opaque_data != b"question":
        raise Failed("the ACK was answered")


rows("6.7", [
    ("PING on a stream", sends(lambda c: ping(stream=1), connection(PROTOCOL))),
    ("PING of seven bytes", sends(lambda c: ping(b"1234567"), connection(SIZE))),
    ("PING of nine bytes", sends(lambda c: ping(b"123456789"), connection(SIZE))),
    ("PING of no bytes", sends(lambda c: ping(b""), connection(SIZE))),
    ("PING while a request is open", posted(lambda c: ping() + c.data(1, b"hello"), answered)),
])

rows("6.8", [
    ("GOAWAY on a stream", sends(lambda c: goaway(stream=1), connection(PROTOCOL))),
    ("GOAWAY of seven bytes", sends(lambda c: raw(GOAWAY, 0, 0, b"\0" * 7), connection(SIZE))),
    ("requests before a GOAWAY are answered",
     lambda c: (c.post(1), c.send(goaway() + c.data(1, b"hello")), c.response(1))),
    ("GOAWAY with debug data",
     lambda c: (c.post(1), c.send(goaway(debug=b"bye" * 100) + c.data(1, b"hello")), c.response(1))),
])

# --- 6.9, WINDOW_UPDATE

rows("6.9", [
    ("an increment of 0 on the connection", sends(lambda c: window(0, 0), connection(PROTOCOL))),
    ("an increment of 0 on a stream", posted(lambda c: window(1, 0), stream(PROTOCOL))),
    ("the reserved bit is ignored", sends(lambda c: window(0, 0x80000001), fine)),
    ("WINDOW_UPDATE of three bytes", sends(lambda c: raw(WINDOW, 0, 0, b"\0\0\1"), connection(SIZE))),
    ("WINDOW_UPDATE of five bytes", sends(lambda c: raw(WINDOW, 0, 0, b"\0\0\0\1\0"), connection(SIZE))),
    ("WINDOW_UPDATE of a stream of three bytes", posted(lambda c: raw(WINDOW, 0, 1, b"\0\0\1"), connection(SIZE))),
])

rows("6.9.1", [
    ("a connection's window above 2^31-1", sends(lambda c: window(0, (1 << 31) - 1), connection(FLOW))),
    ("a connection's window above 2^31-1 in two steps",
     sends(lambda c: window(0, 1 << 30) + window(0, 1 << 30), connection(FLOW))),
    ("a stream's window above 2^31-1", posted(lambda c: window(1, (1 << 31) - 1), stream(FLOW))),
    ("a stream's window above 2^31-1 in two steps",
     posted(lambda c: window(1, 1 << 30) + window(1, 1 << 30), stream(FLOW))),
    ("windows up to 2^31-1",
     sends(lambda c: window(0, (1 << 31) - 1 - 65535) + c.headers(1) + window(1, (1 << 31) - 1 - 65535), answered)),
])


@case("6.9.1: a window of one byte is kept", own=((4, 1),))
def _(c):
    c.send(c.headers(1))
    data = c.wait(lambda f: f.type == DATA, "DATA")
    if len(data.data) != 1:
        raise Failed(f"DATA of {len(data.data)} bytes")
    c.quiet(0.1, (DATA,))


@case("6.9.1: a window that is opened byte by byte", own=((4, 0),))
def _(c):
    c.send(c.headers(1))
    c.wait(lambda f: f.type == HEADERS, "HEADERS")
    c.quiet(0.1, (DATA,))
    for _ in range(3):
        c.send(window(1, 1))
        data = c.wait(lambda f: f.type == DATA, "DATA")
        if len(data.data) != 1:
            raise Failed(f"DATA of {len(data.data)} bytes")


@case("6.9.2: SETTINGS open the window of a stream", own=((4, 0),))
def _(c):
    c.send(c.headers(1))
    c.quiet(0.1, (DATA,))
    c.send(settings((4, 1)))
    data = c.wait(lambda f: f.type == DATA, "DATA")
    if len(data.data) != 1:
        raise Failed(f"DATA of {len(data.data)} bytes")


@case("6.9.2: a window may become negative", own=((4, 3),))
def _(c):
    c.send(c.headers(1))
    c.wait(lambda f: f.type == DATA, "DATA")
    c.send(settings((4, 2)) + window(1, 1))
    c.quiet(0.1, (DATA,))
    c.send(window(1, 1))
    data = c.wait(lambda f: f.type == DATA, "DATA")
    if len(data.data) != 1:
        raise Failed(f"DATA of {len(data.data)} bytes")


@case("6.9.2: SETTINGS that take a stream's window above 2^31-1")
def _(c):
    c.post(1)
    c.send(window(1, (1 << 31) - 1 - 65535) + settings((4, 65536)))
    c.connection_error(FLOW)


@case("6.9: the server gives room for what it has read")
def _(c):
    c.post(1)
    left = 300000
    room = {0: 65535, 1: c.server.get(4, 65535)}
    for update in (f for f in c.seen if f.type == WINDOW):
        room[update.stream_id] += update.window_increment
    while left:
        n = min(16384, left, *room.values())
        if n:
            c.send(c.data(1, b"x" * n, end=n == left))
            left, room = left - n, {id: bytes - n for id, bytes in room.items()}
            continue
        update = c.wait(lambda f: f.type == WINDOW, "WINDOW_UPDATE")
        room[update.stream_id] += update.window_increment
    c.response(1)


# --- 6.10, CONTINUATION


def split(c, sizes, end=True):
    block = c.block_of(c.request(extra=[("x-filler", "f" * 200)]))
    parts, at = [], 0
    for size in sizes:
        parts.append(block[at:at + size])
        at += size
    parts.append(block[at:])
    out = c.headers(1, block=parts[0], more=True, end=end)
    for n, part in enumerate(parts[1:]):
        out += raw(CONTINUATION, END_HEADERS if n == len(parts) - 2 else 0, 1, part)
    return out


rows("6.10", [
    ("a header block in two frames", sends(lambda c: split(c, [20]), answered)),
    ("a header block in many frames", sends(lambda c: split(c, [3, 1, 20, 30, 40, 1]), answered)),
    ("an empty HEADERS before CONTINUATION", sends(lambda c: split(c, [0]), answered)),
    ("an empty last CONTINUATION",
     sends(lambda c: c.headers(1, more=True) + raw(CONTINUATION, END_HEADERS, 1), answered)),
    ("a header block in two frames before DATA",
     sends(lambda c: split(c, [20], end=False) + c.data(1, b"hello"), answered)),
    ("CONTINUATION on stream 0",
     sends(lambda c: c.headers(1, more=True) + raw(CONTINUATION, END_HEADERS, 0), connection(PROTOCOL))),
    ("CONTINUATION after END_HEADERS",
     sends(lambda c: c.headers(1, end=False) + raw(CONTINUATION, END_HEADERS, 1), connection(PROTOCOL))),
    ("CONTINUATION after a CONTINUATION with END_HEADERS",
     sends(lambda c: split(c, [20], end=False) + raw(CONTINUATION, END_HEADERS, 1), connection(PROTOCOL))),
    ("CONTINUATION after DATA",
     posted(lambda c: c.data(1, b"x", end=False) + raw(CONTINUATION, END_HEADERS, 1), connection(PROTOCOL))),
])
