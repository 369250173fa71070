"""The node's tunnel addresses: one of each kind that a pool needs, first of all addresses.

Source: projectcalico/calico node/pkg/allocateip/allocateip.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agents.calico.errors import DatastoreError, DoesNotExistError, UpdateConflictError
from agents.calico.ipam.affinity import RETRIES
from agents.calico.ipam.assign import AssignRequest
from agents.calico.ipam.errors import IpamError
from agents.calico.mirror import Mirror
from agents.calico.net import Ip
from agents.calico.resources import labels_of, resource_key, resource_prefix
from emulator.errors import UsageError
from etcd.client import EtcdError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from agents.calico.client import ResourceClient
    from agents.calico.datastore import Datastore
    from agents.calico.ipam.ipam import Ipam
    from agents.calico.ipam.pools import Pool
    from agents.calico.net import Cidr
    from agents.calico.resources import Resource

# A change that was missed, or failed, is made good this soon (defaultResyncInterval).
RESYNC_S: Final = 300.0
# Between attempts while the datastore or the pools refuse; calico-node exits and is restarted.
RETRY_S: Final = 1.0


class Kind(NamedTuple):
    """One kind of tunnel; ``path`` leads to its address in a Node's spec."""

    attribute: str
    handle_prefix: str
    path: tuple[str, ...]

    def handle(self, node: str) -> str:
        """The handle of a node's address."""
        return f"{self.handle_prefix}{node}"

    def wants(self, pool: Pool) -> bool:
        """True if a pool's traffic goes through such a tunnel."""
        mode = pool.ipip_mode if self.attribute == IPIP.attribute else pool.vxlan_mode
        return mode in ("Always", "CrossSubnet")


IPIP: Final = Kind("ipipTunnelAddress", "ipip-tunnel-addr-", ("bgp", "ipv4IPIPTunnelAddr"))
VXLAN: Final = Kind("vxlanTunnelAddress", "vxlan-tunnel-addr-", ("ipv4VXLANTunnelAddr",))
KINDS: Final = (IPIP, VXLAN)


def needed_pools(kind: Kind, pools: tuple[Pool, ...], node: Resource) -> tuple[Cidr, ...]:
    """The pools an address of a kind may come from; none: the node needs no such address."""
    labels = labels_of(node)
    return tuple(
        pool.cidr
        for pool in pools
        if kind.wants(pool)
        and pool.cidr.version == 4
        and not pool.disabled
        and "Tunnel" in pool.uses
        and pool.selects_node(labels)
    )


def address_of(kind: Kind, node: Resource) -> str:
    """The address a Node says it has, "" for none."""
    value: Any = node.get("spec") or {}
    for name in kind.path:
        value = (value or {}).get(name)
    return str(value or "")


def with_address(kind: Kind, node: Resource, address: str) -> Resource:
    """The Node with another address; "" takes it away."""
    changed = copy.deepcopy(node)
    spec = changed.setdefault("spec", {})
    for name in kind.path[:-1]:
        spec = spec.setdefault(name, {})
    if address:
        spec[kind.path[-1]] = address
    else:
        spec.pop(kind.path[-1], None)
    return changed


class TunnelAddresses:
    """Keeps one node's tunnel addresses; ``on_change`` hears every address, "" for none."""

    def __init__(
        self,
        node: str,
        datastore: Datastore,
        ipam: Ipam,
        resources: ResourceClient,
        log: logging.Logger,
        on_change: Callable[[Kind, str], None] | None = None,
    ) -> None:
        self._node = node
        self._datastore = datastore
        self._ipam = ipam
        self._resources = resources
        self._log = log
        self._on_change = on_change
        self._told: dict[Kind, str] = {}

    async def reconcile(self) -> None:
        """Make every address right once; DatastoreError, EtcdError."""
        for kind in KINDS:
            address = await self._reconcile(kind)
            if self._on_change is not None and self._told.get(kind, "") != address:
                self._on_change(kind, address)
            self._told[kind] = address

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What decides about the addresses, for a mirror that is shared."""
        return resource_prefix("IPPool"), resource_key("Node", self._node)

    async def run(self, mirror: Mirror | None = None) -> None:
        """Reconcile at every change of pools or the Node, until cancelled.

        ``mirror`` is one that somebody else runs and that covers ``prefixes``.
        """
        changed = asyncio.Event()
        complaint = ""
        async with asyncio.TaskGroup() as group:
            if mirror is None:
                mirror = Mirror(self._datastore, self.prefixes, None, self._log)
                group.create_task(mirror.run(), name="calico.tunnel.mirror")
            mirror.subscribe(self.prefixes, lambda _: changed.set())
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RESYNC_S):
                        await changed.wait()
                changed.clear()
                try:
                    await self.reconcile()
                except (DatastoreError, EtcdError) as error:
                    # A deleted Node stays away until calico-node starts again: said once.
                    if str(error) != complaint:
                        complaint = str(error)
                        self._log.warning("tunnel address of %s: %s", self._node, complaint)
                    await asyncio.sleep(RETRY_S)
                    changed.set()
                else:
                    complaint = ""

    async def _reconcile(self, kind: Kind) -> str:
        node = await self._resources.get("Node", self._node)
        cidrs = needed_pools(kind, await self._ipam.pools(), node)
        address = address_of(kind, node)
        if not cidrs:
            wanted = await self._give_back(kind)
        elif await self._is_ours(kind, address, cidrs):
            return address
        else:
            wanted = await self._take(kind, cidrs)
        await self._note(kind, node, wanted)
        return wanted

    async def _note(self, kind: Kind, node: Resource, address: str) -> None:
        """Write an address on the Node, whoever else writes on it at the same time."""
        for _ in range(RETRIES):
            if address_of(kind, node) == address:
                return
            try:
                await self._resources.update(with_address(kind, node, address))
            except UpdateConflictError:
                node = await self._resources.get("Node", self._node)
            else:
                return
        raise UpdateConflictError(f"Node({self._node})")

    async def _is_ours(self, kind: Kind, address: str, cidrs: tuple[Cidr, ...]) -> bool:
        """True if the Node's address is recorded as its own and comes from a pool that serves."""
        if not address:
            return False
        try:
            ip = Ip.parse(address)
        except UsageError:
            return False
        if not any(cidr.holds(ip) for cidr in cidrs):
            return False
        try:
            holder = await self._ipam.assignment(ip)
        except DoesNotExistError:
            return False
        known = holder.secondary or {}
        return known.get("type") == kind.attribute and known.get("node") == self._node

    async def _take(self, kind: Kind, cidrs: tuple[Cidr, ...]) -> str:
        """A new address; whatever the handle held before is given back."""
        await self._give_back(kind)
        handle = kind.handle(self._node)
        got = await self._ipam.auto_assign(
            AssignRequest(
                self._node,
                handle=handle,
                secondary={"node": self._node, "type": kind.attribute},
                pools=cidrs,
                use="Tunnel",
            )
        )
        shortfall = got.shortfall()
        if shortfall is not None:
            raise IpamError(f"Unable to autoassign an address for {kind.attribute}: {shortfall}")
        return str(got.ips[0])

    async def _give_back(self, kind: Kind) -> str:
        """Release what the handle holds; the address left is none."""
        with contextlib.suppress(DoesNotExistError):
            await self._ipam.release_by_handle(kind.handle(self._node))
        return ""
