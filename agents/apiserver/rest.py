"""The verbs on stored resources: get, list, watch, create, update, patch, delete."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agents.apiserver import body as bodies
from agents.apiserver import crds, watching
from agents.apiserver.cache import object_key
from agents.apiserver.config import EVENT_TTL_S, PATCH_RETRIES
from agents.apiserver.forms import LIST_KINDS, OBJECT_KINDS, Form
from agents.apiserver.lists import ListPages, Selection
from agents.apiserver.negotiate import accepted, respond
from agents.apiserver.patching import PATCH_TYPES, apply_patch
from emulator.apimachinery import status as errors
from emulator.apimachinery.convert import from_storage, to_storage
from emulator.apimachinery.lifecycle import (
    DeleteOptions,
    delete_options,
    finished,
    plan_delete,
    prepare_create,
    prepare_update,
)
from emulator.apimachinery.objects import Obj, copy_json, dig, dump_json, name_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from aiohttp import web

    from agents.apiserver.cache import Bucket, Cache, Entry
    from agents.apiserver.call import Call
    from agents.apiserver.services import Reservation, ServiceAddresses
    from agents.apiserver.store import Store
    from emulator.apimachinery.resources import ResourceType

# Kinds a PUT may create (AllowCreateOnUpdate of their strategies).
CREATE_ON_UPDATE = ("endpoints", "events", "leases", "limitranges")


class Rest:
    """Reads from the cache, writes through the store."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        addresses: ServiceAddresses,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.cache = cache
        self._store = store
        self._addresses = addresses
        self.now = now
        self.rng = rng
        self._pages = ListPages()

    def _bucket(self, resource: ResourceType) -> Bucket:
        return self.cache.bucket(resource.directory)

    async def current(self, resource: ResourceType, namespace: str, name: str) -> Obj:
        """The stored object (not to be changed); StatusError 404."""
        await self.cache.fresh()
        return self._entry(resource, namespace, name).obj

    def _entry(self, resource: ResourceType, namespace: str, name: str) -> Entry:
        key = f"{namespace}/{name}" if resource.namespaced else name
        entry = self._bucket(resource).entries.get(key)
        if entry is None:
            raise errors.not_found(resource.plural, resource.group, name)
        return entry

    def peek(self, resource: ResourceType, namespace: str, name: str) -> Obj | None:
        """The cached object, None if there is none."""
        key = f"{namespace}/{name}" if resource.namespaced else name
        entry = self._bucket(resource).entries.get(key)
        return None if entry is None else entry.obj

    # -- reads

    async def get(self, call: Call) -> web.StreamResponse:
        """GET of one object."""
        form = self.form(call)
        revision = watching.parse_revision(call.query)
        if revision:
            await self.cache.reach(revision)
        obj = await self.current(call.resource, call.namespace, call.name)
        out = from_storage(call.resource, obj)
        if call.query.get("export") in ("true", "1"):
            out = export(out)
        return respond(form.one(out), media=form.content_type, request=call.request)

    def form(self, call: Call) -> Form:
        """The form a single object is answered in."""
        wanted = accepted(call.accept, kinds=OBJECT_KINDS)
        return Form(call.resource, wanted, call.query, self.now)

    async def collection(self, call: Call) -> web.StreamResponse:
        """GET of a collection."""
        wanted = accepted(call.accept, kinds=LIST_KINDS)
        form = Form(call.resource, wanted, call.query, self.now)
        selection = Selection.of(call)
        revision = watching.parse_revision(call.query)
        match = call.query.get("resourceVersionMatch") or ""
        if match and revision is None:
            raise errors.StatusError(
                422,
                "Invalid",
                'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: '
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            )
        if revision:
            await self.cache.reach(revision)
        await self.cache.fresh()
        entries, metadata = self._pages.page(
            call.query, self._bucket(call.resource), self.cache.revision, selection
        )
        return respond(form.many(entries, metadata), media=form.content_type, request=call.request)

    async def watch(self, call: Call) -> web.StreamResponse:
        """A watch of a collection or of one object."""
        wanted = accepted(call.accept, kinds=OBJECT_KINDS | LIST_KINDS, stream=True)
        form = Form(call.resource, wanted, call.query, self.now)
        asked = watching.WatchRequest(call.query, self.rng)
        selection = Selection.of(call)
        bucket = self._bucket(call.resource)
        return await watching.serve(
            call.request, self.cache, bucket, asked, form, selection.matches
        )

    # -- writes

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

    async def read_object(self, call: Call) -> tuple[Obj, list[str]]:
        """The request's body as an object of the resource's kind, and warnings."""
        resource = call.resource
        media = bodies.media_type(call.request)
        if media not in bodies.ACCEPTED:
            raise errors.unsupported_media_type(media, bodies.ACCEPTED)
        mode = bodies.validation_mode(call.query)
        data = await bodies.read(call.request)
        obj = bodies.decode(data, media, resource.schema, resource.kind)
        return bodies.check_object(
            obj,
            kind=resource.kind,
            group_version=resource.group_version,
            schema=resource.schema,
            mode=mode,
        )

    async def create(self, call: Call) -> web.StreamResponse:
        """POST to a collection."""
        form = self.form(call)
        obj, warnings = await self.read_object(call)
        out = await self.create_object(
            call.resource, obj, call.namespace, dry_run=bodies.dry_run(call.query)
        )
        return respond(form.one(out), status=201, media=form.content_type, warnings=warnings)

    async def create_object(
        self, resource: ResourceType, obj: Obj, namespace: str, *, dry_run: bool = False
    ) -> Obj:
        """Store a new object; return it as its client sees it."""
        await self.cache.fresh()
        prepare_create(resource, obj, namespace=namespace, now=self.now(), rng=self.rng)
        name = name_of(obj)
        if resource.namespaced:
            self._require_namespace(resource, namespace, name)
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

    def _reserve(self, resource: ResourceType, new: Obj, old: Obj | None) -> Reservation | None:
        if (resource.group, resource.plural) != ("", "services"):
            return None
        return self._addresses.reserve(new, old)

    async def update(self, call: Call) -> web.StreamResponse:
        """PUT of an object or of its status."""
        form = self.form(call)
        obj, warnings = await self.read_object(call)
        if name_of(obj) != call.name:
            raise errors.bad_request(
                f"the name of the object ({name_of(obj)}) does not match the name on the URL "
                f"({call.name})"
            )
        dry = bodies.dry_run(call.query)
        await self.cache.fresh()
        if self.peek(call.resource, call.namespace, call.name) is None:
            if call.resource.plural in CREATE_ON_UPDATE and not call.subresource:
                made = await self.create_object(call.resource, obj, call.namespace, dry_run=dry)
                return respond(
                    form.one(made), status=201, media=form.content_type, warnings=warnings
                )
            raise errors.not_found(call.resource.plural, call.resource.group, call.name)

        def change(_: Obj) -> Obj:
            return obj

        pinned = bool(dig(obj, "metadata", "resourceVersion"))
        out = await self.modify(
            call.resource, call.namespace, call.name, change,
            subresource=call.subresource, dry_run=dry, retry=not pinned,
        )  # fmt: skip
        return respond(form.one(out), media=form.content_type, warnings=warnings)

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
    ) -> Obj:
        """Read, change, prepare, write if unchanged; again when somebody else was faster.

        ``change`` gets the object as its client sees it and returns the wanted one.
        """
        for _ in range(PATCH_RETRIES if retry else 1):
            old = from_storage(resource, await self.current(resource, namespace, name))
            new = prepare_update(resource, change(copy_json(old)), old, subresource=subresource)
            if new == old:
                return old
            if finished(resource, new) and not finished(resource, old):
                if not dry_run:
                    await self._remove(resource, namespace, old)
                return new
            revision = int(old["metadata"]["resourceVersion"])
            out = await self._replace(resource, namespace, new, old, revision, dry_run=dry_run)
            if out is not None:
                return out
        raise errors.conflict(resource.plural, resource.group, name, errors.MODIFIED)

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
                await self._catch_up(resource, name, written.current, written.revision)
                return None
            kept = True
        finally:
            if reservation is not None:
                (reservation.keep if kept else reservation.undo)()
        self.cache.wrote(written.revision)
        stored["metadata"]["resourceVersion"] = str(written.revision)
        return from_storage(resource, stored)

    async def _catch_up(
        self, resource: ResourceType, name: str, current: Any, revision: int
    ) -> None:
        if current is None:
            self.cache.wrote(revision)
            raise errors.not_found(resource.plural, resource.group, name)
        self.cache.wrote(current.revision)

    async def patch(self, call: Call) -> web.StreamResponse:
        """PATCH of an object or of its status."""
        form = self.form(call)
        media = bodies.media_type(call.request)
        if media not in PATCH_TYPES:
            raise errors.unsupported_media_type(media, PATCH_TYPES)
        mode = bodies.validation_mode(call.query)
        data = await bodies.read(call.request)
        warnings: list[str] = []
        resource = call.resource

        def change(old: Obj) -> Obj:
            new = apply_patch(media, data, old, resource)
            warnings[:] = bodies.check_fields(
                new,
                kind=resource.kind,
                group_version=resource.group_version,
                schema=resource.schema,
                mode=mode,
            )
            return new

        out = await self.modify(
            resource, call.namespace, call.name, change,
            subresource=call.subresource, dry_run=bodies.dry_run(call.query),
        )  # fmt: skip
        return respond(form.one(out), media=form.content_type, warnings=warnings)

    # -- deletes

    async def read_delete_options(self, call: Call) -> DeleteOptions:
        """DeleteOptions from the body and the query."""
        data = await bodies.read(call.request)
        decoded: Any = None
        if data.strip():
            media = bodies.media_type(call.request)
            decoded = bodies.decode(data, media, "meta.v1.DeleteOptions", "DeleteOptions")
        options = delete_options(decoded)
        query = call.query
        if query.get("gracePeriodSeconds"):
            try:
                options = options._replace(grace_s=int(query["gracePeriodSeconds"]))
            except ValueError:
                raise errors.bad_request("gracePeriodSeconds must be an integer") from None
        if query.get("propagationPolicy"):
            options = options._replace(policy=query["propagationPolicy"])
        return options._replace(dry_run=options.dry_run or bodies.dry_run(query))

    async def delete(self, call: Call) -> web.StreamResponse:
        """DELETE of one object."""
        form = self.form(call)
        options = await self.read_delete_options(call)
        obj, removed = await self.delete_object(call.resource, call.namespace, call.name, options)
        if removed and call.resource.plural != "pods":
            return respond(self._deleted_status(call.resource, obj))
        return respond(
            form.one(from_storage(call.resource, obj)),
            media=form.content_type,
        )

    @staticmethod
    def _deleted_status(resource: ResourceType, obj: Obj) -> Obj:
        details: Obj = {"name": name_of(obj)}
        if resource.group:
            details["group"] = resource.group
        details["kind"] = resource.plural
        details["uid"] = obj["metadata"].get("uid", "")
        return errors.status_object("Success", details=details)

    async def delete_object(
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

    async def _empty(self, definition: Obj) -> None:
        """Delete all objects of a custom resource before its definition goes."""
        for resource in crds.resources_of(definition)[:1]:
            bucket = self._bucket(resource)
            for key in list(bucket.order()):
                namespace, _, name = key.rpartition("/")
                try:
                    await self.delete_object(resource, namespace, name, DeleteOptions())
                except errors.StatusError as error:
                    if error.code != 404:
                        raise

    async def _remove(self, resource: ResourceType, namespace: str, old: Obj) -> bool:
        name = name_of(old)
        key = object_key(resource.directory, namespace if resource.namespaced else "", name)
        written = await self._store.remove(key, int(old["metadata"]["resourceVersion"]))
        if not written.done:
            await self._catch_up(resource, name, written.current, written.revision)
            return False
        self.cache.wrote(written.revision)
        if (resource.group, resource.plural) == ("", "services"):
            self._addresses.release(old)
        return True

    async def delete_collection(self, call: Call) -> web.StreamResponse:
        """DELETE of a collection: each object that is selected."""
        options = await self.read_delete_options(call)
        selection = Selection.of(call)
        await self.cache.fresh()
        bucket = self._bucket(call.resource)
        chosen = [bucket.entries[key] for key in bucket.order()]
        gone: list[Entry] = []
        for entry in chosen:
            if not selection.matches(entry):
                continue
            obj = entry.obj
            try:
                await self.delete_object(
                    call.resource, str(dig(obj, "metadata", "namespace") or ""), name_of(obj),
                    options,
                )  # fmt: skip
            except errors.StatusError as error:
                if error.code != 404:
                    raise
            gone.append(entry)
        form = Form(call.resource, accepted(call.accept, kinds=LIST_KINDS), call.query, self.now)
        metadata = {"resourceVersion": str(self.cache.revision)}
        return respond(form.many(gone, metadata), media=form.content_type)


_PROTECTED = (
    ("namespaces", "default"),
    ("namespaces", "kube-system"),
    ("namespaces", "kube-public"),
)


def export(obj: Obj) -> Obj:
    """``?export=true`` of servers up to 1.17: the object without what a cluster adds."""
    out: Obj = json.loads(dump_json(obj))
    meta = out["metadata"]
    for key in ("uid", "resourceVersion", "selfLink", "namespace", "deletionTimestamp"):
        meta.pop(key, None)
    meta["creationTimestamp"] = None
    if "status" in out:
        out["status"] = {}
    return out
