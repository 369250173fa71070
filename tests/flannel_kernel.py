"""A kernel without a packet path, for tests of what flannel tells it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from emulator.addr import Prefix, parse_ip
from emulator.errors import UsageError
from emulator.netstack.netfilter import Netfilter
from emulator.netstack.packet import AddressType
from emulator.netstack.records import AddrInfo, FdbInfo, LinkInfo, NeighInfo, NeighState

if TYPE_CHECKING:
    from emulator.netstack.fib import Route


class RememberingKernel:
    """A kernel that only remembers what it was told; its root namespace is itself."""

    def __init__(self, ip: str, seed: int) -> None:
        self.root = self
        self._rng = random.Random(seed)
        self.netfilter = Netfilter(self, clock=lambda: 0.0, rng=self._rng)
        self._links = {"eth0": LinkInfo(2, "eth0", "underlay", bytes(6), 1500, True, True)}
        self._addrs = [AddrInfo(2, "eth0", parse_ip(ip), 16)]
        self._routes: dict[Prefix, Route] = {}
        self._neighs: dict[int, NeighInfo] = {}
        self._fdb: dict[bytes, FdbInfo] = {}

    def address_type(self, ip: int) -> AddressType:
        return AddressType.UNICAST

    def address_type_on(self, ip: int, dev: str) -> AddressType:
        return AddressType.UNICAST

    def reverse_path_ok(self, src: int, dev: str, *, loose: bool, accept_local: bool) -> bool:
        return True

    def primary_address(self, dev: str, dst: int) -> int | None:
        return None

    def invalidate_flows(self) -> None:
        pass

    def link_add(self, name: str, kind: str, *, mac: bytes | None = None, **attrs: Any) -> None:
        mac = mac or bytes((2, *self._rng.randbytes(5)))
        self._links[name] = LinkInfo(3, name, kind, mac, up=False, running=True, **attrs)

    def link_del(self, name: str) -> None:
        del self._links[name]

    def link_set(self, name: str, *, up: bool) -> None:
        pass

    def addr_add(self, dev: str, ip: int, length: int) -> None:
        self._addrs.append(AddrInfo(3, dev, ip, length))

    def addr_del(self, dev: str, ip: int, length: int) -> None:
        self._addrs.remove(AddrInfo(3, dev, ip, length))

    def route_replace(self, route: Route) -> None:
        self._routes[route.dst] = route

    def route_del(self, route: Route) -> None:
        del self._routes[route.dst]

    def neigh_replace(self, dev: str, ip: int, mac: bytes, state: NeighState) -> None:
        self._neighs[ip] = NeighInfo(dev, ip, mac, state)

    def neigh_del(self, dev: str, ip: int) -> None:
        del self._neighs[ip]

    def fdb_replace(self, dev: str, mac: bytes, dst: int) -> None:
        self._fdb[mac] = FdbInfo(mac, dev, dst)

    def fdb_del(self, dev: str, mac: bytes) -> None:
        del self._fdb[mac]

    def links(self) -> list[LinkInfo]:
        return [*self._links.values()]

    def link(self, name: str) -> LinkInfo:
        if name not in self._links:
            raise UsageError(f'Device "{name}" does not exist.')
        return self._links[name]

    def addrs(self) -> list[AddrInfo]:
        return self._addrs

    def routes(self) -> list[Route]:
        return [*self._routes.values()]

    def neighs(self) -> list[NeighInfo]:
        return [*self._neighs.values()]

    def fdb(self) -> list[FdbInfo]:
        return [*self._fdb.values()]
