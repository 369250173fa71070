"""Where a cluster lives on this host: underlay addresses, ports, and files under its directory.

On Linux all of 127.0.0.0/8 is this host's, so a cluster takes one 127.X.0.0/16 and every process
keeps the port its real counterpart uses.  Elsewhere only 127.0.0.1 answers, and the same ports
count up from a base.
"""

from __future__ import annotations

import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from emulator.cluster.spec import ClusterSpec, NodeSpec

ETCD_PORT: Final = 2379
API_PORT: Final = 6443
KUBELET_PORT: Final = 10250
VXLAN_PORT: Final = 8472
CALICO_VXLAN_PORT: Final = 4789
# The design's one port for everything that is not an encapsulation of its own.
CARRIER_PORT: Final = 8473

# 127.0-31 stay free for other programs (systemd-resolved uses 127.0.0.53, Debian 127.0.1.1).
FIRST_BLOCK, LAST_BLOCK = 32, 254
# Shared-loopback hosts: each cluster takes a run of ports (three a node) below those that systems
# hand out by themselves (Linux: from 32768).
SHARED_BASE_PORT: Final = 10000
SHARED_PORTS_PER_CLUSTER: Final = 1024
SHARED_CLUSTERS: Final = 22
# A unix socket's path may have 107 bytes (sun_path of unix(7), less its NUL).
MAX_SOCKET_PATH: Final = 107


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node's place: ``host`` and ports are real, ``spec.ip`` is emulated.

    ``shared_host`` means other nodes have the same host and other ports.
    """

    spec: NodeSpec
    host: str
    shared_host: bool
    vxlan_port: int
    carrier_port: int
    kubelet_port: int
    # Where its BGP speaker listens, 0 if the network has none.
    bgp_port: int = 0


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """Everything the processes of one cluster on this host need to know of each other."""

    spec: ClusterSpec
    directory: Path
    block: int
    etcd_endpoints: tuple[str, ...]
    etcd_host: str
    etcd_port: int
    api_host: str
    api_port: int
    nodes: tuple[NodePlan, ...]

    @property
    def embedded_etcd(self) -> bool:
        """True if the cluster runs its own etcd."""
        return not self.spec.etcd_endpoints

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.api_host}:{self.api_port}"

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    def socket(self, role: str) -> Path:
        """The control socket of a role."""
        return self.directory / "run" / f"{role}.sock"

    def bird_ctl(self, node: str) -> Path:
        """The control socket of a node's BGP speaker."""
        return self.directory / "run" / f"{node}.bird.ctl"

    def speaker_of(self, node: NodePlan) -> dict[str, object]:
        """What ``podwire status`` tells of a node's BGP speaker, nothing if it has none."""
        if self.spec.network.calico is None:
            return {}
        return {
            "bgp": {"address": node.host, "port": node.bgp_port},
            "bird_ctl": str(self.bird_ctl(node.spec.name)),
        }

    def log(self, role: str) -> Path:
        return self.directory / "logs" / f"{role}.log"

    def node_root(self, name: str) -> Path:
        """The directory that is ``/`` of a node."""
        return self.directory / "nodes" / name


def home() -> Path:
    """``$PODWIRE_HOME``, else ``~/.podwire``."""
    return Path(os.environ.get("PODWIRE_HOME") or Path.home() / ".podwire")


def cluster_directory(name: str) -> Path:
    return home() / name


def loopback_is_routable() -> bool:
    """True where every 127.x.y.z is a local address (Linux)."""
    return sys.platform == "linux" and os.environ.get("PODWIRE_UNDERLAY") != "shared"


def preferred_block(name: str) -> int:
    """The 127.X.0.0/16 a cluster of this name asks for first; the same on every start."""
    return FIRST_BLOCK + zlib.crc32(name.encode()) % (LAST_BLOCK - FIRST_BLOCK + 1)


def make_plan(spec: ClusterSpec, directory: Path, block: int) -> ClusterPlan:
    """Return the plan of a cluster in 127.<block>.0.0/16.

    Raises UsageError if the directory is too deep for a unix socket's path.
    """
    longest = max((node.name for node in spec.nodes), key=len)
    path = str(directory / "run" / f"{max(longest, 'controlplane', key=len)}.bird.ctl")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise UsageError(
            f"{path}: longer than the {MAX_SOCKET_PATH} bytes a unix socket's path may have; "
            "set PODWIRE_HOME to a shorter directory"
        )
    spread = loopback_is_routable()
    base = parse_ip(f"127.{block}.0.0")
    first_port = SHARED_BASE_PORT + block % SHARED_CLUSTERS * SHARED_PORTS_PER_CLUSTER
    ports = iter(range(first_port, first_port + SHARED_PORTS_PER_CLUSTER))
    if not spread and 2 + 3 * len(spec.nodes) > SHARED_PORTS_PER_CLUSTER:
        raise UsageError(
            f"nodes: {len(spec.nodes)} are too many where all nodes share 127.0.0.1 (at most "
            f"{(SHARED_PORTS_PER_CLUSTER - 2) // 3})"
        )

    def place(offset: int, port: int) -> tuple[str, int]:
        return (format_ip(base + offset), port) if spread else ("127.0.0.1", next(ports))

    etcd_host, etcd_port = place(51, ETCD_PORT)
    api_host, api_port = place(101, API_PORT)
    if spec.network.calico is not None and not spread:
        raise UsageError(
            "network: calico needs a loopback address for every node: BGP tells routers apart by "
            "their addresses"
        )
    calico = spec.network.calico
    bgp_port = 0 if calico is None else calico.bgp_port
    tunnels = calico is not None and calico.vxlan_mode != "Never"
    wire_port = CALICO_VXLAN_PORT if tunnels else VXLAN_PORT
    nodes = []
    for index, node in enumerate(spec.nodes):
        # 254 nodes a /24, so that no node gets an address ending in .0 or .255.
        offset = (1 + index // 254 << 8) + 1 + index % 254
        host, vxlan_port = place(offset, wire_port)
        carrier_port = place(offset, CARRIER_PORT)[1]
        kubelet_port = place(offset, KUBELET_PORT)[1]
        nodes.append(
            NodePlan(node, host, not spread, vxlan_port, carrier_port, kubelet_port, bgp_port)
        )
    endpoints = spec.etcd_endpoints or (f"http://{etcd_host}:{etcd_port}",)
    return ClusterPlan(
        spec, directory, block, endpoints, etcd_host, etcd_port, api_host, api_port, tuple(nodes)
    )
