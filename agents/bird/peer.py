"""One BGP protocol instance: its life, errors and their price, its session.

Theory of operation (BIRD's proto/bgp/bgp.c).  A protocol that is started waits out an error's
penalty ("error wait"), then connects and accepts.  Whichever of its two connections becomes
Established is the session; the other one, if any, ends by collision.  When the session ends its
routes are flushed, in slices, and the protocol starts again; or, if the peer can restart gracefully
and said no farewell, the routes stay as stale until it has repeated them, for at most its restart
time.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from agents.bird.config import GracefulRestart, LimitAction
from agents.bird.connections import Connections
from agents.bird.errors import (
    CEASE,
    CEASE_ADMIN_RESET,
    CEASE_ADMIN_SHUTDOWN,
    CEASE_BFD_DOWN,
    CEASE_CONFIG_CHANGE,
    CEASE_DECONFIGURED,
    CEASE_HARD_RESET,
    CEASE_MAX_PREFIXES,
    CEASE_REJECTED,
    error_text,
)
from agents.bird.events import BfdUnwanted, BfdWanted, ProtocolLogged, SessionDown, SessionUp
from agents.bird.exchange import RouteExchange
from agents.bird.fsm import ConnectionEnd, State
from agents.bird.messages import Notification, shutdown_data
from agents.bird.peer_host import Life, PeerHost
from agents.bird.penalty import Penalty
from agents.bird.terms import lasting, source_address, ttl
from emulator.addr import format_ip

if TYPE_CHECKING:
    from agents.bird.config import BgpConfig, Limit
    from agents.bird.connection import Connection
    from agents.bird.messages import RouteRefresh
    from agents.bird.tracing import Trace

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
        self.last_error = ("", "")
        self.penalty = Penalty()
        self.connections = Connections(config, host, self, functools.partial(host.register, self))
        self.exchange = RouteExchange(config, host, functools.partial(host.touch, self))
        self._trace: Trace | None = None
        self._first_start = True
        self._watched = False

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
        return self.connections.state

    @property
    def session(self) -> Connection | None:
        """The established connection."""
        return self.connections.session

    @property
    def is_awaited(self) -> bool:
        """True if our own restart should wait until this neighbour has told everything."""
        if not self.enabled or self.config.graceful_restart is GracefulRestart.OFF:
            return False
        session = self.session
        if session is None or session.terms is None:
            return True
        restart = session.terms.peer_restart
        if restart is None or restart.restarting:
            return False
        return any(afi not in self.exchange.end_of_rib_seen for afi in session.terms.families)

    def set_trace(self, trace: Trace | None) -> None:
        """Tell a listener what happens from now on, None for nobody."""
        self._trace = trace
        self.connections.set_trace(trace)
        self.exchange.set_trace(trace)

    # Life

    def start(self, now: float) -> None:
        """Begin, after the penalty of an earlier error."""
        if not self.enabled or self.life is not Life.DOWN:
            return
        penalty = self.penalty
        penalty.forgive(self.config.timers, now)
        self._live(Life.START, now)
        if penalty.delay_s:
            penalty.until = now + self._jitter(penalty.delay_s)
            self._log(f"Startup delayed by {penalty.delay_s:g} seconds due to errors")
        else:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self.penalty.until = None
        if self.config.passive:
            return
        delay: float | None = self.config.timers.connect_delay_s
        if self._first_start and self.config.timers.first_delay_s is not None:
            delay = self.config.timers.first_delay_s
        self._first_start = False
        self.connections.start(delay or None, now)

    def stop(self, now: float, subcode: int, error: tuple[str, str], text: str = "") -> None:
        """End all connections with a Cease; ``error`` is what ``show protocols`` says then."""
        data = shutdown_data(text) if subcode in (CEASE_ADMIN_SHUTDOWN, CEASE_ADMIN_RESET) else b""
        self.penalty.until = None
        self.last_error = error
        if self._trace is not None and self.life is not Life.DOWN:
            self._trace.stopping()
        self.connections.stop_hard(Notification(CEASE, subcode, data), now)
        self.exchange.neighbor_restart.cancel()
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
        self.penalty.delay_s = 0.0
        self.start(now)

    def restart(self, now: float) -> None:
        """``restart``."""
        self.penalty.delay_s = 0.0
        self.stop(now, CEASE_ADMIN_RESET, ("", ""))

    def remove(self, now: float, *, changed: bool = False) -> None:
        """The protocol left the configuration, or comes back as another."""
        self.removed = True
        self.enabled = False
        self.stop(now, CEASE_CONFIG_CHANGE if changed else CEASE_DECONFIGURED, ("", ""))

    def bfd_down(self, now: float) -> None:
        """The neighbour stopped answering BFD."""
        session = self.session
        if session is None:
            return
        options = self.config.bfd
        if options is not None and options.graceful and self.connections.can_restart:
            session.lost("BFD session down", now=now)
            self.last_error = ("Error: ", "BFD session down")
            return
        self.stop(now, CEASE_BFD_DOWN, ("Error: ", "BFD session down"))

    def hang_up_silently(self, now: float) -> None:
        """Close without a word, so that peers keep our routes (``graceful restart``)."""
        self.connections.stop(None, now)

    def _live(self, life: Life, now: float) -> None:
        if life is not self.life:
            if self._trace is not None:
                resumed = self.exchange.neighbor_restart.is_active
                self._trace.life(life, resumed=resumed)
            self.life = life
            self.since = now

    def _jitter(self, seconds: float) -> float:
        return seconds * (1.0 - 0.25 * self.host.rng.random())

    def _log(self, text: str) -> None:
        self.host.emit(ProtocolLogged(self.config.name, text))

    def _event(self, text: str) -> None:
        if self._trace is not None:
            self._trace.event(text)

    # Time and work

    def get_timer(self) -> float | None:
        """When ``handle_timer`` is due."""
        restart, connections = self.exchange.neighbor_restart, self.connections
        at = self.penalty.until
        for other in (restart.until, restart.stale_until):
            if other is not None and (at is None or other < at):
                at = other
        for connection in (connections.session, connections.outgoing, connections.incoming):
            if connection is not None:
                other = connection.timers.next()
                if other is not None and (at is None or other < at):
                    at = other
        return at

    def handle_timer(self, now: float) -> None:
        """Expire what is due."""
        if self.penalty.until is not None and now >= self.penalty.until:
            self._begin(now)
        self.exchange.neighbor_restart.handle_timer(now)
        for connection in self.connections.all():
            connection.handle_timer(now=now)

    def settle(self, now: float) -> None:
        """Decide what follows from the last input (bgp_decision); called after each."""
        connections = self.connections
        if self.life is Life.FLUSH and self.exchange.is_empty and not connections.all():
            self._live(Life.DOWN, now)
            self.start(now)
        if (
            self.life is Life.START
            and self.penalty.until is None
            and connections.outgoing is None
            and not self.config.passive
            and (
                connections.incoming is None or connections.incoming.state is not State.OPEN_CONFIRM
            )
        ):
            connections.start(self.config.timers.connect_delay_s or MIN_CONNECT_DELAY_S, now)

    @property
    def busy(self) -> bool:
        """True while ``work`` has something to do."""
        return self.life is Life.FLUSH or self.exchange.busy

    def work(self, now: float) -> None:
        """Do a slice: flush, feed."""
        if self.life is not Life.FLUSH:
            self.exchange.feed()
            self.flush_output()
        elif not self.exchange.flush_some():
            self.settle(now)

    def flush_output(self) -> None:
        """Turn waiting routes into messages, check limits."""
        for name, limit in self.exchange.seal():
            self._limit(name, limit)

    def _limit(self, name: str, limit: Limit) -> None:
        text = f"hits route {name} limit ({limit.count}), action: {limit.action}"
        self.host.emit(ProtocolLogged("", f"Protocol {self.config.name} {text}"))
        now = self.host.now
        error = ("Automatic shutdown: ", "Route limit exceeded")
        if limit.action is LimitAction.RESTART:
            self.penalty.failed(self.config.timers, now)
            self.stop(now, CEASE_MAX_PREFIXES, error)
        elif limit.action is LimitAction.DISABLE:
            self.enabled = False
            self.stop(now, CEASE_MAX_PREFIXES, error)

    def accept(self, port: int, now: float) -> Connection | None:
        """An incoming connection of this neighbour, from its ``port``; None to refuse it."""
        if (
            self.life not in (Life.START, Life.UP)
            or self.penalty.until is not None
            or self.connections.incoming is not None
        ):
            if self._trace is not None:
                peer = format_ip(self.config.neighbor)
                self._trace.event(f"Incoming connection from {peer} (port {port}) rejected")
            return None
        return self.connections.accept(port, now)

    # SessionOwner

    def session_up(self, connection: Connection, now: float) -> None:
        """The session is up."""
        self._event("BGP session established")
        self._live(Life.UP, now)
        self.last_error = ("", "")
        self.host.emit(SessionUp(self.config.name, connection.number))
        self.exchange.begin(connection, now)
        self.follow_bfd()

    def follow_bfd(self) -> None:
        """Have the neighbour watched while there is a session with it, and BFD."""
        config = self.config
        options = config.bfd if self.session is not None and self.host.watches_neighbors else None
        if self._watched is (options is not None):
            return
        self._watched = options is not None
        if options is None:
            self.host.emit(BfdUnwanted(config.name, config.neighbor))
            return
        multihop = config.multihop > 0
        self.host.emit(
            BfdWanted(config.name, config.neighbor, self.source_address, multihop, options)
        )

    def session_replaced(self) -> None:
        """The peer restarted and is back already."""
        self.last_error = ("Error: ", "Graceful restart")

    def update_received(self, body: bytes, now: float) -> None:
        """An UPDATE."""
        self.exchange.receive(body, now)

    def refresh_received(self, refresh: RouteRefresh, now: float) -> None:
        """A ROUTE-REFRESH."""
        self.exchange.refresh(refresh, now)

    def connection_ended(
        self,
        connection: Connection,
        was: State,
        end: ConnectionEnd,
        notification: Notification | None,
        reason: str,
        now: float,
    ) -> None:
        """Remember why, and what becomes of the protocol."""
        is_session = connection is self.session
        if end is ConnectionEnd.LOST:
            if was is State.CONNECT and not reason:
                # Connect retry: close and dial again at once.
                if self.life is Life.START:
                    self.connections.start(None, now)
                return
            self._event(f"Connection lost ({reason})" if reason else "Connection closed")
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
            self.penalty.failed(self.config.timers, now)
            keep = self.exchange.neighbor_restart.is_active
            self._stop_others(CEASE_ADMIN_RESET, now)
            if not keep and self.life is not Life.DOWN:
                self._live(Life.FLUSH, now)

    def _remember(self, connection: Connection, kind: str, text: str) -> None:
        """bgp_store_error: beside a session other connections' ends are no news."""
        if self.session is None or connection is self.session:
            self.last_error = (kind, text)

    def _stop_others(self, subcode: int, now: float) -> None:
        """End what connections there are; that is no error to remember."""
        error = self.last_error
        self.connections.stop(Notification(CEASE, subcode), now)
        self.last_error = error

    def _session_ended(
        self,
        connection: Connection,
        end: ConnectionEnd,
        notification: Notification | None,
        now: float,
    ) -> None:
        terms = connection.terms
        assert terms is not None
        graceful = self.connections.can_restart and (
            end is ConnectionEnd.LOST
            or (
                terms.notification_restart
                and end in (ConnectionEnd.SENT, ConnectionEnd.RECEIVED)
                and notification is not None
                and notification[:2] != (CEASE, CEASE_HARD_RESET)
            )
        )
        self.connections.session = None
        self.exchange.end()
        if graceful:
            self.exchange.neighbor_restart.begin(terms, now)
            self._live(Life.START, now)
        elif end is ConnectionEnd.STOPPED:
            self._live(Life.FLUSH, now)
        self._event("BGP session closed")
        self.follow_bfd()
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
            self._stop_others(CEASE_REJECTED, now)

    # Reconfiguration

    def reconfigure(self, new: BgpConfig) -> bool:
        """Take a changed configuration without dropping the session; False if that cannot be."""
        if lasting(self.config) != lasting(new):
            return False
        self.config = self.connections.config = new
        self.exchange.reconfigure(new)
        return True
