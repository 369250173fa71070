"""The controllers that mirror Kubernetes into the datastore: one loop for all of them; shell.

Upstream has a controller for each kind; here one task compares everything known on both sides
and writes what differs, each write by compare-and-swap, so that two of them only repeat work.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from agents.calico.errors import AlreadyExistsError, DatastoreError, DoesNotExistError
from agents.calico.kubecontrollers.mirroring import PREFIXES, Cluster, plan
from agents.calico.mirror import Mirror
from agents.calico.resources import labels_of, name_of, namespace_of
from emulator.errors import UsageError
from emulator.kubeclient.resource import (
    NAMESPACES,
    NETWORKPOLICIES,
    NODES,
    PODS,
    SERVICEACCOUNTS,
)
from etcd.client import EtcdError

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable

    from agents.calico.client import ResourceClient
    from agents.calico.datastore import Datastore
    from agents.calico.resources import Resource
    from emulator.kubeclient.informer import SharedInformers

# Changes that come together are written together.
GATHER_S: Final = 0.01
# After a write somebody else was faster with, or a refusal of etcd.
RETRY_S: Final = 0.5
# Everything is compared anew this often (upstream's reconcilerPeriod is 5 minutes).
RESYNC_S: Final = 300.0


class PolicyController:
    """Keeps profiles, policies and labels in step; ``run`` returns only when cancelled."""

    def __init__(
        self,
        client: ResourceClient,
        datastore: Datastore,
        informers: SharedInformers,
        log: logging.Logger,
        *,
        on_synced: Callable[[], None] = lambda: None,
    ) -> None:
        """Make it before the informers run; ``on_synced`` is called after the first comparison."""
        self._client = client
        self._log = log
        self._informers = informers
        self._on_synced = on_synced
        self._dirty = asyncio.Event()
        self._refused: set[str] = set()
        self._mirror = Mirror(datastore, PREFIXES, self._note_keys, log)
        self._namespaces = informers.informer(NAMESPACES)
        self._accounts = informers.informer(SERVICEACCOUNTS)
        self._policies = informers.informer(NETWORKPOLICIES)
        self._pods = informers.informer(PODS)
        for informer in (self._namespaces, self._accounts, self._policies, self._pods):
            informer.add_handler(self._note)
        self._nodes = informers.informer(NODES)
        self._nodes.add_handler(self._note_node)

    def _note(self, event: str, old: object, new: object) -> None:
        self._dirty.set()

    def _note_node(
        self, event: str, old: dict[str, Any] | None, new: dict[str, Any] | None
    ) -> None:
        # A node's status changes all the time.
        if old is None or new is None or labels_of(old) != labels_of(new):
            self._dirty.set()

    def _note_keys(self, keys: tuple[str, ...]) -> None:
        self._dirty.set()

    async def run(self) -> None:
        """Follow both sides until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mirror.run(), name="kube-controllers.datastore")
            group.create_task(self._write_for_ever(), name="kube-controllers.policy")

    async def _write_for_ever(self) -> None:
        await self._informers.wait_synced()
        await self._mirror.synced.wait()
        first = True
        while True:
            self._dirty.clear()
            settled = await self._write_all()
            if first and settled:
                first = False
                self._on_synced()
            try:
                async with asyncio.timeout(RESYNC_S if settled else RETRY_S):
                    await self._dirty.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(GATHER_S)

    async def _write_all(self) -> bool:
        """Write what differs now; False if something is worth another try."""
        cluster = Cluster(
            tuple(self._namespaces.lister.list()),
            tuple(self._accounts.lister.list()),
            tuple(self._policies.lister.list()),
            tuple(self._pods.lister.list()),
            tuple(self._nodes.lister.list()),
        )
        writes = plan(cluster, self._mirror.items)
        settled = True
        for resource in writes.create:
            settled &= await self._try(self._client.create, resource)
        for resource in writes.update:
            settled &= await self._try(self._client.update, resource)
        for resource in writes.delete:
            settled &= await self._try(self._delete, resource)
        return settled

    async def _try(
        self, write: Callable[[Resource], Awaitable[object]], resource: Resource
    ) -> bool:
        label = f"{resource['kind']} {namespace_of(resource)}/{name_of(resource)}"
        try:
            await write(resource)
        except (AlreadyExistsError, DoesNotExistError):
            # The mirror will show what is there.
            return True
        except UsageError as error:
            # No repetition makes it better; said once for each object.
            if label not in self._refused:
                self._refused.add(label)
                self._log.error("%s cannot be written: %s", label, error)
            return True
        except (DatastoreError, EtcdError) as error:
            self._log.info("%s: %s; trying again", label, error)
            return False
        self._refused.discard(label)
        return True

    async def _delete(self, resource: Resource) -> None:
        await self._client.delete(
            resource["kind"],
            name_of(resource),
            namespace_of(resource),
            resource_version=resource["metadata"]["resourceVersion"],
        )
