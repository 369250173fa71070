"""Which service addresses a node announces (pure).

Source: projectcalico/calico confd/pkg/backends/calico/routes.go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agents.calico.net import Cidr, Ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXCLUDE_LABEL: Final = "node.kubernetes.io/exclude-from-external-load-balancers"
_FIELDS: Final = ("serviceClusterIPs", "serviceExternalIPs", "serviceLoadBalancerIPs")
_TYPES: Final = ("ClusterIP", "NodePort", "LoadBalancer")


@dataclass(frozen=True, slots=True)
class Service:
    """What counts of a Service; ``ready_on`` are the nodes with a ready endpoint."""

    kind: str
    local_only: bool
    cluster_ips: tuple[str, ...]
    external_ips: tuple[str, ...]
    ingress_ips: tuple[str, ...]
    ready_on: frozenset[str]


@dataclass(frozen=True, slots=True)
class Announced:
    """``routes`` are announced, ``ranges`` never go into the node's own table."""

    routes: tuple[Cidr, ...]
    ranges: tuple[Cidr, ...]


def wants_services(config: Mapping[str, Any]) -> bool:
    """True if a BGPConfiguration announces any."""
    return any(config.get(field) for field in _FIELDS)


def read_services(
    services: Iterable[Mapping[str, Any]], slices: Iterable[Mapping[str, Any]]
) -> tuple[Service, ...]:
    """Services with the nodes their ready endpoints are on."""
    ready: dict[tuple[str, str], set[str]] = {}
    for each in slices:
        metadata = each.get("metadata") or {}
        owner = (metadata.get("labels") or {}).get("kubernetes.io/service-name")
        if not owner or each.get("addressType", "IPv4") != "IPv4":
            continue
        nodes = ready.setdefault((str(metadata.get("namespace", "")), str(owner)), set())
        for endpoint in each.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            if conditions.get("ready") is not False and endpoint.get("nodeName"):
                nodes.add(endpoint["nodeName"])
    found = []
    for service in services:
        metadata, spec = service["metadata"], service.get("spec") or {}
        key = (str(metadata.get("namespace", "")), str(metadata["name"]))
        balancer = (service.get("status") or {}).get("loadBalancer") or {}
        found.append(
            Service(
                str(spec.get("type", "ClusterIP")),
                spec.get("externalTrafficPolicy") == "Local",
                tuple(spec.get("clusterIPs") or filter(None, [spec.get("clusterIP")])),
                tuple(spec.get("externalIPs") or ()),
                tuple(each["ip"] for each in balancer.get("ingress") or () if each.get("ip")),
                frozenset(ready.get(key, ())),
            )
        )
    return tuple(found)


def announced(
    config: Mapping[str, Any],
    services: Iterable[Service],
    node: str,
    labels: Mapping[str, str],
) -> Announced:
    """What a node announces of services under a BGPConfiguration.

    Every node announces the configured ranges whole; the address of a service whose traffic must
    stay on the node is announced by the nodes that have a ready endpoint.
    """
    cluster, external, balancer = (_cidrs(config.get(field)) for field in _FIELDS)
    ranges = tuple(dict.fromkeys((*cluster, *external, *balancer)))
    if labels.get(EXCLUDE_LABEL) == "true":
        return Announced((), ranges)
    # A single load balancer address is announced only while it is in use.
    routes = dict.fromkeys((*cluster, *external, *(cidr for cidr in balancer if cidr.length < 32)))
    for service in services:
        if service.kind not in _TYPES or not any(map(_address, service.cluster_ips)):
            continue
        if not service.local_only:
            singles = [cidr for cidr in balancer if cidr.length == 32]
            if service.kind == "LoadBalancer":
                routes |= dict.fromkeys(_inside(service.ingress_ips, singles))
            continue
        if node not in service.ready_on:
            continue
        for addresses, allowed in (
            (service.cluster_ips, cluster),
            (service.external_ips, external),
            (service.ingress_ips, balancer),
        ):
            routes |= dict.fromkeys(_inside(addresses, allowed))
    return Announced(tuple(sorted(routes)), ranges)


def _cidrs(blocks: Any) -> tuple[Cidr, ...]:
    found = []
    for block in blocks or ():
        try:
            cidr = Cidr.parse(str(block.get("cidr")))
        except UsageError:
            continue
        if cidr.version == 4:
            found.append(cidr)
    return tuple(found)


def _address(text: str) -> Ip | None:
    try:
        ip = Ip.parse(text)
    except UsageError:
        return None
    return ip if ip.version == 4 else None


def _inside(addresses: Iterable[str], ranges: Iterable[Cidr]) -> list[Cidr]:
    allowed = tuple(ranges)
    found = [ip for ip in map(_address, addresses) if ip is not None]
    return [Cidr.of(ip, 32) for ip in found if any(cidr.holds(ip) for cidr in allowed)]
