"""What a backend wants in the kernel, and the actions that get it there; a pure reconciler.

vxlan (flannel, pkg/backend/vxlan): device flannel.VNI with address SUBNET.0/32; for each other node
a permanent neighbour SUBNET.0, an FDB entry of its VtepMAC and an onlink route; with DirectRouting
a plain route to nodes on the same segment.  host-gw: only plain routes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from agents.flannel.config import SUPPORTED_BACKENDS, VXLAN_OVERHEAD, BackendConfig
from agents.flannel.lease import parse_vxlan_data
from emulator.addr import Prefix, format_ip
from emulator.errors import UsageError, WireError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agents.flannel.lease import Lease


_EVERYTHING: Final = Prefix(0, 0)


class ExternalInterface(NamedTuple):
    """The node's NIC: its address and on-link prefix, MTU in bytes."""

    name: str
    ip: int
    link: Prefix
    mtu: int


class VxlanLink(NamedTuple):
    """A vxlan device, all that flannel compares to tell if an existing one will do."""

    name: str
    vni: int
    port: int
    local: int
    dev: str
    learning: bool
    mtu: int


class RouteVia(NamedTuple):
    """A route of the main table."""

    via: int
    dev: str
    onlink: bool


@dataclass(frozen=True, slots=True)
class NetworkState:
    """The part of a kernel's state that is flannel's; desired and observed have this one form.

    ``neighs`` maps neighbour address to MAC (permanent ones of the vxlan device), ``fdb`` MAC to
    VTEP address, ``routes`` destination to route.
    """

    link: VxlanLink | None
    addresses: tuple[Prefix, ...]
    neighs: Mapping[int, bytes]
    fdb: Mapping[bytes, int]
    routes: Mapping[Prefix, RouteVia]


class LinkDel(NamedTuple):
    name: str


class LinkAdd(NamedTuple):
    link: VxlanLink


class AddrAdd(NamedTuple):
    dev: str
    address: Prefix


class AddrDel(NamedTuple):
    dev: str
    address: Prefix


class NeighReplace(NamedTuple):
    dev: str
    ip: int
    mac: bytes


class NeighDel(NamedTuple):
    dev: str
    ip: int


class FdbReplace(NamedTuple):
    dev: str
    mac: bytes
    dst: int


class FdbDel(NamedTuple):
    dev: str
    mac: bytes


class RouteReplace(NamedTuple):
    dst: Prefix
    route: RouteVia


class RouteDel(NamedTuple):
    dst: Prefix
    route: RouteVia


Action = (
    LinkDel | LinkAdd | AddrAdd | AddrDel | NeighReplace | NeighDel | FdbReplace | FdbDel
    | RouteReplace | RouteDel
)  # fmt: skip


class Plan(NamedTuple):
    """A desired state and the log lines about leases that were left out of it."""

    state: NetworkState
    ignored: tuple[str, ...]


def backend_mtu(backend: BackendConfig, iface: ExternalInterface) -> int:
    """MTU of the pods' network in bytes; UsageError for a backend that does not exist here."""
    if backend.type == "vxlan":
        return (backend.mtu or iface.mtu) - VXLAN_OVERHEAD
    if backend.type == "host-gw":
        return iface.mtu
    raise UsageError(
        f"unsupported backend {backend.type!r}: this flannel has {', '.join(SUPPORTED_BACKENDS)};"
        " set Backend.Type in the network config"
    )


def desired_link(backend: BackendConfig, iface: ExternalInterface) -> VxlanLink | None:
    """The vxlan device a node needs before it has a lease (its MAC is part of the lease)."""
    mtu = backend_mtu(backend, iface)
    if backend.type != "vxlan":
        return None
    return VxlanLink(
        backend.device, backend.vni, backend.vxlan_port, iface.ip, iface.name, backend.learning, mtu
    )


def desired_state(
    backend: BackendConfig,
    iface: ExternalInterface,
    own: Prefix,
    others: Iterable[Lease],
    network: Prefix = _EVERYTHING,
) -> Plan:
    """What the kernel should hold with these other nodes; ``own`` is this node's subnet.

    A lease of addresses outside ``network`` would take routes away that are none of flannel's.
    """
    inside: list[Lease] = []
    ignored: list[str] = []
    for lease in others:
        if lease.subnet.length > network.length and lease.subnet.network in network:
            inside.append(lease)
        else:
            ignored.append(f"ignoring subnet {lease.subnet}: it is no part of {network}")
    if backend.type == "vxlan":
        state, more = _vxlan(backend, iface, own, inside)
    else:
        state, more = _host_gw(iface, inside)
    return Plan(state, (*ignored, *more))


def _vxlan(
    backend: BackendConfig, iface: ExternalInterface, own: Prefix, others: Iterable[Lease]
) -> Plan:
    neighs: dict[int, bytes] = {}
    fdb: dict[bytes, int] = {}
    routes: dict[Prefix, RouteVia] = {}
    ignored: list[str] = []
    for lease in others:
        attrs, subnet = lease.attrs, lease.subnet
        if attrs.backend_type != "vxlan":
            ignored.append(
                f"ignoring non-vxlan v4Subnet({subnet}) v6Subnet({lease.ipv6 or '::/0'}):"
                f" type={attrs.backend_type}"
            )
            continue
        try:
            data = parse_vxlan_data(attrs.backend_data)
        except WireError as error:
            ignored.append(f"error decoding subnet lease JSON of {subnet}: {error}")
            continue
        if backend.direct_routing and attrs.public_ip in iface.link:
            routes[subnet] = RouteVia(attrs.public_ip, iface.name, False)
            continue
        neighs[subnet.network] = data.vtep_mac
        fdb[data.vtep_mac] = attrs.public_ip
        routes[subnet] = RouteVia(subnet.network, backend.device, True)
    state = NetworkState(
        desired_link(backend, iface), (Prefix(own.network, 32),), neighs, fdb, routes
    )
    return Plan(state, tuple(ignored))


def _host_gw(iface: ExternalInterface, others: Iterable[Lease]) -> Plan:
    routes: dict[Prefix, RouteVia] = {}
    ignored: list[str] = []
    for lease in others:
        attrs = lease.attrs
        if attrs.backend_type != "host-gw":
            ignored.append(f"Ignoring non-host-gw subnet: type={attrs.backend_type}")
        elif attrs.public_ip not in iface.link:
            ignored.append(
                f"Ignoring subnet {lease.subnet}: {format_ip(attrs.public_ip)} is not on the"
                f" segment of {iface.name} ({iface.link}), which host-gw needs"
            )
        else:
            routes[lease.subnet] = RouteVia(attrs.public_ip, iface.name, False)
    return Plan(NetworkState(None, (), {}, {}, routes), tuple(ignored))


def link_actions(desired: VxlanLink | None, observed: VxlanLink | None) -> list[Action]:
    """Actions for the device alone; one that differs is made anew, as flannel does."""
    if desired is None or desired == observed:
        return []
    made: list[Action] = [LinkDel(observed.name)] if observed is not None else []
    return [*made, LinkAdd(desired)]


def reconcile(desired: NetworkState, observed: NetworkState) -> Sequence[Action]:
    """Actions from observed to desired: device and address, then removals, then additions.

    A neighbour and its FDB entry come before the route that needs them, so that no packet meets a
    half-made path.
    """
    actions = link_actions(desired.link, observed.link)
    if actions:
        # What hung on the old device is gone with it.
        kept = {dst: r for dst, r in observed.routes.items() if r.dev != desired_dev(desired)}
        observed = NetworkState(None, (), {}, {}, kept)
    dev = desired_dev(desired)
    actions += [AddrDel(dev, a) for a in observed.addresses if a not in desired.addresses]
    actions += [AddrAdd(dev, a) for a in desired.addresses if a not in observed.addresses]
    actions += [RouteDel(dst, r) for dst, r in observed.routes.items() if dst not in desired.routes]
    actions += [NeighDel(dev, ip) for ip in observed.neighs if ip not in desired.neighs]
    actions += [FdbDel(dev, mac) for mac in observed.fdb if mac not in desired.fdb]
    for ip, mac in desired.neighs.items():
        if observed.neighs.get(ip) != mac:
            actions.append(NeighReplace(dev, ip, mac))
    for mac, dst in desired.fdb.items():
        if observed.fdb.get(mac) != dst:
            actions.append(FdbReplace(dev, mac, dst))
    for prefix, route in desired.routes.items():
        if observed.routes.get(prefix) != route:
            actions.append(RouteReplace(prefix, route))
    return actions


def desired_dev(state: NetworkState) -> str:
    """The overlay device's name, "" for a backend without one."""
    return state.link.name if state.link is not None else ""
