"""An HTTP/2 client that can do everything wrong: frames by hyperframe, header blocks by hpack, bytes as they are."""

import socket
import struct
import time

import hpack
from hyperframe import frame as frames
from hyperframe.exceptions import HyperframeError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

NO_ERROR, PROTOCOL, INTERNAL, FLOW, TIMEOUT, CLOSED, SIZE, REFUSED, CANCEL, COMPRESSION, CONNECT, CALM = range(12)

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)

END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 1, 1, 4, 8, 32

WAIT = 3.0


class Failed(Exception):
    """What was seen is not what must be."""


def head(length, kind, flags, stream):
    return struct.pack(">I", length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream)


def raw(kind, flags=0, stream=0, payload=b"", length=None):
    """A frame, whatever is wrong with it."""
    return head(len(payload) if length is None else length, kind, flags, stream) + payload


def settings(*pairs, ack=False, stream=0):
    payload = b"".join(struct.pack(">HI", key, value) for key, value in pairs)
    return raw(SETTINGS, ACK if ack else 0, stream, payload)


def window(stream, by):
    return raw(WINDOW, 0, stream, struct.pack(">I", by))


def reset(stream, code=CANCEL):
    return raw(RST, 0, stream, struct.pack(">I", code))


def ping(data=b"12345678", flags=0, stream=0):
    return raw(PING, flags, stream, data)


def goaway(last=0, code=NO_ERROR, debug=b"", stream=0):
    return raw(GOAWAY, 0, stream, struct.pack(">II", last, code) + debug)


def priority(stream, on=0, weight=15):
    return raw(PRIORITY, 0, stream, struct.pack(">IB", on, weight))


class Peer:
    """One connection, whose frames from the server are read as they are asked for."""

    def __init__(self, address, host, preface=True, own=()):
        self.socket = socket.create_connection(address, timeout=WAIT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host = host
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.buffer = b""
        self.closed = False
        self.seen = []
        self.server = {}
        self.block = None
        self.responses = {}
        if preface:
            self.send(PREFACE + settings(*own))
            self.wait(lambda f: f.type == SETTINGS and "ACK" not in f.flags, "SETTINGS")
            self.send(settings(ack=True))
            self.wait(lambda f: f.type == SETTINGS and "ACK" in f.flags, "the ACK of SETTINGS")

    def close(self):
        self.socket.close()

    # Out.

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            # That the server has closed is for the reading side to notice.
            pass

    def request(self, method="GET", path="/", extra=()):
        return [(":method", method), (":scheme", "http"), (":authority", self.host), (":path", path), *extra]

    def block_of(self, headers):
        return self.encoder.encode([(k, v) for k, v in headers], huffman=False)

    def headers(self, stream, headers=None, end=True, more=False, flags=0, block=None):
        """A HEADERS frame."""
        if block is None:
            block = self.block_of(self.request() if headers is None else headers)
        flags |= (END_STREAM if end else 0) | (0 if more else END_HEADERS)
        return raw(HEADERS, flags, stream, block)

    def data(self, stream, data=b"", end=True, flags=0):
        return raw(DATA, flags | (END_STREAM if end else 0), stream, data)

    def post(self, stream, extra=()):
        """An open request."""
        self.send(self.headers(stream, self.request("POST", extra=extra), end=False))

    # In.

    def frame(self, until):
        """The next frame; None once the server has closed, or at the end of the time."""
        while True:
            if len(self.buffer) >= 9:
                length = int.from_bytes(self.buffer[:3], "big")
                if len(self.buffer) >= 9 + length:
                    parsed, _ = frames.Frame.parse_frame_header(memoryview(self.buffer[:9]))
                    parsed.parse_body(memoryview(self.buffer[9:9 + length]))
                    self.buffer = self.buffer[9 + length:]
                    self.account(parsed)
                    return parsed
            left = until - time.monotonic()
            if left <= 0 or self.closed:
                return None
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except socket.timeout:
                return None
            except OSError:
                data = b""
            if not data:
                self.closed = True
            self.buffer += data

    def account(self, frame):
        self.seen.append(frame)
        if frame.type == SETTINGS and "ACK" not in frame.flags:
            self.server.update(frame.settings)
        if frame.type in (HEADERS, CONTINUATION):
            self.block = (self.block or b"") + frame.data
            if "END_HEADERS" in frame.flags:
                fields = self.decoder.decode(self.block)
                self.responses.setdefault(frame.stream_id, []).append(dict(fields))
                self.block = None

    def wait(self, wanted, what, seconds=WAIT):
        until = time.monotonic() + seconds
        while True:
            frame = self.frame(until)
            if frame is None:
                raise Failed(f"no {what}: {self.told()}")
            if wanted(frame):
                return frame

    def told(self):
        """What came, in short."""
        shown = [f for f in self.seen if f.type != SETTINGS]
        words = [self.word(f) for f in shown[-6:]]
        return ", ".join(words + ["closed" if self.closed else "still open"])

    def word(self, f):
        if f.type == RST:
            return f"RST_STREAM({f.stream_id}, {f.error_code})"
        if f.type == GOAWAY:
            return f"GOAWAY({f.last_stream_id}, {f.error_code}, {f.additional_data.decode('latin1')})"
        if f.type == HEADERS:
            status = [r.get(":status") for r in self.responses.get(f.stream_id, [])]
            return f"HEADERS({f.stream_id}, {status})"
        return f"{type(f).__name__}({f.stream_id})"

    # What must be.

    def connection_error(self, *codes):
        """GOAWAY of one of these codes, or at least a connection that is closed."""
        until = time.monotonic() + WAIT
        while True:
            frame = self.frame(until)
            if frame is None:
                break
            if frame.type == GOAWAY and frame.error_code != NO_ERROR:
                if frame.error_code not in codes:
                    raise Failed(f"not of {codes}: {self.told()}")
                # And then it closes.
                while self.frame(time.monotonic() + WAIT) is not None:
                    pass
        if not self.closed:
            raise Failed(f"no connection error: {self.told()}")

    def stream_error(self, stream, *codes):
        """RST_STREAM of one of these codes; an error of the whole connection is allowed by RFC 9113, 5.4."""
        until = time.monotonic() + WAIT
        while True:
            frame = self.frame(until)
            if frame is None:
                if self.closed:
                    return
                raise Failed(f"no stream error: {self.told()}")
            if frame.type == RST and frame.stream_id == stream:
                if frame.error_code not in codes:
                    raise Failed(f"not of {codes}: {self.told()}")
                return
            if frame.type == GOAWAY:
                if frame.error_code not in codes:
                    raise Failed(f"not of {codes}: {self.told()}")
                return

    def malformed(self, stream):
        """A stream error PROTOCOL_ERROR, before which a response 4xx is allowed (RFC 9113, 8.1.1)."""
        until = time.monotonic() + WAIT
        while True:
            frame = self.frame(until)
            status = self.status(stream)
            if status is not None:
                if status.startswith("4"):
                    return
                raise Failed(f"a response {status}: {self.told()}")
            if frame is None:
                if self.closed:
                    return
                raise Failed(f"no stream error: {self.told()}")
            if frame.type in (RST, GOAWAY):
                if frame.error_code != PROTOCOL:
                    raise Failed(f"not PROTOCOL_ERROR: {self.told()}")
                return

    def status(self, stream):
        """Of the final head, once it is here."""
        for fields in self.responses.get(stream, []):
            status = fields.get(":status", "")
            if not status.startswith("1"):
                return status
        return None

    def response(self, stream, statuses=("200",)):
        """A whole response."""
        body = b""
        until = time.monotonic() + WAIT
        while True:
            frame = self.frame(until)
            if frame is None:
                raise Failed(f"no response on {stream}: {self.told()}")
            if frame.type == GOAWAY and frame.error_code != NO_ERROR:
                raise Failed(f"a connection error: {self.told()}")
            if frame.stream_id != stream:
                continue
            if frame.type == RST:
                raise Failed(f"a stream error: {self.told()}")
            if frame.type == DATA:
                body += frame.data
            if frame.type in (DATA, HEADERS) and "END_STREAM" in frame.flags:
                if self.status(stream) not in statuses:
                    raise Failed(f"a response {self.status(stream)}: {self.told()}")
                return body

    def alive(self):
        """The connection still answers."""
        self.send(ping(b"alive?!?"))
        self.wait(
            lambda f: f.type == PING and "ACK" in f.flags and f.opaque_data == b"alive?!?",
            "answer to a PING",
        )
        if any(f.type == GOAWAY for f in self.seen):
            raise Failed(f"a GOAWAY: {self.told()}")

    def quiet(self, seconds, kinds):
        """None of these frames comes."""
        until = time.monotonic() + seconds
        while (frame := self.frame(until)) is not None:
            if frame.type in kinds:
                raise Failed(f"too early: {self.word(frame)}")


__all__ = [name for name in dir() if not name.startswith("_")]
