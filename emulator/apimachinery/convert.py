"""Conversion between versions of the kinds that are served in two (only Event)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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


def to_storage(resource: ResourceType, obj: Obj) -> Obj:
    """The version kept in etcd of an object sent as ``resource``."""
    if resource.group == "events.k8s.io":
        out = {_BACK.get(k, k): v for k, v in obj.items()}
        out["apiVersion"] = "v1"
        return out
    return obj


def from_storage(resource: ResourceType, obj: Obj) -> Obj:
    """What a client of ``resource`` sees of an object kept in etcd."""
    if resource.group == "events.k8s.io":
        out = {_EVENT_FIELDS.get(k, k): v for k, v in obj.items()}
        out["apiVersion"] = resource.group_version
        return out
    if obj.get("apiVersion") != resource.group_version:
        return {**obj, "apiVersion": resource.group_version}
    return obj
