"""The TCP connection state machine (RFC 9293 section 3.3.2, figure 5).

Theory of operation.  A connection has exactly one state; ``TcpConnection._transition`` is its only
writer and looks the new state up here.  A pair that is not in the table is a bug of ours, never
something a peer can cause: ``receive_segment`` checks a segment against the state first and only
then turns it into one of these inputs.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.IntEnum):
    """RFC names; the numbers are those of linux/tcp_states.h (``/proc/net/tcp``)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECEIVED = 3
    FIN_WAIT_1 = 4
    FIN_WAIT_2 = 5
    TIME_WAIT = 6
    CLOSED = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


class Input(enum.Enum):
    """What moves a connection on."""

    OPEN = "active OPEN"
    SYN = "receive SYN"
    SYN_ACK = "receive SYN,ACK of our SYN"
    SYN_ACKED = "our SYN is acknowledged"
    CLOSE = "CLOSE (or SHUTDOWN of sending)"
    FIN = "receive FIN"
    FIN_ACKED = "our FIN is acknowledged"
    TIMEOUT_2MSL = "2MSL passed"
    DELETE = "ABORT, RST, or the user timeout"


_S, _I = State, Input

TRANSITIONS: Final[dict[tuple[State, Input], State]] = {
    (_S.CLOSED, _I.OPEN): _S.SYN_SENT,
    (_S.CLOSED, _I.SYN): _S.SYN_RECEIVED,  # the child of a LISTEN socket
    (_S.SYN_SENT, _I.SYN_ACK): _S.ESTABLISHED,
    (_S.SYN_SENT, _I.SYN): _S.SYN_RECEIVED,  # simultaneous open
    (_S.SYN_RECEIVED, _I.SYN_ACKED): _S.ESTABLISHED,
    (_S.ESTABLISHED, _I.CLOSE): _S.FIN_WAIT_1,
    (_S.ESTABLISHED, _I.FIN): _S.CLOSE_WAIT,
    (_S.FIN_WAIT_1, _I.FIN_ACKED): _S.FIN_WAIT_2,
    (_S.FIN_WAIT_1, _I.FIN): _S.CLOSING,
    (_S.FIN_WAIT_2, _I.FIN): _S.TIME_WAIT,
    (_S.CLOSING, _I.FIN_ACKED): _S.TIME_WAIT,
    (_S.CLOSE_WAIT, _I.CLOSE): _S.LAST_ACK,
    (_S.LAST_ACK, _I.FIN_ACKED): _S.CLOSED,
    (_S.TIME_WAIT, _I.TIMEOUT_2MSL): _S.CLOSED,
    **{(state, _I.DELETE): _S.CLOSED for state in State},
}

# States in which data (or our FIN) may still have to be sent or repeated.
SENDING: Final = frozenset({_S.ESTABLISHED, _S.CLOSE_WAIT, _S.FIN_WAIT_1, _S.CLOSING, _S.LAST_ACK})
# States in which the peer may still send us data.
RECEIVING: Final = frozenset({_S.ESTABLISHED, _S.FIN_WAIT_1, _S.FIN_WAIT_2})
