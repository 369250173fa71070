"""One TCP connection's session with a peer, sans IO.

It carries out what the table in ``fsm.py`` says.  ``_transition`` is the only writer of ``state``.
An action that ended the connection itself (a refused OPEN, a collision) leaves the state it made;
the table's next state then does not apply.
Sources: RFC 4271 §6 and §8, RFC 6286, RFC 8654, RFC 9687, BIRD's proto/bgp/bgp.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from agents.bird.capabilities import Negotiated, negotiate
from agents.bird.errors import (
    CEASE,
    FSM_ERROR,
    HEADER_ERROR,
    HOLD_TIMER_EXPIRED,
    OPEN_ERROR,
    ROUTE_REFRESH_ERROR,
    SEND_HOLD_TIMER_EXPIRED,
    BgpPeerError,
)
from agents.bird.fsm import MESSAGE_INPUTS, TRANSITIONS, Action, ConnectionEnd, Input, State
from agents.bird.messages import (
    HEADER_SIZE,
    KEEPALIVE,
    KEEPALIVE_MESSAGE,
    MAX_EXTENDED_MESSAGE,
    MAX_MESSAGE,
    NOTIFICATION,
    OPEN,
    ROUTE_REFRESH,
    Framer,
    Notification,
    Open,
    RouteRefresh,
    message,
)
from agents.bird.timers import ConnectionTimers

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from agents.bird.config import BgpConfig


class ConnectionOwner(Protocol):
    """The peer a connection belongs to, as far as the connection knows it."""

    config: BgpConfig

    def open_to_send(self, connection: Connection) -> Open:
        """Our OPEN for this connection."""

    def dial(self, connection: Connection, now: float) -> None:
        """Ask the shell for a TCP connection."""

    def hang_up(self, connection: Connection) -> None:
        """Ask the shell to close it after what waits was sent."""

    def open_received(self, connection: Connection, opened: Open, now: float) -> None:
        """Check the peer's OPEN and resolve collisions; BgpPeerError to refuse."""

    def established(self, connection: Connection, now: float) -> None:
        """The session is up."""

    def update_received(self, connection: Connection, body: bytes, now: float) -> None:
        """An UPDATE; BgpPeerError if it is beyond repair."""

    def refresh_received(self, connection: Connection, refresh: RouteRefresh, now: float) -> None:
        """A ROUTE-REFRESH."""

    def state_changed(self, connection: Connection, old: State, new: State) -> None:
        """``_transition`` happened."""

    def ended(
        self,
        connection: Connection,
        was: State,
        end: ConnectionEnd,
        notification: Notification | None,
        reason: str,
        now: float,
    ) -> None:
        """The connection is Idle for good; ``reason`` is the system's words for a lost one."""

    def tapped(self, connection: Connection, kind: int, body: bytes, received: bool) -> None:
        """A whole message passed."""


class Connection:
    """One TCP connection to a peer and its state."""

    __slots__ = (
        "_framer",
        "_handling",
        "_owner",
        "_rng",
        "congested_since",
        "is_tapped",
        "local_open",
        "number",
        "out",
        "outgoing",
        "peer_open",
        "started_at",
        "state",
        "terms",
        "timers",
    )

    def __init__(
        self,
        number: int,
        owner: ConnectionOwner,
        rng: random.Random,
        *,
        outgoing: bool,
        now: float,
    ) -> None:
        self.number = number
        self.outgoing = outgoing
        self.state = State.IDLE
        self.started_at = now
        self.local_open: Open | None = None
        self.peer_open: Open | None = None
        self.terms: Negotiated | None = None
        self.out: list[bytes] = []
        self.timers = ConnectionTimers()
        self.congested_since: float | None = None
        self.is_tapped = False
        self._owner = owner
        self._rng = rng
        self._framer = Framer()
        self._handling = False

    # Inputs

    def start(self, delay_s: float | None, *, now: float) -> None:
        """Dial, after ``delay_s`` if it is given (jittered)."""
        if delay_s is None:
            self._feed(Input.MANUAL_START, now)
        else:
            self.timers.delay_at = now + self._jitter(delay_s)
            self._feed(Input.MANUAL_START_DELAYED, now)

    def stop(self, notification: Notification | None, *, now: float) -> None:
        """End it, telling the peer if it got so far."""
        if self.state is not State.IDLE:
            self._feed(Input.MANUAL_STOP, now, notification)

    def connected(self, *, now: float) -> None:
        """The TCP connection is there (dialled or accepted)."""
        self._feed(Input.TCP_CONNECTION_CONFIRMED, now)

    def lost(self, reason: str, *, now: float) -> None:
        """The TCP connection failed or ended; ``reason`` as strerror says it."""
        if self.state is not State.IDLE:
            self._feed(Input.TCP_CONNECTION_FAILS, now, reason)

    def receive_data(self, data: bytes, *, now: float) -> None:
        """Bytes of the peer.  Whatever they are, nothing is raised."""
        self._framer.feed(data)
        if self._handling:
            return
        self._handling = True
        try:
            while not self.is_over():
                messages = self._framer.take()
                if not messages:
                    break
                for kind, body in messages:
                    if self.is_tapped:
                        self._owner.tapped(self, kind, body, True)
                    self._feed(MESSAGE_INPUTS[kind], now, body)
                    if self.is_over():
                        break
        except BgpPeerError as error:
            self.fail(error, now=now)
        finally:
            self._handling = False

    def fail(self, error: BgpPeerError, *, now: float) -> None:
        """Tell the peer what it did and end the connection."""
        self._end_with(Notification(error.code, error.subcode, error.data), now)

    def handle_timer(self, *, now: float) -> None:
        """Expire what is due."""
        for event in self.timers.expired(now):
            self._feed(event, now)

    def set_congested(self, congested: bool, *, now: float) -> None:
        """The shell's buffer is full or empty again; full for too long ends the session (9687)."""
        if not congested:
            self.congested_since = self.timers.send_hold_at = None
        elif self.congested_since is None:
            self.congested_since = now
            wait = self._owner.config.timers.send_hold_s
            if wait is None:
                hold = self.terms.hold_s if self.terms is not None else 0
                wait = max(480.0, 2.0 * hold) if hold else 0.0
            if wait:
                self.timers.send_hold_at = now + wait

    def is_over(self) -> bool:
        """True once it is Idle."""
        return self.state is State.IDLE

    # Output

    def send(self, kind: int, body: bytes = b"") -> None:
        """Queue one message."""
        self.out.append(message(kind, body))
        if self.is_tapped:
            self._owner.tapped(self, kind, body, False)

    def send_encoded(self, pieces: list[bytes]) -> None:
        """Queue whole messages that may be in pieces (MARKER, head, block or complete)."""
        self.out += pieces
        if self.is_tapped and pieces:
            framer = Framer()
            framer.limit = MAX_EXTENDED_MESSAGE
            framer.feed(b"".join(pieces))
            for kind, body in framer.take():
                self._owner.tapped(self, kind, body, False)

    def data_to_send(self) -> bytes:
        """What waits for the peer."""
        data = b"".join(self.out)
        self.out.clear()
        return data

    # The machine

    def _feed(self, event: Input, now: float, argument: object = None) -> None:
        entry = _MACHINE.get((self.state, event))
        if entry is None:
            self._unexpected(event, now)
            return
        action, following = entry
        before = self.state
        try:
            action(self, now, argument)
        except BgpPeerError as error:
            self.fail(error, now=now)
            return
        if self.state is before and following is not before:
            self._transition(following)
            if following is State.ESTABLISHED:
                self._owner.established(self, now)

    def _transition(self, new: State) -> None:
        old, self.state = self.state, new
        self._owner.state_changed(self, old, new)

    def _unexpected(self, event: Input, now: float) -> None:
        if event in MESSAGE_INPUTS.values():
            subcode = {
                State.OPEN_SENT: 1,
                State.OPEN_CONFIRM: 2,
                State.ESTABLISHED: 3,
            }.get(self.state, 0)
            self._end_with(Notification(FSM_ERROR, subcode), now)

    def _jitter(self, seconds: float) -> float:
        """75 to 100 % of a timer's value (RFC 4271 §10)."""
        return seconds * (1.0 - 0.25 * self._rng.random())

    def _end_with(self, notification: Notification, now: float) -> None:
        self.send(NOTIFICATION, notification.body())
        end = ConnectionEnd.COLLISION if notification[:2] == (CEASE, 7) else ConnectionEnd.SENT
        self._finish(end, notification, "", now)

    def _finish(
        self, end: ConnectionEnd, notification: Notification | None, reason: str, now: float
    ) -> None:
        was = self.state
        if was is State.IDLE:
            return
        self.timers.clear()
        self._transition(State.IDLE)
        self._owner.hang_up(self)
        self._owner.ended(self, was, end, notification, reason, now)

    # Actions

    def _wait(self, now: float, _: object) -> None:
        """The timer runs."""

    def _dial(self, now: float, _: object) -> None:
        self.timers.delay_at = None
        self.timers.retry_at = now + self._jitter(self._owner.config.timers.connect_retry_s)
        self._owner.dial(self, now)

    def _give_up(self, now: float, _: object) -> None:
        self._finish(ConnectionEnd.LOST, None, "", now)

    def _send_open(self, now: float, _: object) -> None:
        self.timers.retry_at = self.timers.delay_at = None
        self.local_open = self._owner.open_to_send(self)
        self.send(OPEN, self.local_open.body())
        self.timers.hold_at = now + self._owner.config.timers.startup_hold_s

    def _accept_open(self, now: float, body: object) -> None:
        assert isinstance(body, bytes)
        assert self.local_open is not None
        opened = Open.parse(body)
        config = self._owner.config
        self.peer_open = opened
        if opened.true_as != config.peer_as:
            raise BgpPeerError(OPEN_ERROR, 2, opened.true_as.to_bytes(4, "big")[-2:])
        if opened.router_id == 0:
            raise BgpPeerError(OPEN_ERROR, 3, bytes(4))
        if opened.hold_s in (1, 2):
            raise BgpPeerError(OPEN_ERROR, 6, opened.hold_s.to_bytes(2, "big"))
        self.terms = negotiate(
            config, self.local_open.capabilities, opened.capabilities, opened.hold_s
        )
        self._owner.open_received(self, opened, now)
        if self.state is State.IDLE:
            return
        if self.terms.extended_message:
            self._framer.limit = MAX_EXTENDED_MESSAGE
        self.send(KEEPALIVE)
        self._restart_hold(now, None)
        self._arm_keepalive(now)

    @property
    def send_limit(self) -> int:
        """The longest message the peer takes."""
        extended = self.terms is not None and self.terms.extended_message
        return MAX_EXTENDED_MESSAGE if extended else MAX_MESSAGE

    def _arm_keepalive(self, now: float) -> None:
        assert self.terms is not None
        self.timers.keepalive_at = (
            now + self._jitter(self.terms.keepalive_s) if self.terms.keepalive_s else None
        )

    def _restart_hold(self, now: float, _: object) -> None:
        assert self.terms is not None
        self.timers.hold_at = now + self.terms.hold_s if self.terms.hold_s else None

    def _send_keepalive(self, now: float, _: object) -> None:
        if self.is_tapped:
            self.send(KEEPALIVE)
        else:
            self.out.append(KEEPALIVE_MESSAGE)
        self._arm_keepalive(now)

    def _up(self, now: float, _: object) -> None:
        self._restart_hold(now, None)

    def _update(self, now: float, body: object) -> None:
        assert isinstance(body, bytes)
        self._restart_hold(now, None)
        self._owner.update_received(self, body, now)

    def _refresh(self, now: float, body: object) -> None:
        assert isinstance(body, bytes)
        assert self.terms is not None
        self._restart_hold(now, None)
        if len(body) != 4:
            if self.terms.enhanced_refresh:
                # RFC 7313 §5: the data is the whole message.
                raise BgpPeerError(ROUTE_REFRESH_ERROR, 1, message(ROUTE_REFRESH, body))
            size = (len(body) + HEADER_SIZE).to_bytes(2, "big")
            raise BgpPeerError(HEADER_ERROR, 2, size)
        self._owner.refresh_received(self, RouteRefresh.parse(body), now)

    def _hold_expired(self, now: float, _: object) -> None:
        self._end_with(Notification(HOLD_TIMER_EXPIRED, 0), now)

    def _send_hold_expired(self, now: float, _: object) -> None:
        self._end_with(Notification(SEND_HOLD_TIMER_EXPIRED, 0), now)

    def _notified(self, now: float, body: object) -> None:
        assert isinstance(body, bytes)
        self._finish(ConnectionEnd.RECEIVED, Notification.parse(body), "", now)

    def _lost(self, now: float, reason: object) -> None:
        self._finish(ConnectionEnd.LOST, None, str(reason), now)

    def _stop(self, now: float, notification: object) -> None:
        if isinstance(notification, Notification) and self.local_open is not None:
            self.send(NOTIFICATION, notification.body())
            self._finish(ConnectionEnd.STOPPED, notification, "", now)
        else:
            self._finish(ConnectionEnd.STOPPED, None, "", now)


_ACTIONS: Final[dict[Action, Callable[[Connection, float, object], None]]] = {
    Action.DIAL: Connection._dial,
    Action.WAIT: Connection._wait,
    Action.SEND_OPEN: Connection._send_open,
    Action.STOP: Connection._stop,
    Action.LOST: Connection._lost,
    Action.GIVE_UP: Connection._give_up,
    Action.ACCEPT_OPEN: Connection._accept_open,
    Action.NOTIFIED: Connection._notified,
    Action.HOLD_EXPIRED: Connection._hold_expired,
    Action.UP: Connection._up,
    Action.SEND_KEEPALIVE: Connection._send_keepalive,
    Action.RESTART_HOLD: Connection._restart_hold,
    Action.UPDATE: Connection._update,
    Action.REFRESH: Connection._refresh,
    Action.SEND_HOLD_EXPIRED: Connection._send_hold_expired,
}
# The table with the actions in their places, looked up once a message.
_MACHINE: Final = {
    key: (_ACTIONS[action], following) for key, (action, following) in TRANSITIONS.items()
}
