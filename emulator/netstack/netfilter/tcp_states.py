"""TCP as a connection tracker in the middle sees it.

Theory of operation: the tracker guesses the state of the two ends from the flags of the segments
that pass.  ``TRANSITIONS[reply][kind]`` gives, for each state a connection can be in, the state
after a segment of that kind from the original (0) or the reply (1) direction.  ``IGNORE`` means
that the segment is let through and changes nothing, ``INVALID`` that it belongs to no connection.
States, table and timeouts are those of net/netfilter/nf_conntrack_proto_tcp.c.

Sequence numbers are not checked against the windows, as with nf_conntrack_tcp_be_liberal=1:
inside an emulator no one forges segments, and the flow cache may carry segments past this table.
"""

from __future__ import annotations

import enum
from typing import Final


class TcpState(enum.IntEnum):
    """The kernel's names, in the kernel's order."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9
    INVALID = 10
    IGNORE = 11


class Segment(enum.IntEnum):
    """What the flags of a segment say, RST first, then SYN, FIN, ACK."""

    SYN = 0
    SYNACK = 1
    FIN = 2
    ACK = 3
    RST = 4
    NONE = 5


FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32


# Flags that may stand together, PSH and the ECN bits aside; others are no TCP (tcp_valid_flags).
VALID_FLAGS: Final = frozenset(
    (
        SYN,
        SYN | URG,
        SYN | ACK,
        RST,
        RST | ACK,
        FIN | ACK,
        FIN | ACK | URG,
        ACK,
        ACK | URG,
    )
)


def segment_kind(flags: int) -> Segment:
    """Classify the flags byte of a TCP header."""
    if flags & RST:
        return Segment.RST
    if flags & SYN:
        return Segment.SYNACK if flags & ACK else Segment.SYN
    if flags & FIN:
        return Segment.FIN
    return Segment.ACK if flags & ACK else Segment.NONE


_NO, _SS, _SR, _ES, _FW, _CW, _LA, _TW, _CL, _S2, _IV, _IG = TcpState

# Columns: NONE SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT CLOSE SYN_SENT2
TRANSITIONS: Final[tuple[tuple[tuple[TcpState, ...], ...], ...]] = (
    (
        (_SS, _SS, _IG, _IG, _IG, _IG, _IG, _SS, _SS, _S2),  # SYN
        (_IV, _IV, _SR, _IV, _IV, _IV, _IV, _IV, _IV, _SR),  # SYN ACK
        (_IV, _IV, _FW, _FW, _LA, _LA, _LA, _TW, _CL, _IV),  # FIN
        (_ES, _IV, _ES, _ES, _CW, _CW, _TW, _TW, _CL, _IV),  # ACK
        (_IV, _CL, _CL, _CL, _CL, _CL, _CL, _CL, _CL, _CL),  # RST
        (_IV, _IV, _IV, _IV, _IV, _IV, _IV, _IV, _IV, _IV),  # no flag
    ),
    (
        (_IV, _S2, _IV, _IV, _IV, _IV, _IV, _SS, _IV, _S2),  # SYN
        (_IV, _SR, _IG, _IG, _IG, _IG, _IG, _IG, _IG, _SR),  # SYN ACK
        (_IV, _IV, _FW, _FW, _LA, _LA, _LA, _TW, _CL, _IV),  # FIN
        (_IV, _IG, _SR, _ES, _CW, _CW, _TW, _TW, _CL, _IG),  # ACK
        (_IV, _CL, _CL, _CL, _CL, _CL, _CL, _CL, _CL, _CL),  # RST
        (_IV, _IV, _IV, _IV, _IV, _IV, _IV, _IV, _IV, _IV),  # no flag
    ),
)

# Seconds, by state.
TIMEOUT_S: Final[tuple[float, ...]] = (
    0.0,  # NONE
    120.0,  # SYN_SENT
    60.0,  # SYN_RECV
    432000.0,  # ESTABLISHED
    120.0,  # FIN_WAIT
    60.0,  # CLOSE_WAIT
    30.0,  # LAST_ACK
    120.0,  # TIME_WAIT
    10.0,  # CLOSE
    120.0,  # SYN_SENT2
)

# A connection picked up in the middle, of which the other side has not been seen yet, is kept
# only this long (TCP_CONNTRACK_UNACK).
UNACKNOWLEDGED_TIMEOUT_S: Final = 300.0
