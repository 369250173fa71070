"""The links and routes of a Calico pod: verbs on the node's kernel.

A veth without a bridge: the host answers ARP for everything (proxy_arp), the pod sends everything
to 169.254.1.1.  Source: projectcalico/calico cni-plugin/pkg/dataplane/linux/dataplane_linux.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.calico.errors import CniError
from emulator.addr import Prefix, format_ip, parse_ip
from emulator.errors import UsageError
from emulator.netstack.fib import Route

if TYPE_CHECKING:
    from emulator.netstack.kernel import Kernel
    from emulator.netstack.records import LinkInfo

GATEWAY: Final = parse_ip("169.254.1.1")
HOST_MAC: Final = b"\xee" * 6
_HOST_SYSCTLS: Final = (
    ("net.ipv4.conf.{}.route_localnet", 1),
    ("net.ipv4.neigh.{}.proxy_delay", 0),
    ("net.ipv4.conf.{}.proxy_arp", 1),
    ("net.ipv4.conf.{}.forwarding", 1),
)


def connect(
    kernel: Kernel,
    netns: str,
    ifname: str,
    host: str,
    ip: int,
    *,
    mtu: int,
    mac: bytes | None = None,
) -> bytes:
    """Make the pair, addresses and routes; return the pod's MAC.  CniError leaves no link."""
    root, pod = kernel.root, kernel.netns(netns)
    try:
        if any(link.name == host for link in root.links()):
            # Of an earlier sandbox of the same pod.
            root.link_del(host)
        root.link_add(host, "veth", mac=HOST_MAC, mtu=mtu, peer=ifname, peer_ns=pod, peer_mac=mac)
        root.link_set(host, up=True)
        pod.link_set(ifname, mtu=mtu, up=True)
        pod.route_replace(Route(Prefix(GATEWAY, 32), dev=ifname, scope="link"))
        pod.route_replace(Route(Prefix(0, 0), gateway=GATEWAY, dev=ifname))
        pod.addr_add(ifname, ip, 32)
        for name, value in _HOST_SYSCTLS:
            root.sysctl[name.format(host)] = value
        _host_route(kernel, host, ip)
    except UsageError as error:
        disconnect(kernel, netns, ifname, host)
        raise CniError(f"error configuring interface {host}: {error}") from None
    except CniError:
        disconnect(kernel, netns, ifname, host)
        raise
    return next(link.mac for link in pod.links() if link.name == ifname)


def _host_route(kernel: Kernel, host: str, ip: int) -> None:
    dst = Prefix(ip, 32)
    for route in kernel.root.routes():
        if route.dst == dst and route.dev != host and not route.metric:
            index = _link(kernel, host).index
            raise CniError(
                f"route (Ifindex: {index}, Dst: {format_ip(ip)}/32, Scope: link) already exists "
                f"for an interface other than '{host}'"
            )
    kernel.root.route_replace(Route(dst, dev=host, scope="link"))


def disconnect(kernel: Kernel, netns: str, ifname: str, host: str) -> None:
    """Remove the pair; absent parts are success."""
    if netns in kernel.netns_names():
        pod = kernel.netns(netns)
        if any(link.name == ifname for link in pod.links()):
            pod.link_del(ifname)
            return
    elif any(link.name == host for link in kernel.root.links()):
        kernel.root.link_del(host)


def verify(kernel: Kernel, netns: str, ifname: str, host: str, ip: int) -> None:
    """Raise CniError unless links, address and routes are as ``connect`` left them."""
    if netns not in kernel.netns_names():
        raise CniError(f"failed to open netns {netns!r}: no such file or directory")
    pod = kernel.netns(netns)
    if not any(link.name == ifname for link in pod.links()):
        raise CniError(f"Link not found: {ifname}")
    _link(kernel, host)
    if not any(each.ip == ip and each.dev == ifname for each in pod.addrs()):
        raise CniError(f"Failed to match addr {format_ip(ip)} on interface {ifname}")
    if not any(route.gateway == GATEWAY and route.dev == ifname for route in pod.routes()):
        raise CniError(f"Expected default route via {format_ip(GATEWAY)} not found on {ifname}")
    dst = Prefix(ip, 32)
    if not any(route.dst == dst and route.dev == host for route in kernel.root.routes()):
        raise CniError(f"Expected Route {format_ip(ip)} dev {host} not found in routing table")


def _link(kernel: Kernel, name: str) -> LinkInfo:
    for link in kernel.root.links():
        if link.name == name:
            return link
    raise CniError(f"Link not found: {name}")
