"""What a new cluster has from the start: namespaces and the ``kubernetes`` Service."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Any, Final

from agents.apiserver import crds
from emulator.apimachinery.status import StatusError

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from agents.apiserver.objects import Objects
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import Registry

NAMESPACES: Final = ("default", "kube-system", "kube-public", "kube-node-lease")
# kubernetesservice controller interval.
PERIOD_S: Final = 10.0
_LABELS: Final = {"component": "apiserver", "provider": "kubernetes"}


async def run(
    objects: Objects,
    registry: Registry,
    *,
    service_ip: str,
    advertise_ip: str,
    advertise_port: int,
    definitions: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Create what is missing, correct the endpoints, end what waits; safe to repeat."""
    await objects.end_definitions()
    for definition in definitions:
        group, _, version = definition["apiVersion"].partition("/")
        await _ensure(objects, registry, group, version, crds.DIRECTORY, "", dict(definition))
    for name in NAMESPACES:
        await _ensure(objects, registry, "", "v1", "namespaces", "", {"metadata": {"name": name}})
    ipaddress.ip_address(advertise_ip)
    await _ensure(
        objects,
        registry,
        "",
        "v1",
        "services",
        "default",
        {
            "metadata": {"name": "kubernetes", "labels": dict(_LABELS)},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": service_ip,
                "clusterIPs": [service_ip],
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "sessionAffinity": "None",
                "ports": [
                    {"name": "https", "protocol": "TCP", "port": 443, "targetPort": advertise_port}
                ],
            },
        },
    )
    mark = {"endpointslice.kubernetes.io/skip-mirror": "true"}
    subsets = [
        {
            "addresses": [{"ip": advertise_ip}],
            "ports": [{"name": "https", "port": advertise_port, "protocol": "TCP"}],
        }
    ]
    await _ensure(
        objects, registry, "", "v1", "endpoints", "default",
        {"metadata": {"name": "kubernetes", "labels": mark}, "subsets": subsets},
        own=("subsets",),
    )  # fmt: skip
    await _ensure(
        objects,
        registry,
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "default",
        {
            "metadata": {
                "name": "kubernetes",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [advertise_ip], "conditions": {"ready": True}}],
            "ports": [{"name": "https", "port": advertise_port, "protocol": "TCP"}],
        },
        own=("endpoints", "ports"),
    )


async def keep(once: Callable[[], Awaitable[None]], log: logging.Logger) -> None:
    """Make again what somebody deleted, as the real server's controller does, until cancelled."""
    while True:
        await asyncio.sleep(PERIOD_S)
        try:
            await once()
        except StatusError as error:
            log.warning("cannot keep the kubernetes service: %s; trying again", error)


async def _ensure(
    objects: Objects,
    registry: Registry,
    group: str,
    version: str,
    plural: str,
    namespace: str,
    obj: Obj,
    own: tuple[str, ...] = (),
) -> None:
    resource = registry.get(group, version, plural)
    name = obj["metadata"]["name"]
    if objects.peek(resource, namespace, name) is None:
        try:
            await objects.create(resource, dict(obj), namespace)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                raise
        return
    if own:

        def correct(old: Obj) -> Obj:
            for key in own:
                old[key] = obj[key]
            return old

        await objects.modify(resource, namespace, name, correct)
