"""A node of a flannel network: flanneld and the CNI plugins flannel's manifests install."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from agents.cni.plugin import NodeCni
from agents.cni.runtime import SandboxNetwork
from agents.flannel.daemon import FlannelConfig, LeaseRevokedError, run_flannel
from emulator.addr import format_ip

if TYPE_CHECKING:
    from agents.node.config import NodeConfig
    from agents.node.network import Part
    from agents.node.underlay_map import UnderlayEntry
    from emulator.netstack.kernel import Kernel
    from emulator.runtime.role import RoleEnv

SUBNET_FILE: Final = "run/flannel/subnet.env"
# A revoked lease ends flanneld; whoever supervises it on a real node starts it anew this soon.
RESTART_S: Final = 1.0


class FlannelNetwork:
    """See ``NodeNetwork``."""

    daemons = ("flannel",)
    network_up = ("FlannelIsUp", "Flannel is running on this node")

    def __init__(
        self,
        config: NodeConfig,
        env: RoleEnv,
        kernel: Kernel,
        *,
        nic: str,
        vxlan_source_ports: tuple[int, int],
    ) -> None:
        self._config = config
        self._env = env
        self._kernel = kernel
        self._nic = nic
        self._source_ports = vxlan_source_ports
        self.plugin = SandboxNetwork(NodeCni(kernel, config.root, era="modern", rng=env.rng))
        (config.root / SUBNET_FILE).parent.mkdir(parents=True, exist_ok=True)

    async def run(self, part: Part) -> None:
        """Run flanneld, again and again."""
        config = self._config
        flannel = FlannelConfig(
            etcd_endpoints=config.etcd_endpoints,
            etcd_access=config.etcd_access,
            node_ip=format_ip(config.ip),
            subnet_file=str(config.root / SUBNET_FILE),
            docker_opts_file=str(config.root / "run/flannel/flannel_docker_opts.env"),
            iface=self._nic,
            vxlan_source_ports=self._source_ports,
        )
        while True:
            try:
                await run_flannel(flannel, part("flannel"), self._kernel)
            except LeaseRevokedError as error:
                self._env.log.error("flanneld ended: %s", error)
            await asyncio.sleep(RESTART_S)

    def peers_changed(self, up: list[UnderlayEntry], gone: list[UnderlayEntry]) -> None:
        """flanneld learns of nodes from their leases."""

    def status(self) -> dict[str, Any]:
        """Nothing more."""
        return {}
