"""Claims of hosts to blocks: made, confirmed, released.

A claim is absent, pending, confirmed or pendingDeletion; only a confirmed one owns its block.
Creating a block and confirming its claim is one commit, and so is removing both.
Source: projectcalico/calico libcalico-go/lib/ipam/ipam_block_reader_writer.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.calico.datastore import Create, Delete, KVPair, Query, Update
from agents.calico.errors import (
    AlreadyExistsError,
    DoesNotExistError,
    UpdateConflictError,
)
from agents.calico.ipam.block import AllocationBlock
from agents.calico.ipam.errors import (
    MAX_RETRIES_TEXT,
    BlockNotEmptyError,
    ClaimConflictError,
    IpamError,
)
from agents.calico.ipam.model import (
    CONFIRMED,
    HOST_PREFIX,
    PENDING,
    PENDING_DELETION,
    Affinity,
    affinity_key,
    affinity_prefix,
    affinity_value,
    block_key,
    host_key,
)
from agents.calico.ipam.view import Candidate, Missing, Stale, affinity_name, create_block, look_at

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agents.calico.datastore import Datastore, Write
    from agents.calico.net import Cidr
    from emulator.runtime.clock import Clock

# Lost races before a request gives up, as libcalico-go's datastoreRetries.
RETRIES: Final = 100
# A commit that lost: look again.
LOST: Final = (AlreadyExistsError, UpdateConflictError, DoesNotExistError)


class Affinities:
    """The verbs on one datastore; all raise EtcdError when it cannot be reached."""

    def __init__(self, datastore: Datastore, clock: Clock) -> None:
        self._datastore = datastore
        self._clock = clock

    def now_ns(self) -> int:
        """Unix time in nanoseconds."""
        return int(self._clock.time() * 1e9)

    def new_block(self, affinity: Affinity) -> Candidate:
        """A block for a claim, created by the commit that takes from it."""
        return create_block(affinity, now_ns=self.now_ns(), claim_time=self._clock.rfc3339())

    async def of_host(self, host: str, version: int) -> tuple[Affinity, ...]:
        """A host's claims in key order."""
        prefix = affinity_prefix(host, version)
        found = (await self._datastore.read(Query(prefix, prefix=True))).results[0]
        return read_affinities(found)

    async def claim_pending(self, host: str, cidr: Cidr) -> Affinity | None:
        """Say that a host wants a block; None if it has a claim already, which stays as it is."""
        key, value = affinity_key(host, cidr), affinity_value(PENDING)
        try:
            revision = await self._datastore.commit(Create(key, value))
        except AlreadyExistsError:
            return None
        return Affinity(host, cidr, PENDING, KVPair(key, value, revision))

    async def drop_stale(self, affinity: Affinity) -> None:
        """Remove a claim that is worth nothing; somebody else may have."""
        try:
            await self._datastore.commit(Delete(affinity.kvp.key, affinity.kvp.revision))
        except (UpdateConflictError, DoesNotExistError):
            return

    async def claim(self, host: str, cidr: Cidr) -> None:
        """Own a block; ClaimConflictError if another host does."""
        for _ in range(RETRIES):
            affinity, kvp = await self._read(host, cidr)
            if affinity is None:
                if kvp is not None and _owner(kvp.value) != affinity_name(host):
                    raise ClaimConflictError(cidr)
                await self.claim_pending(host, cidr)
                continue
            match look_at(affinity, kvp):
                case Stale():
                    await self.drop_stale(affinity)
                    raise ClaimConflictError(cidr)
                case Missing():
                    candidate = self.new_block(affinity)
                    writes: list[Write] = [*candidate.beside]
                    # Nothing is taken from it yet: its number is that of its creation.
                    writes.append(Create(block_key(cidr), candidate.block.to_value()))
                case Candidate() as candidate:
                    if affinity.state == CONFIRMED:
                        return
                    writes = [*candidate.beside, candidate.write()]
            try:
                await self._datastore.commit(*writes)
            except LOST:
                continue
            return
        raise IpamError(MAX_RETRIES_TEXT)

    async def release(
        self,
        host: str,
        cidr: Cidr,
        *,
        must_be_empty: bool,
        sequence_number: int | None = None,
    ) -> None:
        """Give a block up: deleted if it is empty, else left without an owner.

        Raises DoesNotExistError without claim or block, ClaimConflictError if it is another
        host's (the stale claim is removed), BlockNotEmptyError, IpamError if the block is no
        longer at ``sequence_number``.
        """
        for _ in range(RETRIES):
            try:
                if await self._release_once(host, cidr, must_be_empty, sequence_number):
                    return
            except (UpdateConflictError, AlreadyExistsError):
                continue
        raise IpamError(MAX_RETRIES_TEXT)

    async def _release_once(
        self, host: str, cidr: Cidr, must_be_empty: bool, sequence_number: int | None
    ) -> bool:
        affinity, kvp = await self._read(host, cidr)
        if affinity is None:
            raise DoesNotExistError(f"BlockAffinityKey(cidr={cidr}, host={host})")
        if kvp is None:
            if affinity.state != PENDING_DELETION:
                raise DoesNotExistError(f"BlockKey(cidr={cidr})")
            await self.drop_stale(affinity)
            return True
        block = AllocationBlock.from_value(kvp.value)
        if block.affinity not in (None, affinity_name(host)):
            await self.drop_stale(affinity)
            raise ClaimConflictError(cidr)
        if sequence_number is not None and sequence_number != block.sequence_number:
            await self._keep(affinity, block)
            raise IpamError("IPAM block updated since we last read it")
        if must_be_empty and not block.is_empty():
            await self._keep(affinity, block)
            raise BlockNotEmptyError(cidr)
        marked = affinity.kvp.with_value(affinity_value(PENDING_DELETION))
        revision = await self._datastore.commit(Update(marked))
        if block.is_empty():
            removal: Write = Delete(kvp.key, kvp.revision)
        else:
            block.affinity = None
            block.affinity_claim_time = None
            block.sequence_number += 1
            removal = Update(kvp.with_value(block.to_value()))
        try:
            await self._datastore.commit(removal, Delete(affinity.kvp.key, revision))
        except DoesNotExistError:
            return False
        return True

    async def _keep(self, affinity: Affinity, block: AllocationBlock) -> None:
        """Undo a mark of deletion: an address came while the block was given up."""
        if affinity.state == PENDING_DELETION and block.affinity is not None:
            confirmed = affinity.kvp.with_value(affinity_value(CONFIRMED))
            await self._datastore.commit(Update(confirmed))

    async def release_host(self, host: str, *, must_be_empty: bool) -> None:
        """Give up all blocks of a host; BlockNotEmptyError of the last kept, after all others."""
        kept: BlockNotEmptyError | None = None
        for version in (4, 6):
            for affinity in await self.of_host(host, version):
                try:
                    await self.release(host, affinity.cidr, must_be_empty=must_be_empty)
                except BlockNotEmptyError as error:
                    kept = error
                except ClaimConflictError:
                    continue
                except DoesNotExistError:
                    await self._drop_orphan(affinity)
        if kept is not None:
            raise kept

    async def _drop_orphan(self, affinity: Affinity) -> None:
        """Remove a claim whose block does not exist."""
        now, kvp = await self._read(affinity.host, affinity.cidr)
        if now is not None and kvp is None:
            await self.drop_stale(now)

    async def release_pool(self, pool: Cidr) -> None:
        """Give up all blocks within a pool, of all hosts."""
        for _ in range(RETRIES):
            found = (await self._datastore.read(Query(HOST_PREFIX, prefix=True))).results[0]
            claims = [each for each in read_affinities(found) if pool.covers(each.cidr)]
            conflict = False
            for claim in claims:
                try:
                    await self.release(claim.host, claim.cidr, must_be_empty=False)
                except ClaimConflictError:
                    conflict = True
                except DoesNotExistError:
                    await self._drop_orphan(claim)
            if not conflict:
                return
        raise IpamError(MAX_RETRIES_TEXT)

    async def remove_host(self, host: str) -> None:
        """Give up all blocks of a host and forget it; its addresses stay assigned."""
        await self.release_host(host, must_be_empty=False)
        try:
            await self._datastore.commit(Delete(host_key(host)))
        except DoesNotExistError:
            return

    async def mark_host(self, host: str) -> None:
        """Note that a host has IPAM data."""
        try:
            await self._datastore.commit(Create(host_key(host), {}))
        except AlreadyExistsError:
            return

    async def _read(self, host: str, cidr: Cidr) -> tuple[Affinity | None, KVPair | None]:
        snapshot = await self._datastore.read(
            Query(affinity_key(host, cidr)), Query(block_key(cidr))
        )
        found = snapshot.one(0)
        return (Affinity.read(found) if found else None), snapshot.one(1)


def read_affinities(found: Iterable[KVPair]) -> tuple[Affinity, ...]:
    """The claims among stored pairs."""
    return tuple(claim for kvp in found if (claim := Affinity.read(kvp)) is not None)


def _owner(value: object) -> str | None:
    return AllocationBlock.from_value(value).affinity
