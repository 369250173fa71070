"""Everything one node needs to know to run, wherever it was started."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from etcd.core.access import NO_ACCESS, EtcdAccess

if TYPE_CHECKING:
    from pathlib import Path

    from emulator.addr import Prefix
    from emulator.kubeclient.config import KubeConfig


@dataclass(frozen=True, slots=True)
class Relay:
    """A process without an emulated kernel that emulated programs may dial.

    ``ip:port`` is where it seems to be, ``host:host_port`` where its real socket is.
    """

    ip: int
    port: int
    host: str
    host_port: int


@dataclass(frozen=True, slots=True)
class BfdSettings:
    """BFD with every BGP peer: seconds between packets, how many of them may be missing.

    ``graceful`` keeps a dead peer's routes for its restart.
    """

    interval_s: float
    multiplier: int
    graceful: bool = False


@dataclass(frozen=True, slots=True)
class CalicoSettings:
    """What a node of a Calico network needs beside; modes are IPPool's.

    ``bird_ctl`` is where its BGP speaker's control socket is.  ``bfd`` and ``bmp``, a collector's
    host and port, are None for none; ``mrt_messages`` keeps a file of all BGP messages;
    ``bird_dialect`` is the BIRD, 1 or 2, whose words the control socket speaks.
    """

    block_size: int
    ipip_mode: str
    vxlan_mode: str
    nat_outgoing: bool
    as_number: int
    mesh: bool
    bgp_port: int
    bird_ctl: Path
    bfd: BfdSettings | None = None
    bmp: tuple[str, int] | None = None
    mrt_messages: bool = False
    bird_dialect: int = 1


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node.  Addresses are integers if emulated, text if real.

    ``network`` is the subnet the node's NIC is in, ``site`` holds all nodes' addresses.
    """

    name: str
    ip: int
    network: Prefix
    gateway: int
    site: Prefix
    host: str
    shared_host: bool
    vxlan_port: int
    carrier_port: int
    kubelet_port: int
    etcd_endpoints: tuple[str, ...]
    kubeconfig: KubeConfig
    kubelet_cert: Path
    kubelet_key: Path
    kubelet_token: str
    root: Path
    control_socket: Path
    pod_cidr: Prefix
    cluster_dns: int
    relays: tuple[Relay, ...]
    etcd_access: EtcdAccess = NO_ACCESS
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[dict[str, str], ...] = ()
    docker_bridge: tuple[int, int] | None = None
    calico: CalicoSettings | None = None
