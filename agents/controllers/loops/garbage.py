"""Loops of garbage collection by owner and of namespaces being deleted."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from agents.controllers.garbage import Item, OwnerGraph, item_of, plan_item, unknown_owners
from emulator.kubeclient.controller import Controller
from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.meta import is_deleting, name_of, namespace_of, uid_of
from emulator.kubeclient.resource import EVENTS, NAMESPACES, PODS

if TYPE_CHECKING:
    from agents.controllers.garbage import Owner
    from agents.controllers.loops.kinds import Kinds
    from agents.controllers.shell import Shell
    from emulator.kubeclient.resource import Resource

    Object = dict[str, Any]

WORKERS = 20
# Owners known to be gone; upstream's absentOwnerCache holds 500.
MAX_ABSENT = 4096
# A namespace whose contents take their time (finalizers, graceful pods) is looked at this often
# if no event comes before.
NAMESPACE_RECHECK_S = 1.0
# Deletions of one namespace under way at once.
MAX_DELETIONS = 16


class GarbageLoop:
    """Watches every kind that can be deleted and collects what has lost its owners."""

    def __init__(self, shell: Shell, kinds: Kinds) -> None:
        self._shell = shell
        self._graph = OwnerGraph()
        self._kinds = kinds
        self._absent: OrderedDict[str, None] = OrderedDict()
        self._controller = Controller(
            "garbage", self._reconcile, workers=WORKERS, log=shell.env.log
        )
        shell.controllers.append(self._controller)
        kinds.follow(self._follow, self._drop)

    def _follow(self, resource: Resource) -> None:
        if resource.plural == EVENTS.plural:
            # Events are many, short-lived and owned by nobody.
            return

        # Whether such owners exist could not be told before.
        for uid in self._graph.owned_by_kind(resource):
            self._controller.queue.add(uid)

        def on_change(event: str, old: Object | None, new: Object | None) -> None:
            if new is not None:
                for uid in self._graph.put(item_of(new, resource)):
                    self._controller.queue.add(uid)
            else:
                assert old is not None
                self._gone(uid_of(old))

        self._shell.informers.informer(resource, metadata_only=True).add_handler(on_change)

    def _drop(self, resource: Resource) -> None:
        """A kind is served no longer, so all its objects are gone."""
        self._shell.informers.drop(resource)
        for uid in self._graph.of_resource(resource):
            self._gone(uid)

    def _gone(self, uid: str) -> None:
        self._note_absent(uid)
        for waiting in self._graph.remove(uid):
            self._controller.queue.add(waiting)

    def _note_absent(self, uid: str) -> None:
        self._absent[uid] = None
        if len(self._absent) > MAX_ABSENT:
            self._absent.popitem(last=False)

    async def _reconcile(self, uid: str) -> float | None:
        item = self._graph.get(uid)
        if item is None:
            return None
        exists = {owner.uid: True for owner in item.owners}
        if not item.deleting:
            for owner in unknown_owners(item, self._graph):
                exists[owner.uid] = await self._exists(item, owner)
        try:
            return await self._shell.carry_out(plan_item(item, self._graph, exists))
        except ApiError as error:
            if error.is_not_found:
                return None
            raise

    async def _exists(self, item: Item, owner: Owner) -> bool:
        resource = self._kinds.find(owner.api_version, owner.kind)
        if resource is None or (resource.namespaced and not item.namespace):
            # A kind this server does not serve is no proof that the owner is gone; neither is a
            # reference into a namespace from outside of all of them, which names no object.
            return True
        if owner.uid in self._absent:
            return False
        namespace = item.namespace if resource.namespaced else ""
        try:
            found = await self._shell.client.get(resource, namespace, owner.name)
        except ApiError as error:
            if not error.is_not_found:
                raise
        else:
            if uid_of(found) == owner.uid:
                return True
        self._note_absent(owner.uid)
        return False


class NamespaceLoop:
    """Empties namespaces that are being deleted, then lets them go."""

    def __init__(self, shell: Shell, kinds: Kinds) -> None:
        self._shell = shell
        self._kinds = kinds
        self._namespaces = shell.informers.informer(NAMESPACES)
        self._controller = Controller("namespace", self._reconcile, workers=4, log=shell.env.log)
        shell.controllers.append(self._controller)
        self._namespaces.add_handler(self._on_namespace)
        shell.informers.informer(PODS).add_handler(self._on_pod)

    def _on_namespace(self, event: str, old: Object | None, new: Object | None) -> None:
        if new is not None and is_deleting(new):
            self._controller.queue.add(name_of(new))

    def _on_pod(self, event: str, old: Object | None, new: Object | None) -> None:
        """The last pod's end is what most namespaces wait for."""
        if new is None and old is not None:
            namespace = self._namespaces.lister.get("", namespace_of(old))
            if namespace is not None and is_deleting(namespace):
                self._controller.queue.add(name_of(namespace))

    async def _reconcile(self, name: str) -> float | None:
        namespace = self._namespaces.lister.get("", name)
        if namespace is None or not is_deleting(namespace):
            return None
        finalizers = (namespace.get("spec") or {}).get("finalizers") or []
        if "kubernetes" not in finalizers:
            return None
        remaining = 0
        for resource in self._kinds.all():
            if not resource.namespaced:
                continue
            remaining += await self._empty(resource, name)
        if remaining:
            return NAMESPACE_RECHECK_S
        document = {
            **namespace,
            "spec": {"finalizers": [f for f in finalizers if f != "kubernetes"]},
        }
        try:
            await self._shell.client.update(NAMESPACES, document, subresource="finalize")
        except ApiError as error:
            if not error.is_not_found:
                raise
        return None

    async def _empty(self, resource: Resource, namespace: str) -> int:
        """Delete everything of a kind; returns how much is still there."""
        try:
            listed = await self._shell.client.list(resource, namespace)
        except ApiError as error:
            if error.status in (404, 405):
                return 0
            raise
        gate = asyncio.Semaphore(MAX_DELETIONS)
        async with asyncio.TaskGroup() as group:
            for obj in listed.items:
                if not is_deleting(obj):
                    group.create_task(self._delete(gate, resource, obj), name="namespace.delete")
        if not listed.items:
            return 0
        left = await self._shell.client.list(resource, namespace)
        return len(left.items)

    async def _delete(self, gate: asyncio.Semaphore, resource: Resource, obj: Object) -> None:
        async with gate:
            try:
                await self._shell.client.delete(
                    resource,
                    namespace_of(obj),
                    name_of(obj),
                    uid=uid_of(obj),
                    propagation_policy="Background",
                )
            except ApiError as error:
                if not error.is_not_found and not error.is_conflict:
                    self._shell.env.log.warning(
                        "namespace %s: deleting %s %s: %s",
                        namespace_of(obj),
                        resource.qualified,
                        name_of(obj),
                        error,
                    )


def add_garbage(shell: Shell, kinds: Kinds) -> None:
    """Append both loops; last of all, so that whole objects are shared where others need them."""
    NamespaceLoop(shell, kinds)
    GarbageLoop(shell, kinds)
