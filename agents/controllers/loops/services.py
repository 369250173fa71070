"""Loops of Endpoints and EndpointSlices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.controllers.endpoints import plan_endpoints
from agents.controllers.endpointslice import CONTROLLER, MANAGED_BY, SERVICE_NAME, plan_slices
from emulator.apimachinery.labels import from_map
from emulator.kubeclient.controller import Controller
from emulator.kubeclient.meta import annotations_of, key_of, labels_of, namespace_of
from emulator.kubeclient.resource import ENDPOINTS, ENDPOINTSLICES, PODS, SERVICES

if TYPE_CHECKING:
    from agents.controllers.shell import Shell

    Object = dict[str, Any]

WORKERS = 5
SERVICE_INDEX = "service"
# Endpoints objects once used as locks are nobody's endpoints.
LEADER = "control-plane.alpha.kubernetes.io/leader"


def by_service(piece: Object) -> tuple[str, ...]:
    """Index of the slices this controller manages: the Service's key."""
    found = labels_of(piece)
    if found.get(MANAGED_BY) != CONTROLLER or SERVICE_NAME not in found:
        return ()
    return (f"{namespace_of(piece)}/{found[SERVICE_NAME]}",)


class EndpointsLoop:
    """Keeps both forms of a Service's endpoints; one queue each, one look-up of services."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        informers = shell.informers
        self._services = informers.informer(SERVICES)
        self._pods = informers.informer(PODS)
        self._endpoints = informers.informer(ENDPOINTS)
        self._slices = informers.informer(ENDPOINTSLICES)
        self._slices.add_index(SERVICE_INDEX, by_service)
        log = shell.env.log
        self._plain = Controller("endpoints", self._reconcile_plain, workers=WORKERS, log=log)
        self._sliced = Controller("endpointslice", self._reconcile_slices, workers=WORKERS, log=log)
        shell.controllers += [self._plain, self._sliced]
        self._services.add_handler(self._on_service)
        self._pods.add_handler(self._on_pod)
        self._endpoints.add_handler(self._on_endpoints)
        self._slices.add_handler(self._on_slice)
        shell.after_sync.append(self._add_leftovers)

    def _add_leftovers(self) -> None:
        """Services may have gone while nobody looked; the API server keeps its own endpoints."""
        for obj in self._endpoints.lister.list():
            if key_of(obj) != "default/kubernetes" and LEADER not in annotations_of(obj):
                self._plain.queue.add(key_of(obj))

    def _add(self, key: str) -> None:
        self._sliced.queue.add(key)
        self._plain.queue.add(key)

    def _on_service(self, event: str, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        self._add(key_of(obj))

    def _on_pod(self, event: str, old: Object | None, new: Object | None) -> None:
        if old is not None and new is not None and _endpoint_part(old) == _endpoint_part(new):
            return
        obj = new if new is not None else old
        assert obj is not None
        for service in self._services.lister.list(namespace_of(obj)):
            wanted = service["spec"].get("selector")
            if wanted and any(
                pod is not None and wanted.items() <= labels_of(pod).items() for pod in (old, new)
            ):
                self._add(key_of(service))

    def _on_endpoints(self, event: str, old: Object | None, new: Object | None) -> None:
        """Someone's change is undone; Endpoints without a Service are left to who made them."""
        obj = new if new is not None else old
        assert obj is not None
        if new is None or self._services.lister.get_by_key(key_of(obj)) is not None:
            self._plain.queue.add(key_of(obj))

    def _on_slice(self, event: str, old: Object | None, new: Object | None) -> None:
        for piece in (old, new):
            if piece is not None:
                for key in by_service(piece):
                    self._sliced.queue.add(key)

    def _pods_of(self, service: Object | None) -> list[Object]:
        selector = (service or {}).get("spec", {}).get("selector")
        if service is None or not selector:
            return []
        return self._pods.lister.list(namespace_of(service), from_map(selector).matches)

    async def _reconcile_plain(self, key: str) -> float | None:
        service = self._services.lister.get_by_key(key)
        current = self._endpoints.lister.get_by_key(key)
        return await self._shell.carry_out(plan_endpoints(service, self._pods_of(service), current))

    async def _reconcile_slices(self, key: str) -> float | None:
        service = self._services.lister.get_by_key(key)
        current = self._slices.lister.by_index(SERVICE_INDEX, key)
        return await self._shell.carry_out(
            plan_slices(service, self._pods_of(service), current, self._shell.rng)
        )


def _endpoint_part(pod: Object) -> tuple[Any, ...]:
    """What of a pod endpoints depend on."""
    status, meta = pod.get("status") or {}, pod["metadata"]
    ready = [c.get("status") for c in status.get("conditions") or () if c.get("type") == "Ready"]
    return (
        status.get("podIP"),
        status.get("phase"),
        ready,
        meta.get("labels"),
        bool(meta.get("deletionTimestamp")),
        pod["spec"].get("nodeName"),
    )


def add_services(shell: Shell) -> None:
    """Append the loops to the shell's controllers."""
    EndpointsLoop(shell)
