"""What one peer is told: the feed, changes, what was sent (Adj-RIB-Out).

Between two flushes announcements wait by attributes, withdrawals in one list that is sent first.
That order is wrong only for a network whose announcement waits already, so such a change closes
the window: what waits becomes messages, and a new window begins.  While the peer does not read,
only the names of changed networks are kept; they are looked up when it reads again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.bird.attribute_encoder import encode
from agents.bird.config import LimitAction
from agents.bird.filter_eval import Leaf, facts_of, finish, specialise
from agents.bird.outgoing import may_export, outgoing
from agents.bird.tracing import ExportTrace
from agents.bird.update import announcements, withdrawals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agents.bird.attributes import Attrs
    from agents.bird.channel import Channel
    from agents.bird.config import ChannelConfig
    from agents.bird.outgoing import Terms
    from agents.bird.rib import Path, Table
    from agents.bird.tracing import Trace

# Networks that one turn feeds before others get theirs: about 5 ms.
FEED_SLICE: Final = 20000


class BgpExporter:
    """One established session's sending side of one family."""

    def __init__(
        self,
        channel: Channel,
        config: ChannelConfig,
        terms: Terms,
        *,
        add_path: bool,
        send: Callable[[list[bytes]], None],
        on_change: Callable[[], None],
    ) -> None:
        """``send`` takes pieces of messages in order; ``channel`` is the peer's own.

        ``on_change`` is called when something begins to wait, for a flush or for work.
        """
        self.channel = channel
        self.config = config
        self.terms = terms
        self.wants_all_paths = add_path
        self._may_skip = add_path and terms.internal and not terms.rr_client
        self.skips_inside = self._may_skip
        self.sent: dict[bytes, Attrs] = {}
        self.congested = False
        # True until the speaker's own restart is over: nothing is told before.
        self.held = False
        self.limit_hit = False
        # Routes whose attributes no message can hold, since somebody last asked.
        self.unsendable = 0
        self.trace: ExportTrace | None = None
        self._send = send
        self._on_change = on_change
        self._table: Table = channel.table
        self._inside = (self._table.inside_updates, self._table.inside_withdraws)
        self._buckets: dict[Attrs, list[Sequence[bytes]]] = {}
        self._withdrawn: list[bytes] = []
        self._dirty: dict[tuple[bytes, Channel | None, int], None] = {}
        self._feed: list[bytes] = []
        self._feed_forced = False
        # True until the feed that waits has begun.
        self._feed_unread = False
        self._after_feed: list[bytes] = []

    def set_trace(self, trace: Trace | None) -> None:
        """Tell a listener what happens from now on, None for nobody."""
        self.count_skipped()
        # A listener wants to hear of what is refused, too.
        self.skips_inside = self._may_skip and trace is None
        self.trace = None
        if trace is not None:
            told = self._paths_told()
            self.trace = ExportTrace(trace, self._table.afi, told, self.wants_all_paths)
            self.trace.is_feeding = bool(self._feed or self._after_feed)

    def _paths_told(self) -> dict[bytes, Path]:
        """The routes behind what was sent."""
        if not self.wants_all_paths:
            return {key: path for key in self.sent if (path := self._table.best(key)) is not None}
        return {
            key: path
            for key in self.sent
            for path in self._table.paths(key[4:])
            if path.channel.tx_path_id(path.path_id).to_bytes(4, "big") == key[:4]
        }

    # Feeding

    def start_feed(self, *, forced: bool, before: bytes = b"", after: bytes = b"") -> None:
        """Tell the peer everything; ``forced`` also what it was told already.

        ``before`` and ``after`` are messages around the feed (BoRR, End-of-RIB, EoRR).
        """
        self.seal()
        if before:
            self._send([before])
        if self._feed:
            forced = forced or self._feed_forced
        self._feed = self._all_networks()
        if not forced:
            gone = [
                key
                for key in (self.sent if not self.wants_all_paths else ())
                if key not in self._table.routes
            ]
            self._feed += gone
        self._feed.reverse()
        self._feed_forced = forced
        self._feed_unread = bool(self._feed or after)
        if after:
            self._after_feed.append(after)
        if self.trace is not None:
            self.trace.feed_begins(self._feed_unread)
        self._on_change()

    def _all_networks(self) -> list[bytes]:
        """Those a peer may have to be told of; others are only counted."""
        table = self._table
        if not self.skips_inside or self.sent or table.outside_bgp:
            return list(table.routes)
        # In a full mesh nearly everything came from internal peers, and one session after the
        # other would look through it.
        found = table.not_bgp()
        stats = self.channel.stats
        stats.exp_updates_received += len(table.routes) - len(found)
        stats.exp_updates_rejected += len(table.routes) - len(found)
        return found

    def repeat(self, before: bytes, after: bytes) -> None:
        """The peer asks for everything again; asking before that has begun changes nothing.

        A repetition under way begins anew, within the same ``before`` and ``after``: requests that
        come faster than they can be answered must not fill the memory with answers.
        """
        if self._feed_unread and self._feed_forced:
            return
        if after and after in self._after_feed:
            before = after = b""
        self.start_feed(forced=True, before=before, after=after)

    def check_limit(self) -> None:
        """Set ``limit_hit`` if the limit is lower than what was told already."""
        limit = self.config.export_limit
        self.limit_hit = limit is not None and len(self.sent) > limit.count

    @property
    def busy(self) -> bool:
        """True while there is something to do that needs nobody's help."""
        return not (self.congested or self.held) and bool(
            self._feed or self._dirty or self._after_feed
        )

    def work(self) -> None:
        """Do a slice of what waits."""
        if self.held or self.congested:
            return
        if self._dirty:
            some = list(self._dirty)[:FEED_SLICE]
            for item in some:
                del self._dirty[item]
            self._catch_up(some)
        else:
            self._feed_unread = False
            some_keys = self._feed[-FEED_SLICE:]
            del self._feed[-FEED_SLICE:]
            some_keys.reverse()
            self._feed_keys(some_keys)
        if self._after_feed and not (self._feed or self._dirty):
            self.seal()
            self._send(self._after_feed)
            self._after_feed = []
        if self.trace is not None and not self._feed:
            self.trace.feed_ends()

    def count_skipped(self) -> None:
        """Put what was not even offered into the statistics, as BIRD counts it."""
        before, now = self._inside, (self._table.inside_updates, self._table.inside_withdraws)
        self._inside = now
        if self.skips_inside:
            stats = self.channel.stats
            stats.exp_updates_received += now[0] - before[0]
            stats.exp_updates_rejected += now[0] - before[0]
            stats.exp_withdraws_received += now[1] - before[1]

    def _feed_keys(self, keys: list[bytes]) -> None:
        groups: dict[int, tuple[Path | None, list[bytes]]] = {}
        if self.skips_inside and not self.sent:
            keys = self._outside(keys)
        for key in keys:
            paths = self._table.paths(key)
            chosen: Sequence[Path | None] = (
                paths if self.wants_all_paths else (paths[:1] or (None,))
            )
            for path in chosen:
                group = groups.get(id(path))
                if group is None:
                    groups[id(path)] = (path, [key])
                else:
                    group[1].append(key)
        for path, some in groups.values():
            if path is None:
                self._withdraw(some)
            elif self.wants_all_paths:
                head = path.channel.tx_path_id(path.path_id).to_bytes(4, "big")
                self._offer(some, path, head, forced=self._feed_forced)
            else:
                self._offer(some, path, b"", forced=self._feed_forced)

    def _outside(self, keys: list[bytes]) -> list[bytes]:
        """Leave out what came from internal peers alone: nearly everything of a full mesh."""
        routes = self._table.routes
        left = []
        for key in keys:
            entry = routes.get(key)
            if entry is None or isinstance(entry, tuple) or not entry.channel.is_inside:
                left.append(key)
        stats = self.channel.stats
        stats.exp_updates_received += len(keys) - len(left)
        stats.exp_updates_rejected += len(keys) - len(left)
        return left

    def _catch_up(self, items: list[tuple[bytes, Channel | None, int]]) -> None:
        for key, channel, path_id in items:
            if channel is None:
                self.best_changed((key,), self._table.best(key))
                continue
            path = self._table.find(key, channel, path_id)
            self.path_changed((key,), channel, path_id, path)

    # Changes

    def best_changed(
        self, keys: Sequence[bytes], path: Path | None, *, is_new: bool = False
    ) -> None:
        """As ``rib.Exporter``."""
        if self.congested or self.held:
            self._dirty.update(dict.fromkeys([(key, None, 0) for key in keys]))
            self._on_change()
        elif path is None:
            self.channel.stats.exp_withdraws_received += len(keys)
            self._withdraw(keys)
        else:
            # What is new in the table was not sent, unless something of before still waits.
            fresh = is_new and not (self._dirty or self._feed)
            self._offer(keys, path, b"", fresh=fresh)

    def path_changed(
        self, keys: Sequence[bytes], channel: Channel, path_id: int, path: Path | None
    ) -> None:
        """As ``rib.Exporter``."""
        if self.congested or self.held:
            self._dirty.update(dict.fromkeys([(key, channel, path_id) for key in keys]))
            self._on_change()
            return
        head = channel.tx_path_id(path_id).to_bytes(4, "big")
        if path is None:
            self.channel.stats.exp_withdraws_received += len(keys)
            self._withdraw([head + key for key in keys])
            return
        # An import filter may have split the update: look at what each network has.
        if all(self._has(key, path) for key in keys):
            self._offer(keys, path, head)
        else:
            for key in keys:
                mine = self._table.find(key, channel, path_id)
                if mine is None:
                    self._withdraw([head + key])
                else:
                    self._offer((key,), mine, head)

    def path_ids_waiting(self, channel: Channel) -> Iterable[int]:
        """As ``rib.Exporter``."""
        return (path_id for _, whose, path_id in self._dirty if whose is channel)

    def _has(self, key: bytes, path: Path) -> bool:
        entry = self._table.routes.get(key)
        return entry is path or (isinstance(entry, tuple) and path in entry)

    def _offer(
        self,
        keys: Sequence[bytes],
        path: Path,
        head: bytes,
        *,
        forced: bool = False,
        fresh: bool = False,
    ) -> None:
        stats = self.channel.stats
        stats.exp_updates_received += len(keys)
        if not may_export(path, self.channel, self.terms):
            self._refuse(keys, path, head, forced)
            return
        if len(keys) == 1:
            table = self._table
            answer = table.answers.of(self.config.export_filter, path, table.afi, keys[0])
            leaving = answer.leaving(self.terms, self.config)
            self._deliver(keys, path, leaving, head, forced, fresh)
            return
        outcome = specialise(self.config.export_filter, path.attrs, facts_of(path))
        if isinstance(outcome, Leaf):
            self._deliver(keys, path, self._leaving(outcome, path), head, forced, fresh)
            return
        groups: dict[int, tuple[Leaf, list[bytes]]] = {}
        for key in keys:
            leaf = finish(outcome, self._table.afi, key)
            group = groups.get(id(leaf))
            if group is None:
                groups[id(leaf)] = (leaf, [key])
            else:
                group[1].append(key)
        for leaf, some in groups.values():
            self._deliver(some, path, self._leaving(leaf, path), head, forced, fresh)

    def _leaving(self, leaf: Leaf, path: Path) -> Attrs | None:
        return outgoing(leaf, path, self.terms, self.config) if leaf.accept else None

    def _refuse(self, keys: Sequence[bytes], path: Path, head: bytes, forced: bool) -> None:
        """What the protocol itself does not let out."""
        self.channel.stats.exp_updates_rejected += len(keys)
        if self.trace is not None:
            self.trace.refused("rejected by protocol", keys, path, again=forced)
        self._withdraw([head + key for key in keys] if head else keys)

    def _deliver(
        self,
        keys: Sequence[bytes],
        path: Path,
        attrs: Attrs | None,
        head: bytes,
        forced: bool,
        fresh: bool,
    ) -> None:
        """Announce with these attributes; None: the filter refused."""
        if attrs is None and self.trace is not None:
            self.trace.refused("filtered out", keys, path, again=forced)
        if head:
            keys = [head + key for key in keys]
        if attrs is None:
            self.channel.stats.exp_updates_filtered += len(keys)
            self._withdraw(keys)
            return
        self._announce(keys, attrs, path, forced=forced, fresh=fresh)

    def _announce(
        self, keys: Sequence[bytes], attrs: Attrs, path: Path, *, forced: bool, fresh: bool
    ) -> None:
        sent = self.sent
        if not fresh and not sent.keys().isdisjoint(keys):
            if not forced:
                keys = [key for key in keys if sent.get(key) != attrs]
                if not keys:
                    return
            if self._buckets:
                self.seal()
        limit = self.config.export_limit
        if limit is not None and len(sent) + len(keys) > limit.count:
            new = [key for key in keys if key not in sent]
            room = max(0, limit.count - len(sent))
            if len(new) > room:
                self.limit_hit = True
                if limit.action is LimitAction.BLOCK:
                    keys = [key for key in keys if key in sent] + new[:room]
                    if not keys:
                        return
        self.channel.stats.exp_updates_accepted += len(keys)
        sent.update(dict.fromkeys(keys, attrs))
        if self.trace is not None:
            self.trace.announced(keys, path)
        self._on_change()
        bucket = self._buckets.get(attrs)
        if bucket is None:
            self._buckets[attrs] = [keys]
        else:
            bucket.append(keys)

    def _withdraw(self, keys: Sequence[bytes]) -> None:
        sent = self.sent
        if not sent:
            return
        gone = [key for key in keys if key in sent]
        if not gone:
            return
        self.channel.stats.exp_withdraws_accepted += len(gone)
        if self.trace is not None:
            self.trace.withdrawn(gone)
        for key in gone:
            del sent[key]
        if self._buckets:
            self.seal()
        self._withdrawn += gone
        self._on_change()

    def seal(self) -> None:
        """Turn what waits into messages."""
        if self._withdrawn:
            gone, self._withdrawn = self._withdrawn, []
            self._send(withdrawals(self._table.afi, gone, self.terms.limit))
        if self._buckets:
            buckets, self._buckets = self._buckets, {}
            afi, terms = self._table.afi, self.terms
            for attrs, lists in buckets.items():
                keys = lists[0] if len(lists) == 1 else [key for some in lists for key in some]
                block = encode(attrs, as4=terms.as4, next_hop=afi == 1)
                messages = announcements(afi, block, attrs.next_hop, keys, terms.limit)
                if not messages:
                    self.unsendable += len(keys)
                self._send(messages or withdrawals(afi, keys, terms.limit))
