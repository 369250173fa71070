"""flannel's hands: reads its part of the kernel's state and applies actions; shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from agents.flannel import backend as wish
from agents.flannel.backend import (
    Action,
    ExternalInterface,
    NetworkState,
    RouteVia,
    VxlanLink,
)
from emulator.addr import Prefix, format_ip, format_mac
from emulator.errors import UsageError
from emulator.netstack.fib import Route, RouteType
from emulator.netstack.records import NeighState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agents.flannel.config import BackendConfig
    from agents.flannel.rules import RuleSet
    from emulator.netstack.netfilter.netfilter import Netfilter
    from emulator.netstack.netfilter.rules import RuleSpec
    from emulator.netstack.records import AddrInfo, FdbInfo, LinkInfo, NeighInfo


class NodeNamespace(Protocol):
    """The verbs of a namespace that flannel uses (ARCHITECTURE.md, "The kernel")."""

    @property
    def netfilter(self) -> Netfilter: ...

    def link_add(self, name: str, kind: str, **attrs: Any) -> object: ...
    def link_del(self, name: str) -> None: ...
    def link_set(self, name: str, *, up: bool) -> None: ...
    def addr_add(self, dev: str, ip: int, length: int) -> None: ...
    def addr_del(self, dev: str, ip: int, length: int) -> None: ...
    def route_replace(self, route: Route) -> None: ...
    def route_del(self, route: Route) -> None: ...
    def neigh_replace(self, dev: str, ip: int, mac: bytes, state: NeighState) -> None: ...
    def neigh_del(self, dev: str, ip: int) -> None: ...
    def fdb_replace(self, dev: str, mac: bytes, dst: int) -> None: ...
    def fdb_del(self, dev: str, mac: bytes) -> None: ...
    def link(self, name: str) -> LinkInfo: ...
    def addrs(self) -> Sequence[AddrInfo]: ...
    def routes(self) -> Sequence[Route]: ...
    def neighs(self) -> Sequence[NeighInfo]: ...
    def fdb(self) -> Sequence[FdbInfo]: ...


class FlannelKernel:
    """One node's root namespace, in flannel's terms."""

    def __init__(self, namespace: NodeNamespace, source_ports: tuple[int, int] = (0, 0)) -> None:
        """``source_ports`` is the range VXLAN leaves from (``srcport`` of ip-link(8))."""
        self._ns = namespace
        self._source_ports = source_ports
        # The rules of flannel's chains as they were after the last write.
        self._written: dict[str, tuple[RuleSpec, ...]] = {}
        # A device somebody deleted comes back with the MAC that the lease has told everybody.
        self._macs: dict[str, bytes] = {}

    # Reading

    def external_interface(self, name: str, ip: int) -> ExternalInterface:
        """The NIC; UsageError where it is missing or has another address."""
        link = self._link(name)
        if link is None:
            raise UsageError(f"Could not find interface {name}: no such network interface")
        for address in self._ns.addrs():
            if address.dev == name and address.ip == ip:
                return ExternalInterface(name, ip, Prefix.of(ip, address.length), link.mtu)
        raise UsageError(f"failed to find IPv4 address {format_ip(ip)} for interface {name}")

    def mac(self, name: str) -> bytes:
        """The MAC of a device that is there."""
        link = self._link(name)
        assert link is not None, name
        return link.mac

    def _link(self, name: str) -> LinkInfo | None:
        try:
            return self._ns.link(name)
        except UsageError:
            return None

    def observe_link(self, backend: BackendConfig) -> VxlanLink | None:
        """The vxlan device as it is, None if there is none of its name."""
        link = self._link(backend.device)
        if link is None:
            return None
        return VxlanLink(
            link.name, link.vni, link.port, link.local, link.dev, link.learning, link.mtu
        )

    def observe(
        self, backend: BackendConfig, network: Prefix, iface: ExternalInterface
    ) -> NetworkState:
        """What is flannel's in the kernel: all of its device, and gateway routes into the network.

        Routes of other agents into the same network (a bridge's, without a gateway) are not seen.
        """
        dev = backend.device if backend.type == "vxlan" else ""
        ns = self._ns
        return NetworkState(
            link=self.observe_link(backend) if dev else None,
            addresses=tuple(Prefix(a.ip, a.length) for a in ns.addrs() if a.dev == dev),
            neighs={
                entry.ip: entry.mac
                for entry in ns.neighs()
                if entry.dev == dev
                and entry.mac is not None
                and entry.state is NeighState.PERMANENT
            },
            fdb={
                entry.mac: entry.dst
                for entry in ns.fdb()
                if entry.dev == dev and entry.dst is not None
            },
            routes={
                route.dst: RouteVia(route.gateway, route.dev, route.onlink)
                for route in ns.routes()
                if route.gateway is not None
                and route.table == "main"
                and route.type is RouteType.UNICAST
                and route.dev in (dev, iface.name)
                and route.dst.length > network.length
                and route.dst.network in network
            },
        )

    # Writing

    def apply(self, actions: Iterable[Action]) -> None:
        """Perform actions in order; UsageError with the kernel's text if one is refused."""
        for action in actions:
            self._perform(action)

    def apply_each(self, actions: Iterable[Action]) -> tuple[str, ...]:
        """Perform actions in order; what the kernel said of neighbours and routes it refused.

        One node's odd lease must not cost the others.  UsageError where the device is refused.
        """
        refused: list[str] = []
        for action in actions:
            try:
                self._perform(action)
            except UsageError as error:
                if isinstance(action, (wish.LinkAdd, wish.LinkDel, wish.AddrAdd, wish.AddrDel)):
                    raise
                refused.append(f"{_described(action)}: {error}")
        return tuple(refused)

    def _perform(self, action: Action) -> None:
        ns = self._ns
        match action:
            case wish.LinkAdd(link):
                self._add_vxlan(link)
            case wish.LinkDel(name):
                ns.link_del(name)
            case wish.AddrAdd(dev, address):
                ns.addr_add(dev, address.network, address.length)
            case wish.AddrDel(dev, address):
                ns.addr_del(dev, address.network, address.length)
            case wish.NeighReplace(dev, ip, mac):
                ns.neigh_replace(dev, ip, mac, NeighState.PERMANENT)
            case wish.NeighDel(dev, ip):
                ns.neigh_del(dev, ip)
            case wish.FdbReplace(dev, mac, dst):
                ns.fdb_replace(dev, mac, dst)
            case wish.FdbDel(dev, mac):
                ns.fdb_del(dev, mac)
            case wish.RouteReplace(dst, via):
                ns.route_replace(_route(dst, via))
            case wish.RouteDel(dst, via):
                ns.route_del(_route(dst, via))

    def _add_vxlan(self, link: VxlanLink) -> None:
        self._ns.link_add(
            link.name,
            "vxlan",
            mac=self._macs.get(link.name),
            mtu=link.mtu,
            vni=link.vni,
            local=link.local,
            dev=link.dev,
            port=link.port,
            learning=link.learning,
            srcport=self._source_ports,
        )
        self._ns.link_set(link.name, up=True)
        self._macs[link.name] = self.mac(link.name)

    # Rules

    def ensure_rules(self, rules: RuleSet) -> None:
        """Make a rule set complete again if anything of it is missing or was changed."""
        missing = rules.missing_jumps(self._read_chain)
        written = self._written.get(rules.chain)
        if not missing and (not rules.chain or written == self._specs(rules.table, rules.chain)):
            return
        self._ns.netfilter.restore(rules.restore_text(missing))
        self._written[rules.chain] = self._specs(rules.table, rules.chain)

    def _specs(self, table: str, chain: str) -> tuple[RuleSpec, ...]:
        found = self._ns.netfilter.tables.get(table)
        if found is None or chain not in found.chains:
            return ()
        return tuple(rule.spec for rule in found.chains[chain].rules)

    def _read_chain(self, table: str, chain: str) -> list[str]:
        return [spec.save() for spec in self._specs(table, chain)]


def _described(action: Action) -> str:
    match action:
        case wish.NeighReplace(dev, ip, _):
            return f"AddARP failed: {format_ip(ip)} dev {dev}"
        case wish.FdbReplace(dev, mac, dst):
            return f"AddFDB failed: {format_mac(mac)} dev {dev} dst {format_ip(dst)}"
        case wish.RouteReplace(dst, via):
            return f"failed to add route: {dst} via {format_ip(via.via)} dev {via.dev}"
    return f"failed to remove {action}"


def _route(dst: Prefix, via: RouteVia) -> Route:
    return Route(dst, via.dev, via.via, onlink=via.onlink)
