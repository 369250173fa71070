"""Rules, chains and tables: what iptables edits and what packets traverse.

A ``RuleSpec`` is what a rule says, shared by all rules that say the same; a ``Rule`` is one place
in a chain with its counter.  Which built-in chains a table has, and the order hooks visit tables,
is that of linux/netfilter_ipv4.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.netstack.netfilter.lexer import PROTOCOLS, format_network
from emulator.netstack.packet import Counter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulator.netstack.netfilter.extension import Match, Target
    from emulator.netstack.netfilter.walk import CompiledChain

TABLES: Final[dict[str, tuple[str, ...]]] = {
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}


class NetworkTest(NamedTuple):
    """-s or -d."""

    network: int
    mask: int
    inverted: bool

    def save(self, option: str) -> str:
        sign = "! " if self.inverted else ""
        return f"{sign}{option} {format_network(self.network, self.mask, save=True)}"


class RuleSpec(NamedTuple):
    """What one rule says.  ``proto`` 0 means any; ``fragment`` is -1 for ``! -f``, 1 for ``-f``.

    ``jump`` is the name after -j or -g: a chain, a standard verdict, a target's name, or "".
    """

    src: NetworkTest | None = None
    dst: NetworkTest | None = None
    proto: int = 0
    proto_inverted: bool = False
    in_dev: str = ""
    in_inverted: bool = False
    out_dev: str = ""
    out_inverted: bool = False
    fragment: int = 0
    matches: tuple[Match, ...] = ()
    jump: str = ""
    goto: bool = False
    target: Target | None = None

    def save(self, counters: str = "") -> str:
        """Return the rule as iptables-save prints it, without ``-A CHAIN``.

        ``counters`` is put where ``iptables -S -v`` puts it, before the target.
        """
        parts: list[str] = []
        if self.src:
            parts.append(self.src.save("-s"))
        if self.dst:
            parts.append(self.dst.save("-d"))
        if self.in_dev:
            parts.append(f"{'! ' if self.in_inverted else ''}-i {self.in_dev}")
        if self.out_dev:
            parts.append(f"{'! ' if self.out_inverted else ''}-o {self.out_dev}")
        if self.proto:
            name = PROTOCOLS.get(self.proto, str(self.proto))
            parts.append(f"{'! ' if self.proto_inverted else ''}-p {name}")
        if self.fragment:
            parts.append("-f" if self.fragment > 0 else "! -f")
        for match in self.matches:
            text = match.save()
            parts.append(f"-m {match.name} {text}" if text else f"-m {match.name}")
        if counters:
            parts.append(counters)
        if self.jump:
            parts.append(f"{'-g' if self.goto else '-j'} {self.jump}")
            if self.target is not None and (text := self.target.save()):
                parts.append(text)
        return " ".join(parts)

    @property
    def needs_conntrack(self) -> bool:
        return any(match.needs_conntrack for match in self.matches) or (
            self.target is not None and self.target.needs_conntrack
        )


class Rule:
    """One rule in one chain."""

    __slots__ = ("counter", "spec")

    def __init__(self, spec: RuleSpec, packets: int = 0, octets: int = 0) -> None:
        self.spec = spec
        self.counter = Counter()
        self.counter.add(packets, octets)


class Chain:
    """A list of rules; ``policy`` is "" for a user chain.

    ``compiled`` is made when the first packet comes and thrown away with every change.
    """

    __slots__ = ("compiled", "counter", "name", "policy", "rules")

    def __init__(self, name: str, policy: str = "") -> None:
        self.name = name
        self.policy = policy
        self.counter = Counter()
        self.rules: list[Rule] = []
        self.compiled: CompiledChain | None = None


class Table:
    """One table; its user chains are kept sorted by name when shown, by creation here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.builtins = TABLES[name]
        self.chains: dict[str, Chain] = {n: Chain(n, "ACCEPT") for n in self.builtins}

    def ordered(self) -> Iterator[Chain]:
        """Built-in chains in hook order, then user chains by name, as every listing has them."""
        for name in self.builtins:
            yield self.chains[name]
        for name in sorted(self.chains):
            if name not in self.builtins:
                yield self.chains[name]

    def references(self) -> dict[str, int]:
        """Count the rules that jump to each user chain."""
        counts = dict.fromkeys(self.chains, 0)
        for chain in self.chains.values():
            for rule in chain.rules:
                spec = rule.spec
                if spec.target is None and spec.jump in counts:
                    counts[spec.jump] += 1
        return counts
