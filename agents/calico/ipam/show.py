"""``ipam show``: how full pools and blocks are, what is borrowed, who holds an address (pure).

Source: projectcalico/calico calicoctl/calicoctl/commands/ipam/show.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agents.calico.ipam.block import AllocationBlock
    from agents.calico.ipam.ipam import PoolUtilization
    from agents.calico.net import Cidr, Ip


class UsageRow(NamedTuple):
    """One row of ``ipam show``; ``grouping`` is "IP Pool" or "Block"."""

    grouping: str
    cidr: Cidr
    total: int
    in_use: int
    free: int


class BorrowedRow(NamedTuple):
    """One row of ``ipam show --show-borrowed``."""

    ip: Ip
    borrowing_node: str
    block: Cidr
    block_owner: str
    type: str
    allocated_to: str


class Borrowed(NamedTuple):
    """All borrowed addresses, and how many say nothing of their node."""

    rows: tuple[BorrowedRow, ...]
    unclassified: int


def usage_rows(pools: Iterable[PoolUtilization], *, blocks: bool) -> tuple[UsageRow, ...]:
    """Pools and with ``blocks`` the blocks of each below it; orphans have no pool's row."""
    rows: list[UsageRow] = []
    for pool in pools:
        used = sum(block.capacity - block.available for block in pool.blocks)
        if pool.cidr.length > 0:
            rows.append(UsageRow("IP Pool", pool.cidr, pool.cidr.size, used, pool.cidr.size - used))
        if blocks:
            rows += [
                UsageRow(
                    "Block",
                    block.cidr,
                    block.capacity,
                    block.capacity - block.available,
                    block.available,
                )
                for block in pool.blocks
            ]
    return tuple(rows)


def borrowed(blocks: Iterable[AllocationBlock]) -> Borrowed:
    """Addresses in use on another node than their block's, those of ownerless blocks too."""
    rows: list[BorrowedRow] = []
    unclassified = 0
    for block in blocks:
        for ip, attribute, _ in block.held():
            known = attribute.secondary or {}
            node = known.get("node")
            if node is None:
                unclassified += 1
                continue
            if node == block.host:
                continue
            pod = known.get("pod")
            kind = "pod" if pod is not None else known.get("type", "")
            to = f"{known.get('namespace', '')}/{pod}" if pod is not None else ""
            rows.append(BorrowedRow(ip, node, block.cidr, block.host, kind, to))
    return Borrowed(tuple(rows), unclassified)
