"""Long work in slices: others are served meanwhile, and nobody sees half of anything."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from etcd.client import EtcdClient
from etcd.core import backup, bbolt
from etcd.core.engine import Engine
from etcd.core.mvcc import COMPACT_SLICE_ROWS
from etcd.core.pb import rpc_pb2 as pb
from etcd.server import long_calls, member
from etcd.server.streams import STREAMS
from tests.etcd_servers import memory_etcd

if TYPE_CHECKING:
    from etcd.core.errors import EtcdError
    from etcd.server import EtcdServer

KEYS = 3000
TIMEOUT_S = 10.0


class Reply:
    """Collects what a call answers; ``room`` is what its client will still take."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.error: EtcdError | None = None
        self.ended = asyncio.Event()
        self.room = 1 << 30

    def admit(self, path: str, request: object) -> None:
        pass

    def send(self, payload: bytes) -> None:
        self.messages.append(payload)
        self.room -= len(payload)

    send_durable = send

    def answer(self, payload: bytes) -> None:
        self.send(payload)
        self.finish()

    def writable(self) -> bool:
        return self.room > 0

    def finish(self, error: EtcdError | None = None) -> None:
        self.error = error
        self.ended.set()


def fill(server: EtcdServer) -> None:
    engine = server.member.engine
    for n in range(KEYS):
        engine.put(pb.PutRequest(key=b"k%05d" % n, value=b"v" * 300))
    server.member.schedule_flush()


@pytest.fixture
def tiny_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick per piece of work, however quick the machine is."""
    monkeypatch.setattr(long_calls, "WORK_SLICE_S", 0.0)
    monkeypatch.setattr(member, "WORK_SLICE_S", 0.0)


@pytest.mark.usefixtures("tiny_slices")
async def test_puts_are_answered_while_a_snapshot_of_before_them_streams() -> None:
    async with memory_etcd() as server, EtcdClient([server.endpoint]) as client:
        fill(server)
        reply = Reply()
        call = STREAMS["/etcdserverpb.Maintenance/Snapshot"](server.member, reply)
        call.on_message(b"")
        await asyncio.sleep(0)
        rounds = 0
        async with asyncio.timeout(TIMEOUT_S):
            while not reply.ended.is_set():
                await client.put(b"later", b"x")
                rounds += 1
        assert rounds > 5
    messages = [pb.SnapshotResponse.FromString(data) for data in reply.messages]
    left = sum(len(message.blob) for message in messages[:-1])
    for message in messages[:-1]:
        left -= len(message.blob)
        assert message.remaining_bytes == left
    again = Engine(1, 2)
    data = b"".join(message.blob for message in messages[:-1])
    backup.load(bbolt.Database(data, "x.db"), again, "x.db")
    assert len(again.store) == KEYS
    assert again.store.get(b"later") is None


async def test_a_snapshot_waits_for_a_client_that_does_not_read() -> None:
    async with memory_etcd() as server:
        fill(server)
        reply = Reply()
        reply.room = 100_000
        call = STREAMS["/etcdserverpb.Maintenance/Snapshot"](server.member, reply)
        call.on_message(b"")
        async with asyncio.timeout(TIMEOUT_S):
            while reply.writable():
                await asyncio.sleep(0)
            taken = len(reply.messages)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(reply.messages) == taken < 10
            reply.room = 1 << 30
            server.member.schedule_sync()
            await reply.ended.wait()
        assert len(reply.messages) > taken
        call.on_gone()


@pytest.mark.usefixtures("tiny_slices")
async def test_a_physical_compaction_answers_when_it_is_done_and_others_at_once() -> None:
    async with memory_etcd() as server, EtcdClient([server.endpoint]) as client:
        fill(server)
        fill(server)
        store = server.member.engine.store
        rows = 2 * KEYS
        assert rows > 4 * COMPACT_SLICE_ROWS
        await client.compact(KEYS)
        assert store.compacting
        # The next one waits for the one before, and for itself.
        reply = Reply()
        call = STREAMS["/etcdserverpb.KV/Compact"](server.member, reply)
        request = pb.CompactionRequest(revision=store.revision, physical=True)
        call.on_message(request.SerializeToString())
        async with asyncio.timeout(TIMEOUT_S):
            await reply.ended.wait()
        assert reply.error is None
        assert not store.compacting
        assert store.compacted_rows == KEYS


async def test_a_call_whose_client_left_stops() -> None:
    async with memory_etcd() as server:
        fill(server)
        reply = Reply()
        call = STREAMS["/etcdserverpb.Maintenance/HashKV"](server.member, reply)
        call.on_message(b"")
        call.on_gone()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not reply.messages
