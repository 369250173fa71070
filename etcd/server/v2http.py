"""The v2 API over HTTP/1.1: /v2/keys, /v2/members, /v2/machines, /v2/stats.

Source: etcd 3.4 etcdserver/api/v2http/client.go; headers, bodies and statuses are its own.
"""

from __future__ import annotations

import asyncio
import html
import json
import posixpath
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_from_bytes

from aiohttp import web

from etcd.core.errors import EtcdError
from etcd.core.v2 import errors, form, render
from etcd.core.v2.errors import V2Error
from etcd.core.v2.request import METHODS, Read, Wait
from etcd.core.v2.store import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from etcd.core.v2.hub import Event, Watcher
    from etcd.server.v2 import V2Keys

# Go's net/http reads no larger form.
MAX_FORM_BYTES: Final = 10 * 1024 * 1024
# A member request is a few URLs.
MAX_JSON_BYTES: Final = 64 * 1024
_KEYS: Final = "/v2/keys"
_JSON: Final = {"Content-Type": "application/json"}
_TEXT: Final = {"Content-Type": "text/plain; charset=utf-8"}
_ERROR_TEXT: Final = {**_TEXT, "X-Content-Type-Options": "nosniff"}
# What Go leaves as it is in a path (net/url shouldEscape, encodePath).
_PATH_SAFE: Final = "/$&+,:;=@!~*'()-._"


class _Answer:
    """A request waiting until what it saw is durable (``member.Caller``)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[None] = loop.create_future()

    def release(self, call_id: int, payload: bytes, final: bool) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def refuse(self, call_id: int, error: EtcdError) -> None:
        if not self.done.done():
            self.done.set_exception(_internal(error))

    def flush(self) -> None:
        """Nothing is buffered here."""


class _Waiting:
    """A long poll: a ``hub.Listener`` whose events pass when they are durable."""

    def __init__(self, keys: V2Keys) -> None:
        self._member = keys.member
        self.wake = asyncio.Event()
        # Events that are durable and not yet written.
        self.durable = 0
        self.over = False

    def on_event(self) -> None:
        self._member.answer(self, 0, b"", final=False)

    def on_cleared(self) -> None:
        self.over = True
        self.wake.set()

    def release(self, call_id: int, payload: bytes, final: bool) -> None:
        self.durable += 1
        self.wake.set()

    def refuse(self, call_id: int, error: EtcdError) -> None:
        self.on_cleared()

    def flush(self) -> None:
        """Nothing is buffered here."""


def _internal(error: EtcdError) -> V2Error:
    return V2Error(errors.RAFT_INTERNAL, error.message)


def _error_text(status: int, text: str, extra: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=text.encode(), headers={**_ERROR_TEXT, **(extra or {})})


class V2Front:
    """Answers the requests below /v2/."""

    def __init__(self, keys: V2Keys, cors: Mapping[str, str]) -> None:
        """``cors``: headers every answer carries."""
        self._keys = keys
        self._member = keys.member
        self._cors = cors

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        raw_path, _, query = request.raw_path.encode("utf-8", "surrogateescape").partition(b"?")
        try:
            path = form.unescape(raw_path, plus=False)
        except form.FormError:
            return _error_text(400, "400 Bad Request")
        redirect = self._redirect(request.method, path, query)
        response = redirect or await self._route(request, path, query)
        if not response.prepared:
            response.headers.update(self._cors)
        return response

    async def _route(self, request: web.BaseRequest, path: str, query: bytes) -> web.StreamResponse:
        match path.split("/")[2:]:
            case ["keys", *_]:
                return await self._serve_keys(request, path[len(_KEYS) :], query)
            case ["machines"]:
                return self._allow(request, ("GET", "HEAD")) or self._machines()
            case ["members", *rest]:
                refused = self._allow(request, ("GET", "POST", "DELETE", "PUT"))
                response = refused or await self._members(request, "/".join(rest))
                if refused is None:
                    response.headers["X-Etcd-Cluster-Id"] = self._cluster_id()
                return response
            case ["stats", "self"]:
                return self._allow(request, ("GET",)) or self._json(self._self_stats())
            case ["stats", "store"]:
                return self._allow(request, ("GET",)) or self._json(self._store_stats())
            case ["stats", "leader"]:
                leader = {"leader": self._member_id(), "followers": {}}
                return self._allow(request, ("GET",)) or self._json(leader)
            case ["auth", "enable"] if request.method == "GET":
                return self._json({"enabled": False}, end="\n")
            case _:
                return _error_text(404, "404 page not found\n")

    @staticmethod
    def _redirect(method: str, path: str, query: bytes) -> web.Response | None:
        """Send a client with a path that is not clean to the one that is (http.ServeMux)."""
        clean = posixpath.normpath("/" + path.lstrip("/"))
        if path.endswith("/") and clean != "/":
            clean += "/"
        if clean == path:
            return None
        target = quote_from_bytes(clean.encode(errors="surrogateescape"), safe=_PATH_SAFE)
        if query:
            target += "?" + query.decode("latin-1")
        headers = {"Location": target}
        body = b""
        if method in ("GET", "HEAD"):
            headers["Content-Type"] = "text/html; charset=utf-8"
            link = html.escape(target).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
            body = f'<a href="{link}">Moved Permanently</a>.\n\n'.encode()
        return web.Response(status=301, body=body, headers=headers)

    @staticmethod
    def _allow(request: web.BaseRequest, methods: tuple[str, ...]) -> web.Response | None:
        if request.method in methods:
            return None
        return _error_text(405, "Method Not Allowed\n", {"Allow": ",".join(methods)})

    def _json(self, value: object, *, status: int = 200, end: str = "") -> web.Response:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False) + end
        return web.Response(
            status=status, body=text.encode(errors="surrogateescape"), headers=_JSON
        )

    # Keys ----------------------------------------------------------------------------------

    async def _serve_keys(
        self, request: web.BaseRequest, path: str, query: bytes
    ) -> web.StreamResponse:
        refused = self._allow(request, METHODS)
        if refused is not None:
            return refused
        try:
            sources = [query]
            if request.method in ("PUT", "POST"):
                sources.insert(0, await self._form_body(request))
            asked = self._keys.parse(request.method, path, sources)
            if isinstance(asked, Wait):
                return await self._wait(request, asked)
            if isinstance(asked, Read):
                index, status, body = self._read(asked)
            else:
                event = self._keys.change(asked)
                index, status = event.number, 201 if event.created else 200
                body = render.event_json(event, values=asked.values)
            headers = self._key_headers(index)
            await self._durable()
        except V2Error as error:
            return self._refusal(error)
        except EtcdError as error:
            return self._refusal(_internal(error))
        return web.Response(status=status, body=body.encode(), headers=headers)

    def _read(self, asked: Read) -> tuple[int, int, str]:
        keys = self._keys
        keys.quorum(asked)
        node = keys.store.get(asked.path)
        body = render.get_json(
            node, recursive=asked.recursive, in_order=asked.in_order, now_ns=keys.now_ns()
        )
        return keys.store.index, 200, body

    async def _durable(self) -> None:
        answer = _Answer(self._member.loop)
        self._member.answer(answer, 0, b"")
        await answer.done

    def _key_headers(self, index: int) -> dict[str, str]:
        engine = self._member.engine
        return {
            **_JSON,
            "X-Etcd-Cluster-Id": self._cluster_id(),
            "X-Etcd-Index": str(index),
            "X-Raft-Index": str(engine.raft_index),
            "X-Raft-Term": str(engine.raft_term),
        }

    def _refusal(self, error: V2Error) -> web.Response:
        headers = {
            **_JSON,
            "X-Etcd-Cluster-Id": self._cluster_id(),
            "X-Etcd-Index": str(error.index),
        }
        body = render.error_json(error).encode()
        return web.Response(status=error.status, body=body, headers=headers)

    async def _form_body(self, request: web.BaseRequest) -> bytes:
        """Return the body if it is a form; V2Error 210 if it is too large."""
        if request.content_type != "application/x-www-form-urlencoded":
            return b""
        body = await _read_at_most(request, MAX_FORM_BYTES)
        if body is None:
            raise V2Error(errors.INVALID_FORM, "http: POST too large")
        return body

    async def _wait(self, request: web.BaseRequest, asked: Wait) -> web.StreamResponse:
        keys = self._keys
        waiting = _Waiting(keys)
        watcher = keys.store.watch(
            waiting, asked.path, recursive=asked.recursive, stream=asked.stream, since=asked.since
        )
        hub = keys.store.hub
        try:
            response = web.StreamResponse(headers=self._key_headers(keys.store.index))
            response.headers.update(self._cors)
            response.enable_chunked_encoding()
            # The client learns at once that it waits.
            await response.prepare(request)
            await self._write_events(response, waiting, watcher)
            await response.write_eof()
        finally:
            hub.remove(watcher)
        return response

    async def _write_events(
        self, response: web.StreamResponse, waiting: _Waiting, watcher: Watcher
    ) -> None:
        while not waiting.over:
            await waiting.wake.wait()
            waiting.wake.clear()
            while waiting.durable:
                waiting.durable -= 1
                event: Event = watcher.events.popleft()
                await response.write(render.event_json(event).encode())
                if not watcher.stream:
                    return

    # Members, machines, statistics -----------------------------------------------------------

    def _cluster_id(self) -> str:
        return f"{self._member.engine.cluster_id:x}"

    def _member_id(self) -> str:
        return f"{self._member.engine.member_id:x}"

    def _machines(self) -> web.Response:
        return web.Response(body=", ".join(self._member.client_urls).encode(), headers=_TEXT)

    def _me(self) -> dict[str, object]:
        return {
            "id": self._member_id(),
            "name": self._member.config.name,
            "peerURLs": list(self._member.config.peer_urls),
            "clientURLs": list(self._member.client_urls),
        }

    async def _members(self, request: web.BaseRequest, name: str) -> web.Response:
        if request.method == "GET":
            if not name:
                return self._json({"members": [self._me()]}, end="\n")
            if name == "leader":
                return self._json(self._me(), end="\n")
            return self._json({"message": "Not found"}, status=404)
        if request.method != "POST":
            if not name:
                return _error_text(405, "Method Not Allowed\n")
            if name != self._member_id():
                return self._json({"message": f"No such member: {name}"}, status=404)
        if request.method != "DELETE":
            refused = await self._check_json(request)
            if refused is not None:
                return refused
        if request.method == "PUT":
            # A single member's peer URLs are used by nobody.
            return web.Response(status=204)
        # The one member of a cluster is never removed and never gets a second.
        return self._json({"message": "Internal Server Error"}, status=500)

    async def _check_json(self, request: web.BaseRequest) -> web.Response | None:
        kind = request.headers.get("Content-Type", "")
        if kind != "application/json":
            text = f"Bad Content-Type {kind}, accept application/json"
            return self._json({"message": text}, status=415)
        try:
            json.loads(await _read_at_most(request, MAX_JSON_BYTES) or b"")
        except ValueError as error:
            return self._json({"message": str(error)}, status=400)
        return None

    def _self_stats(self) -> dict[str, object]:
        keys = self._keys
        started = render.rfc3339_nano(keys.started_ns)
        uptime_s = (keys.now_ns() - keys.started_ns) / SECOND_NS
        return {
            "name": self._member.config.name,
            "id": self._member_id(),
            "state": "StateLeader",
            "startTime": started,
            "leaderInfo": {
                "leader": self._member_id(),
                "uptime": go_duration(uptime_s),
                "startTime": started,
            },
            "recvAppendRequestCnt": 0,
            "sendAppendRequestCnt": 0,
        }

    def _store_stats(self) -> dict[str, int]:
        store = self._keys.store
        return {**store.statistics, "watchers": store.hub.count}


def go_duration(seconds: float) -> str:
    """Return a duration as Go prints it, e.g. ``1h2m3.5s``."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


async def _read_at_most(request: web.BaseRequest, limit: int) -> bytes | None:
    """Return the body, None if it is longer."""
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)
