"""The rules of kube-proxy 1.5 in iptables mode: the 2017 profile; pure.

After syncProxyRules of kubernetes 1.5, pkg/proxy/iptables/proxier.go.  The chains KUBE-MARK-DROP
and KUBE-FIREWALL, which that release's kubelet makes, are part of the rules here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.kubeproxy import names
from agents.kubeproxy.ruleset import Jump, NodeConfig, NodePort, Ruleset, Table, comment
from emulator.addr import parse_ip

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agents.kubeproxy.model import Endpoint, Key, ServicePort

# 1.5 knows no timeout of its own in a Service.
AFFINITY_S: Final = 180
_PORTALS: Final = comment("kubernetes service portals")
JUMPS: Final = (
    Jump("filter", "OUTPUT", names.SERVICES, _PORTALS),
    Jump("filter", "INPUT", names.FIREWALL, ""),
    Jump("filter", "OUTPUT", names.FIREWALL, ""),
    Jump("nat", "OUTPUT", names.SERVICES, _PORTALS),
    Jump("nat", "PREROUTING", names.SERVICES, _PORTALS),
    Jump("nat", "POSTROUTING", names.POSTROUTING, comment("kubernetes postrouting rules")),
)


def ruleset_1_5(
    services: Iterable[ServicePort],
    endpoints: Mapping[Key, Sequence[Endpoint]],
    node: NodeConfig,
) -> Ruleset:
    """The complete rules for these service ports on this node, as release 1.5 writes them."""
    builder = _Builder(node)
    ordered = sorted(services, key=lambda service: (service.key.text("2017"), service.protocol))
    for service in ordered:
        ready = [endpoint for endpoint in endpoints.get(service.key, ()) if endpoint.ready]
        builder.add(service, ready)
    return builder.finish()


class _Builder:
    def __init__(self, node: NodeConfig) -> None:
        self._node = node
        self._node_ports: dict[NodePort, None] = {}
        self.filter, self.nat = Table(), Table()
        for chain in (names.SERVICES, names.FIREWALL):
            self.filter.chain(chain)
        for chain in (
            names.SERVICES, names.NODEPORTS, names.POSTROUTING, names.MARK_MASQ, names.MARK_DROP,
        ):  # fmt: skip
            self.nat.chain(chain)
        self.filter.rule(
            names.FIREWALL,
            comment("kubernetes firewall for dropping marked packets"),
            "-m mark --mark 0x00008000/0x00008000 -j DROP",
        )
        self.nat.rule(
            names.POSTROUTING,
            comment("kubernetes service traffic requiring SNAT"),
            "-m mark --mark 0x00004000/0x00004000 -j MASQUERADE",
        )
        self.nat.rule(names.MARK_MASQ, "-j MARK --set-xmark 0x00004000/0x00004000")
        self.nat.rule(names.MARK_DROP, "-j MARK --set-xmark 0x00008000/0x00008000")

    def add(self, service: ServicePort, ready: list[Endpoint]) -> None:
        name, protocol = service.key.text("2017"), service.protocol
        chain = names.service_chain("SVC", name, protocol)
        local_chain = names.service_chain("XLB", name, protocol)
        self.nat.chain(chain)
        if service.external_local:
            self.nat.chain(local_chain)
        self._cluster_ip(service, name, chain)
        self._external_ips(service, name, chain)
        self._load_balancer(service, name, local_chain if service.external_local else chain)
        self._node_port(service, name, local_chain if service.external_local else chain)
        if not ready:
            self.filter.rule(
                names.SERVICES,
                comment(f"{name} has no endpoints"),
                _match(service, service.cluster_ip),
                "-j REJECT",
            )
        self._endpoints(service, name, chain, ready)
        if service.external_local:
            self._local_endpoints(service, name, local_chain, ready)

    def _cluster_ip(self, service: ServicePort, name: str, chain: str) -> None:
        text, match = comment(f"{name} cluster IP"), _match(service, service.cluster_ip)
        node, mark = self._node, f"-j {names.MARK_MASQ}"
        if node.masquerade_all:
            self.nat.rule(names.SERVICES, text, match, mark)
        if node.cluster_cidr is not None:
            self.nat.rule(names.SERVICES, text, match, f"! -s {node.cluster_cidr}", mark)
        self.nat.rule(names.SERVICES, text, match, f"-j {chain}")

    def _external_ips(self, service: ServicePort, name: str, chain: str) -> None:
        text = comment(f"{name} external IP")
        for ip in service.external_ips:
            match = _match(service, ip)
            self.nat.rule(names.SERVICES, text, match, f"-j {names.MARK_MASQ}")
            outside = "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL"
            self.nat.rule(names.SERVICES, text, match, outside, f"-j {chain}")
            to_local = "-m addrtype --dst-type LOCAL"
            self.nat.rule(names.SERVICES, text, match, to_local, f"-j {chain}")

    def _load_balancer(self, service: ServicePort, name: str, chosen: str) -> None:
        text = comment(f"{name} loadbalancer IP")
        firewall = names.service_chain("FW", name, service.protocol)
        node_ip = parse_ip(self._node.node_ip)
        for ip in service.load_balancer_ips:
            if firewall in self.nat.chains:
                self.nat.rule(names.SERVICES, text, _match(service, ip), f"-j {firewall}")
                continue
            self.nat.chain(firewall)
            self.nat.rule(names.SERVICES, text, _match(service, ip), f"-j {firewall}")
            if not service.external_local:
                self.nat.rule(firewall, text, f"-j {names.MARK_MASQ}")
            if not service.source_ranges:
                self.nat.rule(firewall, text, f"-j {chosen}")
            for prefix in service.source_ranges:
                self.nat.rule(firewall, text, f"-s {prefix} -j {chosen}")
            if any(node_ip in prefix for prefix in service.source_ranges):
                self.nat.rule(firewall, text, f"-s {ip}/32 -j {chosen}")
            self.nat.rule(firewall, text, f"-j {names.MARK_DROP}")

    def _node_port(self, service: ServicePort, name: str, chosen: str) -> None:
        if not service.node_port:
            return
        self._node_ports[NodePort(service.protocol, service.node_port)] = None
        match = f"-m {service.protocol} -p {service.protocol} --dport {service.node_port}"
        if not service.external_local:
            self.nat.rule(names.NODEPORTS, comment(name), match, f"-j {names.MARK_MASQ}")
        self.nat.rule(names.NODEPORTS, comment(name), match, f"-j {chosen}")

    def _endpoints(
        self, service: ServicePort, name: str, chain: str, ready: list[Endpoint]
    ) -> None:
        protocol = service.protocol
        targets = [
            (endpoint, names.endpoint_chain(name, protocol, str(endpoint))) for endpoint in ready
        ]
        text = comment(name)
        if service.affinity_s:
            for _, target in targets:
                recent = f"-m recent --name {target} --rcheck --seconds {AFFINITY_S} --reap"
                self.nat.rule(chain, text, recent, f"-j {target}")
        left = len(targets)
        for endpoint, target in targets:
            self.nat.chain(target)
            self.nat.rule(chain, text, _chance(left), f"-j {target}")
            left -= 1
            self.nat.rule(target, text, f"-s {endpoint.ip}/32 -j {names.MARK_MASQ}")
            touch = f"-m recent --name {target} --set" if service.affinity_s else ""
            dnat = f"-m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}"
            self.nat.rule(target, text, touch, dnat)

    def _local_endpoints(
        self, service: ServicePort, name: str, chain: str, ready: list[Endpoint]
    ) -> None:
        local = [endpoint for endpoint in ready if endpoint.is_local]
        if not local:
            text = comment(f"{name} has no local endpoints")
            self.nat.rule(chain, text, f"-j {names.MARK_DROP}")
        for index, endpoint in enumerate(local):
            target = names.endpoint_chain(name, service.protocol, str(endpoint))
            text = comment(f"Balancing rule {index} for {name}")
            self.nat.rule(chain, text, _chance(len(local) - index), f"-j {target}")

    def finish(self) -> Ruleset:
        self.nat.rule(
            names.SERVICES,
            comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain"),
            f"-m addrtype --dst-type LOCAL -j {names.NODEPORTS}",
        )
        return Ruleset(self.filter, self.nat, JUMPS, tuple(sorted(self._node_ports)))


def _match(service: ServicePort, ip: str) -> str:
    protocol = service.protocol
    return f"-m {protocol} -p {protocol} -d {ip}/32 --dport {service.port}"


def _chance(left: int) -> str:
    return f"-m statistic --mode random --probability {1 / left:.5f}" if left > 1 else ""
