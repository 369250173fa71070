"""The direct and static protocols: routes that follow the links and the configuration."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from agents.bird.attributes import Attrs
from agents.bird.channel import Channel
from agents.bird.config import Dest
from agents.bird.filters import Source
from agents.bird.net import Afi, Net
from agents.bird.rib import NextHop, Path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agents.bird.config import DirectConfig, StaticConfig, StaticRoute
    from agents.bird.kernel import Interface
    from agents.bird.nexthop import Resolver
    from agents.bird.rib import Table


class DirectProtocol:
    """``protocol direct``: the networks of our own addresses."""

    def __init__(
        self, config: DirectConfig, tables: Mapping[Afi, Table], resolvers: Mapping[Afi, Resolver]
    ) -> None:
        self.config = config
        self.channels = {
            afi: Channel(config.name, Source.DEVICE, tables[afi], resolvers[afi]) for afi in Afi
        }

    def matches(self, name: str) -> bool:
        """The first pattern that matches decides."""
        for pattern in self.config.interfaces:
            if fnmatchcase(name, pattern.removeprefix("-")):
                return not pattern.startswith("-")
        return False

    def update(self, interfaces: Sequence[Interface], now: float) -> None:
        """Follow the interfaces; the first address of a network decides its device."""
        wanted: dict[Afi, dict[bytes, Path]] = {afi: {} for afi in Afi}
        for interface in interfaces:
            if self.config.disabled or not interface.up or not interface.running:
                continue
            if interface.loopback or not self.matches(interface.name):
                continue
            for address in interface.addresses:
                afi = Afi.IPV4 if len(address.address) == 4 else Afi.IPV6
                if address.scope == "link" and afi is Afi.IPV6:
                    continue
                shift = afi.bits - address.length
                network = int.from_bytes(address.address, "big") >> shift << shift
                key = Net(afi, network, address.length).key
                wanted[afi].setdefault(
                    key,
                    Path(
                        self.channels[afi],
                        Attrs(preference=self.config.preference),
                        now,
                        dest=Dest.UNICAST,
                        ways=(NextHop(b"", interface.name),),
                    ),
                )
        for afi, channel in self.channels.items():
            channel.set_routes(wanted[afi])


class StaticProtocol:
    """``protocol static``: configured routes; one through a gateway needs that to be on a link."""

    def __init__(
        self, config: StaticConfig, tables: Mapping[Afi, Table], resolvers: Mapping[Afi, Resolver]
    ) -> None:
        self.config = config
        self.channels = {
            afi: Channel(config.name, Source.STATIC, tables[afi], resolvers[afi]) for afi in Afi
        }

    def update(self, interfaces: Sequence[Interface], now: float) -> None:
        """Put the routes that can work into the table."""
        wanted: dict[Afi, dict[bytes, Path]] = {afi: {} for afi in Afi}
        for route in () if self.config.disabled else self.config.routes:
            ways = self._ways(route, interfaces)
            if ways is None:
                continue
            afi = route.net.afi
            wanted[afi][route.net.key] = Path(
                self.channels[afi],
                Attrs(preference=self.config.preference),
                now,
                dest=route.dest,
                ways=ways,
            )
        for afi, channel in self.channels.items():
            channel.set_routes(wanted[afi])

    def _ways(
        self, route: StaticRoute, interfaces: Sequence[Interface]
    ) -> tuple[NextHop, ...] | None:
        """The next hops of a route, None while it is dormant."""
        if route.dest is not Dest.UNICAST:
            return ()
        if not route.via:
            up = any(i.name == route.dev and i.up for i in interfaces)
            return (NextHop(b"", route.dev),) if up else None
        for interface in interfaces:
            if not interface.up or (route.dev and interface.name != route.dev):
                continue
            for have in interface.addresses:
                bits = 8 * len(have.address)
                if len(route.via) * 8 != bits or have.length == bits:
                    continue
                shift = bits - have.length
                here = int.from_bytes(have.address, "big") >> shift
                if here == int.from_bytes(route.via, "big") >> shift:
                    return (NextHop(route.via, interface.name),)
        return None
