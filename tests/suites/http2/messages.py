"""RFC 9113, 8, and RFC 8441: what a request may be."""

import time

from suite import *  # noqa: F403


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
