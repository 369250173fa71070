"""One network namespace: devices, addresses, routes, neighbours, netfilter, sockets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from emulator.addr import Prefix, format_ip
from emulator.errors import UsageError
from emulator.netstack.addressing import Addressing
from emulator.netstack.fib import Fib, Route, RouteType, path_hash
from emulator.netstack.icmp import IcmpLayer
from emulator.netstack.ipv4_path import IP_FORWARD, REFUSALS, Ipv4Path
from emulator.netstack.links import Links
from emulator.netstack.neigh import ArpLayer, NeighbourTable
from emulator.netstack.packet import AddressType, Counter, Drop, DropReason, Packet
from emulator.netstack.records import NeighState
from emulator.netstack.skb import Skb
from emulator.netstack.sysctl import NEIGH, Sysctl
from emulator.wire.ethernet import ETHERTYPE_IPV4

if TYPE_CHECKING:
    from emulator.netstack.devices.base import Device
    from emulator.netstack.devices.tunnel import Ipip, Vxlan
    from emulator.netstack.kernel import Kernel
    from emulator.netstack.records import AddrInfo, FdbInfo, LinkInfo, NeighInfo
    from emulator.netstack.timers import Timer

# Expired connections answer no lookup; freeing them more often than this gains nothing.
MIN_SWEEP_S = 1.0
_ADDRESS_TYPES = {
    RouteType.UNICAST: AddressType.UNICAST,
    RouteType.LOCAL: AddressType.LOCAL,
    RouteType.BROADCAST: AddressType.BROADCAST,
    RouteType.BLACKHOLE: AddressType.BLACKHOLE,
    RouteType.UNREACHABLE: AddressType.UNREACHABLE,
    RouteType.PROHIBIT: AddressType.PROHIBIT,
}


class NetNs:
    """A namespace; ``Kernel.netns_add`` makes it.

    It is what netfilter sees of the host (NamespaceView) and what sockets send through.
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self.sysctl = Sysctl(kernel)
        self.drops: dict[DropReason, Counter] = {reason: Counter() for reason in DropReason}
        self.main = Fib()
        self.local = Fib()
        self.link_table = Links(self)
        self.addressing = Addressing(self)
        self.vteps: dict[tuple[int, int], Vxlan] = {}
        self.tunnels: list[Ipip] = []
        self._netnsids: dict[str, int] = {}
        self._ident = kernel.rng.getrandbits(16)
        self._sweep: Timer | None = None
        self.neigh = NeighbourTable(self)
        self.arp = ArpLayer(self)
        self.icmp = IcmpLayer(self)
        self.ip = Ipv4Path(self)
        self.netfilter = kernel.filter_factory(self)
        self.sockets = kernel.sockets_factory(self)
        self.devices = self.link_table.by_name
        self.link_table.add("lo", "lo", None, None, {})
        self.lo = self.link_table.by_name["lo"]

    # -- rtnetlink-like verbs --------------------------------------------------------------------

    def link_add(
        self,
        name: str,
        kind: str,
        *,
        mac: bytes | None = None,
        mtu: int | None = None,
        **attrs: Any,
    ) -> LinkInfo:
        """Make a device; UsageError with the text of ``ip link add``.

        ``attrs``: veth ``peer peer_ns peer_mac``; vxlan ``vni local dev port learning srcport
        remote ttl ageing_s``; ipip ``local remote``; underlay ``ip_map`` {ip: mac}, ``vxlan_port``;
        all ``txqlen``.
        """
        return self.link_table.add(name, kind, mac, mtu, attrs)

    def link_del(self, name: str) -> None:
        """Remove a device; a veth's peer goes with it."""
        self.link_table.delete(name)

    def link_set(
        self,
        name: str,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        master: str | None = None,
        mac: bytes | None = None,
        hairpin: bool | None = None,
        netns: NetNs | str | None = None,
        new_name: str | None = None,
        txqlen: int | None = None,
    ) -> None:
        """Change a device; ``master`` "" takes it out of its bridge."""
        self.link_table.set(
            name,
            up=up,
            mtu=mtu,
            master=master,
            mac=mac,
            hairpin=hairpin,
            netns=netns,
            new_name=new_name,
            txqlen=txqlen,
        )

    def addr_add(
        self, dev: str, ip: int, length: int, scope: str = "global", broadcast: int | None = None
    ) -> None:
        """Give a device an address, and the namespace the routes that come with it."""
        self.addressing.add(dev, ip, length, scope, broadcast)

    def addr_del(self, dev: str, ip: int, length: int) -> None:
        """Take an address away."""
        self.addressing.delete(dev, ip, length)

    def route_add(self, route: Route) -> None:
        """Add a route; UsageError ``RTNETLINK answers: File exists`` if there is one."""
        self.addressing.route_add(route, mode="add")

    def route_replace(self, route: Route) -> None:
        """Add a route or replace the one of the same prefix and metric."""
        self.addressing.route_add(route, mode="replace")

    def route_change(self, route: Route, *, mode: str) -> None:
        """The rarer forms: ``append``, ``prepend``, ``change``."""
        self.addressing.route_add(route, mode=mode)

    def route_del(self, route: Route) -> None:
        """Remove the first route that fits the fields given."""
        self.addressing.route_del(route)

    def neigh_replace(
        self,
        dev: str,
        ip: int,
        mac: bytes | None,
        state: NeighState | str = NeighState.PERMANENT,
    ) -> None:
        """Set a neighbour entry."""
        self.neigh.replace(self.link_table.get(dev), ip, mac, NeighState(state))

    def neigh_del(self, dev: str, ip: int) -> None:
        """Remove a neighbour entry."""
        self.neigh.delete(self.link_table.get(dev), ip)

    def fdb_replace(self, dev: str, mac: bytes, dst: int | None = None) -> None:
        """Set a permanent forwarding entry of a vxlan device (``dst``: VTEP) or a bridge port."""
        self.link_table.fdb_replace(dev, mac, dst, exclusive=False)

    def fdb_add(self, dev: str, mac: bytes, dst: int | None = None) -> None:
        """As fdb_replace, but an entry that is there is an error."""
        self.link_table.fdb_replace(dev, mac, dst, exclusive=True)

    def fdb_del(self, dev: str, mac: bytes) -> None:
        """Remove a forwarding entry."""
        self.link_table.fdb_del(dev, mac)

    # -- dumps -----------------------------------------------------------------------------------

    def link(self, name: str) -> LinkInfo:
        """One device; UsageError if there is none of that name."""
        return self.link_table.get(name).info()

    def device(self, name: str) -> Device:
        """The device itself, for drivers; UsageError if there is none of that name."""
        return self.link_table.get(name)

    def links(self) -> tuple[LinkInfo, ...]:
        """Every device, by index."""
        return tuple(device.info() for device in self.link_table.sorted())

    def addrs(self) -> tuple[AddrInfo, ...]:
        """Every address, by device index."""
        return self.addressing.dump()

    def routes(self, table: str = "main") -> tuple[Route, ...]:
        """The routes of a table in the order of ``ip route``."""
        fib = {"main": self.main, "local": self.local}.get(table)
        if fib is None:
            raise UsageError(f'Error: argument "{table}" is wrong: table id value is invalid')
        if table != "main":
            return tuple(fib)
        dark = {name for name, device in self.devices.items() if not device.carrier}
        return tuple(_with_linkdown(route, dark) if dark else route for route in fib)

    def neighs(self) -> tuple[NeighInfo, ...]:
        """Every neighbour, by device and address."""
        return self.neigh.dump()

    def fdb(self) -> tuple[FdbInfo, ...]:
        """Every forwarding entry, by device and MAC."""
        return self.link_table.fdb_dump()

    # -- questions -------------------------------------------------------------------------------

    def forwards(self, dev: str) -> bool:
        """True if packets that arrive by ``dev`` may be forwarded."""
        return bool(
            self.sysctl.get(IP_FORWARD) or self.sysctl.get(f"net.ipv4.conf.{dev}.forwarding")
        )

    def device_sysctl(self, name: str, dev: str) -> int:
        """net.ipv4.conf.{all,DEV}.NAME: the larger of the two."""
        sysctl = self.sysctl
        if not sysctl:
            return 0
        return max(
            sysctl.get(f"net.ipv4.conf.all.{name}", 0), sysctl.get(f"net.ipv4.conf.{dev}.{name}", 0)
        )

    def neigh_sysctl(self, name: str, dev: str) -> int:
        """net.ipv4.neigh.DEV.NAME."""
        return self.sysctl.get(f"net.ipv4.neigh.{dev}.{name}", NEIGH[name])

    def is_local(self, ip: int) -> bool:
        """True for an address of this namespace, 127/8 included."""
        return self.local_type(ip) is RouteType.LOCAL

    def local_type(self, ip: int) -> RouteType | None:
        """LOCAL, BROADCAST or None by the local table."""
        route = self.local.lookup(ip)
        return None if route is None else route.type

    def route_output(self, dst: int, oif: str = "", chosen: int = 0) -> Route | None:
        """The route a packet made here to ``dst`` takes; None if there is none.

        ``chosen`` is the path_hash of its flow, for routes with several next hops.
        """
        route = self.local.lookup(dst)
        if route is not None and (not oif or route.type is RouteType.LOCAL or route.dev == oif):
            return route
        route = self.main.lookup(dst, oif, chosen)
        if route is None and oif and oif in self.devices:
            # A socket bound to a device takes anything as on link (ip_route_output_key).
            return Route(Prefix(dst, 32), dev=oif, scope="link")
        return route

    def flow_choice(self, packet: Packet) -> int:
        """The path_hash of a packet: of its addresses, with ports if the policy is 1 (layer 4)."""
        if self.sysctl.get("net.ipv4.fib_multipath_hash_policy"):
            more = packet.proto << 32 | packet.sport << 16 | packet.dport
            return path_hash(packet.src, packet.dst, more)
        return path_hash(packet.src, packet.dst)

    def source_address(self, dst: int) -> int | None:
        """The address a packet to ``dst`` would carry; None if no route lets it out."""
        route = self.route_output(dst)
        if route is None or route.type in REFUSALS:
            return None
        return self.preferred_source(route, dst)

    def route_refusal(self, dst: int) -> DropReason | None:
        """Why nothing made here gets out to ``dst``; None if a route takes it."""
        route = self.route_output(dst)
        if route is None:
            return DropReason.NO_ROUTE
        refusal = REFUSALS.get(route.type)
        return refusal[0] if refusal is not None else None

    def preferred_source(self, route: Route, dst: int) -> int | None:
        """The source a route gives to packets for ``dst``."""
        if route.type is RouteType.LOCAL:
            return dst
        if route.src is not None:
            return route.src
        nexthop = route.gateway if route.gateway is not None else dst
        return self.select_address(self.devices[route.dev], nexthop)

    def select_address(self, dev: Device, dst: int) -> int | None:
        """inet_select_addr for a device and the nexthop on it."""
        return self.addressing.select(dev, dst)

    def address_on(self, dev: Device) -> int | None:
        """The primary address of a device itself; None if it has none."""
        found = self.addressing.of(dev.name)
        return found[0].ip if found else None

    def route_mtu(self, dst: int) -> int:
        """The MTU of the route to ``dst``, in bytes; the least any link has without a route."""
        route = self.route_output(dst)
        if route is None or not route.dev:
            return 576
        if route.type is RouteType.LOCAL:
            # A super-segment's length field is 16 bits, lo's MTU is one more than fits.
            return min(self.lo.mtu, 65535)
        mtu = route.mtu or self.devices[route.dev].mtu
        return min(mtu, self.path_mtu(dst) or mtu)

    def path_mtu(self, dst: int) -> int | None:
        """What routers said about the path to ``dst``."""
        return self.icmp.path_mtu(dst)

    def address_type(self, ip: int) -> AddressType:
        """inet_addr_type: what an address is to this namespace."""
        if ip >> 28 == 0xE:
            return AddressType.MULTICAST
        if ip in (0, 0xFFFFFFFF):
            return AddressType.BROADCAST
        route = self.local.lookup(ip)
        return AddressType.UNICAST if route is None else _ADDRESS_TYPES[route.type]

    def address_type_on(self, ip: int, dev: str) -> AddressType:
        """inet_dev_addr_type: an address of another device is but a unicast one."""
        kind = self.address_type(ip)
        route = self.local.lookup(ip)
        return kind if route is None or route.dev == dev else AddressType.UNICAST

    def reverse_path_ok(self, src: int, dev: str, *, loose: bool, accept_local: bool) -> bool:
        """rpfilter_lookup_reverse."""
        route = self.local.lookup(src) or self.main.match(src)
        if route is None:
            return False
        if route.type is RouteType.LOCAL:
            if not accept_local:
                return False
        elif route.type is not RouteType.UNICAST:
            return False
        return loose or route.uses(dev)

    def primary_address(self, dev: str, dst: int) -> int | None:
        """The address MASQUERADE takes on ``dev`` for a packet to ``dst``; None if it has none."""
        device = self.devices.get(dev)
        if device is None:
            return None
        route = self.route_output(dst)
        nexthop = dst
        if route is not None and route.dev == dev and route.gateway is not None:
            nexthop = route.gateway
        return self.addressing.select(device, nexthop)

    def vtep_ports(self) -> tuple[int, ...]:
        """UDP ports the kernel receives VXLAN on."""
        return tuple({port: None for port, _ in self.vteps})

    def netnsid(self, other: NetNs) -> int:
        """The number this namespace knows another one by (RTM_NEWNSID)."""
        return self._netnsids.setdefault(other.name, len(self._netnsids))

    def next_ident(self) -> int:
        """The identification of the next packet the kernel makes."""
        self._ident = (self._ident + 1) & 0xFFFF
        return self._ident

    def sweep_later(self) -> None:
        """Connections are tracked: have netfilter free the expired ones in time."""
        if self._sweep is None:
            at = self.netfilter.get_timer()
            now = self.kernel.clock()
            at = now + MIN_SWEEP_S if at is None else max(at, now + MIN_SWEEP_S)
            self._sweep = self.kernel.timers.at(at, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep = None
        self.netfilter.handle_timer()
        if self.netfilter.get_timer() is not None:
            self.sweep_later()

    def route_text(self, route: Route, dst: int) -> str:
        """A route in one line, for traces."""
        text = f"{format_ip(dst)}: {'' if route.type is RouteType.UNICAST else route.type + ' '}"
        text += "default" if route.dst.length == 0 else str(route.dst)
        if route.gateway is not None:
            text += f" via {format_ip(route.gateway)}"
        if route.dev:
            text += f" dev {route.dev}"
        return text + (" onlink" if route.onlink else "")

    # -- what sockets use ------------------------------------------------------------------------

    def output(
        self, data: bytes, *, oif: str = "", mark: int = 0, gso_size: int = 0
    ) -> Drop | None:
        """Send a whole IPv4 packet made here; a Drop says why it did not get out."""
        kernel = self.kernel
        kernel.enter()
        try:
            if oif or mark:
                packet = Packet(data, gso_size=gso_size)
                packet.mark = mark
                return self.send(packet, oif)
            return kernel.flows.output(self, data, gso_size)
        finally:
            kernel.leave()

    def send(self, packet: Packet, oif: str = "") -> Drop | None:
        """Send a locally made packet through every layer."""
        tracer = self.kernel.tracer
        if tracer is not None and packet.trace is None:
            packet.trace = tracer.match(packet.data)
            if packet.trace is not None:
                packet.trace.step(self.name, "device", "made here", packet)
        return self.ip.output_packet(packet, oif)

    def poke(self) -> None:
        """The sockets have something due at once."""
        self.kernel.poke(self)

    def invalidate_flows(self) -> None:
        """A rule, policy or translation changed."""
        self.kernel.invalidate_flows()

    # -- ends ------------------------------------------------------------------------------------

    def end(self, packet: Packet, drop: Drop) -> None:
        """A packet ends: count it, and send the ICMP error or reset it owes."""
        self.count_drop(drop, packet)
        if drop.icmp is not None:
            self.icmp.send_error(packet, *drop.icmp, mtu=drop.mtu)
        elif drop.reset:
            self.icmp.send_reset(packet)

    def count_drop(self, drop: Drop, carrier: Packet | Skb | None) -> Drop:
        """Count a drop and note it in the packet's trace; returns it."""
        counter = self.drops[drop.reason]
        counter.packets += 1
        if carrier is None:
            return drop
        counter.bytes += len(carrier.data)
        if carrier.flow is not None:
            carrier.flow.cacheable = False
        if carrier.trace is not None:
            packet = carrier
            if isinstance(packet, Skb):
                if packet.ethertype != ETHERTYPE_IPV4:
                    return drop
                packet = packet.as_packet()
            detail = f"{drop.reason}: {drop.detail}" if drop.detail else str(drop.reason)
            carrier.trace.step(self.name, "drop", detail, packet)
        return drop


def _with_linkdown(route: Route, dark: set[str]) -> Route:
    """A route as a dump has it, with what it says of devices without a carrier."""
    if route.dev in dark:
        return replace(route, linkdown=True)
    if any(hop.dev in dark for hop in route.nexthops):
        hops = tuple(replace(hop, linkdown=hop.dev in dark) for hop in route.nexthops)
        return replace(route, nexthops=hops)
    return route
