"""The node controller: forgets nodes that Kubernetes has deleted and gives leaks back.

Source: projectcalico/calico kube-controllers/pkg/controllers/node.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from agents.calico.errors import DatastoreError, DoesNotExistError
from agents.calico.ipam.errors import BlockNotEmptyError
from agents.calico.kubecontrollers.ipam_garbage import (
    LEAK_GRACE_S,
    Garbage,
    IpamGarbage,
    PodFacts,
    PodKey,
)
from agents.calico.kubecontrollers.mirroring import kubernetes_node
from agents.calico.resources import name_of
from emulator.apimachinery.times import parse_rfc3339
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.meta import name_of as object_name
from emulator.kubeclient.meta import namespace_of
from emulator.kubeclient.resource import NODES, PODS
from etcd.client import EtcdError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping
    from typing import Any

    from agents.calico.client import ResourceClient
    from agents.calico.ipam.ipam import Ipam
    from emulator.kubeclient.informer import SharedInformers
    from emulator.kubeclient.rest import RestClient
    from emulator.runtime.clock import Clock

# Deletions of nodes and pods that come together are looked at together.
GATHER_S: Final = 1.0
# After a failed look; upstream's limiter begins at milliseconds and ends at 30 s.
RETRY_S: Final = 5.0

# So long a node may take from Calico's start to its registration with Kubernetes.
REGISTRATION_S: Final = 120.0


class ClusterView(Protocol):
    """Kubernetes as the controller sees it."""

    def nodes(self) -> frozenset[str]:
        """The names of all Nodes."""

    def pods(self) -> Mapping[PodKey, PodFacts]:
        """All pods."""

    async def live_pod(self, key: PodKey) -> PodFacts | None:
        """A pod from the API server itself, None if it is gone."""

    def on_deletion(self, notify: Callable[[], None]) -> None:
        """Call ``notify`` whenever a Node or a pod is gone."""


class InformerView:
    """A ClusterView over shared informers; made before they run, used after they are synced."""

    def __init__(self, informers: SharedInformers, client: RestClient) -> None:
        self._nodes = informers.informer(NODES)
        self._pods = informers.informer(PODS)
        self._client = client

    def nodes(self) -> frozenset[str]:
        """See ``ClusterView.nodes``."""
        return frozenset(object_name(node) for node in self._nodes.lister.list())

    def pods(self) -> Mapping[PodKey, PodFacts]:
        """See ``ClusterView.pods``."""
        return {
            PodKey(namespace_of(pod), object_name(pod)): pod_facts(pod)
            for pod in self._pods.lister.list()
        }

    async def live_pod(self, key: PodKey) -> PodFacts | None:
        """See ``ClusterView.live_pod``; ApiError, ApiUnreachableError."""
        try:
            return pod_facts(await self._client.get(PODS, key.namespace, key.name))
        except ApiError as error:
            if error.is_not_found:
                return None
            raise

    def on_deletion(self, notify: Callable[[], None]) -> None:
        """See ``ClusterView.on_deletion``."""

        def handler(event: str, _old: object, _new: object) -> None:
            if event == "DELETED":
                notify()

        self._nodes.add_handler(handler)
        self._pods.add_handler(handler)


def pod_facts(pod: Mapping[str, Any]) -> PodFacts:
    """A Pod's node and addresses; one that ended has none."""
    status = pod.get("status") or {}
    node = str((pod.get("spec") or {}).get("nodeName") or "")
    if status.get("phase") in ("Succeeded", "Failed"):
        return PodFacts(node, ("",))
    ips = [str(each.get("ip")) for each in status.get("podIPs") or () if each.get("ip")]
    if not ips and status.get("podIP"):
        ips = [str(status["podIP"])]
    return PodFacts(node, tuple(ips))


class NodeController:
    """One for a cluster; ``run`` returns only when cancelled."""

    def __init__(
        self,
        view: ClusterView,
        ipam: Ipam,
        resources: ResourceClient,
        clock: Clock,
        log: logging.Logger,
        *,
        grace_s: float = LEAK_GRACE_S,
    ) -> None:
        self._view = view
        self._ipam = ipam
        self._resources = resources
        self._clock = clock
        self._log = log
        self._garbage = IpamGarbage(grace_s)
        self._period_s = (grace_s or LEAK_GRACE_S) / 2
        # Kubernetes' Nodes at the last look.
        self._seen: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        view.on_deletion(self._wake.set)

    async def run(self) -> None:
        """Look at every deletion, and twice a grace period."""
        while True:
            pause = self._period_s
            try:
                await self.sync()
            except (DatastoreError, EtcdError, ApiError, ApiUnreachableError) as error:
                self._log.warning("node controller: %s; trying again in %s s", error, RETRY_S)
                pause = RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                await asyncio.sleep(GATHER_S)
            self._wake.clear()

    async def sync(self) -> Garbage:
        """One look and what follows from it."""
        nodes = await self._delete_nodes(self._view.nodes())
        garbage = self._garbage.look(
            await self._ipam.blocks(), self._view.pods(), nodes, now=self._clock.monotonic()
        )
        await self._release(garbage, nodes)
        for node in garbage.nodes:
            self._log.info("node %s is gone: releasing its blocks", node)
            await self._ipam.remove_host(node)
        for block in await self._ipam.blocks():
            if block.cidr not in garbage.blocks:
                continue
            with contextlib.suppress(BlockNotEmptyError):
                await self._ipam.release_block_affinity(block, must_be_empty=True)
        return garbage

    async def _delete_nodes(self, kubernetes: frozenset[str]) -> frozenset[str]:
        """Delete Calico's Nodes whose Kubernetes Node is gone; return the names of all others.

        A node may start Calico before it has registered with Kubernetes: a Node never seen there
        counts as gone only when it is old.
        """
        left = set(kubernetes)
        for node in await self._resources.list("Node"):
            name = kubernetes_node(node)
            made = parse_rfc3339(node["metadata"].get("creationTimestamp")) or 0.0
            is_new = self._clock.time() - made < REGISTRATION_S and name not in self._seen
            if not name or name in kubernetes or is_new:
                left.add(name_of(node))
                continue
            self._log.info("node %s is gone from Kubernetes: deleting it", name)
            with contextlib.suppress(DoesNotExistError):
                await self._resources.delete("Node", name_of(node))
        self._seen = kubernetes
        return frozenset(left)

    async def _release(self, garbage: Garbage, nodes: frozenset[str]) -> None:
        """Release leaks unless the API server says otherwise now."""
        if not garbage.leaks:
            return
        alive = {
            key: facts
            for key in garbage.pods
            if (facts := await self._view.live_pod(key)) is not None
        }
        leaks = garbage.leaks
        if alive:
            blocks, now = await self._ipam.blocks(), self._clock.monotonic()
            again = self._garbage.look(blocks, {**self._view.pods(), **alive}, nodes, now=now)
            leaks = tuple(leak for leak in leaks if leak in again.leaks)
        self._log.info("releasing %d leaked addresses", len(leaks))
        outcome = await self._ipam.release_ips(*leaks)
        if outcome.failure is not None:
            # Somebody was faster, or the address has a new holder: the next look decides.
            self._log.info("not all leaks released: %s", outcome.failure)
