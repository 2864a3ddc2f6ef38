"""RFC 9113 (HTTP/2), RFC 8441 (extended CONNECT) and RFC 7541 (HPACK), asked of a server case by case.

Usage: conformance.py HOST:PORT [PART OF A NAME]

The server answers every request with 200 and a body of at least five bytes, once it has read the request to its end.
Prints one line of JSON for each case: its name, whether it held, and what was seen where not.
"""

import concurrent.futures
import json
import struct
import sys
import time

import hpack

from peer import *  # noqa: F403

CASES = []


def case(name, own=(), preface=True):
    """Registers a function of a fresh connection."""

    def register(run):
        CASES.append((name, run, own, preface))
        return run

    return register


def rows(section, table, own=()):
    """Registers a case for each row: its name, and a function of a fresh connection."""
    for name, run in table:
        CASES.append((f"{section}: {name}", run, own, True))


def sends(make, then):
    """A case: these bytes, then what must be seen."""

    def run(c):
        c.send(make(c))
        then(c)

    return run


def connection(*codes):
    return lambda c: c.connection_error(*codes)


def stream(*codes, id=1):
    return lambda c: c.stream_error(id, *codes)


def fine(c):
    c.alive()


def answered(c):
    c.response(1)
    c.alive()


# --- 3.4, the preface


@case("3.4: the server begins with SETTINGS", preface=False)
def _(c):
    c.send(PREFACE + settings())
    first = c.wait(lambda _: True, "frame")
    if first.type != SETTINGS or "ACK" in first.flags:
        raise Failed(f"first came {c.told()}")


@case("3.4: a wrong preface is refused", preface=False)
def _(c):
    c.send(b"INVALID CONNECTION PREFACE\r\n\r\n")
    try:
        c.connection_error(PROTOCOL)
    except (HyperframeError, Failed) as error:
        # An answer in HTTP/1, perhaps: the preface is what tells the protocols apart.
        if not c.closed and not c.buffer.startswith(b"HTTP/1."):
            raise Failed(f"{error}") from None


@case("3.4: a preface with a wrong end is refused", preface=False)
def _(c):
    c.send(PREFACE[:-2] + b"XX" + settings())
    try:
        c.connection_error(PROTOCOL)
    except (HyperframeError, Failed) as error:
        if not c.closed and not c.buffer.startswith(b"HTTP/1."):
            raise Failed(f"{error}") from None


@case("3.4: a preface in single bytes", preface=False)
def _(c):
    for byte in PREFACE + settings():
        c.send(bytes([byte]))
    c.send(settings(ack=True) + c.headers(1))
    answered(c)


@case("3.4: preface, SETTINGS and a request in one write", preface=False)
def _(c):
    c.send(PREFACE + settings() + c.headers(1))
    c.response(1)


@case("3.4: the first frame must be SETTINGS", preface=False)
def _(c):
    c.send(PREFACE + ping())
    c.connection_error(PROTOCOL)


@case("3.4: a request before SETTINGS is refused", preface=False)
def _(c):
    c.send(PREFACE + c.headers(1))
    c.connection_error(PROTOCOL)


# --- 4, frames

rows("4.1", [
    ("a frame of an unknown type is ignored", sends(lambda c: raw(0x16, 0, 0, b"unknown"), fine)),
    ("a frame of an unknown type on a stream is ignored",
     sends(lambda c: raw(0x16, 0xff, 1, b"unknown") + c.headers(1), answered)),
    ("an empty frame of an unknown type is ignored", sends(lambda c: raw(0xff, 0, 0), fine)),
    ("undefined flags are ignored", sends(lambda c: ping(b"alive?!?", 0xfe), fine)),
    ("undefined flags of HEADERS are ignored", sends(lambda c: c.headers(1, flags=0xd2), answered)),
    ("the reserved bit of a stream's number is ignored, PING",
     sends(lambda c: ping(b"alive?!?", stream=0x80000000), fine)),
    ("the reserved bit of a stream's number is ignored, HEADERS",
     sends(lambda c: c.headers(0x80000001), answered)),
])

rows("4.2", [
    ("DATA of the largest size is taken",
     lambda c: (c.post(1), c.send(c.data(1, b"x" * 16384)), answered(c))),
    ("DATA beyond the largest size is FRAME_SIZE_ERROR",
     lambda c: (c.post(1), c.send(c.data(1, b"x" * (c.server.get(5, 16384) + 1))), c.stream_error(1, SIZE))),
    ("HEADERS beyond the largest size is a connection error",
     sends(lambda c: c.headers(1, block=b"\x00" * (c.server.get(5, 16384) + 1)), connection(SIZE))),
    ("CONTINUATION beyond the largest size is a connection error",
     sends(lambda c: c.headers(1, more=True) + raw(CONTINUATION, END_HEADERS, 1, b"\0" * (c.server.get(5, 16384) + 1)),
           connection(SIZE))),
    ("PING beyond the largest size is a connection error",
     sends(lambda c: ping(b"x" * (c.server.get(5, 16384) + 1)), connection(SIZE))),
    ("SETTINGS beyond the largest size is a connection error",
     sends(lambda c: raw(SETTINGS, 0, 0, b"\0\x16\0\0\0\0" * (c.server.get(5, 16384) // 6 + 1)), connection(SIZE))),
])


def interleaved(make):
    return sends(lambda c: c.headers(1, more=True) + make(c), connection(PROTOCOL))


rows("4.3", [
    ("an undecodable header block is COMPRESSION_ERROR",
     sends(lambda c: c.headers(1, block=b"\x40\x01\x61\x7f"), connection(COMPRESSION))),
    ("an undecodable CONTINUATION is COMPRESSION_ERROR",
     sends(lambda c: c.headers(1, more=True) + raw(CONTINUATION, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff"),
           connection(COMPRESSION))),
    ("PRIORITY within a header block", interleaved(lambda c: priority(1))),
    ("PRIORITY of another stream within a header block", interleaved(lambda c: priority(3))),
    ("HEADERS of another stream within a header block", interleaved(lambda c: c.headers(3))),
    ("HEADERS of the same stream within a header block", interleaved(lambda c: c.headers(1))),
    ("DATA within a header block", interleaved(lambda c: c.data(1, b"x"))),
    ("PING within a header block", interleaved(lambda c: ping())),
    ("SETTINGS within a header block", interleaved(lambda c: settings())),
    ("WINDOW_UPDATE within a header block", interleaved(lambda c: window(0, 1))),
    ("RST_STREAM within a header block", interleaved(lambda c: reset(1))),
    ("GOAWAY within a header block", interleaved(lambda c: goaway())),
    ("an unknown frame within a header block", interleaved(lambda c: raw(0x16, 0, 1))),
    ("CONTINUATION of another stream within a header block",
     interleaved(lambda c: raw(CONTINUATION, END_HEADERS, 3, b""))),
])

# --- 5.1, states of streams


def half_closed(make, *codes):
    """The request has ended, and is not answered before it is read: no window for its response."""

    def run(c):
        c.send(settings((4, 0)))
        c.send(c.headers(1) + make(c))
        c.stream_error(1, *codes)

    return run


def after_reset(make, *codes):
    def run(c):
        c.post(1)
        c.send(reset(1))
        c.alive()
        c.send(make(c))
        c.stream_error(1, *codes)

    return run


def after_end(make, *codes):
    def run(c):
        c.send(c.headers(1))
        c.response(1)
        c.send(make(c))
        c.stream_error(1, *codes)

    return run


def still_fine(setup, make):
    def run(c):
        setup(c)
        c.send(make(c))
        c.alive()
        c.send(c.headers(5))
        c.response(5)

    return run


def ended(c):
    c.send(c.headers(1))
    c.response(1)


def cancelled(c):
    c.post(1)
    c.send(reset(1))


rows("5.1", [
    ("idle: DATA", sends(lambda c: c.data(1, b"x"), connection(PROTOCOL))),
    ("idle: RST_STREAM", sends(lambda c: reset(1), connection(PROTOCOL))),
    ("idle: WINDOW_UPDATE", sends(lambda c: window(1, 1), connection(PROTOCOL))),
    ("idle: CONTINUATION", sends(lambda c: raw(CONTINUATION, END_HEADERS, 1, b""), connection(PROTOCOL))),
    ("idle: PRIORITY is allowed", still_fine(lambda c: None, lambda c: priority(3))),
    ("half closed: DATA", half_closed(lambda c: c.data(1, b"x"), CLOSED)),
    ("half closed: HEADERS", half_closed(lambda c: c.headers(1), CLOSED, PROTOCOL)),
    ("half closed: CONTINUATION", half_closed(lambda c: raw(CONTINUATION, END_HEADERS, 1, b""), CLOSED, PROTOCOL)),
    ("half closed: WINDOW_UPDATE is allowed",
     lambda c: (c.send(settings((4, 0))), c.send(c.headers(1)), c.send(window(1, 100)), answered(c))),
    ("half closed: PRIORITY is allowed", sends(lambda c: c.headers(1) + priority(1), answered)),
    ("closed by our reset: DATA", after_reset(lambda c: c.data(1, b"x"), CLOSED)),
    ("closed by our reset: HEADERS", after_reset(lambda c: c.headers(1), CLOSED, PROTOCOL)),
    ("closed by our reset: CONTINUATION",
     after_reset(lambda c: raw(CONTINUATION, END_HEADERS, 1, b""), CLOSED, PROTOCOL)),
    ("closed by our reset: PRIORITY is allowed", still_fine(cancelled, lambda c: priority(1))),
    ("closed by our reset: WINDOW_UPDATE is allowed", still_fine(cancelled, lambda c: window(1, 1))),
    ("closed by our reset: another RST_STREAM is allowed", still_fine(cancelled, lambda c: reset(1))),
    ("closed by both ends: DATA", after_end(lambda c: c.data(1, b"x"), CLOSED)),
    ("closed by both ends: HEADERS", after_end(lambda c: c.headers(1), CLOSED, PROTOCOL)),
    ("closed by both ends: CONTINUATION",
     after_end(lambda c: raw(CONTINUATION, END_HEADERS, 1, b""), CLOSED, PROTOCOL)),
    ("closed by both ends: PRIORITY is allowed", still_fine(ended, lambda c: priority(1))),
    ("closed by both ends: WINDOW_UPDATE is allowed", still_fine(ended, lambda c: window(1, 1))),
    ("closed by both ends: RST_STREAM is allowed", still_fine(ended, lambda c: reset(1))),
])

rows("5.1.1", [
    ("a stream with an even number", sends(lambda c: c.headers(2), connection(PROTOCOL))),
    ("a stream with a lower number than an earlier one",
     lambda c: (c.send(c.headers(5)), c.response(5), c.send(c.headers(3)), c.connection_error(PROTOCOL, CLOSED))),
    ("numbers may be left out", lambda c: (c.send(c.headers(101)), c.response(101), c.alive())),
    ("the highest number", lambda c: (c.send(c.headers(0x7fffffff)), c.response(0x7fffffff))),
    ("DATA of a stream that was left out",
     lambda c: (c.send(c.headers(5)), c.response(5), c.send(c.data(3, b"x")), c.stream_error(3, PROTOCOL, CLOSED))),
])


@case("5.1.2: more streams than allowed")
def _(c):
    most = c.server.get(3)
    if most is None or most > 2000:
        raise Failed(f"MAX_CONCURRENT_STREAMS is {most}")
    c.send(b"".join(c.headers(1 + 2 * n, c.request("POST"), end=False) for n in range(most + 1)))
    c.stream_error(1 + 2 * most, PROTOCOL, REFUSED)


@case("5.4.1: after a connection error the connection closes")
def _(c):
    c.send(c.data(0, b"x"))
    c.wait(lambda f: f.type == GOAWAY, "GOAWAY")
    while c.frame(time.monotonic() + WAIT) is not None:
        pass
    if not c.closed:
        raise Failed("still open")


@case("5.4.2: after a stream error the others go on")
def _(c):
    c.post(1)
    c.send(window(1, (1 << 31) - 1))
    c.stream_error(1, FLOW)
    c.send(c.headers(3))
    c.response(3)


rows("5.5", [
    ("an unknown setting is ignored", sends(lambda c: settings((0x4242, 7)), fine)),
    ("an unknown error code of RST_STREAM is like any",
     lambda c: (c.post(1), c.send(reset(1, 0x4242)), fine(c))),
    ("an unknown error code of GOAWAY is like any",
     lambda c: (c.post(1), c.send(goaway(0, 0x4242)), c.send(c.data(1, b"hello")), None)),
])

# --- 6.1, DATA


def posted(make, then):
    def run(c):
        c.post(1)
        c.send(make(c))
        then(c)

    return run


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

# --- 8, messages


def bad(*headers, without=(), method="GET"):
    """A request with these headers, and without these, is malformed."""

    def run(c):
        fields = [(k, v) for k, v in c.request(method) if k not in without]
        c.send(c.headers(1, [*fields, *headers]))
        c.malformed(1)

    return run


def good(*headers, without=(), method="GET"):
    def run(c):
        fields = [(k, v) for k, v in c.request(method) if k not in without]
        c.send(c.headers(1, [*fields, *headers]))
        answered(c)

    return run


def trailers(*headers, end=True, then=None):
    def run(c):
        c.post(1)
        c.send(c.data(1, b"hello", end=False) + c.headers(1, list(headers), end=end))
        (then or (lambda c: c.malformed(1)))(c)

    return run


rows("8.1", [
    ("trailers", trailers(("x-checksum", "1"), then=answered)),
    ("trailers without END_STREAM", trailers(("x-checksum", "1"), end=False)),
    ("trailers without data before them",
     posted(lambda c: c.headers(1, [("x-checksum", "1")]), answered)),
    ("trailers in two frames",
     posted(lambda c: raw(HEADERS, END_STREAM, 1, c.block_of([("x-checksum", "1")])) + raw(CONTINUATION, END_HEADERS, 1),
            answered)),
    ("DATA after trailers",
     lambda c: (c.send(settings((4, 0))), trailers(("x-checksum", "1"), then=lambda c: None)(c),
                c.send(c.data(1, b"x")), c.stream_error(1, CLOSED))),
    ("a pseudo-header in trailers", trailers((":path", "/"))),
    ("an unknown pseudo-header in trailers", trailers((":x", "y"))),
    ("a connection-specific header in trailers", trailers(("connection", "close"))),
    ("an upper-case name in trailers", trailers(("X-Checksum", "1"))),
])


def literal(name, value, prefix=b"\0"):
    """A header that hpack would not write."""
    return prefix + bytes([len(name)]) + name + bytes([len(value)]) + value


def bytes_of(*headers, then=None):
    """A request with headers that hpack would not write."""

    def run(c):
        c.send(c.headers(1, block=c.block_of(c.request()) + b"".join(literal(k, v) for k, v in headers)))
        (then or (lambda c: c.malformed(1)))(c)

    return run


rows("8.2.1", [
    ("an upper-case name", bad(("X-Test", "ok"))),
    ("a name with an upper-case end", bad(("x-tesT", "ok"))),
    ("a name with a space", bytes_of((b"x test", b"ok"))),
    ("a name with a NUL", bytes_of((b"x\0test", b"ok"))),
    ("a name with a DEL", bytes_of((b"x\x7ftest", b"ok"))),
    ("a name with a byte beyond ASCII", bytes_of((b"x\xe4test", b"ok"))),
    ("a name with a colon within", bytes_of((b"x:test", b"ok"))),
    ("a name with CR and LF", bytes_of((b"x\r\ntest", b"ok"))),
    ("a name with a bracket", bytes_of((b"x(test)", b"ok"))),
    ("an empty name", bytes_of((b"", b"ok"))),
    ("a name of a colon only", bytes_of((b":", b"ok"))),
    ("a value with a NUL", bytes_of((b"x-test", b"o\0k"))),
    ("a value with a CR", bytes_of((b"x-test", b"o\rk"))),
    ("a value with a LF", bytes_of((b"x-test", b"o\nk"))),
    ("a value with CR LF and another header", bytes_of((b"x-test", b"ok\r\nx-evil: 1"))),
    ("a value that begins with a space", bytes_of((b"x-test", b" ok"))),
    ("a value that begins with a tab", bytes_of((b"x-test", b"\tok"))),
    ("a value that ends with a space", bytes_of((b"x-test", b"ok "))),
    ("a value that ends with a tab", bytes_of((b"x-test", b"ok\t"))),
    ("an empty value", bytes_of((b"x-test", b""), then=answered)),
    ("a value with a tab within", bytes_of((b"x-test", b"o\tk"), then=answered)),
    ("a value beyond ASCII", bytes_of((b"x-test", b"\xc3\xa4"), then=answered)),
    ("a name of all that a token may have", bytes_of((b"x!#$%&'*+-.^_`|~09", b"ok"), then=answered)),
])

rows("8.2.2", [
    ("connection", bad(("connection", "close"))),
    ("keep-alive", bad(("keep-alive", "timeout=5"))),
    ("proxy-connection", bad(("proxy-connection", "keep-alive"))),
    ("transfer-encoding", bad(("transfer-encoding", "chunked"))),
    ("upgrade", bad(("upgrade", "h2c"))),
    ("te other than trailers", bad(("te", "gzip"))),
    ("te with more than trailers", bad(("te", "trailers, deflate;q=0.5"))),
    ("te of trailers", good(("te", "trailers"))),
])

rows("8.2.3", [
    ("a cookie in crumbs", good(("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3"))),
])

rows("8.3", [
    ("an unknown pseudo-header", bad((":test", "ok"))),
    ("a pseudo-header of responses", bad((":status", "200"))),
    ("a pseudo-header after a header", bad(("x-test", "ok"), (":path", "/"), without=(":path",))),
    (":authority after a header", bad(("x-test", "ok"), (":authority", "a"), without=(":authority",))),
])

rows("8.3.1", [
    ("no :method", bad(without=(":method",))),
    ("no :scheme", bad(without=(":scheme",))),
    ("no :path", bad(without=(":path",))),
    ("an empty :path", bad((":path", ""), without=(":path",))),
    ("an empty :method", bad((":method", ""), without=(":method",))),
    ("an empty :scheme", bad((":scheme", ""), without=(":scheme",))),
    (":method twice", bad((":method", "GET"))),
    (":scheme twice", bad((":scheme", "http"))),
    (":path twice", bad((":path", "/"))),
    (":authority twice", bad((":authority", "a"))),
    ("a :method with a space", bad((":method", "GE T"), without=(":method",))),
    ("a :method with CR and LF", bad((":method", "GET / HTTP/1.1\r\nx: y"), without=(":method",))),
    ("a :path with a space", bad((":path", "/a b"), without=(":path",))),
    ("a :path with CR and LF", bad((":path", "/ HTTP/1.1\r\nx: y"), without=(":path",))),
    ("a :path that does not begin with a slash", bad((":path", "a"), without=(":path",))),
    ("a :path of an asterisk with GET", bad((":path", "*"), without=(":path",))),
    ("an :authority with a slash", bad((":authority", "a/b"), without=(":authority",))),
    ("an :authority with a space", bad((":authority", "a b"), without=(":authority",))),
    ("an :authority with a user", bad((":authority", "me@a"), without=(":authority",))),
    (":scheme with a colon", bad((":scheme", "http://a"), without=(":scheme",))),
    ("host instead of :authority",
     lambda c: (c.send(c.headers(1, [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", c.host)])),
                answered(c))),
    ("host like :authority", lambda c: (c.send(c.headers(1, c.request(extra=[("host", c.host)]))), answered(c))),
    ("HEAD",
     lambda c: (c.send(c.headers(1, c.request("HEAD"))), c.response(1), c.alive())),
    ("POST without a body", good(method="POST")),
])

rows("8.5", [
    ("CONNECT with :path", bad((":method", "CONNECT"), (":path", "/"), without=(":method", ":scheme", ":path"))),
    ("CONNECT with :scheme", bad((":method", "CONNECT"), (":scheme", "http"), without=(":method", ":scheme", ":path"))),
    ("CONNECT without :authority", bad((":method", "CONNECT"), without=(":method", ":scheme", ":path", ":authority"))),
])

rows("RFC 8441, 4", [
    (":protocol with another method", bad((":protocol", "websocket"))),
    (":protocol without :path",
     bad((":method", "CONNECT"), (":scheme", "http"), (":protocol", "websocket"), without=(":method", ":path", ":scheme"))),
    (":protocol without :scheme",
     bad((":method", "CONNECT"), (":path", "/"), (":protocol", "websocket"), without=(":method", ":path", ":scheme"))),
])


def lengths(said, *parts, then=None, extra=()):
    def run(c):
        c.post(1, extra=[*(("content-length", value) for value in said), *extra])
        for n, part in enumerate(parts):
            c.send(c.data(1, part, end=n == len(parts) - 1))
        (then or (lambda c: c.malformed(1)))(c)

    return run


rows("8.1.1", [
    ("content-length more than the body", lengths(["10"], b"hello")),
    ("content-length less than the body", lengths(["3"], b"hello")),
    ("content-length less than the body in frames", lengths(["6"], b"hello", b"world")),
    ("content-length more than the body in frames", lengths(["11"], b"hello", b"world")),
    ("content-length without a body", bad(("content-length", "5"), method="POST")),
    ("content-length of 0 with a body", lengths(["0"], b"x")),
    ("content-length that is no number", lengths(["five"], b"hello")),
    ("content-length with a sign", lengths(["+5"], b"hello")),
    ("content-length below zero", lengths(["-5"], b"hello")),
    ("content-length beyond 64 bits", lengths(["18446744073709551621"], b"hello")),
    ("two different content-lengths", lengths(["5", "6"], b"hello")),
    ("content-length that is the body's", lengths(["5"], b"hello", then=answered)),
    ("content-length of a body in frames", lengths(["10"], b"hello", b"world", then=answered)),
    ("content-length of a body with an empty end", lengths(["5"], b"hello", b"", then=answered)),
    ("content-length of 0", good(("content-length", "0"), method="POST")),
    ("content-length counts no padding",
     lambda c: (c.post(1, extra=[("content-length", "5")]),
                c.send(raw(DATA, PADDED | END_STREAM, 1, b"\x04hello\0\0\0\0")), answered(c))),
    ("content-length more than a body with trailers",
     lambda c: (c.post(1, extra=[("content-length", "10")]),
                c.send(c.data(1, b"hello", end=False) + c.headers(1, [("x-a", "1")])), c.malformed(1))),
])

# --- RFC 7541


def block(make, then):
    return sends(lambda c: c.headers(1, block=make(c)), then)


def request(c):
    return c.block_of(c.request())


def authority(c):
    return b"\x01" + bytes([len(c.host)]) + c.host.encode()


def plain(c, path=b"\x84"):
    """GET / in indexed fields, with :authority as a literal."""
    return b"\x82\x86" + path + authority(c)


compression = connection(COMPRESSION)

rows("RFC 7541, 2.3.3", [
    ("index 0", block(lambda c: plain(c) + b"\x80", compression)),
    ("the first index of an empty dynamic table", block(lambda c: plain(c) + b"\xbe", compression)),
    ("an index far beyond the tables", block(lambda c: plain(c) + b"\xff\x80\x80\x04", compression)),
    ("an index of a name beyond the tables", block(lambda c: plain(c) + b"\x7f\x00\x01x", compression)),
    ("an index of a name beyond the tables, not indexed", block(lambda c: plain(c) + b"\x0f\x80\x04\x01x", compression)),
    ("all of the static table that a request may have",
     block(lambda c: plain(c) + b"".join(
         bytes([0x0f, n - 15]) + b"\x01x" for n in range(15, 61)
         if n not in (28, 38, 57, 58, 59)), answered)),
])


def second(first, then_block, check):
    """Two requests on one connection: the table is the connection's."""

    def run(c):
        c.send(c.headers(1, block=first(c)))
        c.response(1)
        c.send(c.headers(3, block=then_block(c)))
        check(c)

    return run


INDEXED = b"\x40\x03x-a\x011"

rows("RFC 7541, 2.3.2", [
    ("an entry that was added is found",
     second(lambda c: plain(c) + INDEXED, lambda c: plain(c) + b"\xbe", lambda c: c.response(3))),
    ("an entry that was added is found within its block",
     block(lambda c: plain(c) + INDEXED + b"\xbe", answered)),
    ("entries are found by the order of their adding",
     second(lambda c: plain(c) + INDEXED + b"\x40\x03x-b\x012", lambda c: plain(c) + b"\xbe\xbf", lambda c: c.response(3))),
    ("an entry beyond those that were added",
     second(lambda c: plain(c) + INDEXED, lambda c: plain(c) + b"\xbf", compression)),
    ("a literal that is not indexed is in no table",
     second(lambda c: plain(c) + b"\x00\x03x-a\x011", lambda c: plain(c) + b"\xbe", compression)),
    ("a literal that is never indexed is in no table",
     second(lambda c: plain(c) + b"\x10\x03x-a\x011", lambda c: plain(c) + b"\xbe", compression)),
    ("a malformed request changes the table too",
     lambda c: (c.send(c.headers(1, block=plain(c) + INDEXED + b"\x00\x02te\x04gzip")), c.malformed(1),
                None if c.closed else (c.send(c.headers(3, block=plain(c) + b"\xbe")), c.response(3)))),
])

rows("RFC 7541, 4", [
    ("a size update at the beginning", block(lambda c: b"\x20" + plain(c), answered)),
    ("two size updates at the beginning", block(lambda c: b"\x20\x3f\xe1\x1f" + plain(c), answered)),
    ("a size update of all that is allowed", block(lambda c: b"\x3f\xe1\x1f" + plain(c), answered)),
    ("a size update beyond what is allowed", block(lambda c: b"\x3f\xe2\x1f" + plain(c), compression)),
    ("a size update far beyond what is allowed", block(lambda c: b"\x3f\xe1\xff\xff\x07" + plain(c), compression)),
    ("a size update at the end", block(lambda c: plain(c) + b"\x20", compression)),
    ("a size update between headers", block(lambda c: b"\x82\x20\x86\x84" + authority(c), compression)),
    ("a size of 0 empties the table",
     second(lambda c: plain(c) + INDEXED, lambda c: b"\x20\x3f\xe1\x1f" + plain(c) + b"\xbe", compression)),
    ("a small size drops the oldest",
     second(lambda c: plain(c) + INDEXED + b"\x40\x03x-b\x012", lambda c: b"\x3f\x11" + plain(c) + b"\xbf", compression)),
    ("a small size keeps the newest",
     second(lambda c: plain(c) + INDEXED + b"\x40\x03x-b\x012", lambda c: b"\x3f\x11" + plain(c) + b"\xbe",
            lambda c: c.response(3))),
    ("an entry larger than the table empties it",
     block(lambda c: b"\x3f\x21" + plain(c) + INDEXED + b"\x40\x03x-b\x32" + b"v" * 50 + b"\xbe", compression)),
    ("an entry larger than the table is a header all the same",
     block(lambda c: b"\x20" + plain(c) + b"\x40\x03x-b\x32" + b"v" * 50, answered)),
])

rows("RFC 7541, 5.1", [
    ("an integer in more bytes than it needs", block(lambda c: plain(c) + b"\x0f\x80\x00\x01x", answered)),
    ("an integer that ends with the block", block(lambda c: plain(c) + b"\xff\x80", compression)),
    ("an integer beyond all bounds", block(lambda c: plain(c) + b"\xff" + b"\xff" * 10 + b"\x01", compression)),
    ("a length beyond all bounds", block(lambda c: plain(c) + b"\x00\x7f" + b"\xff" * 9 + b"\x7f", compression)),
    ("an integer of endless zeros", block(lambda c: plain(c) + b"\xff" + b"\x80" * 40 + b"\x01", compression)),
])

rows("RFC 7541, 5.2", [
    ("Huffman code", sends(lambda c: c.headers(1, block=hpack.Encoder().encode(c.request(), huffman=True)), answered)),
    ("Huffman code of every byte of a value",
     block(lambda c: plain(c) + hpack.Encoder().encode([("x-a", "".join(map(chr, range(33, 127))))], huffman=True), answered)),
    ("padding of Huffman code longer than seven bits",
     block(lambda c: plain(c) + b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff", compression)),
    ("padding of Huffman code of a whole byte", block(lambda c: plain(c) + b"\x00\x01x\x82\x1f\xff", compression)),
    ("padding of Huffman code of zeros", block(lambda c: plain(c) + b"\x00\x01x\x81\x18", compression)),
    ("EOS within Huffman code", block(lambda c: plain(c) + b"\x00\x01x\x84\xff\xff\xff\xff", compression)),
    ("a string longer than the block", block(lambda c: plain(c) + b"\x00\x01x\x05ab", compression)),
    ("a name longer than the block", block(lambda c: plain(c) + b"\x00\x10x-a", compression)),
    ("a block that ends after a name", block(lambda c: plain(c) + b"\x00\x03x-a", compression)),
    ("an empty Huffman string", block(lambda c: plain(c) + b"\x00\x01x\x80", answered)),
])

rows("RFC 7541, 6", [
    ("a literal with an indexed name, indexed", block(lambda c: b"\x82\x86\x44\x01/" + authority(c), answered)),
    ("a literal with an indexed name, not indexed", block(lambda c: b"\x82\x86\x04\x01/" + authority(c), answered)),
    ("a literal with an indexed name, never indexed", block(lambda c: b"\x82\x86\x14\x01/" + authority(c), answered)),
    ("a literal with a new name, never indexed", block(lambda c: plain(c) + b"\x10\x03x-a\x011", answered)),
])

# --- limits


@case("10.5.1: a header list that is too large is refused")
def _(c):
    fields = c.request(extra=[(f"x-{n}", "v" * 4000) for n in range(40)])
    data = c.block_of(fields)
    out = c.headers(1, block=data[:16000], more=True)
    rest = [data[at:at + 16000] for at in range(16000, len(data), 16000)]
    for n, part in enumerate(rest):
        out += raw(CONTINUATION, END_HEADERS if n == len(rest) - 1 else 0, 1, part)
    c.send(out)
    until = time.monotonic() + WAIT
    while c.status(1) is None:
        frame = c.frame(until)
        if frame is None or frame.type in (RST, GOAWAY):
            break
    if c.status(1) not in (None, "431") or not (c.seen[-1].type in (RST, GOAWAY, HEADERS) or c.closed):
        raise Failed(c.told())


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""

    def run(entry):
        name, function, own, preface = entry
        peer = None
        try:
            peer = Peer((host, int(port)), sys.argv[1], preface, own)
            function(peer)
            return {"name": name, "ok": True}
        except Exception as error:  # noqa: BLE001: each is a case that did not hold
            return {"name": name, "ok": False, "seen": f"{type(error).__name__}: {error}"}
        finally:
            if peer is not None:
                peer.close()

    chosen = [entry for entry in CASES if wanted in entry[0]]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for result in pool.map(run, chosen):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
