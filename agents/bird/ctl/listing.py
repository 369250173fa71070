"""``show route``: which routes a command means, table by table, slice by slice (pure)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agents.bird.ctl import reply
from agents.bird.ctl.expression import holds
from agents.bird.ctl.reply import DONE, CommandError, Dialect, Line, final
from agents.bird.ctl.show_protocols import table_name
from agents.bird.ctl.show_routes import show_route
from agents.bird.filter_eval import Facts, evaluate
from agents.bird.filters import Source
from agents.bird.net import Afi, Net
from agents.bird.outgoing import may_export
from agents.bird.peer_host import Life
from agents.bird.snapshot import route_info

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agents.bird.ctl.command import ShowRoute
    from agents.bird.ctl.reply import Part
    from agents.bird.ctl.times import Times
    from agents.bird.export import BgpExporter
    from agents.bird.filters import Filter
    from agents.bird.rib import Path, Table
    from agents.bird.snapshot import RouteInfo
    from agents.bird.speaker import Speaker

# Tables up to here are shown in order of their networks; sorting a bigger one would hold the
# speaker up, so it is shown in the table's own order (BIRD's is always that of its hash).
SORT_LIMIT: Final = 20_000
# Networks looked at between two pauses: a few milliseconds.
SLICE: Final = 200
COUNT_SLICE: Final = 10_000


class _Count:
    """Of one table."""

    def __init__(self) -> None:
        self.shown = 0
        self.routes = 0
        self.networks = 0

    @property
    def text(self) -> str:
        return f"{self.shown} of {self.routes} routes for {self.networks} networks"


class Listing:
    """One ``show route``."""

    def __init__(self, speaker: Speaker, command: ShowRoute, times: Times) -> None:
        self._speaker = speaker
        self._command = command
        self._times = times
        self._refused: dict[bytes, list[Path]] = {}
        self._sources = (
            speaker.local.kernel.sources()
            if command.all and speaker.local.kernel is not None
            else {}
        )

    def lines(self) -> Iterator[Part]:
        """The reply; CommandError if there is nothing that could be shown."""
        command, dialect = self._command, self._times.dialect
        self._check_export()
        counts: list[tuple[Afi, _Count]] = []
        for afi in self._afis():
            count = _Count()
            yield from self._table(afi, count, again=any(c.shown for _, c in counts))
            counts.append((afi, count))
        if command.net is not None and not self._found(counts):
            word = "in table" if dialect is Dialect.BIRD1 else "found"
            raise CommandError(reply.NOT_FOUND, f"Network not {word}")
        if not command.stats:
            yield DONE
        elif dialect is Dialect.BIRD1:
            yield final(reply.ROUTE_COUNT, counts[0][1].text)
        else:
            yield from self._totals(counts)

    def _found(self, counts: Sequence[tuple[Afi, _Count]]) -> bool:
        if self._times.dialect is Dialect.BIRD1:
            return any(count.networks for _, count in counts)
        return any(count.shown for _, count in counts)

    def _totals(self, counts: Sequence[tuple[Afi, _Count]]) -> Iterator[Line]:
        if self._command.stats == "count":
            for afi, count in counts:
                table = table_name(afi, Dialect.BIRD2)
                yield Line(reply.ROUTE, f"{count.text} in table {table}")
        if len(counts) == 1:
            yield DONE
            return
        total = _Count()
        for _, count in counts:
            total.shown += count.shown
            total.routes += count.routes
            total.networks += count.networks
        yield final(reply.ROUTE_COUNT, f"Total: {total.text} in {len(counts)} tables")

    def _afis(self) -> list[Afi]:
        command, dialect = self._command, self._times.dialect
        if dialect is Dialect.BIRD1:
            return [Afi.IPV4]
        if command.tables:
            return [a for a in (Afi.IPV4, Afi.IPV6) if table_name(a, dialect) in command.tables]
        if command.net is not None:
            return [command.net.afi]
        name = command.channel or command.protocol
        peer = self._speaker.peers.get(name)
        if peer is not None:
            return list(peer.exchange.channels)
        return [Afi.IPV4] if name else [Afi.IPV4, Afi.IPV6]

    def _check_export(self) -> None:
        """Nothing is exported to a session that is not there."""
        command = self._command
        peer = self._speaker.peers.get(command.channel)
        if peer is None or peer.life is Life.UP:
            return
        if self._times.dialect is Dialect.BIRD1:
            raise CommandError(8005, "Protocol is down")
        raise CommandError(reply.SYNTAX, "No valid tables")

    # -- one table ---------------------------------------------------------------------------------

    def _table(self, afi: Afi, count: _Count, *, again: bool) -> Iterator[Part]:
        command, dialect = self._command, self._times.dialect
        headed = dialect is Dialect.BIRD1 or command.stats == "count"
        heading = Line(reply.ROUTE, f"Table {table_name(afi, dialect)}:")
        if command.stats == "stats" and not headed:
            yield heading
            headed = True
        if self._counts_only:
            yield from self._count(self._speaker.tables[afi], count)
            return
        for at, key in enumerate(self._keys(self._speaker.tables[afi])):
            if at % SLICE == SLICE - 1:
                yield None
            routes = self._routes(afi, key, count)
            if command.stats == "count":
                continue
            for number, route in enumerate(routes):
                if not headed:
                    if again:
                        yield Line(reply.ROUTE, "")
                    yield heading
                    headed = True
                yield from show_route(
                    route,
                    self._times,
                    first=number == 0,
                    detail=command.all,
                    kernel_source=self._sources.get(key, ""),
                )
        if command.stats == "stats" and dialect is Dialect.BIRD2:
            yield Line(reply.ROUTE, f"{count.text} in table {table_name(afi, dialect)}")
            yield Line(reply.ROUTE, "")

    @property
    def _counts_only(self) -> bool:
        """True if no route need be looked at."""
        c = self._command
        return c.stats == "count" and not (
            c.filtered or c.channel or c.protocol or c.where is not None or c.net is not None
        )

    def _count(self, table: Table, count: _Count) -> Iterator[Part]:
        for at, key in enumerate(list(table.routes)):
            if at % COUNT_SLICE == COUNT_SLICE - 1:
                yield None
            routes = len(table.paths(key))
            count.routes += routes
            count.networks += routes > 0
            count.shown += min(routes, 1) if self._command.primary else routes

    def _keys(self, table: Table) -> Sequence[bytes]:
        net = self._command.net
        if net is not None:
            if net.afi is not table.afi:
                return ()
            if not self._command.longest:
                return (net.key,)
            return self._longest(table, net)
        keys = list(table.routes)
        if self._command.filtered:
            self._refused = self._all_refused(table.afi)
            keys = list(dict.fromkeys((*keys, *self._refused)))
        if len(keys) <= SORT_LIMIT:
            keys.sort(key=lambda key: Net.from_key(table.afi, key))
        return keys

    def _all_refused(self, afi: Afi) -> dict[bytes, list[Path]]:
        """What the import filters of all sessions refused, by network."""
        found: dict[bytes, list[Path]] = {}
        for peer in self._speaker.peers.values():
            channel = peer.exchange.channels.get(afi)
            for key, path in channel.filtered() if channel is not None else ():
                found.setdefault(key, []).append(path)
        return found

    def _longest(self, table: Table, net: Net) -> Sequence[bytes]:
        for length in range(net.length, -1, -1):
            shift = net.afi.bits - length
            key = Net(net.afi, net.network >> shift << shift, length).key
            if key in table.routes:
                return (key,)
        return ()

    def _routes(self, afi: Afi, key: bytes, count: _Count) -> list[RouteInfo]:
        """The routes of a network that the command means, counted."""
        command, net = self._command, Net.from_key(afi, key)
        paths = self._speaker.tables[afi].paths(key)
        count.networks += bool(paths)
        count.routes += len(paths)
        if command.filtered:
            found = self._filtered(key, net, alone=not paths)
        elif command.channel:
            found = self._exported(afi, net, paths)
        else:
            some = paths[:1] if command.primary else paths
            found = [route_info(net, path, selected=at == 0) for at, path in enumerate(some)]
        if command.protocol:
            found = [route for route in found if route.protocol == command.protocol]
        if command.where is not None:
            where = command.where
            found = [route for route in found if holds(where, route)]
        count.shown += len(found)
        return found

    def _filtered(self, key: bytes, net: Net, *, alone: bool) -> list[RouteInfo]:
        # BIRD keeps them in the table, where the first looks like the best.
        refused = self._refused.get(key, ())
        return [
            route_info(net, path, selected=alone and at == 0) for at, path in enumerate(refused)
        ]

    # -- export ------------------------------------------------------------------------------------

    def _exported(self, afi: Afi, net: Net, paths: Sequence[Path]) -> list[RouteInfo]:
        """What a protocol is told, would be told, or is not told of a network."""
        speaker, name = self._speaker, self._command.channel
        peer = speaker.peers.get(name)
        if peer is not None:
            exporter = peer.exchange.exporters.get(afi)
            if exporter is None:
                return []
            return self._offered(net, paths, exporter)
        kernel = speaker.local.kernel
        if kernel is None or kernel.config.name != name or afi is not Afi.IPV4:
            return []
        some = paths[:1]
        if not some or some[0].channel.source is Source.DEVICE or some[0].channel is kernel.channel:
            return []
        return self._judged(net, paths, some, kernel.config.export_filter)

    def _offered(self, net: Net, paths: Sequence[Path], exporter: BgpExporter) -> list[RouteInfo]:
        some = paths if exporter.wants_all_paths else paths[:1]
        offered = [path for path in some if may_export(path, exporter.channel, exporter.terms)]
        return self._judged(net, paths, offered, exporter.config.export_filter)

    def _judged(
        self, net: Net, paths: Sequence[Path], offered: Sequence[Path], export_filter: Filter
    ) -> list[RouteInfo]:
        found = []
        for path in offered:
            attrs = path.attrs
            if self._command.export != "preexport":
                dev = path.ways[0].dev if path.ways else ""
                facts = Facts(path.channel.source, dev, path.channel.name)
                leaf = evaluate(export_filter, net, path.attrs, facts)
                if leaf.accept is (self._command.export == "noexport"):
                    continue
                attrs = leaf.attrs
            info = route_info(net, path, selected=path is paths[0])
            found.append(replace(info, attrs=attrs))
        return found
