"""Compile chains to closures and walk packets through them.

A chain of many rules is indexed: rules that name one destination address, or one destination port,
are tried only for packets that have it.  A rule that cannot match would not have counted either,
so the counters are those of a walk over every rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.netstack.netfilter.extension import ACCEPT_VERDICT, Action, Predicate, Verdict
from emulator.netstack.netfilter.match_l4 import TcpMatch, UdpMatch
from emulator.netstack.netfilter.match_plain import device_matches
from emulator.netstack.packet import Drop, DropReason, FlowLog, Packet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulator.netstack.netfilter.extension import RuleEnvironment
    from emulator.netstack.netfilter.rules import Chain, NetworkTest, Rule, RuleSpec, Table

# Below this many rules a plain walk is faster than the index.
INDEX_MIN_RULES: Final = 8
# Merged rule lists kept a chain: one for each (address, port) pair that occurs in its rules and in
# traffic.  Scans over all ports of all addresses must not fill the memory.
MAX_MERGED: Final = 4096

CONTINUE, VERDICT, JUMP, GOTO, ACTION = range(5)
_DESCENDS: Final = (JUMP, GOTO)


class CompiledRule:
    """A rule ready to run.  ``kind`` says which of the last three fields counts."""

    __slots__ = (
        "action",
        "chain",
        "kind",
        "number",
        "rule",
        "table_name",
        "tests",
        "verdict",
    )

    def __init__(self, rule: Rule, number: int, table_name: str) -> None:
        self.rule = rule
        self.number = number
        self.table_name = table_name
        self.tests: tuple[Predicate, ...] = ()
        self.kind = CONTINUE
        self.verdict: Verdict | None = None
        self.chain: Chain | None = None
        self.action: Action | None = None

    def text(self, chain: str, notes: Mapping[str, str]) -> str:
        """Name the rule as drops and traces do, with what its chain's owner says of it."""
        body = self.rule.spec.save()
        note = notes.get(f"{self.table_name} {chain}")
        place = f"{chain} rule {self.number}" + (f" ({note})" if note else "")
        return f"{self.table_name} {place}: -A {chain} {body}".rstrip()


class CompiledChain:
    """The rules of a chain in order, and the index over them."""

    __slots__ = ("_by_dst", "_by_port", "_indexed", "_merged", "_other", "name", "rules")

    def __init__(self, name: str, rules: list[CompiledRule]) -> None:
        self.name = name
        self.rules = tuple(rules)
        self._indexed = len(rules) >= INDEX_MIN_RULES
        self._by_dst: dict[int, list[CompiledRule]] = {}
        self._by_port: dict[int, list[CompiledRule]] = {}
        self._other: list[CompiledRule] = []
        self._merged: dict[tuple[int | None, int | None], tuple[CompiledRule, ...]] = {}
        if self._indexed:
            for rule in rules:
                self._index(rule)

    def _index(self, rule: CompiledRule) -> None:
        spec = rule.rule.spec
        if spec.dst is not None and spec.dst.mask == 0xFFFFFFFF and not spec.dst.inverted:
            self._by_dst.setdefault(spec.dst.network, []).append(rule)
            return
        for match in spec.matches:
            if isinstance(match, TcpMatch | UdpMatch) and match.dport.exact is not None:
                self._by_port.setdefault(match.dport.exact, []).append(rule)
                return
        self._other.append(rule)

    def candidates(self, packet: Packet) -> tuple[CompiledRule, ...]:
        """Return, in order, the rules that could match a packet."""
        if not self._indexed:
            return self.rules
        key = (
            packet.dst if packet.dst in self._by_dst else None,
            packet.dport if packet.dport in self._by_port else None,
        )
        merged = self._merged.get(key)
        if merged is None:
            rules = list(self._other)
            if key[0] is not None:
                rules += self._by_dst[key[0]]
            if key[1] is not None:
                rules += self._by_port[key[1]]
            merged = tuple(sorted(rules, key=lambda rule: rule.number))
            if len(self._merged) >= MAX_MERGED:
                self._merged.clear()
            self._merged[key] = merged
        return merged


class Walker:
    """Runs the chains of one namespace."""

    def __init__(self, env: RuleEnvironment, netns: str) -> None:
        self._env = env
        self._netns = netns

    def run(
        self, table: Table, chain: Chain, packet: Packet, in_dev: str, out_dev: str
    ) -> Drop | None:
        """Walk a built-in chain; its policy decides what no rule did."""
        verdict = self._walk(table, chain, packet, in_dev, out_dev)
        if verdict is None:
            counter = chain.counter
            counter.packets += 1
            counter.bytes += len(packet.data)
            if packet.flow is not None:
                packet.flow.counters.append(counter)
            if chain.policy != "DROP":
                return None
            detail = f"{table.name} {chain.name} policy DROP"
            if packet.trace is not None:
                packet.trace.step(self._netns, "hook", detail, packet)
            return Drop(DropReason.NETFILTER_DROP, detail)
        return verdict if isinstance(verdict, Drop) else None

    def _walk(
        self, table: Table, chain: Chain, packet: Packet, in_dev: str, out_dev: str
    ) -> Verdict | None:
        compiled = chain.compiled
        if compiled is None:
            compiled = chain.compiled = compile_chain(chain, table, self._env)
        flow: FlowLog | None = packet.flow
        notes = self._env.notes
        for entry in compiled.candidates(packet):
            for test in entry.tests:
                if not test(packet, in_dev, out_dev):
                    break
            else:
                counter = entry.rule.counter
                counter.packets += 1
                counter.bytes += len(packet.data)
                if flow is not None:
                    flow.counters.append(counter)
                if packet.trace is not None:
                    packet.trace.step(self._netns, "hook", entry.text(compiled.name, notes), packet)
                kind = entry.kind
                if kind == CONTINUE:
                    continue
                if kind in _DESCENDS:
                    assert entry.chain is not None
                    verdict = self._walk(table, entry.chain, packet, in_dev, out_dev)
                    if verdict is not None or kind == GOTO:
                        return verdict
                elif kind == VERDICT:
                    verdict = entry.verdict
                    if isinstance(verdict, Drop):
                        return verdict._replace(detail=entry.text(compiled.name, notes))
                    return verdict
                else:
                    assert entry.action is not None
                    verdict = entry.action(packet, in_dev, out_dev)
                    if verdict is None:
                        continue
                    if isinstance(verdict, Drop):
                        return verdict._replace(
                            detail=f"{entry.text(compiled.name, notes)} ({verdict.detail})"
                        )
                    return verdict
        return None


def compile_chain(chain: Chain, table: Table, env: RuleEnvironment) -> CompiledChain:
    """Turn the rules of a chain into closures."""
    compiled = []
    for number, rule in enumerate(chain.rules, 1):
        entry = CompiledRule(rule, number, table.name)
        spec = rule.spec
        tests = _header_tests(spec)
        for match in spec.matches:
            predicate = match.compile(env)
            if predicate is not None:
                tests.append(_uncached(predicate) if match.volatile else predicate)
        entry.tests = tuple(tests)
        if spec.target is not None:
            entry.kind, entry.action = ACTION, spec.target.compile(env)
        elif spec.jump == "ACCEPT":
            entry.kind, entry.verdict = VERDICT, ACCEPT_VERDICT
        elif spec.jump == "DROP":
            entry.kind, entry.verdict = VERDICT, Drop(DropReason.NETFILTER_DROP)
        elif spec.jump == "RETURN":
            # None ends the walk of this chain: its caller goes on, or the policy decides.
            entry.kind = VERDICT
        elif spec.jump:
            entry.kind = GOTO if spec.goto else JUMP
            entry.chain = table.chains[spec.jump]
        compiled.append(entry)
    return CompiledChain(chain.name, compiled)


def _uncached(predicate: Predicate) -> Predicate:
    """Mark the flow of every packet that gets as far as this match as not cacheable."""

    def test(packet: Packet, in_dev: str, out_dev: str) -> bool:
        if packet.flow is not None:
            packet.flow.cacheable = False
        return predicate(packet, in_dev, out_dev)

    return test


def _header_tests(spec: RuleSpec) -> list[Predicate]:
    tests: list[Predicate] = []
    if spec.dst is not None:
        tests.append(_dst_test(spec.dst))
    if spec.proto:
        tests.append(_proto_test(spec.proto, spec.proto_inverted))
    if spec.src is not None:
        tests.append(_src_test(spec.src))
    if spec.in_dev:
        tests.append(_in_test(spec.in_dev, spec.in_inverted))
    if spec.out_dev:
        tests.append(_out_test(spec.out_dev, spec.out_inverted))
    if spec.fragment:
        wanted = spec.fragment > 0
        tests.append(
            lambda packet, _in, _out: bool(packet.data[6] & 0x1F or packet.data[7]) is wanted
        )
    return tests


def _src_test(test: NetworkTest) -> Predicate:
    network, mask, inverted = test
    if inverted:
        return lambda packet, _in, _out: packet.src & mask != network
    if mask == 0xFFFFFFFF:
        return lambda packet, _in, _out: packet.src == network
    return lambda packet, _in, _out: packet.src & mask == network


def _dst_test(test: NetworkTest) -> Predicate:
    network, mask, inverted = test
    if inverted:
        return lambda packet, _in, _out: packet.dst & mask != network
    if mask == 0xFFFFFFFF:
        return lambda packet, _in, _out: packet.dst == network
    return lambda packet, _in, _out: packet.dst & mask == network


def _proto_test(proto: int, inverted: bool) -> Predicate:
    if inverted:
        return lambda packet, _in, _out: packet.proto != proto
    return lambda packet, _in, _out: packet.proto == proto


def _in_test(dev: str, inverted: bool) -> Predicate:
    return lambda _packet, in_dev, _out: device_matches(in_dev, dev) is not inverted


def _out_test(dev: str, inverted: bool) -> Predicate:
    return lambda _packet, _in, out_dev: device_matches(out_dev, dev) is not inverted
