"""Where a pod may run: taints, tolerations, node selectors and affinity; pure.

Source: k8s.io/component-helpers/scheduling/corev1 (helpers.go, nodeaffinity).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulator.kubeclient.meta import labels_of, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Object = dict[str, Any]

NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
MEMORY_PRESSURE = "node.kubernetes.io/memory-pressure"
DISK_PRESSURE = "node.kubernetes.io/disk-pressure"
PID_PRESSURE = "node.kubernetes.io/pid-pressure"
NETWORK_UNAVAILABLE = "node.kubernetes.io/network-unavailable"


def tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """Whether one toleration covers one taint (ToleratesTaint)."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    match toleration.get("operator") or "Equal":
        case "Exists":
            return True
        case "Equal":
            return bool(toleration.get("key")) and (toleration.get("value") or "") == (
                taint.get("value") or ""
            )
        case _:
            return False


def untolerated_taint(
    tolerations: Sequence[Mapping[str, Any]],
    taints: Iterable[Mapping[str, Any]],
    effects: tuple[str, ...] = ("NoSchedule", "NoExecute"),
) -> Mapping[str, Any] | None:
    """The first taint of these effects that nothing tolerates, None if there is none."""
    for taint in taints:
        if taint.get("effect") in effects and not any(
            tolerates(toleration, taint) for toleration in tolerations
        ):
            return taint
    return None


def matches_node_affinity(pod_spec: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    """``nodeSelector`` and the required node affinity, both."""
    selector = pod_spec.get("nodeSelector")
    if selector and not selector.items() <= labels_of(node).items():
        return False
    required = ((pod_spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if not required:
        return True
    # Terms are alternatives; an empty term matches nothing.
    return any(matches_term(term, node) for term in required.get("nodeSelectorTerms") or ())


def matches_term(term: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    """One node selector term: all its expressions over labels and fields."""
    expressions = term.get("matchExpressions") or ()
    fields = term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(_requirement(e, labels_of(node)) for e in expressions) and all(
        _requirement(f, {"metadata.name": name_of(node)}) for f in fields
    )


def _requirement(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression.get("key", ""))
    values = expression.get("values") or []
    match expression.get("operator"):
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value is None or value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            return _compare(value, operator, values)
        case _:
            return False


def _compare(value: str | None, operator: str, values: Sequence[str]) -> bool:
    try:
        left, right = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return left > right if operator == "Gt" else left < right
