"""Devices, routes, neighbours and settings of a node; pure.

IP in IP: felix makes tunl0 and gives it its address, the routes are BIRD's.  VXLAN: felix makes
vxlan.calico and everything behind it.  Source: felix/dataplane/linux/{ipip_mgr,vxlan_mgr,
endpoint_mgr}.go.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

from agents.calico.felix.model import (
    IPIP_DEVICE,
    IPIP_OVERHEAD,
    VXLAN_DEVICE,
    VXLAN_OVERHEAD,
)
from emulator.addr import Prefix
from emulator.netstack.fib import Route, RouteType

if TYPE_CHECKING:
    from agents.calico.felix.model import Endpoint, NodeInfo, Pool, State

# RTPROT of routes for VXLAN (felix's defaultRouteProtocol for them).
VXLAN_PROTOCOL: Final = "80"
# Settings of a workload's device: it answers ARP for any gateway at once, and lets node ports be
# reached over 127.0.0.1.
WORKLOAD_SETTINGS: Final = (
    ("net.ipv4.conf.{}.route_localnet", 1),
    ("net.ipv4.neigh.{}.proxy_delay", 0),
    ("net.ipv4.conf.{}.proxy_arp", 1),
    ("net.ipv4.conf.{}.forwarding", 1),
)


class Tunnel(NamedTuple):
    """A tunnel device; ``kind`` is ipip or vxlan, ``address`` 0 if it has none yet."""

    name: str
    kind: str
    mtu: int
    address: int
    mac: bytes = b""
    vni: int = 0
    port: int = 0
    local: int = 0
    lower: str = ""


class Peer(NamedTuple):
    """A node's VTEP: a neighbour of vxlan.calico and its forwarding entry."""

    address: int
    mac: bytes
    node: int


class Network(NamedTuple):
    """What the kernel's interfaces and tables must hold.

    ``routes`` are all routes of felix's own: of workloads by device, and VXLAN's.  ``devices`` are
    the workloads' interfaces, which others make.
    """

    tunnels: tuple[Tunnel, ...]
    routes: tuple[Route, ...]
    peers: tuple[Peer, ...]
    devices: tuple[str, ...]

    def settings_of(self, device: str) -> list[tuple[str, int]]:
        """The settings of one workload's device, by dotted name."""
        return [(name.format(device), value) for name, value in WORKLOAD_SETTINGS]


def vtep_mac(node: str) -> bytes:
    """The MAC of a node's vxlan.calico: 66 and the start of the name's SHA-1."""
    return b"\x66" + hashlib.sha1(node.encode(), usedforsecurity=False).digest()[:5]


def network_of(state: State) -> Network:
    """Decide devices, routes and neighbours."""
    locals_ = state.local_endpoints()
    me = state.this_node()
    tunnels: list[Tunnel] = []
    routes = [route for endpoint in locals_ for route in _routes_of(endpoint)]
    peers: tuple[Peer, ...] = ()
    if me is not None and state.ipip_enabled:
        mtu = state.settings.ipip_mtu or state.host.nic_mtu - IPIP_OVERHEAD
        tunnels.append(Tunnel(IPIP_DEVICE, "ipip", mtu, me.ipip_address))
    if me is not None and state.vxlan_enabled:
        tunnels.append(_vxlan_tunnel(state, me))
        peers = tuple(
            Peer(node.vxlan_address, node.mac or vtep_mac(node.name), node.ip)
            for node in state.nodes
            if node.name != me.name and node.vxlan_address
        )
        routes += _vxlan_routes(state, me)
    return Network(tuple(tunnels), tuple(routes), peers, tuple(each.interface for each in locals_))


def _routes_of(endpoint: Endpoint) -> list[Route]:
    return [
        Route(Prefix(ip, 32), dev=endpoint.interface, scope="link") for ip in endpoint.addresses
    ]


def _vxlan_tunnel(state: State, me: NodeInfo) -> Tunnel:
    settings = state.settings
    return Tunnel(
        VXLAN_DEVICE,
        "vxlan",
        settings.vxlan_mtu or state.host.nic_mtu - VXLAN_OVERHEAD,
        me.vxlan_address,
        me.mac or vtep_mac(me.name),
        settings.vxlan_vni,
        settings.vxlan_port,
        me.ip,
        state.host.nic,
    )


def _vxlan_routes(state: State, me: NodeInfo) -> list[Route]:
    """Blocks of pools with VXLAN: ours into the void, others' to their nodes."""
    nodes = {node.name: node for node in state.nodes}
    routes: list[Route] = []
    for block in sorted(state.blocks, key=lambda each: each.cidr):
        pool = _pool_of(state, block.cidr)
        if pool is None or pool.vxlan == "Never":
            continue
        if block.node == me.name:
            routes.append(Route(block.cidr, type=RouteType.BLACKHOLE, protocol=VXLAN_PROTOCOL))
        elif (owner := nodes.get(block.node)) is not None:
            routes += _to_node(state, pool, me, owner, block.cidr)
        # An address borrowed from a block lives elsewhere than the block.
        for ip, holder in block.borrowed:
            if holder != me.name and (node := nodes.get(holder)) is not None:
                routes += _to_node(state, pool, me, node, Prefix(ip, 32))
    return routes


def _pool_of(state: State, cidr: Prefix) -> Pool | None:
    return next(
        (
            pool
            for pool in state.pools
            if cidr.network in pool.cidr and cidr.length >= pool.cidr.length
        ),
        None,
    )


def _to_node(state: State, pool: Pool, me: NodeInfo, node: NodeInfo, cidr: Prefix) -> list[Route]:
    if pool.vxlan == "CrossSubnet" and node.ip in me.network:
        return [
            Route(cidr, dev=state.host.nic, gateway=node.ip, protocol=VXLAN_PROTOCOL, onlink=True)
        ]
    if not node.vxlan_address:
        return []
    return [
        Route(
            cidr,
            dev=VXLAN_DEVICE,
            gateway=node.vxlan_address,
            protocol=VXLAN_PROTOCOL,
            onlink=True,
        )
    ]
