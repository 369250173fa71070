"""Bring a node's kernel to what felix wants: sets, tables, devices, routes, settings; reconciler.

Order: sets before the rules that look into them, and away only after; devices before routes.
What others made is left alone: routes of BIRD, rules of kube-proxy, devices of the CNI plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.calico.felix.model import INTERFACE_PREFIX, IPIP_DEVICE, VXLAN_DEVICE
from agents.calico.felix.names import SET_PREFIX
from agents.calico.felix.network import VXLAN_PROTOCOL
from agents.calico.felix.tables import sync_tables
from emulator.addr import format_ip, format_mac
from emulator.errors import UsageError
from emulator.netstack.netfilter.ipset import MAX_MAXELEM

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.calico.felix.chains import TableRules
    from agents.calico.felix.compute import Desired, WantedSet
    from agents.calico.felix.network import Network, Tunnel
    from emulator.netstack.fib import Route
    from emulator.netstack.netns import NetNs

# felix's MaxIpsetSize, which is the most a set may hold here as well.
MAX_SET: Final = MAX_MAXELEM


class Dataplane:
    """One node's kernel in felix's hands."""

    def __init__(self, ns: NetNs, *, vxlan_source_ports: tuple[int, int] = (0, 0)) -> None:
        """``vxlan_source_ports`` are those the underlay really sends from."""
        self._ns = ns
        self._source_ports = vxlan_source_ports
        self.refused: tuple[str, ...] = ()
        # Addresses of workloads we have connected, by device.
        self._addresses: dict[str, tuple[int, ...]] = {}
        # The sets, and the tables and how they were hooked in, that were put in force last.
        self._sets: dict[str, WantedSet] = {}
        self._tables: tuple[dict[str, TableRules], bool] | None = None

    def apply(self, desired: Desired, *, insert: bool = True, anew: bool = True) -> bool:
        """Make it so; False if a device is not there yet and it is worth trying again soon.

        Unless ``anew``, rules and sets that are as they were wanted last are not looked at.
        ``refused`` holds what the kernel said of neighbours and routes it did not take; UsageError
        with its text where it refuses a device, a set or a rule.
        """
        self.refused = ()
        if anew:
            self._sets, self._tables = {}, None
        self._set_up_sets(desired.sets)
        netfilter = self._ns.netfilter
        tables = (desired.tables, insert)
        if tables != self._tables:
            self._tables = None
            sync_tables(netfilter, desired.tables, insert=insert)
            self._tables = tables
        netfilter.notes = dict(desired.notes)
        self._drop_sets(desired.sets)
        self._sync_tunnels(desired.network)
        self._sync_settings(desired.network)
        return self._sync_routes(desired.network)

    # -- sets ------------------------------------------------------------------------------------

    def _set_up_sets(self, wanted: dict[str, WantedSet]) -> None:
        sets = self._ns.netfilter.sets
        have, self._sets = self._sets, {}
        for name, each in wanted.items():
            if have.get(name) != each:
                if sets.find(name) is None:
                    sets.create(name, each.kind, maxelem=MAX_SET)
                sets.replace(name, each.members)
            self._sets[name] = each

    def _drop_sets(self, wanted: dict[str, WantedSet]) -> None:
        sets = self._ns.netfilter.sets
        for each in sets:
            if each.name.startswith(SET_PREFIX) and each.name not in wanted:
                sets.destroy(each.name)

    # -- devices ---------------------------------------------------------------------------------

    def _sync_tunnels(self, network: Network) -> None:
        ns = self._ns
        wanted = {tunnel.name: tunnel for tunnel in network.tunnels}
        for tunnel in network.tunnels:
            if tunnel.kind == "vxlan" and tunnel.lower not in ns.devices:
                continue
            self._sync_tunnel(tunnel)
        if VXLAN_DEVICE in ns.devices and VXLAN_DEVICE not in wanted:
            ns.link_del(VXLAN_DEVICE)
        if IPIP_DEVICE in ns.devices and IPIP_DEVICE not in wanted:
            self._sync_address(IPIP_DEVICE, 0)
        if VXLAN_DEVICE in ns.devices:
            self._sync_peers(network)

    def _sync_tunnel(self, tunnel: Tunnel) -> None:
        ns = self._ns
        if tunnel.name in ns.devices and not self._same(tunnel):
            ns.link_del(tunnel.name)
        if tunnel.name not in ns.devices:
            if tunnel.kind == "ipip":
                ns.link_add(tunnel.name, "ipip", mtu=tunnel.mtu)
            else:
                ns.link_add(
                    tunnel.name,
                    "vxlan",
                    mac=tunnel.mac,
                    mtu=tunnel.mtu,
                    vni=tunnel.vni,
                    local=tunnel.local,
                    dev=tunnel.lower,
                    port=tunnel.port,
                    learning=False,
                    srcport=self._source_ports,
                )
        link = ns.link(tunnel.name)
        if link.mtu != tunnel.mtu:
            ns.link_set(tunnel.name, mtu=tunnel.mtu)
        self._sync_address(tunnel.name, tunnel.address)
        if not link.up:
            ns.link_set(tunnel.name, up=True)

    def _same(self, tunnel: Tunnel) -> bool:
        """True if a device is what a tunnel needs, its MTU aside."""
        link = self._ns.link(tunnel.name)
        if tunnel.kind == "ipip":
            return link.kind == "ipip"
        return (link.kind, link.vni, link.port, link.local, link.mac) == (
            *("vxlan", tunnel.vni, tunnel.port, tunnel.local),
            tunnel.mac,
        )

    def _sync_address(self, device: str, address: int) -> None:
        """Give a device one /32 and no other address; 0 for none."""
        present = [each for each in self._ns.addrs() if each.dev == device]
        for each in present:
            if (each.ip, each.length) != (address, 32):
                self._ns.addr_del(device, each.ip, each.length)
        if address and all((each.ip, each.length) != (address, 32) for each in present):
            self._ns.addr_add(device, address, 32)

    def _sync_peers(self, network: Network) -> None:
        ns = self._ns
        neighbours = {n.ip: n.mac for n in ns.neighs() if n.dev == VXLAN_DEVICE}
        entries = {e.mac: e.dst for e in ns.fdb() if e.dev == VXLAN_DEVICE}
        for peer in network.peers:
            if neighbours.pop(peer.address, None) != peer.mac:
                what = f"neighbour {format_ip(peer.address)} dev {VXLAN_DEVICE}"
                self._try(what, ns.neigh_replace, VXLAN_DEVICE, peer.address, peer.mac)
            if entries.pop(peer.mac, None) != peer.node:
                what = f"fdb {format_mac(peer.mac)} dst {format_ip(peer.node)}"
                self._try(what, ns.fdb_replace, VXLAN_DEVICE, peer.mac, peer.node)
        for address in neighbours:
            ns.neigh_del(VXLAN_DEVICE, address)
        for mac in entries:
            ns.fdb_del(VXLAN_DEVICE, mac)

    def _sync_settings(self, network: Network) -> None:
        ns = self._ns
        for device in network.devices:
            if device not in ns.devices:
                continue
            for name, value in network.settings_of(device):
                if ns.sysctl.read(name, ns.devices) != value:
                    ns.sysctl[name] = value

    # -- routes ----------------------------------------------------------------------------------

    def _sync_routes(self, network: Network) -> bool:
        ns = self._ns
        complete = True
        present = [route for route in ns.routes() if self._is_ours(route, network)]
        keys = {_key(route): route for route in present}
        for route in network.routes:
            there = keys.pop(_key(route), None)
            device = ns.devices.get(route.dev)
            if route.dev and (device is None or not device.up):
                complete = False
            elif there is None:
                self._try(f"route {route.dst} dev {route.dev}", ns.route_replace, route)
        # A route to the same network has taken the place of the old one already.
        for stale in [route for route in ns.routes() if _key(route) in keys] if keys else ():
            ns.route_del(stale)
        self._forget_flows(network)
        return complete

    def _try(self, what: str, call: Callable[..., object], *args: object) -> None:
        """Do what one node's or workload's odd resource asks for; it must not cost the others."""
        try:
            call(*args)
        except UsageError as error:
            self.refused += (f"{what}: {error}",)

    def _is_ours(self, route: Route, network: Network) -> bool:
        """Routes felix may take away; a device whose workload it does not know yet is the CNI's."""
        if route.protocol == VXLAN_PROTOCOL or route.dev == VXLAN_DEVICE:
            return True
        if not route.dev.startswith(INTERFACE_PREFIX):
            return False
        return route.dev in network.devices or route.dev in self._addresses

    def _forget_flows(self, network: Network) -> None:
        """An address that a workload has lost may be another's soon: its connections end."""
        now: dict[str, tuple[int, ...]] = {}
        for route in network.routes:
            if route.dev.startswith(INTERFACE_PREFIX):
                now[route.dev] = (*now.get(route.dev, ()), route.dst.network)
        kept = {ip for addresses in now.values() for ip in addresses}
        lost = {ip for held in self._addresses.values() for ip in held} - kept
        self._addresses = now
        if not lost:
            return
        conntrack = self._ns.netfilter.conntrack
        for connection in list(conntrack):
            ends = (connection.original.src, connection.original.dst, connection.reply.src)
            if any(ip in lost for ip in ends):
                conntrack.delete(connection)
        self._ns.invalidate_flows()


def _key(route: Route) -> tuple[object, ...]:
    return (
        *(route.dst, route.dev, route.gateway, route.type, route.protocol, route.onlink),
        route.effective_scope,
    )
