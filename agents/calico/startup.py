"""What calico-node does once when it starts: the cluster's and the node's own resources.

Source: projectcalico/calico node/pkg/lifecycle/startup/startup.go, libcalico-go clientv3
EnsureInitialized.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agents.calico.cni_conf import NODENAME_FILE
from agents.calico.errors import AlreadyExistsError, DoesNotExistError, UpdateConflictError
from agents.calico.ipam.affinity import RETRIES
from agents.calico.net import Cidr
from agents.calico.resources import KUBE_LABELS, name_of, new_resource, remembered, spec_of
from emulator.errors import UsageError

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from agents.calico.client import ResourceClient
    from agents.calico.ipam.ipam import Ipam
    from agents.calico.resources import Resource

VERSION: Final = "v3.28.0"
DEFAULT_POOL: Final = "default-ipv4-ippool"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node; ``ipv4`` is its address with the subnet's length, as ``10.10.95.205/20``.

    ``pool_cidr`` "" makes no pool; ``ipip`` and ``vxlan`` are the pool's modes.
    """

    name: str
    ipv4: str
    labels: dict[str, str] = field(default_factory=dict)
    pool_cidr: str = "192.168.0.0/16"
    block_size: int = 26
    ipip: str = "Always"
    vxlan: str = "Never"
    nat_outgoing: bool = True
    as_number: int | None = None


async def start_node(
    facts: NodeFacts, resources: ResourceClient, ipam: Ipam, rng: random.Random, root_dir: Path
) -> Resource:
    """Make what is missing and return the Node; UsageError if another node has the address.

    May run on all nodes at once, and again at every start.
    """
    await _ensure_cluster_information(resources, rng)
    if facts.pool_cidr:
        await _ensure_pool(facts, resources)
    node = await _ensure_node(facts, resources)
    await ipam.mark_host(facts.name)
    path = root_dir / NODENAME_FILE
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.write_text(facts.name)
    return node


async def _ensure_cluster_information(resources: ResourceClient, rng: random.Random) -> None:
    try:
        await resources.get("ClusterInformation", "default")
    except DoesNotExistError:
        spec = {
            "clusterGUID": f"{rng.getrandbits(128):032x}",
            "clusterType": "k8s,bgp",
            "calicoVersion": VERSION,
            "datastoreReady": True,
        }
        try:
            await resources.create(new_resource("ClusterInformation", "default", spec))
        except AlreadyExistsError:
            return


async def _ensure_pool(facts: NodeFacts, resources: ResourceClient) -> None:
    """A cluster without any pool gets the default one; whoever has pools chose them."""
    if await resources.list("IPPool"):
        return
    spec = {
        "cidr": facts.pool_cidr,
        "ipipMode": facts.ipip,
        "vxlanMode": facts.vxlan,
        "natOutgoing": facts.nat_outgoing,
        "blockSize": facts.block_size,
        "nodeSelector": "all()",
    }
    try:
        await resources.create(new_resource("IPPool", DEFAULT_POOL, spec))
    except AlreadyExistsError:
        return


async def _ensure_node(facts: NodeFacts, resources: ResourceClient) -> Resource:
    address = facts.ipv4.partition("/")[0]
    Cidr.parse(facts.ipv4)
    for other in await resources.list("Node"):
        theirs = (spec_of(other).get("bgp") or {}).get("ipv4Address", "")
        if name_of(other) != facts.name and theirs.partition("/")[0] == address:
            raise UsageError(
                f"Calico node '{name_of(other)}' is already using the IPv4 address {address}."
            )
    for _ in range(RETRIES):
        try:
            node = await resources.get("Node", facts.name)
        except DoesNotExistError:
            try:
                return await resources.create(_new_node(facts))
            except AlreadyExistsError:
                continue
        try:
            return await resources.update(_with_facts(node, facts))
        except (UpdateConflictError, DoesNotExistError):
            continue
    raise UpdateConflictError(f"Node({facts.name})")


def _new_node(facts: NodeFacts) -> Resource:
    """The resource of a node nobody has seen before.

    kube-controllers' note of the labels is there from the start: written later it would be one more
    change for every node to look at.
    """
    node = _with_facts(new_resource("Node", facts.name, {}), facts)
    if facts.labels:
        node["metadata"]["annotations"] = {KUBE_LABELS: remembered(facts.labels)}
    return node


def _with_facts(node: Resource, facts: NodeFacts) -> Resource:
    """The node's resource with what is true of it; the rest, tunnel addresses too, stays."""
    spec = node["spec"] = {**(node.get("spec") or {})}
    bgp = spec["bgp"] = {**(spec.get("bgp") or {}), "ipv4Address": facts.ipv4}
    if facts.as_number is not None:
        bgp["asNumber"] = facts.as_number
    spec["orchRefs"] = [{"nodeName": facts.name, "orchestrator": "k8s"}]
    if facts.labels:
        labels = node["metadata"].get("labels") or {}
        node["metadata"]["labels"] = dict(sorted({**labels, **facts.labels}.items()))
    return node
