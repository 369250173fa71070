"""One node: an emulated kernel on real sockets, and the daemons of a Kubernetes node on it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from typing import TYPE_CHECKING, Any, Final

from agents.kubelet.config import KubeletConfig
from agents.kubelet.daemon import run_kubelet
from agents.kubeproxy.daemon import KubeProxyConfig, run_kubeproxy
from agents.kubeproxy.ruleset import NodeConfig as ProxyNode
from agents.node.commands import NodeCommands
from agents.node.node_ports import NodePorts
from agents.node.observe import Observer
from agents.node.outside import Outside
from agents.node.segment import Segment
from agents.node.underlay_map import UnderlayEntry, UnderlayMap
from emulator.addr import Prefix, format_ip, format_mac, parse_ip, parse_mac
from emulator.errors import UsageError
from emulator.netstack.devices.underlay import Underlay
from emulator.netstack.fib import Route
from emulator.netstack.kernel import Kernel
from emulator.runtime.control import ControlServer
from emulator.runtime.stack import StackNetwork
from emulator.runtime.underlay import UnderlayDriver
from emulator.shell.context import ShellContext
from emulator.shell.devices import ProcSys
from emulator.shell.files import DiskFiles
from emulator.wire import vxlan
from etcd.client import EtcdClient

if TYPE_CHECKING:
    from agents.kubeproxy.ruleset import NodePort
    from agents.node.config import NodeConfig
    from agents.node.network import NodeNetwork
    from emulator.runtime.control import Call
    from emulator.runtime.role import RoleEnv

NIC: Final = "eth0"
DOCKER_BRIDGE: Final = "docker0"
DAEMONS: Final = ("kubelet", "kube-proxy")


async def run_node(config: NodeConfig, env: RoleEnv) -> None:
    """Run until cancelled; ready when subnet, kubelet and kube-proxy are.

    Raises UsageError for a taken address or port.
    """
    node = _Node(config, env)
    try:
        await node.start()
        await node.run()
    finally:
        await node.close()


def mac_of(ip: int) -> bytes:
    """The MAC of a node's NIC."""
    return b"\x02\x42" + ip.to_bytes(4, "big")


def _vxlan_port(config: NodeConfig) -> int:
    """The port whose datagrams travel as VXLAN; those of another network's port go as packets."""
    if config.calico is not None and config.calico.vxlan_mode != "Never":
        return vxlan.PORT_IANA
    return vxlan.PORT_LINUX


class _Node:
    def __init__(self, config: NodeConfig, env: RoleEnv) -> None:
        self._config = config
        self._env = env
        loop = asyncio.get_running_loop()
        self._kernel = Kernel(config.name, clock=env.clock.monotonic, rng=env.rng)
        root = self._kernel.root
        # A MAC of its own that a restart does not change: neighbours would keep the old one for a
        # minute.  02:42 and the address is what Docker gives a container.
        root.link_add(NIC, "underlay", mac=mac_of(config.ip), vxlan_port=_vxlan_port(config))
        root.addr_add(NIC, config.ip, config.network.length)
        root.link_set(NIC, up=True)
        eth0 = root.device(NIC)
        assert isinstance(eth0, Underlay)
        self._eth0 = eth0
        root.route_replace(Route(Prefix(0, 0), dev=NIC, gateway=config.gateway))
        if config.docker_bridge is not None:
            root.link_add(DOCKER_BRIDGE, "bridge", mac=mac_of(config.docker_bridge[0]))
            root.addr_add(DOCKER_BRIDGE, *config.docker_bridge)
            root.link_set(DOCKER_BRIDGE, up=True)
        self._outside = Outside(config, env, eth0.mac)
        segment = Segment(eth0, self._outside.device)
        for ip in self._outside.addresses:
            segment.join(ip, self._outside.device.mac)
        self._outside.connect(segment.drain_outside)
        self._driver = UnderlayDriver(
            self._kernel,
            segment,
            config.host,
            vxlan_port=config.vxlan_port,
            carrier_port=config.carrier_port,
            shared_host=config.shared_host,
        )
        self._network = StackNetwork(root, loop, hosts={config.name: [format_ip(config.ip)]})
        self._node_ports = NodePorts(
            self._outside.network, node_ip=format_ip(config.ip), host=config.host, log=env.log
        )
        commands = NodeCommands(self._shell_context)
        observer = Observer(self._kernel, env)
        self._control = ControlServer(
            {"status": self._status, "exec": commands.exec, **observer.handlers()}, env.log
        )
        self._waiting = set(DAEMONS)
        self._pods: NodeNetwork | None = None
        self._ready = False

    async def start(self) -> None:
        """Take sockets: the underlay's, the relays' and the control socket."""
        config = self._config
        try:
            await self._driver.start()
        except OSError as error:
            raise UsageError(
                f"cannot take UDP ports {config.vxlan_port} and {config.carrier_port} of "
                f"{config.host}: {error.strerror or error}"
            ) from None
        await self._outside.start()
        # Every Linux has one, and that is where people let a node's programs write.
        (config.root / "tmp").mkdir(parents=True, exist_ok=True)
        config.control_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._control.start_unix(str(config.control_socket))

    async def run(self) -> None:
        """The daemons, until cancelled."""
        config = self._config
        own = UnderlayEntry(
            config.name,
            format_ip(config.ip),
            format_mac(self._eth0.mac),
            config.host,
            self._driver.vxlan_port,
            self._driver.carrier_port,
            0 if config.calico is None else config.calico.bgp_port,
        )
        async with EtcdClient(
            config.etcd_endpoints, access=config.etcd_access, rng=self._env.rng
        ) as client:
            pods = self._pods = self._network_of(client)
            self._waiting |= {*pods.daemons}
            underlay = UnderlayMap(client, own, self._peers_changed, self._env.log)
            async with asyncio.TaskGroup() as group:
                group.create_task(underlay.run(), name="node.underlay")
                group.create_task(self._node_ports.run(), name="node.ports")
                group.create_task(pods.run(self._part), name="node.network")
                group.create_task(self._run_kubelet(pods), name="kubelet")
                group.create_task(self._run_kubeproxy(), name="kube-proxy")

    async def close(self) -> None:
        """Give everything back."""
        await self._control.close()
        await self._outside.close()
        await self._driver.close()

    # -- daemons -----------------------------------------------------------------------------------

    def _part(self, name: str) -> RoleEnv:
        def ready(info: str) -> None:
            self._waiting.discard(name)
            # Daemons that start over later are not news.
            if not self._waiting and not self._ready:
                self._ready = True
                self._env.ready(f"node {self._config.name}")

        return dataclasses.replace(self._env.child(name), on_ready=ready)

    def _network_of(self, client: EtcdClient) -> NodeNetwork:
        """The pod network's part of this node; only its own code is imported."""
        config = self._config
        ports = self._driver.source_ports
        if config.calico is not None:
            from agents.node.calico import CalicoNetwork

            return CalicoNetwork(
                config, self._env, self._kernel, client, nic=NIC, vxlan_source_ports=ports
            )
        from agents.node.flannel import FlannelNetwork

        return FlannelNetwork(config, self._env, self._kernel, nic=NIC, vxlan_source_ports=ports)

    async def _run_kubelet(self, pods: NodeNetwork) -> None:
        config = self._config
        kubelet = KubeletConfig(
            node_name=config.name,
            node_ip=format_ip(config.ip),
            underlay_host=config.host,
            kubeconfig=config.kubeconfig,
            state_dir=config.root,
            listen_host=config.host,
            listen_port=config.kubelet_port,
            tls_cert=str(config.kubelet_cert),
            tls_key=str(config.kubelet_key),
            token=config.kubelet_token,
            cluster_dns=format_ip(config.cluster_dns),
            labels=config.labels,
            taints=config.taints,
            network_up=pods.network_up,
        )
        await run_kubelet(kubelet, self._part("kubelet"), self._kernel, pods.plugin, self._network)

    async def _run_kubeproxy(self) -> None:
        config = self._config
        node = ProxyNode(config.name, format_ip(config.ip), cluster_cidr=config.pod_cidr)
        proxy = KubeProxyConfig(config.kubeconfig, node, on_node_ports=self._ports_changed)
        await run_kubeproxy(proxy, self._part("kube-proxy"), self._kernel)

    def _ports_changed(self, ports: tuple[NodePort, ...]) -> None:
        self._node_ports.want((port.protocol.lower(), port.port) for port in ports)

    def _peers_changed(self, up: list[UnderlayEntry], gone: list[UnderlayEntry]) -> None:
        for entry in gone:
            self._driver.del_peer(parse_ip(entry.ip))
        for entry in up:
            try:
                self._driver.set_peer(
                    parse_ip(entry.ip),
                    entry.underlay,
                    entry.vxlan_port,
                    entry.carrier_port,
                    mac=parse_mac(entry.mac),
                )
            except UsageError as error:
                self._env.log.error("peer %s ignored: %s", entry.name, error)
        if self._pods is not None:
            self._pods.peers_changed(up, gone)

    # -- control -----------------------------------------------------------------------------------

    def _shell_context(self, **streams: Any) -> ShellContext:
        config = self._config
        proc = ProcSys(self._kernel.root)
        return ShellContext(
            kernel=self._kernel,
            ns=self._kernel.root,
            network=self._network,
            files=DiskFiles(config.root, generated=proc, on_write=proc.write),
            hostname=config.name,
            env={"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "USER": "root"},
            clock=self._env.clock,
            rng=self._env.rng,
            **streams,
        )

    async def _status(self, call: Call) -> dict[str, Any]:
        return {
            "name": self._config.name,
            "ip": format_ip(self._config.ip),
            "underlay": self._config.host,
            "vxlan_port": self._driver.vxlan_port,
            "carrier_port": self._driver.carrier_port,
            "kubelet_port": self._config.kubelet_port,
            "etcd_endpoints": list(self._config.etcd_endpoints),
            **({} if self._pods is None else self._pods.status()),
            "pid": os.getpid(),
            "ready": self._ready,
            "waiting_for": sorted(self._waiting),
            "counters": self._driver.counters()._asdict(),
            "drops": {
                str(reason): counter.packets
                for reason, counter in self._kernel.root.drops.items()
                if counter.packets
            },
            "peers": [format_ip(peer.ip) for peer in self._driver.peers()],
        }
