"""The HTTP/1.1 side of the port: health, version, metrics, and the JSON gateway under /v3/.

Sources: etcd server/embed/serve.go, server/etcdserver/api/etcdhttp.
"""

from __future__ import annotations

import functools
import resource
import sys
from typing import TYPE_CHECKING

from aiohttp import web

from etcd.core import gojson
from etcd.core.pb import rpc_pb2 as pb
from etcd.server.config import CLUSTER_VERSION, SERVER_VERSION
from etcd.server.gateway import Gateway

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from etcd.server.member import Member
    from etcd.server.metrics import Metrics
    from etcd.server.services import Services
    from etcd.server.v2 import V2Keys
    from etcd.server.v2http import V2Front

_CORS = {
    "Access-Control-Allow-Headers": "accept, content-type, authorization",
    "Access-Control-Allow-Methods": "POST, GET, OPTIONS, PUT, DELETE",
    "Access-Control-Allow-Origin": "*",
}


_PLAIN = {**_CORS, "X-Content-Type-Options": "nosniff"}
# What a client has for taking its last answer when the server stops.
LAST_WORDS_S = 1.0
# One member that answers at all has read its own data and leads.
LIVE_CHECKS = ("serializable_read",)
READY_CHECKS = ("data_corruption", "serializable_read", "linearizable_read")


class Http1Front:
    """The HTTP/1.1 server of a member, over connections it is handed."""

    def __init__(self, member: Member, services: Services, only: tuple[str, ...] = ()) -> None:
        """``only``: the paths that are answered, all if it is empty."""
        self._member = member
        self._services = services
        self._only = only
        # Cancelling tells a call that waits that its client is gone.
        self._server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._v2_front: V2Front | None = None
        self._metrics_of: Metrics | None = None
        self._gateway = Gateway(member, services, _CORS)
        checks = functools.partial(functools.partial, self._checks)
        self._looks: dict[str, Callable[[web.BaseRequest], web.Response]] = {
            "/health": self._health,
            "/version": self._version,
            "/debug/vars": self._vars,
            "/metrics": self._metrics,
            "/livez": checks(LIVE_CHECKS),
            "/readyz": checks(READY_CHECKS),
            **{f"/livez/{name}": checks((name,)) for name in LIVE_CHECKS},
            **{f"/readyz/{name}": checks((name,)) for name in READY_CHECKS},
        }

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.connections)

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return self._server()

    async def close(self) -> None:
        """End the calls that wait, close all connections."""
        self._gateway.end_calls()
        # Idle ones at once; the others have their answers and write them.
        self._server.pre_shutdown()
        await self._server.shutdown(timeout=LAST_WORDS_S)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if self._only and path not in self._only:
            return web.Response(status=404, text="404 page not found\n", headers=_CORS)
        if request.method == "OPTIONS":
            return web.Response(headers=_CORS)
        look = self._looks.get(path)
        if look is not None:
            if request.method != "GET":
                text, headers = "Method Not Allowed\n", {**_PLAIN, "Allow": "GET"}
                return web.Response(status=405, text=text, headers=headers)
            return look(request)
        if self._member.v2 is not None and path.startswith("/v2/"):
            return await self._v2(self._member.v2).handle(request)
        if path.startswith("/v3beta/"):
            path = path.replace("/v3beta/", "/v3/", 1)
        if path == "/v3":
            return web.Response(status=301, headers={**_CORS, "Location": "/v3/"})
        if not path.startswith("/v3/"):
            return web.Response(status=404, text="404 page not found\n", headers=_PLAIN)
        return await self._gateway.handle(request, path)

    # What anyone may look at -----------------------------------------------------------------

    def _metrics(self, _: web.BaseRequest) -> web.Response:
        if self._metrics_of is None:
            from etcd.server.metrics import Metrics

            self._metrics_of = Metrics(self._member, self._services)
        headers = {**_CORS, "Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._metrics_of.text(), headers=headers)

    def _version(self, _: web.BaseRequest) -> web.Response:
        text = gojson.dumps({"etcdserver": SERVER_VERSION, "etcdcluster": CLUSTER_VERSION})
        headers = {**_CORS, "Content-Type": "application/json"}
        return web.Response(body=text.encode(), headers=headers)

    def _v2(self, keys: V2Keys) -> V2Front:
        if self._v2_front is None:
            from etcd.server.v2http import V2Front

            self._v2_front = V2Front(keys, _CORS)
        return self._v2_front

    def _health(self, request: web.BaseRequest) -> web.Response:
        alarm = self._alarm(request.query.getall("exclude", []))
        reason = f"ALARM {alarm}" if alarm else ""
        body = gojson.dumps({"health": "false" if alarm else "true", "reason": reason})
        return web.Response(status=503 if alarm else 200, text=body, headers=_CORS)

    def _alarm(self, excluded: list[str]) -> str | None:
        names = (pb.AlarmType.Name(alarm) for _, alarm in self._member.engine.alarms)
        return next((name for name in names if name not in excluded), None)

    def _checks(self, names: Iterable[str], request: web.BaseRequest) -> web.Response:
        """/livez and /readyz, or one of their checks (server/etcdserver/api/etcdhttp/health.go)."""
        excluded = request.query.getall("exclude", [])
        lines, failed = "", False
        for name in names:
            if name in excluded:
                continue
            corrupt = pb.CORRUPT in (alarm for _, alarm in self._member.engine.alarms)
            if name == "data_corruption" and corrupt:
                failed = True
                lines += f"[-]{name} failed: alarm activated: CORRUPT\n"
            else:
                lines += f"[+]{name} ok\n"
        if failed:
            return web.Response(status=503, text=lines + "\n", headers=_PLAIN)
        return web.Response(
            text=(lines if "verbose" in request.query else "") + "ok\n", headers=_PLAIN
        )

    def _vars(self, _: web.BaseRequest) -> web.Response:
        """/debug/vars: Go's expvar without the Go runtime's own (memstats)."""
        engine = self._member.engine
        member = f"{engine.member_id:x}"
        index = engine.raft_index
        progress = {"match": index, "next": index + 1, "state": "StateReplicate"}
        status = {"id": member, "term": engine.raft_term, "vote": member, "commit": index}
        status |= {"lead": member, "raftState": "StateLeader", "applied": index}
        status |= {"progress": {member: progress}, "leadtransferee": "0"}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        shown = {"cmdline": sys.argv, "file_descriptor_limit": limit, "raft.status": status}
        lines = ",\n".join(f'"{name}": {gojson.dumps(value)}' for name, value in shown.items())
        headers = {**_CORS, "Content-Type": "application/json; charset=utf-8"}
        return web.Response(body=f"{{\n{lines}\n}}\n".encode(), headers=headers)
