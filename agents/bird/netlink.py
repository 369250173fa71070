"""A node's kernel as the speaker's ``KernelPort``; shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agents.bird.config import Dest
from agents.bird.kernel import (
    PROTOCOL,
    Interface,
    InterfaceAddress,
    KernelRoute,
    KernelWay,
)
from agents.bird.net import Net
from emulator.addr import Prefix
from emulator.errors import UsageError
from emulator.netstack.fib import NextHop, Route, RouteType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.netstack.records import AddrInfo, LinkInfo

_DESTS = {
    RouteType.UNICAST: Dest.UNICAST,
    RouteType.BLACKHOLE: Dest.BLACKHOLE,
    RouteType.UNREACHABLE: Dest.UNREACHABLE,
    RouteType.PROHIBIT: Dest.PROHIBIT,
}
_TYPES = {dest: type_ for type_, dest in _DESTS.items()}


class ChangeCount(Protocol):
    """A kernel, as far as it counts its changes."""

    generation: int


class RoutingNamespace(Protocol):
    """The verbs of a namespace that the speaker uses (ARCHITECTURE.md, "The kernel")."""

    @property
    def kernel(self) -> ChangeCount: ...
    def route_replace(self, route: Route) -> None: ...
    def route_del(self, route: Route) -> None: ...
    def routes(self) -> Sequence[Route]: ...
    def addrs(self) -> Sequence[AddrInfo]: ...
    def links(self) -> Sequence[LinkInfo]: ...


class NamespacePort:
    """One namespace's table main and interfaces."""

    def __init__(self, namespace: RoutingNamespace) -> None:
        self._ns = namespace

    @property
    def generation(self) -> object:
        """As ``KernelPort``: the kernel counts its changes."""
        return self._ns.kernel.generation

    def interfaces(self) -> tuple[Interface, ...]:
        """All interfaces, by index."""
        addresses: dict[str, list[InterfaceAddress]] = {}
        for addr in self._ns.addrs():
            addresses.setdefault(addr.dev, []).append(
                InterfaceAddress(addr.ip.to_bytes(4, "big"), addr.length, addr.scope)
            )
        return tuple(
            Interface(
                index=link.index,
                name=link.name,
                up=link.up,
                running=link.running,
                mtu=link.mtu,
                addresses=tuple(addresses.get(link.name, ())),
                broadcast=link.kind not in ("lo", "ipip"),
                multicast=link.kind not in ("lo", "ipip"),
                loopback=link.kind == "lo",
            )
            for link in sorted(self._ns.links(), key=lambda link: link.index)
        )

    def routes(self) -> tuple[KernelRoute, ...]:
        """Table main, one entry per route."""
        found = []
        for route in self._ns.routes():
            dest = _DESTS.get(route.type)
            if route.table != "main" or dest is None:
                continue
            ways: tuple[KernelWay, ...] = ()
            if route.nexthops:
                ways = tuple(_way(hop.gateway, hop.dev, hop.onlink) for hop in route.nexthops)
            elif dest is Dest.UNICAST:
                ways = (_way(route.gateway, route.dev, route.onlink),)
            found.append(KernelRoute(Net.of(route.dst), dest, ways, route.metric, route.protocol))
        return tuple(found)

    def replace(self, route: KernelRoute) -> None:
        """Add or replace our route."""
        self._ns.route_replace(self._route(route))

    def delete(self, route: KernelRoute) -> None:
        """Remove our route; one that went with its device is gone already."""
        try:
            self._ns.route_del(self._route(route))
        except UsageError:
            if any(have.net == route.net and have.protocol == PROTOCOL for have in self.routes()):
                raise

    def _route(self, route: KernelRoute) -> Route:
        prefix = Prefix(route.net.network, route.net.length)
        if route.dest is not Dest.UNICAST:
            return Route(prefix, type=_TYPES[route.dest], metric=route.metric, protocol=PROTOCOL)
        if len(route.ways) > 1:
            hops = tuple(
                NextHop(way.dev, _gateway(way.gateway), onlink=way.onlink) for way in route.ways
            )
            return Route(prefix, metric=route.metric, protocol=PROTOCOL, nexthops=hops)
        way = route.ways[0]
        return Route(
            prefix,
            way.dev,
            _gateway(way.gateway),
            metric=route.metric,
            protocol=PROTOCOL,
            onlink=way.onlink,
        )


def _way(gateway: int | None, dev: str, onlink: bool) -> KernelWay:
    return KernelWay(b"" if gateway is None else gateway.to_bytes(4, "big"), dev, onlink)


def _gateway(gateway: bytes) -> int | None:
    return int.from_bytes(gateway, "big") if gateway else None
