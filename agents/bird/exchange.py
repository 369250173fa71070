"""The routes a neighbour and we tell each other, over all the sessions with it.

What it told stays in its channels when a session ends, as stale while it restarts; how it is told
ours begins anew with each session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.bird.config import GracefulRestart
from agents.bird.events import ProtocolLogged
from agents.bird.export import BgpExporter
from agents.bird.intake import Intake
from agents.bird.messages import (
    REFRESH_BEGIN,
    REFRESH_END,
    REFRESH_REQUEST,
    ROUTE_REFRESH,
    RouteRefresh,
    message,
)
from agents.bird.net import SAFI_UNICAST, Afi
from agents.bird.restart import NeighborRestart
from agents.bird.terms import decode_context, export_terms, loop_checks, make_channel
from agents.bird.update import end_of_rib

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.bird.capabilities import Negotiated
    from agents.bird.channel import Channel
    from agents.bird.config import BgpConfig, Limit
    from agents.bird.connection import Connection
    from agents.bird.peer_host import PeerHost
    from agents.bird.tracing import Trace


class RouteExchange:
    """A BGP protocol's channels and, while there is a session, its intake and exporters."""

    def __init__(self, config: BgpConfig, host: PeerHost, on_change: Callable[[], None]) -> None:
        """``on_change`` is called when something begins to wait, for a flush or for work."""
        self.channels: dict[Afi, Channel] = {
            afi: make_channel(config, host, afi) for afi in Afi if config.channel(afi) is not None
        }
        self.exporters: dict[Afi, BgpExporter] = {}
        self.end_of_rib_seen: dict[Afi, None] = {}
        self.bad_updates = 0
        self.neighbor_restart = NeighborRestart(self.channels, self._log)
        self._config = config
        self._host = host
        self._on_change = on_change
        self._intake: Intake | None = None
        self._trace: Trace | None = None
        # The limits of this session that were named.
        self._reached: dict[tuple[Afi, str, Limit], None] = {}
        # The session's connection and what was negotiated on it.
        self._connection: Connection | None = None

    def _log(self, text: str) -> None:
        self._host.emit(ProtocolLogged(self._config.name, text))

    @property
    def _terms(self) -> Negotiated | None:
        return self._connection.terms if self._connection is not None else None

    def set_trace(self, trace: Trace | None) -> None:
        """Tell a listener what happens from now on, None for nobody."""
        self._trace = trace
        for channel in self.channels.values():
            channel.trace = trace
        for exporter in self.exporters.values():
            exporter.set_trace(trace)

    # Sessions

    def begin(self, connection: Connection, now: float) -> None:
        """A session is up: read what the peer repeats, tell it everything."""
        terms, opened = connection.terms, connection.peer_open
        assert terms is not None
        assert opened is not None
        config, host = self._config, self._host
        self._connection = connection
        self._reached.clear()
        self.end_of_rib_seen = {}
        for afi, channel in self.channels.items():
            channel.router_id = opened.router_id
            channel.with_path_ids = afi in terms.add_path_rx
        self.neighbor_restart.returned(opened, terms.families, now)
        self._intake = Intake(
            config,
            terms,
            self.channels,
            decode_context(config, host, as4=terms.as4),
            loop_checks(config, host),
            on_end_of_rib=self._end_of_rib,
            on_bad=self._bad_update,
        )
        for afi in terms.families:
            self._start_export(afi, connection)
        # A peer that cannot restart sends no End-of-RIB to wait for.
        host.recovery_moved()

    def _start_export(self, afi: Afi, connection: Connection) -> None:
        config, host = self._config, self._host
        settings = config.channel(afi)
        assert settings is not None
        assert connection.terms is not None
        exporter = BgpExporter(
            self.channels[afi],
            settings,
            export_terms(config, host, afi, settings, connection),
            add_path=afi in connection.terms.add_path_tx,
            send=connection.send_encoded,
            on_change=self._on_change,
        )
        exporter.held = host.recovering
        self.exporters[afi] = exporter
        host.tables[afi].exporters.append(exporter)
        mark = config.graceful_restart is not GracefulRestart.OFF
        exporter.start_feed(forced=False, after=end_of_rib(afi) if mark else b"")
        if self._trace is not None:
            exporter.set_trace(self._trace)
            if not exporter.busy:
                self._trace.fed(afi)

    def end(self) -> None:
        """The session is over; what becomes of the peer's routes is for the caller to say."""
        self._connection = None
        self._intake = None
        for afi, exporter in self.exporters.items():
            exporter.count_skipped()
            self._host.tables[afi].exporters.remove(exporter)
        self.exporters = {}

    # From the peer

    def receive(self, body: bytes, now: float) -> None:
        """Take an UPDATE; BgpPeerError if it is beyond repair."""
        assert self._intake is not None
        self._intake.receive(body, now)

    def _bad_update(self, why: str) -> None:
        self.bad_updates += 1
        self._log(f"Malformed UPDATE, routes treated as withdrawn: {why}")

    def _end_of_rib(self, afi: Afi, now: float) -> None:
        self.end_of_rib_seen[afi] = None
        if self.neighbor_restart.repeated(self.channels[afi]):
            self._log("Neighbor graceful restart done")
        self._host.recovery_moved()

    def refresh(self, request: RouteRefresh, now: float) -> None:
        """Repeat everything, or note the beginning and end of the peer's repetition (RFC 7313)."""
        terms = self._terms
        assert terms is not None
        if request.safi != SAFI_UNICAST or request.afi not in (1, 2):
            return
        afi = Afi(request.afi)
        exporter = self.exporters.get(afi)
        if exporter is None:
            return
        channel = self.channels[afi]
        if request.subtype == REFRESH_REQUEST:
            self._repeat(afi, exporter)
        elif request.subtype == REFRESH_BEGIN and terms.enhanced_refresh:
            self.neighbor_restart.refresh_begins(channel, now)
        elif request.subtype == REFRESH_END and terms.enhanced_refresh:
            self.neighbor_restart.repeated(channel)

    def _repeat(self, afi: Afi, exporter: BgpExporter) -> None:
        """Tell everything again, between its marks where the peer knows those (RFC 7313)."""
        before = after = b""
        terms = self._terms
        if terms is not None and terms.enhanced_refresh:
            before = message(ROUTE_REFRESH, RouteRefresh(afi, SAFI_UNICAST, REFRESH_BEGIN).body())
            after = message(ROUTE_REFRESH, RouteRefresh(afi, SAFI_UNICAST, REFRESH_END).body())
        exporter.repeat(before, after)

    # Work

    @property
    def is_empty(self) -> bool:
        """True if nothing of the peer is left to flush."""
        return not any(c.received or c.stale for c in self.channels.values())

    def flush_some(self) -> bool:
        """Take a slice of the peer's routes away; False if there was none left."""
        return any(channel.flush_some() for channel in self.channels.values())

    @property
    def busy(self) -> bool:
        """True while ``feed`` has something to do."""
        return any(exporter.busy for exporter in self.exporters.values())

    def feed(self) -> None:
        """Tell a slice of what waits."""
        for exporter in self.exporters.values():
            if exporter.busy:
                exporter.work()

    def seal(self) -> list[tuple[str, Limit]]:
        """Turn waiting routes into messages; the limits that were reached, each with its name.

        One that lets the session stay is named once.
        """
        reached = []
        for afi, exporter in self.exporters.items():
            exporter.seal()
            if exporter.unsendable:
                count, exporter.unsendable = exporter.unsendable, 0
                self._log(f"Attribute list too long, {count} routes are withdrawn instead")
            if exporter.limit_hit:
                exporter.limit_hit = False
                if exporter.config.export_limit is not None:
                    reached.append((afi, "export", exporter.config.export_limit))
        for afi, channel in self.channels.items():
            if channel.limit_hit is not None:
                name = "import" if channel.limit_hit is channel.import_limit else "receive"
                reached.append((afi, name, channel.limit_hit))
                channel.limit_hit = None
        new = [each for each in reached if each not in self._reached]
        self._reached.update(dict.fromkeys(new))
        return [(name, limit) for _, name, limit in new]

    # Reload and reconfiguration

    def ask_again(self) -> bool:
        """Ask the peer to repeat everything; False if it cannot."""
        connection, terms = self._connection, self._terms
        if connection is None or terms is None or not terms.route_refresh:
            return False
        for afi in terms.families:
            connection.send(ROUTE_REFRESH, RouteRefresh(afi, SAFI_UNICAST).body())
        return True

    def tell_again(self) -> bool:
        """Repeat everything to the peer."""
        for afi, exporter in self.exporters.items():
            self._repeat(afi, exporter)
        return bool(self.exporters)

    def reconfigure(self, new: BgpConfig) -> None:
        """Take what of a changed configuration is no matter of the session."""
        old, self._config = self._config, new
        for afi, channel in self.channels.items():
            before, after = old.channel(afi), new.channel(afi)
            assert before is not None
            assert after is not None
            channel.receive_limit = after.receive_limit
            channel.import_limit = after.import_limit
            channel.check_limits()
            exporter = self.exporters.get(afi)
            if exporter is not None:
                exporter.config = after
                exporter.check_limit()
            if before.import_filter != after.import_filter:
                channel.refilter(after.import_filter)
            told = (before.export_filter, before.next_hop)
            if exporter is not None and told != (after.export_filter, after.next_hop):
                exporter.start_feed(forced=False)
