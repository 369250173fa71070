"""A Deployment's status and conditions; pure.

Source: k8s.io/kubernetes/pkg/controller/deployment (sync.go calculateStatus, progress.go).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.controllers.actions import Patch, Plan, replacing
from agents.controllers.podstate import condition_of
from agents.controllers.replicaset import replicas_of
from agents.controllers.rollout import fenceposts
from emulator.kubeclient.meta import format_time, name_of, namespace_of, parse_time
from emulator.kubeclient.resource import DEPLOYMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Object = dict[str, Any]
    Conditions = dict[str, Object]

# progressDeadlineSeconds at its maximum means: no deadline.
NO_DEADLINE_S = 2**31 - 1


def deployment_status(
    deployment: Object, replicasets: Sequence[Object], new: Object | None, now: float
) -> Plan:
    """A patch of the status if it changed, and when the progress deadline must be looked at."""
    old_status: Object = deployment.get("status") or {}
    counts = _counts(deployment, replicasets, new)
    conditions: Conditions = {c["type"]: c for c in old_status.get("conditions") or ()}
    _set_available(conditions, deployment, counts, now)
    again_s = _set_progress(conditions, deployment, counts, new, now)
    _set_failure(conditions, replicasets, new, now)
    status: Object = {"observedGeneration": deployment["metadata"].get("generation", 0)}
    # Go's omitempty: a zero is not written.
    status |= {name: count for name, count in counts.items() if count}
    if "collisionCount" in old_status:
        status["collisionCount"] = old_status["collisionCount"]
    status["conditions"] = [*conditions.values()]
    if status == old_status:
        return Plan((), again_s)
    return Plan((_patch(deployment, replacing(old_status, status)),), again_s)


def resume_or_pause(deployment: Object, now: float) -> Patch | None:
    """Note in the Progressing condition that the rollout was paused or resumed."""
    if deployment["spec"].get("progressDeadlineSeconds") in (None, NO_DEADLINE_S):
        return None
    status: Object = deployment.get("status") or {}
    conditions: Conditions = {c["type"]: c for c in status.get("conditions") or ()}
    known = conditions.get("Progressing")
    if known is not None and known.get("reason") == "ProgressDeadlineExceeded":
        return None
    was_paused = known is not None and known.get("reason") == "DeploymentPaused"
    paused = bool(deployment["spec"].get("paused"))
    if paused == was_paused:
        return None
    if paused:
        _set(conditions, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", now)
    else:
        _set(
            conditions, "Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed", now
        )
    return _patch(deployment, {"conditions": [*conditions.values()]})


def _counts(
    deployment: Object, replicasets: Sequence[Object], new: Object | None
) -> dict[str, int]:
    def total(field: str) -> int:
        return sum(int((rs.get("status") or {}).get(field) or 0) for rs in replicasets)

    asked = sum(replicas_of(rs) for rs in replicasets)
    available = total("availableReplicas")
    updated = int(((new or {}).get("status") or {}).get("replicas") or 0)
    return {
        "replicas": total("replicas"),
        "updatedReplicas": updated,
        "readyReplicas": total("readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(0, asked - available),
    }


def _set_available(
    conditions: Conditions, deployment: Object, counts: Mapping[str, int], now: float
) -> None:
    wanted = replicas_of(deployment)
    _, unavailable = fenceposts(deployment, wanted)
    if counts["availableReplicas"] >= wanted - unavailable:
        text = "Deployment has minimum availability."
        _set(conditions, "Available", "True", "MinimumReplicasAvailable", text, now)
    else:
        text = "Deployment does not have minimum availability."
        _set(conditions, "Available", "False", "MinimumReplicasUnavailable", text, now)


def _set_progress(
    conditions: Conditions,
    deployment: Object,
    counts: Mapping[str, int],
    new: Object | None,
    now: float,
) -> float | None:
    """Returns seconds until the progress deadline has to be checked."""
    deadline = deployment["spec"].get("progressDeadlineSeconds")
    if deadline in (None, NO_DEADLINE_S):
        conditions.pop("Progressing", None)
        return None
    if deployment["spec"].get("paused"):
        return None
    known = conditions.get("Progressing")
    reason = "" if known is None else known.get("reason", "")
    if counts["replicas"] == counts["updatedReplicas"] and reason == "NewReplicaSetAvailable":
        return None
    subject = f'Deployment "{name_of(deployment)}"'
    if new is not None:
        subject = f'ReplicaSet "{name_of(new)}"'
    wanted = replicas_of(deployment)
    if all(
        counts[field] == wanted for field in ("updatedReplicas", "replicas", "availableReplicas")
    ):
        text = f"{subject} has successfully progressed."
        _set(conditions, "Progressing", "True", "NewReplicaSetAvailable", text, now)
        return None
    if known is None or reason == "NewReplicaSetAvailable":
        # A rollout begins: the first, or one after another was complete.
        if new is None:
            return None
        text = f'Created new replica set "{name_of(new)}"'
        _set(conditions, "Progressing", "True", "NewReplicaSetCreated", text, now)
        return float(deadline)
    if _moved(deployment.get("status") or {}, counts):
        text = f"{subject} is progressing."
        moved = dict(known) if known["status"] == "True" else {}
        _set(conditions, "Progressing", "True", "ReplicaSetUpdated", text, now)
        condition = conditions["Progressing"]
        # Every move restarts the deadline, also one that changes nothing else.
        conditions["Progressing"] = {
            **condition,
            "message": text,
            "lastUpdateTime": format_time(now),
            "lastTransitionTime": moved.get("lastTransitionTime", condition["lastTransitionTime"]),
        }
        return float(deadline)
    if reason == "ProgressDeadlineExceeded":
        return None
    left_s = parse_time(known.get("lastUpdateTime")) + float(deadline) - now
    if left_s > 0:
        # Times are stored in whole seconds: one more makes sure that the next look is late enough.
        return left_s + 1
    text = f"{subject} has timed out progressing."
    _set(conditions, "Progressing", "False", "ProgressDeadlineExceeded", text, now)
    return None


def _moved(old: Mapping[str, Any], counts: Mapping[str, int]) -> bool:
    def before(field: str) -> int:
        return int(old.get(field) or 0)

    return (
        counts["updatedReplicas"] > before("updatedReplicas")
        or counts["replicas"] - counts["updatedReplicas"]
        < before("replicas") - before("updatedReplicas")
        or counts["readyReplicas"] > before("readyReplicas")
        or counts["availableReplicas"] > before("availableReplicas")
    )


def _set_failure(
    conditions: Conditions, replicasets: Sequence[Object], new: Object | None, now: float
) -> None:
    sources = [new] if new is not None else [*replicasets]
    failed = next((c for rs in sources if (c := condition_of(rs, "ReplicaFailure"))), None)
    if failed is None:
        conditions.pop("ReplicaFailure", None)
    else:
        text = failed.get("message", "")
        _set(conditions, "ReplicaFailure", "True", failed.get("reason", ""), text, now)


def _set(
    conditions: Conditions, type_: str, status: str, reason: str, message: str, now: float
) -> None:
    """Set a condition; the same status and reason changes nothing (SetDeploymentCondition)."""
    known = conditions.get(type_)
    if known is not None and (known.get("status"), known.get("reason")) == (status, reason):
        return
    at = format_time(now)
    kept = known is not None and known.get("status") == status
    conditions[type_] = {
        "type": type_,
        "status": status,
        "lastUpdateTime": at,
        "lastTransitionTime": known["lastTransitionTime"] if kept and known is not None else at,
        "reason": reason,
        "message": message,
    }


def _patch(deployment: Object, status: Object) -> Patch:
    return Patch(
        DEPLOYMENTS, namespace_of(deployment), name_of(deployment), {"status": status}, "status"
    )
