"""Keeps one pod as its spec says: one worker for each pod of the node.

Every change (a new spec, an ended program, a probe's verdict, a time that has come) wakes the
worker; it computes the actions of the whole pod anew and applies them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.kubelet import texts
from agents.kubelet.actions import compute_actions
from agents.kubelet.container import Container, ContainerStartError
from agents.kubelet.environment import ContainerConfigError
from agents.kubelet.logs import ContainerLog, drop_old_runs, logged_runs, pod_logs, remove_pod_logs
from agents.kubelet.probe_state import ProbeTracker
from agents.kubelet.probes import run_probe
from agents.kubelet.record import PodRecord, State
from agents.kubelet.sandbox import create_sandbox, delete_sandbox
from agents.kubelet.status_sender import API_RETRY_S, StatusSender
from agents.kubelet.volumes import VolumeError
from emulator.errors import PodwireError, UsageError
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.resource import PODS
from emulator.workloads.context import EXIT_SIGKILL
from emulator.workloads.registry import ImageNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from agents.kubelet.actions import BackOff
    from agents.kubelet.config import KubeletConfig
    from agents.kubelet.content import PodContent
    from agents.kubelet.record import ContainerRecord
    from agents.kubelet.sandbox import PodNetwork, Sandbox
    from agents.kubelet.spec import ContainerSpec, PodSpec, ProbeSpec
    from emulator.kubeclient.events import EventRecorder
    from emulator.kubeclient.rest import RestClient
    from emulator.netstack.kernel import Kernel
    from emulator.runtime.role import RoleEnv
    from emulator.runtime.stack import StackNetwork
    from emulator.workloads.registry import Image, ImageRegistry

# runc's exit code of a container whose program is not there.
EXIT_START_ERROR = 128


@dataclass(frozen=True, slots=True)
class NodeRuntime:
    """What all workers of a node share; ``images`` are those already pulled."""

    config: KubeletConfig
    role: RoleEnv
    kernel: Kernel
    plugin: PodNetwork
    network: StackNetwork
    registry: ImageRegistry
    images: dict[str, Image]
    client: RestClient
    recorder: EventRecorder
    content: PodContent

    def pod_logs(self, pod: PodSpec) -> Path:
        """The directory of a pod's logs."""
        return pod_logs(self.config.state_dir, pod.namespace, pod.name, pod.uid)


class PodWorker:
    """One pod; ``run`` returns when it is gone here and in the API server."""

    def __init__(self, node: NodeRuntime, pod: PodSpec, record: PodRecord) -> None:
        self.pod = pod
        self.record = record
        self.sandbox: Sandbox | None = None
        # The one that is being made.
        self._sandbox_begun = ""
        self.containers: dict[str, Container] = {}
        self.logs: dict[tuple[str, int], ContainerLog] = {}
        self._node = node
        self._wake = asyncio.Event()
        self._status = StatusSender(node, pod, record)
        self._removed = False
        self._tasks: dict[str, asyncio.Task[int]] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}

    def update(self, pod: PodSpec) -> None:
        """The object has changed."""
        if _asks_for_more(self.pod, pod):
            self.record.try_again()
        self.pod = pod
        self._status.update(pod)
        self._wake.set()

    def remove(self) -> None:
        """The object is gone from the API server: stop at once."""
        self._removed = True
        self._wake.set()

    async def run(self) -> None:
        """Work until the pod is gone."""
        async with asyncio.TaskGroup() as group:
            first = self._status.build()
            sender = group.create_task(self._status.run(first), name=f"status.{self.pod.key}")
            while not (self.pod.deleting or self._removed):
                self._wake.clear()
                delay = await self._sync(group)
                self._status.due.set()
                await self._wait(delay)
            await self._terminate()
            sender.cancel()
            await self._forget()

    async def _wait(self, delay_s: float | None) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    # Bringing the pod up

    async def _sync(self, group: asyncio.TaskGroup) -> float | None:
        """One look at the whole pod; seconds until the next is due, None for "when woken"."""
        now = self._now()
        actions = compute_actions(self.pod, self.record, now)
        if actions.finished:
            if self._sync_waits_s() > 0 or not await self._release():
                return self._sync_waits_s()
            return None
        if actions.create_sandbox:
            if self._sandbox_waits_s() > 0 or not await self._create_sandbox():
                return self._sandbox_waits_s()
            actions = compute_actions(self.pod, self.record, self._now())
        for back_off in actions.back_off:
            self._show_back_off(back_off)
        for name in actions.start:
            spec = next(each for each in self.pod.all_containers if each.name == name)
            if not await self._start(group, spec):
                self._wake.set()
        return None if actions.wake_at is None else max(0.0, actions.wake_at - self._now())

    def _sync_waits_s(self) -> float:
        """How long what failed is left alone; 0 or less: it may be tried."""
        return self.record.sync_try_at - self._now()

    def _sandbox_waits_s(self) -> float:
        return max(self._sync_waits_s(), self.record.mount_try_at - self._now())

    @property
    def sandbox_ids(self) -> tuple[str, ...]:
        """The pod's sandboxes, one that is being made included."""
        made = "" if self.sandbox is None else self.sandbox.sandbox_id
        return tuple(filter(None, (made, self._sandbox_begun)))

    def _failed(self, *, transient: bool = False) -> None:
        share = self._node.role.rng.random()
        self.record.sync_failed(self._now(), share, transient=transient)

    async def _create_sandbox(self) -> bool:
        node, pod = self._node, self.pod
        complaint = node.plugin.ready()
        if complaint is not None and not pod.host_network:
            self._event("Warning", "NetworkNotReady", texts.network_not_ready(complaint))
            self._failed(transient=True)
            return False
        sandbox_id = self._sandbox_begun = f"{node.role.rng.getrandbits(256):064x}"
        try:
            # Volumes first, as the real kubelet: a pod without them never gets an address.
            await node.content.prepare(pod)
            self.sandbox = await create_sandbox(
                pod, node.config, node.kernel, node.plugin, node.network, sandbox_id
            )
        except VolumeError as error:
            self.record.mount_failed(self._now())
            self._event("Warning", "FailedMount", str(error))
            return False
        except (ApiError, ApiUnreachableError) as error:
            node.role.log.warning("pod %s: %s", pod.key, error)
            self._failed()
            return False
        except PodwireError as error:
            self._failed()
            text = texts.sandbox_failed(sandbox_id, node.plugin.plugin_type, str(error))
            self._event("Warning", "FailedCreatePodSandBox", text)
            return False
        finally:
            self._sandbox_begun = ""
        self.record.sandbox_id = sandbox_id
        self.record.ip = self.sandbox.ip
        return True

    async def _start(self, group: asyncio.TaskGroup, spec: ContainerSpec) -> bool:
        """Start one container; False leaves its record saying why not."""
        node, state, sandbox = self._node, self.record.container(spec.name), self.sandbox
        assert sandbox is not None, "a container starts in a sandbox"
        image = self._pull(spec)
        if image is None:
            return False
        try:
            prepared = await node.content.container(self.pod, spec, image, sandbox)
        except (ContainerConfigError, VolumeError, ApiError, ApiUnreachableError) as error:
            self._blocked(state, "CreateContainerConfigError", str(error))
            self._event("Warning", "Failed", f"Error: {error}", spec)
            return False
        number = state.restart_count + (state.ended is not None)
        log = self._log(spec, number)
        container = Container(
            spec=spec,
            container_id=f"{node.role.rng.getrandbits(256):064x}",
            image=image,
            argv=prepared.argv,
            env=prepared.env,
            files=prepared.files,
            sandbox=sandbox,
            log=log,
            kernel=node.kernel,
            role=node.role,
            era=node.config.era,
        )
        era = node.config.era
        self._event(
            "Normal", "Created", texts.created(spec.name, container.container_id, era), spec
        )
        state.run(container.container_id, self._image_id(image), self._now())
        try:
            container.program()
        except ContainerStartError as error:
            self._event("Warning", "Failed", f"Error: {error}", spec)
            state.end(EXIT_START_ERROR, "StartError", str(error), self._now())
            return False
        self._event(
            "Normal", "Started", texts.started(spec.name, container.container_id, era), spec
        )
        self.containers[spec.name] = container
        task = group.create_task(container.run(), name=f"container.{self.pod.key}.{spec.name}")
        self._tasks[spec.name] = task
        task.add_done_callback(lambda done: self._ended(spec.name, done))
        state.started = spec.startup is None
        state.ready = state.started and spec.readiness is None
        if spec.startup or spec.readiness or spec.liveness:
            self._probes[spec.name] = group.create_task(
                self._probe_all(container), name=f"probes.{self.pod.key}.{spec.name}"
            )
        return True

    def _blocked(self, state: ContainerRecord, reason: str, message: str) -> None:
        state.sync_failed(reason, message, self._now(), self._node.role.rng.random())

    def _pull(self, spec: ContainerSpec) -> Image | None:
        node, state, now = self._node, self.record.container(spec.name), self._now()
        era = node.config.era
        present = node.images.get(spec.image)
        if spec.pull_policy == "Never" and present is None:
            text = f'Container image "{spec.image}" is not present with pull policy of Never'
            self._blocked(state, "ErrImageNeverPull", text)
            self._event("Warning", "ErrImageNeverPull", text, spec)
            return None
        if present is not None and spec.pull_policy != "Always":
            self._event("Normal", "Pulled", texts.already_present(spec.image), spec)
            return present
        began = self._now()
        try:
            image = node.registry.resolve(spec.image)
        except UsageError as error:
            self._blocked(state, "InvalidImageName", str(error))
            self._event("Warning", "InspectFailed", str(error), spec)
            return None
        except ImageNotFoundError as error:
            cause = f"rpc error: code = NotFound desc = {error}"
            self._event("Normal", "Pulling", texts.pulling(spec.image, era), spec)
            self._event("Warning", "Failed", texts.pull_failed(spec.image, cause), spec)
            self._event("Warning", "Failed", "Error: ErrImagePull", spec)
            state.pull_failed(cause, now)
            return None
        self._event("Normal", "Pulling", texts.pulling(spec.image, era), spec)
        node.images[spec.image] = image
        size = image.definition.size_bytes
        pulled = texts.pulled(spec.image, self._now() - began, size, era)
        self._event("Normal", "Pulled", pulled, spec)
        return image

    def _image_id(self, image: Image) -> str:
        if self._node.config.runtime == "docker":
            repository = image.reference.repository.removeprefix("docker.io/library/")
            return f"docker-pullable://{repository}@{image.image_id}"
        return image.repo_digest

    def _show_back_off(self, back_off: BackOff) -> None:
        state = self.record.container(back_off.name)
        if (state.state, state.reason) != (State.WAITING, back_off.reason):
            spec = next(each for each in self.pod.all_containers if each.name == back_off.name)
            kind = "Normal" if back_off.reason == "ImagePullBackOff" else "Warning"
            self._event(kind, "BackOff", back_off.event, spec)
            if back_off.reason == "ImagePullBackOff":
                self._event("Warning", "Failed", "Error: ImagePullBackOff", spec)
        state.wait(back_off.reason, back_off.message)

    def _ended(self, name: str, task: asyncio.Task[int]) -> None:
        """A program has returned, or was killed."""
        self._tasks.pop(name, None)
        probes = self._probes.pop(name, None)
        if probes is not None:
            probes.cancel()
        code = EXIT_SIGKILL if task.cancelled() or task.exception() else task.result()
        state = self.record.container(name)
        if state.state is State.RUNNING:
            state.end(code, "Completed" if code == 0 else "Error", "", self._now())
        self.containers.pop(name, None)
        self._wake.set()

    # Probes

    async def _probe_all(self, container: Container) -> None:
        spec = container.spec
        if spec.startup is not None:
            await self._probe(container, "Startup", spec.startup)
        async with asyncio.TaskGroup() as group:
            if spec.readiness is not None:
                group.create_task(self._probe(container, "Readiness", spec.readiness))
            if spec.liveness is not None:
                group.create_task(self._probe(container, "Liveness", spec.liveness))

    async def _probe(self, container: Container, kind: str, probe: ProbeSpec) -> None:
        """Probe until cancelled; a startup probe ends with its first success."""
        spec, state = container.spec, self.record.container(container.spec.name)
        tracker = ProbeTracker(probe, initial=kind == "Liveness")
        version = self._node.config.kubelet_version
        await asyncio.sleep(probe.initial_delay_s)
        while True:
            result = await run_probe(probe, container, self._node.network, version)
            if not result.success:
                text = texts.unhealthy(kind, result.output)
                self._event("Warning", "Unhealthy", text, spec)
            changed = tracker.observe(result.success)
            if kind == "Readiness" and changed:
                state.ready = tracker.verdict
                self._status.due.set()
            elif kind == "Startup" and tracker.verdict:
                state.started = True
                state.ready = spec.readiness is None
                self._status.due.set()
                return
            elif kind != "Readiness" and tracker.failed_for_good():
                say = texts.liveness_restart if kind == "Liveness" else texts.startup_restart
                self._event("Normal", "Killing", say(spec.name), spec)
                await self._stop_one(spec.name)
                return
            await asyncio.sleep(probe.period_s)

    async def _stop_one(self, name: str) -> None:
        container, task = self.containers.get(name), self._tasks.get(name)
        if container is None or task is None:
            return
        container.stop.set()
        # The task that waits here is cancelled when the program ends, so the kill is a timer.
        loop = asyncio.get_running_loop()
        loop.call_later(self.pod.grace_s, task.cancel)

    # Taking the pod down

    async def _terminate(self) -> None:
        self.record.terminating = True
        pod, era = self.pod, self._node.config.era
        for name, container in self.containers.items():
            text = texts.stopping(name, container.container_id, pod.name, era)
            self._event("Normal", "Killing", text, container.spec)
            container.stop.set()
        began = self._now()
        while self._tasks:
            left = began + self.pod.grace_s - self._now()
            if self._removed or left <= 0:
                break
            self._wake.clear()
            await self._wait(left)
        for task in list(self._tasks.values()):
            task.cancel()
        while self._tasks:
            self._wake.clear()
            await self._wake.wait()
        await self.abandon()

    async def abandon(self) -> None:
        """Give back what a worker still holds, as soon as the plugin can; no program runs."""
        while not await self._release():
            while (left_s := self._sync_waits_s()) > 0:
                self._wake.clear()
                await self._wait(left_s)

    async def _release(self) -> bool:
        """Give the sandbox back; the record keeps the address it had.  False: try again."""
        for task in list(self._probes.values()):
            task.cancel()
        sandbox, node = self.sandbox, self._node
        if sandbox is None:
            return True
        try:
            await delete_sandbox(sandbox, node.kernel, node.plugin)
        except PodwireError as error:
            text = texts.sandbox_not_removed(
                self.pod.uid, sandbox.sandbox_id, node.plugin.plugin_type, str(error)
            )
            self._event("Warning", "FailedKillPod", text)
            self._failed()
            return False
        self.sandbox = None
        self.record.sandbox_gone = True
        node.content.forget(self.pod)
        return True

    async def _forget(self) -> None:
        """Report the end and remove the object: the kubelet has the last word on a pod."""
        while not self._removed:
            try:
                await self._status.send()
                await self._node.client.delete(
                    PODS,
                    self.pod.namespace,
                    self.pod.name,
                    grace_period_s=0,
                    uid=self.pod.uid,
                )
                break
            except ApiError as error:
                if error.is_not_found or error.is_conflict:
                    break
                self._node.role.log.warning("pod %s not deleted: %s", self.pod.key, error)
            except ApiUnreachableError as error:
                self._node.role.log.warning("pod %s not deleted: %s", self.pod.key, error)
            self._wake.clear()
            await self._wait(API_RETRY_S)
        remove_pod_logs(self._node.pod_logs(self.pod))

    # Reporting

    def _event(
        self, kind: str, reason: str, message: str, spec: ContainerSpec | None = None
    ) -> None:
        path = ""
        if spec is not None:
            init = any(each is spec for each in self.pod.init_containers)
            path = f"spec.{'initContainers' if init else 'containers'}{{{spec.name}}}"
        self._node.recorder.event(self.pod.obj, PODS, kind, reason, message, field_path=path)

    # Logs

    def _log(self, spec: ContainerSpec, number: int) -> ContainerLog:
        directory = self._node.pod_logs(self.pod) / spec.name
        drop_old_runs(directory, number)
        log = ContainerLog(directory / f"{number}.log", self._node.role.clock)
        self.logs[spec.name, number] = log
        self.logs.pop((spec.name, number - 2), None)
        return log

    def find_log(self, name: str, *, previous: bool) -> ContainerLog | None:
        """The log of the container's current run, or of the one before.

        Runs that a former process of this node has seen are on its disk only.
        """
        directory = self._node.pod_logs(self.pod) / name
        numbers = sorted({*logged_runs(directory), *(n for each, n in self.logs if each == name)})
        if previous:
            numbers = numbers[:-1]
        if not numbers:
            return None
        known = self.logs.get((name, numbers[-1]))
        return known or ContainerLog.ended(directory / f"{numbers[-1]}.log", self._node.role.clock)

    def _now(self) -> float:
        return self._node.role.clock.time()


def _asks_for_more(old: PodSpec, new: PodSpec) -> bool:
    """Whether somebody changed what a sync goes by (pkg/kubelet/config: podsDifferSemantically)."""

    def asked(pod: PodSpec) -> tuple[Any, ...]:
        meta = pod.obj["metadata"]
        fields = ("labels", "annotations", "deletionTimestamp", "deletionGracePeriodSeconds")
        return (pod.obj["spec"], *(meta.get(field) for field in fields))

    return asked(old) != asked(new)
