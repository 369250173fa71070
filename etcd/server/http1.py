"""The HTTP/1.1 side of the port: /health, /version and the JSON gateway under /v3/.

The gateway is etcd's grpc-gateway: a POST per method, JSON in protobuf's mapping with the field
names of the .proto files.  Sources: etcd server/embed/serve.go, api/etcdserverpb/gw.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aiohttp import web
from google.protobuf import json_format

from etcd.core.errors import Code, EtcdError
from etcd.core.pb import rpc_pb2 as pb
from etcd.server.auth import GATEWAY_ROUTES, Credentials
from etcd.server.config import CLUSTER_VERSION, SERVER_VERSION

if TYPE_CHECKING:
    import asyncio

    from etcd.server.member import Member
    from etcd.server.services import Services
    from etcd.server.v2 import V2Keys
    from etcd.server.v2http import V2Front

_ROUTES = {
    "/v3/kv/range": "/etcdserverpb.KV/Range",
    "/v3/kv/put": "/etcdserverpb.KV/Put",
    "/v3/kv/deleterange": "/etcdserverpb.KV/DeleteRange",
    "/v3/kv/txn": "/etcdserverpb.KV/Txn",
    "/v3/kv/compaction": "/etcdserverpb.KV/Compact",
    "/v3/lease/grant": "/etcdserverpb.Lease/LeaseGrant",
    "/v3/lease/revoke": "/etcdserverpb.Lease/LeaseRevoke",
    "/v3/kv/lease/revoke": "/etcdserverpb.Lease/LeaseRevoke",
    "/v3/lease/timetolive": "/etcdserverpb.Lease/LeaseTimeToLive",
    "/v3/kv/lease/timetolive": "/etcdserverpb.Lease/LeaseTimeToLive",
    "/v3/lease/leases": "/etcdserverpb.Lease/LeaseLeases",
    "/v3/kv/lease/leases": "/etcdserverpb.Lease/LeaseLeases",
    "/v3/cluster/member/list": "/etcdserverpb.Cluster/MemberList",
    "/v3/maintenance/status": "/etcdserverpb.Maintenance/Status",
    "/v3/maintenance/alarm": "/etcdserverpb.Maintenance/Alarm",
    "/v3/maintenance/defragment": "/etcdserverpb.Maintenance/Defragment",
    "/v3/maintenance/hash": "/etcdserverpb.Maintenance/Hash",
    **GATEWAY_ROUTES,
}
_HTTP_STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.OUT_OF_RANGE: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.NOT_FOUND: 404,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
}
_CORS = {
    "Access-Control-Allow-Headers": "accept, content-type, authorization",
    "Access-Control-Allow-Methods": "POST, GET, OPTIONS, PUT, DELETE",
    "Access-Control-Allow-Origin": "*",
}


class _Waiter:
    """A gateway request waiting for its durable response (``member.Caller``)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[bytes] = loop.create_future()

    def release(self, call_id: int, payload: bytes, final: bool) -> None:
        if not self.done.done():
            self.done.set_result(payload)

    def refuse(self, call_id: int, error: EtcdError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def flush(self) -> None:
        """Nothing is buffered here."""


class Http1Front:
    """The HTTP/1.1 server of a member, over connections it is handed."""

    def __init__(self, member: Member, services: Services, only: tuple[str, ...] = ()) -> None:
        """``only``: the paths that are answered, all if it is empty."""
        self._member = member
        self._services = services
        self._only = only
        # Cancelling tells a long poll that its client is gone.
        self._server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._v2_front: V2Front | None = None

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return self._server()

    async def close(self) -> None:
        """Close all connections."""
        await self._server.shutdown(timeout=1.0)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if self._only and path not in self._only:
            return web.Response(status=404, text="404 page not found\n", headers=_CORS)
        if request.method == "OPTIONS":
            return web.Response(headers=_CORS)
        if path == "/health":
            return self._health(request)
        if path == "/version":
            versions = {"etcdserver": SERVER_VERSION, "etcdcluster": CLUSTER_VERSION}
            return web.json_response(versions, headers=_CORS, dumps=_compact)
        if self._member.v2 is not None and path.startswith("/v2/"):
            return await self._v2(self._member.v2).handle(request)
        if path.startswith("/v3beta/"):
            path = path.replace("/v3beta/", "/v3/", 1)
        if not path.startswith("/v3/"):
            return web.Response(status=404, text="404 page not found\n", headers=_CORS)
        if path not in _ROUTES:
            return web.Response(status=404, text="Not Found\n", headers=_CORS)
        if request.method != "POST":
            return web.Response(status=405, text="Method Not Allowed\n", headers=_CORS)
        try:
            body_bytes = await request.read()
            return self._json(200, await self._call(_ROUTES[path], body_bytes, _shown(request)))
        except EtcdError as error:
            body = {"error": error.message, "code": int(error.code), "message": error.message}
            return self._json(_HTTP_STATUS.get(error.code, 500), _compact(body))

    def _v2(self, keys: V2Keys) -> V2Front:
        if self._v2_front is None:
            from etcd.server.v2http import V2Front

            self._v2_front = V2Front(keys, _CORS)
        return self._v2_front

    def _health(self, request: web.BaseRequest) -> web.Response:
        if request.method != "GET":
            return web.Response(status=405, text="Method Not Allowed\n", headers=_CORS)
        excluded = request.query.getall("exclude", [])
        names = [pb.AlarmType.Name(alarm) for _, alarm in self._member.engine.alarms]
        alarms = [name for name in names if name not in excluded]
        reason = f"ALARM {alarms[0]}" if alarms else ""
        body = _compact({"health": "false" if alarms else "true", "reason": reason})
        return web.Response(status=503 if alarms else 200, text=body, headers=_CORS)

    def _json(self, status: int, text: str) -> web.Response:
        headers = {**_CORS, "Grpc-Metadata-Content-Type": "application/grpc"}
        return web.Response(
            status=status, text=text, content_type="application/json", headers=headers
        )

    async def _call(self, method: str, body: bytes, shown: Credentials) -> str:
        unary = self._services.unary[method]
        message = unary.request()
        try:
            json_format.Parse(body or b"{}", message, ignore_unknown_fields=True)
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise EtcdError(Code.INVALID_ARGUMENT, str(error)) from None
        self._services.auth.admit(method, message, shown)
        response = unary.call(message)
        waiter = _Waiter(self._member.loop)
        self._member.answer(waiter, 0, response.SerializeToString())
        answer = type(response).FromString(await waiter.done)
        return _compact(json_format.MessageToDict(answer, preserving_proto_field_name=True))


def _shown(request: web.BaseRequest) -> Credentials:
    """The gateway takes tokens only: a certificate may be a proxy's own."""
    token = request.headers.get("Grpc-Metadata-Token") or request.headers.get("Authorization")
    return Credentials(token)


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
