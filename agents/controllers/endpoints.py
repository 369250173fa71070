"""The Endpoints object of a Service; a reconciler.

Source: k8s.io/kubernetes/pkg/controller/endpoint/endpoints_controller.go and
pkg/api/v1/endpoints/util.go (RepackSubsets).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.controllers.actions import Create, Delete, Patch, Plan, replacing
from agents.controllers.endpointset import (
    HEADLESS_LABEL,
    Backend,
    Port,
    backends,
    is_headless,
    wants_endpoints,
)
from emulator.kubeclient.meta import annotations_of, labels_of, name_of, namespace_of
from emulator.kubeclient.resource import ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    Object = dict[str, Any]

# Addresses one Endpoints object carries (maxCapacity); EndpointSlices carry them all.
MAX_ADDRESSES = 1000
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"


def plan_endpoints(service: Object | None, pods: Iterable[Object], current: Object | None) -> Plan:
    """Make ``current`` fit the Service and its pods; None where the object does not exist.

    Endpoints of a Service without a selector belong to whoever made them.
    """
    if service is None:
        if current is None:
            return Plan()
        return Plan((Delete(ENDPOINTS, namespace_of(current), name_of(current)),))
    if not wants_endpoints(service):
        return Plan()
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    chosen = [b for b in backends(service, pods) if publish or not b.terminating]
    truncated = len(chosen) > MAX_ADDRESSES
    if truncated:
        chosen = sorted(chosen, key=lambda b: not b.serving)[:MAX_ADDRESSES]
    labels = dict(labels_of(service))
    if is_headless(service):
        labels[HEADLESS_LABEL] = ""
    annotations = {OVER_CAPACITY: "truncated"} if truncated else {}
    subsets = endpoint_subsets(service, chosen, publish=publish)
    if current is None:
        metadata: Object = {
            "name": name_of(service),
            "namespace": namespace_of(service),
            "labels": labels,
        }
        if annotations:
            metadata["annotations"] = annotations
        obj = {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata}
        return Plan((Create(ENDPOINTS, obj | ({"subsets": subsets} if subsets else {})),))
    body: Object = {}
    if (current.get("subsets") or []) != subsets:
        body["subsets"] = subsets or None
    if dict(labels_of(current)) != labels:
        body.setdefault("metadata", {})["labels"] = replacing(labels_of(current), labels)
    if annotations_of(current).get(OVER_CAPACITY) != annotations.get(OVER_CAPACITY):
        marks = {OVER_CAPACITY: annotations.get(OVER_CAPACITY)}
        body.setdefault("metadata", {})["annotations"] = marks
    if not body:
        return Plan()
    return Plan((Patch(ENDPOINTS, namespace_of(current), name_of(current), body),))


def endpoint_subsets(service: Object, chosen: list[Backend], *, publish: bool) -> list[Object]:
    """Subsets with each port listed once: ports that share all their addresses share a subset."""
    by_port: dict[Port | None, list[Backend]] = {}
    without_ports = not service["spec"].get("ports")
    for backend in chosen:
        for port in (None,) if without_ports else backend.ports:
            by_port.setdefault(port, []).append(backend)
    by_addresses: dict[tuple[Backend, ...], list[Port]] = {}
    for port, found in by_port.items():
        ports = by_addresses.setdefault(tuple(found), [])
        if port is not None:
            ports.append(port)
    subsets = [_subset(found, ports, publish) for found, ports in by_addresses.items()]
    return sorted(subsets, key=lambda subset: str(subset.get("ports")))


def _subset(found: tuple[Backend, ...], ports: list[Port], publish: bool) -> Object:
    subset: Object = {}
    ready = [_address(b) for b in found if b.serving or publish]
    not_ready = [_address(b) for b in found if not (b.serving or publish)]
    if ready:
        subset["addresses"] = ready
    if not_ready:
        subset["notReadyAddresses"] = not_ready
    if ports:
        subset["ports"] = [_port(port) for port in sorted(ports)]
    return subset


def _address(backend: Backend) -> Object:
    address: Object = {"ip": backend.ip}
    if backend.hostname:
        address["hostname"] = backend.hostname
    if backend.node:
        address["nodeName"] = backend.node
    return address | {"targetRef": backend.target_ref()}


def _port(port: Port) -> Object:
    document: Object = {"name": port.name} if port.name else {}
    document |= {"port": port.port, "protocol": port.protocol}
    return document | ({"appProtocol": port.app_protocol} if port.app_protocol else {})
