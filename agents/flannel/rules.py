"""flannel's packet filter rules; pure.

flannel, pkg/trafficmngr/iptables: chains FLANNEL-POSTRTG (nat) and FLANNEL-FWD (filter), jumped to
from POSTROUTING and FORWARD.  flannel 0.7 put three rules straight into POSTROUTING.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agents.flannel.config import Profile
    from emulator.addr import Prefix

    # (table, chain) to its rules as iptables-save prints them, without ``-A CHAIN``.
    ChainReader = Callable[[str, str], Sequence[str]]

MASQ_CHAIN: Final = "FLANNEL-POSTRTG"
FORWARD_CHAIN: Final = "FLANNEL-FWD"
_MASQ: Final = '-m comment --comment "flanneld masq"'
_FORWARD: Final = '-m comment --comment "flanneld forward"'


class RuleSet(NamedTuple):
    """Rules of one table: ``chain`` (flannel's own, may be "") and jumps into built-in chains.

    ``jumps`` are (built-in chain, rule specification) pairs that must exist; each is appended if
    absent.  ``rules`` are the specifications of ``chain``, complete and in order.
    """

    table: str
    chain: str
    rules: tuple[str, ...]
    jumps: tuple[tuple[str, str], ...]

    def restore_text(self, missing: tuple[tuple[str, str], ...]) -> str:
        """iptables-restore --noflush input that rewrites the chain and adds ``missing`` jumps."""
        lines = [f"*{self.table}"]
        if self.chain:
            lines.append(f":{self.chain} - [0:0]")
        lines += [f"-A {self.chain} {rule}" for rule in self.rules]
        lines += [f"-A {chain} {rule}" for chain, rule in missing]
        return "\n".join([*lines, "COMMIT", ""])

    def missing_jumps(self, read: ChainReader) -> tuple[tuple[str, str], ...]:
        """The jumps their built-in chains do not hold."""
        return tuple(jump for jump in self.jumps if jump[1] not in read(self.table, jump[0]))


def masquerade_rules(network: Prefix, subnet: Prefix, profile: Profile = "modern") -> RuleSet:
    """Which pod traffic leaves with the node's address; ``subnet`` is this node's."""
    if profile == "2017":
        return RuleSet(
            "nat", "", (),
            (
                ("POSTROUTING", f"-s {network} -d {network} -j RETURN"),
                ("POSTROUTING", f"-s {network} ! -d 224.0.0.0/4 -j MASQUERADE"),
                ("POSTROUTING", f"! -s {network} -d {network} -j MASQUERADE"),
            ),
        )  # fmt: skip
    return RuleSet(
        "nat",
        MASQ_CHAIN,
        (
            # kube-proxy's own rule masquerades what it marked.
            f"-m mark --mark 0x4000/0x4000 {_MASQ} -j RETURN",
            f"-s {subnet} -d {network} {_MASQ} -j RETURN",
            f"-s {network} -d {subnet} {_MASQ} -j RETURN",
            f"! -s {network} -d {subnet} {_MASQ} -j RETURN",
            f"-s {network} ! -d 224.0.0.0/4 {_MASQ} -j MASQUERADE --random-fully",
            f"! -s {network} -d {network} {_MASQ} -j MASQUERADE --random-fully",
        ),
        (("POSTROUTING", f"{_MASQ} -j {MASQ_CHAIN}"),),
    )


def forward_rules(network: Prefix) -> RuleSet:
    """Pod traffic is forwarded whatever the policy of FORWARD is."""
    return RuleSet(
        "filter",
        FORWARD_CHAIN,
        (f"-s {network} {_FORWARD} -j ACCEPT", f"-d {network} {_FORWARD} -j ACCEPT"),
        (("FORWARD", f"{_FORWARD} -j {FORWARD_CHAIN}"),),
    )
