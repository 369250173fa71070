"""Filters as a small typed tree: what BIRD's filter language says in Calico's configurations.

A ``Filter`` is a list of statements; a route that reaches the end is rejected (BIRD's "filter did
not return accept nor reject").  ``filter_eval`` runs them.  Everything is frozen and compares by
value, so a speaker can see which filters of a new configuration differ.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from agents.bird.net import Afi, Net


class Source(enum.StrEnum):
    """Where a route came from (BIRD's RTS_*)."""

    BGP = "RTS_BGP"
    STATIC = "RTS_STATIC"
    DEVICE = "RTS_DEVICE"
    INHERIT = "RTS_INHERIT"


class Attr(enum.StrEnum):
    """Attributes that can be compared, tested with ``defined()`` and set, by BIRD's names."""

    LOCAL_PREF = "bgp_local_pref"
    MED = "bgp_med"
    ORIGIN = "bgp_origin"
    PATH_LEN = "bgp_path.len"
    NEXT_HOP = "bgp_next_hop"
    PREFERENCE = "preference"
    KRT_METRIC = "krt_metric"
    KRT_TUNNEL = "krt_tunnel"
    SOURCE = "source"
    IFNAME = "ifname"


class CommunityKind(enum.StrEnum):
    """The three kinds: RFC 1997, RFC 4360, RFC 8092."""

    STANDARD = "bgp_community"
    EXTENDED = "bgp_ext_community"
    LARGE = "bgp_large_community"


@dataclass(frozen=True, slots=True)
class NetPattern:
    """Prefixes inside ``net`` whose length is from ``low`` to ``high``."""

    net: Net
    low: int
    high: int

    @classmethod
    def inside(cls, net: Net) -> NetPattern:
        """``net ~ N``: the network or any part of it."""
        return cls(net, net.length, net.afi.bits)

    @classmethod
    def exactly(cls, net: Net) -> NetPattern:
        """``net = N``."""
        return cls(net, net.length, net.length)

    def matches(self, net: Net) -> bool:
        """True if ``net`` is one of these prefixes."""
        return self.low <= net.length <= self.high and self.net.covers(net)


# Conditions


@dataclass(frozen=True, slots=True)
class Const:
    """A condition known beforehand, as a function's bool parameter is."""

    value: bool


@dataclass(frozen=True, slots=True)
class NetIn:
    """``net ~ [ patterns ]``: the only condition that looks at the prefix itself."""

    patterns: tuple[NetPattern, ...]


@dataclass(frozen=True, slots=True)
class NextHopIn:
    """``bgp_next_hop ~ [ nets ]``; false for a route without one."""

    nets: tuple[Net, ...]


@dataclass(frozen=True, slots=True)
class SourceIn:
    """``source ~ [ RTS_… ]``."""

    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class IfnameMatches:
    """``ifname ~ "glob"`` for any of the globs (``*`` and ``?``)."""

    globs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProtoMatches:
    """``proto ~ "glob"``: the protocol instance the route came from."""

    globs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HasCommunity:
    """The value is in the route's list of that kind.

    ``value`` is (a, b) for standard, (a, b, c) for large, the 8 octets as one integer in a
    one-tuple for extended communities.
    """

    kind: CommunityKind
    value: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PathContains:
    """``bgp_path ~ [= * asn * =]``."""

    asn: int


@dataclass(frozen=True, slots=True)
class PathStartsWith:
    """``bgp_path ~ [= a b * =]``: BGPFilter's asPathPrefix."""

    asns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """``attr op value`` with op one of ``= != < <= > >=``; a missing attribute compares false.

    LOCAL_PREF MED PATH_LEN PREFERENCE KRT_METRIC compare integers, ORIGIN 0 IGP, 1 EGP,
    2 incomplete, KRT_TUNNEL and IFNAME texts, NEXT_HOP 4 or 16 bytes.
    """

    attr: Attr
    op: str
    value: int | str | bytes


@dataclass(frozen=True, slots=True)
class Defined:
    """``defined(attr)``."""

    attr: Attr


@dataclass(frozen=True, slots=True)
class Not:
    """``! ( … )``."""

    condition: Condition


@dataclass(frozen=True, slots=True)
class All:
    """``a && b …``; true if empty."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """``a || b …``; false if empty."""

    conditions: tuple[Condition, ...]


Condition = (
    Const
    | NetIn
    | NextHopIn
    | SourceIn
    | IfnameMatches
    | ProtoMatches
    | HasCommunity
    | PathContains
    | PathStartsWith
    | Compare
    | Defined
    | Not
    | All
    | AnyOf
)

# Statements


@dataclass(frozen=True, slots=True)
class Accept:
    """Take the route."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Leave the route."""


@dataclass(frozen=True, slots=True)
class Return:
    """Leave the function."""


@dataclass(frozen=True, slots=True)
class If:
    """``if condition then { … } else { … }``."""

    condition: Condition
    then: tuple[Statement, ...]
    orelse: tuple[Statement, ...] = ()


@dataclass(frozen=True, slots=True)
class Set:
    """``attr = value`` for LOCAL_PREF MED ORIGIN NEXT_HOP PREFERENCE KRT_METRIC KRT_TUNNEL.

    Types of the value as in ``Compare``.
    """

    attr: Attr
    value: int | str | bytes


@dataclass(frozen=True, slots=True)
class Unset:
    """``unset(attr)`` for LOCAL_PREF MED KRT_METRIC KRT_TUNNEL."""

    attr: Attr


@dataclass(frozen=True, slots=True)
class AddCommunity:
    """``kind.add(value)``; values as in ``HasCommunity``."""

    kind: CommunityKind
    value: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeleteCommunity:
    """``kind.delete(value)``."""

    kind: CommunityKind
    value: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClearCommunities:
    """``kind.empty``."""

    kind: CommunityKind


@dataclass(frozen=True, slots=True)
class PrependAs:
    """``bgp_path.prepend(asn)``, ``count`` times."""

    asn: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a named function; ``Return`` in its body ends the body only."""

    name: str
    body: tuple[Statement, ...]


Statement = (
    Accept
    | Reject
    | Return
    | If
    | Set
    | Unset
    | AddCommunity
    | DeleteCommunity
    | ClearCommunities
    | PrependAs
    | Call
)


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter; ``name`` is what ``show protocols all`` says: ACCEPT, REJECT, a name or ""."""

    body: tuple[Statement, ...]
    name: str = ""

    @property
    def label(self) -> str:
        """The name as BIRD prints it."""
        return self.name or "(unnamed)"


ACCEPT_ALL: Final = Filter((Accept(),), "ACCEPT")
REJECT_ALL: Final = Filter((Reject(),), "REJECT")


def net_in(*texts: str) -> NetIn:
    """``net ~ [ … ]`` of texts such as ``10.0.0.0/8``, ``10.0.0.0/8+`` and ``10.0.0.0/8{24,26}``.

    As in BIRD's prefix sets a bare prefix matches only itself; ``-`` as a suffix (shorter ones) is
    not taken.  Raises UsageError.
    """
    return NetIn(tuple(_pattern(text) for text in texts))


def _pattern(text: str) -> NetPattern:
    if text.endswith("+"):
        return NetPattern.inside(Net.parse(text[:-1]))
    net_text, brace, lengths = text.partition("{")
    net = Net.parse(net_text)
    if not brace:
        return NetPattern.exactly(net)
    low, _, high = lengths.rstrip("}").partition(",")
    return NetPattern(net, int(low), int(high))


__all__ = [
    "ACCEPT_ALL",
    "REJECT_ALL",
    "Accept",
    "AddCommunity",
    "Afi",
    "All",
    "AnyOf",
    "Attr",
    "Call",
    "ClearCommunities",
    "CommunityKind",
    "Compare",
    "Condition",
    "Const",
    "Defined",
    "DeleteCommunity",
    "Filter",
    "HasCommunity",
    "If",
    "IfnameMatches",
    "Net",
    "NetIn",
    "NetPattern",
    "NextHopIn",
    "Not",
    "PathContains",
    "PathStartsWith",
    "PrependAs",
    "ProtoMatches",
    "Reject",
    "Return",
    "Set",
    "Source",
    "SourceIn",
    "Statement",
    "Unset",
    "net_in",
]
