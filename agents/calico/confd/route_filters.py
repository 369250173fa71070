"""BGPFilters in BIRD's language: rules that let a peer's routes in or out, or change them (pure).

A rule's priority is the complement of LOCAL_PREF, as felix's route metrics are.  Source:
projectcalico/calico api/pkg/apis/projectcalico/v3/bgpfilter.go and the bird.cfg template.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from agents.bird.filters import (
    Accept,
    AddCommunity,
    All,
    Attr,
    CommunityKind,
    Compare,
    Const,
    Defined,
    HasCommunity,
    If,
    IfnameMatches,
    NetIn,
    NetPattern,
    Not,
    PathStartsWith,
    PrependAs,
    Reject,
    Set,
    Source,
    SourceIn,
)
from agents.bird.net import Afi, Net
from agents.calico.net import Cidr
from agents.calico.validation_fields import parse_as
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.bird.filters import Condition, Statement

# BIRD's limit of a symbol's length (SYM_MAX_LEN).
_MAX_NAME: Final = 64
# The best priority is the smallest metric, the best LOCAL_PREF the largest number.
_LOCAL_PREF_OF_0: Final = 2**31 - 1


def net(cidr: Cidr) -> Net:
    """The same network in the speaker's terms."""
    return Net(Afi.IPV4 if cidr.version == 4 else Afi.IPV6, cidr.network, cidr.length)


def function_name(name: str, direction: str) -> str:
    """The function of a BGPFilter and a direction; a long name is cut and told apart by a hash."""
    if len(name) > _MAX_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16].upper()
        name = f"{name[: _MAX_NAME - 17]}_{digest}"
    return f"bgp_{name}_{direction}FilterV4"


def asks_peer_type(spec: Mapping[str, Any], direction: str) -> bool:
    """True if a rule is for internal or for external peers only."""
    return any(rule.get("peerType") for rule in spec.get(f"{direction}V4") or ())


def filter_rules(spec: Mapping[str, Any], direction: str, internal: Const) -> tuple[Statement, ...]:
    """The rules of a BGPFilter in order; one that cannot be read is left out.

    ``internal`` says whether the peer is of the node's own AS.
    """
    statements: list[Statement] = []
    for rule in spec.get(f"{direction}V4") or ():
        try:
            conditions = _conditions(rule, internal)
            body = (*_operations(rule), Accept() if rule.get("action") == "Accept" else Reject())
        except (UsageError, ValueError):
            continue
        if not conditions:
            statements += body
        else:
            one = conditions[0] if len(conditions) == 1 else All(conditions)
            statements.append(If(one, body))
    return tuple(statements)


def _conditions(rule: Mapping[str, Any], internal: Const) -> tuple[Condition, ...]:
    conditions: list[Condition] = []
    if rule.get("peerType"):
        conditions.append(internal if rule["peerType"] == "iBGP" else Not(internal))
    if rule.get("cidr"):
        conditions.append(_net_condition(rule))
    if rule.get("source") == "RemotePeers":
        conditions += [Defined(Attr.SOURCE), SourceIn((Source.BGP,))]
    if rule.get("interface"):
        conditions += [Defined(Attr.IFNAME), IfnameMatches((str(rule["interface"]),))]
    for text in (rule.get("communities") or {}).get("values") or ():
        conditions.append(HasCommunity(*_community(text)))
    if rule.get("asPathPrefix"):
        conditions.append(PathStartsWith(_as_numbers(rule["asPathPrefix"])))
    if rule.get("priority") is not None:
        conditions.append(Compare(Attr.LOCAL_PREF, "=", _LOCAL_PREF_OF_0 - int(rule["priority"])))
    return tuple(conditions)


def _operations(rule: Mapping[str, Any]) -> list[Statement]:
    statements: list[Statement] = []
    for operation in rule.get("operations") or ():
        if operation.get("addCommunity"):
            statements.append(AddCommunity(*_community(operation["addCommunity"].get("value"))))
        if operation.get("prependASPath"):
            # The last one that is put in front is the first of the path.
            numbers = reversed(_as_numbers(operation["prependASPath"].get("prefix") or ()))
            statements += [PrependAs(number) for number in numbers]
        if operation.get("setPriority"):
            value = int(operation["setPriority"]["value"])
            statements.append(Set(Attr.LOCAL_PREF, _LOCAL_PREF_OF_0 - value))
    return statements


def _community(text: object) -> tuple[CommunityKind, tuple[int, ...]]:
    value = tuple(int(part) for part in str(text).split(":"))
    return CommunityKind.STANDARD if len(value) == 2 else CommunityKind.LARGE, value


def _as_numbers(values: Any) -> tuple[int, ...]:
    numbers = [parse_as(value) for value in values]
    if None in numbers:
        raise UsageError(f"{values} are not AS numbers")
    return tuple(number for number in numbers if number is not None)


def _net_condition(rule: Mapping[str, Any]) -> Condition:
    cidr = net(Cidr.parse(str(rule["cidr"])))
    operator = rule.get("matchOperator") or "In"
    if operator in ("Equal", "NotEqual"):
        pattern = NetPattern.exactly(cidr)
    else:
        lengths = rule.get("prefixLength") or {}
        low, high = lengths.get("min"), lengths.get("max")
        pattern = NetPattern(
            cidr,
            cidr.length if low is None else max(int(low), cidr.length),
            cidr.afi.bits if high is None else int(high),
        )
    found = NetIn((pattern,))
    return Not(found) if operator.startswith("Not") else found
