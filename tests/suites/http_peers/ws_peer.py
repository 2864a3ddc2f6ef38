"""A server and a client of WebSocket, by the `websockets` package.

server                      prints its port, and serves until its input ends
client URL [CA]             talks, and prints what came of it as JSON
"""

import asyncio
import json
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

LIMIT = 20


async def answer(connection):
    path = connection.request.path
    if path.startswith("/ws/closes"):
        await connection.close(4321, "the server's wish")
        return
    async for message in connection:
        if message == "who":
            headers = connection.request.headers
            told = {"path": path, "protocol": connection.subprotocol, "x-of-client": headers.get("x-of-client")}
            await connection.send(json.dumps(told))
        elif message == "many":
            for n in range(2000):
                await connection.send(f"{n}")
        elif message == "ping":
            pong = await connection.ping(b"from the server")
            await asyncio.wait_for(pong, LIMIT)
            await connection.send("ponged")
        else:
            await connection.send(message)


def select(connection, offered):
    return "chat.v2" if "chat.v2" in offered else None


async def server():
    async with serve(answer, "127.0.0.1", 0, select_subprotocol=select, max_size=1 << 24) as running:
        port = running.sockets[0].getsockname()[1]
        print(json.dumps({"event": "listening", "port": port}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def talk(url, options):
    found = {}
    async with connect(
        url + "/ws/a?b=c",
        subprotocols=["chat.v1", "chat.v2"],
        additional_headers={"x-of-client": "yes"},
        **options,
    ) as ws:
        await ws.send("who")
        found["who"] = json.loads(await ws.recv())
        found["protocol"] = ws.subprotocol
        await ws.send("text \u00fc")
        found["text"] = await ws.recv()
        await ws.send(bytes(range(256)))
        found["bytes"] = await ws.recv() == bytes(range(256))
        big = bytes(n * 31 % 251 for n in range(3 << 20))
        await ws.send(big)
        found["big"] = await ws.recv() == big
        await ws.send(["a fragmented ", "message ", "of three"])
        found["fragments"] = await ws.recv()
        pong = await ws.ping(b"from the client")
        await asyncio.wait_for(pong, LIMIT)
        await ws.send("ping")
        found["ping"] = await ws.recv()
        await ws.send("many")
        found["many"] = [await ws.recv() for _ in range(2000)] == [f"{n}" for n in range(2000)]
        await ws.close(4000, "the client's wish")
        found["closed"] = [ws.close_code, ws.close_reason]
    try:
        async with connect(url + "/ws/closes", **options) as ws:
            await ws.recv()
    except ConnectionClosed as end:
        found["closed by the server"] = [end.rcvd.code, end.rcvd.reason]
    # Many at once, each with its own.
    async def one(n):
        async with connect(url + "/ws/n", **options) as ws:
            await ws.send(f"{n}")
            return await ws.recv() == f"{n}"

    found["at once"] = sum(await asyncio.gather(*(one(n) for n in range(30))))
    return found


async def refused(url, options):
    try:
        async with connect(url + "/plain", **options):
            return "connected"
    except InvalidStatus as error:
        return error.response.status_code


async def client(url, files):
    options = {"max_size": 1 << 24, "proxy": None, "open_timeout": LIMIT}
    if files:
        context = ssl.create_default_context(cafile=files[0])
        context.load_cert_chain(files[1], files[2])
        options |= {"ssl": context, "server_hostname": "proxy.test"}
    found = {"talk": await asyncio.wait_for(talk(url, options), 3 * LIMIT)}
    if "--refused" in sys.argv:
        found["refused"] = await refused(url, options)
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "server":
        asyncio.run(server())
    else:
        rest = [one for one in sys.argv[2:] if not one.startswith("--")]
        asyncio.run(client(rest[0], rest[1:]))
