"""Which pods stand behind a Service, and on which ports; pure.

Source: k8s.io/endpointslice/util and k8s.io/kubernetes/pkg/controller/endpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agents.controllers.podstate import is_finished, is_ready
from emulator.kubeclient.meta import is_deleting, name_of, namespace_of, uid_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Object = dict[str, Any]

HEADLESS_LABEL = "service.kubernetes.io/headless"


class Port(NamedTuple):
    """A Service port as a pod serves it; ``name`` may be empty."""

    name: str
    protocol: str
    port: int
    app_protocol: str = ""


class Backend(NamedTuple):
    """One pod behind a Service."""

    ip: str
    node: str
    namespace: str
    name: str
    uid: str
    serving: bool
    """The pod is ready."""
    terminating: bool
    hostname: str
    ports: tuple[Port, ...]

    def target_ref(self) -> Object:
        """The reference endpoints carry."""
        return {"kind": "Pod", "namespace": self.namespace, "name": self.name, "uid": self.uid}


def wants_endpoints(service: Mapping[str, Any]) -> bool:
    """It has a selector and is not just a DNS alias."""
    spec = service["spec"]
    return bool(spec.get("selector")) and spec.get("type") != "ExternalName"


def is_headless(service: Mapping[str, Any]) -> bool:
    """``clusterIP: None``."""
    return bool(service["spec"].get("clusterIP") == "None")


def backends(service: Mapping[str, Any], pods: Iterable[Object]) -> list[Backend]:
    """The pods of a Service that have an address and have not finished, sorted by address."""
    found = []
    for pod in pods:
        status = pod.get("status") or {}
        ip = status.get("podIP")
        if not ip or is_finished(pod):
            continue
        spec = pod["spec"]
        own_name = spec.get("hostname") if spec.get("subdomain") == name_of(service) else None
        found.append(
            Backend(
                ip=ip,
                node=spec.get("nodeName", ""),
                namespace=namespace_of(pod),
                name=name_of(pod),
                uid=uid_of(pod),
                serving=is_ready(pod),
                terminating=is_deleting(pod),
                hostname=own_name or "",
                ports=_ports(service, pod),
            )
        )
    return sorted(found, key=lambda b: ([part.zfill(3) for part in b.ip.split(".")], b.uid))


def _ports(service: Mapping[str, Any], pod: Mapping[str, Any]) -> tuple[Port, ...]:
    found = []
    for port in service["spec"].get("ports") or ():
        protocol = port.get("protocol") or "TCP"
        number = _target_port(port, protocol, pod)
        if number:
            app = port.get("appProtocol") or ""
            found.append(Port(port.get("name") or "", protocol, number, app))
    return tuple(found)


def _target_port(port: Mapping[str, Any], protocol: str, pod: Mapping[str, Any]) -> int:
    """The number a target port has in this pod; 0 if the pod has no port of that name."""
    target = port.get("targetPort")
    if target in (None, 0, ""):
        target = port["port"]
    if isinstance(target, int):
        return target
    for container in pod["spec"].get("containers") or ():
        for declared in container.get("ports") or ():
            if (declared.get("name"), declared.get("protocol") or "TCP") == (target, protocol):
                return int(declared["containerPort"])
    return 0
