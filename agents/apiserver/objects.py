"""Stored objects: read from the cache, changed by optimistic writes to the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.apiserver import crds
from agents.apiserver.admission import admit_pod
from agents.apiserver.cache import object_key
from agents.apiserver.config import EVENT_TTL_S, PATCH_RETRIES, Verdict
from agents.apiserver.definitions import shapes
from emulator.apimachinery import serverside
from emulator.apimachinery import status as errors
from emulator.apimachinery.convert import from_storage, to_storage
from emulator.apimachinery.fielderrors import ErrorKind, FieldError
from emulator.apimachinery.lifecycle import (
    DeleteOptions,
    Deletion,
    finished,
    plan_delete,
    prepare_create,
    prepare_update,
)
from emulator.apimachinery.objects import Obj, copy_json, dig, dump_json, items, name_of
from emulator.apimachinery.times import rfc3339

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from agents.apiserver.cache import Bucket, Cache, Entry
    from agents.apiserver.call import Call
    from agents.apiserver.config import Admission, StorageRoot
    from agents.apiserver.services import Reservation, ServiceAddresses
    from agents.apiserver.store import Store, Stored
    from emulator.apimachinery.resources import ResourceType

# The real server's namespace lifecycle plug-in protects these.
_PROTECTED = (
    ("namespaces", "default"),
    ("namespaces", "kube-system"),
    ("namespaces", "kube-public"),
)


class Objects:
    """Every write goes through here, whichever verb or subresource asked for it."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        addresses: ServiceAddresses,
        now: Callable[[], float],
        rng: random.Random,
        roots: Mapping[str, StorageRoot] | None = None,
        admissions: Mapping[str, Admission] | None = None,
    ) -> None:
        self.cache = cache
        self._roots = roots or {}
        self._admissions = admissions or {}
        self._store = store
        self._addresses = addresses
        self.now = now
        self.rng = rng

    def bucket(self, resource: ResourceType) -> Bucket:
        return self.cache.bucket(resource.directory)

    async def current(self, resource: ResourceType, namespace: str, name: str) -> Obj:
        """The stored object (not to be changed); StatusError 404."""
        await self.cache.fresh()
        return self._entry(resource, namespace, name).obj

    def _entry(self, resource: ResourceType, namespace: str, name: str) -> Entry:
        key = f"{namespace}/{name}" if resource.namespaced else name
        entry = self.bucket(resource).entries.get(key)
        if entry is None:
            raise errors.not_found(resource.plural, resource.group, name)
        return entry

    def peek(self, resource: ResourceType, namespace: str, name: str) -> Obj | None:
        """The cached object, None if there is none."""
        key = f"{namespace}/{name}" if resource.namespaced else name
        entry = self.bucket(resource).entries.get(key)
        return None if entry is None else entry.obj

    def _look(self, directory: str, namespace: str, name: str) -> Obj | None:
        key = f"{namespace}/{name}" if namespace else name
        entry = self.cache.bucket(directory).entries.get(key)
        return None if entry is None else entry.obj

    def _require_namespace(self, resource: ResourceType, namespace: str, name: str) -> None:
        entry = self.cache.bucket("namespaces").entries.get(namespace)
        if entry is None:
            raise errors.not_found("namespaces", "", namespace)
        if dig(entry.obj, "status", "phase") == "Terminating" and resource.plural != "events":
            error = errors.forbidden(
                resource.plural,
                resource.group,
                name,
                f"unable to create new content in namespace {namespace} because it is being "
                "terminated",
            )
            assert error.details is not None
            error.details["causes"] = [
                {
                    "reason": "NamespaceTerminating",
                    "message": f"namespace {namespace} is being terminated",
                    "field": "metadata.namespace",
                }
            ]
            raise error

    async def create(
        self,
        resource: ResourceType,
        obj: Obj,
        namespace: str,
        *,
        dry_run: bool = False,
        manager: str = "",
    ) -> Obj:
        """Store a new object; return it as its client sees it.

        ``manager`` is noted as the owner of its fields; "" notes nobody.
        """
        await self.cache.fresh()
        definition = self._look(crds.DIRECTORY, "", f"{resource.plural}.{resource.group}")
        if definition is not None and dig(definition, "metadata", "deletionTimestamp"):
            text = "create not allowed while custom resource definition is terminating"
            raise errors.StatusError(405, "MethodNotAllowed", text)
        prepare_create(resource, obj, namespace=namespace, now=self.now(), rng=self.rng)
        if manager:
            who = serverside.Manager(manager, "Update", resource.group_version)
            serverside.record_update(resource, None, obj, who, rfc3339(self.now()), shapes())
        name = name_of(obj)
        if resource.namespaced:
            self._require_namespace(resource, namespace, name)
        if (resource.group, resource.plural) == ("", "pods"):
            admit_pod(obj, namespace, self._look, self.rng)
        self._judge(resource, obj, None)
        stored = to_storage(resource, obj)
        reservation = self._reserve(resource, stored, None)
        kept = False
        try:
            key = object_key(resource.directory, namespace if resource.namespaced else "", name)
            if self.peek(resource, namespace, name) is not None:
                raise errors.already_exists(resource.plural, resource.group, name)
            if dry_run:
                return from_storage(resource, stored)
            ttl = EVENT_TTL_S if resource.plural == "events" else 0
            written = await self._store.create(key, dump_json(stored), ttl)
            if not written.done:
                raise errors.already_exists(resource.plural, resource.group, name)
            kept = True
        finally:
            if reservation is not None:
                (reservation.keep if kept else reservation.undo)()
        self.cache.wrote(written.revision)
        stored["metadata"]["resourceVersion"] = str(written.revision)
        return from_storage(resource, stored)

    def verdict(self, resource: ResourceType, new: Obj, old: Obj | None = None) -> Verdict:
        """What the owner of the resource's group says of an object."""
        admission = self._admissions.get(resource.group)
        if admission is None:
            return Verdict()
        others = (entry.obj for entry in self.bucket(resource).entries.values())
        before = None if old is None else to_storage(resource, old)
        return admission(to_storage(resource, new), before, others)

    def _judge(self, resource: ResourceType, new: Obj, old: Obj | None) -> None:
        """Take away fields the kind does not have; StatusError 422 for what its owner refuses."""
        verdict = self.verdict(resource, new, old)
        for *way, field in verdict.unknown:
            holder: Any = new
            for step in way:
                holder = holder[step]
            del holder[field]
        found = [
            FieldError(name, ErrorKind.INVALID, value, reason)
            for name, value, reason in verdict.errors
        ]
        if found:
            raise errors.invalid(resource.kind, resource.group, name_of(new), found)

    def _reserve(self, resource: ResourceType, new: Obj, old: Obj | None) -> Reservation | None:
        if (resource.group, resource.plural) != ("", "services"):
            return None
        return self._addresses.reserve(new, old)

    async def modify(
        self,
        resource: ResourceType,
        namespace: str,
        name: str,
        change: Callable[[Obj], Obj],
        *,
        subresource: str = "",
        dry_run: bool = False,
        retry: bool = True,
        call: Call | None = None,
    ) -> Obj:
        """Read, change, prepare, write if unchanged; again when somebody else was faster.

        ``change`` gets the object as its client sees it and returns the wanted one.  With
        ``call`` the change is noted in the object's managedFields.
        """
        for _ in range(PATCH_RETRIES if retry else 1):
            old = from_storage(resource, await self.current(resource, namespace, name))
            new = prepare_update(resource, change(copy_json(old)), old, subresource=subresource)
            if new == old:
                return old
            if call is not None:
                self._note_manager(call, old, new)
            self._judge(resource, new, old)
            if finished(resource, new) and not finished(resource, old):
                if dry_run or await self._remove(resource, namespace, old):
                    return new
                continue
            revision = int(old["metadata"]["resourceVersion"])
            out = await self._replace(resource, namespace, new, old, revision, dry_run=dry_run)
            if out is not None:
                return out
        raise errors.conflict(resource.plural, resource.group, name, errors.MODIFIED)

    def _note_manager(self, call: Call, old: Obj, new: Obj) -> None:
        """Who changes what; nobody asks about objects only agents write, so those are spared."""
        if not call.field_manager and not dig(old, "metadata", "managedFields"):
            return
        name = call.field_manager or call.user_agent
        gv = call.resource.group_version
        who = serverside.Manager(name, "Update", gv, call.subresource)
        serverside.record_update(call.resource, old, new, who, rfc3339(self.now()), shapes())

    async def _replace(
        self,
        resource: ResourceType,
        namespace: str,
        new: Obj,
        old: Obj,
        revision: int,
        *,
        dry_run: bool,
    ) -> Obj | None:
        """Write; None if the object is no longer at ``revision``."""
        name = name_of(old)
        stored = to_storage(resource, new)
        reservation = self._reserve(resource, stored, old)
        kept = False
        try:
            if dry_run:
                return from_storage(resource, stored)
            value = copy_json(stored)
            value["metadata"].pop("resourceVersion", None)
            key = object_key(resource.directory, namespace if resource.namespaced else "", name)
            ttl = EVENT_TTL_S if resource.plural == "events" else 0
            written = await self._store.replace(key, dump_json(value), revision, ttl)
            if not written.done:
                self._catch_up(resource, name, written.current)
                return None
            kept = True
        finally:
            if reservation is not None:
                (reservation.keep if kept else reservation.undo)()
        self.cache.wrote(written.revision)
        stored["metadata"]["resourceVersion"] = str(written.revision)
        return from_storage(resource, stored)

    def _catch_up(self, resource: ResourceType, name: str, current: Stored | None) -> None:
        """Let later reads see what was there instead of the object as this server knew it.

        Where nothing is there, no revision says when it went: etcd's newest may be of a key that
        is not followed here, and waiting for it would hold every read up.
        """
        if current is None:
            raise errors.not_found(resource.plural, resource.group, name)
        self.cache.wrote(current.revision)

    async def delete(
        self, resource: ResourceType, namespace: str, name: str, options: DeleteOptions
    ) -> tuple[Obj, bool]:
        """Delete, or begin to; return the object and whether it is gone."""
        if (resource.plural, name) in _PROTECTED:
            raise errors.forbidden("namespaces", "", name, "this namespace may not be deleted")
        for _ in range(PATCH_RETRIES):
            old = await self.current(resource, namespace, name)
            plan = plan_delete(resource, old, options, self.now())
            if plan.remove and resource.plural == crds.DIRECTORY and not options.dry_run:
                await self._empty(old)
                if self._instances(old):
                    plan = Deletion(False, crds.terminating(old, self.now()))
            if plan.remove:
                if options.dry_run or await self._remove(resource, namespace, old):
                    return old, True
                continue
            if plan.obj is None or options.dry_run:
                return plan.obj or old, False
            revision = int(old["metadata"]["resourceVersion"])
            out = await self._replace(resource, namespace, plan.obj, old, revision, dry_run=False)
            if out is not None:
                return out, False
        raise errors.conflict(resource.plural, resource.group, name, errors.MODIFIED)

    def _instances(self, definition: Obj) -> list[tuple[ResourceType, str]]:
        """Every object of a custom resource, as (resource, key)."""
        # All versions share one directory.
        return [
            (resource, key)
            for resource in crds.resources_of(definition, self._roots)[:1]
            for key in self.bucket(resource).order()
        ]

    async def _empty(self, definition: Obj) -> None:
        """Delete all objects of a custom resource before its definition goes."""
        for resource, key in self._instances(definition):
            namespace, _, name = key.rpartition("/")
            try:
                await self.delete(resource, namespace, name, DeleteOptions())
            except errors.StatusError as error:
                if error.code != 404:
                    raise
        await self.cache.fresh()

    async def end_definitions(self) -> None:
        """Let definitions go that are being deleted and whose objects are all gone."""
        await self.cache.fresh()
        bucket = self.cache.bucket(crds.DIRECTORY)
        for key in list(bucket.order()):
            found = bucket.entries.get(key)
            if found is None or crds.CLEANUP not in items(found.obj, "metadata", "finalizers"):
                continue
            if found.obj["metadata"].get("deletionTimestamp") and not self._instances(found.obj):
                await self.modify(crds.RESOURCE, "", key, crds.released)

    async def _remove(self, resource: ResourceType, namespace: str, old: Obj) -> bool:
        name = name_of(old)
        key = object_key(resource.directory, namespace if resource.namespaced else "", name)
        written = await self._store.remove(key, int(old["metadata"]["resourceVersion"]))
        if not written.done:
            self._catch_up(resource, name, written.current)
            return False
        self.cache.wrote(written.revision)
        if (resource.group, resource.plural) == ("", "services"):
            self._addresses.release(old)
        if resource.group and not resource.schema:
            await self.end_definitions()
        return True
