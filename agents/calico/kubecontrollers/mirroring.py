"""What the datastore must hold for namespaces, accounts, policies, pods and nodes; pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.calico.kubecontrollers.conversion import (
    ACCOUNT_PREFIX,
    NAMESPACE_PREFIX,
    POLICY_PREFIX,
    account_profile,
    endpoint_labels,
    namespace_profile,
    network_policy,
)
from agents.calico.resources import (
    KUBE_LABELS,
    labels_of,
    name_of,
    namespace_of,
    parse_key,
    remembered,
    resource_key,
    resource_prefix,
    spec_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agents.calico.datastore import KVPair
    from agents.calico.resources import Resource

    Object = dict[str, Any]

PREFIXES = tuple(
    resource_prefix(kind) for kind in ("Profile", "NetworkPolicy", "WorkloadEndpoint", "Node")
)
_PROFILES = (NAMESPACE_PREFIX, ACCOUNT_PREFIX)


class Cluster(NamedTuple):
    """Kubernetes as the API server shows it."""

    namespaces: tuple[Object, ...] = ()
    accounts: tuple[Object, ...] = ()
    policies: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()
    nodes: tuple[Object, ...] = ()


class Writes(NamedTuple):
    """What to change: resources to make, to write over (with their version), and to remove."""

    create: tuple[Resource, ...]
    update: tuple[Resource, ...]
    delete: tuple[Resource, ...]

    def __bool__(self) -> bool:
        return bool(self.create or self.update or self.delete)


def wanted(cluster: Cluster) -> dict[str, Resource]:
    """The resources that mirror a cluster, by key."""
    made: list[Resource] = [namespace_profile(each) for each in cluster.namespaces]
    made += [account_profile(each) for each in cluster.accounts]
    made += [network_policy(each) for each in cluster.policies]
    return {resource_key(each["kind"], name_of(each), namespace_of(each)): each for each in made}


def plan(cluster: Cluster, items: Mapping[str, KVPair]) -> Writes:
    """What differs between Kubernetes and the datastore's ``items`` under PREFIXES."""
    desired = wanted(cluster)
    create: list[Resource] = []
    update: list[Resource] = []
    for key, resource in desired.items():
        present = items.get(key)
        if present is None:
            create.append(resource)
        elif not _says(present.value, resource):
            update.append(_over(present, resource))
    delete = [
        _named(kvp) for key, kvp in sorted(items.items()) if key not in desired and _is_ours(key)
    ]
    update += _relabelled(cluster.pods, items)
    update += _relabelled_nodes(cluster.nodes, items)
    return Writes(tuple(create), tuple(update), tuple(delete))


def _is_ours(key: str) -> bool:
    identity = parse_key(key)
    if identity is None:
        return False
    if identity.kind == "Profile":
        return identity.name.startswith(_PROFILES)
    return identity.kind == "NetworkPolicy" and identity.name.startswith(POLICY_PREFIX)


def _says(stored: object, resource: Resource) -> bool:
    """True if a stored resource has everything the wanted one says; defaults may stand beside."""
    if not isinstance(stored, dict):
        return False
    spec = spec_of(stored)
    return all(spec.get(field) == value for field, value in resource["spec"].items()) and all(
        field in resource["spec"] or field in ("tier", "types") for field in spec
    )


def _over(present: KVPair, resource: Resource) -> Resource:
    """The wanted resource with the identity of the stored one."""
    meta = present.value.get("metadata") if isinstance(present.value, dict) else None
    kept = {
        field: meta[field] for field in ("uid", "creationTimestamp") if meta and meta.get(field)
    }
    version = {"resourceVersion": str(present.revision)}
    return {**resource, "metadata": {**resource["metadata"], **kept, **version}}


def _named(kvp: KVPair) -> Resource:
    identity = parse_key(kvp.key)
    assert identity is not None
    meta = {"name": identity.name, "resourceVersion": str(kvp.revision)}
    if identity.namespace:
        meta["namespace"] = identity.namespace
    return {"kind": identity.kind, "metadata": meta}


def _relabelled(pods: Iterable[Object], items: Mapping[str, KVPair]) -> list[Resource]:
    """WorkloadEndpoints whose pods have other labels by now."""
    endpoints: dict[tuple[str, str], KVPair] = {}
    for kvp in items.values():
        if isinstance(kvp.value, dict) and kvp.value.get("kind") == "WorkloadEndpoint":
            name = str(spec_of(kvp.value).get("pod") or "")
            endpoints[namespace_of(kvp.value), name] = kvp
    changed = []
    for pod in pods:
        meta = pod["metadata"]
        found = endpoints.get((meta["namespace"], meta["name"]))
        if found is None:
            continue
        labels = endpoint_labels(pod)
        if labels_of(found.value) != labels:
            metadata = {**found.value["metadata"], "labels": labels}
            metadata["resourceVersion"] = str(found.revision)
            changed.append({**found.value, "metadata": metadata})
    return changed


def _relabelled_nodes(nodes: Iterable[Object], items: Mapping[str, KVPair]) -> list[Resource]:
    """Calico's Nodes whose Kubernetes Nodes have other labels by now.

    Source: kube-controllers/pkg/controllers/node/labels_etcdv3.go.
    """
    kubernetes = {str(node["metadata"]["name"]): node for node in nodes}
    changed = []
    for kvp in items.values():
        if not isinstance(kvp.value, dict) or kvp.value.get("kind") != "Node":
            continue
        node = kubernetes.get(kubernetes_node(kvp.value))
        if node is None:
            continue
        metadata = kvp.value["metadata"]
        annotations = metadata.get("annotations") or {}
        given = {str(k): str(v) for k, v in (node["metadata"].get("labels") or {}).items()}
        earlier = _labels_in(annotations.get(KUBE_LABELS))
        labels = {k: v for k, v in labels_of(kvp.value).items() if k in given or k not in earlier}
        labels |= given
        text = remembered(given)
        if labels == labels_of(kvp.value) and annotations.get(KUBE_LABELS) == text:
            continue
        metadata = {
            **metadata,
            "labels": dict(sorted(labels.items())),
            "annotations": {**annotations, KUBE_LABELS: text},
            "resourceVersion": str(kvp.revision),
        }
        changed.append({**kvp.value, "metadata": metadata})
    return changed


def kubernetes_node(node: Resource) -> str:
    """The Kubernetes Node of a Calico Node, "" for one that never had any."""
    for reference in spec_of(node).get("orchRefs") or ():
        if reference.get("orchestrator") == "k8s":
            return str(reference.get("nodeName") or "")
    return ""


def _labels_in(text: object) -> dict[str, Any]:
    """The labels an annotation remembers; none if a person wrote something else there."""
    try:
        labels = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        labels = None
    return labels if isinstance(labels, dict) else {}
