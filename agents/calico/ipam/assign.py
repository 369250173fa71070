"""Giving out addresses: automatically from a host's blocks, or one that was asked for.

Source: projectcalico/calico libcalico-go/lib/ipam/ipam.go autoAssign, AssignIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from agents.calico.datastore import MAX_TXN_OPS, Check, KVPair, Query, Unchanged
from agents.calico.errors import AlreadyExistsError, DoesNotExistError
from agents.calico.ipam.affinity import LOST, RETRIES, read_affinities
from agents.calico.ipam.block import AllocationBlock
from agents.calico.ipam.errors import (
    MAX_RETRIES_TEXT,
    BlockLimitError,
    BlockNotEmptyError,
    ClaimConflictError,
    IpamError,
)
from agents.calico.ipam.model import (
    CONFIG_KEY,
    Affinity,
    Handle,
    IpamConfig,
    affinity_key,
    affinity_prefix,
    block_key,
    block_of_key,
    block_prefix,
    handle_key,
)
from agents.calico.ipam.order import block_of, block_order
from agents.calico.ipam.pools import (
    Pool,
    Reservations,
    allowed_for,
    choose_pools,
    pool_of,
    pool_over,
    read_pools,
)
from agents.calico.ipam.view import (
    RECLAIM_AGE_S,
    Assignments,
    Candidate,
    Missing,
    Stale,
    View,
    affinity_name,
    find_to_borrow,
    find_unclaimed,
    handle_write,
    look_at,
    max_blocks,
)
from agents.calico.resources import labels_of, resource_key, resource_prefix
from emulator.apimachinery.times import parse_rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agents.calico.datastore import Datastore, Write
    from agents.calico.ipam.affinity import Affinities
    from agents.calico.net import Cidr, Ip
    from emulator.runtime.clock import Clock

# So many blocks of a host's order are looked at one by one before all blocks are read.
PEEK: Final = 4


@dataclass(frozen=True, slots=True)
class AssignRequest:
    """``count`` addresses for a host.

    ``pools`` restricts to these networks, whatever they select; ``use`` is Workload or
    Tunnel; ``namespace_labels`` None: no namespace is concerned; ``max_blocks`` 0: no limit
    of the request's own.
    """

    host: str
    count: int = 1
    handle: str | None = None
    secondary: Mapping[str, str] | None = None
    pools: tuple[Cidr, ...] = ()
    use: str = "Workload"
    namespace_labels: Mapping[str, str] | None = None
    max_blocks: int = 0
    version: int = 4


class Memory(NamedTuple):
    """A host's block as its last assignment wrote it, and what must still hold to use it again.

    It serves requests that choose pools in the same way.
    """

    selection: tuple[object, ...]
    view: View
    block: AllocationBlock
    kvp: KVPair
    guards: tuple[Write, ...]


class Assigner:
    """Assignments on one datastore."""

    def __init__(self, datastore: Datastore, affinities: Affinities, clock: Clock) -> None:
        self._datastore = datastore
        self._affinities = affinities
        self._clock = clock
        # The blocks each host was last seen to own: read at once instead of in a second step.
        self._seen: dict[tuple[str, int], tuple[Cidr, ...]] = {}
        # What the last assignment of each host left, until something else touches it.
        self._memories: dict[tuple[str, int], Memory] = {}

    async def auto_assign(self, request: AssignRequest) -> Assignments:
        """Take addresses from the host's blocks, new blocks, and unless affinity is strict others'.

        Fewer addresses than asked for are no error, see ``Assignments.shortfall``.  Raises
        NoPoolError, DoesNotExistError without a Node, BlockLimitError, IpamError.
        """
        return await _AutoAssign(self, self._affinities, request).run()

    async def assign_ip(
        self,
        host: str,
        ip: Ip,
        handle: str | None = None,
        secondary: Mapping[str, str] | None = None,
    ) -> None:
        """Take one address; AlreadyExistsError if it is held, IpamError if it is in no pool."""
        for _ in range(RETRIES):
            pools_found, config = (
                await self._datastore.read(
                    Query(resource_prefix("IPPool"), prefix=True), Query(CONFIG_KEY)
                )
            ).results
            pool = pool_of((each for each in read_pools(pools_found) if not each.disabled), ip)
            if pool is None:
                raise IpamError("The provided IP address is not in a configured pool", str(ip))
            strict = _config(config).strict_affinity
            candidate, known = await self._block_for(host, block_of(ip, pool.block_size), handle)
            if candidate is None:
                continue
            block = candidate.block
            if strict and block.affinity is None:
                raise IpamError(f"Attempt to assign from block {block.cidr} with no affinity")
            if strict and block.affinity != affinity_name(host):
                raise IpamError("Block host affinity does not match")
            if not block.assign(ip, handle, dict(secondary) if secondary is not None else None):
                raise AlreadyExistsError(str(ip), "Address already assigned in block")
            if await self.commit(candidate, 1, handle, known):
                return
        raise IpamError(MAX_RETRIES_TEXT)

    async def _block_for(
        self, host: str, cidr: Cidr, handle: str | None
    ) -> tuple[Candidate | None, Handle | None]:
        """The block to take an address from, claimed if nobody has it; None: look again."""
        snapshot = await self._datastore.read(
            Query(block_key(cidr)),
            Query(affinity_key(host, cidr)),
            *([Query(handle_key(handle))] if handle is not None else ()),
        )
        kvp, claim = snapshot.one(0), snapshot.one(1)
        held = snapshot.one(2) if handle is not None else None
        known = Handle.read(held) if held else None
        affinity = Affinity.read(claim) if claim else None
        if kvp is None and affinity is None:
            await self._affinities.claim_pending(host, cidr)
            return None, known
        if kvp is None:
            assert affinity is not None, "checked above"
            return self._affinities.new_block(affinity), known
        if affinity is not None:
            found = look_at(affinity, kvp)
            if isinstance(found, Candidate):
                return found, known
        return Candidate(AllocationBlock.from_value(kvp.value), kvp), known

    async def commit(
        self, candidate: Candidate, count: int, handle: str | None, known: Handle | None
    ) -> int:
        """Write a block from which addresses were taken, and their handle.

        Returns the revision; 0: a race was lost.
        """
        writes = [candidate.write(), *candidate.beside]
        if handle is not None:
            change = handle_write(handle, known, candidate.block.cidr, count)
            if change is not None:
                writes.append(change)
        try:
            return await self._datastore.commit(*writes)
        except LOST:
            return 0

    def remember(self, request: AssignRequest, view: View, candidate: Candidate, at: int) -> None:
        """Keep what an assignment left: the next may need no look at all."""
        if candidate.kvp is None or candidate.beside:
            # The claim was written too: the guards are out of date.
            return
        cidr = candidate.block.cidr
        earlier: list[Write] = []
        for affinity in view.affinities:
            if affinity.cidr == cidr:
                break
            kvp = view.blocks.get(affinity.cidr)
            earlier.append(Check(block_key(affinity.cidr), kvp.revision if kvp else 0))
        else:
            # A borrowed block: whether the host still needs it depends on all others.
            return
        if len(view.guards) + len(earlier) + 2 > MAX_TXN_OPS:
            # More pools and reservations than one transaction can compare.
            return
        kvp = KVPair(block_key(cidr), None, at)
        memory = Memory(_selection(request), view, candidate.block, kvp, (*view.guards, *earlier))
        self._memories[request.host, request.version] = memory

    def recall(self, request: AssignRequest) -> Memory | None:
        """Take the memory of a host's last assignment."""
        return self._memories.pop((request.host, request.version), None)

    def forget(self, cidr: Cidr) -> None:
        """Something was released into a block."""
        for key, memory in list(self._memories.items()):
            if memory.block.cidr == cidr:
                del self._memories[key]

    async def view(self, request: AssignRequest) -> View:
        """One snapshot of all that an assignment depends on, the host's blocks included."""
        seen = self._seen.get((request.host, request.version), ())
        snapshot = await self._datastore.read(
            Query(CONFIG_KEY),
            Query(resource_prefix("IPPool"), prefix=True),
            Query(resource_prefix("IPReservation"), prefix=True),
            Query(resource_key("Node", request.host)),
            Query(affinity_prefix(request.host, request.version), prefix=True),
            # No handle has an empty name.
            Query(handle_key(request.handle or "")),
            *(Query(block_key(cidr)) for cidr in seen),
        )
        config, pools, reserved, nodes, claims, _, *known = snapshot.results
        node, held = snapshot.one(3), snapshot.one(5)
        affinities = read_affinities(claims)
        blocks = _by_cidr(kvp for found in known for kvp in found)
        unread = [each.cidr for each in affinities if each.cidr not in seen]
        if unread:
            blocks |= await self.some_blocks(unread)
        self._seen[request.host, request.version] = tuple(each.cidr for each in affinities)
        return View(
            _config(config),
            read_pools(pools),
            Reservations.read(reserved),
            labels_of(node.value) if node is not None else None,
            affinities,
            Handle.read(held) if held is not None else None,
            blocks,
            (
                *(Check(kvp.key, kvp.revision) for kvp in (*pools, *reserved, *claims)),
                Unchanged(resource_prefix("IPPool"), snapshot.revision),
                Unchanged(resource_prefix("IPReservation"), snapshot.revision),
                Unchanged(affinity_prefix(request.host, request.version), snapshot.revision),
                Check(CONFIG_KEY, config[0].revision if config else 0),
                Check(resource_key("Node", request.host), nodes[0].revision if nodes else 0),
            ),
        )

    async def existing_blocks(self, version: int) -> dict[Cidr, KVPair]:
        """All blocks of one family."""
        query = Query(block_prefix(version), prefix=True)
        return _by_cidr((await self._datastore.read(query)).results[0])

    async def some_blocks(self, cidrs: Iterable[Cidr]) -> dict[Cidr, KVPair]:
        """Those of some blocks that exist."""
        snapshot = await self._datastore.read(*(Query(block_key(cidr)) for cidr in cidrs))
        return _by_cidr(kvp for found in snapshot.results for kvp in found)

    def order(self, pools: Iterable[Pool], host: str) -> Iterator[Cidr]:
        """The host's order of all blocks of some pools."""
        now_ns = self._affinities.now_ns()
        for pool in pools:
            yield from block_order(pool.cidr, pool.block_size, host, now_ns=now_ns)

    def age_s(self, claim_time: str | None) -> float:
        """Seconds since a block was claimed; for ever if it does not say."""
        claimed = parse_rfc3339(claim_time) if claim_time else None
        return float("inf") if claimed is None else self._clock.time() - claimed

    async def reclaim(self, host: str, cidr: Cidr, sequence_number: int) -> bool:
        """Take an empty block from its host; False if it is no longer as it was read."""
        try:
            await self._affinities.release(
                host, cidr, must_be_empty=True, sequence_number=sequence_number
            )
        except (IpamError, DoesNotExistError):
            return False
        return True

    async def release_unselected(self, affinity: Affinity) -> None:
        """Give up an empty block of a pool that no longer selects the host."""
        try:
            await self._affinities.release(affinity.host, affinity.cidr, must_be_empty=True)
        except (BlockNotEmptyError, ClaimConflictError, DoesNotExistError):
            return


class _AutoAssign:
    """One request on its way."""

    def __init__(self, assigner: Assigner, affinities: Affinities, request: AssignRequest) -> None:
        self._assigner = assigner
        self._affinities = affinities
        self._request = request
        self._result = Assignments(request.count, request.version)
        self._secondary = dict(request.secondary) if request.secondary is not None else None
        self._looked_for_unselected = False

    async def run(self) -> Assignments:
        if await self._once_more():
            return self._result
        lost = 0
        while len(self._result.ips) < self._request.count:
            got = len(self._result.ips)
            if not await self._step():
                break
            lost = 0 if len(self._result.ips) > got else lost + 1
            if lost > RETRIES:
                raise IpamError(MAX_RETRIES_TEXT)
        return self._result

    async def _once_more(self) -> bool:
        """Take from the block of the last assignment unless anything has changed since."""
        memory, request = self._assigner.recall(self._request), self._request
        if memory is None:
            return False
        view, block = memory.view, memory.block
        same = memory.selection == _selection(request)
        if not same or block.free_count(view.reserved) < request.count:
            return False
        ips = block.auto_assign(request.count, request.handle, self._secondary, view.reserved)
        candidate = Candidate(block, memory.kvp, memory.guards)
        revision = await self._assigner.commit(candidate, len(ips), request.handle, None)
        if not revision:
            return False
        self._got(ips, block.cidr)
        self._assigner.remember(request, view, Candidate(block, memory.kvp), revision)
        return True

    def _got(self, ips: list[Ip], cidr: Cidr) -> None:
        self._result.ips.extend(ips)
        self._result.blocks.extend([cidr] * len(ips))

    async def _step(self) -> bool:
        """Look once and do one thing; False when nothing more can be had."""
        view = await self._assigner.view(self._request)
        selecting, pools = self._choose(view)
        mine = [each for each in view.affinities if pool_over(pools, each.cidr) is not None]
        if not self._looked_for_unselected:
            self._looked_for_unselected = True
            await self._release_unselected(view, selecting)
        for affinity in mine:
            if view.reserved.covers(affinity.cidr):
                continue
            match look_at(affinity, view.blocks.get(affinity.cidr)):
                case Stale():
                    await self._affinities.drop_stale(affinity)
                    continue
                case Missing():
                    candidate = self._affinities.new_block(affinity)
                case Candidate() as candidate:
                    pass
            if candidate.block.free_count(view.reserved) > 0:
                await self._take(candidate, view)
                return True
        limit = max_blocks(view.config, self._request.max_blocks)
        if len(mine) >= limit:
            self._result.say(
                f"Need to allocate an IPAM block but could not - limit of {limit} blocks reached "
                "for this node"
            )
            raise BlockLimitError(self._result)
        if not view.config.auto_allocate_blocks:
            raise IpamError("failed to find or claim a block")
        if await self._claim(pools, view):
            return True
        if view.config.strict_affinity:
            self._result.say("No more free affine blocks and strict affinity enabled")
            return False
        return await self._borrow(pools, view)

    async def _release_unselected(self, view: View, selecting: tuple[Pool, ...]) -> None:
        """Give up empty blocks of pools that no longer select the host."""
        for affinity in view.affinities:
            pool = pool_over(view.pools, affinity.cidr)
            if pool is None or pool.disabled or pool in selecting:
                continue
            if not pool.selects_node(view.node_labels or {}):
                await self._assigner.release_unselected(affinity)

    def _choose(self, view: View) -> tuple[tuple[Pool, ...], tuple[Pool, ...]]:
        """The pools that select the host, and those of them that serve the use."""
        request = self._request
        if view.node_labels is None:
            raise DoesNotExistError(f"Node({request.host})", "<nil>")
        selecting = choose_pools(
            view.pools,
            version=request.version,
            requested=request.pools,
            host=request.host,
            node_labels=view.node_labels,
            namespace_labels=request.namespace_labels,
        )
        return selecting, allowed_for(selecting, request.use)

    async def _take(self, candidate: Candidate, view: View) -> None:
        request = self._request
        wanted = request.count - len(self._result.ips)
        ips = candidate.block.auto_assign(wanted, request.handle, self._secondary, view.reserved)
        revision = await self._assigner.commit(candidate, len(ips), request.handle, view.handle)
        if revision:
            self._got(ips, candidate.block.cidr)
            self._assigner.remember(request, view, candidate, revision)

    async def _claim(self, pools: tuple[Pool, ...], view: View) -> bool:
        """Say that the host wants another block; False if there is none to have."""
        assigner, host = self._assigner, self._request.host
        peeked: list[Cidr] = []
        for cidr in assigner.order(pools, host):
            peeked.append(cidr)
            if len(peeked) == PEEK:
                break
        found = find_unclaimed(peeked, await assigner.some_blocks(peeked), view.reserved, host)
        if found.cidr is None:
            existing = await assigner.existing_blocks(self._request.version)
            found = find_unclaimed(assigner.order(pools, host), existing, view.reserved, host)
        if found.cidr is not None:
            await self._claim_one(found.cidr, view)
            return True
        for block in found.empty:
            if assigner.age_s(block.affinity_claim_time) < RECLAIM_AGE_S:
                continue
            if await assigner.reclaim(block.host, block.cidr, block.sequence_number):
                await self._claim_one(block.cidr, view)
                return True
        return False

    async def _claim_one(self, cidr: Cidr, view: View) -> None:
        """Claim a block and take from it; whatever comes in between, the next look will see."""
        affinity = await self._affinities.claim_pending(self._request.host, cidr)
        if affinity is not None:
            candidate = self._affinities.new_block(affinity)
            if candidate.block.free_count(view.reserved) > 0:
                await self._take(candidate, view)

    async def _borrow(self, pools: tuple[Pool, ...], view: View) -> bool:
        """Take addresses of any block with room; False, with a message, if there is none."""
        existing = await self._assigner.existing_blocks(self._request.version)
        exhausted: list[str] = []
        for pool in pools:
            order = self._assigner.order([pool], self._request.host)
            candidate = find_to_borrow(order, existing, view.reserved)
            if candidate is not None:
                await self._take(candidate, view)
                return True
            exhausted.append(str(pool.cidr))
        self._result.say(f"No IPs available in pools: [{' '.join(exhausted)}]")
        return False


def _selection(request: AssignRequest) -> tuple[object, ...]:
    """What of a request decides where its addresses come from."""
    return request.pools, request.use, request.namespace_labels, request.max_blocks


def _config(found: tuple[KVPair, ...]) -> IpamConfig:
    return IpamConfig.from_value(found[0].value) if found else IpamConfig()


def _by_cidr(found: Iterable[KVPair]) -> dict[Cidr, KVPair]:
    return {cidr: kvp for kvp in found if (cidr := block_of_key(kvp.key)) is not None}
