"""The routing tables of one namespace: longest prefix first, then metric, then order of arrival.

Two tables as every namespace has: ``local`` (filled by addresses, asked first) and ``main``.
Source: net/ipv4/fib_trie.c; the order of a dump is the trie's, prefixes ascending, longer ones
of the same network first.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
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
# Next hops of one route; the kernel's bound is the netlink message, nobody means more.
MAX_NEXTHOPS: Final = 256
# Names of RTPROT_* as iproute2's /etc/iproute2/rt_protos has them; others are shown as numbers.
PROTOCOLS: Final = {
    0: "unspec",
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    8: "gated",
    9: "ra",
    10: "mrt",
    11: "zebra",
    12: "bird",
    13: "dnrouted",
    14: "xorp",
    15: "ntk",
    16: "dhcp",
    18: "keepalived",
    42: "babel",
    99: "openr",
    186: "bgp",
    187: "isis",
    188: "ospf",
    189: "rip",
    192: "eigrp",
}


def protocol_name(number: int) -> str:
    """What ``ip route`` calls a protocol; numbers without a name stay numbers."""
    return PROTOCOLS.get(number, str(number))


@dataclass(frozen=True, slots=True)
class NextHop:
    """One way of a multipath route; ``weight`` is at least 1.

    ``dead`` is set while the device is down, ``linkdown`` in dumps while it has no carrier.
    """

    dev: str = ""
    gateway: int | None = None
    weight: int = 1
    onlink: bool = False
    dead: bool = False
    linkdown: bool = False


def path_hash(src: int, dst: int, more: int = 0) -> int:
    """32 bits of a flow that choose its next hop, the same on every run (fib_multipath_hash)."""
    value = (src * 0x9E3779B1 ^ dst * 0x85EBCA77 ^ more * 0xC2B2AE3D) & 0xFFFFFFFF
    value = (value ^ value >> 16) * 0x7FEB352D & 0xFFFFFFFF
    value = (value ^ value >> 15) * 0x846CA68B & 0xFFFFFFFF
    return value ^ value >> 16


@dataclass(frozen=True, slots=True)
class Route:
    """One route.  ``scope`` "" means the one iproute2 derives: link without a gateway, else global.

    ``linkdown`` is set in dumps only: the device has no carrier.  A route with ``nexthops`` has no
    device or gateway of its own; lookups answer with one of its ``paths``.
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
    nexthops: tuple[NextHop, ...] = ()
    # A route through each live next hop, and the weight up to and with it.
    paths: tuple[tuple[int, Route], ...] = field(
        default=(), init=False, compare=False, repr=False, hash=False
    )

    def __post_init__(self) -> None:
        if not self.nexthops:
            return
        paths: list[tuple[int, Route]] = []
        weight = 0
        for hop in self.nexthops:
            if not hop.dead:
                weight += hop.weight
                way = replace(
                    self, dev=hop.dev, gateway=hop.gateway, onlink=hop.onlink, nexthops=()
                )
                paths.append((weight, way))
        object.__setattr__(self, "paths", tuple(paths))

    def path(self, chosen: int) -> Route:
        """The way of a flow with this path_hash; a route without next hops is its own."""
        paths = self.paths
        if not paths:
            return self
        slot = chosen * paths[-1][0] >> 32
        return next(way for bound, way in paths if slot < bound)

    def uses(self, dev: str) -> bool:
        """True if packets of the route leave by a device (fib_info_nh_uses_dev)."""
        return self.dev == dev or any(hop.dev == dev for hop in self.nexthops)

    @property
    def effective_scope(self) -> str:
        """The scope as ``ip route`` derives it when none is given."""
        if self.scope:
            return self.scope
        if self.type is RouteType.LOCAL:
            return "host"
        if self.type is RouteType.BROADCAST:
            return "link"
        if self.type is RouteType.UNICAST and self.gateway is None and not self.nexthops:
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

    def exchange(self, old: Route, new: Route) -> None:
        """Put a route of the same prefix and metric in the place of one that is there."""
        routes = self._by_length[old.dst.length][old.dst.network]
        routes[routes.index(old)] = new

    def remove_where(self, doomed: Callable[[Route], bool]) -> list[Route]:
        """Take out every route ``doomed`` says; returns them."""
        victims = [route for route in self if doomed(route)]
        for route in victims:
            self.remove(route)
        return victims

    def match(self, ip: int) -> Route | None:
        """Return the best route to ``ip`` as it is in the table, with all its next hops."""
        for mask, table in self._lengths:
            routes = table.get(ip & mask)
            if routes is not None:
                return routes[0]
        return None

    def lookup(self, ip: int, oif: str = "", chosen: int = 0) -> Route | None:
        """Return the best way to ``ip``; with ``oif`` only through that device.

        Of a multipath route it is the way of the flow whose path_hash is ``chosen``.
        """
        if not oif:
            route = self.match(ip)
            return route.path(chosen) if route is not None and route.nexthops else route
        for mask, table in self._lengths:
            for route in table.get(ip & mask, ()):
                if route.nexthops:
                    for _, way in route.paths:
                        if way.dev == oif:
                            return way
                elif route.dev == oif:
                    return route
        return None
