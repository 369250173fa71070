"""Services and endpoints as kube-proxy thinks of them; pure.

The API's objects are read once, here, into small records (kubernetes, pkg/proxy/serviceport.go
and endpoint.go).  Only IPv4 is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from emulator.addr import Prefix, parse_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Object = Mapping[str, Any]

Profile = Literal["modern", "2017"]

# Another proxy, or none, takes care of services with these labels.
_PROXY_NAME_LABEL: Final = "service.kubernetes.io/service-proxy-name"
_HEADLESS_LABEL: Final = "service.kubernetes.io/headless"
_SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
_ONLY_LOCAL: Final = "service.beta.kubernetes.io/external-traffic"
DEFAULT_AFFINITY_S: Final = 10800


class Key(NamedTuple):
    """A port of a service."""

    namespace: str
    service: str
    port: str

    def text(self, profile: Profile = "modern") -> str:
        """``ns/name:port``; an unnamed port has no colon, except in the 2017 profile."""
        colon = self.port or profile == "2017"
        return f"{self.namespace}/{self.service}{':' + self.port if colon else ''}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of one service; addresses as text, ``affinity_s`` is 0 without affinity."""

    key: Key
    protocol: str
    cluster_ip: str
    port: int
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[Prefix, ...] = ()
    external_local: bool = False
    internal_local: bool = False
    affinity_s: int = 0
    health_check_node_port: int = 0

    @property
    def is_externally_accessible(self) -> bool:
        """True if it has any address besides the cluster IP."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def uses_cluster_endpoints(self) -> bool:
        """External Local services need them too: for traffic from this node and its pods."""
        return not self.internal_local or self.is_externally_accessible

    @property
    def uses_local_endpoints(self) -> bool:
        """True if a Local policy applies to some of its traffic."""
        return self.internal_local or (self.external_local and self.is_externally_accessible)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address behind a service port."""

    ip: str
    port: int
    is_local: bool = False
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}"


def _ipv4(values: Iterable[Any]) -> tuple[str, ...]:
    found: list[str] = []
    for value in values:
        try:
            parse_ip(str(value))
        except UsageError:
            continue
        found.append(str(value))
    return tuple(found)


def _prefixes(values: Iterable[Any]) -> tuple[Prefix, ...]:
    found: list[Prefix] = []
    for value in values:
        try:
            # Blanks around a range are an old mistake that the API server let through.
            found.append(Prefix.parse(str(value).strip(), strict=False))
        except UsageError:
            continue
    return tuple(found)


def read_service(service: Object) -> list[ServicePort]:
    """The ports of a Service object; none for headless, ExternalName and foreign ones."""
    metadata, spec = service["metadata"], service.get("spec") or {}
    labels = metadata.get("labels") or {}
    if _PROXY_NAME_LABEL in labels or _HEADLESS_LABEL in labels:
        return []
    if spec.get("type") == "ExternalName" or not _ipv4([spec.get("clusterIP")]):
        return []
    is_balanced = spec.get("type") == "LoadBalancer"
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    annotations = metadata.get("annotations") or {}
    external_local = (
        spec.get("externalTrafficPolicy") == "Local" or annotations.get(_ONLY_LOCAL) == "OnlyLocal"
    )
    affinity_s = 0
    if spec.get("sessionAffinity") == "ClientIP":
        client_ip = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
        affinity_s = int(client_ip.get("timeoutSeconds") or DEFAULT_AFFINITY_S)
    return [
        ServicePort(
            key=Key(metadata.get("namespace", ""), metadata["name"], port.get("name") or ""),
            protocol=(port.get("protocol") or "TCP").lower(),
            cluster_ip=spec["clusterIP"],
            port=int(port["port"]),
            node_port=int(port.get("nodePort") or 0),
            external_ips=_ipv4(spec.get("externalIPs") or ()),
            load_balancer_ips=_ipv4(
                entry.get("ip", "") for entry in ingress if entry.get("ipMode", "VIP") == "VIP"
            ),
            source_ranges=_prefixes(spec.get("loadBalancerSourceRanges") or ()),
            external_local=external_local,
            internal_local=spec.get("internalTrafficPolicy") == "Local",
            affinity_s=affinity_s,
            health_check_node_port=(
                int(spec.get("healthCheckNodePort") or 0) if is_balanced and external_local else 0
            ),
        )
        for port in spec.get("ports") or ()
    ]


def read_slices(slices: Iterable[Object], node_name: str) -> dict[Key, list[Endpoint]]:
    """The endpoints of all EndpointSlices by service port, sorted by the text ``ip:port``.

    Slices of one service are merged in the order of their names; of two entries with one address
    the later one counts.
    """
    found: dict[Key, dict[tuple[str, int], Endpoint]] = {}
    for piece in sorted(slices, key=lambda piece: str(piece["metadata"].get("name"))):
        metadata = piece["metadata"]
        labels = metadata.get("labels") or {}
        service = labels.get(_SERVICE_NAME_LABEL)
        if not service or piece.get("addressType", "IPv4") != "IPv4" or _HEADLESS_LABEL in labels:
            continue
        for port in piece.get("ports") or ():
            number = port.get("port")
            if not number:
                continue
            key = Key(metadata.get("namespace", ""), service, port.get("name") or "")
            endpoints = found.setdefault(key, {})
            for entry in piece.get("endpoints") or ():
                endpoint = _read_endpoint(entry, int(number), node_name)
                if endpoint is not None:
                    endpoints[endpoint.ip, endpoint.port] = endpoint
    return {key: sorted(endpoints.values(), key=str) for key, endpoints in found.items()}


def _read_endpoint(entry: Object, port: int, node_name: str) -> Endpoint | None:
    addresses = entry.get("addresses") or ()
    if not addresses:
        return None
    conditions = entry.get("conditions") or {}
    # A missing condition means true for ready and what ready says for serving.
    ready = conditions.get("ready") is not False
    serving = conditions.get("serving")
    hints = entry.get("hints") or {}
    return Endpoint(
        # Only the first address is used: consumers may treat the rest as the same endpoint.
        ip=str(addresses[0]),
        port=port,
        is_local=bool(node_name) and entry.get("nodeName") == node_name,
        ready=ready,
        serving=ready if serving is None else bool(serving),
        terminating=bool(conditions.get("terminating")),
        zone_hints=tuple(str(zone.get("name")) for zone in hints.get("forZones") or ()),
        node_hints=tuple(str(node.get("name")) for node in hints.get("forNodes") or ()),
    )
