"""The kernel protocol: how a speaker's tables and a node's kernel meet.

``KernelPort`` is what the speaker needs of a kernel; ``netlink.py`` implements it on a namespace.
Desired routes are computed here (BIRD's krt.c with Calico's krt_tunnel patch); the port applies
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from agents.bird.attributes import Attrs
from agents.bird.channel import Channel
from agents.bird.config import Dest
from agents.bird.decision import mergeable
from agents.bird.filters import Source
from agents.bird.net import Net
from agents.bird.rib import NextHop, Path, Table
from agents.bird.tracing import ExportTrace
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agents.bird.config import KernelConfig
    from agents.bird.nexthop import Resolver
    from agents.bird.tracing import Trace

# The name of the kernel's routing protocol number 12.
PROTOCOL: Final = "bird"
# Routes of these kernel protocols are not learnt: devices have them already, or they are ours.
_NOT_ALIEN: Final = frozenset({"kernel", PROTOCOL})
# Networks one turn writes into the kernel.
SYNC_SLICE: Final = 1000


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface, 4 or 16 bytes, with its prefix length."""

    address: bytes
    length: int
    scope: str = "global"


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface as the device protocol sees it."""

    index: int
    name: str
    up: bool
    running: bool
    mtu: int
    addresses: tuple[InterfaceAddress, ...] = ()
    broadcast: bool = True
    multicast: bool = True
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class KernelWay:
    """One next hop of a kernel route; ``gateway`` b"" on the link."""

    gateway: bytes
    dev: str
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route of table main.  ``protocol`` is the kernel's name for who put it there."""

    net: Net
    dest: Dest
    ways: tuple[KernelWay, ...] = ()
    metric: int = 0
    protocol: str = PROTOCOL


class KernelPort(Protocol):
    """A kernel's routing table and interfaces."""

    @property
    def generation(self) -> object:
        """Another one after every change of what the other calls give."""

    def interfaces(self) -> Sequence[Interface]:
        """All interfaces, by index."""

    def routes(self) -> Sequence[KernelRoute]:
        """Table main."""

    def replace(self, route: KernelRoute) -> None:
        """Add or replace our route; raises UsageError with the kernel's text if it is refused."""

    def delete(self, route: KernelRoute) -> None:
        """Remove our route if it is there."""


class KernelProtocol:
    """``protocol kernel``: learns what others put into the kernel, writes what its filter accepts.

    It is an Exporter of the IPv4 table.  ``held`` keeps it from writing during a graceful restart.
    """

    def __init__(
        self,
        config: KernelConfig,
        table: Table,
        resolver: Resolver,
        port: KernelPort,
    ) -> None:
        self.config = config
        self.channel = Channel(config.name, Source.INHERIT, table, resolver, config.import_filter)
        self.held = False
        # What we believe is in the kernel from us.
        self.installed: dict[bytes, KernelRoute] = {}
        # Routes the kernel refused, with its words; tried again with each scan.
        self.refused: dict[bytes, str] = {}
        self.trace: ExportTrace | None = None
        self._listener: Trace | None = None
        self._port = port
        self._table = table
        self._devices: frozenset[str] = frozenset()
        self._dirty: dict[bytes, None] = dict.fromkeys(table.routes)

    def set_trace(self, trace: Trace | None) -> None:
        """Tell a listener what happens from now on, None for nobody."""
        self.channel.trace = self._listener = trace
        self.trace = None
        if trace is not None:
            told = {k: path for k in self.installed if (path := self._table.best(k)) is not None}
            self.trace = ExportTrace(trace, self._table.afi, told, with_ids=False)

    @property
    def wants_all_paths(self) -> bool:
        """With merged paths a change of the second best route matters too."""
        return self.config.merge_paths > 0

    @property
    def skips_inside(self) -> bool:
        """The kernel gets everything."""
        return False

    def best_changed(
        self, keys: Sequence[bytes], path: Path | None, *, is_new: bool = False
    ) -> None:
        """As ``rib.Exporter``."""
        self._dirty.update(dict.fromkeys(keys))

    def path_changed(
        self, keys: Sequence[bytes], channel: Channel, path_id: int, path: Path | None
    ) -> None:
        """As ``rib.Exporter``."""
        self._dirty.update(dict.fromkeys(keys))

    def path_ids_waiting(self, channel: Channel) -> Iterable[int]:
        """As ``rib.Exporter``: the kernel knows no identifiers."""
        return ()

    def reconfigure(self, config: KernelConfig) -> None:
        """Take a changed configuration; everything is looked at again."""
        before, self.config = self.config, config
        if before.import_filter != config.import_filter:
            self.channel.refilter(config.import_filter)
        if before != config:
            self.refresh()

    def refresh(self) -> None:
        """Look at every network again."""
        self._dirty.update(dict.fromkeys(self._table.routes))
        self._dirty.update(dict.fromkeys(self.installed))

    @property
    def busy(self) -> bool:
        """True while there are changes to write."""
        return bool(self._dirty) and not self.held

    def work(self) -> None:
        """Write a slice of changes."""
        if self.held:
            return
        some = list(self._dirty)[:SYNC_SLICE]
        for key in some:
            del self._dirty[key]
            self._write(key)

    def _write(self, key: bytes) -> None:
        self.refused.pop(key, None)
        wanted = self.wanted(key)
        have = self.installed.get(key)
        stats = self.channel.stats
        if wanted is None:
            if have is not None:
                stats.exp_withdraws_accepted += 1
                if self.trace is not None:
                    self.trace.withdrawn((key,))
                del self.installed[key]
                self._remove(key, have)
            return
        if have == wanted:
            return
        stats.exp_updates_accepted += 1
        # What somebody else deleted is put back without a word.
        if self.trace is not None and (have is not None or not self.trace.was_told(key)):
            best = self._table.paths(key)[0]
            self.trace.announced((key,), best, several=len(wanted.ways) > 1)
        try:
            self._port.replace(wanted)
        except UsageError as error:
            self.refused[key] = str(error)
            self.installed.pop(key, None)
        else:
            self.installed[key] = wanted
            if have is not None and have.metric != wanted.metric:
                # The kernel keeps routes of different metrics beside each other.
                self._remove(key, have)

    def _remove(self, key: bytes, route: KernelRoute) -> None:
        try:
            self._port.delete(route)
        except UsageError as error:
            # The next scan finds it there still and tries again.
            self.refused[key] = str(error)

    def wanted(self, key: bytes) -> KernelRoute | None:
        """What the kernel should have for a network, None for nothing of ours."""
        paths = self._table.paths(key)
        if not paths or self.config.disabled:
            return None
        best = paths[0]
        if best.channel is self.channel or best.channel.source is Source.DEVICE:
            # The kernel has its own route for each address.
            self._trace_refused("rejected by protocol", key, best)
            return None
        net = Net.from_key(self._table.afi, key)
        stats = self.channel.stats
        stats.exp_updates_received += 1
        ways: list[KernelWay] = []
        first = self._filtered(net, key, best)
        if first is None:
            stats.exp_updates_filtered += 1
            self._trace_refused("filtered out", key, best)
            return None
        metric = first.krt_metric or 0
        if best.dest is not Dest.UNICAST:
            return KernelRoute(net, best.dest, (), metric)
        members = [best]
        if self.config.merge_paths:
            members += [p for p in paths[1:] if mergeable(best, p)]
        for path in members:
            attrs = first if path is best else self._filtered(net, key, path)
            if attrs is None:
                continue
            for way in self._ways(path, attrs):
                if way not in ways:
                    ways.append(way)
        limit = self.config.merge_paths or 1
        ways = [ways[0], *sorted(ways[1:], key=lambda w: (w.gateway, w.dev))][:limit]
        if len(ways) > 1:
            ways.sort(key=lambda w: (w.gateway, w.dev))
        return KernelRoute(net, Dest.UNICAST, tuple(ways), metric)

    def _trace_refused(self, why: str, key: bytes, path: Path) -> None:
        if self.trace is not None:
            self.trace.refused(why, (key,), path)

    def _filtered(self, net: Net, key: bytes, path: Path) -> Attrs | None:
        leaf = self._table.answers.of(self.config.export_filter, path, net.afi, key).leaf
        return leaf.attrs if leaf.accept else None

    def _ways(self, path: Path, attrs: Attrs) -> list[KernelWay]:
        """Next hops as written: through a tunnel the BGP NEXT_HOP itself, onlink."""
        tunnel = attrs.krt_tunnel
        if tunnel and attrs.next_hop and tunnel in self._devices:
            return [KernelWay(attrs.next_hop[:16], tunnel, onlink=True)]
        return [KernelWay(way.gateway, way.dev) for way in path.ways]

    def scan(self, interfaces: Iterable[Interface], now: float) -> None:
        """Compare with the kernel: learn alien routes, restore ours, remove strays of ours."""
        devices = frozenset(i.name for i in interfaces if i.up)
        if devices != self._devices:
            self._devices = devices
            self.refresh()
        alien: dict[bytes, Path] = {}
        present: dict[bytes, KernelRoute] = {}
        if self._listener is not None:
            self._listener.event("Scanning routing table")
        for route in self._port.routes():
            if route.net.afi is not self._table.afi:
                continue
            key = route.net.key
            if route.protocol == PROTOCOL:
                if key not in present or route == self.installed.get(key):
                    present[key], route = route, present.get(key, route)
                if route is not present[key] and not self.held:
                    # Of a former life, with another metric.
                    self._remove(key, route)
            elif self._learns and route.protocol not in _NOT_ALIEN and key not in alien:
                alien[key] = Path(
                    self.channel,
                    Attrs(preference=self.config.preference, krt_metric=route.metric),
                    now,
                    dest=route.dest,
                    ways=tuple(NextHop(w.gateway, w.dev) for w in route.ways),
                )
        if self._listener is not None:
            self._trace_scan(self._listener, alien, present)
        self.channel.set_routes(alien)
        if self.held:
            return
        for key, route in present.items():
            if self.installed.get(key) != route:
                self.installed[key] = route
                self._dirty[key] = None
        for key in [key for key in self.installed if key not in present]:
            del self.installed[key]
            self._dirty[key] = None
        self._dirty.update(dict.fromkeys(self.refused))

    def _trace_scan(
        self, trace: Trace, alien: Mapping[bytes, Path], present: Mapping[bytes, KernelRoute]
    ) -> None:
        for key in alien:
            known = key in self.channel.received
            trace.kernel(key, "[alien] seen" if known else "[alien] created")
        for key, route in present.items():
            if self.installed.get(key) == route:
                trace.kernel(key, "seen")
        trace.pruning()
        for key in self.installed:
            if key not in present:
                trace.kernel(key, "installing")
        trace.event("Pruning inherited routes")

    @property
    def _learns(self) -> bool:
        return self.config.learn and not self.config.disabled

    def sources(self) -> dict[bytes, str]:
        """Who put the routes into the kernel that are not ours, by key, in the kernel's words."""
        found = {}
        for route in self._port.routes():
            if route.protocol != PROTOCOL and route.net.afi is self._table.afi:
                found[route.net.key] = route.protocol
        return found

    def shut_down(self) -> None:
        """Remove our routes unless they shall persist."""
        if self.config.persist:
            return
        for key, route in self.installed.items():
            self._remove(key, route)
        self.installed.clear()
