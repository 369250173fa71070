"""Policy rules as iptables rules and IP sets; pure.

A rule may ask for more than one iptables rule can: lists of networks, more ports than multiport
takes, named ports.  Such lists become blocks of rules that leave their answer in a mark bit, all
of which the last rule tests.  Source: felix/rules/policy.go, felix/calc/rule_convert.go.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agents.calico.felix.names import set_name
from agents.calico.felix.rules import (
    ACCEPT_MARK,
    DROP,
    PASS_MARK,
    RETURN,
    SCRATCH_0,
    SCRATCH_1,
    Rule,
    clear_mark,
    mark_clear,
    mark_set,
    set_mark,
)
from agents.calico.selector import parse_selector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.calico.felix.model import PolicyRule, Side
    from agents.calico.selector import Selector

MAX_MULTIPORT: Final = 15  # XT_MULTI_PORTS: a range takes two places
_EVERYWHERE: Final = parse_selector("all()")
# Sets that hold addresses and ports know these protocols.
_NAMED_PROTOCOLS: Final = {"tcp": "tcp", "6": "tcp", "udp": "udp", "17": "udp", "sctp": "sctp"}


class SetsWanted:
    """The sets rules look into: by name the selector, and for named ports what they ask for."""

    def __init__(self) -> None:
        self.selectors: dict[str, Selector] = {}
        self.ports: dict[str, tuple[Selector, str, str]] = {}

    def of_selector(self, selector: Selector) -> str:
        """The set of the addresses a selector selects."""
        name = set_name(selector.unique_id)
        self.selectors[name] = selector
        return name

    def of_port(self, selector: Selector | None, protocol: str, port: str) -> str:
        """The set of (address, port) pairs of endpoints that have a port of a name."""
        chosen = selector or _EVERYWHERE
        identity = f"{chosen.unique_id},{protocol},{port}"
        digest = hashlib.sha224(identity.encode()).digest()
        name = set_name("n:" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode())
        self.ports[name] = (chosen, protocol, port)
        return name


def render_rules(
    rules: Sequence[PolicyRule], sets: SetsWanted, log_prefix: str
) -> tuple[Rule, ...]:
    """The iptables rules of one direction of a policy."""
    return tuple(out for rule in rules for out in _render(rule, sets, log_prefix))


def _is_v4(nets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(net for net in nets if ":" not in net)


class _Direction:
    """The words for one end of a packet."""

    def __init__(self, side: Side, sets: SetsWanted, protocol: str, *, source: bool) -> None:
        self.word = "src" if source else "dst"
        self.net = "--source" if source else "--destination"
        self.port = "--source-ports" if source else "--destination-ports"
        self.nets, self.not_nets = _is_v4(side.nets), _is_v4(side.not_nets)
        # Lists of IPv6 networks alone: no IPv4 packet can match.
        self.impossible = bool(
            (side.nets and not self.nets) or (side.not_nets and not self.not_nets)
        )
        numeric = [port for port in side.ports if _is_number(port)]
        named = [port for port in side.ports if not _is_number(port)]
        self.port_groups = split_ports(numeric)
        self.port_sets = [sets.of_port(side.selector, protocol, port) for port in named]
        # A set of named ports is filtered by the selector already.
        self.selectors = (
            [sets.of_selector(side.selector)]
            if side.selector is not None and (numeric or not named)
            else []
        )
        self.not_selectors = (
            [sets.of_selector(side.not_selector)] if side.not_selector is not None else []
        )
        self.not_port_groups = split_ports([port for port in side.not_ports if _is_number(port)])
        self.not_port_sets = [
            sets.of_port(None, protocol, port) for port in side.not_ports if not _is_number(port)
        ]


def _is_number(port: str) -> bool:
    return port[:1].isdigit()


def split_ports(ports: Sequence[str]) -> list[str]:
    """Ports as multiport's lists, as few as its limit allows."""
    groups: list[list[str]] = []
    room = 0
    for port in ports:
        low, colon, high = port.partition(":")
        text = low if not colon or low == high else port
        size = 2 if ":" in text else 1
        if size > room:
            groups.append([])
            room = MAX_MULTIPORT
        groups[-1].append(text)
        room -= size
    return [",".join(group) for group in groups]


class _Blocks:
    """Rules that compute ``all blocks passed`` in one bit, each block with the other."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self._positive = 0

    @property
    def used(self) -> bool:
        return bool(self.rules)

    def _start(self, mark: int) -> None:
        if not self.rules:
            self.rules.append(Rule(action=set_mark(mark, SCRATCH_0 | SCRATCH_1)))

    def any_of(self, matches: Sequence[str]) -> None:
        """The packet must pass one of these."""
        self._start(0)
        if self._positive > 1:
            # felix itself leaves the bit of the block before as it is, and with three lists
            # lets packets pass that fail the last one; here a policy means what it says.
            self.rules.append(Rule(action=clear_mark(SCRATCH_1)))
        # The first block may write the answer itself.
        mark = SCRATCH_1 if self._positive else SCRATCH_0
        self.rules += [Rule(match, set_mark(mark)) for match in matches]
        if self._positive:
            self.rules.append(Rule(mark_clear(SCRATCH_1), clear_mark(SCRATCH_0)))
        self._positive += 1

    def none_of(self, matches: Sequence[str]) -> None:
        """The packet must pass none of these."""
        self._start(SCRATCH_0)
        self.rules += [Rule(match, clear_mark(SCRATCH_0)) for match in matches]


def _protocol_match(protocol: str) -> str:
    return f"-p {protocol}" if protocol else ""


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _render(rule: PolicyRule, sets: SetsWanted, log_prefix: str) -> list[Rule]:
    protocol = _NAMED_PROTOCOLS.get(rule.protocol, "tcp")
    src = _Direction(rule.source, sets, protocol, source=True)
    dst = _Direction(rule.destination, sets, protocol, source=False)
    if src.impossible or dst.impossible:
        return []
    blocks = _Blocks()
    proto = _protocol_match(rule.protocol)
    for side in (src, dst):
        if len(side.port_groups) + len(side.port_sets) > 1:
            blocks.any_of(
                [_joined(proto, f"-m multiport {side.port} {ports}") for ports in side.port_groups]
                + [f"-m set --match-set {name} {side.word},{side.word}" for name in side.port_sets]
            )
            side.port_groups, side.port_sets = [], []
    for side in (src, dst):
        if len(side.nets) > 1:
            blocks.any_of([f"{side.net} {net}" for net in side.nets])
            side.nets = ()
    for side in (src, dst):
        if len(side.nets) + len(side.not_nets) > 1:
            if side.not_nets:
                blocks.none_of([f"{side.net} {net}" for net in side.not_nets])
            side.not_nets = ()
    match = _match(rule, proto, src, dst)
    if blocks.used:
        match = _joined(match, mark_set(SCRATCH_0))
    return [*blocks.rules, *_act(rule.action, match, log_prefix)]


def _icmp_match(rule: PolicyRule) -> str:
    if rule.icmp is None:
        return ""
    kind, code = rule.icmp
    return f"-m icmp --icmp-type {kind}" + ("" if code is None else f"/{code}")


def _match(rule: PolicyRule, proto: str, src: _Direction, dst: _Direction) -> str:
    """One rule's tests in felix's order: what must be, then what must not."""
    parts = [proto]
    for side in (src, dst):
        parts += [f"{side.net} {net}" for net in side.nets]
        parts += [f"-m set --match-set {name} {side.word}" for name in side.selectors]
        parts += [f"-m multiport {side.port} {ports}" for ports in side.port_groups]
        parts += [f"-m set --match-set {name} {side.word},{side.word}" for name in side.port_sets]
    parts.append(_icmp_match(rule))
    if rule.not_protocol:
        parts.append(f"! -p {rule.not_protocol}")
    for side in (src, dst):
        parts += [f"! {side.net} {net}" for net in side.not_nets]
        parts += [f"-m set ! --match-set {name} {side.word}" for name in side.not_selectors]
        parts += [f"-m multiport ! {side.port} {ports}" for ports in side.not_port_groups]
        parts += [
            f"-m set ! --match-set {name} {side.word},{side.word}" for name in side.not_port_sets
        ]
    if rule.not_icmp is not None:
        negated = _icmp_match(replace(rule, icmp=rule.not_icmp))
        parts.append(negated.replace("--icmp-type", "! --icmp-type"))
    return _joined(*parts)


def _act(action: str, match: str, log_prefix: str) -> list[Rule]:
    match action:
        case "Allow":
            return _marked(match, ACCEPT_MARK)
        case "Pass":
            return _marked(match, PASS_MARK)
        case "Deny":
            return [Rule(match, DROP)]
    return [Rule(match, f'--jump LOG --log-prefix "{log_prefix}: " --log-level 5')]


def _marked(match: str, mark: int) -> list[Rule]:
    """Leave the answer in a mark and go back to who asked."""
    return [Rule(match, set_mark(mark)), Rule(mark_set(mark), RETURN)]
