"""Informers: a local, indexed copy of a collection, and callbacks for what changes in it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from emulator.kubeclient.meta import key_of, uid_of
from emulator.kubeclient.reflector import Changes, Reflector, Replace
from emulator.kubeclient.store import Lister, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.kubeclient.backoff import BackoffPolicy
    from emulator.kubeclient.resource import Resource
    from emulator.kubeclient.rest import RestClient
    from emulator.kubeclient.store import IndexFunction

    Object = dict[str, Any]
    # event is ADDED (old None), MODIFIED, or DELETED (new None).
    Handler = Callable[[str, Object | None, Object | None], None]


def drop_managed_fields(obj: Object) -> Object:
    """Forget ``metadata.managedFields``, which no agent reads and which is half of an object."""
    obj["metadata"].pop("managedFields", None)
    return obj


class Informer:
    """Keeps ``lister`` equal to the server's collection and tells handlers of each change.

    Handlers are plain functions, called in order of the changes after the store shows them; they
    must only note work (``queue.add(key)``).  ``synced`` is set once the first list has been
    handed to every handler.
    """

    def __init__(
        self,
        client: RestClient,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        log: logging.Logger | None = None,
        transform: Callable[[Object], Object] = drop_managed_fields,
        backoff: BackoffPolicy | None = None,
    ) -> None:
        """``transform`` may shrink each object before it is stored."""
        self.resource = resource
        self.synced = asyncio.Event()
        self._store = Store()
        self._handlers: list[Handler] = []
        self._transform = transform
        self._log = log or logging.getLogger("podwire.kubeclient")
        self.reflector = Reflector(
            client,
            resource,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            log=self._log,
            backoff=backoff,
        )

    @property
    def lister(self) -> Lister:
        """The local copy."""
        return self._store

    def add_handler(self, handler: Handler) -> None:
        """Call ``handler(event, old, new)`` for each change from now on.

        Objects already known are replayed to it as ADDED at once.
        """
        self._handlers.append(handler)
        for obj in self._store.list():
            handler("ADDED", None, obj)

    def add_index(self, name: str, function: IndexFunction) -> None:
        """Index objects by the values ``function`` gives, for ``lister.by_index``."""
        self._store.index_by(name, function)

    async def run(self) -> None:
        """List and watch for ever; returns only when cancelled."""
        async with asyncio.TaskGroup() as group:
            name = self.resource.plural
            group.create_task(self.reflector.run(), name=f"reflector.{name}")
            group.create_task(self._apply_all(), name=f"informer.{name}")

    async def _apply_all(self) -> None:
        queue = self.reflector.queue
        while True:
            batch = await queue.get()
            if isinstance(batch, Replace):
                self._replace(batch)
                self.synced.set()
            else:
                self._change(batch)

    def _replace(self, batch: Replace) -> None:
        listed = {key_of(obj): obj for obj in batch.items}
        for key in self._store.all_keys():
            if key not in listed:
                self._remove(key)
        for obj in listed.values():
            self._put(obj)

    def _change(self, batch: Changes) -> None:
        for kind, obj in batch.events:
            if kind == "DELETED":
                self._remove(key_of(obj))
            else:
                self._put(obj)

    def _put(self, obj: Object) -> None:
        known = self._store.get_by_key(key_of(obj))
        version = obj["metadata"].get("resourceVersion")
        if known is not None:
            if version and known["metadata"].get("resourceVersion") == version:
                return
            if uid_of(known) != uid_of(obj):
                # Deleted and made anew between two looks: two different things.
                self._remove(key_of(obj))
        obj = self._transform(obj)
        old = self._store.put(obj)
        self._notify("ADDED" if old is None else "MODIFIED", old, obj)

    def _remove(self, key: str) -> None:
        old = self._store.remove(key)
        if old is not None:
            self._notify("DELETED", old, None)

    def _notify(self, event: str, old: Object | None, new: Object | None) -> None:
        for handler in self._handlers:
            handler(event, old, new)


def only_metadata(obj: Object) -> Object:
    """Keep an object's identity and metadata; for those who only follow owners."""
    meta = {k: v for k, v in obj["metadata"].items() if k not in ("managedFields", "annotations")}
    return {"apiVersion": obj.get("apiVersion"), "kind": obj.get("kind"), "metadata": meta}


class SharedInformers:
    """One informer per collection for a whole process."""

    def __init__(self, client: RestClient, log: logging.Logger | None = None) -> None:
        self._client = client
        self._log = log
        self._informers: dict[tuple[Resource, str, str, str], Informer] = {}
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[tuple[Resource, str, str, str], asyncio.Task[None]] = {}

    def informer(
        self,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        metadata_only: bool = False,
    ) -> Informer:
        """The shared informer of a collection, made at the first call; once ``run`` runs it runs.

        With ``metadata_only`` its objects may lack everything else: whoever needs them whole asks
        before.
        """
        key = (resource, namespace, label_selector, field_selector)
        if key not in self._informers:
            self._informers[key] = Informer(
                self._client,
                resource,
                namespace=namespace,
                label_selector=label_selector,
                field_selector=field_selector,
                log=self._log,
                transform=only_metadata if metadata_only else drop_managed_fields,
            )
            self._start(key)
        return self._informers[key]

    def drop(self, resource: Resource) -> None:
        """Stop following a kind that is no longer served."""
        for key in [key for key in self._informers if key[0] == resource]:
            del self._informers[key]
            if (task := self._tasks.pop(key, None)) is not None:
                task.cancel()

    def _start(self, key: tuple[Resource, str, str, str]) -> None:
        if self._group is not None:
            name = f"informers.{key[0].plural}"
            self._tasks[key] = self._group.create_task(self._informers[key].run(), name=name)

    async def run(self) -> None:
        """Run every informer asked for; returns only when cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for key in self._informers:
                self._start(key)

    async def wait_synced(self) -> None:
        """Return when every informer has its first list."""
        for informer in [*self._informers.values()]:
            await informer.synced.wait()
