"""Which nodes are alive, and what follows for their conditions, taints and pods; pure.

Source: k8s.io/kubernetes/pkg/controller/nodelifecycle/node_lifecycle_controller.go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.controllers.actions import Action, Emit, Patch
from agents.controllers.podstate import condition_of, is_finished
from emulator.kubeclient.meta import (
    format_time,
    name_of,
    namespace_of,
    object_reference,
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
    tolerates,
)
from emulator.kubeclient.resource import NODES, PODS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Object = dict[str, Any]

COMPONENT = "node-controller"
# Conditions a kubelet posts; all become Unknown when it falls silent.
_POSTED = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")
_CONDITION_TAINTS = {
    "MemoryPressure": MEMORY_PRESSURE,
    "DiskPressure": DISK_PRESSURE,
    "PIDPressure": PID_PRESSURE,
    "NetworkUnavailable": NETWORK_UNAVAILABLE,
}
# Taint keys that are this controller's to set and to remove.
_OURS = frozenset((NOT_READY, UNREACHABLE, UNSCHEDULABLE, *_CONDITION_TAINTS.values()))


@dataclass(frozen=True, slots=True)
class NodeTimings:
    """Upstream's flags: --node-monitor-grace-period, --node-startup-grace-period and
    --node-eviction-rate (nodes a second that may get their NoExecute taint)."""

    monitor_grace_s: float = 50.0
    startup_grace_s: float = 60.0
    eviction_rate: float = 0.1
    secondary_eviction_rate: float = 0.01
    large_cluster_nodes: int = 50
    unhealthy_zone_share: float = 0.55


class Heartbeats:
    """When each node was last heard of, by this process' own clock (kubelets' may differ)."""

    def __init__(self, timings: NodeTimings) -> None:
        self._timings = timings
        # name -> (what the last heartbeat looked like, when it was seen)
        self._seen: dict[str, tuple[tuple[str, str], float]] = {}

    def observe(self, node: Mapping[str, Any], lease: Mapping[str, Any] | None, now: float) -> None:
        """Look at a node and its lease (kube-node-lease); a changed time is a heartbeat."""
        ready = condition_of(node, "Ready") or {}
        renewed = ((lease or {}).get("spec") or {}).get("renewTime") or ""
        # A condition that this controller wrote is no sign of life.
        if ready.get("reason") in ("NodeStatusUnknown", "NodeStatusNeverUpdated"):
            posted = self._seen.get(name_of(node), (("", ""), 0.0))[0][1]
        else:
            posted = ready.get("lastHeartbeatTime") or ""
        sign = (renewed, posted)
        known = self._seen.get(name_of(node))
        if known is None or known[0] != sign:
            self._seen[name_of(node)] = (sign, now)

    def forget(self, name: str) -> None:
        """The node is gone."""
        self._seen.pop(name, None)

    def left_s(self, node: Mapping[str, Any], now: float) -> float:
        """Seconds until the node counts as silent; 0 or less: it is."""
        known = self._seen.get(name_of(node))
        if known is None:
            return self._timings.monitor_grace_s
        never = condition_of(node, "Ready") is None
        grace = self._timings.startup_grace_s if never else self._timings.monitor_grace_s
        return known[1] + grace - now


def silence(node: Object, now: float) -> list[Action]:
    """Turn the conditions of a node that fell silent to Unknown; nothing if they are."""
    known = {c["type"]: c for c in (node.get("status") or {}).get("conditions") or ()}
    conditions = dict(known)
    at = format_time(now)
    for type_ in _POSTED:
        old = known.get(type_)
        if old is not None and old.get("status") == "Unknown":
            continue
        conditions[type_] = {
            "type": type_,
            "status": "Unknown",
            "reason": "NodeStatusUnknown" if old else "NodeStatusNeverUpdated",
            "message": (
                "Kubelet stopped posting node status."
                if old
                else "Kubelet never posted node status."
            ),
            "lastHeartbeatTime": (old or {}).get("lastHeartbeatTime")
            or node["metadata"].get("creationTimestamp")
            or at,
            "lastTransitionTime": at,
        }
    if conditions == known:
        return []
    body = {
        "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
        "status": {"conditions": [*conditions.values()]},
    }
    return [Patch(NODES, "", name_of(node), body, "status")]


def ready_status(node: Mapping[str, Any]) -> str:
    """``True``, ``False`` or ``Unknown``; a node that never said counts as Unknown."""
    condition = condition_of(node, "Ready")
    return "Unknown" if condition is None else str(condition.get("status"))


def taint_actions(
    node: Object, *, may_evict: bool, in_disruption: bool, now: float
) -> list[Action]:
    """Bring the taints that follow from conditions up to date.

    NoSchedule ones at once; the NoExecute one only with ``may_evict`` (one node at a time, see
    ``eviction_rate``), and none at all ``in_disruption``: when no node is heard of, the fault is
    more likely on this side.
    """
    current: list[Object] = (node.get("spec") or {}).get("taints") or []
    wanted = [t for t in current if t.get("key") not in _OURS]
    bad = {"False": NOT_READY, "Unknown": UNREACHABLE}.get(ready_status(node), "")
    never_posted = condition_of(node, "Ready") is None
    if never_posted:
        # A node that just registered is not ready rather than unreachable.
        bad = NOT_READY
    if bad:
        wanted.append(_kept(current, bad, "NoSchedule", now))
        has = any(t.get("key") == bad and t.get("effect") == "NoExecute" for t in current)
        if not in_disruption and not never_posted and (has or may_evict):
            wanted.append(_kept(current, bad, "NoExecute", now))
    for type_, key in _CONDITION_TAINTS.items():
        condition = condition_of(node, type_)
        if condition is not None and condition.get("status") == "True":
            wanted.append(_kept(current, key, "NoSchedule", now))
    if (node.get("spec") or {}).get("unschedulable"):
        wanted.append(_kept(current, UNSCHEDULABLE, "NoSchedule", now))
    if _identities(wanted) == _identities(current):
        return []
    body = {
        "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
        "spec": {"taints": wanted or None},
    }
    return [Patch(NODES, "", name_of(node), body)]


def wants_no_execute(node: Mapping[str, Any]) -> bool:
    """Not ready or unreachable, and not yet tainted for eviction."""
    status = ready_status(node)
    if status == "True" or condition_of(node, "Ready") is None:
        return False
    key = NOT_READY if status == "False" else UNREACHABLE
    return not any(
        t.get("key") == key and t.get("effect") == "NoExecute"
        for t in (node.get("spec") or {}).get("taints") or ()
    )


def _kept(current: Iterable[Object], key: str, effect: str, now: float) -> Object:
    for taint in current:
        if (taint.get("key"), taint.get("effect")) == (key, effect):
            return taint
    return {"key": key, "effect": effect, "timeAdded": format_time(now)}


def _identities(taints: Iterable[Object]) -> list[tuple[str, str, str]]:
    return sorted((t["key"], t.get("value") or "", t["effect"]) for t in taints)


def pods_not_ready(pods: Iterable[Object], now: float) -> list[Action]:
    """Turn Ready to False on the pods of a node that cannot vouch for them any more."""
    actions: list[Action] = []
    for pod in pods:
        conditions = (pod.get("status") or {}).get("conditions") or ()
        if is_finished(pod) or not any(
            c.get("type") == "Ready" and c.get("status") == "True" for c in conditions
        ):
            continue
        at = format_time(now)
        changed = [
            {**c, "status": "False", "lastTransitionTime": at} if c.get("type") == "Ready" else c
            for c in conditions
        ]
        meta = {"uid": uid_of(pod), "resourceVersion": pod["metadata"]["resourceVersion"]}
        body = {"metadata": meta, "status": {"conditions": changed}}
        reference = object_reference(pod, PODS)
        actions += [
            Patch(PODS, namespace_of(pod), name_of(pod), body, "status"),
            Emit(reference, "Warning", "NodeNotReady", "Node is not ready", COMPONENT),
        ]
    return actions


def node_event(node: Object, reason: str) -> Emit:
    """The event of a node seen first, removed, or found not ready."""
    name = name_of(node)
    message = {
        "RegisteredNode": f"Node {name} event: Registered Node {name} in Controller",
        "RemovingNode": f"Node {name} event: Removing Node {name} from Controller",
    }.get(reason, f"Node {name} status is now: {reason}")
    return Emit(object_reference(node, NODES), "Normal", reason, message, COMPONENT)


def eviction_rate(timings: NodeTimings, ready: int, not_ready: int) -> float:
    """Nodes a second that may be tainted NoExecute, by how much of the cluster is lost."""
    if not ready and not_ready:
        return 0.0
    share = not_ready / max(1, ready + not_ready)
    if not_ready > 2 and share >= timings.unhealthy_zone_share:
        large = ready + not_ready > timings.large_cluster_nodes
        return timings.secondary_eviction_rate if large else 0.0
    return timings.eviction_rate


class EvictionLimiter:
    """One node at a time, then one every 1/rate seconds."""

    __slots__ = ("_next_at",)

    def __init__(self) -> None:
        self._next_at = 0.0

    def wait_s(self, rate: float, now: float) -> float | None:
        """0.0 and a permission used, seconds to wait for the next, or None at rate 0."""
        if rate <= 0:
            return None
        if now < self._next_at:
            return self._next_at - now
        self._next_at = now + 1.0 / rate
        return 0.0


def eviction_delay(
    tolerations: Iterable[Mapping[str, Any]], taints: Iterable[Mapping[str, Any]]
) -> float | None:
    """Seconds a pod may stay on a node with these taints; None for ever, 0.0 not at all."""
    executing = [t for t in taints if t.get("effect") == "NoExecute"]
    given = [*tolerations]
    used = []
    for taint in executing:
        covering = [toleration for toleration in given if tolerates(toleration, taint)]
        if not covering:
            return 0.0
        used += covering
    limits = [float(t["tolerationSeconds"]) for t in used if t.get("tolerationSeconds") is not None]
    return max(0.0, min(limits)) if limits else None
