"""Reading and writing the metadata every object has; pure."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulator.kubeclient.resource import Resource

    Object = dict[str, Any]


def name_of(obj: Mapping[str, Any]) -> str:
    """``metadata.name``."""
    name: str = obj["metadata"]["name"]
    return name


def namespace_of(obj: Mapping[str, Any]) -> str:
    """``metadata.namespace``, empty for cluster-wide objects."""
    namespace: str = obj["metadata"].get("namespace", "")
    return namespace


def uid_of(obj: Mapping[str, Any]) -> str:
    """``metadata.uid``."""
    uid: str = obj["metadata"].get("uid", "")
    return uid


def resource_version(obj: Mapping[str, Any] | None) -> int:
    """``metadata.resourceVersion`` as a number, 0 where there is none.

    Versions of one collection are ordered: they are etcd revisions.
    """
    text = (obj or {}).get("metadata", {}).get("resourceVersion") or "0"
    return int(text) if text.isdigit() else 0


def labels_of(obj: Mapping[str, Any]) -> Mapping[str, str]:
    """``metadata.labels``, never None."""
    return obj["metadata"].get("labels") or {}


def annotations_of(obj: Mapping[str, Any]) -> Mapping[str, str]:
    """``metadata.annotations``, never None."""
    return obj["metadata"].get("annotations") or {}


def key_of(obj: Mapping[str, Any]) -> str:
    """``namespace/name``, or ``name`` for cluster-wide objects, as client-go's caches key."""
    return join_key(namespace_of(obj), name_of(obj))


def join_key(namespace: str, name: str) -> str:
    """The key of ``key_of`` from its parts."""
    return f"{namespace}/{name}" if namespace else name


def split_key(key: str) -> tuple[str, str]:
    """(namespace, name) of a key; the namespace of a cluster-wide object is empty."""
    namespace, slash, name = key.partition("/")
    return (namespace, name) if slash else ("", key)


def is_deleting(obj: Mapping[str, Any]) -> bool:
    """True once ``metadata.deletionTimestamp`` is set."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def controller_of(obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one owner reference with ``controller: true``, None if there is none."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            found: Mapping[str, Any] = owner
            return found
    return None


def owner_reference(owner: Mapping[str, Any], resource: Resource) -> Object:
    """A controller reference to ``owner``, blocking its foreground deletion."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": name_of(owner),
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def object_reference(obj: Mapping[str, Any], resource: Resource) -> Object:
    """An ObjectReference, as events and endpoints' targetRef carry."""
    reference: Object = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": name_of(obj),
        "uid": uid_of(obj),
    }
    if resource.namespaced:
        reference["namespace"] = namespace_of(obj)
    if version := obj["metadata"].get("resourceVersion"):
        reference["resourceVersion"] = version
    return reference


def parse_time(text: str | None) -> float:
    """Unix seconds of an RFC 3339 time or MicroTime; 0.0 for None, empty or malformed text."""
    if not text:
        return 0.0
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()


def format_time(unix_s: float) -> str:
    """RFC 3339 in whole seconds with ``Z``, as metav1.Time."""
    moment = datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(unix_s: float) -> str:
    """RFC 3339 with six decimals and ``Z``, as metav1.MicroTime."""
    moment = datetime.datetime.fromtimestamp(unix_s, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
