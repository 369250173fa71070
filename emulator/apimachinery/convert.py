"""Conversion between versions of the kinds that are served in two.

Stored are core/v1 Events and autoscaling/v2 HorizontalPodAutoscalers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery.objects import dig, items

if TYPE_CHECKING:
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import ResourceType

# core/v1 name → events.k8s.io/v1 name
_EVENT_FIELDS: Final = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_BACK: Final = {new: old for old, new in _EVENT_FIELDS.items()}
_CPU_PERCENT: Final = "targetCPUUtilizationPercentage"
_CURRENT_PERCENT: Final = "currentCPUUtilizationPercentage"


def to_storage(resource: ResourceType, obj: Obj) -> Obj:
    """The version kept in etcd of an object sent as ``resource``."""
    match resource.group, resource.version:
        case "events.k8s.io", _:
            out = {_BACK.get(k, k): v for k, v in obj.items()}
            out["apiVersion"] = "v1"
            return out
        case "autoscaling", "v1":
            return _autoscaler_to_v2(obj)
    if resource.storage_version:
        return {**obj, "apiVersion": resource.storage_version}
    return obj


def from_storage(resource: ResourceType, obj: Obj) -> Obj:
    """What a client of ``resource`` sees of an object kept in etcd."""
    match resource.group, resource.version:
        case "events.k8s.io", _:
            out = {_EVENT_FIELDS.get(k, k): v for k, v in obj.items()}
            out["apiVersion"] = resource.group_version
            return out
        case "autoscaling", "v1":
            return _autoscaler_to_v1(obj)
    if obj.get("apiVersion") != resource.group_version:
        return {**obj, "apiVersion": resource.group_version}
    return obj


def _cpu(metric: Any, part: str) -> Any:
    """The utilisation of a CPU resource metric, None for other metrics."""
    if dig(metric, "resource", "name") != "cpu":
        return None
    return dig(metric, "resource", part, "averageUtilization")


def _autoscaler_to_v2(obj: Obj) -> Obj:
    out = {**obj, "apiVersion": "autoscaling/v2"}
    spec = dict(obj.get("spec") or {})
    percent = spec.pop(_CPU_PERCENT, None)
    if percent is not None:
        target = {"type": "Utilization", "averageUtilization": percent}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    out["spec"] = spec
    status = dict(obj.get("status") or {})
    current = status.pop(_CURRENT_PERCENT, None)
    if current is not None:
        value = {"averageUtilization": current}
        resource = {"name": "cpu", "current": value}
        status["currentMetrics"] = [{"type": "Resource", "resource": resource}]
    if "status" in obj:
        out["status"] = status
    return out


def _autoscaler_to_v1(obj: Obj) -> Obj:
    """Metrics other than CPU utilisation have no place in v1 and are not shown."""
    out = {**obj, "apiVersion": "autoscaling/v1"}
    spec = {k: v for k, v in (obj.get("spec") or {}).items() if k not in ("metrics", "behavior")}
    for metric in items(obj, "spec", "metrics"):
        percent = _cpu(metric, "target")
        if percent is not None:
            spec[_CPU_PERCENT] = percent
    out["spec"] = spec
    kept = ("observedGeneration", "lastScaleTime", "currentReplicas", "desiredReplicas")
    status = {k: v for k, v in (obj.get("status") or {}).items() if k in kept}
    for metric in items(obj, "status", "currentMetrics"):
        percent = _cpu(metric, "current")
        if percent is not None:
            status[_CURRENT_PERCENT] = percent
    if "status" in obj:
        out["status"] = status
    return out
