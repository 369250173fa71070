"""Which nodes can take a pod, and in what words the others cannot; pure.

Source: k8s.io/kubernetes/pkg/scheduler/framework/plugins; the texts are those of 1.32.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from emulator.kubeclient.placement import (
    UNSCHEDULABLE,
    matches_node_affinity,
    tolerates,
    untolerated_taint,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.scheduler.cluster import HostPort, NodeInfo, PodInfo

_UNSCHEDULABLE_TAINT = {"key": UNSCHEDULABLE, "effect": "NoSchedule"}


def reasons_against(pod: PodInfo, info: NodeInfo) -> list[str]:
    """Why this node cannot take the pod, empty if it can; the first failing filter speaks."""
    node = info.node
    if node is None:
        return ["node(s) had unknown state"]
    tolerations = pod.spec.get("tolerations") or ()
    if (node.get("spec") or {}).get("unschedulable") and not any(
        tolerates(toleration, _UNSCHEDULABLE_TAINT) for toleration in tolerations
    ):
        return ["node(s) were unschedulable"]
    wanted = pod.spec.get("nodeName")
    if wanted and wanted != info.name:
        return ["node(s) didn't match the requested node name"]
    taint = untolerated_taint(tolerations, (node.get("spec") or {}).get("taints") or ())
    if taint is not None:
        return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value') or ''}}}"]
    if not matches_node_affinity(pod.spec, node):
        return ["node(s) didn't match Pod's node affinity/selector"]
    if pod.host_ports and _ports_taken(pod.host_ports, info):
        return ["node(s) didn't have free ports for the requested pod ports"]
    return _missing_resources(pod, info)


def _ports_taken(wanted: Sequence[HostPort], info: NodeInfo) -> bool:
    taken = [port for pod in info.pods.values() for port in pod.host_ports]
    return any(
        (port.protocol, port.port) == (other.protocol, other.port)
        and (not port.ip or not other.ip or port.ip == other.ip)
        for port in wanted
        for other in taken
    )


def _missing_resources(pod: PodInfo, info: NodeInfo) -> list[str]:
    reasons = []
    if len(info.pods) + 1 > info.allocatable["pods"]:
        reasons.append("Too many pods")
    for name, amount in pod.requests.items():
        if amount > info.allocatable.get(name, 0) - info.requested[name]:
            reasons.append(f"Insufficient {name}")
    return reasons


def fit_error(total: int, reasons: Sequence[Sequence[str]]) -> str:
    """The FailedScheduling text for the reasons of each node (framework.FitError)."""
    if not total:
        return "no nodes available to schedule pods"
    counts = Counter(reason for of_node in reasons for reason in of_node)
    parts = sorted(f"{count} {reason}" for reason, count in counts.items())
    text = f"0/{total} nodes are available: {', '.join(parts)}."
    # Nothing in such a pod's way goes away by evicting others, except a lack of resources.
    preventable = sum(
        all(r.startswith("Insufficient") or r == "Too many pods" for r in of_node)
        for of_node in reasons
    )
    victims = []
    if total - preventable:
        victims.append(f"{total - preventable} Preemption is not helpful for scheduling")
    if preventable:
        victims.append(f"{preventable} No preemption victims found for incoming pod")
    ordered = ", ".join(sorted(victims))
    return f"{text} preemption: 0/{total} nodes are available: {ordered}."
