"""flanneld: one node's agent, a shell around the decisions of its neighbours in this folder.

Life: wait for the network configuration, take a lease, program the kernel, write subnet.env, then
keep the lease, follow the others' leases and repair rules until cancelled.  Being cancelled
(SIGTERM) leaves lease and subnet.env as they are: that is why a restarted node gets its subnet
back (flannel, main.go).
"""

from __future__ import annotations

import asyncio
import datetime
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from agents.flannel.backend import backend_mtu, desired_link, desired_state, link_actions, reconcile
from agents.flannel.config import NetworkConfig, Profile, parse_network_config
from agents.flannel.gotime import format_duration
from agents.flannel.lease import Lease, LeaseAttrs, format_vxlan_data
from agents.flannel.leaser import RACE_RETRIES, Create, SubnetLeaser
from agents.flannel.netlink import FlannelKernel, NodeNamespace
from agents.flannel.registry import LeaseRegistry
from agents.flannel.rules import RuleSet, forward_rules, masquerade_rules
from agents.flannel.subnetenv import SubnetEnv, docker_options, parse_previous_subnet
from agents.flannel.view import Change, ChangeKind, LeaseView
from emulator.addr import Prefix, format_ip, parse_ip
from emulator.errors import PodwireError, UsageError
from etcd.client import CompactedError, EtcdClient, EtcdError
from etcd.core.access import NO_ACCESS, EtcdAccess

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from emulator.runtime.role import RoleEnv
    from etcd.client import Event

T = TypeVar("T")

# The network configuration is asked for again so often; flannel's figure.
CONFIG_RETRY_S: Final = 1.0
# In a cluster that starts, the configuration is there in a moment.
FIRST_CONFIG_RETRY_S: Final = 0.05
# A renewal that failed is tried again so soon; flannel's figure.
RENEW_RETRY_S: Final = 60.0
# flannel's --subnet-lease-renew-margin may be 1 to 1439 minutes.
MARGIN_RANGE_S: Final = (60, 1439 * 60)
# Waits of a watch that ended with an error, doubled each time; flannel's figures.
WATCH_RETRY_S: Final = (0.1, 5.0)


class NodeKernel(Protocol):
    """A node's kernel, as far as flannel needs it."""

    @property
    def root(self) -> NodeNamespace: ...


class LeaseRevokedError(PodwireError):
    """The lease is gone: deleted, expired or another node's; the node must start over."""


@dataclass(frozen=True, slots=True)
class FlannelConfig:
    """Everything one agent needs; times in seconds.

    ``profile`` 2017 writes the values of flannel 0.7 and takes a new lease when the own one is
    revoked; modern ends the agent then, and whoever supervises it starts it anew.
    """

    etcd_endpoints: tuple[str, ...]
    node_ip: str
    subnet_file: str
    # Written beside subnet.env as ``mk-docker-opts.sh -i`` does; "" writes none.
    docker_opts_file: str = ""
    iface: str = "eth0"
    prefix: str = "/coreos.com/network"
    ttl_s: int = 86400
    renew_margin_s: int = 3600
    ip_masq: bool = True
    forward_rules: bool = True
    rules_resync_s: float = 5.0
    profile: Profile = "modern"
    # (0, 0) is the kernel's own choice; a node names the ports its real sockets have.
    vxlan_source_ports: tuple[int, int] = (0, 0)
    etcd_access: EtcdAccess = NO_ACCESS

    def __post_init__(self) -> None:
        """Check the margin as flannel does."""
        if not MARGIN_RANGE_S[0] <= self.renew_margin_s <= MARGIN_RANGE_S[1]:
            raise UsageError("Invalid subnet-lease-renew-margin option, out of acceptable range")


async def run_flannel(config: FlannelConfig, env: RoleEnv, kernel: NodeKernel) -> None:
    """Serve until cancelled.

    Raises LeaseRevokedError when the lease is gone (modern profile), ConfigError and UsageError for
    what the operator must change, ExhaustedError when no subnet is free.
    """
    async with EtcdClient(
        config.etcd_endpoints,
        access=config.etcd_access,
        rng=env.rng,
    ) as client:
        agent = _Flanneld(config, env, kernel, client)
        while True:
            try:
                await agent.run()
            except LeaseRevokedError as error:
                if config.profile == "modern":
                    env.log.error("Lease has been revoked. Shutting down daemon.")
                    raise
                env.log.error("Lease has been revoked (%s)", error)


class _Flanneld:
    def __init__(
        self, config: FlannelConfig, env: RoleEnv, kernel: NodeKernel, client: EtcdClient
    ) -> None:
        self._config = config
        self._env = env
        self._log = env.log
        self._client = client
        self._kernel = FlannelKernel(kernel.root, config.vxlan_source_ports)
        self._registry = LeaseRegistry(
            client,
            config.prefix,
            profile=config.profile,
            ttl_s=config.ttl_s,
            clock=env.clock,
            log=env.log,
        )
        self._network: NetworkConfig
        self._lease: Lease
        self._attrs: LeaseAttrs
        self._view: LeaseView
        self._lease_changed = asyncio.Event()
        self._ignored: tuple[str, ...] = ()
        self._refused: tuple[str, ...] = ()

    async def run(self) -> None:
        """One life: from the configuration to a revoked lease."""
        self._network = await self._wait_for_config()
        backend = self._network.backend
        self._iface = self._kernel.external_interface(
            self._config.iface, parse_ip(self._config.node_ip)
        )
        self._log.info("Using %s as external address", self._config.node_ip)
        link = desired_link(backend, self._iface)
        self._kernel.apply(link_actions(link, self._kernel.observe_link(backend)))
        self._attrs = self._make_attrs()
        self._lease = await self._acquire()
        self._view = LeaseView(self._lease.subnet)
        self._program()
        self._ensure_rules()
        self._write_files()
        self._log.info("Running backend.")
        self._env.ready(f"flannel holds {self._lease.subnet}")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_leases(), name="flanneld.watch")
                group.create_task(self._keep_lease(), name="flanneld.renew")
                group.create_task(self._keep_kernel(), name="flanneld.repair")
        except* PodwireError as errors:
            raise errors.exceptions[0] from None

    # Start

    async def _wait_for_config(self) -> NetworkConfig:
        wait_s = FIRST_CONFIG_RETRY_S
        while True:
            try:
                data = await self._registry.network_config()
                return parse_network_config(data, self._config.profile)
            except (UsageError, EtcdError, OSError) as error:
                self._log.error(
                    "Couldn't fetch network config: %s (etcd %s, prefix %s)",
                    error,
                    ",".join(self._config.etcd_endpoints),
                    self._config.prefix,
                )
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, CONFIG_RETRY_S)

    def _make_attrs(self) -> LeaseAttrs:
        backend, public_ip = self._network.backend, self._iface.ip
        if backend.type != "vxlan":
            return LeaseAttrs(public_ip, backend.type)
        mac = self._kernel.mac(backend.device)
        data = format_vxlan_data(backend.vni, mac, self._config.profile)
        return LeaseAttrs(public_ip, "vxlan", data)

    async def _acquire(self) -> Lease:
        leaser = SubnetLeaser(
            self._network,
            self._attrs.public_ip,
            previous=self._previous_subnet(),
            rng=self._env.rng,
        )
        for _ in range(RACE_RETRIES):
            leases, _ = await self._insist(self._registry.leases)
            decision = leaser.propose(leases)
            for note in decision.notes:
                self._log.info("%s", note)
            for lease in decision.delete:
                await self._registry.delete(lease)
            try:
                if isinstance(decision.action, Create):
                    made = await self._registry.create(decision.action.subnet, self._attrs)
                else:
                    made = await self._registry.extend(decision.action.lease, self._attrs)
            except (EtcdError, OSError) as error:
                # It may have been done: the next list tells.
                self._log.error("Error registering network: failed to acquire lease: %s", error)
                await asyncio.sleep(CONFIG_RETRY_S)
                continue
            if made is not None:
                self._log.info(
                    "Allocated lease (ip: %s ipv6: ::/0) to current node (%s)",
                    made.subnet,
                    format_ip(self._attrs.public_ip),
                )
                return made
            self._log.info("another node was faster, trying again")
        raise PodwireError(
            "Error registering network: failed to acquire lease:"
            " Max retries reached trying to acquire a subnet"
        )

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except (EtcdError, OSError) as error:
                self._log.error("etcd does not answer: %s", error)
            await asyncio.sleep(CONFIG_RETRY_S)

    def _previous_subnet(self) -> Prefix | None:
        try:
            with open(self._config.subnet_file, encoding="utf-8", errors="replace") as file:
                return parse_previous_subnet(file.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            # Writing it will say more.
            self._log.error("Couldn't fetch previous FLANNEL_SUBNET from subnet file: %s", error)
            return None

    def _write_files(self) -> None:
        env = SubnetEnv(
            self._network.network,
            self._lease.subnet,
            backend_mtu(self._network.backend, self._iface),
            self._config.ip_masq,
        )
        _write_whole(self._config.subnet_file, env.text())
        if self._config.docker_opts_file:
            _write_whole(self._config.docker_opts_file, docker_options(env, combined=False))

    # Kernel

    def _program(self) -> None:
        desired, ignored = desired_state(
            self._network.backend,
            self._iface,
            self._lease.subnet,
            self._view.leases(),
            self._network.network,
        )
        if ignored != self._ignored:
            self._ignored = ignored
            for line in ignored:
                self._log.warning("%s", line)
        observed = self._kernel.observe(self._network.backend, self._network.network, self._iface)
        refused = self._kernel.apply_each(reconcile(desired, observed))
        for line in refused:
            if line not in self._refused:
                self._log.error("%s", line)
        self._refused = refused

    def _rule_sets(self) -> list[RuleSet]:
        network, wanted = self._network.network, []
        if self._config.ip_masq:
            wanted.append(masquerade_rules(network, self._lease.subnet, self._config.profile))
        if self._config.forward_rules:
            wanted.append(forward_rules(network))
        return wanted

    def _ensure_rules(self) -> None:
        for rules in self._rule_sets():
            self._kernel.ensure_rules(rules)

    async def _keep_kernel(self) -> None:
        while True:
            await asyncio.sleep(self._config.rules_resync_s)
            self._ensure_rules()
            self._program()

    # Leases

    async def _follow_leases(self) -> None:
        wait_s = WATCH_RETRY_S[0]
        while True:
            try:
                leases, revision = await self._registry.leases()
                self._take_snapshot(leases)
                wait_s = WATCH_RETRY_S[0]
                async with self._client.watch(
                    self._registry.subnets_prefix, prefix=True, start_revision=revision + 1
                ) as batches:
                    async for batch in batches:
                        self._take_events(batch.events)
            except CompactedError:
                self._log.warning(
                    "Watch of subnet leases failed because etcd index outside history window"
                )
            except (EtcdError, OSError) as error:
                self._log.error("Watch subnets: %s", error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, WATCH_RETRY_S[1])

    def _take_snapshot(self, leases: list[Lease]) -> None:
        own = next((lease for lease in leases if lease.subnet == self._lease.subnet), None)
        self._take_own(own)
        self._take_changes(self._view.reset(leases))

    def _take_events(self, events: tuple[Event, ...] | list[Event]) -> None:
        changes: list[Change] = []
        for event in events:
            key = self._registry.read_key(event.kv.key)
            if key is None:
                continue
            lease = self._registry.read(event.kv) if event.kind == "PUT" else None
            if key.subnet == self._lease.subnet:
                if event.kv.mod_revision >= self._lease.mod_revision:
                    self._take_own(lease)
            elif lease is not None:
                changes += self._view.put(lease)
            else:
                changes += self._view.remove(key.subnet)
        self._take_changes(changes)

    def _take_changes(self, changes: list[Change]) -> None:
        for change in changes:
            self._log.info("%s", _describe(change))
        if changes:
            self._program()

    def _take_own(self, lease: Lease | None) -> None:
        """The own key as some view of etcd has it; LeaseRevokedError if it is not ours any more.

        A view older than the last renewal says nothing new.
        """
        own, text = self._lease, f"the lease of {self._lease.subnet}"
        if lease is None:
            raise LeaseRevokedError(f"{text} was deleted or has expired")
        if lease.attrs.public_ip != own.attrs.public_ip:
            other = format_ip(lease.attrs.public_ip)
            raise LeaseRevokedError(f"{text} is held by {other} now")
        if lease.mod_revision <= own.mod_revision:
            return
        if lease.attrs != own.attrs:
            self._log.error(
                "%s was rewritten by somebody else (%s, now %s):"
                " do two nodes have the address %s?",
                text, own.attrs.backend_data, lease.attrs.backend_data,
                format_ip(own.attrs.public_ip),
            )  # fmt: skip
        expires_at = own.expires_at if lease.etcd_lease == own.etcd_lease else None
        if lease.etcd_lease and expires_at is None:
            # Somebody else's TTL: ours to renew at once.
            expires_at = self._env.clock.monotonic()
        self._lease = replace(own, mod_revision=lease.mod_revision,
                              etcd_lease=lease.etcd_lease, expires_at=expires_at)  # fmt: skip
        self._lease_changed.set()

    async def _keep_lease(self) -> None:
        margin_s = min(self._config.renew_margin_s, self._config.ttl_s / 2)
        while True:
            self._lease_changed.clear()
            lease = self._lease
            if lease.expires_at is None:
                self._log.info("%s is a reservation: nothing to renew", lease.subnet)
                await self._lease_changed.wait()
                continue
            left_s = lease.expires_at - margin_s - self._env.clock.monotonic()
            self._log.info("Waiting for %s to renew lease", format_duration(left_s))
            try:
                async with asyncio.timeout(max(left_s, 0)):
                    await self._lease_changed.wait()
                continue
            except TimeoutError:
                pass
            try:
                await self._renew()
            except (EtcdError, OSError) as error:
                self._log.error("Error renewing lease (trying again in 1 min): %s", error)
                await asyncio.sleep(RENEW_RETRY_S)

    async def _renew(self) -> None:
        made = await self._registry.extend(self._lease, self._attrs)
        if made is None:
            # The key changed since it was last seen: gone, or written by somebody.
            self._take_own(await self._registry.lease(self._lease.subnet))
            return
        self._lease = made
        assert made.expires_at is not None
        left_s = made.expires_at - self._env.clock.monotonic()
        expires = datetime.datetime.fromtimestamp(self._env.clock.time() + left_s, datetime.UTC)
        self._log.info("Lease renewed, new expiration: %s", f"{expires:%Y-%m-%d %H:%M:%S %z UTC}")


def _write_whole(path: str, text: str) -> None:
    """Write a temporary file and rename it, so that nobody reads half of one."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}")
    try:
        os.makedirs(folder or ".", exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"Failed to write subnet file: {path}: {error.strerror}") from None


def _describe(change: Change) -> str:
    attrs = change.lease.attrs
    if change.kind is ChangeKind.REMOVED:
        return f"Subnet removed: {change.lease.subnet}"
    verb = "added" if change.kind is ChangeKind.ADDED else "changed"
    return f"Subnet {verb}: {change.lease.subnet} via {format_ip(attrs.public_ip)}"
