"""kube-proxy: informers in front, one reconcile behind; shell.

Informer callbacks only say that something changed.  One task then compiles everything known into
the desired rules, applies them and tells the node which ports to open; calls that come while it
works or rests are one call (kubernetes, pkg/proxy/iptables/proxier.go, BoundedFrequencyRunner).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from agents.kubeproxy.conntrack import UdpFlow, UdpServices
from agents.kubeproxy.desired import desired_ruleset
from agents.kubeproxy.model import ServicePort, read_service, read_slices
from agents.kubeproxy.ruleset import NodeConfig, NodePort, Ruleset, missing_jumps
from emulator.addr import format_ip
from emulator.errors import PodwireError
from emulator.kubeclient.informer import SharedInformers
from emulator.kubeclient.resource import ENDPOINTSLICES, SERVICES
from emulator.kubeclient.rest import RestClient
from emulator.netstack.packet import UDP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence

    from agents.kubeproxy.model import Endpoint, Key
    from emulator.kubeclient.config import KubeConfig
    from emulator.netstack.netfilter.netfilter import Netfilter
    from emulator.runtime.role import RoleEnv

# What the emulated kernel can match and translate.
CARRIED_PROTOCOLS: Final = ("tcp", "udp")
# Requests under way at once: its two first lists.  Each is a TLS connection kept for a while.
MAX_REQUESTS: Final = 2


class NodeNamespace(Protocol):
    """What kube-proxy uses of a node's root namespace."""

    @property
    def netfilter(self) -> Netfilter: ...
    @property
    def sysctl(self) -> MutableMapping[str, int]: ...


class NodeKernel(Protocol):
    """A node's kernel, as far as kube-proxy needs it."""

    @property
    def root(self) -> NodeNamespace: ...


def _open_nothing(_: tuple[NodePort, ...]) -> None:
    """The default of ``KubeProxyConfig.on_node_ports``."""


@dataclass(frozen=True, slots=True)
class KubeProxyConfig:
    """Everything one kube-proxy needs; times in seconds.

    ``on_node_ports`` is called with the sorted node ports whenever they change, after the rules
    for them are in.  ``min_sync_s`` rests after each sync; ``resync_s`` looks for rules that
    somebody else removed and retries what failed.
    """

    kubeconfig: KubeConfig
    node: NodeConfig
    on_node_ports: Callable[[tuple[NodePort, ...]], None] = _open_nothing
    min_sync_s: float = 0.02
    resync_s: float = 30.0


async def run_kubeproxy(config: KubeProxyConfig, env: RoleEnv, kernel: NodeKernel) -> None:
    """Serve until cancelled."""
    async with RestClient(
        config.kubeconfig, rng=env.rng, user_agent="kube-proxy", max_inflight=MAX_REQUESTS
    ) as client:
        await _KubeProxy(config, env, kernel, client).run()


class _KubeProxy:
    def __init__(
        self, config: KubeProxyConfig, env: RoleEnv, kernel: NodeKernel, client: RestClient
    ) -> None:
        self._config = config
        self._env = env
        self._informers = SharedInformers(client, env.log)
        self._services = self._informers.informer(SERVICES)
        self._slices = self._informers.informer(ENDPOINTSLICES)
        self._dirty = asyncio.Event()
        self._proxier = Proxier(kernel.root, config.node)
        self._node_ports: tuple[NodePort, ...] = ()
        self._left_out: tuple[str, ...] = ()

    async def run(self) -> None:
        for informer in (self._services, self._slices):
            informer.add_handler(self._note)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informers.run(), name="kubeproxy.informers")
            group.create_task(self._sync_for_ever(), name="kubeproxy.sync")

    def _note(self, event: str, old: object, new: object) -> None:
        self._dirty.set()

    async def _sync_for_ever(self) -> None:
        await self._informers.wait_synced()
        first = True
        while True:
            self._dirty.clear()
            try:
                self._sync()
            except PodwireError as error:
                self._env.log.error("Failed to execute iptables-restore: %s", error)
            if first:
                first = False
                self._env.ready(f"kube-proxy programs {self._config.node.profile} iptables rules")
            await asyncio.sleep(self._config.min_sync_s)
            try:
                async with asyncio.timeout(self._config.resync_s):
                    await self._dirty.wait()
            except TimeoutError:
                pass

    def _sync(self) -> None:
        services = self._carried(
            [port for entry in self._services.lister.list() for port in read_service(entry)]
        )
        endpoints = read_slices(self._slices.lister.list(), self._config.node.node_name)
        node_ports = self._proxier.sync(services, endpoints)
        if node_ports != self._node_ports:
            self._node_ports = node_ports
            self._config.on_node_ports(node_ports)

    def _carried(self, services: list[ServicePort]) -> list[ServicePort]:
        """Leave out what the node's kernel has no match for: one rule would refuse all others."""
        odd = tuple(port.key.text() for port in services if port.protocol not in CARRIED_PROTOCOLS)
        if odd != self._left_out:
            self._left_out = odd
            for name in odd:
                self._env.log.warning(
                    "service port %s is left out: the emulated kernel carries TCP and UDP only",
                    name,
                )
        return [port for port in services if port.protocol in CARRIED_PROTOCOLS]


class Proxier:
    """Brings one namespace's tables to what services and endpoints ask for."""

    def __init__(self, namespace: NodeNamespace, node: NodeConfig) -> None:
        self._netfilter = namespace.netfilter
        self._node = node
        if node.localhost_node_ports:
            # Node ports on 127.0.0.1; KUBE-FIREWALL closes the hole this opens.
            namespace.sysctl["net.ipv4.conf.all.route_localnet"] = 1
        self._applied = ""

    def sync(
        self, services: Sequence[ServicePort], endpoints: Mapping[Key, Sequence[Endpoint]]
    ) -> tuple[NodePort, ...]:
        """Apply the desired rules if they differ from the last ones; returns the node ports.

        Raises UsageError with the line iptables-restore would blame.
        """
        wanted = desired_ruleset(services, endpoints, self._node)
        text = wanted.restore_text()
        missing = missing_jumps(wanted.jumps, self._read_chain)
        if missing or text != self._applied or self._lost_chains(wanted):
            self._applied = ""
            nat = self._netfilter.tables.get("nat")
            existing = tuple(nat.chains) if nat is not None else ()
            self._netfilter.restore(
                wanted.restore_text(existing, missing), noflush=True, counters=True
            )
            self._applied = text
            self._forget_stale_udp(UdpServices(services, endpoints))
        return wanted.node_ports

    def _lost_chains(self, wanted: Ruleset) -> bool:
        """True if somebody deleted or emptied chains, as ``iptables -F`` does."""
        for name, table in (("filter", wanted.filter), ("nat", wanted.nat)):
            found = self._netfilter.tables.get(name)
            if found is None:
                return True
            rules = 0
            for chain in table.chains:
                if chain not in found.chains:
                    return True
                rules += len(found.chains[chain].rules)
            if rules != len(table.rules):
                return True
        return False

    def _read_chain(self, table: str, chain: str) -> list[str]:
        found = self._netfilter.tables.get(table)
        if found is None or chain not in found.chains:
            return []
        return [rule.spec.save() for rule in found.chains[chain].rules]

    def _forget_stale_udp(self, services: UdpServices) -> None:
        if not services:
            return
        conntrack = self._netfilter.conntrack
        for connection in list(conntrack):
            sent: Any = connection.original
            if connection.proto == UDP and services.is_stale(
                UdpFlow(format_ip(sent.dst), sent.dport, format_ip(connection.reply.src))
            ):
                conntrack.delete(connection)
