"""Which endpoints of a service traffic may go to; pure (kubernetes, pkg/proxy/topology.go)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.kubeproxy.model import Endpoint, ServicePort


class Choice(NamedTuple):
    """``cluster`` and ``local`` by policy; ``reachable`` is what needs a chain on this node.

    ``any`` is True if some endpoint is usable on some node.
    """

    cluster: tuple[Endpoint, ...]
    local: tuple[Endpoint, ...]
    reachable: tuple[Endpoint, ...]
    any: bool


def choose(
    service: ServicePort, endpoints: Sequence[Endpoint], node_name: str, zone: str
) -> Choice:
    """Sort a service's endpoints into the sets its policies use.

    Ready endpoints are used; where a set has none, those that still serve while they terminate.
    Hints count only if every ready endpoint has one and one fits this node or zone.
    """
    ready = [endpoint for endpoint in endpoints if endpoint.ready]
    cluster: list[Endpoint] = []
    local: list[Endpoint] = []
    if service.uses_cluster_endpoints:
        cluster = _near(ready, node_name, zone) or _last_resort(endpoints)
    if service.uses_local_endpoints:
        here = [endpoint for endpoint in endpoints if endpoint.is_local]
        local = [endpoint for endpoint in here if endpoint.ready] or _last_resort(here)
    reachable = {str(endpoint): endpoint for endpoint in (*cluster, *local)}
    return Choice(
        tuple(cluster),
        tuple(local),
        tuple(reachable[text] for text in sorted(reachable)),
        bool(ready or _last_resort(endpoints)),
    )


def _last_resort(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    return [endpoint for endpoint in endpoints if endpoint.serving and endpoint.terminating]


def _near(ready: list[Endpoint], node_name: str, zone: str) -> list[Endpoint]:
    for hints_of, here in ((_node_hints, node_name), (_zone_hints, zone)):
        near = [endpoint for endpoint in ready if here and here in hints_of(endpoint)]
        if near and all(hints_of(endpoint) for endpoint in ready):
            return near
    return ready


def _node_hints(endpoint: Endpoint) -> tuple[str, ...]:
    return endpoint.node_hints


def _zone_hints(endpoint: Endpoint) -> tuple[str, ...]:
    return endpoint.zone_hints
