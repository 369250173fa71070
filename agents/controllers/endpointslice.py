"""The EndpointSlices of a Service; a reconciler.

Source: k8s.io/endpointslice/reconciler.go.  Slices are kept apart by the ports their pods serve
(a named target port may differ between pods); a slice that need not change is not written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.controllers.actions import Action, Create, Delete, Patch, Plan, replacing
from agents.controllers.endpointset import (
    HEADLESS_LABEL,
    Backend,
    Port,
    backends,
    is_headless,
    wants_endpoints,
)
from emulator.apimachinery.names import generate_name
from emulator.kubeclient.meta import (
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
    uid_of,
)
from emulator.kubeclient.resource import ENDPOINTSLICES, SERVICES

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    Object = dict[str, Any]

# Endpoints in one slice; upstream's --max-endpoints-per-slice.
MAX_ENDPOINTS = 100
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
CONTROLLER = "endpointslice-controller.k8s.io"


def plan_slices(
    service: Object | None,
    pods: Iterable[Object],
    current: Sequence[Object],
    rng: random.Random,
) -> Plan:
    """Make ``current`` (the slices this controller manages) fit the Service and its pods."""
    alive = [piece for piece in current if not is_deleting(piece)]
    if service is None or is_deleting(service):
        return Plan()
    if not wants_endpoints(service):
        return Plan(tuple(_delete(piece) for piece in alive))
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    groups: dict[tuple[Port, ...], list[Backend]] = {}
    for backend in backends(service, pods):
        groups.setdefault(backend.ports, []).append(backend)
    by_ports: dict[tuple[Port, ...], list[Object]] = {}
    for piece in alive:
        by_ports.setdefault(_ports_of(piece), []).append(piece)
    actions: list[Action] = []
    spare: list[Object] = []
    for ports, pieces in by_ports.items():
        if ports not in groups:
            spare += pieces
    labels = _labels(service)
    for ports, found in groups.items():
        wanted = {b.uid: _endpoint(b, publish) for b in found}
        actions += _fill(service, ports, wanted, by_ports.get(ports, []), spare, labels, rng)
    if not groups:
        # A Service without pods keeps one empty slice, so that it can be told from one without
        # a controller.
        keep = spare.pop(0) if spare else None
        if keep is None:
            actions.append(Create(ENDPOINTSLICES, _slice(service, (), [], labels, rng)))
        elif keep.get("endpoints") or keep.get("ports") or dict(labels_of(keep)) != labels:
            actions.append(_change(keep, (), [], labels))
    # Deletions last: at no moment is an endpoint missing that was only moved.
    return Plan((*actions, *(_delete(piece) for piece in spare)))


def _fill(
    service: Object,
    ports: tuple[Port, ...],
    wanted: dict[str, Object],
    pieces: Sequence[Object],
    spare: list[Object],
    labels: dict[str, str],
    rng: random.Random,
) -> list[Action]:
    """Keep endpoints in the slices they are in, fill gaps, then reuse or make slices."""
    contents: list[tuple[Object, list[Object]]] = []
    left = dict(wanted)
    for piece in pieces:
        kept = [
            new
            for old in piece.get("endpoints") or ()
            if (new := left.pop(_uid(old), None)) is not None
        ]
        contents.append((piece, kept))
    rest = [*left.values()]
    actions: list[Action] = []
    for piece, kept in contents:
        room = MAX_ENDPOINTS - len(kept)
        kept += rest[:room]
        rest = rest[room:]
        if not kept:
            spare.append(piece)
        elif kept != (piece.get("endpoints") or []) or dict(labels_of(piece)) != labels:
            actions.append(_change(piece, ports, kept, labels))
    while rest:
        chunk, rest = rest[:MAX_ENDPOINTS], rest[MAX_ENDPOINTS:]
        if spare:
            actions.append(_change(spare.pop(0), ports, chunk, labels))
        else:
            actions.append(Create(ENDPOINTSLICES, _slice(service, ports, chunk, labels, rng)))
    return actions


def _endpoint(backend: Backend, publish: bool) -> Object:
    endpoint: Object = {
        "addresses": [backend.ip],
        "conditions": {
            "ready": publish or (backend.serving and not backend.terminating),
            "serving": backend.serving,
            "terminating": backend.terminating,
        },
        "targetRef": backend.target_ref(),
    }
    if backend.hostname:
        endpoint["hostname"] = backend.hostname
    if backend.node:
        endpoint["nodeName"] = backend.node
    return endpoint


def _labels(service: Object) -> dict[str, str]:
    labels = {k: v for k, v in labels_of(service).items() if k != HEADLESS_LABEL}
    labels |= {MANAGED_BY: CONTROLLER, SERVICE_NAME: name_of(service)}
    return labels | ({HEADLESS_LABEL: ""} if is_headless(service) else {})


def _slice(
    service: Object,
    ports: tuple[Port, ...],
    endpoints: list[Object],
    labels: dict[str, str],
    rng: random.Random,
) -> Object:
    return {
        "apiVersion": ENDPOINTSLICES.api_version,
        "kind": ENDPOINTSLICES.kind,
        "metadata": {
            "name": generate_name(f"{name_of(service)}-", rng),
            "generateName": f"{name_of(service)}-",
            "namespace": namespace_of(service),
            "labels": labels,
            "ownerReferences": [owner_reference(service, SERVICES)],
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [_port(port) for port in ports],
    }


def _change(
    piece: Object, ports: tuple[Port, ...], endpoints: list[Object], labels: dict[str, str]
) -> Patch:
    body: Object = {"endpoints": endpoints, "ports": [_port(port) for port in ports]}
    meta: Object = {}
    if version := piece["metadata"].get("resourceVersion"):
        meta["resourceVersion"] = version
    if dict(labels_of(piece)) != labels:
        meta["labels"] = replacing(labels_of(piece), labels)
    return Patch(ENDPOINTSLICES, namespace_of(piece), name_of(piece), body | {"metadata": meta})


def _delete(piece: Object) -> Delete:
    return Delete(ENDPOINTSLICES, namespace_of(piece), name_of(piece), uid_of(piece))


def _port(port: Port) -> Object:
    document: Object = {"name": port.name, "port": port.port, "protocol": port.protocol}
    return document | ({"appProtocol": port.app_protocol} if port.app_protocol else {})


def _ports_of(piece: Object) -> tuple[Port, ...]:
    return tuple(
        Port(
            port.get("name") or "",
            port.get("protocol") or "TCP",
            int(port.get("port") or 0),
            port.get("appProtocol") or "",
        )
        for port in piece.get("ports") or ()
    )


def _uid(endpoint: Object) -> str:
    uid: str = (endpoint.get("targetRef") or {}).get("uid", "")
    return uid
