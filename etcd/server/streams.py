"""The calls that live on: watch, lease keepalive, health watch, and those of ``long_calls``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

from etcd.core.auth_check import WATCH
from etcd.core.errors import EtcdError
from etcd.core.pb import health_pb2
from etcd.core.pb import rpc_pb2 as pb
from etcd.server.auth_calls import AuthenticateCall
from etcd.server.services import decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from etcd.server.member import Member


class Reply(Protocol):
    """A stream's way back to its client."""

    def admit(self, path: str, request: object) -> None:
        """Raise EtcdError unless auth lets the client send this message."""

    def send(self, payload: bytes) -> None:
        """Send one response message now."""

    def send_durable(self, payload: bytes) -> None:
        """Send one response message once everything pending is durable."""

    def answer(self, payload: bytes) -> None:
        """Send the one response of a unary call once everything pending is durable; end it."""

    def writable(self) -> bool:
        """Whether the client keeps up."""

    def finish(self, error: EtcdError | None = None) -> None:
        """End the call."""


class StreamCall(Protocol):
    """One streaming call being served."""

    def on_message(self, data: bytes) -> None:
        """Take one request message."""

    def on_half_close(self) -> None:
        """The client will send no more."""

    def on_gone(self) -> None:
        """The call is over, whoever ended it; nothing may be sent any more."""


class WatchCall:
    """Watch.Watch."""

    def __init__(self, member: Member, reply: Reply) -> None:
        self._member = member
        self._reply = reply
        self._stream = member.hub.open(reply)

    def on_message(self, data: bytes) -> None:
        request = decode(pb.WatchRequest, data)
        assert isinstance(request, pb.WatchRequest)
        if request.HasField("create_request"):
            try:
                self._reply.admit(WATCH, request.create_request)
            except EtcdError as error:
                # The other watches of the stream go on.
                text = f"rpc error: code = {error.code.camel} desc = {error.message}"
                self._member.hub.refuse(self._stream, text)
                return
        self._member.hub.receive(self._stream, request)
        self._member.schedule_sync()

    def on_half_close(self) -> None:
        """The watches go on, as etcd's do."""

    def on_gone(self) -> None:
        self._member.hub.close(self._stream)


class KeepAliveCall:
    """Lease.LeaseKeepAlive."""

    def __init__(self, member: Member, reply: Reply) -> None:
        self._member = member
        self._reply = reply

    def on_message(self, data: bytes) -> None:
        request = decode(pb.LeaseKeepAliveRequest, data)
        assert isinstance(request, pb.LeaseKeepAliveRequest)
        self._reply.admit("/etcdserverpb.Lease/LeaseKeepAlive", request)
        member = self._member
        response = member.engine.lease_keep_alive(request.ID, now=member.loop.time())
        self._reply.send_durable(response.SerializeToString())

    def on_half_close(self) -> None:
        self._reply.finish()

    def on_gone(self) -> None:
        pass


class HealthWatchCall:
    """grpc.health.v1 Health.Watch: always serving while there is someone to ask."""

    def __init__(self, _: Member, reply: Reply) -> None:
        self._reply = reply

    def on_message(self, data: bytes) -> None:
        decode(health_pb2.HealthCheckRequest, data)
        serving = health_pb2.HealthCheckResponse.SERVING
        self._reply.send(health_pb2.HealthCheckResponse(status=serving).SerializeToString())

    def on_half_close(self) -> None:
        pass

    def on_gone(self) -> None:
        pass


def _of_module(module: str, table: str, path: str) -> Callable[[Member, Reply], StreamCall]:
    """Return a call of a module that is imported when it is first made: a quarter of our code."""

    def make(member: Member, reply: Reply) -> StreamCall:
        calls = getattr(importlib.import_module(module), table)
        call: StreamCall = calls[path](member, reply)
        return call

    return make


_LONG_CALLS = (
    "/etcdserverpb.KV/Compact",
    *(f"/etcdserverpb.Maintenance/{name}" for name in ("Snapshot", "HashKV", "Hash")),
)
_RECIPES = (
    *(f"/v3lockpb.Lock/{name}" for name in ("Lock", "Unlock")),
    *(
        f"/v3electionpb.Election/{name}"
        for name in ("Campaign", "Proclaim", "Leader", "Observe", "Resign")
    ),
)
STREAMS: dict[str, Callable[[Member, Reply], StreamCall]] = {
    "/etcdserverpb.Watch/Watch": WatchCall,
    "/etcdserverpb.Lease/LeaseKeepAlive": KeepAliveCall,
    "/grpc.health.v1.Health/Watch": HealthWatchCall,
    "/etcdserverpb.Auth/Authenticate": AuthenticateCall,
    **{path: _of_module("etcd.server.long_calls", "LONG_CALLS", path) for path in _LONG_CALLS},
    **{path: _of_module("etcd.server.recipe_calls", "RECIPE_CALLS", path) for path in _RECIPES},
}
