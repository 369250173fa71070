"""Read which endpoints policies, and the two ends of their rules, are about; pure.

Namespaces become label tests, a selector of namespaces or service accounts tests labels under
``pcns.`` and ``pcsa.`` that profiles give to endpoints
(libcalico-go/lib/backend/syncersv1/updateprocessors).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.calico.felix.model import (
    NAMESPACE_LABEL,
    PolicyRule,
    Side,
)
from agents.calico.selector import (
    All,
    And,
    Comparison,
    Global,
    Has,
    In,
    Node,
    Not,
    Or,
    Selector,
    parse_selector,
)
from agents.calico.unenforced import beyond_packets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


_NAMESPACE_PREFIX, _ACCOUNT_PREFIX = "pcns.", "pcsa."


def _prefixed(node: Node, prefix: str) -> Node:
    """The same test of labels under a prefix (``pcns.``, ``pcsa.``)."""
    match node:
        case Has(label):
            return Has(prefix + label)
        case Comparison(label, op, value):
            return Comparison(prefix + label, op, value)
        case In(label, values, negated):
            return In(prefix + label, values, negated)
        case Not(operand):
            return Not(_prefixed(operand, prefix))
        case And(operands):
            return And(tuple(_prefixed(each, prefix) for each in operands))
        case Or(operands):
            return Or(tuple(_prefixed(each, prefix) for each in operands))
    return node


def namespace_selector(text: str) -> Node:
    """What a selector of namespaces asks of an endpoint."""
    root = parse_selector(text).root
    if isinstance(root, All):
        return Has(NAMESPACE_LABEL)
    if isinstance(root, Global):
        return Not(Has(NAMESPACE_LABEL))
    return _prefixed(root, _NAMESPACE_PREFIX)


def _accounts(match: Mapping[str, Any]) -> Node | None:
    """What ``serviceAccounts`` of a rule asks of an endpoint."""
    tests: list[Node] = []
    names = match.get("names") or []
    if names:
        label = "projectcalico.org/serviceaccount"
        tests.append(In(label, tuple(sorted(dict.fromkeys(names)))))
    if match.get("selector"):
        tests.append(_prefixed(parse_selector(match["selector"]).root, _ACCOUNT_PREFIX))
    if not tests:
        return None
    return tests[0] if len(tests) == 1 else And(tuple(tests))


def policy_selector(spec: Mapping[str, Any], namespace: str) -> Selector:
    """Which endpoints a policy is about: its selectors and its namespace."""
    root: Node = parse_selector(str(spec.get("selector") or "all()")).root
    if spec.get("serviceAccountSelector"):
        accounts = _prefixed(parse_selector(spec["serviceAccountSelector"]).root, _ACCOUNT_PREFIX)
        root = And((root, accounts))
    if namespace:
        return Selector(And((root, Comparison(NAMESPACE_LABEL, "==", namespace))))
    if spec.get("namespaceSelector"):
        root = And((root, namespace_selector(spec["namespaceSelector"])))
    return Selector(root)


def entity_selector(entity: Mapping[str, Any], namespace: str) -> Selector | None:
    """Which endpoints one end of a rule is about; None if it does not ask for any."""
    text = str(entity.get("selector") or "")
    spaces = str(entity.get("namespaceSelector") or "")
    accounts = _accounts(entity.get("serviceAccounts") or {})
    if not text and not spaces and accounts is None:
        return None
    root: Node | None = None
    if spaces:
        root = namespace_selector(spaces)
    elif namespace:
        root = Comparison(NAMESPACE_LABEL, "==", namespace)
    for test in (parse_selector(text).root if text else None, accounts):
        if test is not None:
            root = test if root is None else And((root, test))
    assert root is not None
    return Selector(root)


# Rules ---------------------------------------------------------------------------------------


def read_rules(rules: Iterable[Mapping[str, Any]] | None, namespace: str) -> tuple[PolicyRule, ...]:
    """The rules of one direction that packets of IPv4 can tell."""
    return tuple(
        _rule(rule, namespace)
        for rule in rules or ()
        if rule.get("ipVersion") in (None, 4) and not beyond_packets(rule)
    )


def _rule(rule: Mapping[str, Any], namespace: str) -> PolicyRule:
    return PolicyRule(
        str(rule["action"]),
        _protocol(rule.get("protocol")),
        _protocol(rule.get("notProtocol")),
        _icmp(rule.get("icmp")),
        _icmp(rule.get("notICMP")),
        _side(rule.get("source") or {}, namespace),
        _side(rule.get("destination") or {}, namespace),
    )


def _protocol(value: object) -> str:
    return "" if value is None else str(value).lower()


def _icmp(value: Mapping[str, Any] | None) -> tuple[int, int | None] | None:
    if not value or value.get("type") is None:
        return None
    code = value.get("code")
    return int(value["type"]), None if code is None else int(code)


def _side(entity: Mapping[str, Any], namespace: str) -> Side:
    negated = str(entity.get("notSelector") or "")
    return Side(
        entity_selector(entity, namespace),
        parse_selector(negated) if negated else None,
        tuple(map(str, entity.get("nets") or ())),
        tuple(map(str, entity.get("notNets") or ())),
        tuple(map(str, entity.get("ports") or ())),
        tuple(map(str, entity.get("notPorts") or ())),
    )
