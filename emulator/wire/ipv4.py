"""IPv4 (RFC 791): validation, headers, TTL, fragmentation."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from emulator.errors import WireError
from emulator.wire.checksum import checksum

HEADER_LEN: Final = 20
MAX_LENGTH: Final = 65535
MIN_MTU: Final = 68  # RFC 791: every module takes a packet of 68 bytes without cutting it
DF: Final = 0x4000
MF: Final = 0x2000
OFFSET_MASK: Final = 0x1FFF
DEFAULT_TTL: Final = 64  # net.ipv4.ip_default_ttl

_HEADER = struct.Struct("!BBHHHBBHII")
# Options copied into every fragment have this bit (RFC 791 section 3.1).
_OPTION_COPIED = 0x80


class Ipv4(NamedTuple):
    """A packet; ``frag`` is the flags-and-offset word, ``options`` a multiple of 4 bytes."""

    src: int
    dst: int
    proto: int
    payload: bytes
    ttl: int = DEFAULT_TTL
    ident: int = 0
    frag: int = 0
    tos: int = 0
    options: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Ipv4:
        """Read and check a packet; what follows its total length (padding) is ignored."""
        data = validate(data)
        header_len = (data[0] & 15) * 4
        _, tos, _, ident, frag, ttl, proto, _, src, dst = _HEADER.unpack_from(data)
        return cls(
            *(src, dst, proto, data[header_len:], ttl, ident, frag, tos),
            options=data[HEADER_LEN:header_len],
        )

    def emit(self) -> bytes:
        """Return the bytes, checksum included; WireError if longer than 65,535."""
        return build(
            *(self.src, self.dst, self.proto, self.payload),
            ttl=self.ttl,
            ident=self.ident,
            frag=self.frag,
            tos=self.tos,
            options=self.options,
        )


def validate(data: bytes) -> bytes:
    """Return the packet cut to its total length; WireError says what is wrong (Linux: ip_rcv)."""
    size = len(data)
    if size < HEADER_LEN:
        raise WireError(f"truncated IPv4 header: {size} bytes of {HEADER_LEN}")
    if data[0] >> 4 != 4:
        raise WireError(f"IP version {data[0] >> 4} is not 4")
    header_len = (data[0] & 15) * 4
    total = data[2] << 8 | data[3]
    if header_len < HEADER_LEN or total < header_len:
        raise WireError(f"IPv4 header length {header_len} with total length {total}")
    if total > size:
        raise WireError(f"truncated IPv4 packet: {size} bytes of {total}")
    if checksum(data[:header_len]):
        raise WireError("bad IPv4 header checksum")
    return data if total == size else data[:total]


def build(
    src: int,
    dst: int,
    proto: int,
    payload: bytes,
    *,
    ttl: int = DEFAULT_TTL,
    ident: int = 0,
    frag: int = 0,
    tos: int = 0,
    options: bytes = b"",
) -> bytes:
    """Return a packet with a valid header checksum; WireError if longer than 65,535 bytes."""
    total = HEADER_LEN + len(options) + len(payload)
    if total > MAX_LENGTH:
        raise WireError(f"IPv4 packet of {total} bytes: at most {MAX_LENGTH} fit")
    first = 0x45 + len(options) // 4
    header = _HEADER.pack(first, tos, total, ident, frag, ttl, proto, 0, src, dst) + options
    value = checksum(header)
    return b"".join((header[:10], value.to_bytes(2, "big"), header[12:], payload))


def decrement_ttl(data: bytes) -> bytes:
    """Return the packet with TTL one less, checksum adjusted (RFC 1624; Linux: ip_decrease_ttl).

    The caller has made sure that the TTL is at least 1.
    """
    value = (data[10] << 8 | data[11]) + 0x100
    value = (value + (value >= 0xFFFF)) & 0xFFFF
    head = bytes((data[8] - 1, data[9], value >> 8, value & 0xFF))
    return b"".join((data[:8], head, data[12:]))


def with_tos(data: bytes, tos: int) -> bytes:
    """Return the packet with another TOS byte and the checksum for it."""
    header_len = (data[0] & 15) * 4
    head = b"".join((data[:1], bytes((tos,)), data[2:10], b"\x00\x00", data[12:header_len]))
    value = checksum(head)
    return b"".join((head[:10], value.to_bytes(2, "big"), head[12:], data[header_len:]))


def with_total_length(header: bytes, total: int, ident: int, frag: int) -> bytes:
    """Return a header (options included) with these three fields and a new checksum."""
    fields = struct.pack("!HHH", total, ident, frag)
    head = b"".join((header[:2], fields, header[8:10], b"\x00\x00", header[12:]))
    return b"".join((head[:10], checksum(head).to_bytes(2, "big"), head[12:]))


def fragment(data: bytes, mtu: int) -> list[bytes]:
    """Cut a packet into fragments of at most ``mtu`` bytes (RFC 791 section 3.2).

    The packet itself may be a fragment.  A smaller ``mtu`` than MIN_MTU counts as that.
    """
    mtu = max(mtu, MIN_MTU)
    header_len = (data[0] & 15) * 4
    header = data[:header_len]
    payload = data[header_len:]
    ident = int.from_bytes(data[4:6], "big")
    frag = int.from_bytes(data[6:8], "big")
    offset = (frag & OFFSET_MASK) * 8
    flags = frag & ~OFFSET_MASK & 0xFFFF
    later_header = _header_of_later(header)
    out: list[bytes] = []
    position = 0
    while position < len(payload):
        head = header if position == 0 else later_header
        room = (mtu - len(head)) & ~7
        piece = payload[position : position + room]
        more = position + len(piece) < len(payload)
        word = (flags | MF if more else flags) | (offset + position) >> 3
        out.append(with_total_length(head, len(head) + len(piece), ident, word) + piece)
        position += len(piece)
    return out


def _header_of_later(header: bytes) -> bytes:
    """The header of every fragment but the first: only options with the copied bit stay."""
    if len(header) == HEADER_LEN:
        return header
    kept = bytearray()
    position = HEADER_LEN
    while position < len(header):
        kind = header[position]
        if kind == 0:
            break
        length = 1
        if kind != 1:
            length = header[position + 1] if position + 1 < len(header) else 0
            if length < 2:
                break
        if kind & _OPTION_COPIED:
            kept += header[position : position + length]
        position += length
    kept += bytes(-len(kept) % 4)
    return bytes((0x45 + len(kept) // 4,)) + header[1:HEADER_LEN] + bytes(kept)
