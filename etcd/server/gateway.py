"""The JSON gateway: every method of every service under /v3/, as grpc-gateway serves them.

A unary call answers one JSON object; a stream takes JSON objects one after another from the body
and answers a line ``{"result":…}`` for each message.  Source: etcd api/etcdserverpb/gw,
grpc-gateway v1.16 runtime/{handler,errors}.go.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from aiohttp import web
from google.protobuf import message_factory

from etcd.core import gateway_json, gojson
from etcd.core.errors import TOO_MANY_REQUESTS, Code, EtcdError
from etcd.core.gojson import GoJsonError
from etcd.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from etcd.server.auth import Credentials
from etcd.server.services import unknown_method
from etcd.server.streams import STREAMS

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from etcd.server.auth import AuthService
    from etcd.server.member import Member
    from etcd.server.services import Services
    from etcd.server.streams import StreamCall

# A body is base64 in JSON: at most so many times the largest gRPC message.
BODY_BYTES_PER_MESSAGE_BYTE = 8
# JSON values looked at for one message of a stream: with every piece of it that comes it is looked
# at from its start.
MAX_VALUES_LOOKED_AT = 5 * gojson.MAX_VALUES
# Messages of a stream that may wait for a slow client before its watchers fall behind.
MAX_BACKLOG_BYTES = 1024 * 1024

_KV, _LEASE = "/etcdserverpb.KV/", "/etcdserverpb.Lease/"
_CLUSTER, _MAINTENANCE = "/etcdserverpb.Cluster/", "/etcdserverpb.Maintenance/"
_AUTH, _LOCK, _ELECTION = "/etcdserverpb.Auth/", "/v3lockpb.Lock/", "/v3electionpb.Election/"
ROUTES: Final = {
    "/v3/kv/range": _KV + "Range",
    "/v3/kv/put": _KV + "Put",
    "/v3/kv/deleterange": _KV + "DeleteRange",
    "/v3/kv/txn": _KV + "Txn",
    "/v3/kv/compaction": _KV + "Compact",
    "/v3/watch": "/etcdserverpb.Watch/Watch",
    "/v3/lease/grant": _LEASE + "LeaseGrant",
    "/v3/lease/revoke": _LEASE + "LeaseRevoke",
    "/v3/kv/lease/revoke": _LEASE + "LeaseRevoke",
    "/v3/lease/keepalive": _LEASE + "LeaseKeepAlive",
    "/v3/lease/timetolive": _LEASE + "LeaseTimeToLive",
    "/v3/kv/lease/timetolive": _LEASE + "LeaseTimeToLive",
    "/v3/lease/leases": _LEASE + "LeaseLeases",
    "/v3/kv/lease/leases": _LEASE + "LeaseLeases",
    "/v3/cluster/member/add": _CLUSTER + "MemberAdd",
    "/v3/cluster/member/remove": _CLUSTER + "MemberRemove",
    "/v3/cluster/member/update": _CLUSTER + "MemberUpdate",
    "/v3/cluster/member/list": _CLUSTER + "MemberList",
    "/v3/cluster/member/promote": _CLUSTER + "MemberPromote",
    "/v3/maintenance/alarm": _MAINTENANCE + "Alarm",
    "/v3/maintenance/status": _MAINTENANCE + "Status",
    "/v3/maintenance/defragment": _MAINTENANCE + "Defragment",
    "/v3/maintenance/hash": _MAINTENANCE + "Hash",
    "/v3/maintenance/snapshot": _MAINTENANCE + "Snapshot",
    "/v3/maintenance/transfer-leadership": _MAINTENANCE + "MoveLeader",
    "/v3/maintenance/downgrade": _MAINTENANCE + "Downgrade",
    "/v3/auth/enable": _AUTH + "AuthEnable",
    "/v3/auth/disable": _AUTH + "AuthDisable",
    "/v3/auth/status": _AUTH + "AuthStatus",
    "/v3/auth/authenticate": _AUTH + "Authenticate",
    "/v3/auth/user/add": _AUTH + "UserAdd",
    "/v3/auth/user/get": _AUTH + "UserGet",
    "/v3/auth/user/list": _AUTH + "UserList",
    "/v3/auth/user/delete": _AUTH + "UserDelete",
    "/v3/auth/user/changepw": _AUTH + "UserChangePassword",
    "/v3/auth/user/grant": _AUTH + "UserGrantRole",
    "/v3/auth/user/revoke": _AUTH + "UserRevokeRole",
    "/v3/auth/role/add": _AUTH + "RoleAdd",
    "/v3/auth/role/get": _AUTH + "RoleGet",
    "/v3/auth/role/list": _AUTH + "RoleList",
    "/v3/auth/role/delete": _AUTH + "RoleDelete",
    "/v3/auth/role/grant": _AUTH + "RoleGrantPermission",
    "/v3/auth/role/revoke": _AUTH + "RoleRevokePermission",
    "/v3/lock/lock": _LOCK + "Lock",
    "/v3/lock/unlock": _LOCK + "Unlock",
    "/v3/election/campaign": _ELECTION + "Campaign",
    "/v3/election/proclaim": _ELECTION + "Proclaim",
    "/v3/election/leader": _ELECTION + "Leader",
    "/v3/election/observe": _ELECTION + "Observe",
    "/v3/election/resign": _ELECTION + "Resign",
}
# runtime/errors.go HTTPStatusFromCode.
HTTP_STATUS: Final = {
    Code.OK: HTTPStatus.OK,
    Code.CANCELLED: HTTPStatus.REQUEST_TIMEOUT,
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    Code.ABORTED: HTTPStatus.CONFLICT,
    Code.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    Code.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
_METADATA: Final = {"Grpc-Metadata-Content-Type": "application/grpc"}


def _shown(request: web.BaseRequest) -> Credentials:
    """The gateway takes tokens only: a certificate may be a proxy's own."""
    token = request.headers.get("Grpc-Metadata-Token") or request.headers.get("Authorization")
    return Credentials(token)


class _Method(NamedTuple):
    """What the .proto files say about a method."""

    request: type[Message]
    response: type[Message]
    client_streams: bool
    server_streams: bool


METHODS: Final[dict[str, _Method]] = {
    f"/{service.full_name}/{method.name}": _Method(
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
        method.client_streaming,
        method.server_streaming,
    )
    for file in (rpc_pb2, v3lock_pb2, v3election_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class _Call:
    """A call from the gateway: a stream's ``Reply`` and a member's ``Caller``."""

    def __init__(self, member: Member, auth: AuthService, shown: Credentials) -> None:
        self._member = member
        self._auth = auth
        self._shown = shown
        self._messages: deque[bytes] = deque()
        self._backlog = 0
        self._wake = asyncio.Event()
        self._over = False
        self._error: EtcdError | None = None

    # streams.Reply

    def admit(self, path: str, request: object) -> None:
        self._auth.admit(path, request, self._shown)

    def send(self, payload: bytes) -> None:
        if not self._over:
            self._messages.append(payload)
            self._backlog += len(payload)
            self._wake.set()

    def send_durable(self, payload: bytes) -> None:
        self._member.answer(self, 0, payload, final=False)

    def answer(self, payload: bytes) -> None:
        self._member.answer(self, 0, payload)

    def writable(self) -> bool:
        return self._backlog < MAX_BACKLOG_BYTES

    def finish(self, error: EtcdError | None = None) -> None:
        if not self._over:
            self._over, self._error = True, error
            self._wake.set()

    # member.Caller

    def release(self, call_id: int, payload: bytes, final: bool) -> None:
        self.send(payload)
        if final:
            self.finish()

    def refuse(self, call_id: int, error: EtcdError) -> None:
        self.finish(error)

    def flush(self) -> None:
        """Whoever reads is awake already."""

    async def next(self) -> bytes | None:
        """Return the next message, None at the end; EtcdError when the call ends with one."""
        while not self._messages:
            if self._over:
                if self._error is not None:
                    raise self._error
                return None
            self._wake.clear()
            await self._wake.wait()
        payload = self._messages.popleft()
        self._backlog -= len(payload)
        if not self._messages:
            self._member.schedule_sync()
        return payload


class _Body:
    """The JSON values of a request's body."""

    def __init__(self, request: web.BaseRequest, max_message: int) -> None:
        self._content = request.content
        self._max_message = max_message
        self._data = b""
        self._ended = False

    async def next(self, method: _Method) -> Message | None:
        """Return the next message, None at the body's end; GoJsonError for what is none."""
        while not method.client_streams and not self._ended:
            await self._more()
        looked_at = 0
        while True:
            scanner = gojson.Scanner(self._data)
            try:
                span = scanner.value()
                # A number may go on in bytes still to come.
                if span is not None and (span[1] < len(self._data) or self._ended):
                    return self._message(method, *span)
                if span is not None and self._data[span[1] - 1] in b'}]"':
                    return self._message(method, *span)
            except gojson.UnfinishedError:
                span = 0, 0
            looked_at += scanner.values
            if looked_at > MAX_VALUES_LOOKED_AT:
                raise EtcdError(*TOO_MANY_REQUESTS)
            if self._ended:
                if span is None:
                    return None
                raise GoJsonError("unexpected EOF")
            await self._more()

    async def _more(self) -> None:
        chunk = await self._content.readany()
        self._data += chunk
        self._ended = not chunk
        limit = BODY_BYTES_PER_MESSAGE_BYTE * self._max_message
        if len(self._data) > limit:
            raise EtcdError(Code.RESOURCE_EXHAUSTED, f"request body is larger than {limit} bytes")

    def _message(self, method: _Method, start: int, end: int) -> Message:
        value = gojson.tree(self._data[start:end])
        self._data = self._data[end:]
        message = method.request()
        gateway_json.fill(message, value)
        if message.ByteSize() > self._max_message:
            raise EtcdError(
                Code.RESOURCE_EXHAUSTED,
                f"grpc: received message larger than max ({message.ByteSize()} vs. "
                f"{self._max_message})",
            )
        return message


class Gateway:
    """The paths under /v3/ of one member."""

    def __init__(self, member: Member, services: Services, cors: dict[str, str]) -> None:
        self._member = member
        self._services = services
        self._cors = cors
        self._calls: dict[_Call, None] = {}

    def end_calls(self) -> None:
        """Tell those who watch or wait that the server stops."""
        for call in self._calls:
            call.finish(self._member.stopped_error())

    async def handle(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """Answer a request to a path under /v3/."""
        name = ROUTES.get(path)
        if name is None:
            return web.Response(status=404, text="Not Found\n", headers=self._plain())
        if request.method != "POST":
            return web.Response(status=405, text="Method Not Allowed\n", headers=self._plain())
        method = METHODS[name]
        body = _Body(request, self._member.config.max_message_bytes)
        try:
            if method.server_streams:
                return await self._stream(name, method, body, request)
            message = await self._first(method, body)
            payload = await self._unary(name, message, _shown(request))
        except EtcdError as error:
            return self._refusal(error)
        text = gateway_json.message_text(method.response.FromString(payload))
        return self._json(HTTPStatus.OK, text, _METADATA)

    def _plain(self) -> dict[str, str]:
        return {**self._cors, "X-Content-Type-Options": "nosniff"}

    def _json(self, status: int, text: str, extra: dict[str, str]) -> web.Response:
        return web.Response(
            status=status,
            body=text.encode(),
            headers={**self._cors, **extra, "Content-Type": "application/json"},
        )

    def _refusal(self, error: EtcdError) -> web.Response:
        text = gojson.dumps(
            {"error": error.message, "code": int(error.code), "message": error.message}
        )
        return self._json(HTTP_STATUS.get(error.code, 500), text, {})

    async def _first(self, method: _Method, body: _Body) -> Message:
        """Return the one request of a call that takes one; an empty body is an empty message."""
        try:
            return await body.next(method) or method.request()
        except GoJsonError as error:
            raise EtcdError(Code.INVALID_ARGUMENT, str(error)) from None

    async def _unary(self, name: str, message: Message, shown: Credentials) -> bytes:
        call = _Call(self._member, self._services.auth, shown)
        unary = self._services.unary.get(name)
        counts = self._services.counts[name]
        counts.started += 1
        stream: StreamCall | None = None
        self._calls[call] = None
        try:
            if unary is not None:
                call.admit(name, message)
                call.answer(unary.call(message).SerializeToString())
            else:
                stream = self._open(name, call, shown)
                stream.on_message(message.SerializeToString())
                stream.on_half_close()
            payload = await call.next()
        except EtcdError as error:
            counts.fail(error.code)
            raise
        finally:
            del self._calls[call]
            if stream is not None:
                stream.on_gone()
        assert payload is not None, "a unary call answers or fails"
        counts.ok += 1
        return payload

    def _open(self, name: str, call: _Call, shown: Credentials) -> StreamCall:
        if self._member.stopped:
            raise self._member.stopped_error()
        opened = STREAMS.get(name)
        if opened is None:
            raise unknown_method(name)
        self._services.auth.admit_stream(name, shown)
        return opened(self._member, call)

    async def _stream(
        self, name: str, method: _Method, body: _Body, request: web.BaseRequest
    ) -> web.StreamResponse:
        if method.client_streams:
            try:
                first = await body.next(method)
            except GoJsonError as error:
                # Not a status of gRPC's, so the gateway knows no code for it.
                raise EtcdError(Code.UNKNOWN, str(error)) from None
        else:
            first = await self._first(method, body)
        shown = _shown(request)
        call = _Call(self._member, self._services.auth, shown)
        counts = self._services.counts[name]
        counts.started += 1
        stream = self._open(name, call, shown)
        self._calls[call] = None
        response = web.StreamResponse(headers={**self._cors, "Content-Type": "application/json"})
        response.enable_chunked_encoding()
        try:
            async with asyncio.TaskGroup() as group:
                feeding = group.create_task(
                    self._feed(call, stream, method, first, body), name="etcd.gateway"
                )
                await self._forward(call, method, request, response)
                feeding.cancel()
        except* ConnectionError:
            # The client is gone; there is nobody to tell.
            counts.fail(Code.CANCELLED)
        else:
            counts.ok += 1
        finally:
            del self._calls[call]
            stream.on_gone()
        return response

    async def _feed(
        self,
        call: _Call,
        stream: StreamCall,
        method: _Method,
        message: Message | None,
        body: _Body,
    ) -> None:
        """Pass the messages of a body on; one that is none ends it, as its end does."""
        try:
            while message is not None:
                stream.on_message(message.SerializeToString())
                message = await body.next(method) if method.client_streams else None
        except GoJsonError:
            pass
        except EtcdError as error:
            call.finish(error)
            return
        stream.on_half_close()

    async def _forward(
        self,
        call: _Call,
        method: _Method,
        request: web.BaseRequest,
        response: web.StreamResponse,
    ) -> None:
        text = ""
        while True:
            try:
                payload = await call.next()
            except EtcdError as error:
                status = HTTP_STATUS.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)
                if not response.prepared:
                    response.set_status(status)
                details: dict[str, object] = {
                    "grpc_code": int(error.code),
                    "http_code": int(status),
                }
                details |= {"message": error.message, "http_status": status.phrase}
                text = gojson.dumps({"error": details})
                break
            if payload is None:
                break
            if not response.prepared:
                response.headers.update(_METADATA)
                await response.prepare(request)
            message = method.response.FromString(payload)
            line = f'{{"result":{gateway_json.message_text(message)}}}\n'
            await response.write(line.encode())
        if not response.prepared:
            await response.prepare(request)
        if text:
            await response.write(text.encode())
        await response.write_eof()
