"""The rules of today's kube-proxy in iptables mode; pure.

Order and text follow syncProxyRules of kubernetes, pkg/proxy/iptables/proxier.go; services, which
upstream walks in the random order of a Go map, are walked by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agents.kubeproxy import names
from agents.kubeproxy.ruleset import (
    LARGE_CLUSTER_ENDPOINTS,
    MASQUERADE_MARK,
    Jump,
    NodeConfig,
    NodePort,
    Ruleset,
    Table,
    comment,
)
from agents.kubeproxy.topology import Choice, choose
from emulator.addr import parse_ip

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agents.kubeproxy.model import Endpoint, Key, ServicePort

_MARK: Final = f"{MASQUERADE_MARK}/{MASQUERADE_MARK}"
_NEW: Final = "-m conntrack --ctstate NEW"
_LOCAL_SOURCE: Final = "-m addrtype --src-type LOCAL"
_LOCAL_DESTINATION: Final = "-m addrtype --dst-type LOCAL"


def _jump(table: str, source: str, target: str, text: str, extra: str = "") -> Jump:
    return Jump(table, source, target, " ".join(filter(None, (extra, text and comment(text)))))


_EXTERNAL: Final = "kubernetes externally-visible service portals"
_PORTALS: Final = "kubernetes service portals"
_LB_FIREWALL: Final = "kubernetes load balancer firewall"
JUMPS: Final = (
    _jump("filter", "INPUT", names.EXTERNAL_SERVICES, _EXTERNAL, _NEW),
    _jump("filter", "FORWARD", names.EXTERNAL_SERVICES, _EXTERNAL, _NEW),
    _jump("filter", "INPUT", names.NODEPORTS, "kubernetes health check service ports"),
    _jump("filter", "FORWARD", names.SERVICES, _PORTALS, _NEW),
    _jump("filter", "OUTPUT", names.SERVICES, _PORTALS, _NEW),
    _jump("filter", "FORWARD", names.FORWARD, "kubernetes forwarding rules"),
    _jump("filter", "INPUT", names.PROXY_FIREWALL, _LB_FIREWALL, _NEW),
    _jump("filter", "OUTPUT", names.PROXY_FIREWALL, _LB_FIREWALL, _NEW),
    _jump("filter", "FORWARD", names.PROXY_FIREWALL, _LB_FIREWALL, _NEW),
    _jump("nat", "OUTPUT", names.SERVICES, _PORTALS),
    _jump("nat", "PREROUTING", names.SERVICES, _PORTALS),
    _jump("nat", "POSTROUTING", names.POSTROUTING, "kubernetes postrouting rules"),
)
FIREWALL_JUMPS: Final = (
    _jump("filter", "INPUT", names.FIREWALL, ""),
    _jump("filter", "OUTPUT", names.FIREWALL, ""),
)


class _Chains(NamedTuple):
    """Names of one service port's chains."""

    cluster: str
    local: str
    external: str
    firewall: str


def modern_ruleset(
    services: Iterable[ServicePort],
    endpoints: Mapping[Key, Sequence[Endpoint]],
    node: NodeConfig,
) -> Ruleset:
    """The complete rules for these service ports on this node."""
    ordered = sorted(services, key=lambda service: (service.key.text(), service.protocol))
    total = sum(len(endpoints.get(service.key, ())) for service in ordered)
    builder = _Builder(node, large=total > LARGE_CLUSTER_ENDPOINTS)
    for service in ordered:
        chosen = choose(service, endpoints.get(service.key, ()), node.node_name, node.zone)
        builder.add(service, chosen)
    return builder.finish()


class _Builder:
    def __init__(self, node: NodeConfig, *, large: bool) -> None:
        self._node = node
        self._large = large
        self._node_ports: dict[NodePort, None] = {}
        self.filter, self.nat = Table(), Table()
        for chain in (
            names.SERVICES, names.EXTERNAL_SERVICES, names.FORWARD, names.NODEPORTS,
            names.PROXY_FIREWALL,
        ):  # fmt: skip
            self.filter.chain(chain)
        for chain in (names.SERVICES, names.NODEPORTS, names.POSTROUTING, names.MARK_MASQ):
            self.nat.chain(chain)
        rule = self.nat.rule
        rule(names.POSTROUTING, f"-m mark ! --mark {_MARK} -j RETURN")
        # Cleared, so that a tunnelled packet is not masqueraded a second time.
        rule(names.POSTROUTING, f"-j MARK --xor-mark {MASQUERADE_MARK}")
        rule(
            names.POSTROUTING,
            comment("kubernetes service traffic requiring SNAT"),
            "-j MASQUERADE",
            "--random-fully" if node.random_fully else "",
        )
        rule(names.MARK_MASQ, f"-j MARK --or-mark {MASQUERADE_MARK}")
        if node.localhost_node_ports:
            self.filter.chain(names.FIREWALL)
            self.filter.rule(
                names.FIREWALL,
                comment("block incoming localnet connections"),
                "-d 127.0.0.0/8 ! -s 127.0.0.0/8",
                "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
            )

    def add(self, service: ServicePort, chosen: Choice) -> None:
        name, protocol = service.key.text(), service.protocol
        chains = _Chains(
            names.service_chain("SVC", name, protocol),
            names.service_chain("SVL", name, protocol),
            names.service_chain("EXT", name, protocol),
            names.service_chain("FW", name, protocol),
        )
        has_internal = bool(chosen.local) if service.internal_local else chosen.any
        has_external = bool(chosen.local) if service.external_local else chosen.any
        self._capture(service, name, chains, chosen, has_internal, has_external)
        if has_internal:
            self._masquerade_off_cluster(service, name, chains)
        if chosen.any and service.is_externally_accessible:
            self._external(service, name, chains, has_external)
        if chosen.any and service.load_balancer_ips and service.source_ranges:
            self._firewall(service, name, chains)
        if chosen.cluster and service.uses_cluster_endpoints:
            self._balance(service, name, chains.cluster, chosen.cluster)
        if chosen.local and service.uses_local_endpoints:
            self._balance(service, name, chains.local, chosen.local)
        for endpoint in chosen.reachable:
            self._endpoint(service, name, endpoint)

    def _capture(
        self,
        service: ServicePort,
        name: str,
        chains: _Chains,
        chosen: Choice,
        has_internal: bool,
        has_external: bool,
    ) -> None:
        """Rules of the shared chains: which destination goes to which chain, or nowhere."""
        match = f"-m {service.protocol} -p {service.protocol}"
        dport = f"--dport {service.port}"
        nat, filtering = self.nat.rule, self.filter.rule
        missing = f"{name} has no {'local ' if chosen.any else ''}endpoints"
        verdict = "-j DROP" if chosen.any else "-j REJECT"
        cluster_ip = f"-d {service.cluster_ip}"
        if has_internal:
            target = chains.local if service.internal_local else chains.cluster
            text = comment(f"{name} cluster IP")
            nat(names.SERVICES, text, match, cluster_ip, dport, f"-j {target}")
        else:
            filtering(names.SERVICES, comment(missing), match, cluster_ip, dport, verdict)
        for ip in service.external_ips:
            if chosen.any:
                text = comment(f"{name} external IP")
                nat(names.SERVICES, text, match, f"-d {ip}", dport, f"-j {chains.external}")
            if not has_external:
                text = comment(missing)
                filtering(names.EXTERNAL_SERVICES, text, match, f"-d {ip}", dport, verdict)
        guarded = bool(chosen.any and service.source_ranges)
        for ip in service.load_balancer_ips:
            if chosen.any:
                text = comment(f"{name} loadbalancer IP")
                target = chains.firewall if guarded else chains.external
                nat(names.SERVICES, text, match, f"-d {ip}", dport, f"-j {target}")
            if guarded:
                text = comment(f"{name} traffic not accepted by {chains.firewall}")
                filtering(names.PROXY_FIREWALL, text, match, f"-d {ip}", dport, "-j DROP")
        if not has_external:
            for ip in service.load_balancer_ips:
                text = comment(missing)
                filtering(names.EXTERNAL_SERVICES, text, match, f"-d {ip}", dport, verdict)
        if service.node_port:
            if chosen.any:
                # Where nobody listens the host's clients are refused, as REJECT does all others.
                self._node_ports[NodePort(service.protocol, service.node_port)] = None
            dport = f"--dport {service.node_port}"
            if chosen.any:
                nat(names.NODEPORTS, comment(name), match, dport, f"-j {chains.external}")
            if not has_external:
                filtering(
                    names.EXTERNAL_SERVICES,
                    comment(missing), _LOCAL_DESTINATION, match, dport, verdict,
                )  # fmt: skip
        if service.health_check_node_port:
            filtering(
                names.NODEPORTS,
                comment(f"{name} health check node port"),
                f"-m tcp -p tcp --dport {service.health_check_node_port} -j ACCEPT",
            )

    def _masquerade_off_cluster(self, service: ServicePort, name: str, chains: _Chains) -> None:
        cidr = self._node.cluster_cidr
        if not self._node.masquerade_all and cidr is None:
            return
        self.nat.rule(
            chains.local if service.internal_local else chains.cluster,
            comment(f"{name} cluster IP"),
            f"-m {service.protocol} -p {service.protocol}",
            f"-d {service.cluster_ip} --dport {service.port}",
            "" if self._node.masquerade_all else f"! -s {cidr}",
            f"-j {names.MARK_MASQ}",
        )

    def _external(
        self, service: ServicePort, name: str, chains: _Chains, has_external: bool
    ) -> None:
        chain, rule = chains.external, self.nat.rule
        self.nat.chain(chain)
        destinations = f"for {name} external destinations"
        if not service.external_local:
            # The answer must come back through this node.
            rule(chain, comment(f"masquerade traffic {destinations}"), f"-j {names.MARK_MASQ}")
        else:
            cidr = self._node.cluster_cidr
            to_cluster = f"-j {chains.cluster}"
            if cidr is not None:
                rule(chain, comment(f"pod traffic {destinations}"), f"-s {cidr}", to_cluster)
            text = comment(f"masquerade LOCAL traffic {destinations}")
            rule(chain, text, _LOCAL_SOURCE, f"-j {names.MARK_MASQ}")
            rule(chain, comment(f"route LOCAL traffic {destinations}"), _LOCAL_SOURCE, to_cluster)
        if has_external:
            rule(chain, f"-j {chains.local if service.external_local else chains.cluster}")

    def _firewall(self, service: ServicePort, name: str, chains: _Chains) -> None:
        chain, rule = chains.firewall, self.nat.rule
        self.nat.chain(chain)
        text = comment(f"{name} loadbalancer IP")
        for prefix in service.source_ranges:
            rule(chain, text, f"-s {prefix}", f"-j {chains.external}")
        node_ip = parse_ip(self._node.node_ip)
        if any(node_ip in prefix for prefix in service.source_ranges):
            # The address may be this node's own, which is then also the source.
            for ip in service.load_balancer_ips:
                rule(chain, text, f"-s {ip}", f"-j {chains.external}")
        rule(chain, comment(f"other traffic to {name} will be dropped by KUBE-PROXY-FIREWALL"))

    def _balance(
        self, service: ServicePort, name: str, chain: str, endpoints: tuple[Endpoint, ...]
    ) -> None:
        self.nat.chain(chain)
        targets = [
            (
                self._endpoint_comment(f"{name} -> {endpoint}"),
                names.endpoint_chain(name, service.protocol, str(endpoint)),
            )
            for endpoint in endpoints
        ]
        if service.affinity_s:
            for text, target in targets:
                recent = f"--rcheck --seconds {service.affinity_s} --reap"
                self.nat.rule(chain, text, f"-m recent --name {target} {recent} -j {target}")
        for left, (text, target) in zip(range(len(targets), 0, -1), targets, strict=True):
            chance = f"-m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
            self.nat.rule(chain, text, chance, f"-j {target}")

    def _endpoint(self, service: ServicePort, name: str, endpoint: Endpoint) -> None:
        chain = names.endpoint_chain(name, service.protocol, str(endpoint))
        self.nat.chain(chain)
        text = self._endpoint_comment(name)
        self.nat.rule(chain, text, f"-s {endpoint.ip} -j {names.MARK_MASQ}")
        self.nat.rule(
            chain,
            text,
            f"-m recent --name {chain} --set" if service.affinity_s else "",
            f"-m {service.protocol} -p {service.protocol}",
            f"-j DNAT --to-destination {endpoint}",
        )

    def _endpoint_comment(self, text: str) -> str:
        return "" if self._large else comment(text)

    def finish(self) -> Ruleset:
        last = comment(
            "kubernetes service nodeports; NOTE: this must be the last rule in this chain"
        )
        node, jump = self._node, f"-j {names.NODEPORTS}"
        if node.node_port_addresses:
            for ip in node.node_port_addresses:
                self.nat.rule(names.SERVICES, last, f"-d {ip}", jump)
        else:
            spared = "" if node.localhost_node_ports else "! -d 127.0.0.0/8"
            self.nat.rule(names.SERVICES, last, _LOCAL_DESTINATION, spared, jump)
        rule = self.filter.rule
        rule(names.FORWARD, "-m conntrack --ctstate INVALID -j DROP")
        rule(
            names.FORWARD,
            comment("kubernetes forwarding rules"),
            f"-m mark --mark {_MARK} -j ACCEPT",
        )
        rule(
            names.FORWARD,
            comment("kubernetes forwarding conntrack rule"),
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        )
        jumps = JUMPS + (FIREWALL_JUMPS if node.localhost_node_ports else ())
        return Ruleset(self.filter, self.nat, jumps, tuple(sorted(self._node_ports)))
