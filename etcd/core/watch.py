"""Watches: who wants which changes, and what to send them.

Theory of operation.  A watcher is *synced* when it has been sent everything up to ``revision`` (the
last revision the hub was told of); a commit is then pushed to it at once.  A watcher that starts in
the past, or whose stream cannot take more, is *unsynced*: it remembers the next revision it needs
and ``sync`` feeds it from the store's history, several revisions at a time, while its stream has
room.  So a slow watcher is never dropped and never holds others up.

Watchers of the same interval share a group, and what a group sends is encoded once per variant.

Sources: etcd server/mvcc/{watchable_store,watcher_group,watcher}.go, server/api/v3rpc/watch.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from etcd.core.errors import DUPLICATE_WATCH_ID, EMPTY_WATCHER_RANGE, TOO_MANY_REQUESTS
from etcd.core.mvcc import interval, kv_message
from etcd.core.pb import kv_pb2
from etcd.core.pb import rpc_pb2 as pb
from etcd.core.protowire import varint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from etcd.core.mvcc import Changes, KeyValue, Store

# A fragment's size: etcd's request limit (1.5 MiB) plus 512 KiB.
FRAGMENT_BYTES = 2 * 1024 * 1024
# One catch-up response: enough to be efficient, small enough to share a loop tick.
MAX_CATCH_UP_REVISIONS = 1000
# All watchers of a server: etcd has no limit; each takes half a kilobyte here.
MAX_WATCHERS = 1_000_000
MAX_CATCH_UP_BYTES = 512 * 1024


class Sink(Protocol):
    """Where a stream's responses go."""

    def writable(self) -> bool:
        """Whether more can be taken without buffering beyond the stream's limit."""

    def send(self, payload: bytes) -> None:
        """Take one serialized WatchResponse."""


class Bounds(NamedTuple):
    """A group's interval; ``single`` means exactly ``lo``."""

    lo: bytes
    hi: bytes | None
    single: bool

    def holds(self, key: bytes) -> bool:
        if self.single:
            return key == self.lo
        return key >= self.lo and (self.hi is None or key < self.hi)


class Watcher:
    """One watch of one stream."""

    __slots__ = (
        "bounds",
        "fragment",
        "id",
        "min_revision",
        "next_revision",
        "prev_kv",
        "progress_notify",
        "recent",
        "skip_delete",
        "skip_put",
        "stream",
    )

    def __init__(self, stream: WatchStream, request: pb.WatchCreateRequest, bounds: Bounds) -> None:
        self.stream = stream
        self.bounds = bounds
        self.id = 0
        # Not synced: the next revision to read from history; synced: 0.
        self.next_revision = 0
        # Synced, but starting in the future: nothing before this revision.
        self.min_revision = 0
        self.prev_kv = request.prev_kv
        self.fragment = request.fragment
        self.progress_notify = request.progress_notify
        self.skip_put = pb.WatchCreateRequest.NOPUT in request.filters
        self.skip_delete = pb.WatchCreateRequest.NODELETE in request.filters
        # Whether something was sent since the last periodic progress.
        self.recent = True

    @property
    def variant(self) -> tuple[bool, bool, bool]:
        return self.prev_kv, self.skip_put, self.skip_delete

    def wants(self, kv: KeyValue) -> bool:
        return not (self.skip_put if kv.version else self.skip_delete)


class WatchStream:
    """One Watch call: its watchers by id."""

    __slots__ = ("compacted", "next_id", "sink", "watchers")

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.watchers: dict[int, Watcher] = {}
        # Ids of watches a compaction cancelled: taken until the client cancels them as well.
        self.compacted: dict[int, None] = {}
        self.next_id = 0


class WatchHub:
    """All watchers of a server.

    ``header(revision)`` gives a serialized ResponseHeader.  The hub sees only durable commits.
    """

    def __init__(self, store: Store, header: Callable[[int], bytes]) -> None:
        self._store = store
        self._header = header
        self.revision = store.revision
        self._singles: dict[bytes, dict[Watcher, None]] = {}
        self._ranges: dict[Bounds, dict[Watcher, None]] = {}
        self._unsynced: dict[Watcher, None] = {}
        self.streams: dict[WatchStream, None] = {}
        self._count = 0
        self.events_sent = 0

    @property
    def lagging(self) -> bool:
        """Whether any watcher is unsynced."""
        return bool(self._unsynced)

    @property
    def lagging_count(self) -> int:
        """How many watchers are unsynced."""
        return len(self._unsynced)

    def rebase(self, store: Store) -> None:
        """Go on with another store that holds the same durable revisions."""
        self._store = store

    # Streams and watchers -------------------------------------------------------------------

    def open(self, sink: Sink) -> WatchStream:
        """Add a stream."""
        stream = WatchStream(sink)
        self.streams[stream] = None
        return stream

    def close(self, stream: WatchStream) -> None:
        """Forget a stream and its watchers; nothing more is sent."""
        for watcher in list(stream.watchers.values()):
            self._remove(watcher)
        self.streams.pop(stream, None)

    def receive(self, stream: WatchStream, request: pb.WatchRequest) -> None:
        """Handle one WatchRequest."""
        match request.WhichOneof("request_union"):
            case "create_request":
                self._create(stream, request.create_request)
            case "cancel_request":
                self._cancel(stream, request.cancel_request.watch_id)
            case "progress_request":
                self._progress_all(stream)
            case _:
                pass

    def _respond(self, stream: WatchStream, response: pb.WatchResponse, revision: int) -> None:
        head = self._header(revision)
        stream.sink.send(b"\x0a" + varint(len(head)) + head + response.SerializeToString())

    def refuse(self, stream: WatchStream, reason: str) -> None:
        """Tell a stream that the watch it asked for will not be."""
        refusal = pb.WatchResponse(watch_id=-1, created=True, canceled=True, cancel_reason=reason)
        self._respond(stream, refusal, self.revision)

    def _create(self, stream: WatchStream, request: pb.WatchCreateRequest) -> None:
        key = request.key or b"\0"
        ends = interval(key, request.range_end)
        if ends is not None and ends[1] is not None and ends[1] <= key:
            self.refuse(stream, EMPTY_WATCHER_RANGE)
            return
        if self._count >= MAX_WATCHERS:
            self.refuse(stream, TOO_MANY_REQUESTS[1])
            return
        watch_id = request.watch_id
        if watch_id:
            if watch_id in stream.watchers or watch_id in stream.compacted:
                self.refuse(stream, DUPLICATE_WATCH_ID)
                return
        else:
            while stream.next_id in stream.watchers or stream.next_id in stream.compacted:
                stream.next_id += 1
            watch_id = stream.next_id
            stream.next_id += 1
        bounds = Bounds(key, None, True) if ends is None else Bounds(*ends, False)
        watcher = Watcher(stream, request, bounds)
        watcher.id = watch_id
        stream.watchers[watch_id] = watcher
        self._count += 1
        start = request.start_revision
        if start == 0 or start > self.revision:
            watcher.min_revision = start
        else:
            watcher.next_revision = start
            self._unsynced[watcher] = None
        self._group(bounds, create=True)[watcher] = None
        self._respond(stream, pb.WatchResponse(watch_id=watch_id, created=True), self.revision)

    def _cancel(self, stream: WatchStream, watch_id: int) -> None:
        watcher = stream.watchers.get(watch_id)
        if watcher is not None:
            self._remove(watcher)
        elif watch_id in stream.compacted:
            del stream.compacted[watch_id]
        else:
            return
        canceled = pb.WatchResponse(watch_id=watch_id, canceled=True)
        self._respond(stream, canceled, self.revision)

    def _group(self, bounds: Bounds, *, create: bool = False) -> dict[Watcher, None]:
        if bounds.single:
            if create:
                return self._singles.setdefault(bounds.lo, {})
            return self._singles[bounds.lo]
        return self._ranges.setdefault(bounds, {}) if create else self._ranges[bounds]

    def _remove(self, watcher: Watcher) -> None:
        group = self._group(watcher.bounds)
        del group[watcher]
        if not group:
            if watcher.bounds.single:
                del self._singles[watcher.bounds.lo]
            else:
                del self._ranges[watcher.bounds]
        self._unsynced.pop(watcher, None)
        watcher.stream.watchers.pop(watcher.id, None)
        self._count -= 1

    # Progress ------------------------------------------------------------------------------

    def _synced(self, watcher: Watcher) -> bool:
        return watcher not in self._unsynced and watcher.min_revision <= self.revision

    def _progress_all(self, stream: WatchStream) -> None:
        if all(self._synced(watcher) for watcher in stream.watchers.values()):
            self._respond(stream, pb.WatchResponse(watch_id=-1), self.revision)

    def progress(self) -> None:
        """Send the periodic progress to the quiet watchers that asked for it."""
        for stream in list(self.streams):
            for watcher in list(stream.watchers.values()):
                if not watcher.progress_notify:
                    continue
                quiet, watcher.recent = not watcher.recent, False
                if quiet and self._synced(watcher) and stream.sink.writable():
                    self._respond(stream, pb.WatchResponse(watch_id=watcher.id), self.revision)

    # Commits -------------------------------------------------------------------------------

    def notify(self, revision: int, changes: Changes) -> None:
        """Push a durable commit to every synced watcher it concerns."""
        touched: dict[Bounds, list[KeyValue]] = {}
        for kv in changes:
            if kv.key in self._singles:
                touched.setdefault(Bounds(kv.key, None, True), []).append(kv)
            for bounds in self._ranges:
                if bounds.holds(kv.key):
                    touched.setdefault(bounds, []).append(kv)
        self.revision = revision
        for bounds, kvs in touched.items():
            self._push(revision, kvs, self._group(bounds))

    def _push(self, revision: int, kvs: list[KeyValue], group: dict[Watcher, None]) -> None:
        encoded: dict[tuple[bool, bool, bool], list[bytes]] = {}
        bodies: dict[tuple[bool, bool, bool], bytes] = {}
        unsynced = self._unsynced
        head = self._header(revision)
        prefix = b"\x0a" + varint(len(head)) + head
        for watcher in group:
            if watcher in unsynced or watcher.min_revision > revision:
                continue
            if not watcher.stream.sink.writable():
                watcher.next_revision = revision
                unsynced[watcher] = None
                continue
            variant = watcher.variant
            body = bodies.get(variant)
            if body is None:
                events = [self._event(kv, watcher.prev_kv) for kv in kvs if watcher.wants(kv)]
                encoded[variant] = events
                body = bodies[variant] = b"".join(events)
            if not body:
                continue
            watcher.recent = True
            self.events_sent += len(encoded[variant])
            if watcher.fragment and len(body) >= FRAGMENT_BYTES:
                self._send_fragments(watcher, prefix, encoded[variant])
            elif watcher.id:
                watcher.stream.sink.send(prefix + b"\x10" + varint(watcher.id) + body)
            else:
                watcher.stream.sink.send(prefix + body)

    def _event(self, kv: KeyValue, prev_kv: bool) -> bytes:
        """Return one event as field 11 of a WatchResponse."""
        if kv.version:
            event = kv_pb2.Event(kv=kv_message(kv))
        else:
            gone = kv_pb2.KeyValue(key=kv.key, mod_revision=kv.mod_revision)
            event = kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=gone)
        # A key made in this revision has none, even if the same transaction deleted an older one
        # before (v3rpc/watch.go, IsCreateEvent).
        if prev_kv and kv.create_revision != kv.mod_revision:
            previous = self._store.previous(kv.key, kv.mod_revision)
            if previous is not None:
                event.prev_kv.CopyFrom(kv_message(previous))
        data = event.SerializeToString()
        return b"\x5a" + varint(len(data)) + data

    def _send_fragments(self, watcher: Watcher, prefix: bytes, events: Sequence[bytes]) -> None:
        head = prefix + (b"\x10" + varint(watcher.id) if watcher.id else b"")
        at = 0
        while at < len(events):
            part, size = [events[at]], len(head) + len(events[at])
            at += 1
            while at < len(events) and size + len(events[at]) < FRAGMENT_BYTES:
                part.append(events[at])
                size += len(events[at])
                at += 1
            more = b"\x38\x01" if at < len(events) else b""
            watcher.stream.sink.send(head + more + b"".join(part))

    # Catching up ---------------------------------------------------------------------------

    def sync(self) -> bool:
        """Feed each unsynced watcher whose stream has room once; True if more remains to do."""
        more = False
        for watcher in list(self._unsynced):
            if watcher in self._unsynced and watcher.stream.sink.writable():
                more = self._catch_up(watcher) or more
        return more

    def _catch_up(self, watcher: Watcher) -> bool:
        if watcher.next_revision < self._store.compacted or watcher.next_revision < 0:
            self._remove(watcher)
            watcher.stream.compacted[watcher.id] = None
            canceled = pb.WatchResponse(
                header=pb.ResponseHeader(),
                watch_id=watcher.id,
                canceled=True,
                compact_revision=max(self._store.compacted, 0),
            )
            self._respond(watcher.stream, canceled, 0)
            return False
        events: list[bytes] = []
        size = 0
        revision = watcher.next_revision
        stop = min(self.revision, revision + MAX_CATCH_UP_REVISIONS - 1)
        while revision <= stop and size < MAX_CATCH_UP_BYTES:
            for kv in self._store.changes_at(revision):
                if watcher.bounds.holds(kv.key) and watcher.wants(kv):
                    event = self._event(kv, watcher.prev_kv)
                    events.append(event)
                    size += len(event)
            revision += 1
        watcher.next_revision = revision
        if revision > self.revision:
            del self._unsynced[watcher]
            watcher.next_revision = watcher.min_revision = 0
        if events:
            watcher.recent = True
            self.events_sent += len(events)
            head = self._header(self.revision)
            prefix = b"\x0a" + varint(len(head)) + head
            if watcher.fragment and size >= FRAGMENT_BYTES:
                self._send_fragments(watcher, prefix, events)
            else:
                number = b"\x10" + varint(watcher.id) if watcher.id else b""
                watcher.stream.sink.send(prefix + number + b"".join(events))
        return revision <= self.revision
