"""The TCP segment as the TCP core sees it, and its bytes (RFC 9293 section 3.1).

This is the hot path's form: one ``struct`` call a header, options parsed only where there are any.
Sequence numbers here are the 32-bit ones of the wire; ``tcp.py`` unwraps them.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from emulator.wire.checksum import checksum, pseudo_header_sum
from emulator.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, Options
from emulator.wire.tcp import PROTO as TCP_PROTO

IP_TTL: Final = 64  # net.ipv4.ip_default_ttl
SEQ_MASK: Final = 0xFFFFFFFF

_TCP = struct.Struct("!HHIIBBHHH")
# Version+IHL, TOS, total length | id, DF | TTL, protocol, checksum | source | destination
_IP_TCP = struct.Struct("!BBHHHBBHIIHHIIBBHHH")

_FLAG_LETTERS: Final = ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (ACK, "."), (URG, "U"))


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
    tail = b"" if options is NO_OPTIONS else options.emit()
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
