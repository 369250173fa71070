"""Loops of node health, taint eviction and the collection of pods whose node is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.controllers.actions import Delete, Emit, Patch, soonest
from agents.controllers.nodelifecycle import (
    EvictionLimiter,
    Heartbeats,
    NodeTimings,
    eviction_delay,
    eviction_rate,
    node_event,
    pods_not_ready,
    ready_status,
    silence,
    taint_actions,
    wants_no_execute,
)
from agents.controllers.podstate import is_finished
from emulator.kubeclient.controller import Controller
from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.meta import (
    format_time,
    is_deleting,
    key_of,
    name_of,
    namespace_of,
    object_reference,
    parse_time,
    split_key,
    uid_of,
)
from emulator.kubeclient.resource import LEASES, NODES, PODS

if TYPE_CHECKING:
    from agents.controllers.shell import Shell

    Object = dict[str, Any]

NODE_INDEX = "node"
LEASE_NAMESPACE = "kube-node-lease"
EVICTION_COMPONENT = "taint-eviction-controller"
EVICTION_WORKERS = 8
# How often finished pods are counted (podgc's gcCheckPeriod).
COUNT_PERIOD_S = 20.0


def by_node(pod: Object) -> tuple[str, ...]:
    """Index: the name of the node the pod is bound to."""
    name = pod["spec"].get("nodeName")
    return (name,) if name else ()


class NodeLoop:
    """Finds silent nodes by a timer per node, set to the moment its grace would end."""

    def __init__(self, shell: Shell, timings: NodeTimings) -> None:
        self._shell = shell
        self._timings = timings
        self._nodes = shell.informers.informer(NODES)
        self._leases = shell.informers.informer(LEASES, namespace=LEASE_NAMESPACE)
        self._pods = shell.informers.informer(PODS)
        self._pods.add_index(NODE_INDEX, by_node)
        self._heartbeats = Heartbeats(timings)
        self._limiter = EvictionLimiter()
        # Last Ready status acted upon, by node name.
        self._acted: dict[str, str] = {}
        self._controller = Controller("node-lifecycle", self._reconcile, log=shell.env.log)
        shell.controllers.append(self._controller)
        self._nodes.add_handler(self._on_node)
        self._leases.add_handler(self._on_lease)
        self._pods.add_handler(self._on_pod)

    def _on_node(self, event: str, old: Object | None, new: Object | None) -> None:
        if new is None:
            assert old is not None
            self._heartbeats.forget(name_of(old))
            if self._acted.pop(name_of(old), None) is not None:
                self._say(node_event(old, "RemovingNode"))
            return
        self._observe(new)
        self._controller.queue.add(name_of(new))

    def _on_lease(self, event: str, old: Object | None, new: Object | None) -> None:
        if new is None:
            return
        node = self._nodes.lister.get("", name_of(new))
        if node is None:
            return
        was_silent = self._heartbeats.left_s(node, self._shell.env.clock.monotonic()) <= 0
        self._observe(node)
        if was_silent:
            self._controller.queue.add(name_of(node))

    def _on_pod(self, event: str, old: Object | None, new: Object | None) -> None:
        node = new["spec"].get("nodeName", "") if new is not None else ""
        if self._acted.get(node) == "Unknown":
            self._controller.queue.add(node)

    def _observe(self, node: Object) -> None:
        lease = self._leases.lister.get(LEASE_NAMESPACE, name_of(node))
        self._heartbeats.observe(node, lease, self._shell.env.clock.monotonic())

    def _say(self, action: Emit) -> None:
        self._shell.recorder.event_about(
            action.reference, action.type, action.reason, action.message, component=action.component
        )

    async def _reconcile(self, name: str) -> float | None:
        node = self._nodes.lister.get("", name)
        if node is None:
            return None
        shell, now = self._shell, self._shell.now()
        before = self._acted.get(name)
        if before is None:
            self._say(node_event(node, "RegisteredNode"))
        monotonic = shell.env.clock.monotonic()
        left_s = self._heartbeats.left_s(node, monotonic)
        if left_s <= 0:
            for action in silence(node, now):
                # The changed node comes back as an event; taints and pods follow then.
                await shell.do(action)
        status = ready_status(node)
        self._acted[name] = status
        if before not in (None, status):
            if before == "True":
                self._say(node_event(node, "NodeNotReady"))
            # How many nodes are lost decides what may be done to each of them.
            for other, other_status in self._acted.items():
                if other_status != "True" and other != name:
                    self._controller.queue.add(other)
        wait_s = await self._taint(node, monotonic)
        # A kubelet that is back speaks for its own pods again, before its node is Ready.
        if (status == "Unknown" and left_s <= 0) or (status == "False" and before == "True"):
            for action in pods_not_ready(self._pods.lister.by_index(NODE_INDEX, name), now):
                await shell.do(action)
        return soonest(left_s if left_s > 0 else None, wait_s)

    async def _taint(self, node: Object, monotonic: float) -> float | None:
        """Write the taints; returns seconds until the eviction taint may be set."""
        statuses = [ready_status(one) for one in self._nodes.lister.list()]
        ready = statuses.count("True")
        rate = eviction_rate(self._timings, ready, len(statuses) - ready)
        wait_s = self._limiter.wait_s(rate, monotonic) if wants_no_execute(node) else None
        actions = taint_actions(
            node, may_evict=wait_s == 0.0, in_disruption=not ready, now=self._shell.now()
        )
        for action in actions:
            await self._shell.do(action)
        return wait_s or None


class EvictionLoop:
    """Deletes pods from nodes whose NoExecute taints they tolerate no longer."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._nodes = shell.informers.informer(NODES)
        self._pods = shell.informers.informer(PODS)
        self._pods.add_index(NODE_INDEX, by_node)
        # pod uid -> when its time on a tainted node began
        self._since: dict[str, float] = {}
        self._controller = Controller(
            "taint-eviction", self._reconcile, workers=EVICTION_WORKERS, log=shell.env.log
        )
        shell.controllers.append(self._controller)
        self._nodes.add_handler(self._on_node)
        self._pods.add_handler(self._on_pod)

    def _on_node(self, event: str, old: Object | None, new: Object | None) -> None:
        if _taints(old) != _taints(new):
            node = new if new is not None else old
            assert node is not None
            for pod in self._pods.lister.by_index(NODE_INDEX, name_of(node)):
                self._controller.queue.add(key_of(pod))

    def _on_pod(self, event: str, old: Object | None, new: Object | None) -> None:
        if new is None:
            assert old is not None
            self._since.pop(uid_of(old), None)
        elif uid_of(new) in self._since or _taints(self._node_of(new)):
            self._controller.queue.add(key_of(new))

    def _node_of(self, pod: Object) -> Object | None:
        return self._nodes.lister.get("", pod["spec"].get("nodeName", ""))

    async def _reconcile(self, key: str) -> float | None:
        pod = self._pods.lister.get_by_key(key)
        if pod is None or is_deleting(pod) or is_finished(pod):
            return None
        shell, uid = self._shell, uid_of(pod)
        now = shell.env.clock.monotonic()
        taints = _taints(self._node_of(pod))
        delay = eviction_delay(pod["spec"].get("tolerations") or (), taints)
        if delay is None:
            if self._since.pop(uid, None) is not None:
                await shell.do(_eviction_event(pod, f"Cancelling deletion of Pod {key}"))
            return None
        left_s = self._since.setdefault(uid, now) + delay - now
        if left_s > 0:
            return left_s
        await shell.do(_eviction_event(pod, f"Marking for deletion Pod {key}"))
        await shell.do(
            _disrupt(
                pod,
                "DeletionByTaintManager",
                "Taint manager: deleting due to NoExecute taint",
                shell.now(),
            )
        )
        await shell.do(Delete(PODS, namespace_of(pod), name_of(pod), uid))
        self._since.pop(uid, None)
        return None


class PodGcLoop:
    """Removes pods nobody will ever finish: their node is gone, or they are too many."""

    def __init__(self, shell: Shell, quarantine_s: float, threshold: int) -> None:
        self._shell = shell
        self._quarantine_s = quarantine_s
        self._threshold = threshold
        self._nodes = shell.informers.informer(NODES)
        self._pods = shell.informers.informer(PODS)
        self._pods.add_index(NODE_INDEX, by_node)
        self._pods.add_index("finished", lambda pod: ("yes",) if is_finished(pod) else ())
        # node name -> when it was first missed
        self._missing: dict[str, float] = {}
        self._orphans = Controller("pod-gc", self._collect_orphans, log=shell.env.log)
        self._finished = Controller("pod-gc-finished", self._collect_finished, log=shell.env.log)
        shell.controllers += [self._orphans, self._finished]
        self._nodes.add_handler(self._on_node)
        self._pods.add_handler(self._on_pod)
        self._finished.queue.add("finished pods")

    def _on_node(self, event: str, old: Object | None, new: Object | None) -> None:
        if new is not None:
            self._missing.pop(name_of(new), None)
        elif old is not None and self._pods.lister.by_index(NODE_INDEX, name_of(old)):
            self._orphans.queue.add(name_of(old))

    def _on_pod(self, event: str, old: Object | None, new: Object | None) -> None:
        for node in by_node(new) if new is not None else ():
            if self._nodes.lister.get("", node) is None:
                self._orphans.queue.add(node)

    async def _collect_orphans(self, node: str) -> float | None:
        pods = self._pods.lister.by_index(NODE_INDEX, node)
        if not pods or self._nodes.lister.get("", node) is not None:
            self._missing.pop(node, None)
            return None
        now = self._shell.env.clock.monotonic()
        left_s = self._missing.setdefault(node, now) + self._quarantine_s - now
        if left_s > 0:
            return left_s
        try:
            # The watch may be behind; the API server is asked before pods are taken away.
            await self._shell.client.get(NODES, "", node)
        except ApiError as error:
            if not error.is_not_found:
                raise
        else:
            return self._quarantine_s
        for pod in pods:
            key = split_key(key_of(pod))
            self._shell.env.log.info("pod %s/%s: node %s is gone, removing it", *key, node)
            if not is_finished(pod):
                message = "PodGC: node no longer exists"
                patch = _disrupt(pod, "DeletionByPodGC", message, self._shell.now(), phase="Failed")
                await self._shell.do(patch)
            await self._shell.do(Delete(PODS, *key, uid_of(pod), grace_s=0))
        return None

    async def _collect_finished(self, _: str) -> float:
        pods = self._pods.lister.by_index("finished", "yes")
        pods.sort(key=lambda pod: parse_time(pod["metadata"].get("creationTimestamp")))
        for pod in pods[: max(0, len(pods) - self._threshold)]:
            await self._shell.do(Delete(PODS, namespace_of(pod), name_of(pod), uid_of(pod)))
        return COUNT_PERIOD_S


def _taints(node: Object | None) -> list[Object]:
    return [
        taint
        for taint in ((node or {}).get("spec") or {}).get("taints") or ()
        if taint.get("effect") == "NoExecute"
    ]


def _eviction_event(pod: Object, message: str) -> Emit:
    reference = object_reference(pod, PODS)
    return Emit(reference, "Normal", "TaintManagerEviction", message, EVICTION_COMPONENT)


def _disrupt(pod: Object, reason: str, message: str, now: float, *, phase: str = "") -> Patch:
    """A patch that gives the pod a DisruptionTarget condition."""
    kept = [
        c
        for c in (pod.get("status") or {}).get("conditions") or ()
        if c.get("type") != "DisruptionTarget"
    ]
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": format_time(now),
    }
    status: Object = {"conditions": [*kept, condition]} | ({"phase": phase} if phase else {})
    body = {"metadata": {"uid": uid_of(pod)}, "status": status}
    return Patch(PODS, namespace_of(pod), name_of(pod), body, "status")


def add_nodes(
    shell: Shell, timings: NodeTimings, *, quarantine_s: float, terminated_pod_threshold: int
) -> None:
    """Append the loops to the shell's controllers."""
    NodeLoop(shell, timings)
    EvictionLoop(shell)
    PodGcLoop(shell, quarantine_s, terminated_pod_threshold)
