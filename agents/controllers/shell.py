"""The hands of the controllers: carries plans out against the API server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agents.controllers.actions import Action, Create, Delete, Emit, Patch, Plan
from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.meta import (
    controller_of,
    is_deleting,
    key_of,
    name_of,
    namespace_of,
    object_reference,
    uid_of,
)
from emulator.kubeclient.resource import PODS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from agents.controllers.expectations import Expectations
    from emulator.kubeclient.controller import Controller
    from emulator.kubeclient.events import EventRecorder
    from emulator.kubeclient.informer import SharedInformers
    from emulator.kubeclient.resource import Resource
    from emulator.kubeclient.rest import RestClient
    from emulator.runtime.role import RoleEnv

    Object = dict[str, Any]


class Shell:
    """What every controller's loop is given."""

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        env: RoleEnv,
    ) -> None:
        self.client = client
        self.informers = informers
        self.recorder = recorder
        self.env = env
        self.controllers: list[Controller] = []
        """Everything to run; each loop appends its own."""
        self.after_sync: list[Callable[[], None]] = []
        """Called once when every informer has its first list, before the controllers run."""

    def now(self) -> float:
        """Unix seconds."""
        return self.env.clock.time()

    @property
    def rng(self) -> random.Random:
        """This process' randomness."""
        return self.env.rng

    async def carry_out(self, plan: Plan) -> float | None:
        """Do a plan's actions in order; returns when to ask again.  ApiError stops it."""
        for action in plan.actions:
            await self.do(action)
        return plan.again_s

    async def do(self, action: Action) -> None:
        """Do one action."""
        match action:
            case Create(resource, obj):
                await self._create(resource, obj)
            case Patch(resource, namespace, name, body, subresource, kind):
                await self.client.patch(
                    resource, namespace, name, body, kind, subresource=subresource
                )
            case Delete():
                await self._delete(action)
            case Emit(reference, type_, reason, message, component):
                self.recorder.event_about(reference, type_, reason, message, component=component)

    async def _create(self, resource: Resource, obj: Object) -> None:
        try:
            await self.client.create(resource, obj)
        except ApiError as error:
            # What asked for it is about to go as well.
            if not error.is_namespace_terminating:
                raise

    async def _delete(self, action: Delete) -> None:
        try:
            await self.client.delete(
                action.resource,
                action.namespace,
                action.name,
                uid=action.uid,
                propagation_policy=action.propagation,
                grace_period_s=action.grace_s,
            )
        except ApiError as error:
            # Gone, or another object of the name by now: there is nothing of ours to delete.
            if not error.is_not_found and not (action.uid and error.is_conflict):
                raise


class PodControl:
    """Creates and deletes an owner's pods, counting what its informer has yet to show."""

    def __init__(
        self, shell: Shell, resource: Resource, component: str, expectations: Expectations
    ) -> None:
        self._shell = shell
        self._resource = resource
        self._component = component
        self._expectations = expectations

    def observe(self, event: str, old: Object | None, new: Object | None) -> str | None:
        """Handler's part: settle expectations; returns the key of the pod's owner, if ours."""
        pod = new if new is not None else old
        assert pod is not None
        owner = controller_of(pod)
        if owner is None or owner.get("kind") != self._resource.kind:
            return None
        key = f"{namespace_of(pod)}/{owner['name']}"
        if event == "ADDED":
            self._expectations.creation_seen(key)
        if new is None or is_deleting(new):
            self._expectations.deletion_seen(key, uid_of(pod))
        return key

    async def create(self, owner: Object, pods: Sequence[Object]) -> None:
        """Create pods in batches of 1, 2, 4, …, so that a refusal costs one request, not all.

        Raises the first ApiError after its batch; the event FailedCreate tells of it.
        """
        key, now = key_of(owner), self._shell.now()
        self._expectations.expect_creations(key, len(pods), now)
        done, size = 0, 1
        while done < len(pods):
            batch = pods[done : done + size]
            results = await asyncio.gather(
                *(self._create_one(owner, pod) for pod in batch), return_exceptions=True
            )
            done += len(batch)
            size *= 2
            failures = [result for result in results if isinstance(result, BaseException)]
            if failures:
                for _ in range(len(failures) + len(pods) - done):
                    self._expectations.creation_seen(key)
                raise failures[0]

    async def _create_one(self, owner: Object, pod: Object) -> None:
        try:
            await self._shell.client.create(PODS, pod)
        except ApiError as error:
            if error.is_namespace_terminating:
                # The owner is about to go as well.
                self._expectations.creation_seen(key_of(owner))
                return
            self._tell(owner, "Warning", "FailedCreate", f"Error creating: {error}")
            raise
        self._tell(owner, "Normal", "SuccessfulCreate", f"Created pod: {name_of(pod)}")

    async def delete(self, owner: Object, pods: Sequence[Object]) -> None:
        """Delete pods all at once; raises the first ApiError after all were tried."""
        key, now = key_of(owner), self._shell.now()
        for pod in pods:
            self._expectations.expect_deletion(key, uid_of(pod), now)
        results = await asyncio.gather(
            *(self._delete_one(owner, key, pod) for pod in pods), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _delete_one(self, owner: Object, key: str, pod: Object) -> None:
        try:
            await self._shell.client.delete(PODS, namespace_of(pod), name_of(pod), uid=uid_of(pod))
        except ApiError as error:
            self._expectations.deletion_seen(key, uid_of(pod))
            if error.is_not_found or error.is_conflict:
                return
            self._tell(owner, "Warning", "FailedDelete", f"Error deleting: {error}")
            raise
        except BaseException:
            self._expectations.deletion_seen(key, uid_of(pod))
            raise
        self._tell(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {name_of(pod)}")

    def _tell(self, owner: Object, type_: str, reason: str, message: str) -> None:
        reference = object_reference(owner, self._resource)
        self._shell.recorder.event_about(
            reference, type_, reason, message, component=self._component
        )
