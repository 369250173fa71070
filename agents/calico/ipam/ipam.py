"""Ipam: all verbs of libcalico's IPAM interface on one datastore.

Source: projectcalico/calico libcalico-go/lib/ipam/interface.go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from agents.calico.datastore import Create, KVPair, Query, Update
from agents.calico.errors import DoesNotExistError
from agents.calico.ipam.affinity import LOST, RETRIES, Affinities
from agents.calico.ipam.assign import Assigner
from agents.calico.ipam.block import AllocationBlock
from agents.calico.ipam.errors import MAX_RETRIES_TEXT, ClaimConflictError, IpamError
from agents.calico.ipam.model import (
    CONFIG_KEY,
    Handle,
    IpamConfig,
    block_key,
    block_prefix,
    handle_key,
)
from agents.calico.ipam.order import block_of, blocks_in
from agents.calico.ipam.pools import Pool, pool_of, read_pools
from agents.calico.ipam.release import ReleaseOutcome, Releaser
from agents.calico.net import Cidr, Ip
from agents.calico.resources import resource_prefix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agents.calico.datastore import Datastore
    from agents.calico.ipam.assign import AssignRequest
    from agents.calico.ipam.block import Attribute, ReleaseOptions
    from agents.calico.ipam.release import ReleaseOutcome
    from agents.calico.ipam.view import Assignments
    from emulator.runtime.clock import Clock


class Claimed(NamedTuple):
    """What ``claim_affinity`` got, and what other hosts have."""

    claimed: tuple[Cidr, ...]
    failed: tuple[Cidr, ...]


@dataclass(frozen=True, slots=True)
class BlockUtilization:
    """How full a block is."""

    cidr: Cidr
    capacity: int
    available: int


@dataclass(frozen=True, slots=True)
class PoolUtilization:
    """A pool and its blocks; the last of all is named "orphaned allocation blocks"."""

    name: str
    cidr: Cidr
    blocks: tuple[BlockUtilization, ...]


class Ipam:
    """Address management; ``clock`` dates claims and seeds sequence numbers.

    Every verb may run at the same time as any other, here or on other hosts.  All raise
    DatastoreError and its kinds, and EtcdError when the datastore cannot be reached.
    """

    def __init__(self, datastore: Datastore, clock: Clock) -> None:
        self._datastore = datastore
        self._affinities = Affinities(datastore, clock)
        self._assigner = Assigner(datastore, self._affinities, clock)
        self._releaser = Releaser(datastore, self._affinities, self._assigner.forget)

    # Assigning ---------------------------------------------------------------------------------

    async def auto_assign(self, request: AssignRequest) -> Assignments:
        """See ``Assigner.auto_assign``."""
        return await self._assigner.auto_assign(request)

    async def assign_ip(
        self,
        host: str,
        ip: Ip,
        handle: str | None = None,
        secondary: Mapping[str, str] | None = None,
    ) -> None:
        """See ``Assigner.assign_ip``."""
        await self._assigner.assign_ip(host, ip, handle, secondary)

    # Releasing ---------------------------------------------------------------------------------

    async def release_ips(self, *options: ReleaseOptions) -> ReleaseOutcome:
        """See ``Releaser.release_ips``."""
        return await self._releaser.release_ips(options)

    async def release_by_handle(self, handle: str) -> None:
        """See ``Releaser.release_by_handle``."""
        await self._releaser.release_by_handle(handle)

    # Affinities --------------------------------------------------------------------------------

    async def claim_affinity(self, cidr: Cidr, host: str) -> Claimed:
        """Own all blocks of a network that no other host owns."""
        pool = await self._pool_for(cidr)
        claimed: list[Cidr] = []
        failed: list[Cidr] = []
        for block in blocks_in(cidr, pool.block_size):
            try:
                await self._affinities.claim(host, block)
            except ClaimConflictError:
                failed.append(block)
            else:
                claimed.append(block)
        return Claimed(tuple(claimed), tuple(failed))

    async def release_affinity(self, cidr: Cidr, host: str, *, must_be_empty: bool) -> None:
        """Give up a host's blocks within a network; those of others are passed over."""
        pool = await self._pool_for(cidr)
        for block in blocks_in(cidr, pool.block_size):
            try:
                await self._affinities.release(host, block, must_be_empty=must_be_empty)
            except (ClaimConflictError, DoesNotExistError):
                continue

    async def release_block_affinity(self, block: AllocationBlock, *, must_be_empty: bool) -> None:
        """Give up one block whoever owns it."""
        if not block.host:
            return
        try:
            await self._affinities.release(block.host, block.cidr, must_be_empty=must_be_empty)
        except (ClaimConflictError, DoesNotExistError):
            return

    async def release_host_affinities(self, host: str, *, must_be_empty: bool) -> None:
        """See ``Affinities.release_host``."""
        await self._affinities.release_host(host, must_be_empty=must_be_empty)

    async def release_pool_affinities(self, pool: Cidr) -> None:
        """See ``Affinities.release_pool``."""
        await self._affinities.release_pool(pool)

    async def mark_host(self, host: str) -> None:
        """See ``Affinities.mark_host``."""
        await self._affinities.mark_host(host)

    async def remove_host(self, host: str) -> None:
        """See ``Affinities.remove_host``."""
        await self._affinities.remove_host(host)

    async def _pool_for(self, cidr: Cidr) -> Pool:
        pools = [pool for pool in await self.pools() if not pool.disabled]
        pool = pool_of(pools, Ip(cidr.version, cidr.network))
        if pool is None:
            raise IpamError(f"The requested CIDR ({cidr}) is not within any configured pools.")
        if cidr.length > pool.block_size:
            raise IpamError(f"The requested CIDR ({cidr}) is smaller than the minimum.")
        return pool

    # Asking ------------------------------------------------------------------------------------

    async def pools(self) -> tuple[Pool, ...]:
        """All pools."""
        query = Query(resource_prefix("IPPool"), prefix=True)
        return read_pools((await self._datastore.read(query)).results[0])

    async def ips_by_handle(self, handle: str) -> tuple[Ip, ...]:
        """The addresses a handle holds; DoesNotExistError if there is no such handle."""
        found = (await self._datastore.read(Query(handle_key(handle)))).one(0)
        if found is None:
            raise DoesNotExistError(handle)
        keys = [block_key(Cidr.parse(text)) for text in Handle.read(found).blocks]
        blocks = (await self._datastore.read(*(Query(key) for key in keys))).results
        return tuple(
            ip
            for kvps in blocks
            for kvp in kvps
            for ip in AllocationBlock.from_value(kvp.value).ips_by_handle(handle)
        )

    async def assignment(self, ip: Ip) -> Attribute:
        """Who holds an address; DoesNotExistError if nobody does."""
        pool = pool_of(await self.pools(), ip)
        if pool is None or pool.disabled:
            raise DoesNotExistError(str(ip), "No valid IPPool")
        key = block_key(block_of(ip, pool.block_size))
        found = (await self._datastore.read(Query(key))).one(0)
        if found is None:
            raise DoesNotExistError(key)
        holder = AllocationBlock.from_value(found.value).holder(ip)
        if holder is None:
            raise DoesNotExistError(str(ip), "IP is unassigned")
        return holder

    async def blocks(self) -> tuple[AllocationBlock, ...]:
        """All blocks of both families."""
        snapshot = await self._datastore.read(
            *(Query(block_prefix(version), prefix=True) for version in (4, 6))
        )
        return tuple(
            AllocationBlock.from_value(kvp.value) for found in snapshot.results for kvp in found
        )

    async def utilization(self, wanted: Sequence[str] = ()) -> tuple[PoolUtilization, ...]:
        """How full pools are, named by name or network; all of them, and orphans, without names."""
        pools = [
            pool
            for pool in await self.pools()
            if not wanted or pool.name in wanted or str(pool.cidr) in wanted
        ]
        blocks: dict[str, list[BlockUtilization]] = {pool.name: [] for pool in pools}
        orphans: list[BlockUtilization] = []
        for block in await self.blocks():
            home = next((pool for pool in pools if pool.cidr.overlaps(block.cidr)), None)
            use = BlockUtilization(block.cidr, block.cidr.size, len(block.unallocated))
            (blocks[home.name] if home else orphans).append(use)
        found = [PoolUtilization(pool.name, pool.cidr, tuple(blocks[pool.name])) for pool in pools]
        if not wanted:
            everything = Cidr.parse("0.0.0.0/0")
            found.append(PoolUtilization("orphaned allocation blocks", everything, tuple(orphans)))
        return tuple(found)

    # Configuration -----------------------------------------------------------------------------

    async def config(self) -> IpamConfig:
        """The cluster's settings; asking does not store the defaults."""
        found = (await self._datastore.read(Query(CONFIG_KEY))).one(0)
        return IpamConfig.from_value(found.value) if found else IpamConfig()

    async def set_config(self, config: IpamConfig) -> None:
        """Change the cluster's settings; IpamError for those that contradict each other."""
        for _ in range(RETRIES):
            found = (await self._datastore.read(Query(CONFIG_KEY))).one(0)
            current = IpamConfig.from_value(found.value) if found else IpamConfig()
            if current == config:
                return
            if not config.strict_affinity and not config.auto_allocate_blocks:
                raise IpamError(
                    "Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time"
                )
            if config.max_blocks_per_host > 0 and not config.strict_affinity:
                raise IpamError("MaxBlocksPerHost requires StrictAffinity to be enabled")
            value = config.to_value()
            try:
                await self._datastore.commit(
                    Update(KVPair(CONFIG_KEY, value, found.revision))
                    if found
                    else Create(CONFIG_KEY, value)
                )
            except LOST:
                continue
            return
        raise IpamError(MAX_RETRIES_TEXT)
