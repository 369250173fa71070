"""The kubelet's shell: informers, one worker for each pod, registration, heartbeats, the API."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from agents.kubelet.content import PodContent
from agents.kubelet.logs import drop_other_logs
from agents.kubelet.node import (
    LEASE_NAMESPACE,
    UNDERLAY_ANNOTATION,
    conditions_differ,
    new_node,
    node_labels,
    node_lease,
    node_status,
)
from agents.kubelet.recover import recover_record
from agents.kubelet.server import KubeletServer
from agents.kubelet.spec import PodSpec
from agents.kubelet.texts import STARTING
from agents.kubelet.worker import NodeRuntime, PodWorker
from emulator.errors import PodwireError
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.events import EventRecorder
from emulator.kubeclient.informer import Informer
from emulator.kubeclient.meta import key_of, resource_version
from emulator.kubeclient.resource import LEASES, NODES, PODS, SERVICES
from emulator.kubeclient.rest import RestClient
from emulator.workloads.images import default_registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.kubelet.config import KubeletConfig
    from agents.kubelet.sandbox import PodNetwork
    from emulator.netstack.kernel import Kernel
    from emulator.runtime.role import RoleEnv
    from emulator.runtime.stack import StackNetwork
    from emulator.workloads.registry import ImageRegistry

    Object = dict[str, Any]

# nodeLeaseDurationSeconds/4 and nodeStatusReportFrequency of the real kubelet.
LEASE_RENEW_S = 10.0
STATUS_REPORT_S = 300.0
# How often the network plugin is asked while it is not ready, and once it is.
READY_POLL_S = 0.02
READY_CHECK_S = 1.0
API_RETRY_S = 0.2
# nodeStatusUpdateFrequency.
STATUS_RETRY_S = 10.0
API_RETRY_MAX_S = 3.0
# backOffPeriod of the real kubelet: a pod whose sync failed is looked at again after this.
SYNC_RETRY_S = 10.0
# Between two looks for what failed sandboxes could not give back: their network was out of reach.
COLLECT_S = 15.0
# Requests under way at once; each is a TLS connection kept for a while, some 250 KiB.
MAX_REQUESTS = 2


class Kubelet:
    """One node's kubelet; ``run`` returns only when cancelled."""

    def __init__(
        self,
        config: KubeletConfig,
        role: RoleEnv,
        kernel: Kernel,
        plugin: PodNetwork,
        network: StackNetwork,
        client: RestClient,
        registry: ImageRegistry,
    ) -> None:
        self.config = config
        self._role = role
        self._plugin = plugin
        self._client = client
        self.workers: dict[str, PodWorker] = {}
        self._pods = Informer(
            client,
            PODS,
            field_selector=f"spec.nodeName={config.node_name}",
            log=role.log,
        )
        self._services = Informer(client, SERVICES, log=role.log)
        self._nodes = Informer(
            client, NODES, field_selector=f"metadata.name={config.node_name}", log=role.log
        )
        self._recorder = EventRecorder(
            client, role.clock, "kubelet", host=config.node_name, log=role.log
        )
        self._runtime = NodeRuntime(
            config=config,
            role=role,
            kernel=kernel,
            plugin=plugin,
            network=network,
            registry=registry,
            images={},
            client=client,
            recorder=self._recorder,
            content=PodContent(config, client, self._services.lister, role.clock),
        )
        self._changed: asyncio.Queue[str] = asyncio.Queue()
        self._node: Mapping[str, Any] | None = None
        self._boot_id = str(uuid.UUID(int=role.rng.getrandbits(128), version=4))
        self.server = KubeletServer(config, role.clock, self.find, self._pod_list, network)

    def find(self, namespace: str, name: str) -> PodWorker | None:
        """The worker of a pod."""
        return self.workers.get(f"{namespace}/{name}")

    def _pod_list(self) -> list[Mapping[str, Any]]:
        return [worker.pod.obj for worker in self.workers.values()]

    async def run(self) -> None:
        """Serve until cancelled."""
        dead = await self._plugin.collect([])
        if dead:
            self._role.log.info("released the addresses of %d dead sandboxes", len(dead))
        self.server.start()
        try:
            async with asyncio.TaskGroup() as group:
                self._pods.add_handler(self._note)
                self._nodes.add_handler(self._note_node)
                group.create_task(self.server.run(), name="kubelet.server")
                group.create_task(self._recorder.run(), name="kubelet.events")
                group.create_task(self._services.run(), name="kubelet.services")
                await self._register()
                group.create_task(self._renew_lease(), name="kubelet.lease")
                group.create_task(self._nodes.run(), name="kubelet.node")
                group.create_task(self._report_node(), name="kubelet.status")
                group.create_task(self._pods.run(), name="kubelet.pods")
                group.create_task(self._collect_for_ever(), name="kubelet.sandboxes")
                await self._services.synced.wait()
                self._role.ready(f"kubelet {self.config.node_name} on port {self.server.port}")
                await self._dispatch(group)
        finally:
            await self.server.close()

    # Pods

    def _note(self, event: str, old: Object | None, new: Object | None) -> None:
        obj = new or old
        assert obj is not None
        self._changed.put_nowait(key_of(obj))

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        """Hand each pod's newest state to its worker; a worker is made at first sight."""
        await self._pods.synced.wait()
        # Pods may have gone while this node was down.
        drop_other_logs(
            self.config.state_dir, {pod["metadata"]["uid"] for pod in self._pods.lister.list()}
        )
        while True:
            key = await self._changed.get()
            worker = self.workers.get(key)
            obj = self._pods.lister.get_by_key(key)
            if worker is not None and (obj is None or obj["metadata"]["uid"] != worker.pod.uid):
                worker.remove()
                continue
            if obj is None:
                continue
            try:
                pod = PodSpec.parse(obj)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                # Only an API server that checks less than the real one lets such a pod pass.
                self._sync_failed(key, obj, error)
                continue
            if worker is not None:
                worker.update(pod)
                continue
            record = recover_record(pod, self._role.clock.time())
            worker = PodWorker(self._runtime, pod, record)
            self.workers[key] = worker
            group.create_task(self._work(key, worker), name=f"pod.{key}")

    async def _work(self, key: str, worker: PodWorker) -> None:
        try:
            await worker.run()
        # A fault in one pod's handling must not end the other pods of the node.
        except Exception as error:
            self._sync_failed(key, worker.pod.obj, error)
            await worker.abandon()
            await asyncio.sleep(SYNC_RETRY_S)
        finally:
            del self.workers[key]
            # A pod of the same name may have come while this one went.
            self._changed.put_nowait(key)

    def _sync_failed(self, key: str, obj: Mapping[str, Any], error: Exception) -> None:
        self._role.log.error("pod %s cannot be synced", key, exc_info=error)
        inner: BaseException = error
        while isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        text = f"Error syncing pod, skipping: {type(inner).__name__}: {inner}"
        self._recorder.event(obj, PODS, "Warning", "FailedSync", text)

    # The node

    async def _register(self) -> None:
        """Create the Node, or bring the labels and addresses of an old one up to date."""
        while True:
            try:
                self._node = await self._create_or_adopt()
                break
            except (ApiError, ApiUnreachableError) as error:
                self._role.log.warning("cannot register node, trying again: %s", error)
            await asyncio.sleep(API_RETRY_S)
        self._node_event("Normal", "Starting", STARTING)

    async def _create_or_adopt(self) -> Object:
        status = self._status()
        wanted = new_node(self.config, status)
        try:
            return await self._client.create(NODES, wanted)
        except ApiError as error:
            if not error.is_already_exists:
                raise
        name = self.config.node_name
        metadata = {
            "labels": node_labels(self.config.node_name, self.config.labels, self.config.era),
            "annotations": {UNDERLAY_ANNOTATION: self.config.underlay_host},
        }
        self._node = await self._client.patch(NODES, "", name, {"metadata": metadata}, "merge")
        return await self._client.patch(
            NODES, "", name, {"status": self._status()}, "merge", subresource="status"
        )

    def _note_node(self, event: str, old: Object | None, new: Object | None) -> None:
        """Follow the Node as others change it; what is older than our last write is no news."""
        if new is not None and resource_version(new) > resource_version(self._node):
            self._node = new

    def _status(self) -> Object:
        return node_status(
            self.config,
            not_ready=self._plugin.ready(),
            known=self._node,
            boot_id=self._boot_id,
            now=self._role.clock.time(),
            port=self.server.port,
        )

    async def _report_node(self) -> None:
        """Report every five minutes, and at once when readiness changes or others deny it.

        Others: the node lifecycle controller writes Unknown over the conditions of a kubelet it
        has not heard of for a while.
        """
        reported: str | None = "never"
        due_at = 0.0
        while True:
            complaint, now = self._plugin.ready(), self._role.clock.monotonic()
            denied = conditions_differ(self.config, self._node, complaint)
            if complaint != reported or denied or now >= due_at:
                try:
                    await self._send_node_status()
                except (ApiError, ApiUnreachableError) as error:
                    self._role.log.warning("node status not sent: %s", error)
                    # A Node somebody deleted comes back when its kubelet is started again.
                    gone = isinstance(error, ApiError) and error.is_not_found
                    await asyncio.sleep(STATUS_RETRY_S if gone else API_RETRY_S)
                    continue
                if complaint is None and reported is not None:
                    text = f"Node {self.config.node_name} status is now: NodeReady"
                    self._node_event("Normal", "NodeReady", text)
                elif complaint is not None and reported is None:
                    text = f"Node {self.config.node_name} status is now: NodeNotReady"
                    self._node_event("Normal", "NodeNotReady", text)
                reported, due_at = complaint, now + STATUS_REPORT_S
            await asyncio.sleep(READY_POLL_S if complaint is not None else READY_CHECK_S)

    async def _collect_for_ever(self) -> None:
        while True:
            await asyncio.sleep(COLLECT_S)
            live = [each for worker in self.workers.values() for each in worker.sandbox_ids]
            try:
                dead = await self._plugin.collect(live)
            except PodwireError as error:
                self._role.log.warning("dead sandboxes: %s", error)
                continue
            if dead:
                self._role.log.info("released the addresses of %d failed sandboxes", len(dead))

    async def _send_node_status(self) -> None:
        name = self.config.node_name
        self._node = await self._client.get(NODES, "", name)
        self._node = await self._client.patch(
            NODES, "", name, {"status": self._status()}, "merge", subresource="status"
        )

    async def _renew_lease(self) -> None:
        """Create or renew kube-node-lease/NODE; the next try after a failure comes soon."""
        retry_s = API_RETRY_S
        while True:
            try:
                await self._put_lease()
            except (ApiError, ApiUnreachableError) as error:
                self._role.log.warning("node lease not renewed: %s", error)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, API_RETRY_MAX_S)
                continue
            retry_s = API_RETRY_S
            await asyncio.sleep(LEASE_RENEW_S)

    async def _put_lease(self) -> None:
        uid = (self._node or {}).get("metadata", {}).get("uid", "")
        lease = node_lease(self.config, uid, self._role.clock.time())
        try:
            await self._client.patch(
                LEASES, LEASE_NAMESPACE, self.config.node_name, {"spec": lease["spec"]}, "merge"
            )
        except ApiError as error:
            if not error.is_not_found:
                raise
            await self._client.create(LEASES, lease)

    def _node_event(self, kind: str, reason: str, message: str) -> None:
        # The real kubelet names the node by its name in place of the uid.
        name = self.config.node_name
        reference = {"kind": "Node", "name": name, "uid": name}
        self._recorder.event_about(reference, kind, reason, message)


async def run_kubelet(
    config: KubeletConfig,
    env: RoleEnv,
    kernel: Kernel,
    plugin: PodNetwork,
    network: StackNetwork,
    registry: ImageRegistry | None = None,
) -> None:
    """Run a kubelet until cancelled.

    ``plugin`` wires pods (agents/cni NodeCni), ``network`` is the root namespace's, ``registry``
    the images there are.  Raises UsageError for a port that is taken or a bad certificate.
    """
    async with RestClient(
        config.kubeconfig, rng=env.rng, user_agent="kubelet", max_inflight=MAX_REQUESTS
    ) as client:
        kubelet = Kubelet(
            config, env, kernel, plugin, network, client, registry or default_registry()
        )
        await kubelet.run()
