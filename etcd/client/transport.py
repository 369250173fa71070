"""One gRPC connection of the client, over the HTTP/2 core."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from etcd.core import grpc
from etcd.core.errors import Code, EtcdError
from etcd.core.http2 import connection as h2
from etcd.core.http2.frames import ErrorCode

if TYPE_CHECKING:
    from etcd.core.http2.hpack import Header

# A server's answer may be as large as its whole store (etcd: send limit unlimited).
MAX_RECEIVE_BYTES = 2**31 - 1
# etcd answers GOAWAY "too_many_pings" to pings more often than every 5 s.
KEEPALIVE_INTERVAL_S = 10.0
KEEPALIVE_TIMEOUT_S = 5.0

_LOST = "connection to {} lost; a write may or may not have been applied"


class NotSentError(EtcdError):
    """The call never reached a server, so trying again elsewhere is always safe."""


class ClientStream:
    """One call: messages out, messages in."""

    def __init__(self, connection: ClientConnection, stream_id: int) -> None:
        self._connection = connection
        self.id = stream_id
        self.reader = grpc.MessageReader(MAX_RECEIVE_BYTES)
        # (message, flow-control bytes to acknowledge once it is taken)
        self._messages: deque[tuple[bytes, int]] = deque()
        # Flow-control bytes of the unfinished message.
        self._held = 0
        self._waiter: asyncio.Future[None] | None = None
        self._ended: EtcdError | bool = False
        self.status: tuple[Code, str] | None = None

    def send(self, message: bytes, *, last: bool = False) -> None:
        """Send a message; ``last`` half-closes the call."""
        self._connection.send(self.id, grpc.frame(message), last)

    async def receive(self) -> bytes | None:
        """Return the next message, None at an OK end; raises EtcdError for any other end."""
        while not self._messages:
            if isinstance(self._ended, EtcdError):
                raise self._ended
            if self._ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message, flow_bytes = self._messages.popleft()
        if flow_bytes:
            self._connection.acknowledge(self.id, flow_bytes)
        return message

    def cancel(self) -> None:
        """Give the call up; nothing happens if it is over."""
        self._connection.cancel(self.id)

    def feed(self, data: bytes, flow_bytes: int) -> None:
        self._held += flow_bytes
        messages = self.reader.feed(data) if data else []
        if messages:
            self._messages.extend((message, 0) for message in messages[:-1])
            self._messages.append((messages[-1], self._held))
            self._held = 0
            self._wake()
        elif self._held >= h2.STREAM_WINDOW // 2:
            # Part of a message as large as the window: nobody can take it before it is whole.
            self._connection.acknowledge(self.id, self._held)
            self._held = 0

    def end(self, error: EtcdError | None) -> None:
        if self._ended is False:
            self._ended = error or True
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ClientConnection(asyncio.Protocol):
    """A connection to one endpoint; many calls at a time."""

    def __init__(self, endpoint: str, loop: asyncio.AbstractEventLoop) -> None:
        self.endpoint = endpoint
        self._loop = loop
        self._h2 = h2.Http2Connection(client=True)
        self._streams: dict[int, ClientStream] = {}
        self._transport: asyncio.Transport | None = None
        self._blocks: dict[tuple[str, tuple[Header, ...]], bytes] = {}
        self._write_scheduled = False
        self._keepalive: asyncio.TimerHandle | None = None
        self._awaiting_pong = False
        # No new calls: the connection is gone or the server says so.
        self.closed = False
        self._room: deque[asyncio.Future[None]] = deque()

    # Transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._write()
        self._arm_keepalive()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.closed = True
        if self._keepalive is not None:
            self._keepalive.cancel()
        lost = EtcdError(Code.UNAVAILABLE, _LOST.format(self.endpoint))
        for stream in list(self._streams.values()):
            stream.end(lost)
        self._streams.clear()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data, now=self._loop.time()):
            if isinstance(event, h2.DataReceived):
                self._on_data(event)
            elif isinstance(event, h2.HeadersReceived):
                self._on_headers(event)
            elif isinstance(event, h2.StreamReset):
                self._on_reset(event)
            elif isinstance(event, h2.PongReceived):
                self._awaiting_pong = False
            elif isinstance(event, h2.GoAway):
                self._on_go_away(event)
            elif isinstance(event, h2.Failed):
                self.close()
        self._write()

    def close(self) -> None:
        """Close the connection; calls in progress end with UNAVAILABLE."""
        self.closed = True
        if self._transport is not None:
            self._write()
            self._transport.close()

    def _write(self) -> None:
        self._write_scheduled = False
        if self._h2.has_output and self._transport is not None:
            self._transport.write(self._h2.data_to_send())

    def _schedule_write(self) -> None:
        """Write once for all calls made in this loop tick."""
        if not self._write_scheduled:
            self._write_scheduled = True
            self._loop.call_soon(self._write)

    def _arm_keepalive(self) -> None:
        self._keepalive = self._loop.call_later(KEEPALIVE_INTERVAL_S, self._on_keepalive)

    def _on_keepalive(self) -> None:
        """A server that died without a word must not hold watches for ever."""
        if self._streams:
            self._awaiting_pong = True
            self._h2.ping()
            self._write()
            self._keepalive = self._loop.call_later(KEEPALIVE_TIMEOUT_S, self._on_no_pong)
        else:
            self._arm_keepalive()

    def _on_no_pong(self) -> None:
        if self._awaiting_pong and self._transport is not None:
            self._transport.abort()
        else:
            self._arm_keepalive()

    # Calls ---------------------------------------------------------------------------------

    async def open(
        self, path: str, metadata: tuple[Header, ...], timeout_s: float | None = None
    ) -> ClientStream:
        """Begin a call; waits while the server allows no more of them."""
        while not self.closed and self._h2.open_streams >= self._h2.peer_max_streams:
            room = self._loop.create_future()
            self._room.append(room)
            await room
        if self.closed or self._transport is None:
            raise NotSentError(Code.UNAVAILABLE, f"connection to {self.endpoint} is closed")
        if timeout_s is not None:
            block = grpc.request_block(path, self.endpoint, timeout_s=timeout_s, metadata=metadata)
        else:
            known = self._blocks.get((path, metadata))
            if known is None:
                known = grpc.request_block(path, self.endpoint, metadata=metadata)
                self._blocks[path, metadata] = known
            block = known
        stream_id = self._h2.open_stream(block)
        stream = self._streams[stream_id] = ClientStream(self, stream_id)
        self._schedule_write()
        return stream

    def send(self, stream_id: int, data: bytes, last: bool) -> None:
        self._h2.send_data(stream_id, data, end_stream=last)
        self._schedule_write()

    def acknowledge(self, stream_id: int, flow_bytes: int) -> None:
        self._h2.acknowledge(stream_id, flow_bytes)
        if self._h2.has_output:
            self._schedule_write()

    def cancel(self, stream_id: int) -> None:
        if self._streams.pop(stream_id, None) is not None:
            self._h2.reset(stream_id, ErrorCode.CANCEL)
            self._schedule_write()
            self._make_room()

    def _make_room(self) -> None:
        while self._room:
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)
                if not self.closed:
                    return

    def _end(self, stream_id: int, error: EtcdError | None) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream.end(error)
            if self._h2.is_open(stream_id):
                self._h2.reset(stream_id, ErrorCode.CANCEL)
            self._make_room()

    # Events --------------------------------------------------------------------------------

    def _on_headers(self, event: h2.HeadersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        status = grpc.parse_status(event.headers)
        if status is None and not event.end_stream:
            return
        if status is None:
            http = dict(event.headers).get(b":status", b"none").decode("latin-1")
            status = (Code.UNAVAILABLE, f"{self.endpoint} answered without gRPC status ({http})")
        code, message = status
        self._end(event.stream_id, None if code == Code.OK else EtcdError(code, message))

    def _on_data(self, event: h2.DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        try:
            stream.feed(event.data, event.flow_bytes)
        except EtcdError as error:
            self._end(event.stream_id, error)
            return
        if event.end_stream:
            self._end(
                event.stream_id,
                EtcdError(Code.INTERNAL, f"{self.endpoint} ended a call without status"),
            )

    def _on_reset(self, event: h2.StreamReset) -> None:
        if event.code == ErrorCode.REFUSED_STREAM:
            error: EtcdError = NotSentError(Code.UNAVAILABLE, f"{self.endpoint} refused the call")
        else:
            code = Code.CANCELLED if event.code == ErrorCode.CANCEL else Code.UNAVAILABLE
            error = EtcdError(code, f"{self.endpoint} reset the call (HTTP/2 code {event.code})")
        self._end(event.stream_id, error)

    def _on_go_away(self, event: h2.GoAway) -> None:
        """Open calls go on; those the server never saw can go elsewhere."""
        self.closed = True
        unseen = NotSentError(Code.UNAVAILABLE, f"{self.endpoint} is shutting down")
        for stream_id in [number for number in self._streams if number > event.last_stream_id]:
            self._end(stream_id, unseen)
        self._make_room()
