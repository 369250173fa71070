"""Taking addresses back: by address with options, or all of a handle.

Source: projectcalico/calico libcalico-go/lib/ipam/ipam.go ReleaseIPs, ReleaseByHandle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agents.calico.datastore import MAX_TXN_OPS, Delete, Query, Update
from agents.calico.errors import DatastoreError, DoesNotExistError, UpdateConflictError
from agents.calico.ipam.affinity import LOST, RETRIES
from agents.calico.ipam.block import AllocationBlock, ReleaseOptions
from agents.calico.ipam.errors import (
    MAX_RETRIES_TEXT,
    BlockNotEmptyError,
    ClaimConflictError,
    IpamError,
)
from agents.calico.ipam.model import (
    Handle,
    block_key,
    block_of_key,
    block_prefix,
    handle_key,
)
from agents.calico.ipam.order import block_of
from agents.calico.ipam.pools import pool_of, pool_over, read_pools
from agents.calico.ipam.view import handle_write
from agents.calico.net import Cidr
from agents.calico.resources import labels_of, resource_key, resource_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agents.calico.datastore import Datastore, KVPair, Write
    from agents.calico.ipam.affinity import Affinities
    from agents.calico.ipam.pools import Pool
    from agents.calico.net import Ip

# Handles that are lowered in one transaction with their block: what etcd allows, less the block.
HANDLES_AT_ONCE: Final = MAX_TXN_OPS - 1


@dataclass(frozen=True, slots=True)
class ReleaseOutcome:
    """``unallocated`` were free already; ``released`` went without an error, those included.

    ``failure`` is the first error: the addresses of its block are as they were.
    """

    unallocated: tuple[Ip, ...]
    released: tuple[ReleaseOptions, ...]
    failure: DatastoreError | None = None


class Releaser:
    """Releases on one datastore."""

    def __init__(
        self, datastore: Datastore, affinities: Affinities, on_release: Callable[[Cidr], None]
    ) -> None:
        """``on_release`` hears of every block into which something was released."""
        self._datastore = datastore
        self._affinities = affinities
        self._on_release = on_release

    async def release_ips(self, options: Sequence[ReleaseOptions]) -> ReleaseOutcome:
        """Free addresses, block by block: one block's refusal does not keep the others."""
        query = Query(resource_prefix("IPPool"), prefix=True)
        pools = read_pools((await self._datastore.read(query)).results[0])
        unallocated: list[Ip] = []
        released: list[ReleaseOptions] = []
        failure: DatastoreError | None = None
        by_block: dict[Cidr, list[ReleaseOptions]] = {}
        outside: list[ReleaseOptions] = []
        for each in options:
            pool = pool_of(pools, each.address)
            if pool is None:
                outside.append(each)
            else:
                by_block.setdefault(block_of(each.address, pool.block_size), []).append(each)
        if outside:
            unallocated += await self._find_blocks(outside, by_block)
        for cidr, group in by_block.items():
            try:
                unallocated += await self._release_from(cidr, group, pools)
            except DatastoreError as error:
                failure = failure or error
            else:
                released += group
        return ReleaseOutcome(tuple(unallocated), tuple(released), failure)

    async def _find_blocks(
        self, outside: Sequence[ReleaseOptions], by_block: dict[Cidr, list[ReleaseOptions]]
    ) -> list[Ip]:
        """Addresses of pools that are gone: look through all blocks; return those of none."""
        found = await self._datastore.read(
            *(Query(block_prefix(version), prefix=True) for version in (4, 6))
        )
        blocks = [block_of_key(kvp.key) for kvps in found.results for kvp in kvps]
        nowhere: list[Ip] = []
        for each in outside:
            cidr = next((one for one in blocks if one and one.holds(each.address)), None)
            if cidr is None:
                nowhere.append(each.address)
            else:
                by_block.setdefault(cidr, []).append(each)
        return nowhere

    async def _release_from(
        self, cidr: Cidr, group: Sequence[ReleaseOptions], pools: Sequence[Pool]
    ) -> tuple[Ip, ...]:
        unallocated: tuple[Ip, ...] = ()

        def release(block: AllocationBlock) -> dict[str, int]:
            nonlocal unallocated
            unallocated, by_handle = block.release(group)
            return (
                by_handle if len(unallocated) < len({each.address for each in group}) else {"": 0}
            )

        if not await self._change(cidr, release, pools):
            return tuple(dict.fromkeys(each.address for each in group))
        return unallocated

    async def release_by_handle(self, handle: str) -> None:
        """Free all addresses of a handle; DoesNotExistError if there is no such handle."""
        handle = handle.split("\r")[0]
        snapshot = await self._datastore.read(
            Query(handle_key(handle)), Query(resource_prefix("IPPool"), prefix=True)
        )
        found = snapshot.one(0)
        if found is None:
            raise DoesNotExistError(handle)
        pools = read_pools(snapshot.results[1])
        known = Handle.read(found)
        freed: dict[str, int] = {}
        for text in known.blocks:

            def release(block: AllocationBlock, text: str = text) -> dict[str, int]:
                freed[text] = block.release_by_handle(handle)
                return {handle: freed[text]}

            await self._change(Cidr.parse(text), release, pools, known)
        if freed != known.blocks:
            await self._drop_overcount(handle)

    async def _drop_overcount(self, handle: str) -> None:
        """Remove what a handle counts beyond the addresses it had: nothing holds it any more."""
        for _ in range(RETRIES):
            found = (await self._datastore.read(Query(handle_key(handle)))).one(0)
            if found is None:
                return
            keys = [block_key(Cidr.parse(text)) for text in Handle.read(found).blocks]
            blocks = await self._datastore.read(*(Query(key) for key in keys))
            if any(
                AllocationBlock.from_value(kvp.value).ips_by_handle(handle)
                for kvps in blocks.results
                for kvp in kvps
            ):
                return
            try:
                await self._datastore.commit(Delete(found.key, found.revision))
            except LOST:
                continue
            return

    async def _change(
        self,
        cidr: Cidr,
        release: Callable[[AllocationBlock], dict[str, int]],
        pools: Sequence[Pool],
        known: Handle | None = None,
    ) -> bool:
        """Apply ``release`` to a block and lower the handles it names; False without a block.

        ``release`` returns how many addresses each handle lost; ``known`` is a handle as it was
        just read.
        """
        for _ in range(RETRIES):
            kvp = (await self._datastore.read(Query(block_key(cidr)))).one(0)
            if kvp is None:
                return False
            block = AllocationBlock.from_value(kvp.value)
            before = len(block.unallocated)
            freed = release(block)
            if len(block.unallocated) == before:
                return True
            together = dict(list(freed.items())[:HANDLES_AT_ONCE])
            try:
                await self._datastore.commit(
                    _block_write(kvp, block), *await self._handle_writes(together, cidr, known)
                )
            except LOST:
                known = None
                continue
            self._on_release(cidr)
            for handle, count in list(freed.items())[HANDLES_AT_ONCE:]:
                await self._lower(handle, cidr, count)
            await self._ensure_selected(block, pools)
            return True
        raise IpamError(MAX_RETRIES_TEXT)

    async def _lower(self, handle: str, cidr: Cidr, count: int) -> None:
        """Lower a handle that found no room beside its block."""
        for _ in range(RETRIES):
            writes = await self._handle_writes({handle: count}, cidr, None)
            try:
                if writes:
                    await self._datastore.commit(*writes)
            except LOST:
                continue
            return
        raise IpamError(MAX_RETRIES_TEXT)

    async def _handle_writes(
        self, freed: dict[str, int], cidr: Cidr, known: Handle | None
    ) -> list[Write]:
        handles = [handle for handle, count in freed.items() if handle and count]
        unread = [each for each in handles if known is None or each != known.handle_id]
        found: dict[str, Handle | None] = {known.handle_id: known} if known is not None else {}
        if unread:
            snapshot = await self._datastore.read(*(Query(handle_key(each)) for each in unread))
            for index, handle in enumerate(unread):
                kvp = snapshot.one(index)
                found[handle] = Handle.read(kvp) if kvp else None
        writes: list[Write] = []
        for handle in handles:
            change = handle_write(handle, found[handle], cidr, -freed[handle])
            if change is not None:
                writes.append(change)
        return writes

    async def _ensure_selected(self, block: AllocationBlock, pools: Sequence[Pool]) -> None:
        """Give an empty block up if its pool no longer selects the node it belongs to."""
        pool = pool_over(pools, block.cidr)
        if not block.host or not block.is_empty() or pool is None:
            return
        if pool.node_selector == "all()" or pool.disabled:
            return
        node = (await self._datastore.read(Query(resource_key("Node", block.host)))).one(0)
        if node is None or pool.selects_node(labels_of(node.value)):
            return
        try:
            await self._affinities.release(block.host, block.cidr, must_be_empty=True)
        except (BlockNotEmptyError, ClaimConflictError, DoesNotExistError, UpdateConflictError):
            return


def _block_write(kvp: KVPair, block: AllocationBlock) -> Write:
    """A block without an owner goes with its last address."""
    if block.affinity is None and block.is_empty():
        return Delete(kvp.key, kvp.revision)
    block.sequence_number += 1
    return Update(kvp.with_value(block.to_value()))
