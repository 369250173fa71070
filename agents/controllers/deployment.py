"""Deployment: which ReplicaSets, and how large each; a reconciler.

Source: k8s.io/kubernetes/pkg/controller/deployment (sync.go, rolling.go, recreate.go).
One pass decides one step; its effect comes back as events and leads to the next.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.controllers.actions import Action, Create, Delete, Emit, Patch, Plan
from agents.controllers.deploymentstatus import deployment_status, resume_or_pause
from agents.controllers.podstate import is_finished
from agents.controllers.replicaset import replicas_of
from agents.controllers.rollout import Size, fenceposts, new_size, proportional, shrink_old
from agents.controllers.template import HASH_LABEL, normal, template_hash
from emulator.kubeclient.meta import (
    annotations_of,
    is_deleting,
    name_of,
    namespace_of,
    object_reference,
    owner_reference,
    parse_time,
    uid_of,
)
from emulator.kubeclient.resource import DEPLOYMENTS, REPLICASETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Object = dict[str, Any]

COMPONENT = "deployment-controller"
REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAX = "deployment.kubernetes.io/max-replicas"
# Annotations of a Deployment that its ReplicaSets do not inherit.
_NOT_COPIED = frozenset(
    (
        "kubectl.kubernetes.io/last-applied-configuration",
        REVISION,
        REVISION_HISTORY,
        DESIRED,
        MAX,
        "deprecated.deployment.rollback.to",
    )
)
# Joined old revisions kept in an annotation; upstream bounds it at 2000 bytes.
MAX_HISTORY_BYTES = 2000


class _View(NamedTuple):
    deployment: Object
    new: Object | None
    old: tuple[Object, ...]
    """Oldest first."""

    @property
    def all(self) -> tuple[Object, ...]:
        return self.old if self.new is None else (*self.old, self.new)

    @property
    def wanted(self) -> int:
        return replicas_of(self.deployment)


def plan_deployment(
    deployment: Object,
    replicasets: Sequence[Object],
    pods: Mapping[str, Sequence[Object]],
    now: float,
) -> Plan:
    """The next step of a Deployment that owns ``replicasets``.

    ``pods`` are the pods of each ReplicaSet by its uid (only Recreate looks at them).
    """
    view = _look(deployment, replicasets)
    if is_deleting(deployment):
        return _finish(view, [], now)
    paused = bool(deployment["spec"].get("paused"))
    if (patch := resume_or_pause(deployment, now)) is not None:
        return Plan((patch,))
    if paused:
        actions = _annotate_new(view) or _scale_all(view)
        if not actions:
            actions = _clean_up(view)
        return _finish(view, actions, now)
    if _is_scaling(view) and (actions := _annotate_new(view) or _scale_all(view)):
        return _finish(view, actions, now)
    strategy = (deployment["spec"].get("strategy") or {}).get("type", "RollingUpdate")
    actions = _recreate(view, pods) if strategy == "Recreate" else _roll(view)
    if not actions:
        actions = _clean_up(view)
    return _finish(view, actions, now)


def _look(deployment: Object, replicasets: Sequence[Object]) -> _View:
    ordered = sorted(
        replicasets,
        key=lambda rs: (parse_time(rs["metadata"].get("creationTimestamp")), name_of(rs)),
    )
    wanted = normal(deployment["spec"]["template"])
    new = next((rs for rs in ordered if normal(rs["spec"]["template"]) == wanted), None)
    return _View(deployment, new, tuple(rs for rs in ordered if rs is not new))


def _finish(view: _View, actions: Sequence[Action], now: float) -> Plan:
    status = deployment_status(view.deployment, view.all, view.new, now)
    return Plan((*actions, *status.actions), status.again_s)


# Strategies


def _roll(view: _View) -> list[Action]:
    surge, unavailable = fenceposts(view.deployment, view.wanted)
    if actions := _annotate_new(view):
        return actions
    total = sum(replicas_of(rs) for rs in view.all)
    if view.new is None:
        return _create_new(view, new_size(view.wanted, surge, 0, total))
    size = new_size(view.wanted, surge, replicas_of(view.new), total)
    if size != replicas_of(view.new):
        return _scale(view, view.new, size)
    sizes = shrink_old(view.wanted, unavailable, _size(view.new), [_size(rs) for rs in view.old])
    actions = []
    for rs, target in zip(view.old, sizes, strict=True):
        if target != replicas_of(rs):
            actions += _scale(view, rs, target)
    return actions


def _recreate(view: _View, pods: Mapping[str, Sequence[Object]]) -> list[Action]:
    if actions := _annotate_new(view):
        return actions
    actions = []
    for rs in view.old:
        if replicas_of(rs):
            actions += _scale(view, rs, 0)
    if actions:
        return actions
    if any(not is_finished(pod) for rs in view.old for pod in pods.get(uid_of(rs), ())):
        return []
    if view.new is None:
        return _create_new(view, view.wanted)
    if replicas_of(view.new) != view.wanted:
        return _scale(view, view.new, view.wanted)
    return []


def _is_scaling(view: _View) -> bool:
    """A size was asked for that some active ReplicaSet does not know of yet (isScalingEvent)."""
    return any(
        replicas_of(rs) and _number(rs, DESIRED) not in (None, view.wanted) for rs in view.all
    )


def _scale_all(view: _View) -> list[Action]:
    """Follow a changed size without moving the rollout on (sync.go, scale)."""
    active = [rs for rs in view.all if replicas_of(rs)]
    latest = active[-1:] if active else [view.all[-1]] if view.all else []
    if len(active) <= 1:
        only = latest[0] if latest else None
        return [] if only is None else _scale(view, only, view.wanted)
    actions: list[Action] = []
    if view.new is not None and _is_saturated(view):
        for rs in view.old:
            if replicas_of(rs):
                actions += _scale(view, rs, 0)
        return actions
    strategy = (view.deployment["spec"].get("strategy") or {}).get("type", "RollingUpdate")
    if strategy != "RollingUpdate":
        return []
    surge, _ = fenceposts(view.deployment, view.wanted)
    growing = view.wanted + surge > sum(replicas_of(rs) for rs in active)
    # active is oldest first; sorting is stable, so ties keep newer (or older) first.
    ordered = sorted(reversed(active) if growing else active, key=replicas_of, reverse=True)
    status_replicas = int((view.deployment.get("status") or {}).get("replicas") or 0)
    sizes = proportional(view.wanted, surge, status_replicas, [_size(rs) for rs in ordered])
    for rs, size in zip(ordered, sizes, strict=True):
        actions += _scale(view, rs, size)
    return actions


def _is_saturated(view: _View) -> bool:
    new = view.new
    return (
        new is not None
        and replicas_of(new) == view.wanted
        and _number(new, DESIRED) == view.wanted
        and _size(new).available == view.wanted
    )


def _clean_up(view: _View) -> list[Action]:
    """Forget old revisions beyond the limit once the rollout is complete (cleanupDeployment)."""
    status = view.deployment.get("status") or {}
    if view.new is None or int(status.get("updatedReplicas") or 0) != view.wanted:
        return []
    limit = view.deployment["spec"].get("revisionHistoryLimit")
    keep = 10 if limit is None else int(limit)
    idle = [rs for rs in view.old if not is_deleting(rs)]
    idle.sort(key=lambda rs: _number(rs, REVISION) or 0)
    actions: list[Action] = []
    for rs in idle[: max(0, len(idle) - keep)]:
        observed = rs.get("status") or {}
        busy = replicas_of(rs) or observed.get("replicas")
        stale = rs["metadata"].get("generation", 0) > observed.get("observedGeneration", 0)
        if not busy and not stale:
            actions.append(Delete(REPLICASETS, namespace_of(rs), name_of(rs), uid_of(rs)))
    return actions


# Steps


def _create_new(view: _View, replicas: int) -> list[Action]:
    deployment = view.deployment
    rs = new_replicaset(deployment, replicas, _next_revision(view))
    created: list[Action] = [Create(REPLICASETS, rs)]
    if replicas:
        message = f"Scaled up replica set {name_of(rs)} from 0 to {replicas}"
        created.append(_say(deployment, message))
    if annotations_of(deployment).get(REVISION) != annotations_of(rs)[REVISION]:
        created.append(_mark(DEPLOYMENTS, deployment, {REVISION: annotations_of(rs)[REVISION]}))
    return created


def new_replicaset(deployment: Object, replicas: int, revision: int) -> Object:
    """The ReplicaSet for the Deployment's template, named by its hash."""
    spec = deployment["spec"]
    collisions = (deployment.get("status") or {}).get("collisionCount")
    hash_ = template_hash(spec["template"], collisions)
    template = copy.deepcopy(spec["template"])
    labels = template.setdefault("metadata", {}).setdefault("labels", {})
    labels[HASH_LABEL] = hash_
    selector = copy.deepcopy(spec["selector"])
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), HASH_LABEL: hash_}
    surge, _ = fenceposts(deployment, replicas_of(deployment))
    annotations = _inherited(deployment) | {
        DESIRED: str(replicas_of(deployment)),
        MAX: str(replicas_of(deployment) + surge),
        REVISION: str(revision),
    }
    rs_spec: Object = {"replicas": replicas, "selector": selector, "template": template}
    if spec.get("minReadySeconds"):
        rs_spec["minReadySeconds"] = spec["minReadySeconds"]
    return {
        "apiVersion": REPLICASETS.api_version,
        "kind": REPLICASETS.kind,
        "metadata": {
            "name": f"{name_of(deployment)}-{hash_}",
            "namespace": namespace_of(deployment),
            "labels": dict(labels),
            "annotations": annotations,
            "ownerReferences": [owner_reference(deployment, DEPLOYMENTS)],
        },
        "spec": rs_spec,
    }


def _annotate_new(view: _View) -> list[Action]:
    """Bring the new ReplicaSet's marks up to date; a template come back is the newest revision."""
    new, deployment = view.new, view.deployment
    if new is None:
        return []
    have = annotations_of(new)
    wanted = {k: v for k, v in _inherited(deployment).items() if have.get(k) != v}
    revision = _next_revision(view)
    old_revision = _number(new, REVISION) or 0
    if old_revision < revision:
        wanted[REVISION] = str(revision)
        if old_revision:
            history = [*filter(None, have.get(REVISION_HISTORY, "").split(",")), str(old_revision)]
            while len(",".join(history)) > MAX_HISTORY_BYTES:
                del history[0]
            wanted[REVISION_HISTORY] = ",".join(history)
    actions: list[Action] = []
    body: Object = {"metadata": {"annotations": wanted}} if wanted else {}
    min_ready = deployment["spec"].get("minReadySeconds") or None
    if (new["spec"].get("minReadySeconds") or None) != min_ready:
        body["spec"] = {"minReadySeconds": min_ready}
    if body:
        actions.append(Patch(REPLICASETS, namespace_of(new), name_of(new), body))
    shown = wanted.get(REVISION) or have.get(REVISION, "")
    if shown and annotations_of(deployment).get(REVISION) != shown:
        actions.append(_mark(DEPLOYMENTS, deployment, {REVISION: shown}))
    return actions


def _scale(view: _View, rs: Object, replicas: int) -> list[Action]:
    """Change a ReplicaSet's size and its marks; nothing if both are right."""
    surge, _ = fenceposts(view.deployment, view.wanted)
    marks = {DESIRED: str(view.wanted), MAX: str(view.wanted + surge)}
    now = replicas_of(rs)
    if now == replicas and marks.items() <= annotations_of(rs).items():
        return []
    body = {
        "metadata": {"annotations": marks, "resourceVersion": rs["metadata"]["resourceVersion"]},
        "spec": {"replicas": replicas},
    }
    actions: list[Action] = [Patch(REPLICASETS, namespace_of(rs), name_of(rs), body)]
    if now != replicas:
        direction = "up" if replicas > now else "down"
        message = f"Scaled {direction} replica set {name_of(rs)} from {now} to {replicas}"
        actions.append(_say(view.deployment, message))
    return actions


def _next_revision(view: _View) -> int:
    return max((_number(rs, REVISION) or 0 for rs in view.old), default=0) + 1


def _inherited(deployment: Object) -> dict[str, str]:
    return {k: v for k, v in annotations_of(deployment).items() if k not in _NOT_COPIED}


def _number(obj: Object, annotation: str) -> int | None:
    try:
        return int(annotations_of(obj)[annotation])
    except (KeyError, ValueError):
        return None


def _size(rs: Object) -> Size:
    available = int((rs.get("status") or {}).get("availableReplicas") or 0)
    return Size(replicas_of(rs), available, _number(rs, MAX) or 0)


def _say(deployment: Object, message: str) -> Emit:
    reference = object_reference(deployment, DEPLOYMENTS)
    return Emit(reference, "Normal", "ScalingReplicaSet", message, COMPONENT)


def _mark(resource: Any, obj: Object, annotations: dict[str, str]) -> Patch:
    return Patch(
        resource, namespace_of(obj), name_of(obj), {"metadata": {"annotations": annotations}}
    )
