"""One look at the datastore before an assignment, and what follows from it (pure decisions).

Theory of operation.  Every step of an assignment reads one snapshot, decides here what to write,
and commits that with the revisions it read.  Whoever loses a race finds a refused commit, looks
again and decides anew; there is no state to mend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from agents.calico.datastore import Create, Delete, KVPair, Update
from agents.calico.ipam.block import AllocationBlock
from agents.calico.ipam.model import (
    CONFIRMED,
    Affinity,
    Handle,
    IpamConfig,
    affinity_value,
    block_key,
    handle_key,
    handle_value,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agents.calico.datastore import Write
    from agents.calico.ipam.pools import Pool, Reservations
    from agents.calico.net import Cidr, Ip

# Blocks a host may own unless configured otherwise (libcalico-go ipam.go autoAssign).
DEFAULT_MAX_BLOCKS: Final = 20
# How long a block of another host must have been claimed before it may be taken back empty, in
# seconds: less, and two hosts would take it from each other for ever (EmptyBlockMinReclaimAge).
RECLAIM_AGE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot around one host: ``affinities`` its claims in key order, ``blocks`` by network.

    ``guards`` hold as long as reading again would give the same, blocks and handle aside.
    """

    config: IpamConfig
    pools: tuple[Pool, ...]
    reserved: Reservations
    node_labels: Mapping[str, str] | None
    affinities: tuple[Affinity, ...]
    handle: Handle | None
    blocks: dict[Cidr, KVPair] = field(default_factory=dict)
    guards: tuple[Write, ...] = ()


class Candidate(NamedTuple):
    """A block to take addresses from, and what must be written together with it.

    ``kvp`` None: the block is new and the commit creates it.
    """

    block: AllocationBlock
    kvp: KVPair | None
    beside: tuple[Write, ...] = ()

    def write(self) -> Write:
        """The write of the block itself; every write moves its sequence number."""
        self.block.sequence_number += 1
        value = self.block.to_value()
        if self.kvp is None:
            return Create(block_key(self.block.cidr), value)
        return Update(self.kvp.with_value(value))


class Stale(NamedTuple):
    """A claim to a block that belongs to somebody else: remove it."""

    affinity: Affinity


class Missing(NamedTuple):
    """A claim to a block that does not exist: create it."""

    affinity: Affinity


def affinity_name(host: str) -> str:
    """What a block's ``affinity`` says of its host."""
    return f"host:{host}"


def confirm(affinity: Affinity) -> tuple[Write, ...]:
    """What makes a claim certain, nothing if it is."""
    if affinity.state == CONFIRMED:
        return ()
    return (Update(affinity.kvp.with_value(affinity_value(CONFIRMED))),)


def look_at(affinity: Affinity, kvp: KVPair | None) -> Candidate | Stale | Missing:
    """What a host's claim is worth, given the block it names."""
    if kvp is None:
        return Missing(affinity)
    block = AllocationBlock.from_value(kvp.value)
    if block.affinity != affinity_name(affinity.host):
        return Stale(affinity)
    return Candidate(block, kvp, confirm(affinity))


def create_block(affinity: Affinity, *, now_ns: int, claim_time: str) -> Candidate:
    """A new block for a pending claim, which the same commit confirms."""
    block = AllocationBlock.new(
        affinity.cidr, affinity_name(affinity.host), now_ns=now_ns, claim_time=claim_time
    )
    # Written even if it says "confirmed" already, so that whoever releases it loses.
    confirmed = Update(affinity.kvp.with_value(affinity_value(CONFIRMED)))
    return Candidate(block, None, (confirmed,))


def max_blocks(config: IpamConfig, requested: int) -> int:
    """How many blocks a host may own: the smaller of the request's and the cluster's limit."""
    limits = [limit for limit in (config.max_blocks_per_host, requested) if limit > 0]
    return min(limits, default=DEFAULT_MAX_BLOCKS)


def handle_write(handle_id: str, handle: Handle | None, cidr: Cidr, amount: int) -> Write | None:
    """The change of a handle by some addresses of a block; None if there is nothing to change."""
    if handle is None:
        if amount <= 0:
            return None
        return Create(handle_key(handle_id), handle_value({str(cidr): amount}))
    blocks = handle.changed(cidr, amount)
    if not blocks:
        return Delete(handle.kvp.key, handle.kvp.revision)
    return Update(handle.kvp.with_value(handle_value(blocks)))


class Unclaimed(NamedTuple):
    """Where a host may get another block: one to claim, or others' empty ones to take back."""

    cidr: Cidr | None
    empty: tuple[AllocationBlock, ...] = ()


def find_unclaimed(
    order: Iterable[Cidr],
    existing: Mapping[Cidr, KVPair],
    reserved: Reservations,
    host: str,
    *,
    tried: Sequence[Cidr] = (),
) -> Unclaimed:
    """Walk a host's order: the first block nobody has, or one of its own with room."""
    empty: list[AllocationBlock] = []
    for cidr in order:
        if reserved.covers(cidr) or cidr in tried:
            continue
        kvp = existing.get(cidr)
        if kvp is None:
            return Unclaimed(cidr)
        block = AllocationBlock.from_value(kvp.value)
        has_room = block.free_count(reserved) > 0
        if block.affinity == affinity_name(host) and has_room:
            return Unclaimed(cidr)
        if block.is_empty() and has_room and block.affinity:
            empty.append(block)
    return Unclaimed(None, tuple(empty))


def find_to_borrow(
    order: Iterable[Cidr], existing: Mapping[Cidr, KVPair], reserved: Reservations
) -> Candidate | None:
    """The first block with room in a host's order, whoever owns it."""
    for cidr in order:
        kvp = existing.get(cidr)
        if kvp is None or reserved.covers(cidr):
            continue
        block = AllocationBlock.from_value(kvp.value)
        if block.free_count(reserved) > 0:
            return Candidate(block, kvp)
    return None


@dataclass(slots=True)
class Assignments:
    """What an assignment got; ``ips`` may be fewer than ``requested``, ``messages`` say why."""

    requested: int
    version: int = 4
    ips: list[Ip] = field(default_factory=list)
    # The block of each address, whose mask the library reports.
    blocks: list[Cidr] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def say(self, message: str) -> None:
        """Add a message once."""
        if message not in self.messages:
            self.messages.append(message)

    def shortfall(self) -> str | None:
        """libcalico's text when there are fewer addresses than asked for, else None."""
        if len(self.ips) >= self.requested:
            return None
        text = (
            f"Assigned {len(self.ips)} out of {self.requested} requested "
            f"IPv{self.version} addresses"
        )
        return "; ".join([text, *self.messages])
