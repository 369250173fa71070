"""The scheduler's shell: watches pods and nodes, decides with ``algorithm``, binds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.scheduler.algorithm import schedule
from agents.scheduler.cluster import ClusterState, PodInfo, pod_info
from agents.scheduler.waiting import INITIAL_BACKOFF_S, MAX_BACKOFF_S, WaitingPods
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.events import EventRecorder
from emulator.kubeclient.informer import SharedInformers
from emulator.kubeclient.meta import is_deleting, name_of, object_reference, uid_of
from emulator.kubeclient.resource import NODES, PODS
from emulator.kubeclient.rest import RestClient

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulator.kubeclient.config import KubeConfig
    from emulator.runtime.role import RoleEnv

    Object = dict[str, Any]

# Bindings under way at once; a decision does not wait for the one before to be written.
MAX_BINDING = 16


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Where the API server is, and the queue's timing."""

    kubeconfig: KubeConfig
    scheduler_name: str = "default-scheduler"
    initial_backoff_s: float = INITIAL_BACKOFF_S
    max_backoff_s: float = MAX_BACKOFF_S


async def run_scheduler(config: SchedulerConfig, env: RoleEnv) -> None:
    """Schedule pods until cancelled; ready once nodes and pods are known."""
    async with RestClient(config.kubeconfig, rng=env.rng, user_agent="kube-scheduler") as client:
        await Scheduler(client, config, env).run()


class Scheduler:
    """The queue, the picture of the cluster and the loop between them."""

    def __init__(self, client: RestClient, config: SchedulerConfig, env: RoleEnv) -> None:
        self._client = client
        self._config = config
        self._env = env
        self._informers = SharedInformers(client, env.log)
        self._recorder = EventRecorder(
            client, env.clock, config.scheduler_name, action="Binding", log=env.log
        )
        self._cluster = ClusterState()
        self._waiting = WaitingPods(config.initial_backoff_s, config.max_backoff_s)
        self._wakeup = asyncio.Event()
        self._binding = asyncio.Semaphore(MAX_BINDING)
        self._pods: dict[str, Object] = {}

    async def run(self) -> None:
        """Run until cancelled."""
        self._informers.informer(NODES).add_handler(self._on_node)
        self._informers.informer(PODS).add_handler(self._on_pod)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informers.run(), name="scheduler.informers")
            group.create_task(self._recorder.run(), name="scheduler.events")
            await self._informers.wait_synced()
            self._env.ready("scheduler")
            await self._loop(group)

    # Events

    def _on_node(self, event: str, old: Object | None, new: Object | None) -> None:
        if new is None:
            assert old is not None
            self._cluster.remove_node(name_of(old))
            return
        self._cluster.set_node(new)
        if old is None or _node_matters(old) != _node_matters(new):
            self._wake_all()

    def _on_pod(self, event: str, old: Object | None, new: Object | None) -> None:
        pod = new if new is not None else old
        assert pod is not None
        uid = uid_of(pod)
        finished = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if new is None or finished:
            self._pods.pop(uid, None)
            self._waiting.remove(uid)
            if self._cluster.is_placed(uid):
                self._cluster.remove_pod(uid)
                self._wake_all()
        elif node := new["spec"].get("nodeName"):
            self._pods.pop(uid, None)
            self._waiting.remove(uid)
            if old is None or old["spec"].get("nodeName") != node or _labels(old) != _labels(new):
                self._cluster.confirm(pod_info(new), node)
        elif self._wants_us(new):
            self._pods[uid] = new
            changed = old is None or old["spec"] != new["spec"] or _labels(old) != _labels(new)
            if changed and not self._cluster.is_placed(uid):
                self._waiting.add(pod_info(new))
                self._wakeup.set()
        else:
            self._pods.pop(uid, None)
            self._waiting.remove(uid)

    def _wants_us(self, pod: Object) -> bool:
        name = pod["spec"].get("schedulerName") or "default-scheduler"
        gated = pod["spec"].get("schedulingGates")
        return name == self._config.scheduler_name and not is_deleting(pod) and not gated

    def _wake_all(self) -> None:
        self._waiting.wake_all(self._env.clock.monotonic())
        self._wakeup.set()

    # Decisions

    async def _loop(self, group: asyncio.TaskGroup) -> None:
        clock = self._env.clock
        while True:
            pod = self._waiting.pop(clock.monotonic())
            if pod is None:
                await self._rest()
                continue
            decision = schedule(pod, self._cluster, self._env.rng)
            if not decision.node:
                self._waiting.failed(pod.uid, clock.monotonic())
                group.create_task(
                    self._tell_unschedulable(pod, decision.message), name=f"unfit.{pod.key}"
                )
                # A thousand pods that fit nowhere must not keep events from being seen.
                await asyncio.sleep(0)
                continue
            self._cluster.assume(pod, decision.node)
            await self._binding.acquire()
            group.create_task(self._bind(pod, decision.node), name=f"bind.{pod.key}")

    async def _rest(self) -> None:
        """Sleep until an event, or until a pod's backoff is over."""
        self._wakeup.clear()
        due = self._waiting.next_due()
        delay = None if due is None else max(0.0, due - self._env.clock.monotonic())
        try:
            async with asyncio.timeout(delay):
                await self._wakeup.wait()
        except TimeoutError:
            return

    async def _bind(self, pod: PodInfo, node: str) -> None:
        """POST the binding; on failure the pod is not counted on the node and tried again."""
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            await self._client.create(PODS, binding, subresource="binding")
        except (ApiError, ApiUnreachableError) as error:
            self._cluster.forget(pod.uid)
            gone = isinstance(error, ApiError) and error.is_not_found
            if not gone:
                self._env.log.warning("binding %s to %s: %s", pod.key, node, error)
                self._waiting.failed(pod.uid, self._env.clock.monotonic(), retry=True)
            else:
                self._waiting.remove(pod.uid)
            self._wakeup.set()
            return
        finally:
            self._binding.release()
        # The watch may have told of it before the answer came.
        self._waiting.remove(pod.uid)
        message = f"Successfully assigned {pod.key} to {node}"
        self._recorder.event_about(_reference(pod), "Normal", "Scheduled", message)

    async def _tell_unschedulable(self, pod: PodInfo, message: str) -> None:
        """Event and PodScheduled condition of a pod without a node."""
        self._recorder.event_about(_reference(pod), "Warning", "FailedScheduling", message)
        current = self._pods.get(pod.uid)
        if current is None:
            return
        conditions = (current.get("status") or {}).get("conditions") or []
        wanted: Object = {"type": "PodScheduled", "status": "False", "message": message}
        wanted["reason"] = "Unschedulable"
        if any(wanted.items() <= condition.items() for condition in conditions):
            return
        others = [c for c in conditions if c.get("type") != "PodScheduled"]
        wanted |= {"lastProbeTime": None, "lastTransitionTime": self._env.clock.rfc3339()}
        # The uid and version make it miss a pod that was bound or replaced meanwhile.
        meta = {"uid": pod.uid, "resourceVersion": current["metadata"]["resourceVersion"]}
        body = {"metadata": meta, "status": {"phase": "Pending", "conditions": [*others, wanted]}}
        try:
            await self._client.patch(PODS, pod.namespace, pod.name, body, subresource="status")
        except (ApiError, ApiUnreachableError) as error:
            self._env.log.debug("condition of %s not written: %s", pod.key, error)


def _reference(pod: PodInfo) -> Object:
    meta = {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid}
    return object_reference({"metadata": meta}, PODS)


def _labels(obj: Mapping[str, Any]) -> Any:
    return obj["metadata"].get("labels")


def _node_matters(node: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a node can make a pod fit that did not; heartbeats are not among it."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    return (
        spec.get("unschedulable"),
        spec.get("taints"),
        _labels(node),
        status.get("allocatable") or status.get("capacity"),
    )
