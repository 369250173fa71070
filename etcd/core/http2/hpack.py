"""HPACK: header compression for HTTP/2 (RFC 7541).

The decoder is complete.  The encoder uses only literals without indexing and the static table, so
that a block depends on nothing but its headers and can be made once and sent for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import WireError
from etcd.core.http2 import huffman

if TYPE_CHECKING:
    from collections.abc import Iterable

Header = tuple[bytes, bytes]

# SETTINGS_HEADER_TABLE_SIZE's initial value, which we never change (RFC 9113 section 6.5.2).
TABLE_BYTES = 4096
# Decoded size of one header list; grpc-go allows 16 MiB, its real lists stay under 1 KiB.
MAX_LIST_BYTES = 64 * 1024
# Decoded blocks remembered between table changes: steady clients repeat a handful.
MAX_REMEMBERED = 128
# RFC 7541 section 4.1: what an entry costs beyond its strings.
_ENTRY_OVERHEAD = 32

# RFC 7541 appendix A; index 1 is the first.
_STATIC: tuple[Header, ...] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
)
_STATIC_INDEX = {header: index for index, header in reversed(list(enumerate(_STATIC, 1)))}
_STATIC_NAME = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC, 1)))}


def encode_integer(value: int, prefix_bits: int, first: int) -> bytes:
    """Return an integer behind the flag bits ``first`` (section 5.1)."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encode_string(data: bytes) -> bytes:
    coded = huffman.encode(data)
    if len(coded) < len(data):
        return encode_integer(len(coded), 7, 0x80) + coded
    return encode_integer(len(data), 7, 0) + data


def encode(headers: Iterable[Header]) -> bytes:
    """Return a header block that needs no dynamic table."""
    parts = []
    for name, value in headers:
        index = _STATIC_INDEX.get((name, value))
        if index is not None:
            parts.append(encode_integer(index, 7, 0x80))
            continue
        index = _STATIC_NAME.get(name, 0)
        parts.append(encode_integer(index, 4, 0))
        if not index:
            parts.append(_encode_string(name))
        parts.append(_encode_string(value))
    return b"".join(parts)


class Decoder:
    """One connection's decoding state.

    Blocks that leave the dynamic table alone are remembered until it changes, so a client that
    repeats its block costs one dictionary look-up a request.
    """

    __slots__ = ("_entries", "_limit", "_remembered", "_size")

    def __init__(self) -> None:
        # Newest first.
        self._entries: list[Header] = []
        self._size = 0
        self._limit = TABLE_BYTES
        self._remembered: dict[bytes, list[Header]] = {}

    def decode(self, block: bytes) -> list[Header]:
        """Return the headers of a whole block, WireError if it is malformed.

        The list is shared between calls: do not change it.
        """
        known = self._remembered.get(block)
        if known is not None:
            return known
        headers, changed = self._decode(block)
        if changed:
            self._remembered.clear()
        elif len(self._remembered) < MAX_REMEMBERED:
            self._remembered[block] = headers
        return headers

    def _decode(self, block: bytes) -> tuple[list[Header], bool]:
        headers: list[Header] = []
        changed = False
        at, end, size = 0, len(block), 0
        while at < end:
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 7)
                header = self._entry(index)
            elif first & 0x40:
                header, at = self._literal(block, at, 6)
                self._insert(header)
                changed = True
            elif first & 0x20:
                if headers:
                    raise WireError("HPACK: table size update after the first header")
                limit, at = _integer(block, at, 5)
                self._resize(limit)
                changed = True
                continue
            else:
                header, at = self._literal(block, at, 4)
            size += len(header[0]) + len(header[1]) + _ENTRY_OVERHEAD
            if size > MAX_LIST_BYTES:
                raise WireError(f"HPACK: header list above {MAX_LIST_BYTES} bytes")
            headers.append(header)
        return headers, changed

    def _entry(self, index: int) -> Header:
        if 1 <= index <= len(_STATIC):
            return _STATIC[index - 1]
        index -= len(_STATIC) + 1
        if 0 <= index < len(self._entries):
            return self._entries[index]
        raise WireError("HPACK: index outside both tables")

    def _literal(self, block: bytes, at: int, prefix_bits: int) -> tuple[Header, int]:
        index, at = _integer(block, at, prefix_bits)
        if index:
            name = self._entry(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return (name, value), at

    def _insert(self, header: Header) -> None:
        size = len(header[0]) + len(header[1]) + _ENTRY_OVERHEAD
        self._entries.insert(0, header)
        self._size += size
        self._evict()

    def _resize(self, limit: int) -> None:
        if limit > TABLE_BYTES:
            raise WireError(f"HPACK: table size {limit} above the agreed {TABLE_BYTES}")
        self._limit = limit
        self._evict()

    def _evict(self) -> None:
        while self._size > self._limit:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + _ENTRY_OVERHEAD


def _integer(block: bytes, at: int, prefix_bits: int) -> tuple[int, int]:
    limit = (1 << prefix_bits) - 1
    value = block[at] & limit
    at += 1
    if value < limit:
        return value, at
    shift = 0
    while True:
        if at == len(block):
            raise WireError("HPACK: truncated integer")
        byte = block[at]
        at += 1
        value += (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 28:
            raise WireError("HPACK: integer above 32 bits")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    if at == len(block):
        raise WireError("HPACK: truncated string")
    coded = block[at] & 0x80
    size, at = _integer(block, at, 7)
    if size > len(block) - at:
        raise WireError("HPACK: truncated string")
    data = block[at : at + size]
    return (huffman.decode(data) if coded else data), at + size
