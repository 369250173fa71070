"""The cluster file: what a person asks for, validated before anything starts.

```yaml
apiVersion: podwire.dev/v1alpha1
kind: Cluster
name: podwire
network: {type: flannel, podCIDR: 10.2.0.0/16, subnetLen: 24, backend: vxlan}
# or: {type: calico, podCIDR: 192.168.0.0/16, blockSize: 26, ipipMode: Always, vxlanMode: Never,
#      natOutgoing: true, asNumber: 64512, nodeToNodeMesh: true, bgpPort: 1790,
#      bfd: {interval: 100ms, multiplier: 3}, bmp: "127.0.0.1:11019", mrtMessages: false,
#      birdDialect: 1}
serviceCIDR: 10.3.0.0/16
nodePortRange: 30000-32767
nodeNetwork: {cidr: 172.17.4.0/22, gateway: 172.17.4.1}
controlPlane: {ip: 172.17.4.101}
etcd: {ip: 172.17.4.51, endpoints: []}   # with endpoints: user password cacert cert key
dockerBridge: 172.17.0.1/16               # gives every node an idle docker0
nodes: 3                                  # or a list of {name, ip, gateway, labels, taints}
```
Every field has a default; an unknown one is an error that names the field and the known ones.  A
node's ip may bring a length (10.10.68.222/20): nodes of other subnets are then behind its gateway.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

import yaml

from emulator.addr import Prefix, format_ip
from emulator.cluster.fields import Fields, kind_of
from emulator.cluster.networks import NetworkSpec, check_room, read_network
from emulator.errors import UsageError
from etcd.core.access import NO_ACCESS, EtcdAccess

API_VERSION: Final = "podwire.dev/v1alpha1"

DEFAULT_NODE_COUNT: Final = 3
# Tutorial 1's machines: etcd e1 .51, controller c1 .101, workers from .201 (w1) upwards.
DEFAULT_NODE_NETWORK: Final = "172.17.4.0/22"
FIRST_NODE_OFFSET: Final = 201
# One process each: about 10 MB and a few file descriptors a node; more than this is a typing error
# on any laptop.
MAX_NODES: Final = 1000
TAINT_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")
# RFC 1123 label, which node and cluster names become parts of.
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NODE_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
# The other processes of a cluster, whose logs and sockets are called so.
ROLES: Final = ("supervisor", "etcd", "controlplane")
_ETCD_ENDPOINT: Final = re.compile(r"(https?://)?[^\s/,]+:[0-9]{1,5}/?")


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node: its name, its emulated address in ``network``, and the way out of that."""

    name: str
    ip: int
    network: Prefix
    gateway: int
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Interface:
    """An address and its network's length."""

    ip: int
    length: int


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A validated cluster file; addresses are integers, ``node_ports`` is inclusive."""

    name: str
    network: NetworkSpec
    service_cidr: Prefix
    node_ports: tuple[int, int]
    node_network: Prefix
    gateway: int
    control_plane_ip: int
    etcd_ip: int
    etcd_endpoints: tuple[str, ...]
    nodes: tuple[NodeSpec, ...]
    docker_bridge: Interface | None = None
    etcd_access: EtcdAccess = NO_ACCESS


def load_spec(
    text: str | None,
    *,
    name: str | None = None,
    nodes: int | None = None,
    network: str | None = None,
    pod_cidr: str | None = None,
    etcd_endpoints: tuple[str, ...] = (),
    etcd_access: EtcdAccess = NO_ACCESS,
) -> ClusterSpec:
    """Return the cluster a file's text and the command line's overrides ask for.

    ``text`` None means an empty file.  Raises UsageError with the field's path.
    """
    try:
        document = yaml.safe_load(text) if text else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UsageError(f"cluster file is not YAML{where}: {problem}") from None
    top = Fields(document, "cluster file")
    if (version := top.text("apiVersion", API_VERSION)) != API_VERSION:
        raise UsageError(f"apiVersion: {version!r} is not supported (use {API_VERSION})")
    if (kind := top.text("kind", "Cluster")) != "Cluster":
        raise UsageError(f"kind: {kind!r} is not supported (use Cluster)")
    named = top.text("name", "podwire")
    cluster_name = name or named
    check_cluster_name(cluster_name)
    network_spec = read_network(top.get("network", {}), network, pod_cidr)
    service_cidr = top.prefix("serviceCIDR", "10.3.0.0/16")
    node_net = Fields(top.get("nodeNetwork", {}), "nodeNetwork")
    node_network = node_net.prefix("cidr", DEFAULT_NODE_NETWORK)
    gateway = node_net.ip("gateway", node_network.network + 1)
    node_net.done()
    control_plane = Fields(top.get("controlPlane", {}), "controlPlane")
    control_plane_ip = control_plane.ip("ip", node_network.network + 101)
    control_plane.done()
    etcd = Fields(top.get("etcd", {}), "etcd")
    etcd_ip = etcd.ip("ip", node_network.network + 51)
    endpoints = _endpoints(etcd.get("endpoints", []), etcd_endpoints)
    access = _access(etcd, etcd_access, endpoints)
    etcd.done()
    node_ports = _port_range(top.text("nodePortRange", "30000-32767"))
    docker_bridge = None
    if "dockerBridge" in top:
        docker_bridge = Interface(*top.interface("dockerBridge", 0, 16))
    else:
        top.get("dockerBridge", None)
    listed = top.get("nodes", DEFAULT_NODE_COUNT)
    top.done()
    node_specs = _nodes(listed if nodes is None else nodes, node_network, gateway)
    spec = ClusterSpec(
        cluster_name,
        network_spec,
        service_cidr,
        node_ports,
        node_network,
        gateway,
        control_plane_ip,
        etcd_ip,
        endpoints,
        node_specs,
        docker_bridge,
        access,
    )
    _check_whole(spec)
    return spec


def check_cluster_name(name: str) -> None:
    """Raise UsageError unless ``name`` can be a directory and a context name."""
    if len(name) > 40 or not _NAME.fullmatch(name):
        raise UsageError(
            f"name: {name!r} is not a cluster name (lower-case letters, digits and '-', at most 40)"
        )


def check_node_name(name: str, where: str) -> None:
    """Raise UsageError unless ``name`` can be a node's host name and the name of its files."""
    if len(name) > 63 or not _NODE_NAME.fullmatch(name):
        raise UsageError(
            f"{where}: {name!r} is not a node name (lower-case letters, digits, '-' and '.')"
        )
    if name in ROLES:
        raise UsageError(f"{where}: {name!r} is the name of another process; call the node else")


def _access(etcd: Fields, override: EtcdAccess, endpoints: tuple[str, ...]) -> EtcdAccess:
    """How to be let in by an etcd that is not ours; flags replace what the file says."""
    texts = [etcd.text(name, "") for name in ("user", "password", "cacert", "cert", "key")]
    try:
        access = EtcdAccess.parse(*texts) if override == NO_ACCESS else override
    except UsageError as error:
        raise UsageError(str(error).replace("--", "etcd.")) from None
    if access != NO_ACCESS and not endpoints:
        raise UsageError(
            "--user, --cacert, --cert, --key: our own etcd lets everybody in; give "
            "--etcd-endpoints (or etcd.endpoints), too"
        )
    return access


def _endpoints(listed: object, override: tuple[str, ...]) -> tuple[str, ...]:
    """The URLs of an etcd that is not ours; empty for our own."""
    if not isinstance(listed, list):
        raise UsageError(f"etcd.endpoints: expected a list of URLs, found {kind_of(listed)}")
    where = "--etcd-endpoints" if override else "etcd.endpoints"
    for url in override or listed:
        if not isinstance(url, str) or not _ETCD_ENDPOINT.fullmatch(url):
            raise UsageError(f"{where}: {url!r} is not an endpoint (expected http://HOST:PORT)")
    return override or tuple(listed)


def _port_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (dash and first.isdigit() and last.isdigit()):
        raise UsageError(f"nodePortRange: {text!r} is not a range (expected 30000-32767)")
    low, high = int(first), int(last)
    if not 1024 <= low <= high <= 65535:
        raise UsageError(f"nodePortRange: {text!r} must lie within 1024-65535 and not be empty")
    return low, high


def _nodes(value: object, network: Prefix, gateway: int) -> tuple[NodeSpec, ...]:
    if isinstance(value, bool) or not isinstance(value, (int, list)):
        raise UsageError(f"nodes: expected a number or a list, found {kind_of(value)}")
    count = value if isinstance(value, int) else len(value)
    if count < 1:
        raise UsageError("nodes: a cluster needs at least 1 node")
    if count > MAX_NODES:
        raise UsageError(f"nodes: {count} is more than the {MAX_NODES} Podwire starts on one host")
    items = [{}] * count if isinstance(value, int) else value
    return tuple(_node(item, index, network, gateway) for index, item in enumerate(items))


def _node(item: object, index: int, network: Prefix, gateway: int) -> NodeSpec:
    where = f"nodes[{index}]"
    fields = Fields({"name": item} if isinstance(item, str) else item, where)
    name = fields.text("name", f"node-{index}")
    check_node_name(name, f"{where}.name")
    offset = FIRST_NODE_OFFSET + index
    if offset >= network.size - 1 and "ip" not in fields:
        raise UsageError(
            f"nodeNetwork.cidr: {network} has no address for node number {index + 1}; "
            "use a shorter prefix"
        )
    ip, length = fields.interface("ip", network.network + offset, network.length)
    own = Prefix.of(ip, length)
    way_out = fields.ip("gateway", gateway if gateway in own else own.network + 1)
    if way_out not in own:
        raise UsageError(
            f"{where}.gateway: {format_ip(way_out)} is not in {own}, the network of "
            f"{format_ip(ip)}/{length}"
        )
    node = NodeSpec(name, ip, own, way_out, fields.texts("labels"), _taints(fields))
    fields.done()
    return node


def _taints(fields: Fields) -> tuple[dict[str, str], ...]:
    listed = fields.get("taints", [])
    if not isinstance(listed, list):
        raise UsageError(f"{fields.path('taints')}: expected a list, found {kind_of(listed)}")
    taints = []
    for index, item in enumerate(listed):
        taint = Fields(item, f"{fields.path('taints')}[{index}]")
        key, value = taint.text("key", ""), taint.text("value", "")
        effect = taint.choice("effect", "NoSchedule", TAINT_EFFECTS)
        taint.done()
        if not key:
            raise UsageError(f"{taint.path('key')}: a taint needs a key")
        taints.append({"key": key, **({"value": value} if value else {}), "effect": effect})
    return tuple(taints)


def _check_whole(spec: ClusterSpec) -> None:
    """Check what needs more than one field."""
    names: dict[str, int] = {}
    addresses: dict[int, str] = {
        spec.gateway: "nodeNetwork.gateway",
        spec.control_plane_ip: "controlPlane.ip",
    }
    addresses |= {
        node.gateway: f"nodes[{index}].gateway"
        for index, node in enumerate(spec.nodes)
        if node.gateway != spec.gateway
    }
    if not spec.etcd_endpoints:
        addresses[spec.etcd_ip] = "etcd.ip"
    for index, node in enumerate(spec.nodes):
        if node.name in names:
            raise UsageError(
                f"nodes[{index}].name: {node.name!r} is already the name of node number "
                f"{names[node.name] + 1}"
            )
        names[node.name] = index
        if node.ip in addresses:
            raise UsageError(
                f"nodes[{index}].ip: {format_ip(node.ip)} is already {addresses[node.ip]}"
            )
        addresses[node.ip] = f"nodes[{index}].ip"
        if node.ip not in spec.node_network:
            raise UsageError(
                f"nodes[{index}].ip: {format_ip(node.ip)} is not in nodeNetwork {spec.node_network}"
            )
    ranges = [
        ("network.podCIDR", spec.network.pod_cidr),
        ("serviceCIDR", spec.service_cidr),
        ("nodeNetwork.cidr", spec.node_network),
    ]
    if spec.docker_bridge is not None:
        bridge = Prefix.of(spec.docker_bridge.ip, spec.docker_bridge.length)
        ranges.append(("dockerBridge", bridge))
    for index, (name, prefix) in enumerate(ranges):
        for other_name, other in ranges[index + 1 :]:
            if prefix.overlaps(other):
                raise UsageError(f"{name}: {prefix} overlaps {other_name} {other}")
    if spec.service_cidr.length > 28:
        raise UsageError(f"serviceCIDR: {spec.service_cidr} is too small (at most /28)")
    check_room(spec.network, len(spec.nodes))
