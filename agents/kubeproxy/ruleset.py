"""What kube-proxy wants in a node's tables, as iptables-restore text; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from agents.kubeproxy.names import is_service_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agents.kubeproxy.model import Profile
    from emulator.addr import Prefix

    # (table, chain) to its rules as iptables-save prints them, without ``-A CHAIN``.
    ChainReader = Callable[[str, str], Sequence[str]]

# From so many endpoints on comments are left out of endpoint rules, as upstream does.
LARGE_CLUSTER_ENDPOINTS: Final = 1000
MASQUERADE_MARK: Final = "0x4000"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What the rules depend on besides services and endpoints.

    ``cluster_cidr`` None means nothing tells pods from others (no masquerade for off-cluster
    clients); ``node_port_addresses`` empty means every local address takes node ports.
    """

    node_name: str
    node_ip: str
    cluster_cidr: Prefix | None = None
    zone: str = ""
    profile: Profile = "modern"
    masquerade_all: bool = False
    random_fully: bool = True
    localhost_node_ports: bool = True
    node_port_addresses: tuple[str, ...] = ()


class Jump(NamedTuple):
    """A rule of a built-in chain that must exist, put first if it does not."""

    table: str
    source: str
    target: str
    match: str

    @property
    def specification(self) -> str:
        """The rule without its chain."""
        return f"{self.match} -j {self.target}".strip()


class NodePort(NamedTuple):
    """A port the node listens on for a service that has endpoints."""

    protocol: str
    port: int


@dataclass(slots=True)
class Table:
    """Chain declarations and rules of one table, in the order they are written."""

    chains: dict[str, None] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)

    def chain(self, name: str) -> None:
        """Declare (and so flush) a chain."""
        self.chains[name] = None

    def rule(self, chain: str, *parts: str) -> None:
        """Append a rule; empty parts are skipped."""
        self.rules.append(" ".join(["-A", chain, *filter(None, parts)]))


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The whole wish: two tables, the jumps into them and the node ports that are open."""

    filter: Table
    nat: Table
    jumps: tuple[Jump, ...]
    node_ports: tuple[NodePort, ...]

    def restore_text(
        self, existing_nat_chains: Iterable[str] = (), missing_jumps: Iterable[Jump] = ()
    ) -> str:
        """Input of ``iptables-restore --noflush --counters``.

        Chains of services that are gone are flushed and deleted.  ``missing_jumps`` are put in
        front of their chains in the order given, as upstream inserts them one by one.
        """
        stale = [
            chain
            for chain in existing_nat_chains
            if is_service_chain(chain) and chain not in self.nat.chains
        ]
        missing = tuple(missing_jumps)
        lines: list[str] = []
        for name, table, gone in (("filter", self.filter, []), ("nat", self.nat, stale)):
            lines.append(f"*{name}")
            lines += [f":{chain} - [0:0]" for chain in (*table.chains, *gone)]
            lines += table.rules
            lines += [f"-I {j.source} {j.specification}" for j in missing if j.table == name]
            lines += [f"-X {chain}" for chain in gone]
            lines.append("COMMIT")
        return "\n".join(lines) + "\n"


def comment(text: str) -> str:
    """``-m comment`` with quotes where the text has blanks."""
    quoted = f'"{text}"' if " " in text else text
    return f"-m comment --comment {quoted}"


def missing_jumps(jumps: Iterable[Jump], read: ChainReader) -> tuple[Jump, ...]:
    """The jumps their built-in chains do not hold, in the order given."""
    return tuple(jump for jump in jumps if jump.specification not in read(jump.table, jump.source))
