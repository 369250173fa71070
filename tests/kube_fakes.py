"""An in-memory API server for tests of agents: real HTTP on loopback, no rules of its own.

It stores what it is told, counts revisions, serves lists, watches, status, bindings and deletion
with grace; it validates and defaults nothing.  Faults are verbs: ``cut_watches``, ``compact``,
``fail_next``, ``stop`` and ``start`` on the same port.
"""

from __future__ import annotations

import asyncio
import copy
import json
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from emulator.apimachinery import mergepatch
from emulator.kubeclient import resource as resource_constants
from emulator.kubeclient.config import KubeConfig
from emulator.kubeclient.controller import Controller
from emulator.kubeclient.informer import Informer
from emulator.kubeclient.meta import format_time, key_of, split_key
from emulator.kubeclient.resource import PODS, Resource
from emulator.runtime.clock import Clock, real_clock
from emulator.runtime.rng import seeded_rng

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulator.kubeclient.rest import RestClient

    Object = dict[str, Any]


class _Change(NamedTuple):
    revision: int
    collection: str
    type: str
    object: Object
    before: Object | None


class _Target(NamedTuple):
    collection: str
    namespace: str
    name: str
    subresource: str


class FakeApi:
    """``async with FakeApi() as api: RestClient(api.config)``."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or real_clock()
        self._rng = seeded_rng(1, "fake-api")
        # collection ("pods", "apps/deployments") -> "ns/name" -> object
        self._objects: dict[str, dict[str, Object]] = {}
        self._history: list[_Change] = []
        self._revision = 100
        self._compacted = 0
        self._failures: list[web.Response] = []
        # collection -> how many creations more are refused, and how
        self._refusals: dict[str, tuple[int, web.Response]] = {}
        self._watchers: dict[int, asyncio.Event] = {}
        self._cut: dict[int, web.Request] = {}
        self._runner: web.AppRunner | None = None
        self._port = 0
        self.requests: list[tuple[str, str]] = []
        """(method, path with query) of every request served."""

    async def __aenter__(self) -> FakeApi:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen on loopback; on the former port after a ``stop``."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection and stop listening; the objects stay."""
        self.cut_watches()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def config(self) -> KubeConfig:
        """How to reach it."""
        return KubeConfig(server=f"http://127.0.0.1:{self._port}", token="fake")

    # Faults and direct access

    def cut_watches(self) -> None:
        """Abort every watch's connection in the middle."""
        for request in self._cut.values():
            if request.transport is not None:
                request.transport.abort()

    def compact(self) -> None:
        """Forget history: watches from before now get 410."""
        self._history.clear()
        self._compacted = self._revision

    def fail_next(self, status: int, reason: str = "", retry_after_s: int | None = None) -> None:
        """Answer the next request that is not a watch with a failure."""
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        self._failures.append(_status(status, reason, "made to fail", headers))

    def refuse(self, resource: Resource, status: int, reason: str, *, times: int) -> None:
        """Answer the next creations of a kind with a failure."""
        self._refusals[_collection(resource)] = (times, _status(status, reason, "refused"))

    def objects(self, resource: Resource) -> list[Object]:
        """Everything of a kind, in order of creation."""
        return [*self._objects.get(_collection(resource), {}).values()]

    def put(self, resource: Resource, obj: Object) -> Object:
        """Store an object as if a client had created or updated it."""
        meta = obj["metadata"]
        target = _Target(_collection(resource), meta.get("namespace", ""), meta["name"], "")
        return self._store(target, copy.deepcopy(obj))

    def remove(self, resource: Resource, namespace: str, name: str) -> None:
        """Remove an object at once."""
        self._drop(_Target(_collection(resource), namespace, name, ""))

    # The store

    def _key(self, target: _Target) -> str:
        return f"{target.namespace}/{target.name}"

    def _store(self, target: _Target, obj: Object) -> Object:
        meta = obj["metadata"]
        table = self._objects.setdefault(target.collection, {})
        before = table.get(self._key(target))
        self._revision += 1
        meta["resourceVersion"] = str(self._revision)
        if before is None:
            meta["uid"] = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
            meta.setdefault("creationTimestamp", format_time(self._clock.time()))
            if target.namespace:
                meta["namespace"] = target.namespace
        else:
            for field in ("uid", "creationTimestamp"):
                meta[field] = before["metadata"][field]
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and _grace(meta) == 0:
            self._drop(target)
            return obj
        if "spec" in obj and target.collection not in ("pods", "services"):
            same = before is not None and before.get("spec") == obj["spec"]
            generation = before["metadata"].get("generation", 0) if before else 0
            meta["generation"] = generation if same else generation + 1
        table[self._key(target)] = obj
        self._note(target.collection, "MODIFIED" if before else "ADDED", obj, before)
        return obj

    def _drop(self, target: _Target) -> None:
        obj = self._objects.get(target.collection, {}).pop(self._key(target), None)
        if obj is not None:
            self._revision += 1
            gone = copy.deepcopy(obj)
            gone["metadata"]["resourceVersion"] = str(self._revision)
            self._note(target.collection, "DELETED", gone, obj)

    def _note(self, collection: str, kind: str, obj: Object, before: Object | None) -> None:
        change = _Change(self._revision, collection, kind, copy.deepcopy(obj), before)
        self._history.append(change)
        for event in self._watchers.values():
            event.set()

    # HTTP

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        if (document := _discovery(request.path)) is not None:
            return web.json_response(document)
        target = _target(request.path)
        if request.query.get("watch") == "true":
            return await self._watch(request, target)
        if self._failures:
            return self._failures.pop(0)
        body = json.loads(await request.read() or b"null")
        if request.method == "GET":
            return self._get(request, target) if target.name else self._list(request, target)
        if request.method == "POST":
            return self._post(target, body)
        current = self._objects.get(target.collection, {}).get(self._key(target))
        if current is None:
            return _not_found(target)
        if request.method == "DELETE":
            return self._delete(target, current, body or {})
        return self._write(request, target, current, body)

    def _get(self, request: web.Request, target: _Target) -> web.Response:
        obj = self._objects.get(target.collection, {}).get(self._key(target))
        return web.json_response(obj) if obj else _not_found(target)

    def _list(self, request: web.Request, target: _Target) -> web.Response:
        found = [
            obj
            for obj in self._objects.get(target.collection, {}).values()
            if _matches(obj, target.namespace, request.query)
        ]
        start = int(request.query.get("continue", "0"))
        limit = int(request.query.get("limit", "0")) or len(found)
        meta: Object = {"resourceVersion": str(self._revision)}
        if start + limit < len(found):
            meta["continue"] = str(start + limit)
        return web.json_response({"metadata": meta, "items": found[start : start + limit]})

    def _post(self, target: _Target, body: Object) -> web.Response:
        if target.subresource == "binding":
            pod = copy.deepcopy(self._objects["pods"][self._key(target)])
            if pod["spec"].get("nodeName"):
                return _status(409, "Conflict", f"pod {target.name} is already assigned")
            pod["spec"]["nodeName"] = body["target"]["name"]
            self._store(target._replace(subresource=""), pod)
            return web.json_response({"kind": "Status", "status": "Success"}, status=201)
        times, refusal = self._refusals.get(target.collection, (0, None))
        if refusal is not None and times:
            self._refusals[target.collection] = (times - 1, refusal)
            return web.Response(
                status=refusal.status, body=refusal.body, content_type="application/json"
            )
        meta = body["metadata"]
        if not meta.get("name"):
            meta["name"] = meta["generateName"] + f"{self._rng.getrandbits(25):05x}"[:5]
        target = target._replace(name=meta["name"])
        if self._key(target) in self._objects.get(target.collection, {}):
            return _status(409, "AlreadyExists", f'{target.collection} "{target.name}" exists')
        return web.json_response(self._store(target, body), status=201)

    def _write(
        self, request: web.Request, target: _Target, current: Object, body: Object
    ) -> web.Response:
        wanted = body.get("metadata", {}).get("resourceVersion")
        if wanted and wanted != current["metadata"]["resourceVersion"]:
            return _status(409, "Conflict", "the object has been modified")
        if target.subresource == "finalize" and not body["spec"].get("finalizers"):
            self._drop(target)
            return web.json_response(body)
        new = body if request.method == "PUT" else mergepatch.apply(copy.deepcopy(current), body)
        if target.subresource == "status":
            new = copy.deepcopy(current) | {"status": new.get("status")}
        elif "status" in current:
            new["status"] = current["status"]
        new["metadata"] |= {
            k: current["metadata"][k] for k in ("uid", "creationTimestamp", "resourceVersion")
        }
        if new == current:
            return web.json_response(current)
        return web.json_response(self._store(target._replace(subresource=""), new))

    def _delete(self, target: _Target, current: Object, options: Object) -> web.Response:
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != current["metadata"]["uid"]:
            return _status(409, "Conflict", "the uid in the precondition differs")
        new = copy.deepcopy(current)
        meta = new["metadata"]
        grace = 0
        if target.collection == "pods" and new["spec"].get("nodeName"):
            grace = options.get(
                "gracePeriodSeconds", new["spec"].get("terminationGracePeriodSeconds", 30)
            )
        finalizer = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}.get(
            options.get("propagationPolicy", "")
        )
        if finalizer:
            meta["finalizers"] = [*meta.get("finalizers", ()), finalizer]
        if target.collection == "namespaces" and new.get("spec", {}).get("finalizers"):
            new["status"] = {"phase": "Terminating"}
            grace = 1
        if not grace and not meta.get("finalizers"):
            self._drop(target)
            return web.json_response({"kind": "Status", "status": "Success"})
        meta["deletionTimestamp"] = format_time(self._clock.time() + grace)
        meta["deletionGracePeriodSeconds"] = grace
        return web.json_response(self._store(target, new))

    async def _watch(self, request: web.Request, target: _Target) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or self._revision)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        number = len(self.requests)
        wake = self._watchers.setdefault(number, asyncio.Event())
        self._cut[number] = request
        try:
            if since < self._compacted:
                expired = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                await _write_event(response, "ERROR", expired)
                return response
            while True:
                wake.clear()
                for change in [c for c in self._history if c.revision > since]:
                    since = change.revision
                    if event := _seen_as(change, target, request.query):
                        await _write_event(response, *event)
                await _write_event(
                    response, "BOOKMARK", {"metadata": {"resourceVersion": str(since)}}
                )
                await wake.wait()
        except ConnectionError:
            return response
        finally:
            del self._watchers[number], self._cut[number]


class FakeKubelet:
    """Marks every bound pod Running and Ready with an address, and ends those being deleted."""

    def __init__(self, client: RestClient, clock: Clock | None = None) -> None:
        self._client = client
        self._clock = clock or real_clock()
        self._informer = Informer(client, PODS)
        self._addresses = 0
        self.silent: dict[str, None] = {}
        """Names of nodes whose kubelet does nothing."""
        self.unready: dict[str, None] = {}
        """Images that never become ready."""

    async def run(self) -> None:
        """Run until cancelled."""
        controller = Controller("fake-kubelet", self._sync, workers=8)
        self._informer.add_handler(
            lambda event, old, new: None if new is None else controller.queue.add(key_of(new))
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informer.run(), name="fake-kubelet.informer")
            group.create_task(controller.run(), name="fake-kubelet.pods")

    async def _sync(self, key: str) -> None:
        pod = self._informer.lister.get_by_key(key)
        if pod is None or pod["spec"].get("nodeName", "") in ("", *self.silent):
            return
        namespace, name = split_key(key)
        if pod["metadata"].get("deletionTimestamp"):
            uid = pod["metadata"]["uid"]
            await self._client.delete(PODS, namespace, name, grace_period_s=0, uid=uid)
            return
        if (pod.get("status") or {}).get("phase") in ("Running", "Succeeded", "Failed"):
            return
        self._addresses += 1
        image = (pod["spec"].get("containers") or [{}])[0].get("image", "")
        now = format_time(self._clock.time())
        ready = "False" if image in self.unready else "True"
        status = {
            "phase": "Running",
            "podIP": f"10.244.{self._addresses // 250}.{self._addresses % 250 + 1}",
            "startTime": now,
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now}],
        }
        await self._client.patch(PODS, namespace, name, {"status": status}, subresource="status")


def _discovery(path: str) -> Object | None:
    kinds = [kind for kind in vars(resource_constants).values() if isinstance(kind, Resource)]
    groups = {(kind.group, kind.version): None for kind in kinds if kind.group}
    if path == "/apis":
        rows = [{"name": g, "preferredVersion": {"version": v}} for g, v in groups]
        return {"kind": "APIGroupList", "groups": rows}
    for group, version in (("", "v1"), *groups):
        if path == (f"/apis/{group}/{version}" if group else "/api/v1"):
            verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
            found = [
                {"name": k.plural, "kind": k.kind, "namespaced": k.namespaced, "verbs": verbs}
                for k in kinds
                if (k.group, k.version) == (group, version)
            ]
            return {"kind": "APIResourceList", "resources": found}
    return None


async def _write_event(response: web.StreamResponse, kind: str, obj: Object) -> None:
    await response.write(json.dumps({"type": kind, "object": obj}).encode() + b"\n")


def _collection(resource: Resource) -> str:
    return f"{resource.group}/{resource.plural}" if resource.group else resource.plural


def _target(path: str) -> _Target:
    parts = path.strip("/").split("/")
    group = "" if parts[0] == "api" else parts[1] + "/"
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2 and parts[2] not in ("status", "finalize"):
        namespace, parts = parts[1], parts[2:]
    parts += [""] * (3 - len(parts))
    return _Target(group + parts[0], namespace, parts[1], parts[2])


def _grace(meta: Object) -> int:
    grace: int = meta.get("deletionGracePeriodSeconds") or 0
    return grace


def _matches(obj: Object, namespace: str, query: Mapping[str, str]) -> bool:
    if namespace and obj["metadata"].get("namespace") != namespace:
        return False
    labels = obj["metadata"].get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        name, _, value = term.partition("=")
        if labels.get(name) != value.lstrip("="):
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        field, _, value = term.partition("=")
        found: Any = obj
        for part in field.rstrip("!").split("."):
            found = (found or {}).get(part)
        if ((found or "") == value.lstrip("=")) == field.endswith("!"):
            return False
    return True


def _seen_as(
    change: _Change, target: _Target, query: Mapping[str, str]
) -> tuple[str, Object] | None:
    if change.collection != target.collection:
        return None
    now = change.type != "DELETED" and _matches(change.object, target.namespace, query)
    before = change.before is not None and _matches(change.before, target.namespace, query)
    match (before, now):
        case (False, False):
            return None
        case (False, True):
            return "ADDED", change.object
        case (True, False):
            return "DELETED", change.object
        case _:
            return "MODIFIED", change.object


def _status(
    status: int, reason: str, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    document = {"kind": "Status", "status": "Failure", "reason": reason, "message": message}
    return web.json_response(document | {"code": status}, status=status, headers=headers)


def _not_found(target: _Target) -> web.Response:
    return _status(404, "NotFound", f'{target.collection} "{target.name}" not found')
