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

from agents.bird.config import CALICO_TIMERS
from agents.bird.ctl.server import BirdControl
from agents.bird.daemon import BirdDaemon
from agents.bird.events import StateChanged
from agents.bird.fsm import State
from agents.bird.netlink import NamespacePort
from agents.bird.speaker import Speaker
from agents.calico.client import ResourceClient
from agents.calico.cni import CalicoCni
from agents.calico.confd.daemon import ConfdConfig, run_confd
from agents.calico.confd.state import DEFAULT_AS
from agents.calico.datastore import EtcdDatastore
from agents.calico.errors import AlreadyExistsError, DatastoreError
from agents.calico.felix.daemon import FelixConfig, run_felix
from agents.calico.ipam import gorand
from agents.calico.ipam.ipam import Ipam
from agents.calico.resources import new_resource
from agents.calico.startup import NodeFacts, start_node
from agents.calico.tunnel import TunnelAddresses
from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.resource import NAMESPACES, PODS
from emulator.kubeclient.rest import RestClient
from etcd.client import EtcdError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.bird.config import SpeakerConfig
    from agents.bird.events import Event
    from agents.calico.cni_conf import PodLike
    from agents.node.config import NodeConfig
    from agents.node.network import Part
    from agents.node.underlay_map import UnderlayEntry
    from emulator.netstack.kernel import Kernel
    from emulator.runtime.role import RoleEnv
    from etcd.client import EtcdClient

# Between attempts while etcd refuses what calico-node does first.
RETRY_S: Final = 0.2
# Before bird comes back after `birdc down`: runsv's second.
RESPAWN_S: Final = 1.0
# Requests under way at once: namespaces are read and pods annotated as they are wired.
MAX_REQUESTS: Final = 2
_LOOPBACK: Final = 127
# How long a node waits for its BGP peers before it calls itself ready without them.
PEERS_S: Final = 5.0
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
        )
        self._bird: BirdDaemon | None = None
        self._control: BirdControl | None = None
        self._wanted: SpeakerConfig | None = None
        self._configured = asyncio.Event()
        self._programmed = asyncio.Event()
        self._state_changed = asyncio.Event()
        self._by_ip: dict[int, tuple[str, int]] = {}
        self._by_host: dict[str, int] = {}

    async def run(self, part: Part) -> None:
        """Run calico-node until cancelled."""
        async with self._client, asyncio.TaskGroup() as group:
            tunnels = TunnelAddresses(
                self._config.name,
                self._datastore,
                self._ipam,
                self._resources,
                self._env.child("calico-tunnel").log,
            )
            await self._start(tunnels)
            group.create_task(tunnels.run(), name="calico.tunnel")
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
        await run_felix(felix, own, self._kernel, self._datastore)

    async def _run_confd(self, part: Part) -> None:
        confd = ConfdConfig(self._config.name, self._config.root, timers=TIMERS)
        await run_confd(confd, part("confd"), self._datastore, self._client, self._configure)

    def _configure(self, config: SpeakerConfig) -> None:
        self._wanted = config
        self._configured.set()
        if self._control is not None:
            self._control.configure(config)

    async def _run_bird(self, part: Part) -> None:
        """Run bird; one that was told to end (``down``) comes back, as its supervisor would do."""
        env = part("bird")
        await self._configured.wait()
        await self._programmed.wait()
        recover = False
        while True:
            await self._run_speaker(env, recover=recover)
            recover = True
            await asyncio.sleep(RESPAWN_S)

    async def _run_speaker(self, env: RoleEnv, *, recover: bool) -> None:
        """One life of bird, with its control socket."""
        assert self._wanted is not None
        now = asyncio.get_running_loop().time()
        port = NamespacePort(self._kernel.root)
        bird = BirdDaemon(
            Speaker(self._wanted, env.rng, now=now, kernel=port, recover=recover),
            env.log,
            listen=(self._config.host, self._settings.bgp_port),
            resolve=self._resolve,
            name_of=self._name_of,
            local_host=self._config.host,
            on_event=self._bird_event,
        )
        control = BirdControl(
            bird,
            path=self._settings.bird_ctl,
            read_config=lambda: self._wanted,
            clock=env.clock,
            log=env.log,
            root=self._config.root,
        )
        self._bird, self._control = bird, control
        try:
            async with asyncio.TaskGroup() as group:
                serving = group.create_task(control.run(), name="bird.ctl")
                waiting = group.create_task(self._wait_for_peers(env), name="calico.bgp.ready")
                await self._run_daemon(bird)
                serving.cancel()
                waiting.cancel()
        finally:
            self._bird = self._control = None

    async def _run_daemon(self, bird: BirdDaemon) -> None:
        try:
            await bird.run()
        except OSError as error:
            raise UsageError(
                f"bird cannot listen on {self._config.host}:{self._settings.bgp_port}: {error}"
            ) from None

    def _bird_event(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            self._state_changed.set()
        if self._control is not None:
            self._control.event(event)

    async def _wait_for_peers(self, env: RoleEnv) -> None:
        """Ready as calico-node's probe has it: once every peer is established, or after a while."""
        assert self._bird is not None
        speaker = self._bird.speaker
        try:
            async with asyncio.timeout(PEERS_S):
                while waiting := [
                    peer.config.name
                    for peer in speaker.peers.values()
                    if not peer.config.disabled and peer.state is not State.ESTABLISHED
                ]:
                    self._state_changed.clear()
                    await self._state_changed.wait()
        except TimeoutError:
            self._env.log.warning("BGP not established with %s", ", ".join(waiting))
        env.ready("bird speaks BGP")

    # -- neighbours --------------------------------------------------------------------------------

    def _resolve(self, ip: int) -> tuple[str, int] | None:
        if ip >> 24 == _LOOPBACK:
            return format_ip(ip), self._settings.bgp_port
        return self._by_ip.get(ip)

    def _name_of(self, host: str) -> int | None:
        known = self._by_host.get(host)
        return parse_ip(host) if known is None else known

    def peers_changed(self, up: list[UnderlayEntry], gone: list[UnderlayEntry]) -> None:
        """Routers are where their nodes are."""
        for entry in gone:
            self._by_ip.pop(parse_ip(entry.ip), None)
            self._by_host.pop(entry.underlay, None)
        for entry in up:
            ip = parse_ip(entry.ip)
            self._by_ip[ip] = (entry.underlay, entry.bgp_port or self._settings.bgp_port)
            self._by_host[entry.underlay] = ip
        if self._bird is not None:
            self._bird.addresses_changed()

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
        """Where its BGP speaker is."""
        return {"bgp": {"host": self._config.host, "port": self._settings.bgp_port}}


def node_labels(name: str, labels: Mapping[str, str]) -> dict[str, str]:
    """The labels selectors of Calico's resources find a node by: Kubernetes' own."""
    return {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        **labels,
    }
