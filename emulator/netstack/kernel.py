"""The kernel of one node: namespaces, timers, the flow cache and what the driver asks.

Nothing here reads a clock or touches a socket: ``clock`` and ``rng`` come in, packets leave through
the underlay device, and ``on_work`` says that there is something to fetch.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from emulator.errors import UsageError
from emulator.netstack.capture import CaptureHandle
from emulator.netstack.flows import FlowCache
from emulator.netstack.netfilter.netfilter import Netfilter
from emulator.netstack.netns import NetNs
from emulator.netstack.packet import Drop, DropReason, LocalDelivery, PacketFilter
from emulator.netstack.sock.table import SocketTable
from emulator.netstack.timers import Timers
from emulator.netstack.trace import TraceBuffer, TraceFilter

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from emulator.netstack.capture import Sink
    from emulator.netstack.devices.base import Device
    from emulator.netstack.packet import Packet
    from emulator.netstack.skb import Skb

# Namespaces of a node: kubelet's limit is 110 pods.
MAX_NETNS: Final = 1024
# Frames between devices of one host waiting to be received (net.core.netdev_max_backlog).
MAX_BACKLOG: Final = 1000
# Rounds of socket output in one call of handle_timer: two pods of one node that talk to each other
# make work for each other without end.
MAX_ROUNDS: Final = 8
ROOT: Final = "root"


class Sockets(LocalDelivery, Protocol):
    """LocalDelivery, echo replies and the timers of a socket table."""

    def icmp_echo_reply(self, packet: Packet) -> None: ...

    def get_timer(self) -> float | None: ...

    def handle_timer(self) -> None: ...


class Kernel:
    """One node's network stack."""

    def __init__(
        self,
        hostname: str,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        filter_factory: Callable[[NetNs], PacketFilter] | None = None,
        sockets_factory: Callable[[NetNs], Sockets] | None = None,
    ) -> None:
        """``clock`` gives seconds (the loop's time).  The factories are for tests."""
        self.hostname = hostname
        self.clock = clock
        self.rng = rng
        self.on_work: Callable[[], None] = _nothing
        self._woken = False
        self.timers = Timers(self.wake)
        self.flows = FlowCache(self)
        self.generation = 0
        self.tracer: TraceBuffer | None = None
        self.filter_factory: Callable[[NetNs], Any] = filter_factory or self._netfilter
        self.sockets_factory: Callable[[NetNs], Any] = sockets_factory or self._sockets
        self._namespaces: dict[str, NetNs] = {}
        self._backlog: deque[tuple[Device, Skb]] = deque()
        self._depth = 0
        self.nested_tunnels = 0  # the tunnels': how deep in one another they are sending now
        self.draining = False
        self._dirty: dict[str, NetNs] = {}
        self._ns_timers: dict[str, float] = {}
        self._taps = 0
        self.root = self._make(ROOT)
        self.root.link_set("lo", up=True)
        # kubelet and the bridge plugin need both; br_netfilter's default is 1 once loaded.
        self.root.sysctl["net.ipv4.ip_forward"] = 1
        self.root.sysctl["net.bridge.bridge-nf-call-iptables"] = 1

    def _netfilter(self, ns: NetNs) -> PacketFilter:
        return Netfilter(ns, clock=self.clock, rng=self.rng, netns=ns.name)

    def _sockets(self, ns: NetNs) -> Sockets:
        return SocketTable(ns, clock=self.clock, rng=self.rng)

    # -- namespaces ------------------------------------------------------------------------------

    def _make(self, name: str) -> NetNs:
        ns = NetNs(self, name)
        ns.sysctl["net.ipv4.ip_forward"] = 0
        self._namespaces[name] = ns
        return ns

    def netns_add(self, name: str) -> NetNs:
        """Make a namespace; its lo is down, as a new one's is."""
        if name in self._namespaces:
            raise UsageError(f'Cannot create namespace file "/var/run/netns/{name}": File exists')
        if len(self._namespaces) >= MAX_NETNS:
            raise UsageError(
                f"cannot create namespace {name!r}: there are {MAX_NETNS}, delete some first"
            )
        return self._make(name)

    def netns_del(self, name: str) -> None:
        """Remove a namespace; its devices go, sockets end."""
        ns = self.netns(name)
        if ns is self.root:
            raise UsageError("the root namespace stays as long as the node")
        close = getattr(ns.sockets, "close", None)
        if close is not None:
            close()
        for device in reversed(ns.link_table.sorted()):
            ns.link_table.remove(device)
        del self._namespaces[name]
        self._dirty.pop(name, None)
        self._ns_timers.pop(name, None)
        self.invalidate_flows()

    def netns(self, name: str) -> NetNs:
        """Return a namespace; UsageError if there is none of that name."""
        found = self._namespaces.get(name)
        if found is None:
            raise UsageError(f'Cannot open network namespace "{name}": No such file or directory')
        return found

    def netns_names(self) -> tuple[str, ...]:
        """Names in order of creation, the root namespace first."""
        return tuple(self._namespaces)

    def as_netns(self, which: object) -> NetNs:
        """A namespace given itself or by name."""
        if isinstance(which, NetNs):
            return which
        if isinstance(which, str):
            return self.netns(which)
        raise UsageError(f"{which!r} is not a network namespace")

    def random_mac(self) -> bytes:
        """A locally administered unicast address (eth_random_addr)."""
        mac = bytearray(self.rng.getrandbits(48).to_bytes(6, "big"))
        mac[0] = mac[0] & 0xFE | 0x02
        return bytes(mac)

    # -- frames between devices ------------------------------------------------------------------

    def enter(self) -> None:
        """A call from outside begins; frames between devices are moved before it ends."""
        self._depth += 1

    def leave(self) -> None:
        """The call ends."""
        self._depth -= 1
        if self._depth == 0 and self._backlog:
            self.drain()

    def backlog(self, device: Device, skb: Skb) -> None:
        """``device`` receives ``skb`` soon: a loop instead of a recursion (netif_rx)."""
        if len(self._backlog) >= MAX_BACKLOG:
            detail = f"{MAX_BACKLOG} frames wait between devices"
            device.ns.count_drop(Drop(DropReason.QUEUE_FULL, detail), skb)
            return
        self._backlog.append((device, skb))
        if self._depth == 0:
            self.drain()

    def drain(self) -> None:
        """Deliver the frames between devices, and those they cause."""
        if self.draining:
            return
        self.draining = True
        self._depth += 1
        try:
            while self._backlog:
                device, skb = self._backlog.popleft()
                device.receive(skb)
        finally:
            self._depth -= 1
            self.draining = False

    def invalidate_flows(self) -> None:
        """Something a cached flow depends on changed."""
        self.generation += 1

    # -- time and work ---------------------------------------------------------------------------

    def wake(self) -> None:
        """The driver has something to do: egress to fetch or a timer to arm."""
        if not self._woken:
            self._woken = True
            self.on_work()

    def poke(self, ns: NetNs) -> None:
        """The sockets of a namespace want ``handle_timer``."""
        self._dirty[ns.name] = ns
        self.wake()

    def get_timer(self) -> float | None:
        """When ``handle_timer`` wants to be called; None for never."""
        self._woken = False
        if self._dirty:
            return self.clock()
        times = list(self._ns_timers.values())
        own = self.timers.next_at()
        if own is not None:
            times.append(own)
        return min(times, default=None)

    def handle_timer(self) -> None:
        """Do what is due: neighbours, reassembly, ageing, conntrack, sockets."""
        self._woken = False
        now = self.clock()
        self.enter()
        try:
            self.timers.run(now)
            for name, at in list(self._ns_timers.items()):
                if at <= now:
                    self._dirty[name] = self._namespaces[name]
            for _ in range(MAX_ROUNDS):
                if not self._dirty:
                    break
                dirty, self._dirty = self._dirty, {}
                for name, ns in dirty.items():
                    if self._namespaces.get(name) is ns:
                        self._run(name, ns)
        finally:
            self.leave()

    def _run(self, name: str, ns: NetNs) -> None:
        ns.sockets.handle_timer()
        self.drain()
        at = ns.sockets.get_timer()
        if at is not None:
            self._ns_timers[name] = at
        else:
            self._ns_timers.pop(name, None)

    # -- observing -------------------------------------------------------------------------------

    def capture(
        self, ns: NetNs | str, dev: str, sink: Sink, on_gone: Callable[[], None] | None = None
    ) -> CaptureHandle:
        """Give ``sink`` every frame of a device; ``close()`` the handle to stop.

        ``on_gone`` is called if the device is taken out before that.
        """
        device = self.as_netns(ns).link_table.get(dev)
        return CaptureHandle(self, device, sink, on_gone)

    def tapped(self, change: int) -> None:
        """A capture began (1) or ended (-1); cached flows would pass it unseen."""
        self._taps += change
        self.invalidate_flows()

    @property
    def observed(self) -> bool:
        """True while a capture or a trace wants to see every packet on the long way."""
        return bool(self._taps) or self.tracer is not None

    def trace_arm(self, wanted: TraceFilter) -> TraceBuffer:
        """Record every step of packets that match; ``disarm()`` the buffer to stop.

        A second trace takes the place of the first.
        """
        self.tracer = TraceBuffer(self, wanted)
        self.invalidate_flows()
        return self.tracer


def _nothing() -> None:
    """The default of ``Kernel.on_work``."""
