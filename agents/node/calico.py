"""A node of a Calico network: what runs in the calico-node pod, and its CNI plugin.

startup makes the cluster's and the node's resources, the tunnel address is taken before any pod's,
felix programs the kernel, confd decides what the BGP speaker is told, the speaker (``bird``)
exchanges blocks with the other nodes over TCP on the host's loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Final

from agents.bird.config import CALICO_TIMERS, BfdOptions
from agents.calico.client import ResourceClient
from agents.calico.cni import CalicoCni
from agents.calico.confd.daemon import ConfdConfig, prefixes_of, run_confd
from agents.calico.confd.state import DEFAULT_AS
from agents.calico.datastore import EtcdDatastore
from agents.calico.errors import AlreadyExistsError, DatastoreError
from agents.calico.felix.daemon import FelixConfig, run_felix
from agents.calico.felix.reading import PREFIXES as FELIX_PREFIXES
from agents.calico.ipam import gorand
from agents.calico.ipam.ipam import Ipam
from agents.calico.mirror import Mirror
from agents.calico.resources import new_resource
from agents.calico.startup import NodeFacts, start_node
from agents.calico.tunnel import TunnelAddresses
from agents.kubelet.node import node_labels
from agents.node.calico_bird import NodeBird
from emulator.addr import format_ip
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.resource import NAMESPACES, PODS
from emulator.kubeclient.rest import RestClient
from etcd.client import EtcdError

if TYPE_CHECKING:
    from agents.calico.cni_conf import PodLike
    from agents.node.config import NodeConfig
    from agents.node.network import Part
    from agents.node.underlay_map import UnderlayEntry
    from emulator.netstack.kernel import Kernel
    from emulator.runtime.role import RoleEnv
    from etcd.client import EtcdClient

# Between attempts while etcd refuses what calico-node does first.
RETRY_S: Final = 0.2
# Requests under way at once: namespaces are read and pods annotated as they are wired.
MAX_REQUESTS: Final = 2
# Calico's own, but the first attempt comes at once: a listener is there before it is published.
TIMERS: Final = dataclasses.replace(CALICO_TIMERS, first_delay_s=0.0)


def warm_up() -> None:
    """What every node would compute alike, done in the parent they are forked from."""
    gorand.prepare()


class CalicoNetwork:
    """See ``NodeNetwork``."""

    daemons = ("calico-felix", "confd", "bird")
    network_up = ("CalicoIsUp", "Calico is running on this node")

    def __init__(
        self,
        config: NodeConfig,
        env: RoleEnv,
        kernel: Kernel,
        etcd: EtcdClient,
        *,
        nic: str,
        vxlan_source_ports: tuple[int, int],
    ) -> None:
        assert config.calico is not None, "a node of a Calico network"
        self._config = config
        self._settings = config.calico
        self._env = env
        self._kernel = kernel
        self._nic = nic
        self._source_ports = vxlan_source_ports
        self._datastore = EtcdDatastore(etcd)
        self._programmed = asyncio.Event()
        self._ipam = Ipam(self._datastore, env.clock)
        self._resources = ResourceClient(self._datastore, env.clock, env.rng)
        self._client = RestClient(
            config.kubeconfig, rng=env.rng, user_agent="calico-node", max_inflight=MAX_REQUESTS
        )
        self.plugin = CalicoCni(
            kernel,
            config.root,
            config.name,
            datastore=self._datastore,
            ipam=self._ipam,
            resources=self._resources,
            clock=env.clock,
            log=env.child("cni").log,
            namespace_of=self._namespace,
            annotate=self._annotate,
            programmed=self._programmed.is_set,
        )
        self._bird = NodeBird(config, config.calico, kernel)
        # One copy of the datastore for all that run here.
        prefixes = (*FELIX_PREFIXES, *prefixes_of(config.name))
        self._mirror = Mirror(self._datastore, prefixes, None, env.log)

    async def run(self, part: Part) -> None:
        """Run calico-node until cancelled."""
        with contextlib.closing(self._bird):
            await self._run(part)

    async def _run(self, part: Part) -> None:
        async with self._client, asyncio.TaskGroup() as group:
            tunnels = TunnelAddresses(
                self._config.name,
                self._datastore,
                self._ipam,
                self._resources,
                self._env.child("calico-tunnel").log,
            )
            await self._start(tunnels)
            group.create_task(self._mirror.run(), name="calico.mirror")
            group.create_task(tunnels.run(self._mirror), name="calico.tunnel")
            group.create_task(self._run_felix(part), name="calico.felix")
            group.create_task(self._run_confd(part), name="calico.confd")
            group.create_task(self._run_bird(part), name="calico.bird")

    async def _start(self, tunnels: TunnelAddresses) -> None:
        """What must be there before anything else; etcd's absence is waited out."""
        config, settings = self._config, self._settings
        facts = NodeFacts(
            config.name,
            f"{format_ip(config.ip)}/{config.network.length}",
            labels=node_labels(config.name, config.labels),
            pool_cidr=str(config.pod_cidr),
            block_size=settings.block_size,
            ipip=settings.ipip_mode,
            vxlan=settings.vxlan_mode,
            nat_outgoing=settings.nat_outgoing,
        )
        while True:
            try:
                await start_node(
                    facts, self._resources, self._ipam, self._env.rng, self._config.root
                )
                await tunnels.reconcile()
                await self._ensure_bgp_configuration()
            except (DatastoreError, EtcdError, OSError) as error:
                self._env.log.warning("calico-node cannot start yet: %s", error)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _ensure_bgp_configuration(self) -> None:
        """Say what differs from Calico's defaults, unless somebody has said something."""
        settings = self._settings
        spec: dict[str, Any] = {}
        if settings.as_number != DEFAULT_AS:
            spec["asNumber"] = settings.as_number
        if not settings.mesh:
            spec["nodeToNodeMeshEnabled"] = False
        if spec:
            with contextlib.suppress(AlreadyExistsError):
                await self._resources.create(new_resource("BGPConfiguration", "default", spec))

    async def _run_felix(self, part: Part) -> None:
        felix = FelixConfig(self._config.name, nic=self._nic, vxlan_source_ports=self._source_ports)
        env = part("calico-felix")

        def ready(info: str) -> None:
            # Routes through a tunnel need the tunnel.
            self._programmed.set()
            env.on_ready(info)

        own = dataclasses.replace(env, on_ready=ready)
        await run_felix(felix, own, self._kernel, self._datastore, self._mirror)

    async def _run_confd(self, part: Part) -> None:
        bfd = self._settings.bfd
        options = None
        if bfd is not None:
            options = BfdOptions(
                bfd.interval_s, bfd.interval_s, multiplier=bfd.multiplier, graceful=bfd.graceful
            )
        confd = ConfdConfig(self._config.name, self._config.root, timers=TIMERS, bfd=options)
        await run_confd(
            confd, part("confd"), self._datastore, self._client, self._bird.configure, self._mirror
        )

    async def _run_bird(self, part: Part) -> None:
        await self._programmed.wait()
        await self._bird.run(part("bird"))

    def peers_changed(self, up: list[UnderlayEntry], gone: list[UnderlayEntry]) -> None:
        """Routers are where their nodes are."""
        self._bird.peers_changed(up, gone)

    # -- pods --------------------------------------------------------------------------------------

    async def _namespace(self, name: str) -> dict[str, Any]:
        return dict(await self._client.get(NAMESPACES, "", name))

    async def _annotate(self, pod: PodLike, annotations: dict[str, str]) -> None:
        try:
            await self._client.patch(
                PODS, pod.namespace, pod.name, {"metadata": {"annotations": annotations}}
            )
        except (ApiError, ApiUnreachableError) as error:
            # The pod has its address; what is written on it is for people.
            self._env.log.warning("pod %s/%s is not annotated: %s", pod.namespace, pod.name, error)

    def status(self) -> dict[str, Any]:
        """Where its BGP speaker is and can be asked; the supervisor says it in the same shape."""
        return {
            "bgp": {"address": self._config.host, "port": self._settings.bgp_port},
            "bird_ctl": str(self._settings.bird_ctl),
        }
