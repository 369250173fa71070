"""What an HTTP/2 connection tells its application."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from etcd.core.http2.frames import ErrorCode
    from etcd.core.http2.hpack import Header


class HeadersReceived(NamedTuple):
    """Request headers, response headers or trailers; the list must not be changed."""

    stream_id: int
    headers: list[Header]
    end_stream: bool


class DataReceived(NamedTuple):
    """Body bytes; ``flow_bytes`` is what to ``acknowledge`` once they are consumed."""

    stream_id: int
    data: bytes
    flow_bytes: int
    end_stream: bool


class StreamReset(NamedTuple):
    """The peer, or we for the peer's mistake, gave up a stream."""

    stream_id: int
    code: int


class Drained(NamedTuple):
    """All queued data of a stream went out."""

    stream_id: int


class GoAway(NamedTuple):
    """The peer takes no new streams; those above ``last_stream_id`` were not processed."""

    last_stream_id: int
    code: int
    debug: bytes


class PongReceived(NamedTuple):
    """The answer to our PING."""

    data: bytes


class Failed(NamedTuple):
    """The connection is over because of the peer's mistake; write what is pending and close."""

    code: ErrorCode
    reason: str


Event = HeadersReceived | DataReceived | StreamReset | Drained | GoAway | PongReceived | Failed
