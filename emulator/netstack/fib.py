"""The routing tables of one namespace: longest prefix first, then metric, then order of arrival.

Two tables as every namespace has: ``local`` (filled by addresses, asked first) and ``main``.
Source: net/ipv4/fib_trie.c; the order of a dump is the trie's, prefixes ascending, longer ones
of the same network first.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from emulator.addr import Prefix, mask_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Routes of one table; fib_trie has no bound of its own, this keeps a runaway agent from eating the
# node.  A full Internet table would be a million, a cluster of 300 nodes is 300.
MAX_ROUTES: Final = 65536


class RouteType(enum.StrEnum):
    """RTN_* of linux/rtnetlink.h by iproute2's names."""

    UNICAST = "unicast"
    LOCAL = "local"
    BROADCAST = "broadcast"
    BLACKHOLE = "blackhole"
    UNREACHABLE = "unreachable"
    PROHIBIT = "prohibit"


DEVICELESS: Final = (RouteType.BLACKHOLE, RouteType.UNREACHABLE, RouteType.PROHIBIT)


@dataclass(frozen=True, slots=True)
class Route:
    """One route.  ``scope`` "" means the one iproute2 derives: link without a gateway, else global.

    ``linkdown`` is set in dumps only: the device has no carrier.
    """

    dst: Prefix
    dev: str = ""
    gateway: int | None = None
    src: int | None = None
    metric: int = 0
    protocol: str = "boot"
    scope: str = ""
    type: RouteType = RouteType.UNICAST
    onlink: bool = False
    mtu: int = 0
    table: str = "main"
    linkdown: bool = False

    @property
    def effective_scope(self) -> str:
        """The scope as ``ip route`` derives it when none is given."""
        if self.scope:
            return self.scope
        if self.type is RouteType.LOCAL:
            return "host"
        if self.type is RouteType.BROADCAST:
            return "link"
        if self.type is RouteType.UNICAST and self.gateway is None:
            return "link"
        return "global"


class Fib:
    """One table."""

    __slots__ = ("_by_length", "_count", "_lengths")

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, list[Route]]] = {}
        # (mask, routes by network), longest first: what a lookup walks.
        self._lengths: list[tuple[int, dict[int, list[Route]]]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Route]:
        """Iterate in the order of ``ip route``."""
        found = [
            (network, -length, routes)
            for length, table in self._by_length.items()
            for network, routes in table.items()
        ]
        found.sort(key=lambda item: item[:2])
        return iter([route for _, _, routes in found for route in routes])

    def _reindex(self) -> None:
        self._lengths = [
            (mask_of(length), self._by_length[length])
            for length in sorted(self._by_length, reverse=True)
        ]

    def at(self, dst: Prefix) -> list[Route]:
        """Return the routes of exactly this prefix, best first."""
        return list(self._by_length.get(dst.length, {}).get(dst.network, ()))

    def insert(self, route: Route, *, first: bool = False) -> None:
        """Add a route behind those of its prefix and metric, or with ``first`` before them."""
        table = self._by_length.get(route.dst.length)
        if table is None:
            table = self._by_length[route.dst.length] = {}
            self._reindex()
        routes = table.setdefault(route.dst.network, [])
        position = len(routes)
        for index, present in enumerate(routes):
            before = present.metric >= route.metric if first else present.metric > route.metric
            if before:
                position = index
                break
        routes.insert(position, route)
        self._count += 1

    def remove(self, route: Route) -> None:
        """Take out one route that is there."""
        table = self._by_length[route.dst.length]
        routes = table[route.dst.network]
        routes.remove(route)
        self._count -= 1
        if not routes:
            del table[route.dst.network]
            if not table:
                del self._by_length[route.dst.length]
                self._reindex()

    def remove_where(self, doomed: Callable[[Route], bool]) -> list[Route]:
        """Take out every route ``doomed`` says; returns them."""
        victims = [route for route in self if doomed(route)]
        for route in victims:
            self.remove(route)
        return victims

    def lookup(self, ip: int, oif: str = "") -> Route | None:
        """Return the best route to ``ip``; with ``oif`` only through that device."""
        for mask, table in self._lengths:
            routes = table.get(ip & mask)
            if routes is None:
                continue
            if not oif:
                return routes[0]
            for route in routes:
                if route.dev == oif:
                    return route
        return None
