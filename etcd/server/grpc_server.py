"""One gRPC connection: HTTP/2 events become calls, responses become frames."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from etcd.core import grpc
from etcd.core.counts import MethodCounts
from etcd.core.errors import TOO_MANY_REQUESTS, Code, EtcdError
from etcd.core.http2 import connection as h2
from etcd.core.http2.frames import ErrorCode
from etcd.server.auth import Credentials, common_name, header_token
from etcd.server.grpc_calls import Route, Stream, UnaryCall, Whole
from etcd.server.services import decode, unknown_method
from etcd.server.streams import STREAMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from etcd.core.http2.hpack import Header
    from etcd.server.member import Member
    from etcd.server.services import Services

# What a stream may hold back for a slow client before its watchers fall behind (re-read from
# history later): about two fragments.
MAX_STREAM_BACKLOG_BYTES = 1024 * 1024
# Bytes in the transport's buffer above which we neither read more requests nor send more events.
WRITE_HIGH_WATER_BYTES = 1024 * 1024
# Responses a client asked for and does not take: beyond, its calls are refused.  A list of all keys
# may be that large, a second one need not wait beside it.
MAX_BACKLOG_BYTES = 64 * 1024 * 1024
# Beginnings of requests whose ends have not come: beyond, the call that adds more is refused.
MAX_UNFINISHED_BYTES = 64 * 1024 * 1024
# A deadline nearer than this is over when the call is read.
SHORTEST_TIMEOUT_S = 1e-6
DEADLINE = (Code.DEADLINE_EXCEEDED, "context deadline exceeded")
# Header blocks remembered as routes: as many as the HPACK decoder remembers.
MAX_ROUTES = 128


class GrpcServerConnection(asyncio.Protocol):
    """See the module; the protocol of a connection that began with the HTTP/2 preface."""

    def __init__(self, member: Member, services: Services) -> None:
        self.member = member
        self._unary = services.unary
        self._counts = services.counts
        self._traffic = services.traffic
        self.auth = services.auth
        self._common_name: str | None = None
        self._h2 = h2.Http2Connection(client=False, max_streams=member.config.max_streams)
        self.max_message = member.config.max_message_bytes
        # Unary calls of this read that have a deadline, and those that wait for more bytes.
        self._due: dict[int, float] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        # When the client was last heard, and when a ping was sent that it has not answered.
        self._heard = member.loop.time()
        self._pinged: float | None = None
        self._calls: dict[int, Route | UnaryCall | Stream] = {}
        # Bytes of unfinished requests by call, and of all.
        self._unfinished: dict[int, int] = {}
        self._unfinished_total = 0
        self._routes: dict[int, Route] = {}
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._reading = False

    # Transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._common_name = common_name(transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for stream_id in list(self._calls):
            self._cancel(stream_id)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        # A client that does not read is not read from: whatever it sends cannot pile up here.
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self.member.schedule_sync()

    def data_received(self, data: bytes) -> None:
        self._reading = True
        self._heard = now = self.member.loop.time()
        events = self._h2.receive_data(data, now=now)
        for event in events:
            if isinstance(event, h2.DataReceived):
                self._on_data(event)
            elif isinstance(event, h2.HeadersReceived):
                self._on_headers(event)
            elif isinstance(event, h2.StreamReset):
                self._cancel(event.stream_id)
            elif isinstance(event, h2.Drained):
                self.member.schedule_sync()
            elif isinstance(event, h2.Failed):
                self._on_failed(event)
        self._reading = False
        if self._due:
            self._arm_deadlines()
        self.flush()

    def _on_failed(self, event: h2.Failed) -> None:
        self.member.env.log.info("connection closed: %s: %s", event.code.name, event.reason)
        if self._transport is not None:
            self._transport.write(self._h2.data_to_send())
            self._transport.close()

    def flush(self) -> None:
        """Write what is pending to the socket."""
        if self._h2.has_output and self._transport is not None:
            self._transport.write(self._h2.data_to_send())

    def touch(self) -> None:
        """Have the output written at the end of this tick (at once while reading)."""
        if not self._reading:
            self.member.touch(self)

    def writable(self, stream_id: int) -> bool:
        """Whether a stream's client keeps up with what it is sent."""
        return not self._paused and self._h2.queued_bytes(stream_id) < MAX_STREAM_BACKLOG_BYTES

    # Calls ---------------------------------------------------------------------------------

    def _on_headers(self, event: h2.HeadersReceived) -> None:
        stream_id = event.stream_id
        if stream_id in self._calls:
            # Trailers of a request: nothing in gRPC uses them, their END_STREAM counts.
            self._on_data(h2.DataReceived(stream_id, b"", 0, event.end_stream))
            return
        route = self._route(event.headers)
        if not route.grpc:
            self._h2.send_trailers(stream_id, grpc.UNSUPPORTED_MEDIA_TYPE)
            self._h2.reset(stream_id, ErrorCode.NO_ERROR)
            return
        route.counts.started += 1
        if self._h2.queued_total > MAX_BACKLOG_BYTES:
            # Its client asks and does not read.
            route.counts.fail(Code.RESOURCE_EXHAUSTED)
            self.refuse(stream_id, EtcdError(*TOO_MANY_REQUESTS))
            return
        if route.timeout is not None and not self._in_time(stream_id, route):
            return
        if route.method is not None:
            self._calls[stream_id] = route
        elif route.path in STREAMS:
            try:
                self._open_stream(stream_id, route)
            except EtcdError as error:
                route.counts.fail(error.code)
                self.refuse(stream_id, error)
                return
        else:
            self.refuse(stream_id, unknown_method(route.path))
            return
        if event.end_stream:
            self._on_data(h2.DataReceived(stream_id, b"", 0, True))

    def _in_time(self, stream_id: int, route: Route) -> bool:
        """Note a call's deadline; False when the call has ended already."""
        assert route.timeout is not None, "only calls that have one"
        timeout_s = grpc.parse_timeout_s(route.timeout)
        if timeout_s is None:
            # As grpc-go answers a malformed one.
            route.counts.fail(Code.INTERNAL)
            self._h2.reset(stream_id, ErrorCode.PROTOCOL_ERROR)
            return False
        if timeout_s < SHORTEST_TIMEOUT_S:
            route.counts.fail(Code.DEADLINE_EXCEEDED)
            self.refuse(stream_id, EtcdError(*DEADLINE))
            return False
        if route.method is not None:
            self._due[stream_id] = timeout_s
        return True

    def _arm_deadlines(self) -> None:
        """Give the unary calls a timer that did not come whole in the read that began them."""
        loop = self.member.loop
        for stream_id, timeout_s in self._due.items():
            if stream_id in self._calls:
                self._timers[stream_id] = loop.call_later(timeout_s, self._too_late, stream_id)
        self._due.clear()

    def _too_late(self, stream_id: int) -> None:
        self._timers.pop(stream_id, None)
        self.refuse(stream_id, EtcdError(*DEADLINE))
        self.touch()

    def _forget(self, stream_id: int) -> Route | UnaryCall | Stream | None:
        """Take a call out, its deadline and what it holds; return it."""
        if self._timers and (timer := self._timers.pop(stream_id, None)) is not None:
            timer.cancel()
        if self._unfinished:
            self._unfinished_total -= self._unfinished.pop(stream_id, 0)
        return self._calls.pop(stream_id, None)

    def _route(self, headers: Sequence[Header]) -> Route:
        known = self._routes.get(id(headers))
        if known is not None:
            return known
        path = content_type = encoding = b""
        timeout: bytes | None = None
        for name, value in headers:
            if name == b":path":
                path = value
            elif name == b"content-type":
                content_type = value
            elif name == b"grpc-timeout":
                timeout = value
            elif name == b"grpc-encoding":
                encoding = value
        text = path.decode("latin-1")
        method = self._unary.get(text)
        is_grpc = content_type.startswith(b"application/grpc")
        # What nothing serves is counted nowhere, as etcd does.
        counts = self._counts.get(text) or MethodCounts()
        route = Route(text, method, counts, headers, is_grpc, encoding, timeout)
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        # The route keeps the list alive, so no other gets its id.
        self._routes[id(headers)] = route
        return route

    def _shown(self, headers: Sequence[Header]) -> Credentials:
        return Credentials(header_token(headers), self._common_name)

    def _open_stream(self, stream_id: int, route: Route) -> None:
        if self.member.stopped:
            self.refuse(stream_id, self.member.stopped_error())
            return
        shown = self._shown(route.headers)
        self.auth.admit_stream(route.path, shown)
        stream = self._calls[stream_id] = Stream(
            self, stream_id, shown, route.counts, route.encoding
        )
        stream.call = STREAMS[route.path](self.member, stream)
        timeout_s = None if route.timeout is None else grpc.parse_timeout_s(route.timeout)
        if timeout_s is not None:
            late = EtcdError(*DEADLINE)
            stream.deadline = self.member.loop.call_later(timeout_s, stream.finish, late)

    def _on_data(self, event: h2.DataReceived) -> None:
        stream_id = event.stream_id
        call = self._calls.get(stream_id)
        if event.flow_bytes:
            self._h2.acknowledge(stream_id, event.flow_bytes)
        if call is None:
            return
        try:
            if isinstance(call, Route):
                message = grpc.whole_message(event.data) if event.end_stream else None
                if message is not None:
                    self._call_unary(stream_id, call, message)
                    return
                call = self._calls[stream_id] = UnaryCall(call, self.max_message)
            whole = isinstance(call.reader, Whole)
            messages = call.reader.feed(event.data) if event.data and not whole else []
            if isinstance(call, UnaryCall):
                self._feed_unary(stream_id, call, messages, event.end_stream)
                return
            self._hold(stream_id, call.reader.held)
            if messages and self._h2.queued_total > MAX_BACKLOG_BYTES:
                # Its client goes on asking and does not read.
                raise EtcdError(*TOO_MANY_REQUESTS)
            assert call.call is not None, "set when the stream was opened"
            for message in messages:
                call.counts.received += 1
                self._traffic.received_bytes += len(message)
                call.call.on_message(message)
            if event.end_stream:
                call.call.on_half_close()
        except EtcdError as error:
            self.refuse(stream_id, error)

    def _feed_unary(
        self, stream_id: int, call: UnaryCall, messages: list[bytes], end_stream: bool
    ) -> None:
        if not end_stream:
            if messages:
                # Keep it for the END_STREAM that follows: an empty DATA frame or trailers.
                call.reader = Whole(messages)
            self._hold(stream_id, call.reader.held)
            return
        if isinstance(call.reader, Whole):
            messages = call.reader.messages
        if not messages:
            raise EtcdError(Code.UNKNOWN, "unexpected EOF")
        # What follows the first message is ignored, as grpc-go does.
        self._call_unary(stream_id, call.route, messages[0])

    def _hold(self, stream_id: int, size: int) -> None:
        """Count a call's unfinished bytes; EtcdError when the connection has too many."""
        if size or stream_id in self._unfinished:
            self._unfinished_total += size - self._unfinished.pop(stream_id, 0)
            if size:
                self._unfinished[stream_id] = size
                if self._unfinished_total > MAX_UNFINISHED_BYTES:
                    raise EtcdError(*TOO_MANY_REQUESTS)

    def _call_unary(self, stream_id: int, route: Route, message: bytes) -> None:
        method = route.method
        assert method is not None, "only unary calls are kept by their route"
        self._traffic.received_bytes += len(message)
        request = decode(method.request, message)
        if self.auth.enabled:
            self.auth.admit(route.path, request, self._shown(route.headers))
        if method.payload is not None:
            payload = method.payload(request)
        else:
            payload = method.call(request).SerializeToString()
        self._forget(stream_id)
        route.counts.ok += 1
        self.member.answer(self, stream_id, payload)

    def _cancel(self, stream_id: int) -> None:
        """The client gave a call up."""
        call = self._calls.get(stream_id)
        if call is not None:
            call.counts.fail(Code.CANCELLED)
            self._drop(stream_id)

    def _drop(self, stream_id: int) -> None:
        call = self._forget(stream_id)
        if isinstance(call, Stream):
            if call.deadline is not None:
                call.deadline.cancel()
            if call.call is not None:
                call.call.on_gone()

    # Responses (member.Caller) ---------------------------------------------------------------

    def release(self, call_id: int, payload: bytes, final: bool) -> None:
        """Send a response message."""
        data = grpc.frame(payload)
        self._traffic.sent_bytes += len(payload)
        if final:
            self._h2.respond(call_id, grpc.RESPONSE_HEAD, data, grpc.OK_TRAILERS)
            if call_id in self._calls:
                self._calls[call_id].counts.ok += 1
                self._drop(call_id)
            return
        call = self._calls.get(call_id)
        if isinstance(call, Stream):
            call.counts.sent += 1
            self._start(call_id, call)
            self._h2.send_data(call_id, data)

    def _start(self, stream_id: int, stream: Stream) -> None:
        if not stream.started:
            stream.started = True
            self._h2.send_headers(stream_id, grpc.RESPONSE_HEAD)

    def refuse(self, call_id: int, error: EtcdError) -> None:
        """End a call with an error."""
        call = self._calls.get(call_id)
        if isinstance(call, Stream):
            self.end_stream(call_id, error)
            return
        if call is not None:
            call.counts.fail(error.code)
            self._forget(call_id)
        self._h2.send_trailers(call_id, grpc.status_only(error.code, error.message))
        # The rest of the request is of no interest (RFC 9113 section 8.1).
        self._h2.reset(call_id, ErrorCode.NO_ERROR)

    def end_stream(self, stream_id: int, error: EtcdError | None) -> None:
        """End a streaming call."""
        call = self._calls.get(stream_id)
        if not isinstance(call, Stream):
            return
        self._drop(stream_id)
        if error is None:
            call.counts.ok += 1
        else:
            call.counts.fail(error.code)
        if error is None:
            self._start(stream_id, call)
            self._h2.send_trailers(stream_id, grpc.OK_TRAILERS)
        elif call.started:
            trailers = grpc.status_trailers(error.code, error.message)
            self._h2.send_trailers(stream_id, trailers)
        else:
            self._h2.send_trailers(stream_id, grpc.status_only(error.code, error.message))
        if not self._h2.queued_bytes(stream_id):
            self._h2.reset(stream_id, ErrorCode.NO_ERROR)
        self.touch()

    def shut_down(self) -> None:
        """Tell the client to go elsewhere, end its streams, close."""
        self._h2.go_away()
        for stream_id, call in list(self._calls.items()):
            if isinstance(call, Stream):
                self.end_stream(stream_id, self.member.stopped_error())
            else:
                self.refuse(stream_id, self.member.stopped_error())
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def check_alive(self, now: float, interval_s: float, timeout_s: float) -> bool:
        """See ``keepalive.Peer``."""
        if self._pinged is not None and self._heard < self._pinged:
            if now - self._pinged < timeout_s:
                return True
            self.member.env.log.info("connection closed: no answer to a ping in %g s", timeout_s)
            self.abort()
            return False
        self._pinged = None
        if now - self._heard < interval_s:
            return False
        self._h2.ping()
        self._pinged = now
        self.flush()
        return True

    def abort(self) -> None:
        """Close without another byte."""
        if self._transport is not None:
            self._transport.abort()
