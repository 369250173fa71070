"""The connections to one neighbour: one dialled, one accepted, and which of them is the session.

Source: RFC 4271 §6.8 (collisions), RFC 6286, RFC 4724 §4.2 (a new connection of a restarted peer),
BIRD's proto/bgp/bgp.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from agents.bird.attributes import AS_TRANS
from agents.bird.capabilities import local_capabilities
from agents.bird.config import GracefulRestart
from agents.bird.connection import Connection
from agents.bird.errors import (
    CEASE,
    CEASE_COLLISION,
    CEASE_HARD_RESET,
    OPEN_ERROR,
    BgpPeerError,
)
from agents.bird.events import Dial, HangUp, StateChanged
from agents.bird.fsm import RANK, ConnectionEnd, State
from agents.bird.messages import Notification, Open, RouteRefresh
from agents.bird.terms import source_address, ttl
from emulator.addr import format_ip

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.bird.config import BgpConfig
    from agents.bird.peer_host import PeerHost
    from agents.bird.tracing import Trace

# A second connection that came so soon after the session is a collision of two attempts, not a
# restart of the peer: who is Established dials no more.  Real stacks need milliseconds, a machine
# that starts a hundred nodes seconds.  BIRD has no such window and flaps.
COLLISION_WINDOW_S: Final = 3.0


class SessionOwner(Protocol):
    """The protocol instance, as far as its connections know it."""

    def session_up(self, connection: Connection, now: float) -> None:
        """One of the connections is the session."""

    def session_replaced(self) -> None:
        """The peer restarted and came back before its session was seen to end."""

    def update_received(self, body: bytes, now: float) -> None:
        """An UPDATE of the session; BgpPeerError if it is beyond repair."""

    def refresh_received(self, refresh: RouteRefresh, now: float) -> None:
        """A ROUTE-REFRESH of the session."""

    def connection_ended(
        self,
        connection: Connection,
        was: State,
        end: ConnectionEnd,
        notification: Notification | None,
        reason: str,
        now: float,
    ) -> None:
        """A connection is over; ``reason`` is the system's words for a lost one."""


class Connections:
    """Up to three: a session may stand beside a new attempt of the peer until that is judged."""

    def __init__(
        self,
        config: BgpConfig,
        host: PeerHost,
        owner: SessionOwner,
        number: Callable[[], int],
    ) -> None:
        """``number`` gives a new connection's number."""
        self.config = config
        self.outgoing: Connection | None = None
        self.incoming: Connection | None = None
        self.session: Connection | None = None
        self.established_at = 0.0
        self.trace: Trace | None = None
        self._host = host
        self._owner = owner
        self._number = number

    def all(self) -> list[Connection]:
        """Those there are."""
        return [c for c in (self.session, self.outgoing, self.incoming) if c is not None]

    def find(self, number: int) -> Connection | None:
        """The one with this number."""
        for connection in (self.session, self.outgoing, self.incoming):
            if connection is not None and connection.number == number:
                return connection
        return None

    @property
    def state(self) -> State:
        """The furthest of their states."""
        return max((c.state for c in self.all()), key=RANK.__getitem__, default=State.IDLE)

    @property
    def can_restart(self) -> bool:
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

    def set_trace(self, trace: Trace | None) -> None:
        """Tell a listener what happens from now on, None for nobody."""
        self.trace = trace
        for connection in self.all():
            connection.is_tapped = self._is_tapped

    @property
    def _is_tapped(self) -> bool:
        return self._host.tap is not None or self.trace is not None

    def _event(self, text: str) -> None:
        if self.trace is not None:
            self.trace.event(text)

    # Beginnings and ends

    def start(self, delay_s: float | None, now: float) -> None:
        """Dial, after a jittered ``delay_s`` if it is given."""
        if delay_s is not None:
            self._event(f"Connect delayed by {delay_s:.0f} seconds")
        self.outgoing = Connection(self._number(), self, self._host.rng, outgoing=True, now=now)
        self.outgoing.start(delay_s, now=now)

    def accept(self, port: int, now: float) -> Connection:
        """Take the peer's connection, from its ``port``; there must be no other of its making."""
        assert self.incoming is None
        self._event(f"Incoming connection from {self._neighbor} (port {port}) accepted")
        self.incoming = Connection(self._number(), self, self._host.rng, outgoing=False, now=now)
        self.incoming.connected(now=now)
        return self.incoming

    def stop(self, notification: Notification | None, now: float) -> None:
        """End all, with these words or none."""
        for connection in self.all():
            connection.stop(notification, now=now)

    def stop_hard(self, notification: Notification, now: float) -> None:
        """End all so that the peer keeps no routes for our return."""
        for connection in self.all():
            farewell = notification
            if connection.terms is not None and connection.terms.notification_restart:
                # With RFC 8538 only a hard reset ends the peer's patience.
                data = bytes(notification[:2]) + notification.data
                farewell = Notification(CEASE, CEASE_HARD_RESET, data)
            connection.stop(farewell, now=now)

    @property
    def _neighbor(self) -> str:
        return format_ip(self.config.neighbor)

    # ConnectionOwner

    def open_to_send(self, connection: Connection) -> Open:
        """Our OPEN."""
        config, host = self.config, self._host
        capabilities = local_capabilities(
            config, restarting=host.recovering, preserved=host.preserved
        )
        connection.is_tapped = self._is_tapped
        if connection.outgoing:
            self._event("Connected")
        asn = config.local_as if config.local_as <= 0xFFFF else AS_TRANS
        return Open(asn, config.timers.hold_s, host.router_id, capabilities)

    def dial(self, connection: Connection, now: float) -> None:
        """Ask the shell to connect."""
        config = self.config
        if self.trace is not None:
            local = format_ip(source_address(config, self._host))
            self._event(f"Connecting to {self._neighbor} from local address {local}")
        send_ttl, min_ttl = ttl(config)
        self._host.emit(
            Dial(
                connection.number,
                config.neighbor,
                config.neighbor_port,
                source_address(config, self._host),
                send_ttl,
                min_ttl,
                config.password,
            )
        )

    def hang_up(self, connection: Connection) -> None:
        """Ask the shell to close."""
        self._host.emit(HangUp(connection.number))

    def open_received(self, connection: Connection, opened: Open, now: float) -> None:
        """Router id and collisions (RFC 4271 §6.8, RFC 6286)."""
        router_id = self._host.router_id
        if opened.router_id == router_id and self.config.internal:
            raise BgpPeerError(OPEN_ERROR, 3, opened.router_id.to_bytes(4, "big"))
        session = self.session
        if session is not None and session is not connection:
            restart = opened.capabilities.restart
            is_restart = self.can_restart and (
                (restart is not None and restart.restarting)
                or connection.started_at - self.established_at >= COLLISION_WINDOW_S
            )
            if not is_restart:
                raise BgpPeerError(CEASE, CEASE_COLLISION)
            session.lost("Graceful restart", now=now)
            self._owner.session_replaced()
            return
        other = self.incoming if connection.outgoing else self.outgoing
        if other is None:
            return
        if other.state in (State.CONNECT, State.ACTIVE):
            other.stop(None, now=now)
        elif other.state is State.OPEN_CONFIRM:
            ours, theirs = router_id, opened.router_id
            we_dominate = ours > theirs or (
                ours == theirs and self.config.local_as > self.config.peer_as
            )
            if we_dominate == connection.outgoing:
                self._event("Connection collision, giving up the other connection")
                other.fail(BgpPeerError(CEASE, CEASE_COLLISION), now=now)
            else:
                self._event("Connection collision, giving up this connection")
                raise BgpPeerError(CEASE, CEASE_COLLISION)

    def established(self, connection: Connection, now: float) -> None:
        """It is the session; the other one ends."""
        self.session = connection
        other = self.incoming if connection.outgoing else self.outgoing
        if other is not None:
            other.stop(Notification(CEASE, CEASE_COLLISION), now=now)
        self.outgoing = self.incoming = None
        self.established_at = now
        self._owner.session_up(connection, now)

    def update_received(self, connection: Connection, body: bytes, now: float) -> None:
        """Pass an UPDATE on."""
        self._owner.update_received(body, now)

    def refresh_received(self, connection: Connection, refresh: RouteRefresh, now: float) -> None:
        """Pass a ROUTE-REFRESH on."""
        self._owner.refresh_received(refresh, now)

    def state_changed(self, connection: Connection, old: State, new: State) -> None:
        """Tell whoever watches."""
        self._host.emit(
            StateChanged(self.config.name, connection.number, connection.outgoing, old, new)
        )

    def tapped(self, connection: Connection, kind: int, body: bytes, received: bool) -> None:
        """Pass a message to the tap, tell the listener."""
        if self.trace is not None:
            self.trace.message(kind, body, received=received)
        tap = self._host.tap
        if tap is not None:
            tap.message(
                self.config.name,
                connection.number,
                kind,
                body,
                received=received,
                now=self._host.now,
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
        """A connection is Idle for good."""
        self._host.unregister(connection.number)
        if connection is self.outgoing:
            self.outgoing = None
        elif connection is self.incoming:
            self.incoming = None
        self._owner.connection_ended(connection, was, end, notification, reason, now)
