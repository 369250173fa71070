"""What a pod's status means to those who count pods; pure.

Source: k8s.io/kubernetes/pkg/api/v1/pod/util.go, pkg/controller/controller_utils.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulator.kubeclient.meta import annotations_of, is_deleting, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    Object = dict[str, Any]

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_PHASE_ORDER = {"Pending": 0, "Unknown": 1, "Running": 2}


def phase_of(pod: Mapping[str, Any]) -> str:
    """``status.phase``, Pending where none is said."""
    phase: str = (pod.get("status") or {}).get("phase") or "Pending"
    return phase


def is_finished(pod: Mapping[str, Any]) -> bool:
    """It ran and will not run again."""
    return phase_of(pod) in ("Succeeded", "Failed")


def is_active(pod: Mapping[str, Any]) -> bool:
    """It counts towards a controller's replicas."""
    return not is_finished(pod) and not is_deleting(pod)


def condition_of(obj: Mapping[str, Any], type_: str) -> Mapping[str, Any] | None:
    """The status condition of a type, None if it is not there."""
    for condition in (obj.get("status") or {}).get("conditions") or ():
        if condition.get("type") == type_:
            found: Mapping[str, Any] = condition
            return found
    return None


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Its Ready condition is True."""
    condition = condition_of(pod, "Ready")
    return condition is not None and condition.get("status") == "True"


def available_in_s(pod: Mapping[str, Any], min_ready_s: int, now: float) -> float | None:
    """0.0 if it is available, seconds until it will be if it stays ready, None if not ready."""
    condition = condition_of(pod, "Ready")
    if condition is None or condition.get("status") != "True":
        return None
    if not min_ready_s:
        return 0.0
    return max(0.0, parse_time(condition.get("lastTransitionTime")) + min_ready_s - now)


def deletion_order(pod: Mapping[str, Any], doubled_up: int) -> tuple[float | int, ...]:
    """Sort key: pods to be deleted first come first (ActivePodsWithRanks).

    ``doubled_up`` counts the related active pods on this pod's node.
    """
    condition = condition_of(pod, "Ready") or {}
    ready = condition.get("status") == "True"
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    restarts = max((status.get("restartCount", 0) for status in statuses), default=0)
    try:
        cost = int(annotations_of(pod).get(DELETION_COST, "0"))
    except ValueError:
        cost = 0
    return (
        1 if pod["spec"].get("nodeName") else 0,
        _PHASE_ORDER.get(phase_of(pod), 1),
        1 if ready else 0,
        cost,
        -doubled_up,
        -parse_time(condition.get("lastTransitionTime")) if ready else 0,
        -restarts,
        -parse_time(pod["metadata"].get("creationTimestamp")),
    )
