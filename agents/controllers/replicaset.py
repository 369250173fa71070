"""ReplicaSet: as many pods as it says; a reconciler.

Source: k8s.io/kubernetes/pkg/controller/replicaset.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.controllers.actions import soonest
from agents.controllers.podstate import (
    available_in_s,
    condition_of,
    deletion_order,
    is_active,
    is_ready,
)
from emulator.kubeclient.meta import format_time, labels_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Object = dict[str, Any]

# Pods created or deleted in one pass; the rest follow in the next.  Upstream BurstReplicas.
BURST_REPLICAS = 500


class ReplicaSetPlan(NamedTuple):
    """``create`` new pods, ``delete`` these."""

    create: int
    delete: tuple[Object, ...]


def replicas_of(obj: Mapping[str, Any]) -> int:
    """``spec.replicas``, 1 where it is not said."""
    replicas = obj["spec"].get("replicas")
    return 1 if replicas is None else int(replicas)


def plan_replicas(
    wanted: int, pods: Iterable[Object], related: Iterable[Object] = ()
) -> ReplicaSetPlan:
    """Difference between ``wanted`` and the active ones among ``pods``.

    ``related`` are all pods of the same application (those of every ReplicaSet of one
    Deployment): where several share a node, those go first.
    """
    active = [pod for pod in pods if is_active(pod)]
    difference = len(active) - wanted
    if difference <= 0:
        return ReplicaSetPlan(min(-difference, BURST_REPLICAS), ())
    on_node = Counter(pod["spec"].get("nodeName", "") for pod in related if is_active(pod))
    ordered = sorted(
        active, key=lambda pod: deletion_order(pod, on_node[pod["spec"].get("nodeName", "")])
    )
    return ReplicaSetPlan(0, tuple(ordered[: min(difference, BURST_REPLICAS)]))


def replicaset_status(
    rs: Mapping[str, Any], pods: Iterable[Object], failure: str, now: float
) -> tuple[Object, float | None]:
    """The status the pods give, and when it will change by itself (minReadySeconds).

    ``failure`` is the reason and message of a failed creation or deletion, ``reason: message``,
    empty if all went well.
    """
    template_labels = (rs["spec"].get("template") or {}).get("metadata", {}).get("labels") or {}
    min_ready_s = int(rs["spec"].get("minReadySeconds") or 0)
    active = [pod for pod in pods if is_active(pod)]
    waits = [available_in_s(pod, min_ready_s, now) for pod in active]
    counts = {
        "fullyLabeledReplicas": sum(
            template_labels.items() <= labels_of(pod).items() for pod in active
        ),
        "readyReplicas": sum(is_ready(pod) for pod in active),
        "availableReplicas": sum(wait == 0.0 for wait in waits),
    }
    status: Object = {"replicas": len(active)}
    # Go's omitempty: a zero is not written.
    status |= {name: count for name, count in counts.items() if count}
    status["observedGeneration"] = rs["metadata"].get("generation", 0)
    if failure:
        status["conditions"] = [_failure_condition(rs, failure, now)]
    return status, soonest(*(wait for wait in waits if wait))


def _failure_condition(rs: Mapping[str, Any], failure: str, now: float) -> Object:
    reason, _, message = failure.partition(": ")
    known = condition_of(rs, "ReplicaFailure")
    if known is not None and known.get("reason") == reason:
        return dict(known)
    return {
        "type": "ReplicaFailure",
        "status": "True",
        "lastTransitionTime": format_time(now),
        "reason": reason,
        "message": message,
    }
