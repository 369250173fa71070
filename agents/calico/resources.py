"""The v3 resources of the datastore: kinds, keys, and their form as dicts (pure).

A resource is what ``calicoctl get -o yaml`` shows, as plain data:
``{"kind", "apiVersion": "projectcalico.org/v3", "metadata": {…}, "spec": {…}}``.
Source: projectcalico/calico libcalico-go/lib/backend/model/resource.go, lib/names.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agents.calico.errors import ErroredField, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.calico.datastore import KVPair

Resource = dict[str, Any]

API_VERSION: Final = "projectcalico.org/v3"
ROOT: Final = "/calico/resources/v3/projectcalico.org/"
# On Calico's Node: the labels of Kubernetes' Node it was given last, so that those taken away there
# can be told from those a person gave it by calicoctl.
KUBE_LABELS: Final = "projectcalico.org/kube-labels"


class Kind(NamedTuple):
    """One kind of resource; ``aliases`` are what calicoctl takes beside name and plural."""

    name: str
    plural: str
    namespaced: bool = False
    aliases: tuple[str, ...] = ()


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("IPPool", "ippools", aliases=("ipp", "ipps", "pool", "pools")),
        Kind("Node", "nodes", aliases=("no", "nos")),
        Kind("BGPPeer", "bgppeers", aliases=("bgpp", "bgpps", "bp", "bps")),
        Kind("BGPConfiguration", "bgpconfigurations", aliases=("bgpconfig", "bgpconfigs")),
        Kind("BGPFilter", "bgpfilters"),
        Kind("FelixConfiguration", "felixconfigurations", aliases=("felixconfig", "felixconfigs")),
        Kind("ClusterInformation", "clusterinformations", aliases=("clusterinfo", "clusterinfos")),
        Kind("GlobalNetworkPolicy", "globalnetworkpolicies", aliases=("gnp", "gnps")),
        Kind("GlobalNetworkSet", "globalnetworksets", aliases=("gnetsets",)),
        Kind("HostEndpoint", "hostendpoints", aliases=("hep", "heps")),
        Kind("Profile", "profiles", aliases=("pro", "pros")),
        Kind("Tier", "tiers"),
        Kind("IPReservation", "ipreservations", aliases=("reservation", "reservations")),
        Kind("IPAMConfiguration", "ipamconfigurations", aliases=("ipamconfig", "ipamconfigs")),
        Kind(
            "KubeControllersConfiguration",
            "kubecontrollersconfigurations",
            aliases=("kubecontrollersconfig",),
        ),
        Kind(
            "WorkloadEndpoint",
            "workloadendpoints",
            namespaced=True,
            aliases=("wep", "weps"),
        ),
        Kind(
            "NetworkPolicy",
            "networkpolicies",
            namespaced=True,
            aliases=("np", "nps", "policy", "policies", "pol", "pols"),
        ),
        Kind("NetworkSet", "networksets", namespaced=True, aliases=("netset", "netsets")),
    )
}
# In the order Go's ObjectMeta declares them, which is the order of the stored JSON.
METADATA: Final = (
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
)


def kind_named(text: str) -> Kind | None:
    """The kind a person means by a name, plural or alias in any case; None if there is none."""
    wanted = text.lower()
    for kind in KINDS.values():
        if wanted in (kind.name.lower(), kind.plural, *kind.aliases):
            return kind
    return None


def resource_key(kind: str, name: str, namespace: str = "") -> str:
    """The etcd key of a resource."""
    if KINDS[kind].namespaced:
        return f"{ROOT}{KINDS[kind].plural}/{namespace}/{name}"
    return f"{ROOT}{KINDS[kind].plural}/{name}"


def resource_prefix(kind: str, namespace: str = "") -> str:
    """The etcd prefix of a kind's resources, of one namespace if given."""
    if namespace and KINDS[kind].namespaced:
        return f"{ROOT}{KINDS[kind].plural}/{namespace}/"
    return f"{ROOT}{KINDS[kind].plural}/"


class ResourceId(NamedTuple):
    """What a resource's key says."""

    kind: str
    name: str
    namespace: str = ""


def parse_key(key: str) -> ResourceId | None:
    """Read a resource's etcd key; None for any other key."""
    if not key.startswith(ROOT):
        return None
    plural, *rest = key[len(ROOT) :].split("/")
    for kind in KINDS.values():
        if kind.plural == plural:
            if kind.namespaced and len(rest) == 2:
                return ResourceId(kind.name, rest[1], rest[0])
            if not kind.namespaced and len(rest) == 1:
                return ResourceId(kind.name, rest[0])
    return None


def new_resource(
    kind: str,
    name: str,
    spec: dict[str, Any],
    *,
    namespace: str = "",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Resource:
    """A resource ready for ``create``."""
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = dict(sorted(labels.items()))
    if annotations:
        metadata["annotations"] = dict(sorted(annotations.items()))
    return {"kind": kind, "apiVersion": API_VERSION, "metadata": metadata, "spec": spec}


def name_of(resource: Resource) -> str:
    """``metadata.name``."""
    return str(resource["metadata"]["name"])


def namespace_of(resource: Resource) -> str:
    """``metadata.namespace``, "" for what has none."""
    return str(resource["metadata"].get("namespace") or "")


def labels_of(resource: Resource) -> dict[str, str]:
    """``metadata.labels``."""
    labels = resource["metadata"].get("labels")
    return labels if isinstance(labels, dict) else {}


def remembered(labels: Mapping[str, str]) -> str:
    """What ``KUBE_LABELS`` says of a Kubernetes Node's labels."""
    return json.dumps(labels, sort_keys=True, separators=(",", ":"))


def spec_of(resource: Resource) -> dict[str, Any]:
    """``spec``, empty if the resource has none."""
    spec = resource.get("spec")
    return spec if isinstance(spec, dict) else {}


def key_of_resource(resource: Resource) -> str:
    """The etcd key of a resource; ValidationError for an unknown kind or a missing name."""
    kind = str(resource.get("kind", ""))
    if kind not in KINDS:
        raise ValidationError(ErroredField("Kind", "unknown resource type", kind))
    metadata = resource.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("name"):
        raise ValidationError(ErroredField("Metadata.Name", "field must be set", ""))
    if KINDS[kind].namespaced and not metadata.get("namespace"):
        raise ValidationError(
            ErroredField("Metadata.Namespace", "namespace is not specified on namespaced resource")
        )
    return resource_key(kind, str(metadata["name"]), str(metadata.get("namespace") or ""))


def to_stored(resource: Resource) -> Resource:
    """The value etcd holds: no resourceVersion, fields in the order of the Go structs."""
    metadata = resource["metadata"]
    ordered = {
        key: metadata[key]
        for key in METADATA
        if metadata.get(key) not in (None, "", {}, []) and key != "resourceVersion"
    }
    ordered.setdefault("creationTimestamp", None)
    for key in ("labels", "annotations"):
        if key in ordered:
            ordered[key] = dict(sorted(ordered[key].items()))
    stored: Resource = {
        "kind": resource["kind"],
        "apiVersion": API_VERSION,
        "metadata": ordered,
        "spec": resource.get("spec") or {},
    }
    if resource.get("status"):
        stored["status"] = resource["status"]
    return stored


def from_stored(kvp: KVPair) -> Resource | None:
    """A resource of its own with ``metadata.resourceVersion``; None if the value is none."""
    if not isinstance(kvp.value, dict) or not isinstance(kvp.value.get("metadata"), dict):
        return None
    resource: Resource = copy.deepcopy(kvp.value)
    resource["metadata"]["resourceVersion"] = str(kvp.revision)
    return resource


# Names of workload endpoints -----------------------------------------------------------------


def endpoint_name(node: str, orchestrator: str, workload: str, interface: str = "eth0") -> str:
    """The name of a WorkloadEndpoint: its parts joined by "-", their own dashes doubled."""
    parts = (node, orchestrator, workload, interface)
    return "-".join(part.replace("-", "--") for part in parts)
