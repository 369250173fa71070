"""The routing table of one family: every protocol's routes, the best of each network.

A ``Path`` is shared by all networks that came with it in one message, and a table entry is that
Path itself while nobody else has a route to the network: a million routes of one peer are a
million slots of a dict.  Changes travel in bulk, as (keys, path), from message to message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from agents.bird.answers import Answers
from agents.bird.attributes import LLGR_STALE, Attrs, has_community
from agents.bird.config import Dest
from agents.bird.decision import select
from agents.bird.filters import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agents.bird.channel import Channel
    from agents.bird.net import Afi
    from agents.bird.nexthop import HostEntry
    from agents.bird.tracing import Trace

# BIRD's IGP_METRIC_UNKNOWN: a next hop behind a route that has no metric.
METRIC_UNKNOWN: Final = 0x80000000


class NextHop(NamedTuple):
    """One way out: ``gateway`` b"" on the link itself."""

    gateway: bytes
    dev: str


class Path:
    """What a protocol said about a network, or about a thousand in one message.

    Routes of BGP are resolved through ``hop``; other routes have their own ``dest`` and ``ways``.
    ``generation`` older than its channel's means stale: the peer restarted and did not repeat it.
    """

    __slots__ = (
        "_dest",
        "_ways",
        "attrs",
        "channel",
        "generation",
        "hop",
        "learned_at",
        "path_id",
    )

    def __init__(
        self,
        channel: Channel,
        attrs: Attrs,
        learned_at: float,
        *,
        path_id: int = 0,
        hop: HostEntry | None = None,
        dest: Dest = Dest.UNREACHABLE,
        ways: tuple[NextHop, ...] = (),
    ) -> None:
        self.channel = channel
        self.attrs = attrs
        self.learned_at = learned_at
        self.path_id = path_id
        self.hop = hop
        self.generation = channel.generation
        self._dest = dest
        self._ways = ways

    def with_attrs(self, attrs: Attrs, hop: HostEntry | None) -> Path:
        """The same with other attributes, as an import filter makes them."""
        other = Path(
            self.channel,
            attrs,
            self.learned_at,
            path_id=self.path_id,
            hop=hop,
            dest=self._dest,
            ways=self._ways,
        )
        other.generation = self.generation
        return other

    @property
    def dest(self) -> Dest:
        """Where it leads now."""
        return self._dest if self.hop is None else self.hop.dest

    @property
    def ways(self) -> tuple[NextHop, ...]:
        """The next hops in force now; empty unless ``dest`` is unicast."""
        return self._ways if self.hop is None else self.hop.ways

    @property
    def reachable(self) -> bool:
        """False for a BGP route whose next hop nobody leads to."""
        return self.dest is not Dest.UNREACHABLE or self.hop is None

    @property
    def igp_metric(self) -> int:
        """Distance to the next hop; METRIC_UNKNOWN where no metric says."""
        return 0 if self.hop is None else self.hop.metric

    @property
    def stale(self) -> bool:
        """True while a restarted peer has not repeated it."""
        return self.generation != self.channel.generation

    @property
    def long_lived_stale(self) -> bool:
        """True for what is kept beyond a restart's time (RFC 9494)."""
        return has_community(self.attrs.communities, LLGR_STALE)


Entry = Path | tuple[Path, ...]


class Exporter(Protocol):
    """Somebody who is told of changes."""

    @property
    def wants_all_paths(self) -> bool:
        """True to be told of every path, not of the best one."""

    @property
    def skips_inside(self) -> bool:
        """True if routes of internal peers never concern it (RFC 4271 §9.2.1)."""

    def best_changed(
        self, keys: Sequence[bytes], path: Path | None, *, is_new: bool = False
    ) -> None:
        """These networks' best route is ``path`` now, or there is none.

        ``is_new`` says that there was none before.
        """

    def path_changed(
        self, keys: Sequence[bytes], channel: Channel, path_id: int, path: Path | None
    ) -> None:
        """A route of these networks came, changed or went; only if ``wants_all_paths``."""

    def path_ids_waiting(self, channel: Channel) -> Iterable[int]:
        """Identifiers of a channel's routes whose changes wait here to be told, by those."""


class Updated(NamedTuple):
    """How many routes of an update changed something, and how many were there already."""

    accepted: int
    ignored: int


class Table:
    """One family's routes."""

    def __init__(self, afi: Afi) -> None:
        self.afi = afi
        # The first of a tuple is the best route, the others follow in order of arrival.
        self.routes: dict[bytes, Entry] = {}
        self.exporters: list[Exporter] = []
        # Networks that a protocol other than BGP has a route to, by length: next hops look here.
        self.igp: dict[int, dict[int, bytes]] = {}
        self.igp_changed = False
        # Routes of BGP that internal peers are told of.
        self.outside_bgp = 0
        self.answers = Answers()
        self._tx_id = 0
        # Changes of internal peers' routes, which most internal peers are not told of.
        self.inside_updates = 0
        self.inside_withdraws = 0

    def next_tx_id(self) -> int:
        """A path identifier for announcements that nobody has yet."""
        self._tx_id += 1
        return self._tx_id

    def paths(self, key: bytes) -> tuple[Path, ...]:
        """All routes of a network, best first."""
        entry = self.routes.get(key)
        if entry is None:
            return ()
        return entry if isinstance(entry, tuple) else (entry,)

    def best(self, key: bytes) -> Path | None:
        """The best route of a network."""
        entry = self.routes.get(key)
        return entry[0] if isinstance(entry, tuple) else entry

    def find(self, key: bytes, channel: Channel, path_id: int) -> Path | None:
        """A channel's route of a network."""
        for path in self.paths(key):
            if path.channel is channel and path.path_id == path_id:
                return path
        return None

    def path_ids(self, channel: Channel) -> set[int]:
        """The path identifiers of a channel's routes, and those somebody has yet to be told of."""
        found = {
            path.path_id for _, paths in self.items() for path in paths if path.channel is channel
        }
        for exporter in self.exporters:
            found.update(exporter.path_ids_waiting(channel))
        return found

    def items(self) -> Iterator[tuple[bytes, tuple[Path, ...]]]:
        """Every network with its routes."""
        for key, entry in self.routes.items():
            yield key, entry if isinstance(entry, tuple) else (entry,)

    def not_bgp(self) -> list[bytes]:
        """Every network with a route of a protocol other than BGP."""
        return [key for networks in self.igp.values() for key in networks.values()]

    def update(
        self, channel: Channel, path_id: int, keys: Sequence[bytes], path: Path | None
    ) -> Updated:
        """Set or (None) take away a channel's route ``path_id`` of each network."""
        routes = self.routes
        if not keys:
            return Updated(0, 0)
        if channel.trace is not None:
            if len(keys) > 1:
                # Each route's lines belong together: what came of it, who was told.
                done = [self.update(channel, path_id, (key,), path) for key in keys]
                return Updated(sum(d.accepted for d in done), sum(d.ignored for d in done))
            self._trace(channel.trace, channel, path_id, keys[0], path)
        had = channel.routes
        if path is not None and routes.keys().isdisjoint(keys):
            before = len(routes)
            routes.update(dict.fromkeys(keys, path))
            channel.routes += len(routes) - before
            channel.preferred += len(routes) - before
            result = Updated(len(keys), 0)
            for exporter in self.exporters:
                if not exporter.wants_all_paths:
                    exporter.best_changed(keys, path, is_new=True)
            changed: Sequence[bytes] = keys
        elif path is None and self._take_away(channel, path_id, keys):
            result = Updated(len(keys), 0)
            self._tell_best(keys, None)
            changed = keys
        else:
            changed, result = self._update_each(channel, path_id, keys, path)
        if changed:
            if channel.source is not Source.BGP:
                self._index(changed)
            inside = channel.is_inside
            if not inside and channel.source is Source.BGP:
                self.outside_bgp += channel.routes - had
            if inside:
                # In a full mesh nearly every change is one that nobody else is told of: counting it
                # once for all keeps a mesh of n nodes from costing n times n times n.
                if path is None:
                    self.inside_withdraws += len(changed)
                else:
                    self.inside_updates += len(changed)
            for exporter in self.exporters:
                if exporter.wants_all_paths and not (inside and exporter.skips_inside):
                    exporter.path_changed(changed, channel, path_id, path)
        return result

    def _trace(
        self, trace: Trace, channel: Channel, path_id: int, key: bytes, path: Path | None
    ) -> None:
        """Tell what an update of one route is about to do."""
        have = self.paths(key)
        mine = self.find(key, channel, path_id)
        others = tuple(p for p in have if p is not mine)
        if path is not None:
            if mine is not None and _same(mine, path):
                what = "ignored"
            else:
                best = select((*others, path))
                what = "added [best]" if best is path else "added"
            trace.imported(what, self.afi, key, path)
        elif mine is not None:
            what = "removed"
            if mine is have[0]:
                what = "removed [replaced]" if others else "removed [sole]"
            trace.imported(what, self.afi, key, mine)

    def _take_away(self, channel: Channel, path_id: int, keys: Sequence[bytes]) -> bool:
        """Remove networks that one and the same Path of this channel is the only route to."""
        routes = self.routes
        first = routes.get(keys[0])
        if (
            not isinstance(first, Path)
            or first.channel is not channel
            or first.path_id != path_id
            or list(map(routes.get, keys)).count(first) != len(keys)
        ):
            return False
        before = len(routes)
        for key in keys:
            routes.pop(key, None)
        channel.routes -= before - len(routes)
        channel.preferred -= before - len(routes)
        return True

    def _update_each(
        self, channel: Channel, path_id: int, keys: Sequence[bytes], path: Path | None
    ) -> tuple[Sequence[bytes], Updated]:
        routes = self.routes
        ignored = 0
        changed: list[bytes] = []
        # Networks by their new best route, in the order in which those turned up.
        groups: dict[int, tuple[Path | None, list[bytes]]] = {}
        for key in keys:
            old = routes.get(key)
            best: Path | None
            if old is None:
                if path is None:
                    ignored += 1
                    continue
                best = routes[key] = path
                channel.routes += 1
                channel.preferred += 1
            elif isinstance(old, Path):
                if old.channel is channel and old.path_id == path_id:
                    if path is None:
                        del routes[key]
                        channel.routes -= 1
                        channel.preferred -= 1
                        best = None
                    elif _same(old, path):
                        ignored += 1
                        if old.generation != path.generation:
                            routes[key] = path
                        continue
                    else:
                        best = routes[key] = path
                elif path is None:
                    ignored += 1
                    continue
                else:
                    channel.routes += 1
                    best = select((old, path))
                    routes[key] = (old, path) if best is old else (path, old)
                    if best is old:
                        changed.append(key)
                        continue
                    old.channel.preferred -= 1
                    channel.preferred += 1
            else:
                mine = self.find(key, channel, path_id)
                if mine is None and path is None:
                    ignored += 1
                    continue
                if mine is not None and path is not None and _same(mine, path):
                    ignored += 1
                    if mine.generation == path.generation:
                        continue
                    routes[key] = tuple(path if p is mine else p for p in old)
                    continue
                channel.routes += (path is not None) - (mine is not None)
                left = tuple(p for p in old if p is not mine)
                best = self._settle(key, left if path is None else (*left, path))
                if best is old[0]:
                    changed.append(key)
                    continue
            changed.append(key)
            group = groups.get(id(best))
            if group is None:
                groups[id(best)] = (best, [key])
            else:
                group[1].append(key)
        for best, some in groups.values():
            self._tell_best(some, best)
        return changed, Updated(len(changed), ignored)

    def _settle(self, key: bytes, paths: tuple[Path, ...]) -> Path:
        """Store a network's routes, the best first; returns it."""
        best, before = select(paths), self.best(key)
        if before is not None and before.channel is not best.channel:
            before.channel.preferred -= 1
            best.channel.preferred += 1
        if len(paths) == 1:
            self.routes[key] = best
        elif paths[0] is best:
            self.routes[key] = paths
        else:
            self.routes[key] = (best, *(path for path in paths if path is not best))
        return best

    def _tell_best(self, keys: Sequence[bytes], path: Path | None) -> None:
        for exporter in self.exporters:
            if not exporter.wants_all_paths:
                exporter.best_changed(keys, path)

    def reconsider(self, hops: Iterable[HostEntry]) -> None:
        """Choose and tell again for every network with a route through one of these next hops."""
        moved = {id(hop) for hop in hops}
        touched = [
            key
            for key, entry in self.routes.items()
            if (id(entry.hop) in moved if isinstance(entry, Path) else _any_hop(entry, moved))
        ]
        for key in touched:
            paths = self.paths(key)
            best = self._settle(key, paths)
            self._tell_best((key,), best)
            for exporter in self.exporters:
                if exporter.wants_all_paths:
                    for path in paths:
                        if id(path.hop) in moved:
                            exporter.path_changed((key,), path.channel, path.path_id, path)

    def _index(self, keys: Iterable[bytes]) -> None:
        bits = self.afi.bits
        for key in keys:
            length = key[0]
            size = len(key) - 1
            network = int.from_bytes(key[1:], "big") << (bits - 8 * size)
            if any(path.channel.source is not Source.BGP for path in self.paths(key)):
                self.igp.setdefault(length, {})[network] = key
            elif self.igp.get(length, {}).pop(network, None) is not None and not self.igp[length]:
                del self.igp[length]
        self.igp_changed = True

    def lookup_igp(self, address: bytes) -> Path | None:
        """The best route to an address that is not BGP's, longest prefix first."""
        bits = self.afi.bits
        value = int.from_bytes(address, "big")
        for length in sorted(self.igp, reverse=True):
            shift = bits - length
            key = self.igp[length].get(value >> shift << shift)
            if key is not None:
                return select([p for p in self.paths(key) if p.channel.source is not Source.BGP])
        return None


def _any_hop(paths: tuple[Path, ...], moved: set[int]) -> bool:
    return any(id(path.hop) in moved for path in paths)


def _same(a: Path, b: Path) -> bool:
    """True if a repeated route says nothing new."""
    return a.attrs == b.attrs and a.hop is b.hop and a.dest is b.dest and a.ways == b.ways
