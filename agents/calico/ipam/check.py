"""``ipam check``: what the blocks record against what nodes and workloads use (pure).

Source: projectcalico/calico calicoctl/calicoctl/commands/ipam/check.go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.calico.ipam.block import AllocationBlock
from agents.calico.ipam.model import HANDLE_PREFIX, block_of_key
from agents.calico.ipam.pools import read_pools
from agents.calico.net import Ip
from agents.calico.resources import name_of, parse_key, spec_of
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agents.calico.datastore import KVPair
    from agents.calico.ipam.block import Attribute
    from agents.calico.net import Cidr

# What ``check`` reads: the arguments of one ``Datastore.read``.
PREFIXES = (
    "/calico/ipam/v2/assignment/",
    "/calico/ipam/v2/handle/",
    "/calico/resources/v3/projectcalico.org/ippools/",
    "/calico/resources/v3/projectcalico.org/nodes/",
    "/calico/resources/v3/projectcalico.org/workloadendpoints/",
)


class BlockLine(NamedTuple):
    """One block; ``affinity`` is ``<none>`` for a block nobody owns."""

    cidr: Cidr
    affinity: str


class Allocation(NamedTuple):
    """One address a block records."""

    ip: Ip
    handle: str
    attribute: Attribute
    block: Cidr
    # Another node than the block's took it.
    borrowed: bool

    @property
    def node(self) -> str:
        """Where it is used, as far as it is known."""
        return (self.attribute.secondary or {}).get("node", "")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All that ``ipam check`` prints; every list is sorted."""

    blocks: tuple[BlockLine, ...]
    allocations: tuple[Allocation, ...]
    active_pools: tuple[Cidr, ...]
    node_ips: int
    workload_ips: int
    # (node, allocations), most first.
    by_node: tuple[tuple[str, int], ...]
    # Addresses in use and who uses them: ``Node(name)``, ``Workload(namespace/name)``.
    owners: tuple[tuple[Ip, tuple[str, ...]], ...]
    leaked: tuple[Allocation, ...]
    outside_pools: tuple[Ip, ...]
    unallocated: tuple[Ip, ...]
    leaked_handles: tuple[str, ...]
    good_handles: int
    missing_handles: tuple[str, ...]

    @property
    def problems(self) -> int:
        """The number of the last line; missing handles are named but not counted."""
        return (
            len(self.leaked)
            + len(self.outside_pools)
            + len(self.unallocated)
            + len(self.leaked_handles)
        )

    @property
    def double_owners(self) -> tuple[tuple[Ip, tuple[str, ...]], ...]:
        """Addresses that more than one thing uses: the one thing IPAM must never do."""
        return tuple(each for each in self.owners if len(each[1]) > 1)

    @property
    def median(self) -> int:
        """Of the nodes' allocations, as calicoctl takes it; 0 without nodes."""
        return self.by_node[len(self.by_node) // 2][1] if self.by_node else 0


def check(found: Iterable[KVPair]) -> CheckReport:
    """Compare everything under ``PREFIXES``; pairs of other keys are passed over."""
    blocks: list[AllocationBlock] = []
    handles: list[str] = []
    pools: list[KVPair] = []
    nodes: list[KVPair] = []
    endpoints: list[KVPair] = []
    for kvp in sorted(found, key=lambda each: each.key):
        resource = parse_key(kvp.key)
        if block_of_key(kvp.key) is not None:
            blocks.append(AllocationBlock.from_value(kvp.value))
        elif kvp.key.startswith(HANDLE_PREFIX):
            handles.append(kvp.key.removeprefix(HANDLE_PREFIX))
        elif resource is None or not isinstance(kvp.value, dict):
            continue
        elif resource.kind == "IPPool":
            pools.append(kvp)
        elif resource.kind == "Node":
            nodes.append(kvp)
        elif resource.kind == "WorkloadEndpoint":
            endpoints.append(kvp)
    allocations = _allocations(blocks)
    owners, node_ips, workload_ips = _owners(nodes, endpoints)
    active = [pool.cidr for pool in read_pools(pools) if not pool.disabled]
    allocated = {each.ip for each in allocations}
    unrecorded = [ip for ip in sorted(owners) if ip not in allocated]
    in_pools = [ip for ip in unrecorded if any(cidr.holds(ip) for cidr in active)]
    used_handles = {each.handle for each in allocations if each.handle}
    counts: dict[str, int] = {}
    for each in allocations:
        if each.node:
            counts[each.node] = counts.get(each.node, 0) + 1
    return CheckReport(
        tuple(BlockLine(block.cidr, block.affinity or "<none>") for block in blocks),
        tuple(allocations),
        tuple(active),
        node_ips,
        workload_ips,
        tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        tuple((ip, tuple(owners[ip])) for ip in sorted(owners)),
        tuple(each for each in allocations if each.ip not in owners),
        tuple(ip for ip in unrecorded if ip not in in_pools),
        tuple(in_pools),
        tuple(handle for handle in handles if handle not in used_handles),
        sum(handle in used_handles for handle in handles),
        tuple(sorted(used_handles.difference(handles))),
    )


def _allocations(blocks: Iterable[AllocationBlock]) -> list[Allocation]:
    found: list[Allocation] = []
    for block in blocks:
        for ip, attribute, _ in block.held():
            node = (attribute.secondary or {}).get("node", "")
            borrowed = bool(node) and node != block.host
            found.append(Allocation(ip, attribute.handle_id, attribute, block.cidr, borrowed))
    return sorted(found, key=lambda each: each.ip)


def _owners(
    nodes: Iterable[KVPair], endpoints: Iterable[KVPair]
) -> tuple[dict[Ip, list[str]], int, int]:
    owners: dict[Ip, list[str]] = {}
    counts = [0, 0]
    for kvp in nodes:
        for text in tunnel_addresses(spec_of(kvp.value)):
            counts[0] += _record(owners, text, f"Node({name_of(kvp.value)})")
    for kvp in endpoints:
        resource = parse_key(kvp.key)
        assert resource is not None, "only endpoints come here"
        who = f"Workload({resource.namespace}/{resource.name})"
        for text in spec_of(kvp.value).get("ipNetworks") or ():
            counts[1] += _record(owners, text.partition("/")[0], who)
    return owners, counts[0], counts[1]


def tunnel_addresses(spec: dict[str, Any]) -> list[str]:
    """The tunnel addresses of a Node's spec."""
    bgp, wireguard = spec.get("bgp") or {}, spec.get("wireguard") or {}
    named = (
        spec.get("ipv4VXLANTunnelAddr"),
        spec.get("ipv6VXLANTunnelAddr"),
        wireguard.get("interfaceIPv4Address"),
        wireguard.get("interfaceIPv6Address"),
        bgp.get("ipv4IPIPTunnelAddr"),
    )
    return [str(text) for text in named if text]


def _record(owners: dict[Ip, list[str]], text: str, who: str) -> int:
    try:
        ip = Ip.parse(text)
    except UsageError:
        return 0
    owners.setdefault(ip, []).append(who)
    return 1
