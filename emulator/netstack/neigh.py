"""The neighbour table: which MAC a nexthop has, asked by ARP and kept alive.

Theory of operation (net/core/neighbour.c, RFC 4861's states applied to ARP): a nexthop nobody
knows is INCOMPLETE, packets wait while ARP asks three times a second apart; no answer makes it
FAILED and its packets end as host unreachable.  An answer makes it REACHABLE for about 30 s; unused
it then becomes STALE, in use DELAY, and after 5 s PROBE: unicast questions, then FAILED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import BROADCAST_MAC, ZERO_MAC, format_ip, format_mac
from emulator.errors import UsageError, WireError
from emulator.netstack.packet import Drop, DropReason
from emulator.netstack.records import NeighInfo, NeighState
from emulator.netstack.skb import Skb
from emulator.wire import arp
from emulator.wire.ethernet import ETHERTYPE_ARP

if TYPE_CHECKING:
    from emulator.netstack.devices.base import Device
    from emulator.netstack.netns import NetNs
    from emulator.netstack.packet import Packet
    from emulator.netstack.timers import Timer

# Packets that wait for one answer; the oldest gives way.  What net.ipv4.neigh.default.unres_qlen
# shows today (unres_qlen_bytes 212,992 over the size of a small skb).
MAX_QUEUE: Final = 101
# Entries of a namespace (gc_thresh3); above it the oldest that nobody uses is forgotten.
MAX_ENTRIES: Final = 1024
RETRANS_S: Final = 1.0  # retrans_time_ms
BASE_REACHABLE_S: Final = 30.0  # base_reachable_time_ms, drawn between half and one and a half
DELAY_PROBE_S: Final = 5.0  # delay_first_probe_time
MCAST_PROBES: Final = 3  # mcast_solicit
UCAST_PROBES: Final = 3  # ucast_solicit
USER_HZ: Final = 100  # the unit of proxy_delay

_VALID: Final = frozenset(
    (
        *(NeighState.REACHABLE, NeighState.STALE, NeighState.DELAY, NeighState.PROBE),
        *(NeighState.PERMANENT, NeighState.NOARP),
    )
)


class Neighbour:
    """One nexthop on one device."""

    __slots__ = ("confirmed_at", "dev", "ip", "mac", "probes", "queue", "state", "timer", "used_at")

    def __init__(self, dev: Device, ip: int) -> None:
        self.dev = dev
        self.ip = ip
        self.mac: bytes | None = None
        self.state = NeighState.NONE
        self.probes = 0
        self.queue: list[Packet] = []
        self.timer: Timer | None = None
        self.used_at = 0.0
        self.confirmed_at = 0.0


class NeighbourTable:
    """All neighbours of a namespace."""

    def __init__(self, ns: NetNs) -> None:
        self._ns = ns
        self._kernel = ns.kernel
        self._entries: dict[tuple[int, int], Neighbour] = {}

    # -- the packet path -------------------------------------------------------------------------

    def send(self, dev: Device, nexthop: int, packet: Packet) -> Drop | None:
        """Frame a packet for a nexthop and transmit it, or let it wait for the answer of ARP."""
        entry = self._entries.get((dev.index, nexthop))
        if entry is None:
            made = self._create(dev, nexthop)
            if made is None:
                detail = f"neighbour table overflow: {MAX_ENTRIES} entries"
                return self._ns.count_drop(Drop(DropReason.NEIGH_QUEUE_FULL, detail), packet)
            entry = made
        state = entry.state
        flow = packet.flow
        if state in _VALID:
            entry.used_at = self._kernel.clock()
            if state is NeighState.STALE:
                if flow is not None:
                    flow.cacheable = False
                self._enter(entry, NeighState.DELAY, DELAY_PROBE_S)
            assert entry.mac is not None
            if packet.trace is not None:
                detail = f"{format_ip(nexthop)} dev {dev.name} lladdr {format_mac(entry.mac)} "
                packet.trace.step(self._ns.name, "neigh", detail + entry.state, packet)
            return dev.transmit(Skb.of(packet, entry.mac, dev.mac))
        if flow is not None:
            flow.cacheable = False
            packet.flow = None
        if packet.trace is not None:
            detail = f"{format_ip(nexthop)} dev {dev.name} INCOMPLETE: asking by ARP"
            packet.trace.step(self._ns.name, "neigh", detail, packet)
        if len(entry.queue) >= MAX_QUEUE:
            lost = entry.queue.pop(0)
            detail = f"{format_ip(nexthop)} dev {dev.name}: {MAX_QUEUE} packets wait for ARP"
            self._ns.count_drop(Drop(DropReason.NEIGH_QUEUE_FULL, detail), lost)
        entry.queue.append(packet)
        if state is not NeighState.INCOMPLETE:
            entry.probes = 0
            self._enter(entry, NeighState.INCOMPLETE, RETRANS_S)
            self._solicit(entry)
        return None

    def resolved(self, dev: Device, ip: int) -> bytes | None:
        """The MAC of a neighbour if it is known now."""
        entry = self._entries.get((dev.index, ip))
        return entry.mac if entry is not None and entry.state in _VALID else None

    def _create(self, dev: Device, ip: int) -> Neighbour | None:
        if len(self._entries) >= MAX_ENTRIES and not self._collect():
            return None
        entry = Neighbour(dev, ip)
        self._entries[dev.index, ip] = entry
        return entry

    def _collect(self) -> bool:
        """Forget the idle entry used longest ago."""
        idle = [
            (entry.used_at, key)
            for key, entry in self._entries.items()
            if entry.state in (NeighState.STALE, NeighState.FAILED, NeighState.NONE)
        ]
        if not idle:
            return False
        self._remove(self._entries[min(idle)[1]])
        return True

    # -- states ----------------------------------------------------------------------------------

    def _enter(self, entry: Neighbour, state: NeighState, timeout_s: float | None) -> None:
        """The only writer of a state."""
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.state is not state:
            entry.state = state
            self._kernel.invalidate_flows()
        if timeout_s is not None:
            when = self._kernel.clock() + timeout_s
            entry.timer = self._kernel.timers.at(when, lambda: self._expire(entry))

    def _reachable_s(self) -> float:
        return BASE_REACHABLE_S * (0.5 + self._kernel.rng.random())

    def _expire(self, entry: Neighbour) -> None:
        """neigh_timer_handler."""
        entry.timer = None
        now = self._kernel.clock()
        match entry.state:
            case NeighState.REACHABLE:
                if now <= entry.used_at + DELAY_PROBE_S:
                    self._enter(entry, NeighState.DELAY, DELAY_PROBE_S)
                else:
                    self._enter(entry, NeighState.STALE, None)
            case NeighState.DELAY:
                entry.probes = 0
                self._enter(entry, NeighState.PROBE, RETRANS_S)
                self._solicit(entry)
            case NeighState.PROBE | NeighState.INCOMPLETE:
                limit = UCAST_PROBES if entry.state is NeighState.PROBE else MCAST_PROBES
                if entry.probes >= limit:
                    self._fail(entry)
                else:
                    self._enter(entry, entry.state, RETRANS_S)
                    self._solicit(entry)
            case _:
                pass

    def _fail(self, entry: Neighbour) -> None:
        queue, entry.queue = entry.queue, []
        self._enter(entry, NeighState.FAILED, None)
        where = f"{format_ip(entry.ip)} dev {entry.dev.name}"
        for packet in queue:
            drop = Drop(DropReason.NEIGH_FAILED, f"{where}: no answer to ARP", icmp=(3, 1))
            self._ns.end(packet, drop)

    def _solicit(self, entry: Neighbour) -> None:
        """arp_solicit: ask everyone, or in PROBE the neighbour itself."""
        entry.probes += 1
        dev = entry.dev
        source = 0
        if entry.queue and self._ns.is_local(entry.queue[0].src):
            source = entry.queue[0].src
        if not source:
            source = self._ns.select_address(dev, entry.ip) or 0
        to = BROADCAST_MAC
        if entry.state is NeighState.PROBE and entry.mac is not None:
            to = entry.mac
        message = arp.Arp(arp.REQUEST, dev.mac, source, ZERO_MAC, entry.ip)
        dev.transmit(Skb(to, dev.mac, ETHERTYPE_ARP, message.emit()))

    def update(self, dev: Device, ip: int, mac: bytes, *, reply: bool, create: bool) -> None:
        """ARP told us about a neighbour: an answer confirms it, a question only mentions it."""
        entry = self._entries.get((dev.index, ip))
        if entry is None:
            if not create:
                return
            entry = self._create(dev, ip)
            if entry is None:
                return
        if entry.state in (NeighState.PERMANENT, NeighState.NOARP):
            return
        known = entry.mac
        if known != mac:
            entry.mac = mac
            self._kernel.invalidate_flows()
        if reply:
            entry.confirmed_at = self._kernel.clock()
            self._enter(entry, NeighState.REACHABLE, self._reachable_s())
        elif known != mac or entry.state is not NeighState.REACHABLE:
            self._enter(entry, NeighState.STALE, None)
        queue, entry.queue = entry.queue, []
        for packet in queue:
            self.send(dev, ip, packet)

    # -- verbs -----------------------------------------------------------------------------------

    def replace(self, dev: Device, ip: int, mac: bytes | None, state: NeighState) -> None:
        """``ip neigh replace``; UsageError without an address for a state that needs one."""
        if mac is None and state in _VALID:
            raise UsageError("Error: No link layer address given.")
        entry = self._entries.get((dev.index, ip)) or self._create(dev, ip)
        if entry is None:
            raise UsageError("RTNETLINK answers: No buffer space available")
        entry.mac = mac if mac is not None else dev.mac
        timeout = self._reachable_s() if state is NeighState.REACHABLE else None
        self._enter(entry, state, timeout)
        self._kernel.invalidate_flows()
        queue, entry.queue = entry.queue, []
        for packet in queue:
            self.send(dev, ip, packet)

    def delete(self, dev: Device, ip: int) -> None:
        """``ip neigh del``; UsageError if there is none."""
        entry = self._entries.get((dev.index, ip))
        if entry is None:
            raise UsageError("RTNETLINK answers: No such file or directory")
        self._remove(entry)

    def flush_device(self, dev: Device) -> None:
        """A device went down or away: its neighbours are forgotten, permanent ones too."""
        for entry in [e for e in self._entries.values() if e.dev is dev]:
            self._remove(entry)

    def _remove(self, entry: Neighbour) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        del self._entries[entry.dev.index, entry.ip]
        self._kernel.invalidate_flows()

    def dump(self) -> tuple[NeighInfo, ...]:
        """Every entry, by device and address."""
        found = sorted(self._entries.items())
        return tuple(
            NeighInfo(e.dev.name, e.ip, e.mac if e.state in _VALID else None, e.state)
            for _, e in found
        )


class ArpLayer:
    """Answers and takes ARP for a namespace (net/ipv4/arp.c, arp_process)."""

    def __init__(self, ns: NetNs) -> None:
        self._ns = ns
        self._delayed = 0

    def receive(self, dev: Device, skb: Skb) -> None:
        """Take an ARP frame."""
        ns = self._ns
        try:
            message = arp.Arp.parse(skb.data)
        except WireError as error:
            ns.count_drop(Drop(DropReason.BAD_HEADER, str(error)), skb)
            return
        if not dev.arp:
            return
        sender, target = message.sender_ip, message.target_ip
        if message.op == arp.REQUEST:
            ours = ns.is_local(target) and target >> 24 != 127
            if ours or self._proxied(dev, target):
                if sender:
                    ns.neigh.update(dev, sender, message.sender_mac, reply=False, create=True)
                # Asked directly (a PROBE) even a proxy answers at once.
                delay = (
                    0 if ours or skb.dst == dev.mac else ns.neigh_sysctl("proxy_delay", dev.name)
                )
                if delay:
                    self._answer_later(dev, message, delay)
                else:
                    self._answer(dev, message)
                return
        if message.op in (arp.REQUEST, arp.REPLY):
            reply = message.op == arp.REPLY and skb.dst == dev.mac
            ns.neigh.update(dev, sender, message.sender_mac, reply=reply, create=False)

    @staticmethod
    def _answer(dev: Device, asked: arp.Arp) -> None:
        answer = arp.Arp(arp.REPLY, dev.mac, asked.target_ip, asked.sender_mac, asked.sender_ip)
        dev.transmit(Skb(asked.sender_mac, dev.mac, ETHERTYPE_ARP, answer.emit()))

    def _answer_later(self, dev: Device, asked: arp.Arp, delay: int) -> None:
        """pneigh_enqueue: a proxy waits up to proxy_delay, so that the owner may answer first."""
        ns = self._ns
        if self._delayed >= ns.neigh_sysctl("proxy_qlen", dev.name):
            detail = f"dev {dev.name}: {self._delayed} proxied ARP answers wait (proxy_qlen)"
            ns.count_drop(Drop(DropReason.QUEUE_FULL, detail), None)
            return
        self._delayed += 1
        kernel = ns.kernel

        def answer() -> None:
            self._delayed -= 1
            if ns.devices.get(dev.name) is dev:
                self._answer(dev, asked)

        kernel.timers.at(kernel.clock() + kernel.rng.random() * delay / USER_HZ, answer)

    def _proxied(self, dev: Device, target: int) -> bool:
        """proxy_arp: answer for what is routed through another device."""
        ns = self._ns
        if not ns.device_sysctl("proxy_arp", dev.name) or not ns.forwards(dev.name):
            return False
        route = ns.route_output(target)
        return route is not None and route.type == "unicast" and route.dev != dev.name
