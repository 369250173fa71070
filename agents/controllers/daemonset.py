"""DaemonSet: one pod on each node that can have it; a reconciler.

Source: k8s.io/kubernetes/pkg/controller/daemon (daemon_controller.go, update.go).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.controllers.actions import Action, Create, Delete, Patch, soonest
from agents.controllers.podstate import available_in_s, is_active, is_ready, phase_of
from agents.controllers.rollout import scaled_value
from agents.controllers.template import normal, pod_from_template, template_hash
from emulator.kubeclient.meta import (
    annotations_of,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
    parse_time,
    uid_of,
)
from emulator.kubeclient.placement import (
    DISK_PRESSURE,
    MEMORY_PRESSURE,
    NETWORK_UNAVAILABLE,
    NOT_READY,
    PID_PRESSURE,
    UNREACHABLE,
    UNSCHEDULABLE,
    matches_node_affinity,
    untolerated_taint,
)
from emulator.kubeclient.resource import CONTROLLERREVISIONS, DAEMONSETS

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    Object = dict[str, Any]

REVISION_HASH = "controller-revision-hash"
GENERATION = "deprecated.daemonset.template.generation"


class DaemonPlan(NamedTuple):
    """Nodes that lack their pod, and pods that are too many, failed or out of date."""

    create_on: tuple[str, ...]
    delete: tuple[Object, ...]
    failed: tuple[Object, ...]
    """Those of ``delete`` that had failed: an event says so."""


def daemon_tolerations(spec: Mapping[str, Any]) -> list[Object]:
    """What daemon pods tolerate without being told (AddOrUpdateDaemonPodTolerations)."""
    extra = [
        {"key": NOT_READY, "operator": "Exists", "effect": "NoExecute"},
        {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"},
        {"key": DISK_PRESSURE, "operator": "Exists", "effect": "NoSchedule"},
        {"key": MEMORY_PRESSURE, "operator": "Exists", "effect": "NoSchedule"},
        {"key": PID_PRESSURE, "operator": "Exists", "effect": "NoSchedule"},
        {"key": UNSCHEDULABLE, "operator": "Exists", "effect": "NoSchedule"},
    ]
    if spec.get("hostNetwork"):
        extra.append({"key": NETWORK_UNAVAILABLE, "operator": "Exists", "effect": "NoSchedule"})
    own = [dict(t) for t in spec.get("tolerations") or ()]
    return own + [t for t in extra if t not in own]


def daemon_pod(ds: Object, node: str, hash_: str, rng: random.Random) -> Object:
    """A pod for one node; the scheduler binds it by the node's name."""
    pod = pod_from_template(ds, DAEMONSETS, ds["spec"].get("template") or {}, rng)
    pod["metadata"]["labels"] |= {
        REVISION_HASH: hash_,
        "pod-template-generation": annotations_of(ds).get(GENERATION, "1"),
    }
    spec = pod["spec"]
    spec["tolerations"] = daemon_tolerations(spec)
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
        "nodeSelectorTerms": [{"matchFields": [field]}]
    }
    return pod


def target_node(pod: Mapping[str, Any]) -> str:
    """The node a daemon pod is on or is meant for."""
    name = pod["spec"].get("nodeName")
    if name:
        return str(name)
    required = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    for term in required.get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def eligible(ds: Mapping[str, Any], node: Mapping[str, Any]) -> tuple[bool, bool]:
    """(should a pod be started there, may one that is there go on)."""
    spec = (ds["spec"].get("template") or {}).get("spec") or {}
    if spec.get("nodeName") not in (None, "", name_of(node)):
        return False, False
    if not matches_node_affinity(spec, node):
        return False, False
    tolerations = daemon_tolerations(spec)
    taints = (node.get("spec") or {}).get("taints") or ()
    stay = untolerated_taint(tolerations, taints, ("NoExecute",)) is None
    return stay and untolerated_taint(tolerations, taints) is None, stay


def plan_daemons(
    ds: Object, nodes: Sequence[Object], pods: Sequence[Object], hash_: str, now: float
) -> DaemonPlan:
    """Compare nodes and pods; a rolling update replaces old pods within maxUnavailable."""
    by_node: dict[str, list[Object]] = {}
    for pod in pods:
        by_node.setdefault(target_node(pod), []).append(pod)
    create: list[str] = []
    delete: list[Object] = []
    failed: list[Object] = []
    kept: dict[str, Object] = {}
    wanted = 0
    for node in nodes:
        start, stay = eligible(ds, node)
        wanted += start
        here = [pod for pod in by_node.pop(name_of(node), []) if not is_deleting(pod)]
        broken = [pod for pod in here if phase_of(pod) in ("Failed", "Succeeded")]
        good = [pod for pod in here if is_active(pod)]
        failed += broken
        delete += broken
        if not start and not stay:
            delete += good
            continue
        good.sort(key=lambda p: (not p["spec"].get("nodeName"), _created(p), name_of(p)))
        delete += good[1:]
        if good:
            kept[name_of(node)] = good[0]
        elif start and not broken and not _is_going(pods, name_of(node)):
            create.append(name_of(node))
    for left in by_node.values():
        # Bound pods of a node that is gone are for the pod collector, who waits a little.
        delete += [p for p in left if not is_deleting(p) and not p["spec"].get("nodeName")]
    if not create:
        delete += _outdated(ds, kept, wanted, hash_, now)
    return DaemonPlan(tuple(create), tuple(delete), tuple(failed))


def _is_going(pods: Sequence[Object], node: str) -> bool:
    """A pod of the node is still being deleted: its successor waits."""
    return any(is_deleting(pod) and target_node(pod) == node for pod in pods)


def _outdated(
    ds: Object, kept: Mapping[str, Object], wanted: int, hash_: str, now: float
) -> list[Object]:
    strategy = ds["spec"].get("updateStrategy") or {}
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return []
    value = (strategy.get("rollingUpdate") or {}).get("maxUnavailable", 1)
    budget = max(1, scaled_value(value, wanted, round_up=True))
    min_ready = int(ds["spec"].get("minReadySeconds") or 0)
    unavailable = [p for p in kept.values() if available_in_s(p, min_ready, now) != 0.0]
    old = [p for p in kept.values() if labels_of(p).get(REVISION_HASH) != hash_]
    broken = [p for p in old if p in unavailable]
    spare = max(0, budget - len(unavailable) - (wanted - len(kept)))
    return broken + [p for p in old if p not in unavailable][:spare]


def daemonset_status(
    ds: Object, nodes: Sequence[Object], pods: Sequence[Object], hash_: str, now: float
) -> tuple[Object, float | None]:
    """The status, and when minReadySeconds will change it."""
    by_node: dict[str, Object] = {}
    for pod in sorted(pods, key=_created, reverse=True):
        if is_active(pod):
            by_node[target_node(pod)] = pod
    min_ready = int(ds["spec"].get("minReadySeconds") or 0)
    desired = current = misscheduled = ready = updated = available = 0
    waits: list[float | None] = []
    for node in nodes:
        start, _ = eligible(ds, node)
        pod_here = by_node.get(name_of(node))
        desired += start
        if pod_here is None:
            continue
        if not start:
            misscheduled += 1
            continue
        current += 1
        ready += is_ready(pod_here)
        wait = available_in_s(pod_here, min_ready, now)
        available += wait == 0.0
        waits.append(wait or None)
        updated += labels_of(pod_here).get(REVISION_HASH) == hash_
    status: Object = {
        "currentNumberScheduled": current,
        "numberMisscheduled": misscheduled,
        "desiredNumberScheduled": desired,
        "numberReady": ready,
        "observedGeneration": ds["metadata"].get("generation", 0),
    }
    counts = {
        "updatedNumberScheduled": updated,
        "numberAvailable": available,
        "numberUnavailable": desired - available,
    }
    return status | {k: v for k, v in counts.items() if v}, soonest(*waits)


def revision_actions(
    ds: Object, revisions: Sequence[Object], pods: Sequence[Object], hash_: str
) -> list[Action]:
    """Keep one ControllerRevision per template (for ``rollout history`` and ``undo``)."""
    ordered = sorted(revisions, key=lambda r: int(r.get("revision") or 0))
    newest = int(ordered[-1].get("revision") or 0) if ordered else 0
    actions: list[Action] = []
    current = next((r for r in ordered if labels_of(r).get(REVISION_HASH) == hash_), None)
    if current is None:
        actions.append(Create(CONTROLLERREVISIONS, _revision(ds, hash_, newest + 1)))
    elif current is not ordered[-1]:
        body = {"revision": newest + 1}
        actions.append(Patch(CONTROLLERREVISIONS, namespace_of(ds), name_of(current), body))
    limit = ds["spec"].get("revisionHistoryLimit")
    keep = 10 if limit is None else int(limit)
    live = {labels_of(pod).get(REVISION_HASH) for pod in pods} | {hash_}
    idle = [r for r in ordered if labels_of(r).get(REVISION_HASH) not in live]
    for revision in idle[: max(0, len(idle) - keep)]:
        name = name_of(revision)
        actions.append(Delete(CONTROLLERREVISIONS, namespace_of(ds), name, uid_of(revision)))
    return actions


def daemon_hash(ds: Object) -> str:
    """The value of ``controller-revision-hash``."""
    count = (ds.get("status") or {}).get("collisionCount")
    return template_hash(ds["spec"].get("template") or {}, count)


def _revision(ds: Object, hash_: str, number: int) -> Object:
    template = copy.deepcopy(normal(ds["spec"].get("template") or {}))
    labels = dict((template.get("metadata") or {}).get("labels") or {})
    annotations = {
        k: v
        for k, v in annotations_of(ds).items()
        if k != "kubectl.kubernetes.io/last-applied-configuration"
    }
    return {
        "apiVersion": CONTROLLERREVISIONS.api_version,
        "kind": CONTROLLERREVISIONS.kind,
        "metadata": {
            "name": f"{name_of(ds)}-{hash_}",
            "namespace": namespace_of(ds),
            "labels": {**labels, REVISION_HASH: hash_},
            "annotations": annotations,
            "ownerReferences": [owner_reference(ds, DAEMONSETS)],
        },
        "data": {"spec": {"template": {**template, "$patch": "replace"}}},
        "revision": number,
    }


def _created(pod: Mapping[str, Any]) -> float:
    return parse_time(pod["metadata"].get("creationTimestamp"))
