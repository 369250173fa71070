"""The flow cache: what the slow path decided for one packet, repeated for the next ones.

Theory of operation.  The first packet of a flow goes through every layer with a FlowLog, in which
each stage leaves what repeating it needs: counters, connections, learnt stations, the least MTU,
and where the packet came out.  If every stage agreed, the differences between the packet that went
in and the one that came out (addresses, ports, TTL, bytes in front) become an ``Entry``, found by
the header bytes that decide a packet's way.  Batches of equal datagrams of one flow are then
rewritten with one struct call a packet; TCP segments for a local socket are joined to
super-segments as GRO does.  Checksums are verified before they are adjusted, so a corrupt packet
takes the long way and is dropped there.

An entry is void when anything changed (the kernel's generation), when conntrack does not recognize
its connection any more, or while somebody captures or traces.  Packets with SYN, FIN or RST, with
IP options, fragments and ICMP never take the short way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.netstack.devices.underlay import VXLAN_PREFIX, Underlay
from emulator.netstack.flow_entry import Entry, header_key, plain_flow
from emulator.netstack.flow_outer import OUTER_LEN, has_outer, outer_key
from emulator.netstack.packet import Drop, FlowLog, Packet

if TYPE_CHECKING:
    from emulator.netstack.kernel import Kernel
    from emulator.netstack.netns import NetNs

# Entries of one kernel; an entry costs about 2 kB, so 32 MB at most.  When full, all are forgotten:
# flows in use come back with their next packet.
MAX_ENTRIES: Final = 16384

_Key = tuple[object, bytes]


class FlowCache:
    """Entries by (where the packet enters, header bytes)."""

    __slots__ = ("_entries", "_generation", "_kernel", "hits", "misses")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._entries: dict[_Key, Entry] = {}
        self._generation = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def _usable(self) -> bool:
        kernel = self._kernel
        if self._generation != kernel.generation:
            self._entries.clear()
            self._generation = kernel.generation
        return not kernel.observed

    def _learn(
        self, key: _Key, data: bytes, offset: int, flow: FlowLog, *, outer: bool = False
    ) -> None:
        """Make an entry of what a packet did, if it can be repeated."""
        kernel = self._kernel
        if not flow.cacheable or len(flow.ends) != 1:
            return
        # Something changed while the packet was under way: what it saw may be half old.
        if self._generation != kernel.generation:
            return
        entry = Entry.of(data, offset, flow, outer=outer)
        if entry is not None:
            if len(self._entries) >= MAX_ENTRIES:
                self._entries.clear()
            self._entries[key] = entry

    # -- from the wire ---------------------------------------------------------------------------

    def receive_vxlan(
        self, dev: Underlay, src_ip: int, src_port: int, payload: bytes, segment_size: int
    ) -> None:
        """Take VXLAN datagrams of one sender, ``segment_size`` bytes each."""
        size = segment_size or len(payload)
        end = len(payload)
        position = 0
        usable = self._usable()
        while position < end:
            stop = min(position + size, end)
            if usable and plain_flow(payload, position + VXLAN_PREFIX, stop):
                key = ((dev.index, src_ip), header_key(payload, position, VXLAN_PREFIX))
                entry = self._entries.get(key)
                if entry is not None:
                    done = entry.run(payload, position, size, VXLAN_PREFIX, self._kernel.clock())
                    if done:
                        self.hits += done
                        position += done * size
                        usable = self._usable()
                        continue
                    self._entries.pop(key, None)
                self.misses += 1
                datagram = payload[position : position + size]
                flow = FlowLog(len(datagram) - VXLAN_PREFIX)
                dev.receive_vxlan_slowly(src_ip, src_port, datagram, flow)
                self._kernel.drain()
                self._learn(key, datagram, VXLAN_PREFIX, flow)
                usable = self._usable()
            else:
                dev.receive_vxlan_slowly(
                    src_ip, src_port, payload[position : position + size], None
                )
                self._kernel.drain()
            position += size

    def receive_carrier(self, dev: Underlay, payload: bytes, segment_size: int) -> None:
        """Take whole IPv4 packets, ``segment_size`` bytes each."""
        size = segment_size or len(payload)
        end = len(payload)
        position = 0
        usable = self._usable()
        while position < end:
            # IP in IP is known by its inner packet as well.
            prefix = OUTER_LEN if has_outer(payload, position) else 0
            if usable and plain_flow(payload, position + prefix, min(position + size, end)):
                head = outer_key(payload, position) if prefix else b""
                key = ((dev.index, 0), head + header_key(payload, position + prefix, 0))
                entry = self._entries.get(key)
                if entry is not None:
                    done = entry.run(payload, position, size, prefix, self._kernel.clock())
                    if done:
                        self.hits += done
                        position += done * size
                        usable = self._usable()
                        continue
                    self._entries.pop(key, None)
                self.misses += 1
                data = payload[position : position + size]
                flow = FlowLog(len(data) - prefix)
                dev.receive_carrier_slowly(data, flow)
                self._kernel.drain()
                self._learn(key, data, prefix, flow, outer=bool(prefix))
                usable = self._usable()
            else:
                dev.receive_carrier_slowly(payload[position : position + size], None)
                self._kernel.drain()
            position += size

    # -- from sockets ----------------------------------------------------------------------------

    def output(self, ns: NetNs, data: bytes, gso_size: int) -> Drop | None:
        """Send a packet a socket made."""
        kernel = self._kernel
        if kernel.draining or not self._usable() or not plain_flow(data, 0, len(data)):
            return ns.send(Packet(data, gso_size=gso_size))
        key = (ns.name, header_key(data, 0, 0))
        entry = self._entries.get(key)
        if entry is not None:
            if entry.run_one(data, gso_size, kernel.clock()):
                self.hits += 1
                return None
            self._entries.pop(key, None)
        self.misses += 1
        packet = Packet(data, gso_size=gso_size)
        flow = packet.flow = FlowLog(len(data))
        drop = ns.send(packet)
        kernel.drain()
        if drop is None:
            self._learn(key, data, 0, flow)
        return drop
