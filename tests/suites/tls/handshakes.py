"""Malformed TLS handshakes, built from tlslite-ng's messages: each must be refused without an answer.

Usage: handshakes.py PORT. Prints one line of JSON for each: its name and how the connection ended.
"""

import json
import socket
import sys

from tlslite.constants import CipherSuite, GroupName, SignatureScheme
from tlslite.extensions import (
    ClientKeyShareExtension,
    KeyShareEntry,
    SNIExtension,
    SignatureAlgorithmsExtension,
    SupportedGroupsExtension,
    SupportedVersionsExtension,
)
from tlslite.keyexchange import ECDHKeyExchange
from tlslite.messages import ClientHello


def share():
    """A key share of X25519."""
    kex = ECDHKeyExchange(GroupName.x25519, (3, 4))
    return KeyShareEntry().create(GroupName.x25519, kex.calc_public_value(kex.get_random_private_key()))


def extensions(**changes):
    """Those of a good TLS 1.3 hello; a change of None leaves one out."""
    parts = {
        "versions": SupportedVersionsExtension().create([(3, 4), (3, 3)]),
        "groups": SupportedGroupsExtension().create([GroupName.x25519]),
        "signatures": SignatureAlgorithmsExtension().create(
            [SignatureScheme.ecdsa_secp256r1_sha256, SignatureScheme.rsa_pss_rsae_sha256]
        ),
        "share": ClientKeyShareExtension().create([share()]),
    }
    parts.update(changes)
    return [part for part in parts.values() if part is not None]


def hello(ciphers=(CipherSuite.TLS_AES_128_GCM_SHA256,), compression=(0,), version=(3, 3), exts=None):
    message = ClientHello().create(version, bytearray(32), bytearray(32), list(ciphers))
    message.extensions = extensions() if exts is None else exts
    message.compression_methods = list(compression)
    return message.write()


def record(payload, kind=22, version=(3, 1)):
    return bytes([kind, *version]) + len(payload).to_bytes(2, "big") + bytes(payload)


def cut(message, at):
    """A message that says it is longer than its record, and another of another kind behind it."""
    return record(message[:at]) + record(b"\x01\x00", kind=21)


def stretched(message, by):
    """The length in the header of the message is wrong."""
    length = int.from_bytes(message[1:4], "big") + by
    return bytes([message[0]]) + length.to_bytes(3, "big") + bytes(message[4:])


def cases():
    good = hello()
    twice = extensions()
    twice.append(SupportedGroupsExtension().create([GroupName.x25519]))
    return {
        "two extensions of one kind": record(hello(exts=twice)),
        "a hello that is one byte too short for its length": record(stretched(good, 1)) + record(b"\x00" * 4),
        "a hello with a byte too many inside": record(stretched(good + b"\x00", 1)),
        "an alert in the midst of a hello": cut(good, 50),
        "no cipher at all": record(hello(ciphers=())),
        "unknown ciphers alone": record(hello(ciphers=(0xFAFA, 0x0000))),
        "compression in TLS 1.3": record(hello(compression=(1, 0))),
        "no compression method": record(hello(compression=())),
        "no signature algorithms": record(hello(exts=extensions(signatures=None))),
        "no groups, but a share": record(hello(exts=extensions(groups=None))),
        "a share of a group that is not offered": record(
            hello(exts=extensions(groups=SupportedGroupsExtension().create([GroupName.x448])))
        ),
        "no version that is there": record(
            hello(exts=extensions(versions=SupportedVersionsExtension().create([(3, 1), (3, 2)])))
        ),
        "an empty list of versions": record(hello(exts=extensions(versions=SupportedVersionsExtension().create([])))),
        "an empty server name": record(hello(exts=[*extensions(), SNIExtension().create(bytearray(b""))])),
        "SSL 3.0": record(hello(version=(3, 0), exts=[]), version=(3, 0)),
        "TLS 1.0": record(hello(version=(3, 1), exts=[]), version=(3, 1)),
        "a handshake message of an unknown kind": record(b"\x63\x00\x00\x01\x00"),
        "a server's message": record(b"\x02\x00\x00\x26" + b"\x03\x03" + bytes(36)),
        "Finished first": record(b"\x14\x00\x00\x20" + bytes(32)),
        "change_cipher_spec first, and again": record(b"\x01", kind=20) * 100,
        "a heartbeat first": record(b"\x01\x40\x00", kind=24),
        "an SSLv2 hello": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(40),
        "a hello in records of one byte, without an end": b"".join(record(good[i : i + 1]) for i in range(20))
        + record(b"", kind=22) * 200,
        "a good hello, and plain text behind it": record(good) + record(b"hello\n", kind=23, version=(3, 3)),
        "a good hello twice": record(good) * 2,
        "a good hello, and Finished in plain text": record(good) + record(b"\x14\x00\x00\x20" + bytes(32)),
    }


def attempt(port, data):
    """What the other side says in records, and how it ends."""
    stream = socket.create_connection(("127.0.0.1", port))
    stream.settimeout(5)
    came = b""
    try:
        stream.sendall(data)
        while part := stream.recv(65536):
            came += part
        end = "FIN"
    except socket.timeout:
        end = "open"
    except (ConnectionError, OSError):
        end = "RST"
    stream.close()
    return end, came


def main():
    for name, data in cases().items():
        end, came = attempt(int(sys.argv[1]), data)
        print(json.dumps({"name": name, "end": end, "answered": b"up " in came}), flush=True)


main()
