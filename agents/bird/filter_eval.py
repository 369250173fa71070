"""Running filters: once for each set of attributes, then only as far as the prefix matters.

``specialise`` runs a filter with everything known but the network.  What comes out is a ``Leaf``
if the network was never asked about, else a ``Branch`` whose two sides are worked out when the
first route takes them.  A message's thousand prefixes with one set of attributes so cost one run.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from agents.bird.attributes import (
    Attrs,
    list_contains,
    list_delete,
    path_count,
    path_length,
    path_prepend,
    segments,
)
from agents.bird.filters import (
    Accept,
    AddCommunity,
    All,
    AnyOf,
    Attr,
    Call,
    ClearCommunities,
    CommunityKind,
    Compare,
    Condition,
    Const,
    Defined,
    DeleteCommunity,
    Filter,
    HasCommunity,
    If,
    IfnameMatches,
    NetIn,
    NextHopIn,
    Not,
    PathContains,
    PathStartsWith,
    PrependAs,
    ProtoMatches,
    Reject,
    Return,
    Set,
    Source,
    SourceIn,
    Statement,
    Unset,
)
from agents.bird.net import Afi, Net

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.bird.rib import Path

# Bits of ``Leaf.fresh``: the filter itself set these (BIRD's EAF_FRESH).
FRESH_NEXT_HOP: Final = 1
FRESH_MED: Final = 2

_FIELDS: Final = {
    Attr.LOCAL_PREF: "local_pref",
    Attr.MED: "med",
    Attr.ORIGIN: "origin",
    Attr.NEXT_HOP: "next_hop",
    Attr.PREFERENCE: "preference",
    Attr.KRT_METRIC: "krt_metric",
    Attr.KRT_TUNNEL: "krt_tunnel",
}
_LISTS: Final = {
    CommunityKind.STANDARD: ("communities", 2),
    CommunityKind.EXTENDED: ("ext_communities", 8),
    CommunityKind.LARGE: ("large_communities", 4),
}
_PLACES: Final = {field: at for at, field in enumerate(Attrs._fields)}
_COMPARISONS: Final[dict[str, Callable[[object, object], bool]]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,  # type: ignore[operator]  # Compare documents the types
    "<=": lambda a, b: a <= b,  # type: ignore[operator]
    ">": lambda a, b: a > b,  # type: ignore[operator]
    ">=": lambda a, b: a >= b,  # type: ignore[operator]
}


class Facts(NamedTuple):
    """What a filter sees of a route beside its network and attributes."""

    source: Source
    ifname: str = ""
    proto: str = ""


class Leaf(NamedTuple):
    """A filter's answer."""

    accept: bool
    attrs: Attrs
    fresh: int = 0


# Statements still to run: (statements, index, what follows, whether a function's end is here).
_Rest = tuple[tuple[Statement, ...], int, "_Rest | None", bool]


class Branch:
    """A filter stopped at a question about the network."""

    __slots__ = ("_attrs", "_condition", "_facts", "_fresh", "_no", "_orelse", "_then", "_yes")

    def __init__(
        self,
        condition: Condition,
        then: _Rest | None,
        orelse: _Rest | None,
        attrs: Attrs,
        facts: Facts,
        fresh: int,
    ) -> None:
        self._condition = condition
        self._then = then
        self._orelse = orelse
        self._attrs = attrs
        self._facts = facts
        self._fresh = fresh
        self._yes: Leaf | Branch | None = None
        self._no: Leaf | Branch | None = None

    def step(self, net: Net) -> Leaf | Branch:
        """Answer the question for one network."""
        if _of_net(self._condition, net):
            if self._yes is None:
                self._yes = _run(self._then, self._attrs, self._facts, self._fresh)
            return self._yes
        if self._no is None:
            self._no = _run(self._orelse, self._attrs, self._facts, self._fresh)
        return self._no


def specialise(filter_: Filter, attrs: Attrs, facts: Facts) -> Leaf | Branch:
    """Run a filter as far as it goes without the network."""
    return _run((filter_.body, 0, None, True), attrs, facts, 0)


def finish(outcome: Leaf | Branch, afi: Afi, key: bytes) -> Leaf:
    """The answer for one network, given as a table key."""
    if isinstance(outcome, Leaf):
        return outcome
    net = Net.from_key(afi, key)
    while isinstance(outcome, Branch):
        outcome = outcome.step(net)
    return outcome


def evaluate(filter_: Filter, net: Net, attrs: Attrs, facts: Facts) -> Leaf:
    """The answer for one route."""
    return finish(specialise(filter_, attrs, facts), net.afi, net.key)


def facts_of(path: Path) -> Facts:
    """What a filter sees of a path as it is now."""
    ways = path.ways
    return Facts(path.channel.source, ways[0].dev if ways else "", path.channel.name)


def _run(rest: _Rest | None, attrs: Attrs, facts: Facts, fresh: int) -> Leaf | Branch:
    while rest is not None:
        statements, index, after, _ = rest
        if index == len(statements):
            rest = after
            continue
        statement = statements[index]
        rest = (statements, index + 1, after, rest[3])
        match statement:
            case Accept():
                return Leaf(True, attrs, fresh)
            case Reject():
                return Leaf(False, attrs, fresh)
            case Return():
                rest = _leave(rest)
            case If():
                known = _known(statement.condition, attrs, facts)
                then: _Rest = (statement.then, 0, rest, False)
                orelse: _Rest = (statement.orelse, 0, rest, False)
                if not isinstance(known, bool):
                    return Branch(known, then, orelse, attrs, facts, fresh)
                rest = then if known else orelse
            case Call():
                rest = (statement.body, 0, rest, True)
            case _:
                attrs = _act(statement, attrs)
                if isinstance(statement, Set):
                    if statement.attr is Attr.NEXT_HOP:
                        fresh |= FRESH_NEXT_HOP
                    elif statement.attr is Attr.MED:
                        fresh |= FRESH_MED
    return Leaf(False, attrs, fresh)


def _leave(rest: _Rest) -> _Rest | None:
    """What follows the function that ``rest`` is in."""
    at: _Rest | None = rest
    while at is not None and not at[3]:
        at = at[2]
    return None if at is None else at[2]


def _act(statement: Statement, attrs: Attrs) -> Attrs:
    match statement:
        case Set(attr, value):
            return _with(attrs, _FIELDS[attr], value)
        case Unset(attr):
            return _with(attrs, _FIELDS[attr], None)
        case AddCommunity(kind, value):
            field, size = _LISTS[kind]
            octets = _octets(value, size)
            have: bytes = getattr(attrs, field)
            if list_contains(have, octets):
                return attrs
            return _with(attrs, field, have + octets)
        case DeleteCommunity(kind, value):
            field, size = _LISTS[kind]
            return _with(attrs, field, list_delete(getattr(attrs, field), _octets(value, size)))
        case ClearCommunities(kind):
            return _with(attrs, _LISTS[kind][0], b"")
        case PrependAs(asn, count):
            return attrs._replace(as_path=path_prepend(attrs.as_path, asn, count))
    raise AssertionError(f"{statement!r} is no statement")


def _with(attrs: Attrs, field: str, value: object) -> Attrs:
    at = _PLACES[field]
    return Attrs._make((*attrs[:at], value, *attrs[at + 1 :]))


def _octets(value: tuple[int, ...], size: int) -> bytes:
    return b"".join(part.to_bytes(size, "big") for part in value)


def _known(condition: Condition, attrs: Attrs, facts: Facts) -> bool | Condition:
    """The truth of a condition, or what is left of it where the network decides."""
    match condition:
        case NetIn():
            return condition
        case Not(inner):
            known = _known(inner, attrs, facts)
            return not known if isinstance(known, bool) else Not(known)
        case All(parts) | AnyOf(parts):
            neutral = isinstance(condition, All)
            left: list[Condition] = []
            for part in parts:
                known = _known(part, attrs, facts)
                if not isinstance(known, bool):
                    left.append(known)
                elif known is not neutral:
                    return not neutral
            if not left:
                return neutral
            return All(tuple(left)) if neutral else AnyOf(tuple(left))
        case _:
            return _test(condition, attrs, facts)


def _of_net(condition: Condition, net: Net) -> bool:
    match condition:
        case NetIn(patterns):
            return any(pattern.matches(net) for pattern in patterns)
        case Not(inner):
            return not _of_net(inner, net)
        case All(parts):
            return all(_of_net(part, net) for part in parts)
        case AnyOf(parts):
            return any(_of_net(part, net) for part in parts)
    raise AssertionError(f"{condition!r} does not ask about the network")


def _test(condition: Condition, attrs: Attrs, facts: Facts) -> bool:
    match condition:
        case Const(value):
            return value
        case NextHopIn(nets):
            hop = attrs.next_hop[:16]
            if not hop:
                return False
            afi = Afi.IPV4 if len(hop) == 4 else Afi.IPV6
            host = Net(afi, int.from_bytes(hop, "big"), afi.bits)
            return any(net.covers(host) for net in nets)
        case SourceIn(sources):
            return facts.source in sources
        case IfnameMatches(globs):
            return any(fnmatchcase(facts.ifname, glob) for glob in globs)
        case ProtoMatches(globs):
            return any(fnmatchcase(facts.proto, glob) for glob in globs)
        case HasCommunity(kind, value):
            field, size = _LISTS[kind]
            return list_contains(getattr(attrs, field), _octets(value, size))
        case PathContains(asn):
            return path_count(attrs.as_path, asn) > 0
        case PathStartsWith(asns):
            flat = [asn for _, part in segments(attrs.as_path) for asn in part]
            return tuple(flat[: len(asns)]) == asns
        case Compare(attr, op, value):
            have = _value(attr, attrs, facts)
            return have is not None and _COMPARISONS[op](have, value)
        case Defined(attr):
            have = _value(attr, attrs, facts)
            return have is not None and have not in ("", b"")
    raise AssertionError(f"{condition!r} is no condition")


def _value(attr: Attr, attrs: Attrs, facts: Facts) -> object:
    match attr:
        case Attr.PATH_LEN:
            return path_length(attrs.as_path)
        case Attr.SOURCE:
            return facts.source
        case Attr.IFNAME:
            return facts.ifname
    return getattr(attrs, _FIELDS[attr])
