"""A protocol's place in a table: what it said, what of that the import filter let in, statistics.

Everything received is kept as it came (BIRD's ``import table``), so a changed filter needs no help
of the peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agents.bird.attributes import LLGR_STALE, NO_LLGR, has_community
from agents.bird.config import Limit, LimitAction
from agents.bird.filter_eval import Leaf, facts_of, finish, specialise
from agents.bird.filters import ACCEPT_ALL, Filter, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agents.bird.net import Afi
    from agents.bird.nexthop import Resolver
    from agents.bird.rib import Path, Table
    from agents.bird.tracing import Trace

# Routes that one turn takes away or filters again before others get theirs.
SLICE: Final = 20000
# So many path identifiers of a peer are remembered before those that no route has any more are
# forgotten: a peer may use another one for each announcement.
LEAST_TX_IDS: Final = 1024
# What one family of one peer may hold where nothing is configured: four times the Internet's IPv4
# table of today, about a gigabyte.  BIRD has no such limit and is ended by the kernel instead.
MOST_RECEIVED: Final = Limit(4_000_000, LimitAction.DISABLE)


@dataclass(slots=True)
class Stats:
    """BIRD's "Route change stats"; updates and withdraws, in and out."""

    imp_updates_received: int = 0
    imp_updates_invalid: int = 0
    imp_updates_filtered: int = 0
    imp_updates_ignored: int = 0
    imp_updates_accepted: int = 0
    imp_withdraws_received: int = 0
    imp_withdraws_invalid: int = 0
    imp_withdraws_ignored: int = 0
    imp_withdraws_accepted: int = 0
    exp_updates_received: int = 0
    exp_updates_rejected: int = 0
    exp_updates_filtered: int = 0
    exp_updates_accepted: int = 0
    exp_withdraws_received: int = 0
    exp_withdraws_accepted: int = 0


class Channel:
    """One protocol instance in one table."""

    def __init__(
        self,
        name: str,
        source: Source,
        table: Table,
        resolver: Resolver,
        import_filter: Filter = ACCEPT_ALL,
        preference: int = 0,
    ) -> None:
        """``preference`` is that of routes of BGP; other protocols' routes have their own."""
        self.name = name
        self.source = source
        self.table = table
        self.resolver = resolver
        self.import_filter = import_filter
        self.preference = preference
        self.stats = Stats()
        # How many of its routes are in the table (kept by the table).
        self.routes = 0
        # Of how many networks its route is the best (kept by the table).
        self.preferred = 0
        # Numbers the lives of the session behind it; older routes are stale.
        self.generation = 0
        self.receive_limit: Limit | None = None
        self.import_limit: Limit | None = None
        # The limit that was reached, until the peer saw to it.
        self.limit_hit: Limit | None = None
        # Routes as received, by key, or by path identifier and key where those are in use.
        self.received: dict[bytes, Path] = {}
        # What a restarted peer has said in its former life and not yet repeated.
        self.stale: dict[bytes, Path] = {}
        self.with_path_ids = False
        self.stale_with_path_ids = False
        # What the decision process wants to know of a BGP peer.
        self.external = False
        self.router_id = 0
        self.neighbor = 0
        # What iBGP sessions put into CLUSTER_LIST when they reflect its routes.
        self.cluster_id = 0
        self.med_metric = False
        self.path_metric = True
        self.prefer_older = False
        self.trace: Trace | None = None
        # Numbers by which other speakers know our paths (RFC 7911), from 1.
        self._tx_ids: dict[int, int] = {}
        self._most_tx_ids = LEAST_TX_IDS

    @property
    def is_inside(self) -> bool:
        """True for an internal peer whose routes only a reflector's clients are told."""
        return self.source is Source.BGP and not self.external and not self.cluster_id

    @property
    def afi(self) -> Afi:
        """The family."""
        return self.table.afi

    def tx_path_id(self, path_id: int) -> int:
        """The path identifier under which a route of this channel is announced."""
        found = self._tx_ids.get(path_id)
        if found is None:
            if len(self._tx_ids) >= self._most_tx_ids:
                in_use = self.table.path_ids(self)
                self._tx_ids = {mine: tx for mine, tx in self._tx_ids.items() if mine in in_use}
                self._most_tx_ids = max(LEAST_TX_IDS, 2 * len(self._tx_ids))
            found = self._tx_ids[path_id] = self.table.next_tx_id()
        return found

    def announce(self, keys: Sequence[bytes], path: Path) -> int:
        """Take routes; returns how many of them are in the table now or were already."""
        self.stats.imp_updates_received += len(keys)
        if self.with_path_ids:
            head = path.path_id.to_bytes(4, "big")
            self.received.update(dict.fromkeys([head + key for key in keys], path))
        else:
            self.received.update(dict.fromkeys(keys, path))
        return self._filter_in(keys, path)

    def _filter_in(self, keys: Sequence[bytes], path: Path) -> int:
        if self.import_filter is ACCEPT_ALL:
            return self._enter(keys, path)
        outcome = specialise(self.import_filter, path.attrs, facts_of(path))
        if isinstance(outcome, Leaf):
            return self._outcome(keys, path, outcome)
        groups: dict[int, tuple[Leaf, list[bytes]]] = {}
        for key in keys:
            leaf = finish(outcome, self.afi, key)
            group = groups.get(id(leaf))
            if group is None:
                groups[id(leaf)] = (leaf, [key])
            else:
                group[1].append(key)
        return sum(self._outcome(some, path, leaf) for leaf, some in groups.values())

    def _outcome(self, keys: Sequence[bytes], path: Path, leaf: Leaf) -> int:
        if not leaf.accept:
            self.stats.imp_updates_filtered += len(keys)
            if self.trace is not None:
                for key in keys:
                    self.trace.import_refused("filtered out", self.afi, key, path)
            done = self.table.update(self, path.path_id, keys, None)
            # To the table, as to BIRD's, a refused route is one taken back.
            self.stats.imp_withdraws_accepted += done.accepted
            self.stats.imp_withdraws_ignored += done.ignored
            return 0
        if leaf.attrs != path.attrs:
            hop = path.hop
            if hop is not None and leaf.attrs.next_hop != path.attrs.next_hop:
                hop = self.resolver.entry(leaf.attrs.next_hop)
            path = path.with_attrs(leaf.attrs, hop)
        return self._enter(keys, path)

    def _enter(self, keys: Sequence[bytes], path: Path) -> int:
        limit = self.import_limit
        if limit is not None:
            refused = self._beyond(limit, self.routes, path.path_id, keys, self._is_in)
            if refused:
                self.stats.imp_updates_ignored += len(refused)
                self._forget(path.path_id, list(refused))
                if self.trace is not None:
                    for key in keys:
                        if key in refused:
                            self.trace.import_refused("ignored [limit]", self.afi, key, path)
                keys = [key for key in keys if key not in refused]
                if not keys:
                    return 0
        done = self.table.update(self, path.path_id, keys, path)
        self.stats.imp_updates_accepted += done.accepted
        self.stats.imp_updates_ignored += done.ignored
        return len(keys)

    def set_routes(self, wanted: Mapping[bytes, Path]) -> None:
        """Make the routes of a protocol without path identifiers these."""
        gone = [key for key in self.received if key not in wanted]
        if gone:
            self.withdraw(0, gone)
        for key, path in wanted.items():
            have = self.received.get(key)
            if (
                have is None
                or have.attrs != path.attrs
                or have.dest is not path.dest
                or have.ways != path.ways
            ):
                self.announce((key,), path)

    def withdraw(self, path_id: int, keys: Sequence[bytes]) -> None:
        """Routes the protocol takes back."""
        stats = self.stats
        stats.imp_withdraws_received += len(keys)
        self._forget(path_id, keys)
        done = self.table.update(self, path_id, keys, None)
        stats.imp_withdraws_accepted += done.accepted
        stats.imp_withdraws_ignored += done.ignored

    def take_away(self, path_id: int, keys: Sequence[bytes]) -> None:
        """Treat as withdrawn (RFC 7606), which is no withdraw in the statistics."""
        self._forget(path_id, keys)
        self.table.update(self, path_id, keys, None)

    def within_limits(self, path_id: int, keys: Sequence[bytes]) -> Sequence[bytes]:
        """The prefixes that may come in; sets ``limit_hit`` when there were too many."""
        limit = self.receive_limit or MOST_RECEIVED
        refused = self._beyond(limit, len(self.received), path_id, keys, self._was_received)
        if not refused:
            return keys
        self.stats.imp_updates_received += len(refused)
        self.stats.imp_updates_invalid += len(refused)
        return [key for key in keys if key not in refused]

    def _beyond(
        self,
        limit: Limit,
        have: int,
        path_id: int,
        keys: Sequence[bytes],
        known: Callable[[int, bytes], bool],
    ) -> frozenset[bytes]:
        """The prefixes a limit keeps out; ``known`` are among those ``have`` already."""
        if have + len(keys) <= limit.count:
            return frozenset()
        new = [key for key in dict.fromkeys(keys) if not known(path_id, key)]
        if have + len(new) <= limit.count:
            return frozenset()
        self.limit_hit = limit
        if limit.action is LimitAction.WARN:
            return frozenset()
        return frozenset(new[max(0, limit.count - have) :])

    def check_limits(self) -> None:
        """Set ``limit_hit`` if a limit is lower than what is here already."""
        received, limit = self.receive_limit or MOST_RECEIVED, self.import_limit
        if len(self.received) > received.count:
            self.limit_hit = received
        elif limit is not None and self.routes > limit.count:
            self.limit_hit = limit

    def _was_received(self, path_id: int, key: bytes) -> bool:
        return (path_id.to_bytes(4, "big") + key if self.with_path_ids else key) in self.received

    def _is_in(self, path_id: int, key: bytes) -> bool:
        return self.table.find(key, self, path_id) is not None

    def _forget(self, path_id: int, keys: Sequence[bytes]) -> None:
        head = path_id.to_bytes(4, "big")
        received, stale = self.received, self.stale
        if self.with_path_ids:
            for key in keys:
                received.pop(head + key, None)
        else:
            for key in keys:
                received.pop(key, None)
        if stale:
            for key in keys:
                stale.pop(head + key if self.stale_with_path_ids else key, None)

    def _split(self, rkey: bytes, with_ids: bool) -> tuple[int, bytes]:
        return (int.from_bytes(rkey[:4], "big"), rkey[4:]) if with_ids else (0, rkey)

    def grow_stale(self) -> None:
        """The session is gone but its routes stay: what is not repeated can be flushed later."""
        if self.stale and self.stale_with_path_ids == self.with_path_ids:
            self.stale.update(self.received)
        else:
            self._drop(self._unrepeated(), self.stale_with_path_ids)
            self.stale = self.received
        self.stale_with_path_ids = self.with_path_ids
        self.received = {}
        self.generation += 1

    def mark_long_lived(self) -> None:
        """Keep stale routes as a last resort (RFC 9494 §4.2): tagged, and worse than any other."""
        stale, self.stale = self.stale, {}
        drop: dict[bytes, Path] = {}
        groups: dict[int, tuple[Path, list[bytes]]] = {}
        for rkey, path in stale.items():
            communities = path.attrs.communities
            if has_community(communities, NO_LLGR):
                drop[rkey] = path
            else:
                groups.setdefault(id(path), (path, []))[1].append(rkey)
        self._drop(drop, self.stale_with_path_ids)
        for path, rkeys in groups.values():
            communities = path.attrs.communities
            if not has_community(communities, LLGR_STALE):
                communities += LLGR_STALE.to_bytes(4, "big")
            marked = path.with_attrs(path.attrs._replace(communities=communities), path.hop)
            self.stale.update(dict.fromkeys(rkeys, marked))
            keys = [self._split(rkey, self.stale_with_path_ids)[1] for rkey in rkeys]
            self._filter_in(keys, marked)

    def flush_stale(self) -> None:
        """Drop what a restarted peer did not repeat."""
        left, self.stale = self._unrepeated(), {}
        self._drop(left, self.stale_with_path_ids)

    def _unrepeated(self) -> dict[bytes, Path]:
        """What is stale but for what the present session said again."""
        stale, with_ids = self.stale, self.stale_with_path_ids
        if with_ids == self.with_path_ids:
            return {rkey: path for rkey, path in stale.items() if rkey not in self.received}
        left = {}
        for rkey, path in stale.items():
            # Without path identifiers a route is the one that has 0 with them.
            path_id, key = self._split(rkey, with_ids)
            found = self.table.find(key, self, path_id)
            if found is not None and found.stale:
                left[rkey] = path
        return left

    def _drop(self, routes: dict[bytes, Path], with_ids: bool) -> int:
        """Take routes out of the table."""
        by_id: dict[int, list[bytes]] = {}
        for rkey in routes:
            path_id, key = self._split(rkey, with_ids)
            by_id.setdefault(path_id, []).append(key)
        for path_id, keys in by_id.items():
            self.table.update(self, path_id, keys, None)
        return len(routes)

    def flush_some(self) -> bool:
        """Drop up to SLICE routes of a session that ended; False when none are left."""
        for routes, with_ids in (
            (self.stale, self.stale_with_path_ids),
            (self.received, self.with_path_ids),
        ):
            if not routes:
                continue
            if len(routes) <= SLICE:
                some = dict(routes)
                routes.clear()
            else:
                some = {}
                for _ in range(SLICE):
                    rkey, path = routes.popitem()
                    some[rkey] = path
            self._drop(some, with_ids)
            break
        else:
            return False
        return bool(self.stale or self.received)

    def refilter(self, import_filter: Filter) -> None:
        """Put a new import filter in force on everything received."""
        self.import_filter = import_filter
        groups: dict[int, tuple[Path, list[bytes]]] = {}
        for routes, with_ids in (
            (self.stale, self.stale_with_path_ids),
            (self.received, self.with_path_ids),
        ):
            for rkey, path in routes.items():
                _, key = self._split(rkey, with_ids)
                group = groups.get(id(path))
                if group is None:
                    groups[id(path)] = (path, [key])
                else:
                    group[1].append(key)
        for path, keys in groups.values():
            self._filter_in(keys, path)

    def filtered(self) -> list[tuple[bytes, Path]]:
        """What was received and is not in the table (``show route filtered``)."""
        found = []
        for rkey, path in self.received.items():
            path_id, key = self._split(rkey, self.with_path_ids)
            if not self._is_in(path_id, key):
                found.append((key, path))
        return found
