"""What an API server does with each kind: names, defaults, validation, generations, fields.

The equivalent of upstream's registry strategies (pkg/registry/*/strategy.go).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery import defaults
from emulator.apimachinery import validate_network as network
from emulator.apimachinery import validate_pods as pods
from emulator.apimachinery import validate_services as services
from emulator.apimachinery import validate_workloads as workloads
from emulator.apimachinery.names import (
    dns1035_label,
    dns1123_label,
    dns1123_subdomain,
    path_segment,
)
from emulator.apimachinery.objects import dig, name_of, namespace_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.apimachinery.fielderrors import FieldError
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import ResourceType


def _fine(_: Obj) -> list[FieldError]:
    return []


def _fine_update(_: Obj, __: Obj) -> list[FieldError]:
    return []


def _no_fields(_: Obj) -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """``default`` changes the object in place; ``validate`` sees it after that."""

    name_check: Callable[[str], list[str]] = dns1123_subdomain
    default: Callable[[Obj], None] = defaults.nothing
    validate: Callable[[Obj], list[FieldError]] = _fine
    validate_update: Callable[[Obj, Obj], list[FieldError]] = _fine_update
    generation: bool = False
    fields: Callable[[Obj], dict[str, str]] = _no_fields
    graceful: bool = False


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _pod_fields(obj: Obj) -> dict[str, str]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    return {
        "spec.nodeName": _text(spec.get("nodeName")),
        "spec.restartPolicy": _text(spec.get("restartPolicy")),
        "spec.schedulerName": _text(spec.get("schedulerName")),
        "spec.serviceAccountName": _text(spec.get("serviceAccountName")),
        "spec.hostNetwork": _text(bool(spec.get("hostNetwork"))),
        "status.phase": _text(status.get("phase")),
        "status.podIP": _text(status.get("podIP")),
        "status.podIPs": _text(status.get("podIP")),
        "status.nominatedNodeName": _text(status.get("nominatedNodeName")),
    }


def _node_fields(obj: Obj) -> dict[str, str]:
    return {"spec.unschedulable": _text(bool(dig(obj, "spec", "unschedulable")))}


def _namespace_fields(obj: Obj) -> dict[str, str]:
    return {"status.phase": _text(dig(obj, "status", "phase"))}


def _event_fields(obj: Obj) -> dict[str, str]:
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    out = {
        f"{prefix}.{name}": _text(about.get(name))
        for prefix in ("involvedObject", "regarding")
        for name in (
            "kind",
            "namespace",
            "name",
            "uid",
            "apiVersion",
            "resourceVersion",
            "fieldPath",
        )
    }
    controller = _text(obj.get("reportingComponent") or obj.get("reportingController"))
    out["reason"] = _text(obj.get("reason"))
    out["reportingComponent"] = out["reportingController"] = controller
    out["source"] = _text(source.get("component")) or controller
    out["type"] = _text(obj.get("type"))
    return out


def _secret_fields(obj: Obj) -> dict[str, str]:
    return {"type": _text(obj.get("type"))}


def _replica_fields(obj: Obj) -> dict[str, str]:
    return {"status.replicas": _text(dig(obj, "status", "replicas") or 0)}


def _job_fields(obj: Obj) -> dict[str, str]:
    return {"status.successful": _text(dig(obj, "status", "succeeded") or 0)}


def _service_fields(obj: Obj) -> dict[str, str]:
    return {
        "spec.clusterIP": _text(dig(obj, "spec", "clusterIP")),
        "spec.type": _text(dig(obj, "spec", "type")),
    }


_BEHAVIOURS: Final[dict[tuple[str, str], Behaviour]] = {
    ("", "pods"): Behaviour(
        default=defaults.pod,
        validate=pods.pod,
        validate_update=pods.pod_update,
        fields=_pod_fields,
        graceful=True,
    ),
    ("", "services"): Behaviour(
        name_check=dns1035_label,
        default=defaults.service,
        validate=services.service,
        validate_update=services.service_update,
        fields=_service_fields,
    ),
    ("", "nodes"): Behaviour(default=defaults.node, fields=_node_fields),
    ("", "namespaces"): Behaviour(
        name_check=dns1123_label, default=defaults.namespace, fields=_namespace_fields
    ),
    ("", "events"): Behaviour(fields=_event_fields),
    ("events.k8s.io", "events"): Behaviour(fields=_event_fields),
    ("", "endpoints"): Behaviour(default=defaults.endpoints),
    ("", "configmaps"): Behaviour(
        validate=workloads.config_data, validate_update=workloads.config_data_update
    ),
    ("", "secrets"): Behaviour(
        default=defaults.secret,
        validate=workloads.config_data,
        validate_update=workloads.secret_update,
        fields=_secret_fields,
    ),
    ("", "persistentvolumeclaims"): Behaviour(default=defaults.claim),
    ("", "persistentvolumes"): Behaviour(default=defaults.volume),
    ("", "replicationcontrollers"): Behaviour(
        default=defaults.replication_controller,
        validate=workloads.replication_controller,
        generation=True,
        fields=_replica_fields,
    ),
    ("apps", "deployments"): Behaviour(
        default=defaults.deployment,
        validate=workloads.deployment,
        validate_update=workloads.immutable_selector_update,
        generation=True,
    ),
    ("apps", "replicasets"): Behaviour(
        default=defaults.replica_set,
        validate=workloads.replica_set,
        validate_update=workloads.immutable_selector_update,
        generation=True,
        fields=_replica_fields,
    ),
    ("apps", "daemonsets"): Behaviour(
        default=defaults.daemon_set,
        validate=workloads.daemon_set,
        validate_update=workloads.immutable_selector_update,
        generation=True,
    ),
    ("apps", "statefulsets"): Behaviour(
        default=defaults.stateful_set,
        validate=workloads.stateful_set,
        validate_update=workloads.stateful_set_update,
        generation=True,
    ),
    ("batch", "jobs"): Behaviour(
        default=defaults.job,
        validate=workloads.job,
        validate_update=workloads.immutable_selector_update,
        generation=True,
        fields=_job_fields,
    ),
    ("batch", "cronjobs"): Behaviour(
        default=defaults.cron_job, validate=workloads.cron_job, generation=True
    ),
    ("autoscaling", "horizontalpodautoscalers"): Behaviour(default=defaults.autoscaler),
    ("discovery.k8s.io", "endpointslices"): Behaviour(
        default=defaults.endpoint_slice, validate=workloads.endpoint_slice, generation=True
    ),
    ("networking.k8s.io", "networkpolicies"): Behaviour(
        default=defaults.network_policy, validate=network.network_policy, generation=True
    ),
    ("networking.k8s.io", "ingresses"): Behaviour(generation=True),
    ("networking.k8s.io", "ingressclasses"): Behaviour(generation=True),
    ("policy", "poddisruptionbudgets"): Behaviour(generation=True),
    ("apiextensions.k8s.io", "customresourcedefinitions"): Behaviour(
        default=defaults.definition, validate=workloads.definition, generation=True
    ),
    ("storage.k8s.io", "storageclasses"): Behaviour(default=defaults.storage_class),
    ("scheduling.k8s.io", "priorityclasses"): Behaviour(
        default=defaults.priority_class, generation=True
    ),
    ("rbac.authorization.k8s.io", "roles"): Behaviour(name_check=path_segment),
    ("rbac.authorization.k8s.io", "clusterroles"): Behaviour(name_check=path_segment),
    ("rbac.authorization.k8s.io", "rolebindings"): Behaviour(
        name_check=path_segment, default=defaults.role_binding
    ),
    ("rbac.authorization.k8s.io", "clusterrolebindings"): Behaviour(
        name_check=path_segment, default=defaults.role_binding
    ),
}
_PLAIN: Final = Behaviour()
_CUSTOM: Final = Behaviour(generation=True)


def behaviour_of(resource: ResourceType) -> Behaviour:
    """The behaviour of a resource; plain storage where nothing special is known."""
    known = _BEHAVIOURS.get((resource.group, resource.plural))
    if known is None:
        return _PLAIN if resource.schema else _CUSTOM
    return known


def selectable_fields(resource: ResourceType, obj: Obj) -> dict[str, str]:
    """The fields a field selector may name, with this object's values."""
    out = {"metadata.name": name_of(obj)}
    if resource.namespaced:
        out["metadata.namespace"] = namespace_of(obj)
    out.update(behaviour_of(resource).fields(obj))
    return out
