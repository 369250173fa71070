"""Calls that take long: the work is a generator, of which a slice runs in each loop tick.

So a snapshot of a million keys, or their hash, holds nobody up for more than a few milliseconds.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Final, Protocol

from etcd.core import backup
from etcd.core.crc32c import crc32c
from etcd.core.errors import EtcdError
from etcd.core.mvcc import kv_message
from etcd.core.pb import rpc_pb2 as pb
from etcd.server.config import CLUSTER_VERSION
from etcd.server.member import WORK_SLICE_S
from etcd.server.services import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from google.protobuf.message import Message

    from etcd.server.member import Member
    from etcd.server.streams import Reply, StreamCall

    Slices = Generator[bool | None, None, None]

# etcd's snapshotSendBufferSize (server/etcdserver/api/v3rpc/maintenance.go).
SNAPSHOT_BLOB_BYTES = 32 * 1024
# Rows hashed between two yields, about a millisecond.
HASH_SLICE_ROWS = 500


WAIT: Final = True


class Serve(Protocol):
    """Serve one request; EtcdError ends the call.

    The generator yields between pieces of about a millisecond, WAIT when others must act first.
    """

    def __call__(self, member: Member, reply: Reply, request: Message) -> Slices: ...


class LongCall:
    """One call of a method served by a generator."""

    def __init__(
        self, path: str, request: type[Message], serve: Serve, member: Member, reply: Reply
    ) -> None:
        self._path = path
        self._request = request
        self._serve = serve
        self._member = member
        self._reply = reply
        self._run: Slices | None = None

    def on_message(self, data: bytes) -> None:
        if self._run is None:
            request = decode(self._request, data)
            self._reply.admit(self._path, request)
            self._run = self._settled(request)
            self._member.begin_work(self)

    def _settled(self, request: Message) -> Slices:
        # A full disk may still undo what is not durable; a compaction would have to be finished.
        while self._member.engine.dirty or self._member.engine.store.compacting:
            yield WAIT
        yield from self._serve(self._member, self._reply, request)

    def step(self) -> bool:
        """Do one slice (``member.Work``)."""
        run, loop = self._run, self._member.loop
        assert run is not None, "set before the work began"
        until = loop.time() + WORK_SLICE_S
        try:
            while self._reply.writable():
                if next(run) is WAIT or loop.time() >= until:
                    return True
        except StopIteration:
            self._member.end_work(self)
        except EtcdError as error:
            self._member.end_work(self)
            self._reply.finish(error)
        return False

    def on_half_close(self) -> None:
        """The request has been taken; the answer is still to come."""

    def on_gone(self) -> None:
        self._member.end_work(self)


def _snapshot(member: Member, reply: Reply, request: Message) -> Slices:
    """Maintenance.Snapshot: the database file in blobs, then its SHA-256 as one more blob."""
    config = member.config
    record = backup.MemberRecord(
        config.name, config.peer_urls, tuple(member.client_urls), CLUSTER_VERSION
    )
    layout = yield from backup.dump(member.engine, record)
    digest = hashlib.sha256()
    left = layout.size
    pending = bytearray()
    for page in layout.pages():
        pending += page
        while len(pending) >= SNAPSHOT_BLOB_BYTES or (pending and left == len(pending)):
            blob = bytes(pending[:SNAPSHOT_BLOB_BYTES])
            del pending[:SNAPSHOT_BLOB_BYTES]
            left -= len(blob)
            digest.update(blob)
            reply.send(pb.SnapshotResponse(remaining_bytes=left, blob=blob).SerializeToString())
        yield None
    reply.send(pb.SnapshotResponse(blob=digest.digest()).SerializeToString())
    reply.finish()


def _hash_kv(member: Member, reply: Reply, request: Message) -> Slices:
    """Maintenance.HashKV."""
    assert isinstance(request, pb.HashKVRequest)
    engine = member.engine
    header = engine.header()
    value, compacted = yield from engine.store.hash_kv(request.revision)
    response = pb.HashKVResponse(header=header, hash=value, compact_revision=compacted)
    reply.answer(response.SerializeToString())


def _hash(member: Member, reply: Reply, request: Message) -> Slices:
    """Maintenance.Hash: a checksum of the whole store; it has no meaning between servers."""
    engine = member.engine
    header = engine.header()
    crc = 0
    for count, (main, sub, kv) in enumerate(engine.store.rows()):
        crc = crc32c(b"%d_%d" % (main, sub) + kv_message(kv).SerializeToString(), crc)
        if count % HASH_SLICE_ROWS == 0:
            yield None
    reply.answer(pb.HashResponse(header=header, hash=crc).SerializeToString())


def _compact(member: Member, reply: Reply, request: Message) -> Slices:
    """KV.Compact; a physical one answers when the room has been given back."""
    assert isinstance(request, pb.CompactionRequest)
    response = member.engine.compact(request)
    payload = response.SerializeToString()
    member.schedule_flush()
    while request.physical and member.engine.store.compacting:
        yield WAIT
    reply.answer(payload)


_MAINTENANCE = "/etcdserverpb.Maintenance/"
_SERVED: tuple[tuple[str, type[Message], Serve], ...] = (
    ("/etcdserverpb.KV/Compact", pb.CompactionRequest, _compact),
    (_MAINTENANCE + "Snapshot", pb.SnapshotRequest, _snapshot),
    (_MAINTENANCE + "HashKV", pb.HashKVRequest, _hash_kv),
    (_MAINTENANCE + "Hash", pb.HashRequest, _hash),
)
LONG_CALLS: dict[str, Callable[[Member, Reply], StreamCall]] = {
    path: functools.partial(LongCall, path, request, serve) for path, request, serve in _SERVED
}
