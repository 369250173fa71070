"""One BGP protocol instance: its life, its two connections, restarts of its neighbour.

Theory of operation (BIRD's proto/bgp/bgp.c).  A protocol that is started waits out an error's
penalty ("error wait"), then connects and accepts.  Whichever of its two connections becomes
Established is the session; the other one, if any, ends by collision.  When the session ends its
routes are flushed, in slices, and the protocol starts again; or, if the peer can restart gracefully
and said no farewell, the routes stay as stale until it has repeated them, for at most its restart
time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.bird.attributes import AS_TRANS
from agents.bird.capabilities import local_capabilities
from agents.bird.config import GracefulRestart, LimitAction
from agents.bird.errors import (
    CEASE,
    CEASE_ADMIN_RESET,
    CEASE_ADMIN_SHUTDOWN,
    CEASE_BFD_DOWN,
    CEASE_COLLISION,
    CEASE_CONFIG_CHANGE,
    CEASE_DECONFIGURED,
    CEASE_HARD_RESET,
    CEASE_MAX_PREFIXES,
    CEASE_REJECTED,
    OPEN_ERROR,
    BgpPeerError,
    error_text,
)
from agents.bird.events import (
    BfdUnwanted,
    BfdWanted,
    Dial,
    HangUp,
    ProtocolLogged,
    SessionDown,
    SessionUp,
    StateChanged,
)
from agents.bird.export import BgpExporter
from agents.bird.fsm import RANK, Connection, ConnectionEnd, State
from agents.bird.intake import Intake
from agents.bird.messages import (
    OPEN,
    REFRESH_BEGIN,
    REFRESH_END,
    REFRESH_REQUEST,
    ROUTE_REFRESH,
    Notification,
    Open,
    RouteRefresh,
    message,
    shutdown_data,
)
from agents.bird.net import SAFI_UNICAST, Afi
from agents.bird.peer_host import Life, PeerHost
from agents.bird.restart import NeighborRestart
from agents.bird.terms import (
    decode_context,
    export_terms,
    lasting,
    loop_checks,
    make_channel,
    source_address,
    ttl,
)
from agents.bird.update import end_of_rib

if TYPE_CHECKING:
    from agents.bird.channel import Channel
    from agents.bird.config import BgpConfig, Limit

# A second connection that came so soon after the session is a collision of two attempts, not a
# restart of the peer: who is Established dials no more.  Real stacks need milliseconds, a machine
# that starts a hundred nodes seconds.  BIRD has no such window and flaps.
COLLISION_WINDOW_S: Final = 3.0
# The wait before another attempt where none is configured, as BIRD has it: a peer that refuses at
# once would be dialled without a pause.
MIN_CONNECT_DELAY_S: Final = 1.0


class Peer:
    """A protocol of kind BGP."""

    def __init__(self, config: BgpConfig, host: PeerHost, now: float) -> None:
        self.config = config
        self.host = host
        self.life = Life.DOWN
        self.since = now
        self.enabled = not config.disabled
        self.removed = False
        # The deadline the speaker knows of.
        self.noted_timer: float | None = None
        self.startup_delay_s = 0.0
        self.wait_until: float | None = None
        self.last_error = ("", "")
        self.outgoing: Connection | None = None
        self.incoming: Connection | None = None
        self.session: Connection | None = None
        self.intake: Intake | None = None
        self.established_at = 0.0
        self.end_of_rib_seen: dict[Afi, None] = {}
        self.exporters: dict[Afi, BgpExporter] = {}
        self.channels: dict[Afi, Channel] = {}
        self.bad_updates = 0
        self._last_error_at: float | None = None
        self._first_start = True
        self._watched = False
        for afi in Afi:
            channel_config = config.channel(afi)
            if channel_config is not None:
                self.channels[afi] = make_channel(config, host, afi)
        self.neighbor_restart = NeighborRestart(self.channels, self._log)

    @property
    def source_address(self) -> int:
        """Our end's emulated address."""
        return source_address(self.config, self.host)

    @property
    def ttl(self) -> tuple[int, int]:
        """TTL to send with, least TTL to accept or 0."""
        return ttl(self.config)

    @property
    def state(self) -> State:
        """The further of the connections' states."""
        states = [c.state for c in self._connections()]
        return max(states, key=RANK.__getitem__, default=State.IDLE)

    def _connections(self) -> list[Connection]:
        return [c for c in (self.session, self.outgoing, self.incoming) if c is not None]

    # Life

    def start(self, now: float) -> None:
        """Begin, after the penalty of an earlier error."""
        if not self.enabled or self.life is not Life.DOWN:
            return
        timers = self.config.timers
        if self._last_error_at is not None and now - self._last_error_at >= timers.error_forget_s:
            self.startup_delay_s = 0.0
        self._live(Life.START, now)
        if self.startup_delay_s:
            self.wait_until = now + self._jitter(self.startup_delay_s)
            self._log(f"Startup delayed by {self.startup_delay_s:g} seconds due to errors")
        else:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self.wait_until = None
        if self.config.passive:
            return
        delay: float | None = self.config.timers.connect_delay_s
        if self._first_start and self.config.timers.first_delay_s is not None:
            delay = self.config.timers.first_delay_s
        self._first_start = False
        self._activate(now, delay or None)

    def _activate(self, now: float, delay: float | None) -> None:
        connection = Connection(
            self.host.register(self), self, self.host.rng, outgoing=True, now=now
        )
        self.outgoing = connection
        connection.start(delay, now=now)

    def stop(self, now: float, subcode: int, error: tuple[str, str], text: str = "") -> None:
        """End all connections with a Cease; ``error`` is what ``show protocols`` says then."""
        data = shutdown_data(text) if subcode in (CEASE_ADMIN_SHUTDOWN, CEASE_ADMIN_RESET) else b""
        notification = Notification(CEASE, subcode, data)
        self.wait_until = None
        self.last_error = error
        for connection in self._connections():
            farewell = notification
            if connection.terms is not None and connection.terms.notification_restart:
                # With RFC 8538 only a hard reset ends the peer's patience.
                farewell = Notification(CEASE, CEASE_HARD_RESET, bytes((CEASE, subcode)) + data)
            connection.stop(farewell, now=now)
        self.neighbor_restart.cancel()
        self.last_error = error
        if self.life is not Life.DOWN:
            self._live(Life.FLUSH, now)

    def disable(self, now: float, text: str = "") -> None:
        """``disable``: until ``enable``."""
        self.enabled = False
        self.stop(now, CEASE_ADMIN_SHUTDOWN, ("", ""), text or self.config.shutdown_message)

    def enable(self, now: float) -> None:
        """``enable``."""
        self.enabled = True
        self.startup_delay_s = 0.0
        self.start(now)

    def restart(self, now: float) -> None:
        """``restart``."""
        self.startup_delay_s = 0.0
        self.stop(now, CEASE_ADMIN_RESET, ("", ""))

    def remove(self, now: float, *, changed: bool = False) -> None:
        """The protocol left the configuration, or comes back as another."""
        self.removed = True
        self.enabled = False
        self.stop(now, CEASE_CONFIG_CHANGE if changed else CEASE_DECONFIGURED, ("", ""))

    def bfd_down(self, now: float) -> None:
        """The neighbour stopped answering BFD."""
        if self.session is None:
            return
        options = self.config.bfd
        if options is not None and options.graceful and self._can_restart():
            self.session.lost("BFD session down", now=now)
            self.last_error = ("Error: ", "BFD session down")
            return
        self.stop(now, CEASE_BFD_DOWN, ("Error: ", "BFD session down"))

    def hang_up_silently(self, now: float) -> None:
        """Close without a word, so that peers keep our routes (``graceful restart``)."""
        for connection in self._connections():
            connection.stop(None, now=now)

    def _live(self, life: Life, now: float) -> None:
        if life is not self.life:
            self.life = life
            self.since = now

    def _jitter(self, seconds: float) -> float:
        return seconds * (1.0 - 0.25 * self.host.rng.random())

    def _touch(self) -> None:
        self.host.touch(self)

    def _log(self, text: str) -> None:
        self.host.emit(ProtocolLogged(self.config.name, text))

    # Time and work

    def get_timer(self) -> float | None:
        """When ``handle_timer`` is due."""
        deadlines = [
            at
            for at in (
                self.wait_until,
                self.neighbor_restart.until,
                self.neighbor_restart.stale_until,
            )
            if at is not None
        ]
        for connection in self._connections():
            at = connection.get_timer()
            if at is not None:
                deadlines.append(at)
        return min(deadlines) if deadlines else None

    def handle_timer(self, now: float) -> None:
        """Expire what is due."""
        if self.wait_until is not None and now >= self.wait_until:
            self._begin(now)
        self.neighbor_restart.handle_timer(now)
        for connection in self._connections():
            connection.handle_timer(now=now)

    def settle(self, now: float) -> None:
        """Decide what follows from the last input (bgp_decision); called after each."""
        if (
            self.life is Life.FLUSH
            and not self._connections()
            and not any(c.received or c.stale for c in self.channels.values())
        ):
            self._flushed(now)
        if (
            self.life is Life.START
            and self.wait_until is None
            and self.outgoing is None
            and not self.config.passive
            and (self.incoming is None or self.incoming.state is not State.OPEN_CONFIRM)
        ):
            self._activate(now, self.config.timers.connect_delay_s or MIN_CONNECT_DELAY_S)

    def _flushed(self, now: float) -> None:
        self._live(Life.DOWN, now)
        self.start(now)

    @property
    def busy(self) -> bool:
        """True while ``work`` has something to do."""
        return self.life is Life.FLUSH or any(e.busy for e in self.exporters.values())

    def work(self, now: float) -> None:
        """Do a slice: flush, feed."""
        if self.life is Life.FLUSH:
            for channel in self.channels.values():
                if channel.flush_some():
                    return
            self.settle(now)
            return
        for exporter in self.exporters.values():
            if exporter.busy:
                exporter.work()
        self.flush_output()

    def flush_output(self) -> None:
        """Turn waiting routes into messages, check limits."""
        for exporter in self.exporters.values():
            exporter.seal()
            if exporter.limit_hit:
                exporter.limit_hit = False
                if exporter.config.export_limit is not None:
                    self._limit(exporter.config.export_limit)
        for channel in self.channels.values():
            if channel.limit_hit is not None:
                limit, channel.limit_hit = channel.limit_hit, None
                self._limit(limit)

    def _limit(self, limit: Limit) -> None:
        self._log(f"Route limit ({limit.count}) reached, action {limit.action}")
        now = self.host.now
        error = ("Automatic shutdown: ", "Route limit exceeded")
        if limit.action is LimitAction.RESTART:
            self._penalty(now)
            self.stop(now, CEASE_MAX_PREFIXES, error)
        elif limit.action is LimitAction.DISABLE:
            self.enabled = False
            self.stop(now, CEASE_MAX_PREFIXES, error)

    # Connections, from the shell

    def accept(self, now: float) -> Connection | None:
        """An incoming connection of this neighbour; None to refuse it."""
        if (
            self.life not in (Life.START, Life.UP)
            or self.wait_until is not None
            or self.incoming is not None
        ):
            return None
        connection = Connection(
            self.host.register(self), self, self.host.rng, outgoing=False, now=now
        )
        self.incoming = connection
        connection.connected(now=now)
        return connection

    # ConnectionOwner

    def open_to_send(self, connection: Connection) -> Open:
        """Our OPEN."""
        config = self.config
        capabilities = local_capabilities(
            config, restarting=self.host.recovering, preserved=self.host.preserved
        )
        connection.is_tapped = self.host.tap is not None
        asn = config.local_as if config.local_as <= 0xFFFF else AS_TRANS
        return Open(asn, config.timers.hold_s, self.host.router_id, capabilities)

    def dial(self, connection: Connection, now: float) -> None:
        """Ask the shell to connect."""
        config = self.config
        ttl, min_ttl = self.ttl
        self.host.emit(
            Dial(
                connection.number,
                config.neighbor,
                config.neighbor_port,
                self.source_address,
                ttl,
                min_ttl,
                config.password,
            )
        )

    def hang_up(self, connection: Connection) -> None:
        """Ask the shell to close."""
        self.host.emit(HangUp(connection.number))

    def open_received(self, connection: Connection, opened: Open, now: float) -> None:
        """Router id and collisions (RFC 4271 §6.8, RFC 6286)."""
        if opened.router_id == self.host.router_id and self.config.internal:
            raise BgpPeerError(OPEN_ERROR, 3, opened.router_id.to_bytes(4, "big"))
        session = self.session
        if session is not None and session is not connection:
            restart = opened.capabilities.restart
            is_restart = self._can_restart() and (
                (restart is not None and restart.restarting)
                or connection.started_at - self.established_at >= COLLISION_WINDOW_S
            )
            if not is_restart:
                raise BgpPeerError(CEASE, CEASE_COLLISION)
            session.lost("Graceful restart", now=now)
            self.last_error = ("Error: ", "Graceful restart")
            return
        other = self.incoming if connection.outgoing else self.outgoing
        if other is None:
            return
        if other.state in (State.CONNECT, State.ACTIVE):
            other.stop(None, now=now)
        elif other.state is State.OPEN_CONFIRM:
            ours, theirs = self.host.router_id, opened.router_id
            we_dominate = ours > theirs or (
                ours == theirs and self.config.local_as > self.config.peer_as
            )
            if we_dominate == connection.outgoing:
                other.fail(BgpPeerError(CEASE, CEASE_COLLISION), now=now)
            else:
                raise BgpPeerError(CEASE, CEASE_COLLISION)

    def established(self, connection: Connection, now: float) -> None:
        """The session is up."""
        assert connection.terms is not None
        assert connection.peer_open is not None
        assert connection.local_open is not None
        self.session = connection
        other = self.incoming if connection.outgoing else self.outgoing
        if other is not None:
            other.stop(Notification(CEASE, CEASE_COLLISION), now=now)
        self.outgoing = self.incoming = None
        self.established_at = now
        self._live(Life.UP, now)
        self.last_error = ("", "")
        self.end_of_rib_seen = {}
        terms, opened = connection.terms, connection.peer_open
        for afi, channel in self.channels.items():
            channel.router_id = opened.router_id
            channel.with_path_ids = afi in terms.add_path_rx
        self.neighbor_restart.returned(opened, terms.families, now)
        self.intake = Intake(
            self.config,
            terms,
            self.channels,
            decode_context(self.config, self.host, as4=terms.as4),
            loop_checks(self.config, self.host),
            on_end_of_rib=self._end_of_rib,
            on_bad=self._bad_update,
        )
        self.host.emit(
            SessionUp(
                self.config.name,
                connection.number,
                message(OPEN, connection.local_open.body()),
                message(OPEN, opened.body()),
            )
        )
        for afi in terms.families:
            self._start_export(afi, connection)
        # A peer that cannot restart sends no End-of-RIB to wait for.
        self.host.recovery_moved()
        if self.config.bfd is not None:
            self._watched = True
            self.host.emit(
                BfdWanted(
                    self.config.name,
                    self.config.neighbor,
                    self.source_address,
                    self.config.multihop > 0,
                    self.config.bfd,
                )
            )

    def _start_export(self, afi: Afi, connection: Connection) -> None:
        settings = self.config.channel(afi)
        assert settings is not None
        assert connection.terms is not None
        exporter = BgpExporter(
            self.channels[afi],
            settings,
            export_terms(self.config, self.host, afi, settings, connection),
            add_path=afi in connection.terms.add_path_tx,
            send=connection.send_encoded,
            on_change=self._touch,
        )
        exporter.held = self.host.recovering
        self.exporters[afi] = exporter
        self.host.tables[afi].exporters.append(exporter)
        mark = self.config.graceful_restart is not GracefulRestart.OFF
        exporter.start_feed(forced=False, after=end_of_rib(afi) if mark else b"")

    def update_received(self, connection: Connection, body: bytes, now: float) -> None:
        """Pass an UPDATE on."""
        assert self.intake is not None
        self.intake.receive(body, now)

    def _bad_update(self, why: str) -> None:
        self.bad_updates += 1
        self._log(f"Malformed UPDATE, routes treated as withdrawn: {why}")

    def _end_of_rib(self, afi: Afi, now: float) -> None:
        self.end_of_rib_seen[afi] = None
        if self.neighbor_restart.repeated(self.channels[afi]):
            self._log("Neighbor graceful restart done")
        self.host.recovery_moved()

    def refresh_received(self, connection: Connection, refresh: RouteRefresh, now: float) -> None:
        """Repeat everything, or note the beginning and end of the peer's repetition (RFC 7313)."""
        assert connection.terms is not None
        if refresh.safi != SAFI_UNICAST or refresh.afi not in (1, 2):
            return
        afi = Afi(refresh.afi)
        exporter = self.exporters.get(afi)
        if exporter is None:
            return
        channel = self.channels[afi]
        if refresh.subtype == REFRESH_REQUEST:
            before = after = b""
            if connection.terms.enhanced_refresh:
                before = message(
                    ROUTE_REFRESH, RouteRefresh(afi, SAFI_UNICAST, REFRESH_BEGIN).body()
                )
                after = message(ROUTE_REFRESH, RouteRefresh(afi, SAFI_UNICAST, REFRESH_END).body())
            exporter.repeat(before, after)
        elif refresh.subtype == REFRESH_BEGIN and connection.terms.enhanced_refresh:
            self.neighbor_restart.refresh_begins(channel, now)
        elif refresh.subtype == REFRESH_END and connection.terms.enhanced_refresh:
            self.neighbor_restart.repeated(channel)

    def state_changed(self, connection: Connection, old: State, new: State) -> None:
        """Tell whoever watches."""
        self.host.emit(
            StateChanged(self.config.name, connection.number, connection.outgoing, old, new)
        )

    def tapped(self, connection: Connection, kind: int, body: bytes, received: bool) -> None:
        """Pass a message to the tap."""
        tap = self.host.tap
        if tap is not None:
            tap.message(
                self.config.name,
                connection.number,
                kind,
                body,
                received=received,
                now=self.host.now,
            )

    def ended(
        self,
        connection: Connection,
        was: State,
        end: ConnectionEnd,
        notification: Notification | None,
        reason: str,
        now: float,
    ) -> None:
        """A connection is over: remember why, and what becomes of the protocol."""
        self.host.unregister(connection.number)
        is_session = connection is self.session
        if connection is self.outgoing:
            self.outgoing = None
        elif connection is self.incoming:
            self.incoming = None
        if end is ConnectionEnd.LOST:
            if was is State.CONNECT and not reason:
                # Connect retry: close and dial again at once.
                if self.life is Life.START:
                    self._activate(now, None)
                return
            self._remember(connection, "Socket: ", reason or "Connection closed")
        elif end is ConnectionEnd.RECEIVED and notification is not None:
            self._remember(connection, "Received: ", notification.text)
            self._log(f"Received: {notification.text}")
        elif end is not ConnectionEnd.STOPPED and notification is not None:
            self._remember(connection, "BGP Error: ", error_text(*notification[:2]))
            self._log(f"Error: {error_text(*notification[:2])}")
        if is_session:
            self._session_ended(connection, end, notification, now)
        failed = end in (ConnectionEnd.SENT, ConnectionEnd.RECEIVED)
        if failed and notification is not None and notification.code != CEASE:
            self._penalty(now)
            keep = self.neighbor_restart.is_active
            error = self.last_error
            for other in self._connections():
                other.stop(Notification(CEASE, CEASE_ADMIN_RESET), now=now)
            self.last_error = error
            if not keep and self.life is not Life.DOWN:
                self._live(Life.FLUSH, now)

    def _remember(self, connection: Connection, kind: str, text: str) -> None:
        """bgp_store_error: beside a session other connections' ends are no news."""
        if self.session is None or connection is self.session:
            self.last_error = (kind, text)

    def _penalty(self, now: float) -> None:
        """bgp_update_startup_delay: double the wait, up to a bound, unless long without errors."""
        timers = self.config.timers
        if self._last_error_at is not None and now - self._last_error_at >= timers.error_forget_s:
            self.startup_delay_s = 0.0
        self._last_error_at = now
        if self.startup_delay_s:
            self.startup_delay_s = min(2 * self.startup_delay_s, timers.error_wait_max_s)
        else:
            self.startup_delay_s = timers.error_wait_min_s

    def _can_restart(self) -> bool:
        """True if the session's peer can restart gracefully (BIRD's gr_ready)."""
        session = self.session
        if session is None or session.terms is None:
            return False
        restart = session.terms.peer_restart
        return (
            self.config.graceful_restart is not GracefulRestart.OFF
            and restart is not None
            and bool(restart.families)
        )

    def _session_ended(
        self,
        connection: Connection,
        end: ConnectionEnd,
        notification: Notification | None,
        now: float,
    ) -> None:
        terms = connection.terms
        assert terms is not None
        graceful = self._can_restart() and (
            end is ConnectionEnd.LOST
            or (
                terms.notification_restart
                and end in (ConnectionEnd.SENT, ConnectionEnd.RECEIVED)
                and notification is not None
                and notification[:2] != (CEASE, CEASE_HARD_RESET)
            )
        )
        self.session = None
        self.intake = None
        for afi, exporter in self.exporters.items():
            exporter.count_skipped()
            self.host.tables[afi].exporters.remove(exporter)
        self.exporters = {}
        if self._watched:
            self._watched = False
            self.host.emit(BfdUnwanted(self.config.name, self.config.neighbor))
        self.host.emit(
            SessionDown(
                self.config.name,
                connection.number,
                "".join(self.last_error),
                notification.body() if notification is not None else b"",
                end is ConnectionEnd.RECEIVED,
                graceful,
            )
        )
        if not graceful:
            self._live(Life.FLUSH, now)
            # What waits beside it would become a session among routes that are being flushed.
            error = self.last_error
            for other in self._connections():
                other.stop(Notification(CEASE, CEASE_REJECTED), now=now)
            self.last_error = error
            return
        self.neighbor_restart.begin(terms, now)
        self._live(Life.START, now)

    # Reconfiguration and reload

    def reload_in(self) -> bool:
        """Ask the peer to repeat everything; False if it cannot."""
        session = self.session
        if session is None or session.terms is None or not session.terms.route_refresh:
            return False
        for afi in session.terms.families:
            session.send(ROUTE_REFRESH, RouteRefresh(afi, SAFI_UNICAST).body())
        return True

    def reload_out(self) -> bool:
        """Repeat everything to the peer."""
        for exporter in self.exporters.values():
            exporter.start_feed(forced=True)
        return bool(self.exporters)

    def reconfigure(self, new: BgpConfig) -> bool:
        """Take a changed configuration without dropping the session; False if that cannot be."""
        old = self.config
        if lasting(old) != lasting(new):
            return False
        self.config = new
        for afi, channel in self.channels.items():
            before, after = old.channel(afi), new.channel(afi)
            assert before is not None
            assert after is not None
            channel.receive_limit = after.receive_limit
            channel.import_limit = after.import_limit
            exporter = self.exporters.get(afi)
            if exporter is not None:
                exporter.config = after
            if before.import_filter != after.import_filter:
                channel.refilter(after.import_filter)
            if exporter is not None and before.export_filter != after.export_filter:
                exporter.start_feed(forced=False)
        return True
