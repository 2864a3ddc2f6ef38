"""RFC 9113 (HTTP/2), RFC 8441 (extended CONNECT) and RFC 7541 (HPACK), asked of a server case by case.

Usage: conformance.py HOST:PORT [PART OF A NAME]

The server answers every request with 200 and a body of at least five bytes, once it has read the request to its end.
Prints one line of JSON for each case: its name, whether it held, and what was seen where not.
"""

import concurrent.futures
import json
import sys

import fields  # noqa: F401
import frames  # noqa: F401
import messages  # noqa: F401
import streams  # noqa: F401
from peer import Peer
from suite import CASES


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
