"""Which UDP conntrack entries no longer lead to an endpoint; pure.

kubernetes, pkg/proxy/conntrack/cleanup.go (CleanStaleEntries).  TCP needs no such care: its
connections end, while a UDP client keeps its entry alive by sending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agents.kubeproxy.model import Endpoint, Key, ServicePort


class UdpFlow(NamedTuple):
    """A UDP entry: where the client sent to and who really answers; addresses as text."""

    dst: str
    dport: int
    reply_src: str


class UdpServices:
    """The UDP addresses of services that have endpoints, with the endpoints' addresses."""

    def __init__(
        self, services: Iterable[ServicePort], endpoints: Mapping[Key, Sequence[Endpoint]]
    ) -> None:
        self._by_address: dict[tuple[str, int], frozenset[str]] = {}
        self._by_node_port: dict[int, frozenset[str]] = {}
        for service in services:
            if service.protocol != "udp":
                continue
            serving = frozenset(e.ip for e in endpoints.get(service.key, ()) if e.serving)
            if not serving:
                # Its packets are rejected now; an entry would not be used.
                continue
            ips = (service.cluster_ip, *service.external_ips, *service.load_balancer_ips)
            for ip in ips:
                self._by_address[ip, service.port] = serving
            if service.node_port:
                self._by_node_port[service.node_port] = serving

    def __bool__(self) -> bool:
        return bool(self._by_address)

    def is_stale(self, flow: UdpFlow) -> bool:
        """True if the entry must go so that the client's next packet is balanced anew."""
        serving = self._by_address.get((flow.dst, flow.dport))
        if serving is None:
            serving = self._by_node_port.get(flow.dport)
        return serving is not None and flow.reply_src not in serving
