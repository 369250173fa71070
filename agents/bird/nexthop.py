"""Recursive next hops: which way leads to a NEXT_HOP, and who must know when that changes.

Each distinct NEXT_HOP has one entry that all its routes share, as BIRD's hostentry does
(nest/rt-table.c, rt_update_hostentry).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from agents.bird.config import Dest
from agents.bird.rib import METRIC_UNKNOWN, NextHop, Table

if TYPE_CHECKING:
    from collections.abc import Set


class HostEntry:
    """Where a next hop leads now."""

    __slots__ = ("__weakref__", "address", "dest", "metric", "ways")

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.dest = Dest.UNREACHABLE
        self.ways: tuple[NextHop, ...] = ()
        self.metric = METRIC_UNKNOWN


class Resolver:
    """The next hops of one table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        # An entry lives as long as a route that was received with it, let in or not.
        self._entries: WeakValueDictionary[bytes, HostEntry] = WeakValueDictionary()
        # Addresses of our own interfaces: no valid next hops.
        self.local: Set[bytes] = frozenset()

    def entry(self, address: bytes) -> HostEntry:
        """The shared entry of a next hop."""
        found = self._entries.get(address)
        if found is None:
            found = self._entries[address] = HostEntry(address)
            self._resolve(found)
        return found

    def refresh(self) -> None:
        """Look again after the routes below changed; tells the table what moved."""
        self._table.igp_changed = False
        moved = [entry for entry in list(self._entries.values()) if self._resolve(entry)]
        if moved:
            self._table.reconsider(moved)

    def _resolve(self, entry: HostEntry) -> bool:
        before = (entry.dest, entry.ways, entry.metric)
        route = self._table.lookup_igp(entry.address)
        entry.dest, entry.ways, entry.metric = Dest.UNREACHABLE, (), METRIC_UNKNOWN
        if route is not None and entry.address not in self.local:
            entry.dest = route.dest
            # BIRD's rt_get_igp_metric: on the link 0; kernel and static routes say nothing.
            via = any(way.gateway for way in route.ways)
            entry.metric = METRIC_UNKNOWN if via else 0
            entry.ways = tuple(NextHop(way.gateway or entry.address, way.dev) for way in route.ways)
        return (entry.dest, entry.ways, entry.metric) != before
