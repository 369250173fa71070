"""One entry of the flow cache: a header rewrite, what to count, and where packets go.

Layout of the bytes at an entry: a prefix (VXLAN and inner Ethernet header, or nothing), an IPv4
header without options, a TCP or UDP header.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from emulator.netstack import gso
from emulator.netstack.devices.underlay import Egress, Underlay
from emulator.netstack.flow_outer import OUTER_LEN, OuterReader, OuterWriter
from emulator.netstack.packet import TCP, UDP, Packet

if TYPE_CHECKING:
    from emulator.netstack.netfilter.conntrack import Connection
    from emulator.netstack.netns import NetNs
    from emulator.netstack.packet import Counter, FlowLog, Station

ACK, PSH = 0x10, 0x08
_PLAIN_FLAGS: Final = (ACK, ACK | PSH)
_U16 = struct.Struct("!H")
# Packet sizes an entry keeps structs for; TCP bulk has two, datagrams a handful.
MAX_SHAPES: Final = 64


def plain_flow(data: bytes, at: int, end: int) -> bool:
    """True for what can repeat: whole TCP (ACK, PSH only) or UDP packets without IP options.

    The packet is ``data[at:end]``: what follows it in a batch is another datagram's.
    """
    if end < at + 28 or data[at] != 0x45 or data[at + 6] & 0x3F or data[at + 7]:
        return False
    proto = data[at + 9]
    if proto == TCP:
        return end >= at + 40 and data[at + 33] in _PLAIN_FLAGS
    return proto == UDP


def header_key(data: bytes, start: int, prefix: int) -> bytes:
    """The bytes that decide a packet's way: prefix, TOS, flags, TTL, protocol, addresses, ports."""
    at = start + prefix
    return data[start : at + 2] + data[at + 6 : at + 10] + data[at + 12 : at + 24]


def _sum(data: bytes) -> int:
    return int.from_bytes(data, "big")


class Entry:
    """What to do with the packets of one flow that enter at one place."""

    __slots__ = (
        "_connections",
        "_counters",
        "_dev",
        "_first",
        "_ip_const",
        "_ip_delta",
        "_kind",
        "_l4_delta",
        "_max_length",
        "_middle",
        "_new_first",
        "_new_middle",
        "_new_tail",
        "_outer_in",
        "_outer_out",
        "_peer",
        "_place",
        "_prefix",
        "_pseudo",
        "_same",
        "_shapes",
        "_src_port",
        "_stations",
        "_tail",
        "_tcp",
    )

    def __init__(
        self, before: bytes, after: bytes, in_prefix: bytes, flow: FlowLog, outer: bytes
    ) -> None:
        end = flow.ends[0]
        self._kind = end.kind
        self._place = end.place
        out_prefix = end.prefix
        # Headers of IP in IP differ from packet to packet: they are no prefix to copy.
        self._outer_in = OuterReader(outer) if outer else None
        self._outer_out: OuterWriter | None = None
        if flow.tunnel is not None:
            self._outer_out = OuterWriter(out_prefix, flow.tunnel)
            out_prefix = b""
        self._prefix = out_prefix
        self._peer = end.peer
        self._src_port = end.src_port
        self._dev = end.dev
        self._tcp = before[9] == TCP
        # What the headers must be, and what they become.
        self._first = in_prefix + before[:2]
        self._middle = before[6:10]
        self._tail = before[12:24]
        self._new_first = out_prefix + after[:2]
        self._new_middle = after[6:10]
        self._new_tail = after[12:24]
        self._same = before == after
        old_ip = _sum(before[:2]) + _sum(before[6:10]) + _sum(before[12:20])
        new_ip = _sum(after[:2]) + _sum(after[6:10]) + _sum(after[12:20])
        self._ip_const = old_ip % 0xFFFF
        self._ip_delta = (old_ip - new_ip) % 0xFFFF
        self._l4_delta = (_sum(self._tail) - _sum(self._new_tail)) % 0xFFFF
        # Pseudo header and ports as they are after the rewrite, for joined segments.
        self._pseudo = (_sum(self._tail[:8]) + before[9]) % 0xFFFF
        base = flow.base
        self._counters: tuple[tuple[Counter, int], ...] = tuple(
            (counter, length - base)
            for counter, length in zip(flow.counters, flow.lengths, strict=True)
        )
        self._connections: tuple[tuple[Connection, bool, int, int], ...] = tuple(
            (connection, reply, connection.status, length - base)
            for connection, reply, length in flow.connections
        )
        self._stations: tuple[Station, ...] = tuple(flow.stations)
        self._max_length = flow.max_length
        self._shapes: dict[int, tuple[struct.Struct, struct.Struct]] = {}

    @classmethod
    def of(cls, data: bytes, offset: int, flow: FlowLog, *, outer: bool = False) -> Entry | None:
        """Make an entry of a packet that went in at ``offset`` of ``data``, if it can be one.

        ``outer`` says that what is before it is an IP-in-IP header.
        """
        before, after = data[offset:], flow.ends[0].data
        if len(before) != len(after) or before[2:6] != after[2:6] or after[0] != 0x45:
            return None
        l4_checksum = 36 if before[9] == TCP else 26
        if before[9] != after[9] or before[l4_checksum + 2 :] != after[l4_checksum + 2 :]:
            return None
        flow.settle(flow.base)
        head = data[:offset]
        return cls(before, after, b"" if outer else head, flow, head if outer else b"")

    # -- accounting ------------------------------------------------------------------------------

    def _account(self, packets: int, octets: int, now: float) -> bool:
        """Count what goes the short way; False if a connection wants the long one."""
        for connection, reply, status, extra in self._connections:
            if connection.status != status:
                return False
            seen = octets + extra * packets
            if connection.steady:
                if not connection.refresh(now, packets, seen, reply):
                    return False
            elif connection.proto == TCP:
                return False
            else:
                # Datagrams nobody answers keep their entry alive and change nothing else.
                connection.expire_at = now + connection.timeout_s
                connection.packets[0] += packets
                connection.octets[0] += seen
        for counter, extra in self._counters:
            counter.packets += packets
            counter.bytes += octets + extra * packets
        for station in self._stations:
            station.updated_at = now
        return True

    def _ready(self, now: float) -> bool:
        # A TCP connection that is no longer steady (a FIN has passed) wants to see every segment.
        return all(
            connection.status == status
            and now < connection.expire_at
            and (connection.steady or connection.proto != TCP)
            for connection, _, status, _ in self._connections
        )

    # -- batches ---------------------------------------------------------------------------------

    def run(self, payload: bytes, position: int, size: int, prefix: int, now: float) -> int:
        """Take the datagrams of this flow from ``position`` on; returns how many were taken."""
        if not self._ready(now):
            return 0
        length = size - prefix
        count = (len(payload) - position) // size
        if count == 0:
            # The last datagram of a batch may be shorter than the others.
            size = len(payload) - position
            length = size - prefix
            count = 1
        if length > self._max_length:
            return 0
        batch = (
            payload if count * size == len(payload) else payload[position : position + count * size]
        )
        if self._outer_in is not None:
            batch = self._outer_in.strip(batch, size)
            size, prefix = length, 0
            count = len(batch) // size
            if count == 0:
                return 0
        if self._tcp and self._kind == "local" and count > 1:
            return self._join(batch, size, prefix, now)
        rewritten = self._rewrite_batch(batch, size, prefix)
        done = len(rewritten)
        if done == 0 or not self._account(done, done * length, now):
            return 0
        self._emit(rewritten, len(self._prefix) + length)
        return done

    def _shape(self, size: int, prefix: int) -> tuple[struct.Struct, struct.Struct]:
        shape = self._shapes.get(size)
        if shape is None:
            # first, length, ident, middle, checksum, tail, [up to the L4 checksum], it, the rest
            before = 12 if self._tcp else 2
            rest = size - prefix - 24 - before - 2
            common = f"HH4sH12s{before}sH{rest}s"
            shape = (
                struct.Struct(f"!{len(self._first)}s{common}"),
                struct.Struct(f"!{len(self._new_first)}s{common}"),
            )
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            self._shapes[size] = shape
        return shape

    def _rewrite_batch(self, batch: bytes, size: int, prefix: int) -> list[bytes]:
        """The datagrams up to the first that is another flow's, corrupt or not plain."""
        reader, writer = self._shape(size, prefix)
        first, middle, tail = self._first, self._middle, self._tail
        new_first, new_middle, new_tail = self._new_first, self._new_middle, self._new_tail
        length = size - prefix
        const = self._ip_const + length
        ip_delta, l4_delta = self._ip_delta, self._l4_delta
        tcp = self._tcp
        pack = writer.pack
        out: list[bytes] = []
        append = out.append
        for one, total, ident, two, check, three, head, l4_check, rest in reader.iter_unpack(batch):
            if (
                one != first
                or two != middle
                or three != tail
                or total != length
                or (const + ident + check) % 0xFFFF
                or (tcp and head[9] not in _PLAIN_FLAGS)
            ):
                break
            if l4_delta and (l4_check or tcp):
                l4_check = (l4_check + l4_delta) % 0xFFFF or 0xFFFF
            append(
                pack(
                    *(new_first, length, ident, new_middle, (check + ip_delta) % 0xFFFF),
                    *(new_tail, head, l4_check, rest),
                )
            )
        return out

    def _emit(self, packets: list[bytes], size: int) -> None:
        place = self._place
        if self._outer_out is not None:
            packets = self._outer_out.wrap(packets)
            size += OUTER_LEN
        if isinstance(place, Underlay):
            # Only a drop the driver's own counters would show: the ring is full.
            drop = place.push(
                Egress(
                    *(self._peer, self._kind, b"".join(packets)),
                    size if len(packets) > 1 else 0,
                    self._src_port,
                )
            )
            if drop is not None:
                place.tx_dropped += len(packets)
                place.ns.count_drop(drop, None)
            return
        for data in packets:
            self._deliver(data, 0)

    def _deliver(self, data: bytes, gso_size: int) -> None:
        ns: NetNs = self._place  # type: ignore[assignment]
        packet = Packet(data, in_dev=self._dev, gso_size=gso_size)
        drop = ns.sockets.deliver(packet)
        if drop is not None:
            ns.end(packet, drop)

    # -- joining TCP segments (tcp_gro_receive) --------------------------------------------------

    def _join(self, batch: bytes, size: int, prefix: int, now: float) -> int:
        """Join consecutive segments for a local socket; returns how many datagrams were taken."""
        length = size - prefix
        header_len = 20 + (batch[prefix + 32] >> 4) * 4
        mss = length - header_len
        # A data offset that cuts the header short is for the socket to refuse.
        if mss <= 0 or header_len < 40:
            return self._one(batch[:size], prefix, now)
        limit = max(1, (gso.MAX_LENGTH - header_len) // mss)
        key_end = prefix + 24
        const = self._ip_const + length
        pseudo = self._pseudo + (length - 20)
        # Acknowledgment, window and options must not change within a super-segment.
        ack_window = batch[prefix + 28 : prefix + 33]
        window = batch[prefix + 34 : prefix + 36]
        options = batch[prefix + 40 : prefix + header_len]
        seq = int.from_bytes(batch[prefix + 24 : prefix + 28], "big")
        payloads: list[bytes] = []
        flags = 0
        position = 0
        while position < len(batch) and len(payloads) < limit:
            at = position + prefix
            if (
                batch[position : at + 2] != self._first
                or batch[at + 6 : at + 10] != self._middle
                or batch[at + 12 : position + key_end] != self._tail
                or int.from_bytes(batch[at + 2 : at + 4], "big") != length
                or int.from_bytes(batch[at + 24 : at + 28], "big") != seq
                or batch[at + 28 : at + 33] != ack_window
                or batch[at + 34 : at + 36] != window
                or batch[at + 40 : at + header_len] != options
                or batch[at + 33] not in _PLAIN_FLAGS
                or (const + _sum(batch[at + 4 : at + 6]) + _sum(batch[at + 10 : at + 12])) % 0xFFFF
            ):
                break
            segment = batch[at + 20 : at + length]
            value = _sum(segment) << 8 if (length - 20) & 1 else _sum(segment)
            if (value + pseudo) % 0xFFFF:
                break
            payloads.append(batch[at + header_len : at + length])
            flags = batch[at + 33]
            position += size
            seq = (seq + mss) & 0xFFFFFFFF
            if flags & PSH:
                break
        if len(payloads) < 2:
            return self._one(batch[:size], prefix, now)
        octets = header_len + mss * len(payloads)
        if not self._account(1, octets, now):
            return 0
        head = self._rewrite(batch[prefix : prefix + header_len])
        self._deliver(gso.joined(head, payloads, flags), mss)
        return len(payloads)

    def _one(self, datagram: bytes, prefix: int, now: float) -> int:
        rewritten = self._rewrite_batch(datagram, len(datagram), prefix)
        if not rewritten or not self._account(1, len(datagram) - prefix, now):
            return 0
        self._emit(rewritten, 0)
        return 1

    # -- single packets --------------------------------------------------------------------------

    def _rewrite(self, data: bytes) -> bytes:
        """One packet of this flow, known to be good, as it comes out (without prefix)."""
        if self._same:
            return data
        check = ((data[10] << 8 | data[11]) + self._ip_delta) % 0xFFFF
        new_first = self._new_first[-2:]
        parts = [new_first, data[2:6], self._new_middle, check.to_bytes(2, "big"), self._new_tail]
        at = 36 if self._tcp else 26
        l4_check = data[at] << 8 | data[at + 1]
        if self._l4_delta and (l4_check or self._tcp):
            l4_check = (l4_check + self._l4_delta) % 0xFFFF or 0xFFFF
            parts += [data[24:at], _U16.pack(l4_check), data[at + 2 :]]
        else:
            parts.append(data[24:])
        return b"".join(parts)

    def run_one(self, data: bytes, gso_size: int, now: float) -> bool:
        """Take a packet a socket made; False sends it the long way."""
        length = len(data)
        if gso_size:
            if 20 + (data[32] >> 4) * 4 + gso_size > self._max_length:
                return False
        elif length > self._max_length:
            return False
        if not self._ready(now) or not self._account(1, length, now):
            return False
        place = self._place
        rewritten = self._rewrite(data)
        if not isinstance(place, Underlay):
            self._deliver(rewritten, gso_size)
            return True
        prefix = self._prefix
        if gso_size and length > 20 + (data[32] >> 4) * 4 + gso_size:
            pieces = gso.segments(rewritten, gso_size, prefix)
            if self._outer_out is not None:
                pieces = self._outer_out.wrap(pieces)
            payload, size = b"".join(pieces), len(pieces[0])
        elif self._outer_out is not None:
            payload, size = self._outer_out.wrap((rewritten,))[0], 0
        else:
            payload, size = prefix + rewritten, 0
        drop = place.push(Egress(self._peer, self._kind, payload, size, self._src_port))
        if drop is not None:
            place.tx_dropped += 1
            place.ns.count_drop(drop, None)
        return True
