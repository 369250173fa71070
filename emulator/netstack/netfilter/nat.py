"""Network address translation on top of connection tracking.

Theory of operation (net/netfilter/nf_nat_core.c): NAT happens once a connection.  The first packet
that passes a nat chain gets a ``NatRange``; a tuple within the range that no other connection uses
is chosen and the connection's reply tuple becomes its inverse.  A packet that matched no rule gets
a null binding: its own address, with another port only if the tuple is taken.  Every packet is then
rewritten from the tuples alone: at PREROUTING and OUTPUT its destination, at INPUT and POSTROUTING
its source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.addr import format_ip
from emulator.netstack.netfilter.connection import (
    DST_NAT,
    DST_NAT_DONE,
    NAT_MASK,
    SRC_NAT,
    SRC_NAT_DONE,
    Connection,
    Tuple,
    is_icmp_error,
)
from emulator.netstack.netfilter.rewrite import (
    ICMP_QUERY_REPLY,
    ICMP_REPLY_QUERY,
    rewrite_bytes,
    rewrite_icmp_error_payload,
)
from emulator.netstack.packet import ICMP, TCP, UDP, Drop, DropReason, Packet

if TYPE_CHECKING:
    import random

    from emulator.netstack.netfilter.conntrack import ConntrackTable

# Ports tried before giving up a round; each further round halves it (NF_NAT_MAX_ATTEMPTS).
MAX_ATTEMPTS: Final = 128
MIN_ATTEMPTS: Final = 16
ICMP_REDIRECT: Final = 5


class NatRange(NamedTuple):
    """What a rule allows: addresses and ports, both ends included.

    ``port_min`` is None when the rule names no ports.  ``base_port`` comes from
    ``--to ip:a-b/base``: the port moves by the same distance.
    """

    ip_min: int
    ip_max: int
    port_min: int | None = None
    port_max: int | None = None
    base_port: int | None = None
    random: bool = False
    random_fully: bool = False
    persistent: bool = False


def spread(src: int, dst: int) -> int:
    """Mix two addresses into 32 bits; the same on every run (Linux: jhash2)."""
    value = (src * 0x9E3779B1 ^ dst * 0x85EBCA77) & 0xFFFFFFFF
    value ^= value >> 15
    value = value * 0x2C1B3C6D & 0xFFFFFFFF
    return value ^ value >> 13


class Nat:
    """Sets up and applies the translations of one namespace."""

    def __init__(self, table: ConntrackTable, rng: random.Random) -> None:
        self._table = table
        self._rng = rng

    def setup(self, connection: Connection, wanted: NatRange, *, source: bool) -> Drop | None:
        """Bind one end of an unconfirmed connection to a tuple within ``wanted``."""
        current = connection.reply.inverse()
        chosen = self._unique_tuple(connection, current, wanted, source=source)
        # A destination that is taken may still become unique by the source port chosen later.
        if source and not self._free(chosen, connection):
            return Drop(
                DropReason.NAT_EXHAUSTED,
                "nf_nat: no free port in the range of the rule for this connection",
            )
        if chosen != current:
            connection.reply = chosen.inverse()
            connection.status |= SRC_NAT if source else DST_NAT
        connection.status |= SRC_NAT_DONE if source else DST_NAT_DONE
        return None

    def setup_null(self, connection: Connection, *, source: bool) -> Drop | None:
        """Keep the address; take another port only if the tuple is taken."""
        reply = connection.reply
        ip = reply.dst if source else reply.src
        return self.setup(connection, NatRange(ip, ip), source=source)

    def apply(self, packet: Packet, *, source: bool) -> Drop | None:
        """Rewrite one end of a packet as its connection's tuples say."""
        connection = packet.ct
        if connection is None:
            return None
        reply = packet.ct_reply
        error = is_icmp_error(packet)
        if error and packet.data[packet.header_len] == ICMP_REDIRECT:
            if connection.status & NAT_MASK:
                detail = "nf_nat: an ICMP redirect about a translated connection leads nowhere"
                return Drop(DropReason.NETFILTER_DROP, detail)
            return None
        # The reply of source NAT is undone at the destination and the other way round.
        if not connection.status & (SRC_NAT if source is not reply else DST_NAT):
            return None
        other = connection.original if reply else connection.reply
        ip, port = (other.dst, other.dport) if source else (other.src, other.sport)
        if error:
            if not _quotes_enough(packet):
                detail = "nf_nat: the ICMP error quotes too little of the packet to translate it"
                return Drop(DropReason.NETFILTER_DROP, detail)
            self._apply_to_error(packet, other, ip, source=source)
            return None
        if packet.proto == ICMP:
            port = other.sport
        elif source:
            if packet.src == ip and packet.sport == port:
                return None
        elif packet.dst == ip and packet.dport == port:
            return None
        packet.replace(rewrite_bytes(packet.data, source=source, ip=ip, port=port))
        return None

    @staticmethod
    def _apply_to_error(packet: Packet, other: Tuple, ip: int, *, source: bool) -> None:
        # The quoted packet went the other way, so its other end changes, to what ``other`` shows.
        if source:
            inner_ip, inner_port = other.dst, other.dport
        else:
            inner_ip, inner_port = other.src, other.sport
        if other.proto == ICMP:
            inner_port = other.sport
        data = rewrite_icmp_error_payload(
            packet.data, source=not source, ip=inner_ip, port=inner_port
        )
        packet.replace(rewrite_bytes(data, source=source, ip=ip, port=0))

    # -- choosing a tuple (get_unique_tuple) -----------------------------------------------------

    def _free(self, candidate: Tuple, connection: Connection) -> bool:
        return not self._table.tuple_taken(candidate.inverse(), connection)

    def _unique_tuple(
        self, connection: Connection, current: Tuple, wanted: NatRange, *, source: bool
    ) -> Tuple:
        if (
            source
            and not wanted.random
            and not wanted.random_fully
            and wanted.ip_min <= current.src <= wanted.ip_max
            and _port_in_range(current, wanted, source=True)
            and self._free(current, connection)
        ):
            return current
        candidate = self._best_address(current, wanted, source=source)
        if not wanted.random and not wanted.random_fully:
            if wanted.port_min is None:
                if self._free(candidate, connection):
                    return candidate
            elif (
                wanted.base_port is None
                and _port_in_range(candidate, wanted, source=source)
                and (wanted.port_min == wanted.port_max or self._free(candidate, connection))
            ):
                return candidate
        return self._unique_port(connection, candidate, wanted, source=source)

    @staticmethod
    def _best_address(current: Tuple, wanted: NatRange, *, source: bool) -> Tuple:
        ip = wanted.ip_min
        if wanted.ip_max != wanted.ip_min:
            size = wanted.ip_max - wanted.ip_min + 1
            ip += spread(current.src, 0 if wanted.persistent else current.dst) * size >> 32
        return current._replace(src=ip) if source else current._replace(dst=ip)

    def _unique_port(
        self, connection: Connection, candidate: Tuple, wanted: NatRange, *, source: bool
    ) -> Tuple:
        """Return a free tuple, or the last one tried."""
        if candidate.proto not in (TCP, UDP, ICMP):
            return candidate
        key = "sport" if source or candidate.proto == ICMP else "dport"
        port = candidate.sport if key == "sport" else candidate.dport
        if wanted.port_min is not None and wanted.port_max is not None:
            low, size = wanted.port_min, wanted.port_max - wanted.port_min + 1
        elif candidate.proto == ICMP:
            low, size = 0, 65536
        elif not source:
            return candidate
        elif port < 512:
            low, size = 1, 511
        elif port < 1024:
            low, size = 600, 424
        else:
            low, size = 1024, 64512

        if wanted.base_port is not None:
            offset = port - wanted.base_port
        elif source or wanted.random or wanted.random_fully:
            offset = self._rng.getrandbits(16)
        else:
            offset = 0
        attempts = min(size, MAX_ATTEMPTS)
        tried = candidate
        while True:
            for step in range(attempts):
                tried = candidate._replace(**{key: low + (offset + step) % size})
                if self._free(tried, connection):
                    return tried
            if attempts >= size or attempts < MIN_ATTEMPTS:
                return tried
            attempts //= 2
            offset = self._rng.getrandbits(16)


def describe_nat(before: bytes, packet: Packet, *, source: bool) -> str:
    """Name what ``Nat.apply`` did to a packet, e.g. ``DNAT 10.3.0.1:80 → 10.2.7.3:80``."""
    kind = "SNAT" if source is not packet.ct_reply else "DNAT"
    if packet.ct_reply:
        kind += " undone:"
    old, new = _end(before, source=source), _end(packet.data, source=source)
    if old == new:
        return f"{kind} inside the quoted packet"
    return f"{kind} {old} → {new}"


def _end(data: bytes, *, source: bool) -> str:
    """One end of a packet: its address, and its port or echo identifier if it has one."""
    at, start = (12 if source else 16), (data[0] & 15) * 4
    ip = format_ip(int.from_bytes(data[at : at + 4], "big"))
    if (data[6] & 0x1F) or data[7] or len(data) < start + 8:
        return ip
    if data[9] in (TCP, UDP):
        port = start if source else start + 2
        return f"{ip}:{int.from_bytes(data[port : port + 2], 'big')}"
    if data[9] == ICMP and data[start] in ICMP_QUERY_REPLY.keys() | ICMP_REPLY_QUERY.keys():
        return f"{ip} id {int.from_bytes(data[start + 4 : start + 6], 'big')}"
    return ip


def _quotes_enough(packet: Packet) -> bool:
    """True if the quoted packet has its first eight transport bytes (RFC 792)."""
    at = packet.header_len + 8
    return len(packet.data) >= at + (packet.data[at] & 15) * 4 + 8


def _port_in_range(current: Tuple, wanted: NatRange, *, source: bool) -> bool:
    if wanted.port_min is None or wanted.port_max is None:
        return True
    if current.proto not in (TCP, UDP, ICMP):
        return True
    port = current.sport if source or current.proto == ICMP else current.dport
    return wanted.port_min <= port <= wanted.port_max
