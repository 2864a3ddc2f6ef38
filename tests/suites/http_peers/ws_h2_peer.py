"""A client of WebSocket over HTTP/2 (RFC 8441), by the `h2` package and the frames of `websockets`.

HOST:PORT          talks on several streams of one connection, and prints what came of it as JSON
"""

import json
import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

LIMIT = 20


class Connection:
    def __init__(self, address):
        self.socket = socket.create_connection(address, LIMIT)
        # What it is told of `:protocol` is the proxy's to judge.
        config = h2.config.H2Configuration(client_side=True, validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.streams = {}
        self.flush()
        while not self.h2.remote_settings.enable_connect_protocol:
            self.read()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def read(self):
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed")
        for event in self.h2.receive_data(data):
            stream = self.streams.get(getattr(event, "stream_id", None))
            if stream is not None:
                stream.see(event)
        self.flush()


class Stream:
    def __init__(self, connection, path, headers=()):
        self.connection = connection
        self.id = connection.h2.get_next_available_stream_id()
        self.head = None
        self.ended = None
        self.reader = StreamReader()
        connection.streams[self.id] = self
        connection.h2.send_headers(self.id, [
            (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":authority", "proxy.test"),
            (":path", path), ("sec-websocket-version", "13"), *headers,
            # A server of HTTP/1.1 wants one, and no proxy makes it.
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ])
        connection.flush()
        while self.head is None and self.ended is None:
            connection.read()

    def see(self, event):
        if isinstance(event, h2.events.ResponseReceived):
            self.head = {bytes(k).decode(): bytes(v).decode() for k, v in event.headers}
        elif isinstance(event, h2.events.DataReceived):
            self.reader.feed_data(event.data)
            self.connection.h2.acknowledge_received_data(event.flow_controlled_length, self.id)
        elif isinstance(event, h2.events.StreamEnded):
            self.end("whole")
        elif isinstance(event, h2.events.StreamReset):
            self.end(f"reset: {int(event.error_code)}")

    def end(self, how):
        if self.ended is None:
            self.ended = how
            self.reader.feed_eof()

    def send(self, opcode, data, fin=True):
        rest = Frame(opcode, data, fin).serialize(mask=True)
        while rest:
            room = min(self.connection.h2.local_flow_control_window(self.id), 16384)
            if room == 0:
                self.connection.read()
                continue
            self.connection.h2.send_data(self.id, rest[:room])
            self.connection.flush()
            rest = rest[room:]

    def frame(self):
        parsing = Frame.parse(self.reader.read_exact, mask=False)
        while True:
            try:
                next(parsing)
            except StopIteration as end:
                return end.value
            self.connection.read()

    def message(self):
        data = b""
        while True:
            frame = self.frame()
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                data += frame.data
                if frame.fin:
                    return data
            elif frame.opcode is Opcode.PING:
                self.send(Opcode.PONG, frame.data)
            elif frame.opcode is Opcode.PONG:
                return b"pong: " + frame.data


def talk(connection):
    found = {}
    ws = Stream(connection, "/ws/a?b=c", [("sec-websocket-protocol", "chat.v1, chat.v2"), ("x-of-client", "yes")])
    found["head"] = {name: ws.head.get(name) for name in (":status", "sec-websocket-protocol", "connection", "upgrade")}
    ws.send(Opcode.TEXT, b"who")
    found["who"] = json.loads(ws.message())
    ws.send(Opcode.TEXT, "text \u00fc".encode())
    found["text"] = ws.message().decode()
    big = bytes(n * 31 % 251 for n in range(1 << 20))
    ws.send(Opcode.BINARY, big)
    found["big"] = ws.message() == big
    ws.send(Opcode.TEXT, b"a fragmented ", fin=False)
    ws.send(Opcode.CONT, b"message")
    found["fragments"] = ws.message().decode()
    ws.send(Opcode.PING, b"ours")
    found["pong"] = ws.message().decode()
    ws.send(Opcode.TEXT, b"ping")
    found["ping"] = ws.message().decode()
    ws.send(Opcode.TEXT, b"many")
    found["many"] = all(ws.message() == b"%d" % n for n in range(2000))
    # Others beside it, on the same connection.
    others = [Stream(connection, "/ws/n") for _ in range(20)]
    for n, other in enumerate(others):
        other.send(Opcode.TEXT, b"%d" % n)
    found["at once"] = sum(other.message() == b"%d" % n for n, other in enumerate(others))
    ws.send(Opcode.CLOSE, Close(4000, "the client's wish").serialize())
    close = Close.parse(ws.frame().data)
    found["closed"] = [close.code, close.reason]
    # It is the server who ends it, by one frame or another.
    while ws.ended is None:
        connection.read()
    return found


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    connection = Connection((host, int(port)))
    found = talk(connection)
    print(json.dumps({"talk": found}))


if __name__ == "__main__":
    main()
