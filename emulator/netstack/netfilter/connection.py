"""One tracked connection, and what a single packet says about the connection it belongs to."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from emulator.netstack.netfilter.rewrite import (
    ICMP_ERROR_TYPES,
    ICMP_QUERY_REPLY,
    ICMP_REPLY_QUERY,
)
from emulator.netstack.netfilter.tcp_states import (
    FIN,
    PSH,
    RST,
    SYN,
    VALID_FLAGS,
    Segment,
    TcpState,
)
from emulator.netstack.packet import ICMP, TCP, UDP, Packet

GENERIC_TIMEOUT_S: Final = 600.0
UDP_STREAM_TIMEOUT_S: Final = 120.0
# Traffic both ways for longer than this makes UDP a stream (nf_conntrack_proto_udp.c).
UDP_STREAM_AFTER_S: Final = 2.0


class Tuple(NamedTuple):
    """One direction of a connection, as its packets look on the wire.

    TCP and UDP: ports.  ICMP queries: ``sport`` is the identifier and ``dport`` type << 8 | code.
    Other protocols: both are 0.
    """

    proto: int
    src: int
    dst: int
    sport: int
    dport: int

    def inverse(self) -> Tuple:
        """Return what an answer looks like."""
        if self.proto == ICMP:
            kind = self.dport >> 8
            kind = ICMP_QUERY_REPLY.get(kind, ICMP_REPLY_QUERY.get(kind, kind))
            return Tuple(ICMP, self.dst, self.src, self.sport, kind << 8 | self.dport & 0xFF)
        return Tuple(self.proto, self.dst, self.src, self.dport, self.sport)


class Translation(NamedTuple):
    """What the packets of one direction become: four fields to write.

    For ICMP queries ``sport`` is the identifier and ``dport`` means nothing.
    """

    src: int
    dst: int
    sport: int
    dport: int


class Status(enum.IntFlag):
    """IPS_* of linux/netfilter/nf_conntrack_common.h."""

    EXPECTED = 1
    SEEN_REPLY = 2
    ASSURED = 4
    CONFIRMED = 8
    SRC_NAT = 16
    DST_NAT = 32
    SRC_NAT_DONE = 128
    DST_NAT_DONE = 256
    DYING = 512


EXPECTED, SEEN_REPLY, ASSURED, CONFIRMED = 1, 2, 4, 8
SRC_NAT, DST_NAT, SRC_NAT_DONE, DST_NAT_DONE, DYING = 16, 32, 128, 256, 512
NAT_MASK: Final = SRC_NAT | DST_NAT
STEADY: Final = SEEN_REPLY | CONFIRMED


class CtState(enum.IntFlag):
    """The states -m conntrack --ctstate tells apart."""

    INVALID = 1
    NEW = 2
    ESTABLISHED = 4
    RELATED = 8
    UNTRACKED = 16
    SNAT = 32
    DNAT = 64


CT_INVALID, CT_NEW, CT_ESTABLISHED, CT_RELATED, CT_UNTRACKED = 1, 2, 4, 8, 16


class Connection:
    """One tracked connection.

    ``original`` and ``reply`` are its two tuples; ``status`` holds Status bits as an int;
    ``packets`` and ``octets`` count [original, reply]; ``expire_at`` is on the kernel's clock.
    ``steady`` is True while a plain packet of either direction would only refresh it: no TCP state
    to change, the peer has answered, the entry is in the table.
    """

    __slots__ = (
        "closing",
        "expire_at",
        "ident",
        "last_end",
        "last_reply",
        "last_segment",
        "mark",
        "masquerade_dev",
        "octets",
        "original",
        "packets",
        "proto",
        "reply",
        "status",
        "steady",
        "stream_at",
        "tcp_state",
        "timeout_s",
    )

    def __init__(self, original: Tuple, *, ident: int = 0, now: float = 0.0) -> None:
        self.ident = ident
        self.proto = original.proto
        self.original = original
        self.reply = original.inverse()
        self.status = 0
        self.mark = 0
        self.masquerade_dev = ""
        self.tcp_state = TcpState.NONE
        # TCP: a FIN was seen; kind and direction of the last segment; the sequence number after
        # the last one that was let through without being believed.
        self.closing = False
        self.last_segment = Segment.NONE
        self.last_reply = False
        self.last_end = 0
        self.timeout_s = GENERIC_TIMEOUT_S
        self.expire_at = now
        self.stream_at = now + UDP_STREAM_AFTER_S
        self.steady = False
        self.packets = [0, 0]
        self.octets = [0, 0]

    def translation(self, reply: bool) -> Translation | None:
        """Return what NAT makes of a packet of this direction; None if it changes nothing.

        Both manipulations together: what is done to the destination on the way in and to the
        source on the way out.
        """
        if not self.status & NAT_MASK:
            return None
        other = self.original if reply else self.reply
        if self.proto == ICMP:
            return Translation(other.dst, other.src, other.sport, 0)
        return Translation(other.dst, other.src, other.dport, other.sport)

    def refresh(self, now: float, packets: int, octets: int, reply: bool = False) -> bool:
        """Account for packets that took a shortcut; False means: take the long way again.

        A False answer has changed nothing.
        """
        if not self.steady or now >= self.expire_at:
            return False
        if self.proto == UDP and now >= self.stream_at and not self.status & ASSURED:
            self.status |= ASSURED
            self.timeout_s = UDP_STREAM_TIMEOUT_S
        self.expire_at = now + self.timeout_s
        side = 1 if reply else 0
        self.packets[side] += packets
        self.octets[side] += octets
        return True


# What Packet.ct is after -j NOTRACK: a connection that is in no table and never steady.
UNTRACKED: Final = Connection(Tuple(0, 0, 0, 0, 0))


def is_sound(packet: Packet) -> bool:
    """False for a packet whose transport header contradicts itself: it is INVALID.

    Checksums are the stack's to verify.
    """
    data, at = packet.data, packet.header_len
    length = len(data) - at
    if packet.proto == TCP:
        if length < 20 or not 20 <= (data[at + 12] >> 4) * 4 <= length:
            return False
        return data[at + 13] & ~PSH & 0x3F in VALID_FLAGS
    if packet.proto == UDP:
        return length >= 8 and 8 <= int.from_bytes(data[at + 4 : at + 6], "big") <= length
    return True


def tuple_of(packet: Packet) -> Tuple | None:
    """Return the tuple of a packet; None for what cannot be tracked (ICMP errors, garbage)."""
    proto = packet.proto
    if proto in (TCP, UDP):
        return Tuple(proto, packet.src, packet.dst, packet.sport, packet.dport)
    if proto == ICMP:
        data, at = packet.data, packet.header_len
        if len(data) < at + 8:
            return None
        kind = data[at]
        if kind not in ICMP_QUERY_REPLY and kind not in ICMP_REPLY_QUERY:
            return None
        ident = int.from_bytes(data[at + 4 : at + 6], "big")
        return Tuple(ICMP, packet.src, packet.dst, ident, kind << 8 | data[at + 1])
    return Tuple(proto, packet.src, packet.dst, 0, 0)


def quoted_tuple(packet: Packet) -> Tuple | None:
    """Return the tuple of the packet an ICMP error quotes; None if too little of it is there."""
    inner = packet.data[packet.header_len + 8 :]
    if len(inner) < 20 or inner[0] >> 4 != 4:
        return None
    size = (inner[0] & 15) * 4
    # Ports are in the first four bytes; tuple_of asks for more where it needs more.
    if size < 20 or len(inner) < size + 4:
        return None
    return tuple_of(Packet(inner))


def is_icmp_error(packet: Packet) -> bool:
    """True for the ICMP types that report trouble with another packet."""
    return (
        packet.proto == ICMP
        and len(packet.data) > packet.header_len
        and packet.data[packet.header_len] in ICMP_ERROR_TYPES
    )


def is_plain(packet: Packet) -> bool:
    """True unless the packet may change its connection: SYN, FIN, RST or an ICMP error."""
    if packet.proto == TCP:
        return not tcp_flags(packet) & (SYN | FIN | RST)
    return not is_icmp_error(packet)


def ct_state(packet: Packet) -> int:
    """Return the CtState bit of a packet, without the NAT bits."""
    connection = packet.ct
    if connection is None:
        return CT_INVALID
    if connection is UNTRACKED:
        return CT_UNTRACKED
    if is_icmp_error(packet):
        return CT_RELATED
    if packet.ct_reply or connection.status & SEEN_REPLY:
        return CT_ESTABLISHED
    return CT_NEW


def tcp_flags(packet: Packet) -> int:
    """Return the flags byte of a TCP segment; 0 if it is cut off before."""
    at = packet.header_len + 13
    return packet.data[at] if len(packet.data) > at else 0


def segment_end(packet: Packet) -> int:
    """Return the sequence number after a segment."""
    data, at = packet.data, packet.header_len
    flags = data[at + 13]
    body = len(data) - at - (data[at + 12] >> 4) * 4
    start = int.from_bytes(data[at + 4 : at + 8], "big")
    return start + body + bool(flags & SYN) + (flags & FIN) & 0xFFFFFFFF


def acknowledged(packet: Packet) -> int:
    """Return the acknowledgment number of a segment."""
    at = packet.header_len + 8
    return int.from_bytes(packet.data[at : at + 4], "big")
