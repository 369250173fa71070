"""Addresses and routes of a namespace, and how one makes the other.

Source: net/ipv4/devinet.c, fib_frontend.c (fib_add_ifaddr, fib_del_ifaddr), fib_semantics.c
(fib_check_nh).  Error texts are iproute2's around the kernel's extack messages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from emulator.addr import IP_MAX, Prefix
from emulator.errors import UsageError
from emulator.netstack.fib import (
    DEVICELESS,
    MAX_NEXTHOPS,
    MAX_ROUTES,
    NextHop,
    Route,
    RouteType,
)
from emulator.netstack.records import AddrInfo

if TYPE_CHECKING:
    from emulator.netstack.devices.base import Device
    from emulator.netstack.netns import NetNs

# Addresses of one device; Linux has no bound, nobody means more.
MAX_ADDRESSES: Final = 1024
_SCOPE_ORDER: Final = {"global": 0, "site": 200, "link": 253, "host": 254}


class Addressing:
    """The addresses of a namespace, by device name in the order they were added."""

    def __init__(self, ns: NetNs) -> None:
        self._ns = ns
        self._addrs: dict[str, list[AddrInfo]] = {}

    def of(self, dev: str) -> list[AddrInfo]:
        """The addresses of a device, primary ones first."""
        return self._addrs.get(dev, [])

    def dump(self) -> tuple[AddrInfo, ...]:
        """Every address, by device index."""
        return tuple(
            addr
            for device in self._ns.link_table.sorted()
            for addr in self._addrs.get(device.name, ())
        )

    # -- addresses -------------------------------------------------------------------------------

    def add(self, dev: str, ip: int, length: int, scope: str, broadcast: int | None) -> None:
        """``ip addr add``; UsageError with the real text."""
        device = self._ns.link_table.get(dev)
        if not 0 <= length <= 32 or scope not in _SCOPE_ORDER:
            raise UsageError(f"Error: any valid prefix is expected rather than /{length}")
        present = self._addrs.setdefault(dev, [])
        if any(each.ip == ip and each.length == length for each in present):
            raise UsageError("Error: ipv4: Address already assigned.")
        if len(present) >= MAX_ADDRESSES:
            raise UsageError("RTNETLINK answers: No buffer space available")
        prefix = Prefix.of(ip, length)
        secondary = any(
            each.length == length and each.ip in prefix and not each.secondary for each in present
        )
        info = AddrInfo(device.index, dev, ip, length, scope, broadcast, secondary)
        position = len(present)
        if not secondary:
            # inet_insert_ifa: primary before secondary, wider scopes behind narrower ones.
            position = 0
            for index, each in enumerate(present):
                if not each.secondary and _SCOPE_ORDER[scope] <= _SCOPE_ORDER[each.scope]:
                    position = index + 1
        present.insert(position, info)
        self._routes_of(device, info, add=True)
        self._ns.kernel.invalidate_flows()

    def delete(self, dev: str, ip: int, length: int) -> None:
        """``ip addr del``; secondary addresses of the same prefix go with a primary one."""
        device = self._ns.link_table.get(dev)
        present = self._addrs.get(dev, [])
        found = next((each for each in present if (each.ip, each.length) == (ip, length)), None)
        if found is None:
            raise UsageError("Error: ipv4: Address not found.")
        prefix = Prefix.of(ip, length)
        doomed = [found]
        if not found.secondary:
            doomed += [
                each
                for each in present
                if each.secondary and each.length == length and each.ip in prefix
            ]
        for each in reversed(doomed):
            self._routes_of(device, each, add=False)
            present.remove(each)
            self._forget_source(each.ip)
        if not present:
            self._ns.main.remove_where(lambda route: route.dev == dev)
            self._nexthops_change(dev, dead=True)
        self._ns.kernel.invalidate_flows()

    def _forget_source(self, ip: int) -> None:
        """fib_sync_down_addr: routes that prefer an address that is gone go too."""
        if self._ns.is_local(ip):
            return
        self._ns.main.remove_where(lambda route: route.src == ip)
        for device in self._ns.link_table.sorted():
            gone = getattr(self._ns.netfilter, "address_gone", None)
            if gone is not None:
                gone(device.name, ip)

    def _routes_of(self, device: Device, addr: AddrInfo, *, add: bool) -> None:
        """fib_add_ifaddr and fib_del_ifaddr."""
        ns = self._ns
        prefix = Prefix.of(addr.ip, addr.length)
        source = addr.ip
        if addr.secondary:
            # fib_add_ifaddr: the primary address of the prefix stands for its secondary ones.
            source = next(
                each.ip
                for each in (*self._addrs.get(device.name, ()), addr)
                if not each.secondary and each.length == addr.length and each.ip in prefix
            )
        kernel = {"dev": device.name, "src": source, "protocol": "kernel"}
        local: list[Route] = [
            Route(Prefix(addr.ip, 32), type=RouteType.LOCAL, table="local", scope="host", **kernel)  # type: ignore[arg-type]
        ]
        main: list[Route] = []
        if device.up or not add:
            brd = addr.broadcast
            broadcasts = [brd] if brd is not None and brd != IP_MAX else []
            if prefix.network and not addr.secondary and (addr.length < 32):
                if device.kind == "lo":
                    local.append(
                        Route(prefix, type=RouteType.LOCAL, table="local", scope="host", **kernel)  # type: ignore[arg-type]
                    )
                else:
                    main.append(Route(prefix, scope="link", **kernel))  # type: ignore[arg-type]
                if addr.length < 31 and prefix.broadcast not in broadcasts:
                    broadcasts.append(prefix.broadcast)
            local += [
                Route(
                    Prefix(each, 32),
                    type=RouteType.BROADCAST,
                    table="local",
                    scope="link",
                    **kernel,  # type: ignore[arg-type]
                )
                for each in broadcasts
            ]
        for fib, routes in ((ns.local, local), (ns.main, main)):
            for route in routes:
                there = route in fib.at(route.dst)
                if add and not there:
                    fib.insert(route)
                elif not add and there:
                    fib.remove(route)

    # -- what happens to devices -----------------------------------------------------------------

    def device_up(self, device: Device) -> None:
        """Routes of the addresses come back; lo gets 127.0.0.1 (inetdev_event)."""
        if device.kind == "lo" and not self._addrs.get(device.name):
            self.add(device.name, 0x7F000001, 8, "host", None)
        for addr in self._addrs.get(device.name, ()):
            self._routes_of(device, addr, add=True)
        self._nexthops_change(device.name, dead=False)

    def _nexthops_change(self, dev: str, *, dead: bool, gone: bool = False) -> None:
        """fib_sync_up, fib_sync_down_dev: ways die with their device, a route with its last way.

        A device that is unregistered takes the whole route along.
        """
        main = self._ns.main
        for route in [route for route in main if any(hop.dev == dev for hop in route.nexthops)]:
            hops = tuple(
                replace(hop, dead=dead) if hop.dev == dev else hop for hop in route.nexthops
            )
            if gone or all(hop.dead for hop in hops):
                main.remove(route)
            elif hops != route.nexthops:
                main.exchange(route, replace(route, nexthops=hops))

    def device_down(self, device: Device) -> None:
        """fib_disable_ip: every route through the device goes, local addresses stay."""
        ns = self._ns
        ns.main.remove_where(lambda route: route.dev == device.name)
        self._nexthops_change(device.name, dead=True)
        ns.local.remove_where(
            lambda route: (
                route.dev == device.name
                and (route.type is not RouteType.LOCAL or route.dst.length != 32)
            )
        )

    def forget_device(self, device: Device) -> None:
        """The device leaves the namespace."""
        for addr in list(self._addrs.get(device.name, ())):
            if addr in self._addrs.get(device.name, ()):
                self.delete(device.name, addr.ip, addr.length)
        self._addrs.pop(device.name, None)
        self._ns.main.remove_where(lambda route: route.dev == device.name)
        self._nexthops_change(device.name, dead=True, gone=True)
        self._ns.local.remove_where(lambda route: route.dev == device.name)

    def rename_device(self, old: str, new: str) -> None:
        """Addresses and routes follow a device's new name."""
        if old in self._addrs:
            self._addrs[new] = [replace(addr, dev=new) for addr in self._addrs.pop(old)]
        for fib in (self._ns.main, self._ns.local):
            for route in fib.remove_where(lambda route: route.dev == old):
                fib.insert(replace(route, dev=new))
        for route in [route for route in self._ns.main if route.nexthops]:
            hops = tuple(replace(hop, dev=new) if hop.dev == old else hop for hop in route.nexthops)
            self._ns.main.exchange(route, replace(route, nexthops=hops))

    # -- routes ----------------------------------------------------------------------------------

    def route_add(self, route: Route, *, mode: str) -> None:
        """``ip route add|replace|append|prepend|change``; UsageError with the real text."""
        ns = self._ns
        route = self._checked(route)
        same = [each for each in ns.main.at(route.dst) if each.metric == route.metric]
        if same and mode == "add":
            raise UsageError("RTNETLINK answers: File exists")
        if not same and mode == "change":
            raise UsageError("RTNETLINK answers: No such file or directory")
        if len(ns.main) >= MAX_ROUTES:
            raise UsageError("RTNETLINK answers: Cannot allocate memory")
        if same and mode in ("replace", "change"):
            # fib_table_insert replaces the first of the same prefix and metric.
            ns.main.remove(same[0])
            ns.main.insert(route, first=True)
        else:
            if mode == "append" and route in same:
                raise UsageError("RTNETLINK answers: File exists")
            ns.main.insert(route, first=mode == "prepend")
        ns.kernel.invalidate_flows()

    def _checked(self, route: Route) -> Route:
        """fib_create_info and fib_check_nh."""
        ns = self._ns
        if route.dst.network & (1 << (32 - route.dst.length)) - 1:
            raise UsageError("Error: Invalid prefix for given prefix length.")
        if route.src is not None and not ns.is_local(route.src):
            raise UsageError("Error: Invalid prefsrc address.")
        if route.type in DEVICELESS:
            return replace(route, dev="", gateway=None, nexthops=())
        if route.nexthops:
            return self._with_nexthops(route)
        if route.gateway:
            return self._with_gateway(route)
        if route.gateway == 0:
            route = replace(route, gateway=None)
        if not route.dev:
            raise UsageError("RTNETLINK answers: No such device")
        device = ns.link_table.get(route.dev)
        if not device.up:
            raise UsageError("Error: Device for nexthop is not up.")
        return route

    def _with_nexthops(self, route: Route) -> Route:
        """Check each way as the one of a route of its own; one way alone is no multipath route."""
        if len(route.nexthops) > MAX_NEXTHOPS:
            raise UsageError("RTNETLINK answers: Invalid argument")
        hops = []
        for hop in route.nexthops:
            if not 1 <= hop.weight <= 256:
                raise UsageError("Error: Invalid rtnh_hops.")
            way = replace(route, dev=hop.dev, gateway=hop.gateway, onlink=hop.onlink, nexthops=())
            way = self._checked(way)
            hops.append(NextHop(way.dev, way.gateway, hop.weight, way.onlink))
        if len(hops) == 1:
            only = hops[0]
            return replace(
                route, dev=only.dev, gateway=only.gateway, onlink=only.onlink, nexthops=()
            )
        return replace(route, dev="", gateway=None, onlink=False, nexthops=tuple(hops))

    def _with_gateway(self, route: Route) -> Route:
        ns = self._ns
        gateway = route.gateway
        assert gateway is not None
        if route.onlink:
            if not route.dev:
                raise UsageError("Error: Nexthop device required for onlink.")
            device = ns.link_table.get(route.dev)
            if not device.up:
                raise UsageError("Error: Nexthop device is not up.")
            if ns.local_type(gateway) is not None:
                raise UsageError("Error: Nexthop has invalid gateway.")
            return route
        if route.dev:
            ns.link_table.get(route.dev)
        # fib_check_nh_v4_gw asks the main table alone: an address of our own passes, as in Linux.
        way = ns.main.lookup(gateway, route.dev)
        if way is None or way.type is not RouteType.UNICAST:
            if route.dev:
                raise UsageError("Error: Nexthop has invalid gateway.")
            raise UsageError("RTNETLINK answers: Network is unreachable")
        if way.gateway is not None or way.effective_scope != "link":
            # A gateway must be on link: its own route may not have a gateway.
            raise UsageError("Error: Nexthop has invalid gateway.")
        if not ns.link_table.get(way.dev).up:
            raise UsageError("Error: Nexthop device is not up.")
        return replace(route, dev=way.dev)

    def route_del(self, route: Route) -> None:
        """``ip route del``: the first that fits what is given; UsageError if there is none."""
        for each in self._ns.main.at(route.dst):
            if (
                (not route.dev or each.dev == route.dev)
                and (route.gateway is None or _first_gateway(each) == route.gateway)
                and (not route.metric or each.metric == route.metric)
                and (route.type is RouteType.UNICAST or each.type is route.type)
                and (route.src is None or each.src == route.src)
                and (route.protocol == "boot" or each.protocol == route.protocol)
                and (not route.nexthops or _same_ways(route.nexthops, each.nexthops))
            ):
                self._ns.main.remove(each)
                self._ns.kernel.invalidate_flows()
                return
        raise UsageError("RTNETLINK answers: No such process")

    # -- choosing a source -----------------------------------------------------------------------

    def select(self, dev: Device | None, dst: int, max_scope: str = "global") -> int | None:
        """inet_select_addr: the address of ``dev`` to talk to ``dst`` with, else any device's."""
        limit = _SCOPE_ORDER[max_scope]
        first: int | None = None
        for addr in self._addrs.get(dev.name, ()) if dev is not None else ():
            if addr.secondary or _SCOPE_ORDER[addr.scope] > limit:
                continue
            if Prefix.of(addr.ip, addr.length) == Prefix.of(dst, addr.length):
                return addr.ip
            if first is None:
                first = addr.ip
        if first is not None:
            return first
        for device in self._ns.link_table.sorted():
            for addr in self._addrs.get(device.name, ()):
                if addr.scope != "link" and _SCOPE_ORDER[addr.scope] <= limit:
                    return addr.ip
        return None


def _first_gateway(route: Route) -> int | None:
    return route.nexthops[0].gateway if route.nexthops else route.gateway


def _same_ways(asked: tuple[NextHop, ...], there: tuple[NextHop, ...]) -> bool:
    """fib_nh_match: the ways named are the route's, in order; a device need not be named."""
    return len(asked) == len(there) and all(
        a.gateway == b.gateway and a.dev in ("", b.dev) for a, b in zip(asked, there, strict=True)
    )
