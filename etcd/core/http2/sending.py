"""The sending half of an HTTP/2 connection: streams, their queues, the peer's windows."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from etcd.core.http2 import frames as f
from etcd.core.http2.events import Drained
from etcd.core.http2.frames import ErrorCode
from etcd.core.http2.hpack import MAX_LIST_BYTES

if TYPE_CHECKING:
    from etcd.core.http2.events import Event

# Room for one request of the largest gRPC message etcd takes (2 MiB) and another on its way.
STREAM_WINDOW = 4 * 1024 * 1024
# What one connection may have on its way to us in all.
CONNECTION_WINDOW = 16 * 1024 * 1024
# etcd sets no limit; an API server holds some hundred watches on one connection.
MAX_STREAMS = 10_000
# What a frame of real work, in either direction, adds to the frames without effect a peer may send:
# gRPC pings once a round trip while it measures bandwidth.
IDLE_FRAMES_PER_WORK = 4.0
IDLE_FRAME_BURST = 10_000
# A window update or a frame of data below this moves nothing forward: a peer that lets us send byte
# by byte makes us work for nothing (CVE-2019-9511, data dribble).
SMALL_STEP_BYTES = 256


class Stream:
    """One stream's state, both directions."""

    __slots__ = (
        "local_closed",
        "queue",
        "queued_bytes",
        "recv_unacked",
        "recv_window",
        "remote_closed",
        "send_window",
        "tail",
    )

    def __init__(self, send_window: int) -> None:
        self.send_window = send_window
        self.recv_window = STREAM_WINDOW
        self.recv_unacked = 0
        # Views where a part has been sent: what is left of a long response is not copied each time.
        self.queue: deque[bytes | memoryview] = deque()
        self.queued_bytes = 0
        # What ends the stream after the queue: a trailer block, b"" for an empty DATA frame.
        self.tail: bytes | None = None
        self.local_closed = False
        self.remote_closed = False


class Sending:
    """Everything a connection says; ``Http2Connection`` adds everything it hears."""

    def __init__(self, *, client: bool, max_streams: int = MAX_STREAMS) -> None:
        self._client = client
        self._max_streams = max_streams
        self._streams: dict[int, Stream] = {}
        # Streams whose queue waits for a window, in the order of their turns.
        self._blocked: dict[int, None] = {}
        self._out: list[bytes] = []
        self._events: list[Event] = []
        self._next_stream_id = 1
        self._last_peer_id = 0
        self._send_window = f.DEFAULT_WINDOW
        self._peer_stream_window = f.DEFAULT_WINDOW
        self._peer_frame_bytes = f.MAX_FRAME_BYTES
        self.peer_max_streams = f.MAX_WINDOW
        self._idle_tokens = float(IDLE_FRAME_BURST)
        # Bytes of all streams that wait for the peer's windows.
        self.queued_total = 0
        self.going_away = False
        settings = {
            f.SETTINGS_INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            f.SETTINGS_MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
        }
        if client:
            self._out.append(f.PREFACE)
            settings[f.SETTINGS_ENABLE_PUSH] = 0
        else:
            settings[f.SETTINGS_MAX_CONCURRENT_STREAMS] = max_streams
        self._out.append(f.frame(f.SETTINGS, 0, 0, f.settings_payload(settings)))
        extra = CONNECTION_WINDOW - f.DEFAULT_WINDOW
        self._out.append(f.frame(f.WINDOW_UPDATE, 0, 0, extra.to_bytes(4, "big")))

    def data_to_send(self) -> bytes:
        """Return and forget the bytes to write."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    @property
    def has_output(self) -> bool:
        return bool(self._out)

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    def queued_bytes(self, stream_id: int) -> int:
        """Return how much of a stream waits for the peer's windows."""
        stream = self._streams.get(stream_id)
        return stream.queued_bytes if stream is not None else 0

    def is_open(self, stream_id: int) -> bool:
        return stream_id in self._streams

    def open_stream(self, block: bytes, *, end_stream: bool = False) -> int:
        """Begin a request (client); return the stream's id."""
        assert self._client, "only a client opens streams"
        stream_id = self._next_stream_id
        self._next_stream_id += 2
        stream = Stream(self._peer_stream_window)
        self._streams[stream_id] = stream
        self._emit_headers(stream_id, block, f.END_STREAM if end_stream else 0)
        stream.local_closed = end_stream
        return stream_id

    def send_headers(self, stream_id: int, block: bytes) -> None:
        """Send response headers; nothing happens if the stream is gone."""
        if stream_id in self._streams:
            self._emit_headers(stream_id, block, 0)

    def send_data(self, stream_id: int, data: bytes, *, end_stream: bool = False) -> None:
        """Send body bytes, now or when the windows allow; ignored if the stream is gone."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_closed:
            return
        size = len(data)
        if (
            not stream.queue
            and size <= self._send_window
            and size <= stream.send_window
            and size <= self._peer_frame_bytes
        ):
            stream.send_window -= size
            self._send_window -= size
            self._idle_tokens += IDLE_FRAMES_PER_WORK
            flags = f.END_STREAM if end_stream else 0
            self._out.append(f.frame(f.DATA, flags, stream_id, data))
            if end_stream:
                self._close_local(stream_id, stream)
            return
        if size:
            stream.queue.append(data)
            stream.queued_bytes += size
            self.queued_total += size
        if end_stream:
            stream.tail = b""
        self._pump(stream_id, stream)

    def send_trailers(self, stream_id: int, block: bytes) -> None:
        """End our side with trailers, after what is queued; ignored if the stream is gone."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_closed:
            return
        if stream.queue:
            stream.tail = block
            return
        self._emit_headers(stream_id, block, f.END_STREAM)
        self._close_local(stream_id, stream)

    def respond(self, stream_id: int, head: bytes, data: bytes, trailers: bytes) -> None:
        """Send a whole response: headers, body, trailers."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_closed:
            return
        size = len(data)
        if (
            size <= self._send_window
            and size <= stream.send_window
            and size <= self._peer_frame_bytes
        ):
            self._send_window -= size
            self._idle_tokens += IDLE_FRAMES_PER_WORK
            pack = f.HEAD.pack
            self._out += (
                pack(len(head) >> 8, len(head) & 255, 1, 4, stream_id),
                head,
                pack(size >> 8, size & 255, 0, 0, stream_id),
                data,
                pack(len(trailers) >> 8, len(trailers) & 255, 1, 5, stream_id),
                trailers,
            )
            self._close_local(stream_id, stream)
            return
        self._emit_headers(stream_id, head, 0)
        self.send_data(stream_id, data)
        self.send_trailers(stream_id, trailers)

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """Give a stream up."""
        if self._forget(stream_id):
            self._out.append(f.frame(f.RST_STREAM, 0, stream_id, code.to_bytes(4, "big")))

    def acknowledge(self, stream_id: int, flow_bytes: int) -> None:
        """Let the peer send as much again on a stream."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.remote_closed:
            return
        stream.recv_unacked += flow_bytes
        if stream.recv_unacked >= STREAM_WINDOW // 2:
            stream.recv_window += stream.recv_unacked
            update = stream.recv_unacked.to_bytes(4, "big")
            self._out.append(f.frame(f.WINDOW_UPDATE, 0, stream_id, update))
            stream.recv_unacked = 0

    def ping(self, data: bytes = b"\0" * 8) -> None:
        """Send a PING with 8 opaque bytes."""
        self._out.append(f.frame(f.PING, 0, 0, data))

    def go_away(self, code: ErrorCode = ErrorCode.NO_ERROR, reason: str = "") -> None:
        """Announce the end: streams that are open go on, new ones are refused."""
        self.going_away = True
        payload = self._last_peer_id.to_bytes(4, "big") + code.to_bytes(4, "big") + reason.encode()
        self._out.append(f.frame(f.GOAWAY, 0, 0, payload))

    def _emit_headers(self, stream_id: int, block: bytes, flags: int) -> None:
        limit = self._peer_frame_bytes
        if len(block) <= limit:
            self._out.append(f.frame(f.HEADERS, flags | f.END_HEADERS, stream_id, block))
            return
        self._out.append(f.frame(f.HEADERS, flags, stream_id, block[:limit]))
        for at in range(limit, len(block), limit):
            last = f.END_HEADERS if at + limit >= len(block) else 0
            self._out.append(f.frame(f.CONTINUATION, last, stream_id, block[at : at + limit]))

    def _pump(self, stream_id: int, stream: Stream) -> None:
        """Send what the windows allow of a stream's queue, then its tail."""
        queue = stream.queue
        had = bool(queue)
        while queue:
            room = min(self._send_window, stream.send_window, self._peer_frame_bytes)
            if room <= 0:
                self._blocked[stream_id] = None
                return
            chunk = queue[0]
            if len(chunk) > room:
                chunk = memoryview(chunk)
                queue[0] = chunk[room:]
                chunk = chunk[:room]
            else:
                queue.popleft()
            size = len(chunk)
            stream.queued_bytes -= size
            self.queued_total -= size
            stream.send_window -= size
            self._send_window -= size
            if size >= SMALL_STEP_BYTES or not queue:
                self._idle_tokens += IDLE_FRAMES_PER_WORK
            self._out.append(f.frame(f.DATA, 0, stream_id, chunk))
        self._blocked.pop(stream_id, None)
        if stream.tail is not None:
            if stream.tail:
                self._emit_headers(stream_id, stream.tail, f.END_STREAM)
            else:
                self._out.append(f.frame(f.DATA, f.END_STREAM, stream_id))
            self._close_local(stream_id, stream)
        elif had:
            self._events.append(Drained(stream_id))

    def _pump_all(self) -> None:
        for stream_id in list(self._blocked):
            if self._send_window <= 0:
                return
            # Behind the others: streams take turns at the connection's window.
            del self._blocked[stream_id]
            self._pump(stream_id, self._streams[stream_id])

    def _close_local(self, stream_id: int, stream: Stream) -> None:
        stream.local_closed = True
        if stream.remote_closed:
            self._forget(stream_id)

    def _forget(self, stream_id: int) -> bool:
        self._blocked.pop(stream_id, None)
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return False
        self.queued_total -= stream.queued_bytes
        return True
