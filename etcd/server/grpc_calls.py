"""The calls of one gRPC connection while they are being served."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from etcd.core import grpc

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from etcd.core.counts import MethodCounts
    from etcd.core.errors import EtcdError
    from etcd.core.http2.hpack import Header
    from etcd.server.auth import Credentials
    from etcd.server.grpc_server import GrpcServerConnection
    from etcd.server.services import Unary
    from etcd.server.streams import StreamCall


class Route(NamedTuple):
    """What a request's header block asks for; blocks repeat, so each is looked at once."""

    path: str
    # None: a streaming call, or nothing that is served.
    method: Unary | None
    counts: MethodCounts
    headers: Sequence[Header]
    grpc: bool
    encoding: bytes
    timeout: bytes | None


class UnaryCall:
    """A request that did not come whole in one frame."""

    __slots__ = ("counts", "reader", "route")

    def __init__(self, route: Route, max_message: int) -> None:
        self.route = route
        self.counts = route.counts
        self.reader = grpc.MessageReader(max_message, route.encoding)


class Stream:
    """A streaming call's way back (``streams.Reply``)."""

    __slots__ = (
        "_connection",
        "_credentials",
        "_id",
        "call",
        "counts",
        "deadline",
        "reader",
        "started",
    )

    def __init__(
        self,
        connection: GrpcServerConnection,
        stream_id: int,
        credentials: Credentials,
        counts: MethodCounts,
        encoding: bytes,
    ) -> None:
        self._connection = connection
        self._id = stream_id
        self._credentials = credentials
        self.counts = counts
        self.reader = grpc.MessageReader(connection.max_message, encoding)
        self.call: StreamCall | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self.started = False

    def admit(self, path: str, request: object) -> None:
        self._connection.auth.admit(path, request, self._credentials)

    def send(self, payload: bytes) -> None:
        self._connection.release(self._id, payload, False)
        self._connection.touch()

    def send_durable(self, payload: bytes) -> None:
        connection = self._connection
        connection.member.answer(connection, self._id, payload, final=False)

    def answer(self, payload: bytes) -> None:
        connection = self._connection
        connection.member.answer(connection, self._id, payload)
        connection.touch()

    def writable(self) -> bool:
        return self._connection.writable(self._id)

    def finish(self, error: EtcdError | None = None) -> None:
        self._connection.end_stream(self._id, error)


class Whole(grpc.MessageReader):
    """Holds a request that came before its END_STREAM."""

    __slots__ = ("messages",)

    def __init__(self, messages: list[bytes]) -> None:
        super().__init__(0)
        self.messages = messages
        self.held = sum(map(len, messages))
