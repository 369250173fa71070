"""Everything a kubelet needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from emulator.kubeclient.config import KubeConfig

KUBELET_PORT: Final = 10250
# What each era's node says of itself; the runtime's name decides the containerID's scheme.
_KUBELET_VERSIONS: Final = {"2017": "v1.5.4+coreos.0"}
_RUNTIMES: Final = {"2017": "docker://1.12.6"}
_MODERN_VERSION: Final = "v1.32.5"
_MODERN_RUNTIME: Final = "containerd://2.0.0"


@dataclass(frozen=True, slots=True)
class KubeletConfig:
    """One node's kubelet.

    ``node_ip`` is the emulated address, ``underlay_host`` the real one other processes dial,
    ``state_dir`` the node's root directory (``run/flannel/subnet.env`` lies under it).
    ``tls_cert`` and ``tls_key`` are paths of PEM files; both empty serves plain HTTP (tests).
    ``network_up`` is reason and message of the condition NetworkUnavailable once it is False.
    ``token`` is the bearer token a caller of the API on ``listen_port`` must show.
    """

    node_name: str
    node_ip: str
    underlay_host: str
    kubeconfig: KubeConfig
    state_dir: Path
    listen_host: str = "127.0.0.1"
    listen_port: int = KUBELET_PORT
    tls_cert: str = ""
    tls_key: str = ""
    token: str = field(default="", repr=False)
    era: str = "modern"
    cluster_dns: str = ""
    cluster_domain: str = "cluster.local"
    network_up: tuple[str, str] = ("FlannelIsUp", "Flannel is running on this node")
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[dict[str, str], ...] = ()
    unschedulable: bool = False
    cpus: int = 4
    memory_mib: int = 8192
    max_pods: int = 110

    @property
    def kubelet_version(self) -> str:
        """``status.nodeInfo.kubeletVersion``."""
        return _KUBELET_VERSIONS.get(self.era, _MODERN_VERSION)

    @property
    def runtime_version(self) -> str:
        """``status.nodeInfo.containerRuntimeVersion``."""
        return _RUNTIMES.get(self.era, _MODERN_RUNTIME)

    @property
    def runtime(self) -> str:
        """``containerd`` or ``docker``: the scheme of container IDs."""
        return self.runtime_version.partition(":")[0]
