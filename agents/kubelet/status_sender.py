"""Tells the API server of one pod's status: the newest whenever it is due, none twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from agents.kubelet.status import build_status, own_status
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.meta import resource_version
from emulator.kubeclient.resource import PODS

if TYPE_CHECKING:
    from agents.kubelet.record import PodRecord
    from agents.kubelet.spec import PodSpec
    from agents.kubelet.worker import NodeRuntime

API_RETRY_S: Final = 0.5


class StatusSender:
    """One pod's status; ``pod`` is its newest object, ``due`` is set when it may have changed."""

    def __init__(self, node: NodeRuntime, pod: PodSpec, record: PodRecord) -> None:
        self.pod = pod
        self.due = asyncio.Event()
        self._node = node
        self._record = record
        self._sent: dict[str, Any] | None = None
        # What the API server made of it, and when.
        self._stored: dict[str, Any] = {}
        self._stored_version = 0

    def update(self, pod: PodSpec) -> None:
        """The object has changed: send the status again where somebody wrote another after us.

        The node lifecycle controller does: Ready=False on the pods of a node it does not hear.
        """
        self.pod = pod
        if resource_version(pod.obj) <= self._stored_version or self._sent is None:
            return
        if own_status(pod.obj.get("status") or {}) != own_status(self._stored):
            self._sent = None
            self._record.condition_times.clear()
            self.due.set()

    def build(self) -> dict[str, Any]:
        """The status as it is now."""
        now = self._node.role.clock.time()
        return build_status(self.pod, self._record, self._node.config, now)

    async def run(self, first: dict[str, Any]) -> None:
        """Send ``first``, which is how the pod was found, then the newest whenever it is due."""
        status: dict[str, Any] | None = first
        while True:
            if status is None:
                await self.due.wait()
                self.due.clear()
            try:
                await self.send(status)
                status = None
            except ApiError as error:
                status = None
                if error.is_not_found:
                    continue
                self._node.role.log.warning("status of pod %s: %s", self.pod.key, error)
                await self._later()
            except ApiUnreachableError:
                status = None
                await self._later()

    async def _later(self) -> None:
        await asyncio.sleep(API_RETRY_S)
        self.due.set()

    async def send(self, status: dict[str, Any] | None = None) -> None:
        """Send a status, else the newest, unless it was the last; ApiError, ApiUnreachableError."""
        if status is None:
            status = self.build()
        if status == self._sent:
            return
        pod = self.pod
        # The uid keeps the status off a later pod of the same name.
        body = {"metadata": {"uid": pod.uid}, "status": status}
        stored = await self._node.client.patch(
            PODS, pod.namespace, pod.name, body, "merge", subresource="status"
        )
        self._sent = status
        self._stored = stored.get("status") or {}
        self._stored_version = resource_version(stored)
        if resource_version(self.pod.obj) > self._stored_version:
            self.update(self.pod)
