"""One HTTP/2 connection, either end: bytes in, events out; verbs in, bytes out.

Theory of operation.  ``receive_data`` parses whole frames and returns events; ``data_to_send``
gives what to write.  A stream is in ``_streams`` from its HEADERS until both sides ended it or
either reset it.  Sending respects both flow-control windows: what does not fit waits in the
stream's queue and goes out, streams in turn, when the peer opens a window (then ``Drained`` tells
that a queue is empty).  Receiving: the connection's window is refilled as data arrive, a stream's
only when the application calls ``acknowledge``, so a slow reader holds up its own stream and no
other.

The peer's mistakes end the stream (RST_STREAM) or the connection (GOAWAY and ``Failed``); nothing
is raised.  Sources: RFC 9113; limits against floods as in CVE-2019-9512 to 9518, CVE-2023-44487.
"""

from __future__ import annotations

from emulator.errors import WireError
from etcd.core.http2 import frames as f
from etcd.core.http2.events import (
    DataReceived,
    Drained,
    Event,
    Failed,
    GoAway,
    HeadersReceived,
    PongReceived,
    StreamReset,
)
from etcd.core.http2.frames import ErrorCode
from etcd.core.http2.hpack import MAX_LIST_BYTES, Decoder
from etcd.core.http2.sending import (
    CONNECTION_WINDOW,
    IDLE_FRAME_BURST,
    IDLE_FRAMES_PER_WORK,
    MAX_STREAMS,
    SMALL_STEP_BYTES,
    STREAM_WINDOW,
    Sending,
    Stream,
)

__all__ = [
    "CONNECTION_WINDOW",
    "IDLE_FRAME_BURST",
    "MAX_STREAMS",
    "STREAM_WINDOW",
    "DataReceived",
    "Drained",
    "Event",
    "Failed",
    "GoAway",
    "HeadersReceived",
    "Http2Connection",
    "PongReceived",
    "StreamReset",
]

# A block before decompression; what it holds is limited by hpack.MAX_LIST_BYTES.
MAX_BLOCK_BYTES = MAX_LIST_BYTES
# Frames that move nothing forward (PING, SETTINGS, empty DATA, resets ...) a peer may send: a burst
# (sending.IDLE_FRAME_BURST), this rate, and some more for every frame of real work.
IDLE_FRAMES_PER_S = 2_000


class _ConnectionError(Exception):
    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Http2Connection(Sending):
    """See the module."""

    def __init__(self, *, client: bool, max_streams: int = MAX_STREAMS) -> None:
        """``max_streams``: how many a client may have open at a time."""
        super().__init__(client=client, max_streams=max_streams)
        self._decoder = Decoder()
        # The beginning of an unfinished frame; None until the preface has come.
        self._rest = b"" if client else None
        self._before_preface = b""
        self._recv_window = CONNECTION_WINDOW
        self._recv_unacked = 0
        # An unfinished header block: (stream, flags of its HEADERS, fragments, their size).
        self._block: tuple[int, int, list[bytes], int] | None = None
        self._settings_seen = False
        self._idle_at = 0.0
        self.failed = False

    @property
    def settings_seen(self) -> bool:
        """Whether the peer has introduced itself; until then it may be anything that accepts."""
        return self._settings_seen

    def receive_data(self, data: bytes, *, now: float) -> list[Event]:
        """Take bytes off the wire; return what happened.  After ``Failed`` nothing is taken."""
        if self.failed:
            return []
        try:
            if self._rest is None:
                data = self._take_preface(data)
                if self._rest is None:
                    return self._take_events()
            elif self._rest:
                data = self._rest + data
            self._rest = self._frames(data, now)
        except _ConnectionError as error:
            self._fail(error.code, error.reason)
        except WireError as error:
            code = ErrorCode.COMPRESSION_ERROR
            self._fail(code if "HPACK" in str(error) else ErrorCode.PROTOCOL_ERROR, str(error))
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _fail(self, code: ErrorCode, reason: str) -> None:
        self.go_away(code, reason)
        self.failed = True
        self._events.append(Failed(code, reason))

    def _take_preface(self, data: bytes) -> bytes:
        data = self._before_preface + data
        size = len(f.PREFACE)
        if data[:size] != f.PREFACE[: len(data)]:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 connection preface")
        if len(data) < size:
            self._before_preface = data
            return b""
        self._before_preface = b""
        self._rest = b""
        return data[size:]

    def _frames(self, data: bytes, now: float) -> bytes:
        at, end = 0, len(data)
        unpack = f.HEAD.unpack_from
        while end - at >= f.FRAME_HEADER_BYTES:
            high, low, kind, flags, stream_id = unpack(data, at)
            size = high << 8 | low
            if size > f.MAX_FRAME_BYTES:
                raise _ConnectionError(
                    ErrorCode.FRAME_SIZE_ERROR, f"frame of {size} bytes, at most 16384 agreed"
                )
            start = at + f.FRAME_HEADER_BYTES
            if end - start < size:
                break
            at = start + size
            if kind == f.DATA and self._block is None and self._settings_seen:
                # As _frame does, for the commonest of frames.
                self._on_data(flags, stream_id & f.MAX_WINDOW, data[start:at], now)
            else:
                self._frame(kind, flags, stream_id & f.MAX_WINDOW, data[start:at], now)
        return data[at:]

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        if self._block is not None and (kind != f.CONTINUATION or stream_id != self._block[0]):
            raise _ConnectionError(
                ErrorCode.PROTOCOL_ERROR, "header block interrupted by another frame"
            )
        if not self._settings_seen and kind != f.SETTINGS:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "first frame is not SETTINGS")
        if kind == f.HEADERS:
            self._on_headers(flags, stream_id, payload, now)
        elif kind == f.DATA:
            self._on_data(flags, stream_id, payload, now)
        elif kind == f.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload, now)
        elif kind == f.PING:
            self._on_ping(flags, stream_id, payload, now)
        elif kind == f.SETTINGS:
            self._on_settings(flags, stream_id, payload, now)
        elif kind == f.RST_STREAM:
            self._on_reset(stream_id, payload, now)
        elif kind == f.CONTINUATION:
            self._on_continuation(flags, stream_id, payload, now)
        elif kind == f.GOAWAY:
            self._on_go_away(stream_id, payload)
        elif kind == f.PUSH_PROMISE:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE is not enabled")
        else:
            # PRIORITY says nothing since RFC 9113; unknown types are ignored (section 4.1).
            self._spend(now)

    def _spend(self, now: float, cost: float = 1.0) -> None:
        """Count a frame that moves nothing forward."""
        self._idle_tokens = min(
            float(IDLE_FRAME_BURST),
            self._idle_tokens + (now - self._idle_at) * IDLE_FRAMES_PER_S,
        )
        self._idle_at = now
        self._idle_tokens -= cost
        if self._idle_tokens < 0:
            raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without effect")

    def _known(self, stream_id: int, what: str) -> Stream | None:
        """Return a stream, None if it is over; a stream never opened is an error."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            return stream
        mine = stream_id % 2 == (1 if self._client else 0)
        opened = self._next_stream_id - 2 if mine else self._last_peer_id
        if stream_id == 0 or stream_id > opened:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {stream_id}")
        return None

    def _on_headers(self, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        if flags & f.PADDED:
            payload = f.unpad(flags, payload, "HEADERS")
        if flags & f.PRIORITY_FLAG:
            if len(payload) < 5:
                raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short")
            payload = payload[5:]
        if flags & f.END_HEADERS:
            self._headers(stream_id, flags, payload, now)
        else:
            self._block = (stream_id, flags, [payload], len(payload))

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        if self._block is None:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._spend(now)
        first, head_flags, parts, size = self._block
        size += len(payload)
        if size > MAX_BLOCK_BYTES:
            raise _ConnectionError(
                ErrorCode.ENHANCE_YOUR_CALM, f"header block above {MAX_BLOCK_BYTES} bytes"
            )
        parts.append(payload)
        if flags & f.END_HEADERS:
            self._block = None
            self._headers(stream_id, head_flags, b"".join(parts), now)
        else:
            self._block = (first, head_flags, parts, size)

    def _headers(self, stream_id: int, flags: int, block: bytes, now: float) -> None:
        headers = self._decoder.decode(block)
        end_stream = bool(flags & f.END_STREAM)
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._client:
                self._known(stream_id, "HEADERS")
                return
            if stream_id % 2 == 0:
                raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "even stream from a client")
            if stream_id <= self._last_peer_id:
                raise _ConnectionError(ErrorCode.STREAM_CLOSED, f"stream {stream_id} is over")
            self._last_peer_id = stream_id
            stream = self._streams[stream_id] = Stream(self._peer_stream_window)
            if self.going_away or len(self._streams) > self._max_streams:
                self._spend(now)
                self.reset(stream_id, ErrorCode.REFUSED_STREAM)
                return
        elif stream.remote_closed:
            self._stream_error(stream_id, ErrorCode.STREAM_CLOSED, now)
            return
        elif not self._client and not end_stream:
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, now)
            return
        self._events.append(HeadersReceived(stream_id, headers, end_stream))
        if end_stream:
            self._close_remote(stream_id, stream)

    def _on_data(self, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        size = len(payload)
        self._recv_window -= size
        if self._recv_window < 0:
            raise _ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        self._recv_unacked += size
        if self._recv_unacked >= CONNECTION_WINDOW // 2:
            update = self._recv_unacked.to_bytes(4, "big")
            self._out.append(f.frame(f.WINDOW_UPDATE, 0, 0, update))
            self._recv_window += self._recv_unacked
            self._recv_unacked = 0
        stream = self._known(stream_id, "DATA")
        if stream is None:
            self._spend(now)
            return
        if stream.remote_closed:
            self._stream_error(stream_id, ErrorCode.STREAM_CLOSED, now)
            return
        stream.recv_window -= size
        if stream.recv_window < 0:
            self._stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR, now)
            return
        data = f.unpad(flags, payload, "DATA") if flags & f.PADDED else payload
        end_stream = bool(flags & f.END_STREAM)
        if data:
            self._idle_tokens += IDLE_FRAMES_PER_WORK
        elif not end_stream:
            self._spend(now)
        self._events.append(DataReceived(stream_id, data, size, end_stream))
        if end_stream:
            self._close_remote(stream_id, stream)

    def _close_remote(self, stream_id: int, stream: Stream) -> None:
        stream.remote_closed = True
        if stream.local_closed:
            self._forget(stream_id)

    def _stream_error(self, stream_id: int, code: ErrorCode, now: float) -> None:
        self._spend(now)
        self.reset(stream_id, code)
        self._events.append(StreamReset(stream_id, code))

    def _on_reset(self, stream_id: int, payload: bytes, now: float) -> None:
        if len(payload) != 4:
            raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        self._spend(now)
        if self._known(stream_id, "RST_STREAM") is not None:
            self._forget(stream_id)
            self._events.append(StreamReset(stream_id, int.from_bytes(payload, "big")))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        if stream_id:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & f.ACK:
            if payload:
                raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with payload")
            return
        if len(payload) % f.SETTING.size:
            raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a broken length")
        # A changed window is applied to every open stream.
        self._spend(now, 1.0 + len(payload) / f.SETTING.size * len(self._streams) / 64)
        self._settings_seen = True
        for key, value in f.parse_settings(payload):
            self._apply_setting(key, value)
        self._out.append(f.frame(f.SETTINGS, f.ACK, 0))

    def _apply_setting(self, key: int, value: int) -> None:
        if key == f.SETTINGS_INITIAL_WINDOW_SIZE:
            if value > f.MAX_WINDOW:
                raise _ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "window above 2^31-1")
            delta = value - self._peer_stream_window
            self._peer_stream_window = value
            for stream in self._streams.values():
                stream.send_window += delta
                if stream.send_window > f.MAX_WINDOW:
                    raise _ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "window above 2^31-1")
            if delta > 0:
                self._pump_all()
        elif key == f.SETTINGS_MAX_FRAME_SIZE:
            if not f.MAX_FRAME_BYTES <= value <= f.LARGEST_FRAME_BYTES:
                raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE")
            self._peer_frame_bytes = min(value, 4 * f.MAX_FRAME_BYTES)
        elif key == f.SETTINGS_ENABLE_PUSH:
            if value > 1 or (self._client and value):
                raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH")
        elif key == f.SETTINGS_MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value

    def _on_ping(self, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        if stream_id:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        self._spend(now)
        if flags & f.ACK:
            self._events.append(PongReceived(payload))
        else:
            self._out.append(f.frame(f.PING, f.ACK, 0, payload))

    def _on_go_away(self, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY too short")
        last = int.from_bytes(payload[:4], "big") & f.MAX_WINDOW
        self._events.append(GoAway(last, int.from_bytes(payload[4:8], "big"), payload[8:]))

    def _on_window_update(self, stream_id: int, payload: bytes, now: float) -> None:
        if len(payload) != 4:
            raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        increment = int.from_bytes(payload, "big") & f.MAX_WINDOW
        if increment < SMALL_STEP_BYTES:
            self._spend(now)
        if stream_id == 0:
            self._send_window += increment
            if not increment or self._send_window > f.MAX_WINDOW:
                raise _ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "bad connection window")
            self._pump_all()
            return
        stream = self._known(stream_id, "WINDOW_UPDATE")
        if stream is None:
            self._spend(now)
            return
        stream.send_window += increment
        if not increment or stream.send_window > f.MAX_WINDOW:
            self._stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR, now)
        elif stream.queue:
            self._pump(stream_id, stream)
