"""What confd knows of the cluster, read from stored resources (pure).

Broken resources are left out with a reason in ``problems``: one bad object must not stop the rest.
Source: projectcalico/calico confd/pkg/backends/calico/client.go and
libcalico-go/lib/backend/syncersv1/bgpsyncer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agents.calico.ipam.model import CONFIRMED, Affinity
from agents.calico.net import Cidr, Ip
from agents.calico.resources import labels_of, name_of, parse_key, spec_of
from agents.calico.validation_pool import default_pool_spec
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agents.calico.datastore import KVPair
    from agents.calico.resources import Resource

DEFAULT_AS: Final = 64512
DEFAULT_PORT: Final = 179


@dataclass(frozen=True, slots=True)
class BgpNode:
    """A node that speaks BGP; ``cluster_id`` "" means it is no route reflector."""

    name: str
    ip: int
    network: Cidr
    as_number: int | None = None
    cluster_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BgpPool:
    """An IP pool as far as routes depend on it; modes are Always, CrossSubnet, Never."""

    cidr: Cidr
    ipip_mode: str
    vxlan_mode: str
    disable_export: bool


@dataclass(frozen=True, slots=True)
class State:
    """Everything ``make_plan`` decides from; lists are sorted by name or network."""

    nodes: tuple[BgpNode, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    node_configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    peers: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pools: tuple[BgpPool, ...] = ()
    # Blocks by the host that owns them: confirmed claims that the block itself bears out.
    blocks: Mapping[str, tuple[Cidr, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def as_number(self) -> int:
        """The AS of nodes that have none of their own."""
        return int(self.config.get("asNumber") or DEFAULT_AS)

    @property
    def listen_port(self) -> int:
        """The port nodes listen at, as peers outside see it."""
        return int(self.config.get("listenPort") or DEFAULT_PORT)

    @property
    def mesh_enabled(self) -> bool:
        """Whether nodes peer with each other by themselves."""
        return self.config.get("nodeToNodeMeshEnabled") is not False

    def node(self, name: str) -> BgpNode | None:
        """The node of that name, if it speaks BGP."""
        return next((node for node in self.nodes if node.name == name), None)

    def as_of(self, node: BgpNode) -> int:
        """The AS a node is in."""
        return self.as_number if node.as_number is None else node.as_number


def read_state(items: Iterable[KVPair], owned: Mapping[str, tuple[Cidr, ...]]) -> State:
    """Sort what the datastore holds; ``owned`` are the blocks of hosts (``owned_blocks``)."""
    resources: dict[str, list[Resource]] = {}
    for kvp in items:
        named = parse_key(kvp.key)
        if named is None or not isinstance(kvp.value, dict):
            continue
        if isinstance(kvp.value.get("metadata"), dict):
            # As it is stored: nothing here changes it, and there may be thousands.
            resources.setdefault(named.kind, []).append(kvp.value)
    problems: list[str] = []
    configs = {name_of(each): spec_of(each) for each in resources.get("BGPConfiguration", ())}
    return State(
        nodes=_nodes(resources.get("Node", ()), problems),
        config=configs.get("default", {}),
        node_configs={
            name.removeprefix("node."): spec
            for name, spec in configs.items()
            if name.startswith("node.")
        },
        peers=tuple(
            sorted((name_of(each), spec_of(each)) for each in resources.get("BGPPeer", ()))
        ),
        filters={name_of(each): spec_of(each) for each in resources.get("BGPFilter", ())},
        pools=_pools(resources.get("IPPool", ()), problems),
        blocks=owned,
        problems=tuple(problems),
    )


def _nodes(resources: Iterable[Resource], problems: list[str]) -> tuple[BgpNode, ...]:
    nodes = []
    for resource in resources:
        bgp = spec_of(resource).get("bgp") or {}
        address = bgp.get("ipv4Address")
        if not address:
            continue
        text, _, length = str(address).partition("/")
        try:
            ip = Ip.parse(text)
            network = Cidr.of(ip, int(length or 32))
        except (UsageError, ValueError):
            problems.append(f"node {name_of(resource)}: bgp.ipv4Address {address!r} is no address")
            continue
        as_number = bgp.get("asNumber")
        nodes.append(
            BgpNode(
                name_of(resource),
                ip.value,
                network,
                int(as_number) if as_number else None,
                str(bgp.get("routeReflectorClusterID") or ""),
                labels_of(resource),
            )
        )
    return tuple(sorted(nodes, key=lambda node: node.name))


def _pools(resources: Iterable[Resource], problems: list[str]) -> tuple[BgpPool, ...]:
    pools = []
    for resource in resources:
        spec = dict(spec_of(resource))
        default_pool_spec(spec)
        try:
            cidr = Cidr.parse(str(spec.get("cidr")))
        except UsageError as error:
            problems.append(f"IP pool {name_of(resource)}: {error}")
            continue
        if cidr.version == 4:
            export = bool(spec.get("disableBGPExport"))
            pools.append(BgpPool(cidr, spec["ipipMode"], spec["vxlanMode"], export))
    return tuple(sorted(pools, key=lambda pool: pool.cidr))


def confirmed_claims(items: Iterable[KVPair]) -> tuple[Affinity, ...]:
    """The claims that may be announced, by network; pending ones may never come true."""
    found = (Affinity.read(kvp) for kvp in items)
    return tuple(
        sorted(
            (
                claim
                for claim in found
                if claim is not None and claim.state == CONFIRMED and claim.cidr.version == 4
            ),
            key=lambda claim: (claim.host, claim.cidr),
        )
    )


def owned_blocks(
    claims: Iterable[Affinity], blocks: Mapping[Cidr, Any]
) -> dict[str, tuple[Cidr, ...]]:
    """The claims that the blocks themselves bear out, by host; ``blocks`` are stored values.

    A claim alone is not enough: two nodes that announce one block cut off its pods.
    """
    owned: dict[str, tuple[Cidr, ...]] = {}
    for claim in claims:
        block = blocks.get(claim.cidr)
        if isinstance(block, dict) and block.get("affinity") == f"host:{claim.host}":
            owned[claim.host] = (*owned.get(claim.host, ()), claim.cidr)
    return owned
