"""The matches and targets that exist, by name: one table each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.netstack.netfilter.match_l4 import IcmpMatch, MultiportMatch, TcpMatch, UdpMatch
from emulator.netstack.netfilter.match_plain import (
    CommentMatch,
    ConnmarkMatch,
    MarkMatch,
    PhysdevMatch,
)
from emulator.netstack.netfilter.match_rate import LimitMatch, RecentMatch, StatisticMatch
from emulator.netstack.netfilter.match_route import AddrtypeMatch, RpfilterMatch, SetMatch
from emulator.netstack.netfilter.match_state import ConntrackMatch, StateMatch
from emulator.netstack.netfilter.target_nat import (
    DnatTarget,
    MasqueradeTarget,
    RedirectTarget,
    SnatTarget,
)
from emulator.netstack.netfilter.target_plain import (
    ConnmarkTarget,
    CtTarget,
    LogTarget,
    MarkTarget,
    NotrackTarget,
    RejectTarget,
)
from emulator.netstack.packet import ICMP, TCP, UDP

if TYPE_CHECKING:
    from emulator.netstack.netfilter.extension import Match, Target

MATCHES: Final[dict[str, type[Match]]] = {
    match.name: match
    for match in (
        AddrtypeMatch,
        CommentMatch,
        ConnmarkMatch,
        ConntrackMatch,
        IcmpMatch,
        LimitMatch,
        MarkMatch,
        MultiportMatch,
        PhysdevMatch,
        RecentMatch,
        RpfilterMatch,
        SetMatch,
        StateMatch,
        StatisticMatch,
        TcpMatch,
        UdpMatch,
    )
}

TARGETS: Final[dict[str, type[Target]]] = {
    target.name: target
    for target in (
        ConnmarkTarget,
        CtTarget,
        DnatTarget,
        LogTarget,
        MarkTarget,
        MasqueradeTarget,
        NotrackTarget,
        RedirectTarget,
        RejectTarget,
        SnatTarget,
    )
}

# Loaded by -p alone when one of their options follows.
PROTOCOL_MATCHES: Final[dict[int, type[Match]]] = {
    TCP: TcpMatch,
    UDP: UdpMatch,
    ICMP: IcmpMatch,
}

STANDARD_VERDICTS: Final = ("ACCEPT", "DROP", "RETURN")
