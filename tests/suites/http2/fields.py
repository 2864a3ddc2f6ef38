"""RFC 7541: header blocks."""

import hpack

from suite import *  # noqa: F403


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
