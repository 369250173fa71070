"""A watch that survives reconnects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcd.client.channel import Backoff
from etcd.client.model import WatchBatch, event_from
from etcd.core.errors import (
    AUTH_OLD_REVISION,
    INVALID_AUTH_TOKEN,
    PERMISSION_DENIED,
    USER_EMPTY,
    WATCH_CANCELED,
    Code,
    CompactedError,
    EtcdError,
)
from etcd.core.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from etcd.client.channel import Channel
    from etcd.client.transport import ClientStream
    from etcd.core.http2.hpack import Header

# Ends of a stream that another server, or the same one later, may not repeat.
_RESUMABLE = frozenset({Code.UNAVAILABLE, Code.CANCELLED, Code.UNKNOWN, Code.INTERNAL})

_REFUSALS = {
    text: code
    for code, text in (PERMISSION_DENIED, INVALID_AUTH_TOKEN, AUTH_OLD_REVISION, USER_EMPTY)
}


class Watch:
    """``async with client.watch(...) as batches: async for batch in batches: ...``.

    Entering waits until the server has confirmed the watch.  After a lost connection it goes on
    where it was: no event is missed or repeated.  Raises CompactedError when the events it needs
    are gone, EtcdError when the server refuses the watch.
    """

    def __init__(self, channel: Channel, request: pb.WatchCreateRequest) -> None:
        self._channel = channel
        self._request = request
        self._stream: ClientStream | None = None
        self._backoff = Backoff(channel.rng)
        # What a new stream starts from; 0 until the server has told its revision.
        self._next_revision = request.start_revision
        # The token headers of the newest stream.
        self._token: tuple[Header, ...] = ()
        # Whether a refusal has been answered with a new token and no watch was granted since.
        self._renewed = False
        # The store's revision when the watch was first confirmed.
        self.revision = 0

    async def __aenter__(self) -> Watch:
        await self._resume()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._drop()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> WatchBatch:
        while True:
            if self._stream is None:
                await self._resume()
            assert self._stream is not None, "set by _resume"
            try:
                data = await self._stream.receive()
            except EtcdError as error:
                self._lost(error)
                continue
            if data is None:
                self._drop()
                continue
            batch = self._on_response(pb.WatchResponse.FromString(data))
            if batch is not None:
                return batch

    def request_progress(self) -> None:
        """Ask for a batch without events that tells how far the watch has got."""
        if self._stream is not None:
            progress = pb.WatchProgressRequest()
            self._stream.send(pb.WatchRequest(progress_request=progress).SerializeToString())

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    def _lost(self, error: EtcdError) -> None:
        if self._stream is not None:
            self._channel.suspect(self._stream.connection, error)
        self._drop()
        if error.code not in _RESUMABLE and not self._renews(error.message):
            raise error

    def _renews(self, text: str) -> bool:
        """Whether a new token may help; servers before 3.5.6 call a stale one "denied"."""
        if self._renewed or not self._channel.renews(
            self._token, INVALID_AUTH_TOKEN[1] if text.endswith(PERMISSION_DENIED[1]) else text
        ):
            return False
        self._renewed = True
        return True

    async def _resume(self) -> None:
        """Open a stream and wait until the server has created the watch."""
        while True:
            try:
                self._stream = await self._channel.open("/etcdserverpb.Watch/Watch", leader=True)
                self._token = self._stream.token
                request = pb.WatchCreateRequest()
                request.CopyFrom(self._request)
                request.start_revision = self._next_revision
                self._stream.send(pb.WatchRequest(create_request=request).SerializeToString())
                data = await self._stream.receive()
                if data is not None:
                    self._on_created(pb.WatchResponse.FromString(data))
                    self._backoff.reset()
                    self._renewed = False
                    return
                self._drop()
            except EtcdError as error:
                self._lost(error)
            except BaseException:
                self._drop()
                raise
            await self._backoff.sleep()

    def _on_created(self, response: pb.WatchResponse) -> None:
        if response.canceled:
            self._canceled(response)
        if not self.revision:
            self.revision = response.header.revision
        if not self._next_revision:
            self._next_revision = response.header.revision + 1

    def _canceled(self, response: pb.WatchResponse) -> None:
        self._drop()
        if response.compact_revision:
            raise CompactedError(response.compact_revision)
        # Refusals by auth come with grpc-go's words around them.
        reason = response.cancel_reason.rpartition(" desc = ")[2] or WATCH_CANCELED[1]
        raise EtcdError(_REFUSALS.get(reason, Code.FAILED_PRECONDITION), reason)

    def _on_response(self, response: pb.WatchResponse) -> WatchBatch | None:
        if response.canceled:
            self._canceled(response)
        if response.created:
            return None
        events = tuple(event_from(event) for event in response.events)
        if events:
            revision = events[-1].kv.mod_revision
        else:
            # Progress: everything up to the header's revision has been delivered.
            revision = response.header.revision
        if revision < self._next_revision - 1:
            return None
        self._next_revision = revision + 1
        return WatchBatch(events, revision)
