"""The verbs on stored resources as HTTP: get, list, watch, create, update, patch, delete."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agents.apiserver import body as bodies
from agents.apiserver import watching
from agents.apiserver.definitions import shapes
from agents.apiserver.forms import LIST_KINDS, OBJECT_KINDS, Form
from agents.apiserver.lists import ListPages, Selection
from agents.apiserver.negotiate import YAML, accepted, respond
from agents.apiserver.patching import APPLY, PATCH_TYPES, apply_patch
from emulator.apimachinery import serverside
from emulator.apimachinery import status as errors
from emulator.apimachinery.convert import from_storage
from emulator.apimachinery.fielderrors import required
from emulator.apimachinery.lifecycle import DeleteOptions, delete_options
from emulator.apimachinery.objects import Obj, dig, dump_json, name_of
from emulator.apimachinery.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiohttp import web

    from agents.apiserver.cache import Entry
    from agents.apiserver.call import Call
    from agents.apiserver.objects import Objects
    from emulator.apimachinery.resources import ResourceType

# Kinds a PUT may create (AllowCreateOnUpdate of their strategies).
CREATE_ON_UPDATE = ("endpoints", "events", "leases", "limitranges")


class Rest:
    """Reads requests, lets ``Objects`` do them, writes answers."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._cache = objects.cache
        self._pages = ListPages(objects.rng)

    async def get(self, call: Call) -> web.StreamResponse:
        """GET of one object."""
        form = self.form(call)
        revision = watching.parse_revision(call.query)
        if revision:
            await self._cache.reach(revision)
        obj = await self.objects.current(call.resource, call.namespace, call.name)
        out = from_storage(call.resource, obj)
        if call.query.get("export") in ("true", "1"):
            out = export(out)
        return respond(form.one(out), media=form.content_type, request=call.request)

    def form(self, call: Call) -> Form:
        """The form a single object is answered in."""
        wanted = accepted(call.accept, kinds=OBJECT_KINDS)
        return Form(call.resource, wanted, call.query, self.objects.now)

    async def collection(self, call: Call) -> web.StreamResponse:
        """GET of a collection."""
        wanted = accepted(call.accept, kinds=LIST_KINDS)
        form = Form(call.resource, wanted, call.query, self.objects.now)
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
            await self._cache.reach(revision)
        await self._cache.fresh()
        entries, metadata = self._pages.page(
            call.query, self.objects.bucket(call.resource), self._cache.revision, selection
        )
        return respond(form.many(entries, metadata), media=form.content_type, request=call.request)

    async def watch(self, call: Call) -> web.StreamResponse:
        """A watch of a collection or of one object."""
        wanted = accepted(call.accept, kinds=OBJECT_KINDS | LIST_KINDS, stream=True)
        form = Form(call.resource, wanted, call.query, self.objects.now)
        asked = watching.WatchRequest(call.query, self.objects.rng)
        selection = Selection.of(call)
        return await watching.serve(
            call.request, self._cache, call.resource.directory, asked, form, selection.matches
        )

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
            unknown=self._unknown(resource),
        )

    def _unknown(self, resource: ResourceType) -> Callable[[Obj], tuple[str, ...]]:
        def paths(obj: Obj) -> tuple[str, ...]:
            return tuple(dotted(path) for path in self.objects.verdict(resource, obj).unknown)

        return paths

    def _advice(self, resource: ResourceType, obj: Obj) -> tuple[str, ...]:
        """What a client should know about an object it has written."""
        return self.objects.verdict(resource, obj).warnings

    async def create(self, call: Call) -> web.StreamResponse:
        """POST to a collection."""
        form = self.form(call)
        obj, warnings = await self.read_object(call)
        out = await self.objects.create(
            call.resource,
            obj,
            call.namespace,
            dry_run=bodies.dry_run(call.query),
            manager=call.field_manager,
        )
        warnings += self._advice(call.resource, out)
        return respond(form.one(out), status=201, media=form.content_type, warnings=warnings)

    async def update(self, call: Call) -> web.StreamResponse:
        """PUT of an object or of its status."""
        form = self.form(call)
        obj, warnings = await self.read_object(call)
        if name_of(obj) != call.name:
            raise errors.other_name(name_of(obj), call.name)
        dry = bodies.dry_run(call.query)
        await self._cache.fresh()
        if self.objects.peek(call.resource, call.namespace, call.name) is None:
            if call.resource.plural in CREATE_ON_UPDATE and not call.subresource:
                made = await self.objects.create(call.resource, obj, call.namespace, dry_run=dry)
                return respond(
                    form.one(made), status=201, media=form.content_type, warnings=warnings
                )
            raise errors.not_found(call.resource.plural, call.resource.group, call.name)

        def change(_: Obj) -> Obj:
            return obj

        pinned = bool(dig(obj, "metadata", "resourceVersion"))
        out = await self.objects.modify(
            call.resource, call.namespace, call.name, change,
            subresource=call.subresource, dry_run=dry, retry=not pinned, call=call,
        )  # fmt: skip
        warnings += self._advice(call.resource, out)
        return respond(form.one(out), media=form.content_type, warnings=warnings)

    async def patch(self, call: Call) -> web.StreamResponse:
        """PATCH of an object or of its status."""
        form = self.form(call)
        media = bodies.media_type(call.request)
        if media not in PATCH_TYPES:
            raise errors.unsupported_media_type(media, PATCH_TYPES)
        if media == APPLY:
            return await self._apply(call, form)
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
                unknown=self._unknown(resource),
            )
            return new

        out = await self.objects.modify(
            resource, call.namespace, call.name, change,
            subresource=call.subresource, dry_run=bodies.dry_run(call.query), call=call,
        )  # fmt: skip
        warnings += self._advice(resource, out)
        return respond(form.one(out), media=form.content_type, warnings=warnings)

    async def _apply(self, call: Call, form: Form) -> web.StreamResponse:
        """Server-side apply: PATCH with a manifest, which may create the object."""
        resource, manager = call.resource, call.field_manager
        if not manager:
            missing = required("fieldManager", "is required for apply patch")
            raise errors.invalid("PatchOptions", "meta.k8s.io", "", [missing])
        data = await bodies.read(call.request)
        decoded = bodies.decode(data, YAML, resource.schema, resource.kind)
        manifest, warnings = bodies.check_object(
            decoded,
            kind=resource.kind,
            group_version=resource.group_version,
            schema=resource.schema,
            mode=bodies.validation_mode(call.query),
            unknown=self._unknown(resource),
        )
        manifest = serverside.clean_manifest(manifest)
        if name_of(manifest) not in ("", call.name):
            raise errors.other_name(name_of(manifest), call.name)
        manifest.setdefault("metadata", {})["name"] = call.name
        who = serverside.Manager(manager, "Apply", resource.group_version, call.subresource)
        force = call.query.get("force") in ("true", "1")
        now = rfc3339(self.objects.now())
        dry = bodies.dry_run(call.query)
        await self._cache.fresh()
        if self.objects.peek(resource, call.namespace, call.name) is None and not call.subresource:
            new = serverside.apply(resource, None, manifest, who, now, shapes(), force=force)
            made = await self.objects.create(resource, new, call.namespace, dry_run=dry)
            warnings += self._advice(resource, made)
            return respond(form.one(made), status=201, media=form.content_type, warnings=warnings)

        def change(old: Obj) -> Obj:
            return serverside.apply(resource, old, manifest, who, now, shapes(), force=force)

        out = await self.objects.modify(
            resource, call.namespace, call.name, change,
            subresource=call.subresource, dry_run=dry,
        )  # fmt: skip
        warnings += self._advice(resource, out)
        return respond(form.one(out), media=form.content_type, warnings=warnings)

    async def read_delete_options(self, call: Call) -> DeleteOptions:
        """DeleteOptions from the body and the query."""
        data = await bodies.read(call.request)
        decoded: Any = None
        if data.strip():
            media = bodies.media_type(call.request)
            decoded = bodies.decode(data, media, "meta.v1.DeleteOptions", "DeleteOptions")
        query = call.query
        given: Obj = dict(decoded) if isinstance(decoded, dict) else {}
        if query.get("gracePeriodSeconds"):
            try:
                given["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
            except ValueError:
                raise errors.bad_request("gracePeriodSeconds must be an integer") from None
        if query.get("propagationPolicy"):
            given["propagationPolicy"] = query["propagationPolicy"]
        options = delete_options(given)
        return options._replace(dry_run=options.dry_run or bodies.dry_run(query))

    async def delete(self, call: Call) -> web.StreamResponse:
        """DELETE of one object."""
        form = self.form(call)
        options = await self.read_delete_options(call)
        obj, removed = await self.objects.delete(call.resource, call.namespace, call.name, options)
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

    async def delete_collection(self, call: Call) -> web.StreamResponse:
        """DELETE of a collection: each object that is selected."""
        options = await self.read_delete_options(call)
        selection = Selection.of(call)
        await self._cache.fresh()
        bucket = self.objects.bucket(call.resource)
        chosen = [bucket.entries[key] for key in bucket.order()]
        gone: list[Entry] = []
        for entry in chosen:
            if not selection.matches(entry):
                continue
            obj = entry.obj
            try:
                await self.objects.delete(
                    call.resource, str(dig(obj, "metadata", "namespace") or ""), name_of(obj),
                    options,
                )  # fmt: skip
            except errors.StatusError as error:
                if error.code != 404:
                    raise
            gone.append(entry)
        form = Form(
            call.resource, accepted(call.accept, kinds=LIST_KINDS), call.query, self.objects.now
        )
        metadata = {"resourceVersion": str(self._cache.revision)}
        return respond(form.many(gone, metadata), media=form.content_type)


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


def dotted(path: Iterable[str | int]) -> str:
    """A field's path as the strict decoder writes it: ``spec.ports[0].name``."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")
