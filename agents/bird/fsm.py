"""BGP's finite state machine as a table (RFC 4271 §8).

Theory of operation.  A peer has at most two connections: one it dialled, one it accepted.  Each
begins in Idle and lives until it is Idle again (``connection.py``).  What may happen is the table
``TRANSITIONS``: (state, input) -> (what to do, next state).  An input that is not in the table is
a finite state machine error if it is a message: NOTIFICATION 5 and the end; else it means nothing.

Active is BIRD's: the wait before dialling ("connect delay"), while the peer may still come to us.
Sources: RFC 4271 §8, RFC 9687, BIRD's proto/bgp/bgp.c.
"""

from __future__ import annotations

import enum
from typing import Final

from agents.bird.messages import KEEPALIVE, NOTIFICATION, OPEN, ROUTE_REFRESH, UPDATE


class State(enum.StrEnum):
    """RFC 4271's names."""

    IDLE = "Idle"
    CONNECT = "Connect"
    ACTIVE = "Active"
    OPEN_SENT = "OpenSent"
    OPEN_CONFIRM = "OpenConfirm"
    ESTABLISHED = "Established"


# How far a connection is, for "the further of two".
RANK: Final = {state: rank for rank, state in enumerate(State)}


class Input(enum.Enum):
    """Events of RFC 4271 §8.1 by their names; DELAY_EXPIRES is BIRD's connect delay."""

    MANUAL_START = "ManualStart"
    MANUAL_START_DELAYED = "ManualStart with connect delay"
    MANUAL_STOP = "ManualStop"
    DELAY_EXPIRES = "connect delay expires"
    CONNECT_RETRY_TIMER_EXPIRES = "ConnectRetryTimer_Expires"
    HOLD_TIMER_EXPIRES = "HoldTimer_Expires"
    KEEPALIVE_TIMER_EXPIRES = "KeepaliveTimer_Expires"
    SEND_HOLD_TIMER_EXPIRES = "SendHoldTimer_Expires"
    TCP_CONNECTION_CONFIRMED = "TcpConnectionConfirmed"
    TCP_CONNECTION_FAILS = "TcpConnectionFails"
    BGP_OPEN = "BGPOpen"
    KEEPALIVE_MSG = "KeepAliveMsg"
    UPDATE_MSG = "UpdateMsg"
    NOTIF_MSG = "NotifMsg"
    ROUTE_REFRESH_MSG = "RouteRefreshMsg"


# What the arrival of a message is to the machine.
MESSAGE_INPUTS: Final = {
    OPEN: Input.BGP_OPEN,
    UPDATE: Input.UPDATE_MSG,
    NOTIFICATION: Input.NOTIF_MSG,
    KEEPALIVE: Input.KEEPALIVE_MSG,
    ROUTE_REFRESH: Input.ROUTE_REFRESH_MSG,
}


class ConnectionEnd(enum.Enum):
    """Why a connection is over."""

    STOPPED = "stopped"
    SENT = "notification sent"
    RECEIVED = "notification received"
    LOST = "connection lost"
    COLLISION = "collision"


class Action(enum.Enum):
    """What the connection does on the way from one state to the next."""

    DIAL = "dial"
    WAIT = "wait"
    SEND_OPEN = "send open"
    STOP = "stop"
    LOST = "lost"
    GIVE_UP = "give up"
    ACCEPT_OPEN = "accept open"
    NOTIFIED = "notified"
    HOLD_EXPIRED = "hold expired"
    UP = "up"
    SEND_KEEPALIVE = "send keepalive"
    RESTART_HOLD = "restart hold"
    UPDATE = "update"
    REFRESH = "refresh"
    SEND_HOLD_EXPIRED = "send hold expired"


TRANSITIONS: Final[dict[tuple[State, Input], tuple[Action, State]]] = {
    (State.IDLE, Input.MANUAL_START): (Action.DIAL, State.CONNECT),
    (State.IDLE, Input.MANUAL_START_DELAYED): (Action.WAIT, State.ACTIVE),
    (State.IDLE, Input.TCP_CONNECTION_CONFIRMED): (Action.SEND_OPEN, State.OPEN_SENT),
    (State.ACTIVE, Input.DELAY_EXPIRES): (Action.DIAL, State.CONNECT),
    (State.ACTIVE, Input.MANUAL_STOP): (Action.STOP, State.IDLE),
    (State.CONNECT, Input.TCP_CONNECTION_CONFIRMED): (Action.SEND_OPEN, State.OPEN_SENT),
    (State.CONNECT, Input.TCP_CONNECTION_FAILS): (Action.LOST, State.IDLE),
    (State.CONNECT, Input.CONNECT_RETRY_TIMER_EXPIRES): (Action.GIVE_UP, State.IDLE),
    (State.CONNECT, Input.MANUAL_STOP): (Action.STOP, State.IDLE),
    (State.OPEN_SENT, Input.BGP_OPEN): (Action.ACCEPT_OPEN, State.OPEN_CONFIRM),
    (State.OPEN_SENT, Input.NOTIF_MSG): (Action.NOTIFIED, State.IDLE),
    (State.OPEN_SENT, Input.HOLD_TIMER_EXPIRES): (Action.HOLD_EXPIRED, State.IDLE),
    (State.OPEN_SENT, Input.TCP_CONNECTION_FAILS): (Action.LOST, State.IDLE),
    (State.OPEN_SENT, Input.MANUAL_STOP): (Action.STOP, State.IDLE),
    (State.OPEN_CONFIRM, Input.KEEPALIVE_MSG): (Action.UP, State.ESTABLISHED),
    (State.OPEN_CONFIRM, Input.NOTIF_MSG): (Action.NOTIFIED, State.IDLE),
    (State.OPEN_CONFIRM, Input.HOLD_TIMER_EXPIRES): (Action.HOLD_EXPIRED, State.IDLE),
    (State.OPEN_CONFIRM, Input.KEEPALIVE_TIMER_EXPIRES): (
        Action.SEND_KEEPALIVE,
        State.OPEN_CONFIRM,
    ),
    (State.OPEN_CONFIRM, Input.TCP_CONNECTION_FAILS): (Action.LOST, State.IDLE),
    (State.OPEN_CONFIRM, Input.MANUAL_STOP): (Action.STOP, State.IDLE),
    (State.ESTABLISHED, Input.KEEPALIVE_MSG): (Action.RESTART_HOLD, State.ESTABLISHED),
    (State.ESTABLISHED, Input.UPDATE_MSG): (Action.UPDATE, State.ESTABLISHED),
    (State.ESTABLISHED, Input.ROUTE_REFRESH_MSG): (Action.REFRESH, State.ESTABLISHED),
    (State.ESTABLISHED, Input.NOTIF_MSG): (Action.NOTIFIED, State.IDLE),
    (State.ESTABLISHED, Input.HOLD_TIMER_EXPIRES): (Action.HOLD_EXPIRED, State.IDLE),
    (State.ESTABLISHED, Input.SEND_HOLD_TIMER_EXPIRES): (
        Action.SEND_HOLD_EXPIRED,
        State.IDLE,
    ),
    (State.ESTABLISHED, Input.KEEPALIVE_TIMER_EXPIRES): (
        Action.SEND_KEEPALIVE,
        State.ESTABLISHED,
    ),
    (State.ESTABLISHED, Input.TCP_CONNECTION_FAILS): (Action.LOST, State.IDLE),
    (State.ESTABLISHED, Input.MANUAL_STOP): (Action.STOP, State.IDLE),
}
