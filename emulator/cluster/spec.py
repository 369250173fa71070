"""The cluster file: what a person asks for, validated before anything starts.

```yaml
apiVersion: podwire.dev/v1alpha1
kind: Cluster
name: podwire
network: {type: flannel, podCIDR: 10.2.0.0/16, subnetLen: 24, backend: vxlan}
serviceCIDR: 10.3.0.0/16
nodePortRange: 30000-32767
nodeNetwork: {cidr: 172.17.4.0/22, gateway: 172.17.4.1}
controlPlane: {ip: 172.17.4.101}
etcd: {ip: 172.17.4.51, endpoints: []}
nodes: 3                                  # or a list of {name, ip}
```
Every field has a default; an unknown one is an error that names the field and the known ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from emulator.addr import Prefix, format_ip, parse_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

NETWORKS: Final = ("flannel",)
FLANNEL_BACKENDS: Final = ("vxlan", "host-gw")
API_VERSION: Final = "podwire.dev/v1alpha1"

DEFAULT_NODE_COUNT: Final = 3
# Tutorial 1's machines: etcd e1 .51, controller c1 .101, workers from .201 (w1) upwards.
DEFAULT_NODE_NETWORK: Final = "172.17.4.0/22"
FIRST_NODE_OFFSET: Final = 201
# One process each: about 10 MB and a few file descriptors a node; more than this is a typing error
# on any laptop.
MAX_NODES: Final = 1000
# RFC 1123 label, which node and cluster names become parts of.
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NODE_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
# The other processes of a cluster, whose logs and sockets are called so.
ROLES: Final = ("supervisor", "etcd", "controlplane")
_ETCD_ENDPOINT: Final = re.compile(r"(https?://)?[^\s/,]+:[0-9]{1,5}/?")


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The pod network: ``subnet_len`` is the length of one node's subnet."""

    type: str
    pod_cidr: Prefix
    subnet_len: int
    backend: str


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node: its name and its emulated address."""

    name: str
    ip: int


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


class _Fields:
    """One mapping of the file, read field by field; complains about what nobody asked for."""

    def __init__(self, value: object, where: str) -> None:
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise UsageError(f"{where}: expected a mapping, found {_kind(value)}")
        self._value: dict[Any, Any] = value
        self._where = where
        self._known: list[str] = []

    def path(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where != "cluster file" else name

    def get(self, name: str, default: Any) -> Any:
        self._known.append(name)
        value = self._value.get(name)
        return default if value is None else value

    def text(self, name: str, default: str) -> str:
        value = self.get(name, default)
        if not isinstance(value, str):
            raise UsageError(f"{self.path(name)}: expected text, found {_kind(value)}")
        return value

    def number(self, name: str, default: int) -> int:
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"{self.path(name)}: expected a number, found {_kind(value)}")
        return value

    def prefix(self, name: str, default: str) -> Prefix:
        try:
            return Prefix.parse(self.text(name, default))
        except UsageError as error:
            raise UsageError(f"{self.path(name)}: {error}") from None

    def ip(self, name: str, default: int) -> int:
        try:
            return parse_ip(self.text(name, format_ip(default)))
        except UsageError as error:
            raise UsageError(f"{self.path(name)}: {error}") from None

    def done(self) -> None:
        for name in self._value:
            if name not in self._known:
                raise UsageError(
                    f"{self.path(str(name))}: unknown field (known: {', '.join(self._known)})"
                )


def _kind(value: object) -> str:
    return {dict: "a mapping", list: "a list", str: "text", bool: "a truth value"}.get(
        type(value), f"{value!r}"
    )


def load_spec(
    text: str | None,
    *,
    name: str | None = None,
    nodes: int | None = None,
    network: str | None = None,
    pod_cidr: str | None = None,
    etcd_endpoints: tuple[str, ...] = (),
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
    top = _Fields(document, "cluster file")
    if (version := top.text("apiVersion", API_VERSION)) != API_VERSION:
        raise UsageError(f"apiVersion: {version!r} is not supported (use {API_VERSION})")
    if (kind := top.text("kind", "Cluster")) != "Cluster":
        raise UsageError(f"kind: {kind!r} is not supported (use Cluster)")
    named = top.text("name", "podwire")
    cluster_name = name or named
    check_cluster_name(cluster_name)
    network_spec = _network(top.get("network", {}), network, pod_cidr)
    service_cidr = top.prefix("serviceCIDR", "10.3.0.0/16")
    node_net = _Fields(top.get("nodeNetwork", {}), "nodeNetwork")
    node_network = node_net.prefix("cidr", DEFAULT_NODE_NETWORK)
    gateway = node_net.ip("gateway", node_network.network + 1)
    node_net.done()
    control_plane = _Fields(top.get("controlPlane", {}), "controlPlane")
    control_plane_ip = control_plane.ip("ip", node_network.network + 101)
    control_plane.done()
    etcd = _Fields(top.get("etcd", {}), "etcd")
    etcd_ip = etcd.ip("ip", node_network.network + 51)
    endpoints = _endpoints(etcd.get("endpoints", []), etcd_endpoints)
    etcd.done()
    node_ports = _port_range(top.text("nodePortRange", "30000-32767"))
    listed = top.get("nodes", DEFAULT_NODE_COUNT)
    top.done()
    node_specs = _nodes(listed if nodes is None else nodes, node_network)
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


def _endpoints(listed: object, override: tuple[str, ...]) -> tuple[str, ...]:
    """The URLs of an etcd that is not ours; empty for our own."""
    if not isinstance(listed, list):
        raise UsageError(f"etcd.endpoints: expected a list of URLs, found {_kind(listed)}")
    where = "--etcd-endpoints" if override else "etcd.endpoints"
    for url in override or listed:
        if not isinstance(url, str) or not _ETCD_ENDPOINT.fullmatch(url):
            raise UsageError(f"{where}: {url!r} is not an endpoint (expected http://HOST:PORT)")
    return override or tuple(listed)


def _network(value: object, type_override: str | None, cidr_override: str | None) -> NetworkSpec:
    if isinstance(value, str):
        value = {"type": value}
    fields = _Fields(value, "network")
    network_type = type_override or fields.text("type", "flannel")
    fields.text("type", "flannel")
    if network_type not in NETWORKS:
        raise UsageError(
            f"network: {network_type!r} is not a network Podwire knows ({', '.join(NETWORKS)})"
        )
    if cidr_override is not None:
        fields.prefix("podCIDR", "10.2.0.0/16")
        try:
            pod_cidr = Prefix.parse(cidr_override)
        except UsageError as error:
            raise UsageError(f"--pod-cidr: {error}") from None
    else:
        pod_cidr = fields.prefix("podCIDR", "10.2.0.0/16")
    # flannel's own default: /24, or two bits below a network of /23 and longer.
    subnet_len = fields.number("subnetLen", 24 if pod_cidr.length <= 22 else pod_cidr.length + 2)
    backend = fields.text("backend", "vxlan")
    fields.done()
    if backend not in FLANNEL_BACKENDS:
        raise UsageError(
            f"network.backend: {backend!r} is not a flannel backend Podwire knows "
            f"({', '.join(FLANNEL_BACKENDS)})"
        )
    if pod_cidr.length > 28:
        raise UsageError(
            f"network.podCIDR: {pod_cidr} is too small; the minimum useful network prefix is /28"
        )
    if subnet_len > 30:
        raise UsageError(f"network.subnetLen: {subnet_len} must be less than 31")
    if subnet_len < pod_cidr.length + 2:
        raise UsageError(
            f"network.subnetLen: {pod_cidr} must be able to accommodate at least four subnets of "
            f"/{subnet_len}"
        )
    return NetworkSpec(network_type, pod_cidr, subnet_len, backend)


def _port_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (dash and first.isdigit() and last.isdigit()):
        raise UsageError(f"nodePortRange: {text!r} is not a range (expected 30000-32767)")
    low, high = int(first), int(last)
    if not 1024 <= low <= high <= 65535:
        raise UsageError(f"nodePortRange: {text!r} must lie within 1024-65535 and not be empty")
    return low, high


def _nodes(value: object, network: Prefix) -> tuple[NodeSpec, ...]:
    if isinstance(value, bool) or not isinstance(value, (int, list)):
        raise UsageError(f"nodes: expected a number or a list, found {_kind(value)}")
    count = value if isinstance(value, int) else len(value)
    if count < 1:
        raise UsageError("nodes: a cluster needs at least 1 node")
    if count > MAX_NODES:
        raise UsageError(f"nodes: {count} is more than the {MAX_NODES} Podwire starts on one host")
    if isinstance(value, int):
        value = [{}] * count
    specs = []
    for index, item in enumerate(value):
        fields = _Fields({"name": item} if isinstance(item, str) else item, f"nodes[{index}]")
        name = fields.text("name", f"node-{index}")
        check_node_name(name, f"nodes[{index}].name")
        offset = FIRST_NODE_OFFSET + index
        if offset >= network.size - 1 and "ip" not in (item if isinstance(item, dict) else {}):
            raise UsageError(
                f"nodeNetwork.cidr: {network} has no address for node number {index + 1}; "
                "use a shorter prefix"
            )
        specs.append(NodeSpec(name, fields.ip("ip", network.network + offset)))
        fields.done()
    return tuple(specs)


def _check_whole(spec: ClusterSpec) -> None:
    """Check what needs more than one field."""
    names: dict[str, int] = {}
    addresses: dict[int, str] = {
        spec.gateway: "nodeNetwork.gateway",
        spec.control_plane_ip: "controlPlane.ip",
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
    ranges = (
        ("network.podCIDR", spec.network.pod_cidr),
        ("serviceCIDR", spec.service_cidr),
        ("nodeNetwork.cidr", spec.node_network),
    )
    for index, (name, prefix) in enumerate(ranges):
        for other_name, other in ranges[index + 1 :]:
            if prefix.overlaps(other):
                raise UsageError(f"{name}: {prefix} overlaps {other_name} {other}")
    if spec.service_cidr.length > 28:
        raise UsageError(f"serviceCIDR: {spec.service_cidr} is too small (at most /28)")
    # flannel leaves the first subnet of the network unused.
    pool = (1 << (spec.network.subnet_len - spec.network.pod_cidr.length)) - 1
    if len(spec.nodes) > pool:
        raise UsageError(
            f"network.podCIDR: {spec.network.pod_cidr} has {pool} subnets of "
            f"/{spec.network.subnet_len}, too few for {len(spec.nodes)} nodes; "
            "use a shorter podCIDR or a longer subnetLen"
        )


def flannel_config(network: NetworkSpec) -> Mapping[str, object]:
    """Return flannel's own network configuration (the value of ``<prefix>/config``)."""
    return {
        "Network": str(network.pod_cidr),
        "SubnetLen": network.subnet_len,
        "Backend": {"Type": network.backend},
    }
