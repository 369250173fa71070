"""What felix decides from: endpoints, policies, profiles, pools and nodes as records; pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agents.calico.selector import Selector
    from emulator.addr import Prefix

INTERFACE_PREFIX: Final = "cali"
IPIP_DEVICE, VXLAN_DEVICE = "tunl0", "vxlan.calico"
# What the outer headers take: IPv4; IPv4, UDP, VXLAN and Ethernet.
IPIP_OVERHEAD, VXLAN_OVERHEAD = 20, 50
NAMESPACE_LABEL: Final = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL: Final = "projectcalico.org/orchestrator"


@dataclass(frozen=True, slots=True)
class Settings:
    """FelixConfiguration as far as it acts here; MTUs of 0 follow the node's NIC."""

    endpoint_to_host: str = "ACCEPT"  # felix's own default is DROP, Calico's manifests say ACCEPT
    insert: bool = True
    ipip_mtu: int = 0
    vxlan_mtu: int = 0
    vxlan_port: int = 4789
    vxlan_vni: int = 4096
    ipip_enabled: bool | None = None
    vxlan_enabled: bool | None = None
    log_prefix: str = "calico-packet"
    random_fully: bool = True


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A port of a workload that rules may call by name; ``protocol`` in lower case."""

    name: str
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A workload endpoint; ``labels`` hold those its profiles give it."""

    name: str
    namespace: str
    node: str
    interface: str
    addresses: tuple[int, ...]
    labels: dict[str, str]
    profiles: tuple[str, ...]
    ports: tuple[NamedPort, ...] = ()
    # (external, internal) addresses: floating IPs
    nats: tuple[tuple[int, int], ...] = ()
    workload: str = ""


@dataclass(frozen=True, slots=True)
class Side:
    """One end of a rule; ``ports`` are texts: ``80``, ``80:90`` or a name."""

    selector: Selector | None = None
    not_selector: Selector | None = None
    nets: tuple[str, ...] = ()
    not_nets: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    not_ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One rule of a policy or profile.  ``protocol`` is a name in lower case or a number."""

    action: str
    protocol: str = ""
    not_protocol: str = ""
    icmp: tuple[int, int | None] | None = None
    not_icmp: tuple[int, int | None] | None = None
    source: Side = field(default_factory=Side)
    destination: Side = field(default_factory=Side)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as the datastore names it: ``namespace/name`` or ``name``; no ``order`` is last."""

    name: str
    selector: Selector
    order: float | None
    types: tuple[str, ...]
    ingress: tuple[PolicyRule, ...] = ()
    egress: tuple[PolicyRule, ...] = ()

    @property
    def sort_key(self) -> tuple[float, str]:
        """The order policies are asked in."""
        return (float("inf") if self.order is None else self.order, self.name)


@dataclass(frozen=True, slots=True)
class Profile:
    """What endpoints fall back to, and labels they get from it."""

    name: str
    ingress: tuple[PolicyRule, ...] = ()
    egress: tuple[PolicyRule, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pool:
    """An IP pool; modes are Never, Always or CrossSubnet."""

    cidr: Prefix
    ipip: str = "Never"
    vxlan: str = "Never"
    nat_outgoing: bool = False


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node; addresses 0 and an empty ``mac`` where it has none yet."""

    name: str
    ip: int
    network: Prefix
    ipip_address: int = 0
    vxlan_address: int = 0
    mac: bytes = b""


@dataclass(frozen=True, slots=True)
class Block:
    """Who owns a block of addresses, and addresses in it that workloads elsewhere borrowed."""

    cidr: Prefix
    node: str
    borrowed: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkSet:
    """Networks under labels, for rules' selectors."""

    name: str
    labels: dict[str, str]
    nets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """This node's kernel: its NIC and the addresses it holds."""

    nic: str = "eth0"
    nic_mtu: int = 1500
    addresses: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """Everything one felix knows.  ``refused`` are the texts of what it does not enforce."""

    node: str
    host: Host = field(default_factory=Host)
    settings: Settings = field(default_factory=Settings)
    endpoints: tuple[Endpoint, ...] = ()
    policies: tuple[Policy, ...] = ()
    profiles: tuple[Profile, ...] = ()
    pools: tuple[Pool, ...] = ()
    nodes: tuple[NodeInfo, ...] = ()
    blocks: tuple[Block, ...] = ()
    network_sets: tuple[NetworkSet, ...] = ()
    refused: tuple[str, ...] = ()

    def local_endpoints(self) -> list[Endpoint]:
        """This node's endpoints that have a device, by its name."""
        mine = [each for each in self.endpoints if each.node == self.node and each.interface]
        return sorted(mine, key=lambda each: each.interface)

    def relevant(self) -> State:
        """The state without other nodes' workloads, unless some rule asks for them."""
        rules = [rule for each in self.policies for rule in (*each.ingress, *each.egress)]
        rules += [rule for each in self.profiles for rule in (*each.ingress, *each.egress)]
        if any(_asks(side) for rule in rules for side in (rule.source, rule.destination)):
            return self
        return replace(
            self,
            endpoints=tuple(each for each in self.endpoints if each.node == self.node),
            network_sets=(),
        )

    def this_node(self) -> NodeInfo | None:
        """The record of this node, None until it has one."""
        return next((each for each in self.nodes if each.name == self.node), None)

    @property
    def ipip_enabled(self) -> bool:
        """Whether any pool wants IP in IP, unless the settings decide."""
        if self.settings.ipip_enabled is not None:
            return self.settings.ipip_enabled
        return any(pool.ipip != "Never" for pool in self.pools)

    @property
    def vxlan_enabled(self) -> bool:
        """Whether any pool wants VXLAN, unless the settings decide."""
        if self.settings.vxlan_enabled is not None:
            return self.settings.vxlan_enabled
        return any(pool.vxlan != "Never" for pool in self.pools)


def _asks(side: Side) -> bool:
    """True if one end of a rule depends on who is where."""
    return (
        side.selector is not None
        or side.not_selector is not None
        or any(not port[:1].isdigit() for port in (*side.ports, *side.not_ports))
    )
