"""The TCP segment as the TCP core sees it, and its bytes (RFC 9293 section 3.1).

This is the hot path's form: one ``struct`` call a header, options parsed only where there are any.
Sequence numbers here are the 32-bit ones of the wire; ``tcp.py`` unwraps them.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from emulator.wire.checksum import checksum, pseudo_header_sum

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

TCP_PROTO: Final = 6
IP_TTL: Final = 64  # net.ipv4.ip_default_ttl
SEQ_MASK: Final = 0xFFFFFFFF

_TCP = struct.Struct("!HHIIBBHHH")
# Version+IHL, TOS, total length | id, DF | TTL, protocol, checksum | source | destination
_IP_TCP = struct.Struct("!BBHHHBBHIIHHIIBBHHH")

_OPT_END, _OPT_NOP, _OPT_MSS, _OPT_WSCALE, _OPT_SACK_OK, _OPT_SACK = 0, 1, 2, 3, 4, 5
_FLAG_LETTERS: Final = ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (ACK, "."), (URG, "U"))


class Options(NamedTuple):
    """The options this stack speaks; ``sack`` holds (left, right) edges as on the wire."""

    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    sack: tuple[tuple[int, int], ...] = ()

    def to_bytes(self) -> bytes:
        """Encode with the padding Linux uses, a multiple of four bytes."""
        out = bytearray()
        if self.mss is not None:
            out += struct.pack("!BBH", _OPT_MSS, 4, self.mss)
        if self.sack_ok:
            out += bytes((_OPT_NOP, _OPT_NOP, _OPT_SACK_OK, 2))
        if self.wscale is not None:
            out += bytes((_OPT_NOP, _OPT_WSCALE, 3, self.wscale))
        if self.sack:
            out += bytes((_OPT_NOP, _OPT_NOP, _OPT_SACK, 2 + 8 * len(self.sack)))
            for left, right in self.sack:
                out += struct.pack("!II", left, right)
        return bytes(out)

    @classmethod
    def parse(cls, data: bytes) -> Options:
        """Decode an option field; unknown or malformed options are skipped as Linux skips them."""
        mss = wscale = None
        sack_ok = False
        sack: tuple[tuple[int, int], ...] = ()
        position, size = 0, len(data)
        while position < size:
            kind = data[position]
            if kind == _OPT_END:
                break
            if kind == _OPT_NOP:
                position += 1
                continue
            if position + 1 >= size:
                break
            length = data[position + 1]
            if length < 2 or position + length > size:
                break
            body = data[position + 2 : position + length]
            if kind == _OPT_MSS and length == 4:
                mss = int.from_bytes(body, "big")
            elif kind == _OPT_WSCALE and length == 3:
                wscale = min(body[0], 14)  # RFC 7323 section 2.3
            elif kind == _OPT_SACK_OK and length == 2:
                sack_ok = True
            elif kind == _OPT_SACK and length >= 10 and (length - 2) % 8 == 0:
                edges = struct.unpack(f"!{(length - 2) // 4}I", body)
                sack = tuple(zip(edges[::2], edges[1::2], strict=True))
            position += length
        return cls(mss, wscale, sack_ok, sack)


NO_OPTIONS: Final = Options()


class Segment(NamedTuple):
    """One segment, or with ``gso_size`` > 0 a super-segment of pieces of that many bytes.

    ``window`` is the field as on the wire (not scaled).
    """

    seq: int
    ack: int
    flags: int
    window: int
    payload: bytes = b""
    options: Options = NO_OPTIONS
    gso_size: int = 0

    @property
    def length(self) -> int:
        """Sequence space it takes: payload plus one each for SYN and FIN (SEG.LEN)."""
        return len(self.payload) + (self.flags & SYN != 0) + (self.flags & FIN != 0)

    def __str__(self) -> str:
        letters = "".join(letter for bit, letter in _FLAG_LETTERS if self.flags & bit)
        return f"[{letters}] seq {self.seq} ack {self.ack} win {self.window} len {self.length}"


def parse_segment(data: bytes, offset: int, src: int, dst: int, gso_size: int) -> Segment | None:
    """Read the TCP segment at ``offset`` of an IPv4 packet; None if malformed or corrupt.

    A super-segment (``gso_size`` > 0) was checked piece by piece where it was put together, or
    never left this host: its checksum field means nothing, as with Linux's CHECKSUM_PARTIAL.
    """
    end = int.from_bytes(data[2:4], "big") or len(data)
    if end > len(data) or end - offset < 20:
        return None
    _, _, seq, ack, doff, flags, window, _, _ = _TCP.unpack_from(data, offset)
    header = (doff >> 4) * 4
    start = offset + header
    if header < 20 or start > end:
        return None
    if not gso_size and checksum(
        data[offset:end], pseudo_header_sum(src, dst, TCP_PROTO, end - offset)
    ):
        return None
    options = NO_OPTIONS if header == 20 else Options.parse(data[offset + 20 : start])
    return Segment(seq, ack, flags & 0x3F, window, data[start:end], options, gso_size)


def emit_packet(src: int, dst: int, sport: int, dport: int, ident: int, segment: Segment) -> bytes:
    """Return the whole IPv4 packet of a segment, DF set, checksums valid.

    In a super-segment the TCP checksum field is left 0: each piece gets its own when it is cut.
    """
    seq, ack, flags, window, payload, options, gso_size = segment
    tail = b"" if options is NO_OPTIONS else options.to_bytes()
    length = 20 + len(tail) + len(payload)
    total = 20 + length
    header_sum = (
        0x4500
        + total
        + ident
        + 0x4000
        + (IP_TTL << 8 | TCP_PROTO)
        + (src >> 16)
        + (src & 0xFFFF)
        + (dst >> 16)
        + (dst & 0xFFFF)
    )
    ip_checksum = (header_sum % 0xFFFF or 0xFFFF) ^ 0xFFFF
    doff = (5 + len(tail) // 4) << 4
    tcp_checksum = 0
    if not gso_size:
        initial = (
            pseudo_header_sum(src, dst, TCP_PROTO, length)
            + (sport + dport + (seq >> 16) + (seq & 0xFFFF) + (ack >> 16) + (ack & 0xFFFF))
            + ((doff << 8 | flags) + window)
        )
        tcp_checksum = checksum(tail + payload if tail else payload, initial)
    header = _IP_TCP.pack(
        *(0x45, 0, total, ident, 0x4000, IP_TTL, TCP_PROTO, ip_checksum, src, dst),
        *(sport, dport, seq, ack, doff, flags, window, tcp_checksum, 0),
    )
    return b"".join((header, tail, payload))
