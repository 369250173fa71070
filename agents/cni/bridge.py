"""The bridge plugin: a veth pair from the pod into cni0, verbs on the node's kernel.

Source: containernetworking/plugins, plugins/main/bridge; the 2017 behaviour from
containernetworking/cni v0.5 (addresses 0a:58 + IPv4 from pkg/utils/hwaddr).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agents.cni.errors import GENERIC, CniError
from agents.cni.result import AddressConf, CniResult, Interface, RouteConf
from emulator.addr import Prefix, format_ip, format_mac
from emulator.errors import UsageError
from emulator.netstack.fib import Route

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from emulator.netstack.kernel import Kernel
    from emulator.netstack.netns import NetNs

DEFAULT_ROUTE = Prefix(0, 0)
# Draws of a host veth name before giving up; ip.makeVethPair tries ten times as well.
_NAME_DRAWS = 10


class BridgeConf(NamedTuple):
    """The bridge plugin's own configuration."""

    bridge: str
    is_gateway: bool
    is_default_gateway: bool
    hairpin: bool
    mtu: int

    @classmethod
    def parse(cls, conf: Mapping[str, Any]) -> BridgeConf:
        """Read the plugin's JSON; isDefaultGateway implies isGateway."""
        default_gateway = bool(conf.get("isDefaultGateway"))
        return cls(
            str(conf.get("bridge", "cni0")),
            bool(conf.get("isGateway")) or default_gateway,
            default_gateway,
            bool(conf.get("hairpinMode")),
            int(conf.get("mtu", 0)) or 1500,
        )


def hardware_addr(ip: int) -> bytes:
    """The MAC of 2017: 0a:58 and the four octets (pkg/utils/hwaddr PrivateMACPrefix)."""
    return b"\x0a\x58" + ip.to_bytes(4, "big")


def random_mac(rng: random.Random) -> bytes:
    """A locally administered unicast address, as the kernel's eth_random_addr draws it."""
    mac = bytearray(rng.randbytes(6))
    mac[0] = mac[0] & 0xFE | 0x02
    return bytes(mac)


def container_routes(
    conf: BridgeConf, ipam: Mapping[str, Any], gateway: int
) -> tuple[RouteConf, ...]:
    """The container's routes: those of the IPAM, then the default one when asked for."""
    routes = [RouteConf(Prefix.parse(route["dst"]), gateway) for route in ipam.get("routes", ())]
    if conf.is_default_gateway and all(route.dst != DEFAULT_ROUTE for route in routes):
        routes.append(RouteConf(DEFAULT_ROUTE, gateway))
    return tuple(routes)


class BridgePlugin:
    """ADD, DEL and CHECK of type ``bridge`` on one kernel."""

    def __init__(self, kernel: Kernel, *, era: str, rng: random.Random) -> None:
        self._kernel = kernel
        self._era = era
        self._rng = rng

    def add(
        self,
        conf: BridgeConf,
        address: AddressConf,
        routes: tuple[RouteConf, ...],
        *,
        netns: str,
        ifname: str,
    ) -> CniResult:
        """Wire ``netns`` to the bridge; CniError leaves nothing of the pod's link behind."""
        pod = self._kernel.netns(netns)
        try:
            self._ensure_bridge(conf, address)
            host_veth = self._connect(conf, address, routes, pod, ifname)
        except UsageError as error:
            self.delete(netns=netns, ifname=ifname)
            raise CniError(GENERIC, str(error)) from None
        root = {link.name: link for link in self._kernel.root.links()}
        inside = {link.name: link for link in pod.links()}
        return CniResult(
            (
                Interface(conf.bridge, format_mac(root[conf.bridge].mac)),
                Interface(host_veth, format_mac(root[host_veth].mac)),
                Interface(ifname, format_mac(inside[ifname].mac), f"/var/run/netns/{netns}"),
            ),
            (address,),
            routes,
        )

    def delete(self, *, netns: str, ifname: str) -> None:
        """Remove the pod's link (its peer goes with it); absent is success."""
        if netns not in self._kernel.netns_names():
            return
        pod = self._kernel.netns(netns)
        if any(link.name == ifname for link in pod.links()):
            pod.link_del(ifname)

    def check(self, conf: BridgeConf, result: CniResult, *, netns: str, ifname: str) -> None:
        """Raise CniError unless bridge, veth, address and routes are as ``result`` says."""
        root = {link.name: link for link in self._kernel.root.links()}
        if conf.bridge not in root:
            raise CniError(GENERIC, f"Interface {conf.bridge} not found")
        if netns not in self._kernel.netns_names():
            raise CniError(GENERIC, f"failed to open netns {netns!r}: no such file or directory")
        pod = self._kernel.netns(netns)
        inside = {link.name: link for link in pod.links()}
        if ifname not in inside:
            raise CniError(GENERIC, f"Container Interface name in prevResult: {ifname} not found")
        expected = result.interfaces[-1].mac
        if format_mac(inside[ifname].mac) != expected:
            raise CniError(
                GENERIC,
                f"Interface {ifname} Mac {expected} doesn't match container Mac: "
                f"{format_mac(inside[ifname].mac)}",
            )
        for address in result.ips:
            if not any(each.ip == address.ip and each.dev == ifname for each in pod.addrs()):
                raise CniError(
                    GENERIC,
                    f"Failed to match addr {format_ip(address.ip)} on interface {ifname}",
                )
        present = {(route.dst, route.gateway) for route in pod.routes()}
        for wanted in result.routes:
            if (wanted.dst, wanted.gateway) not in present:
                raise CniError(GENERIC, f"Expected Route {wanted.dst} not found in routing table")

    def _ensure_bridge(self, conf: BridgeConf, address: AddressConf) -> None:
        root = self._kernel.root
        links = {link.name: link for link in root.links()}
        present = links.get(conf.bridge)
        if present is not None and present.kind != "bridge":
            raise CniError(GENERIC, f'"{conf.bridge}" already exists but is not a bridge')
        if present is None:
            # Without an address of its own a bridge takes its lowest port's and changes with them.
            mac = hardware_addr(address.gateway) if self._old else random_mac(self._rng)
            root.link_add(conf.bridge, "bridge", mac=mac, mtu=conf.mtu)
        root.link_set(conf.bridge, up=True)
        if not conf.is_gateway:
            return
        held = [each for each in root.addrs() if each.dev == conf.bridge]
        if any(each.ip == address.gateway and each.length == address.length for each in held):
            return
        wanted = f"{format_ip(address.gateway)}/{address.length}"
        if any(Prefix.of(each.ip, each.length) for each in held):
            raise CniError(
                GENERIC,
                f'failed to set bridge addr: "{conf.bridge}" already has an IP address '
                f"different from {wanted}",
            )
        root.addr_add(
            conf.bridge, address.gateway, address.length, broadcast=self._broadcast(address)
        )
        root.sysctl["net.ipv4.ip_forward"] = 1

    def _connect(
        self,
        conf: BridgeConf,
        address: AddressConf,
        routes: tuple[RouteConf, ...],
        pod: NetNs,
        ifname: str,
    ) -> str:
        root = self._kernel.root
        if any(link.name == ifname for link in pod.links()):
            raise CniError(GENERIC, self._taken_text(ifname))
        host_veth = self._draw_name({link.name for link in root.links()})
        mac = hardware_addr(address.ip) if self._old else random_mac(self._rng)
        if self._old:
            # 0.5 made the pair inside the container and moved the host's end out.
            pod.link_add(ifname, "veth", mac=mac, mtu=conf.mtu, peer=host_veth, txqlen=0)
            pod.link_set(host_veth, netns=root)
        else:
            pod.link_add(ifname, "veth", mac=mac, mtu=conf.mtu, peer=host_veth, peer_ns=root)
        root.link_set(host_veth, mtu=conf.mtu, master=conf.bridge, hairpin=conf.hairpin, up=True)
        pod.link_set(ifname, up=True)
        pod.addr_add(ifname, address.ip, address.length, broadcast=self._broadcast(address))
        for route in routes:
            pod.route_replace(Route(dst=route.dst, gateway=route.gateway, dev=ifname))
        return host_veth

    def _draw_name(self, taken: set[str]) -> str:
        for _ in range(_NAME_DRAWS):
            name = f"veth{self._rng.getrandbits(32):08x}"
            if name not in taken:
                return name
        raise CniError(GENERIC, "failed to find a unique veth name")

    def _taken_text(self, ifname: str) -> str:
        if self._old:
            return f"container veth name provided ({ifname}) already exists"
        return f'container veth name ("{ifname}") already exists'

    def _broadcast(self, address: AddressConf) -> int | None:
        return None if self._old else Prefix.of(address.ip, address.length).broadcast

    @property
    def _old(self) -> bool:
        return self._era == "2017"
