"""One gRPC connection of the client, over the HTTP/2 core."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from etcd.core import grpc
from etcd.core.errors import Code, EtcdError
from etcd.core.http2 import connection as h2
from etcd.core.http2.frames import ErrorCode

if TYPE_CHECKING:
    from etcd.core.http2.hpack import Header

# A server's answer may be as large as its whole store (etcd: send limit unlimited).
MAX_RECEIVE_BYTES = 2**31 - 1
# etcd answers GOAWAY "too_many_pings" to pings more often than every 5 s.
MIN_PING_INTERVAL_S = 5.5

_LOST = "connection to {} lost; a write may or may not have been applied"


class Patience(NamedTuple):
    """Seconds of silence, while calls wait, before a ping; then seconds for its answer."""

    silence_s: float
    pong_s: float


# With nowhere else to go, a false alarm costs more than a late one.
ONE_ENDPOINT: Final = Patience(10.0, 5.0)
# Under a lease's third: a member that hangs must not cost the leases kept through it.
SEVERAL_ENDPOINTS: Final = Patience(1.0, 1.5)


class NotSentError(EtcdError):
    """The call never reached a server, so trying again elsewhere is always safe."""


class ClientStream:
    """One call: messages out, messages in."""

    def __init__(self, connection: ClientConnection, stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.reader = grpc.MessageReader(MAX_RECEIVE_BYTES)
        # (message, flow-control bytes to acknowledge once it is taken)
        self._messages: deque[tuple[bytes, int]] = deque()
        # Flow-control bytes of the unfinished message.
        self._held = 0
        self._waiter: asyncio.Future[None] | None = None
        self._ended: EtcdError | bool = False
        self.status: tuple[Code, str] | None = None
        # The headers that told the server whose call this is.
        self.token: tuple[Header, ...] = ()

    def send(self, message: bytes, *, last: bool = False) -> None:
        """Send a message; ``last`` half-closes the call."""
        self.connection.send(self.id, grpc.frame(message), last)

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
            self.connection.acknowledge(self.id, flow_bytes)
        return message

    def cancel(self) -> None:
        """Give the call up; nothing happens if it is over."""
        self.connection.cancel(self.id)

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
            self.connection.acknowledge(self.id, self._held)
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

    def __init__(
        self, endpoint: str, loop: asyncio.AbstractEventLoop, patience: Patience = ONE_ENDPOINT
    ) -> None:
        self.endpoint = endpoint
        self._loop = loop
        self._patience = patience
        # Whether the server has introduced itself; False: it went before it did.
        self.introduced: asyncio.Future[bool] = loop.create_future()
        self._h2 = h2.Http2Connection(client=True)
        self._streams: dict[int, ClientStream] = {}
        self._transport: asyncio.Transport | None = None
        self._blocks: dict[tuple[str, tuple[Header, ...]], bytes] = {}
        self._write_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._pinged_at = float("-inf")
        self._heard = False
        # No new calls: the connection is gone or the server says so.
        self.closed = False
        self._room: deque[asyncio.Future[None]] = deque()

    # Transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.closed = True
        self._introduced(False)
        if self._timer is not None:
            self._timer.cancel()
        lost = EtcdError(Code.UNAVAILABLE, _LOST.format(self.endpoint))
        for stream in list(self._streams.values()):
            stream.end(lost)
        self._streams.clear()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        for event in self._h2.receive_data(data, now=self._loop.time()):
            if isinstance(event, h2.DataReceived):
                self._on_data(event)
            elif isinstance(event, h2.HeadersReceived):
                self._on_headers(event)
            elif isinstance(event, h2.StreamReset):
                self._on_reset(event)
            elif isinstance(event, h2.GoAway):
                self._on_go_away(event)
            elif isinstance(event, h2.Failed):
                self.close()
        if self._h2.settings_seen:
            self._introduced(True)
        self._write()

    def _introduced(self, yes: bool) -> None:
        if not self.introduced.done():
            self.introduced.set_result(yes)

    @property
    def gone(self) -> bool:
        """Whether nothing is left of it, not even calls that go on."""
        return self._transport is None and self.introduced.done()

    def drain(self) -> None:
        """Take no new calls; close when those in progress are over."""
        self.closed = True
        self._make_room()
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self.closed and not self._streams:
            self.close()

    def abort(self) -> None:
        """Close the connection without another byte."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

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

    def _watch_over(self, wait_s: float) -> None:
        self._heard = False
        self._timer = self._loop.call_later(wait_s, self._on_silence)

    def _on_silence(self) -> None:
        """A server that died without a word must not hold calls for ever."""
        self._timer = None
        if not self._streams:
            return
        wait_s = self._pinged_at + MIN_PING_INTERVAL_S - self._loop.time()
        if self._heard or wait_s > 0:
            self._watch_over(max(self._patience.silence_s, wait_s))
            return
        self._pinged_at = self._loop.time()
        self._h2.ping()
        self._write()
        self._heard = False
        self._timer = self._loop.call_later(self._patience.pong_s, self._on_no_pong)

    def _on_no_pong(self) -> None:
        if self._heard:
            self._watch_over(self._patience.silence_s)
        else:
            self.abort()

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
        if self._timer is None:
            self._watch_over(self._patience.silence_s)
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
            self._close_if_drained()

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
            self._close_if_drained()

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
        self.drain()
