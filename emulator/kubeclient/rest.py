"""One client of the API server: verbs over kept-alive HTTPS, Status errors, watch streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import aiohttp

from emulator.kubeclient.backoff import Backoff, BackoffPolicy
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.meta import name_of, namespace_of
from emulator.runtime.rng import real_rng

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from emulator.kubeclient.config import KubeConfig
    from emulator.kubeclient.resource import Resource

    Object = dict[str, Any]
    Objects = list[Object]
    PatchKind = Literal["merge", "strategic", "json", "apply"]

PATCH_TYPES: Final[Mapping[str, str]] = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
# Requests of one client under way at once; watches do not count.  More would only queue in the
# server: it is one event loop.
MAX_INFLIGHT = 32
# Objects per list page; kubectl and client-go use 500.
LIST_PAGE = 500
# A request that takes longer is answered by nobody; client-go's default for agents is the same.
REQUEST_TIMEOUT_S = 30.0
# Tries of one request, the first included, where a retry is safe; client-go allows 10.
MAX_TRIES = 5
# A server that asks for longer gets its error handed to the caller, who has a queue to wait in.
MAX_RETRY_AFTER_S = 10.0
# One line of a watch; etcd's own limit of one request is 1.5 MiB.
MAX_WATCH_LINE_BYTES = 8 * 1024 * 1024
# The pooled connection is dropped before the server's own 75 s keep-alive ends.
KEEPALIVE_S = 60.0
# Silence on a watch beyond its own timeoutSeconds means the server is gone without a word.
WATCH_SLACK_S = 15.0

_RETRY = BackoffPolicy(initial_s=0.02, max_s=1.0)


class ObjectList(NamedTuple):
    """A complete list and the revision it shows."""

    items: list[Object]
    resource_version: str


class WatchEvent(NamedTuple):
    """``type`` is ADDED, MODIFIED, DELETED or BOOKMARK; an ERROR is raised as ApiError."""

    type: str
    object: Object


WatchBatch = list[WatchEvent]


class RawResponse(NamedTuple):
    """An answer as it came: status code, headers, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class RestClient:
    """The verbs of the API; use ``async with`` or ``close()``.

    Every verb raises ``ApiError`` for a failure Status and ``ApiUnreachableError`` when nobody
    answers.  Reads are retried; writes only when the server certainly did not see them (the
    connection was refused) or refused them with Retry-After (429, 503).
    """

    def __init__(
        self,
        config: KubeConfig,
        *,
        rng: random.Random | None = None,
        connector: aiohttp.BaseConnector | None = None,
        user_agent: str = "podwire",
        max_inflight: int = MAX_INFLIGHT,
    ) -> None:
        """``rng`` is for jitter; ``connector`` dials through another network than the host's.

        ``max_inflight`` bounds the requests under way, and with them the connections kept.
        """
        self.config = config
        self.rng = rng if rng is not None else real_rng()
        self._connector = connector
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._inflight = asyncio.Semaphore(max_inflight)

    async def __aenter__(self) -> RestClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; the client may be used again."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    # Verbs

    async def get(
        self, resource: Resource, namespace: str, name: str, *, subresource: str = ""
    ) -> Object:
        """Read one object; ``namespace`` is empty for cluster-wide kinds."""
        return await self._object("GET", resource.path(namespace, name, subresource))

    async def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
        page: int = LIST_PAGE,
    ) -> ObjectList:
        """Read all matching objects, page by page; empty ``namespace`` is all of them.

        Items get the ``apiVersion`` and ``kind`` that lists leave out.  A list whose continue
        token expires half-way is read again in one piece.
        """
        path = resource.path(namespace)
        params = _selectors(label_selector, field_selector)
        if resource_version:
            params["resourceVersion"] = resource_version
        items: Objects = []
        first = params | ({"limit": str(page)} if page else {})
        query = first
        while True:
            try:
                document = await self._object("GET", path, params=query)
            except ApiError as error:
                if not (error.is_expired and "continue" in query):
                    raise
                items.clear()
                first = query = params
                continue
            items += document.get("items") or ()
            meta = document.get("metadata") or {}
            token = meta.get("continue")
            if not token:
                break
            query = {k: v for k, v in first.items() if k != "resourceVersion"}
            query["continue"] = token
        for item in items:
            item.setdefault("apiVersion", resource.api_version)
            item.setdefault("kind", resource.kind)
        return ObjectList(items, str(meta.get("resourceVersion", "")))

    async def create(
        self, resource: Resource, obj: Object, *, subresource: str = "", name: str = ""
    ) -> Object:
        """POST an object into its own ``metadata.namespace``; returns it as stored.

        With ``subresource`` (``binding``, ``eviction``) it is posted to that of the object
        called ``name`` (default: ``metadata.name``).
        """
        target = (name or name_of(obj)) if subresource else ""
        path = resource.path(namespace_of(obj), target, subresource)
        return await self._object("POST", path, body=obj)

    async def update(self, resource: Resource, obj: Object, *, subresource: str = "") -> Object:
        """PUT the whole object; ApiError Conflict if its resourceVersion is not the newest."""
        path = resource.path(namespace_of(obj), name_of(obj), subresource)
        return await self._object("PUT", path, body=obj)

    async def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Any,
        kind: PatchKind = "merge",
        *,
        subresource: str = "",
        field_manager: str = "",
        force: bool = False,
    ) -> Object:
        """PATCH an object; ``kind`` says what ``body`` is (RFC 7386, strategic, RFC 6902, SSA)."""
        params = {}
        if field_manager or kind == "apply":
            params["fieldManager"] = field_manager or self._user_agent
        if kind == "apply":
            params["force"] = "true" if force else "false"
        path = resource.path(namespace, name, subresource)
        headers = {"Content-Type": PATCH_TYPES[kind]}
        return await self._object("PATCH", path, params=params, body=body, headers=headers)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        grace_period_s: int | None = None,
        propagation_policy: str = "",
        uid: str = "",
        resource_version: str = "",
    ) -> Object:
        """DELETE an object; returns it (deletion goes on) or a Status (it is gone).

        ``uid`` and ``resource_version`` are preconditions: ApiError Conflict if they differ.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        if propagation_policy:
            options["propagationPolicy"] = propagation_policy
        conditions = {"uid": uid, "resourceVersion": resource_version}
        if wanted := {k: v for k, v in conditions.items() if v}:
            options["preconditions"] = wanted
        return await self._object("DELETE", resource.path(namespace, name), body=options)

    @contextlib.asynccontextmanager
    async def watch(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        timeout_s: int = 300,
        bookmarks: bool = True,
    ) -> AsyncGenerator[AsyncIterator[WatchBatch], None]:
        """Open a watch; entering it waits for the answer's head, iterating gives batches.

        A batch is what one read brought, in order.  The iterator ends when the server ends the
        watch (after about ``timeout_s``); ApiUnreachableError when the connection breaks,
        ApiError when the server refuses or sends an ERROR event (410 Expired: list again).
        """
        params = _selectors(label_selector, field_selector)
        params |= {"watch": "true", "timeoutSeconds": str(timeout_s)}
        if resource_version:
            params["resourceVersion"] = resource_version
        if bookmarks:
            params["allowWatchBookmarks"] = "true"
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=REQUEST_TIMEOUT_S, sock_read=timeout_s + WATCH_SLACK_S
        )
        path = resource.path(namespace)
        response = await self._send("GET", path, params, None, None, timeout)
        try:
            if response.status != 200:
                raise _status_error(response.status, await response.read(), response.headers)
            async with contextlib.aclosing(self._batches(response, path)) as batches:
                yield batches
        finally:
            response.close()

    async def raw(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> RawResponse:
        """Send any request once; no retry, no error for a failure status."""
        async with self._inflight:
            return await self._once(method, path, params, body, headers)

    # The wire

    async def _object(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Object:
        data = None
        if body is not None:
            data = json.dumps(body, separators=(",", ":")).encode()
            headers = headers or {"Content-Type": "application/json"}
        backoff = Backoff(_RETRY, self.rng)
        for remaining in range(MAX_TRIES - 1, -1, -1):
            try:
                async with self._inflight:
                    answer = await self._once(method, path, params, data, headers)
            except ApiUnreachableError as error:
                if not remaining or (error.sent and method != "GET"):
                    raise
                await asyncio.sleep(backoff.next_delay_s())
                continue
            if answer.status < 400:
                return _json_object(answer.body, method, path)
            failure = _status_error(answer.status, answer.body, answer.headers)
            wait_s = failure.retry_after_s
            retry = answer.status in (429, 503) and wait_s is not None
            if not retry or not remaining or wait_s is None or wait_s > MAX_RETRY_AFTER_S:
                raise failure
            await asyncio.sleep(max(wait_s, backoff.next_delay_s()))
        raise AssertionError("unreachable: the last try raises")

    async def _once(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        data: bytes | None,
        headers: Mapping[str, str] | None,
    ) -> RawResponse:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        response = await self._send(method, path, params, data, headers, timeout)
        try:
            body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(method, path, error, sent=True) from None
        finally:
            response.release()
        return RawResponse(response.status, response.headers, body)

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        data: bytes | None,
        headers: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        try:
            return await self._open().request(
                method,
                self.config.server + path,
                params=params,
                data=data,
                headers=headers,
                timeout=timeout,
                server_hostname=self.config.tls_server_name or None,
            )
        except aiohttp.ClientConnectorError as error:
            raise self._unreachable(method, path, error, sent=False) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(method, path, error, sent=True) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Accept": "application/json", "User-Agent": self._user_agent}
            if self.config.token:
                headers["Authorization"] = f"Bearer {self.config.token}"
            context = self.config.ssl_context()
            connector = self._connector or aiohttp.TCPConnector(
                # Watches keep their connections; max_inflight bounds the others.
                limit=0,
                keepalive_timeout=KEEPALIVE_S,
                ssl=context if context is not None else True,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                connector_owner=self._connector is None,
                headers=headers,
                auto_decompress=True,
                skip_auto_headers=("Accept-Encoding",),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def _batches(
        self, response: aiohttp.ClientResponse, path: str
    ) -> AsyncGenerator[WatchBatch, None]:
        buffer = bytearray()
        try:
            async for data in response.content.iter_any():
                buffer += data
                end = buffer.rfind(b"\n")
                if end < 0:
                    if len(buffer) > MAX_WATCH_LINE_BYTES:
                        raise ApiUnreachableError(
                            f"watch {path}: a line of more than {MAX_WATCH_LINE_BYTES} bytes",
                            sent=True,
                        )
                    continue
                lines = bytes(buffer[:end]).split(b"\n")
                del buffer[: end + 1]
                yield [_watch_event(line, path) for line in lines if line.strip()]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable("WATCH", path, error, sent=True) from None

    def _unreachable(
        self, method: str, path: str, error: BaseException, *, sent: bool
    ) -> ApiUnreachableError:
        if isinstance(error, aiohttp.ClientPayloadError):
            what = "the connection ended in the middle of the answer"
        else:
            what = str(error) or type(error).__name__
        return ApiUnreachableError(
            f"API server {self.config.server}: {method} {path}: {what}", sent=sent
        )


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    pairs = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {key: value for key, value in pairs.items() if value}


def _json_object(body: bytes, method: str, path: str) -> Object:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ApiError(
            502, "BadGateway", f"{method} {path}: the answer is not a JSON object: {body[:80]!r}"
        )
    return document


def _watch_event(line: bytes, path: str) -> WatchEvent:
    document = _json_object(line, "WATCH", path)
    kind, obj = document.get("type"), document.get("object")
    if not isinstance(kind, str) or not isinstance(obj, dict):
        raise ApiError(502, "BadGateway", f"WATCH {path}: not a watch event: {line[:80]!r}")
    if kind == "ERROR":
        raise _error_of(obj, int(obj.get("code") or 500), None)
    return WatchEvent(kind, obj)


def _status_error(status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
    retry_after_s = None
    with contextlib.suppress(ValueError, KeyError):
        retry_after_s = float(headers["Retry-After"])
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        text = body[:200].decode("utf-8", "replace").strip()
        document = {"message": text or f"the server answered {status} without a word"}
    return _error_of(document, status, retry_after_s)


def _error_of(document: Object, status: int, retry_after_s: float | None) -> ApiError:
    details = document.get("details")
    return ApiError(
        status,
        str(document.get("reason") or ""),
        str(document.get("message") or f"the server answered {status}"),
        details if isinstance(details, dict) else None,
        retry_after_s,
    )
