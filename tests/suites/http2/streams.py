"""RFC 9113, 3 to 5: the preface, frames and the states of streams."""

import time

from suite import *  # noqa: F403


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
