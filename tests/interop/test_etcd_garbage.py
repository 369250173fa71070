"""Any bytes on etcd's port: they end their own connection at most, and nobody else notices.

A failure prints its seed; PODWIRE_SEED replays one, PODWIRE_FUZZ_SESSIONS makes it longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from etcd.client import EtcdClient
from etcd.core import grpc
from etcd.core.http2 import connection as h2
from etcd.core.http2.frames import PREFACE
from etcd.core.pb import rpc_pb2 as pb
from tests.etcd_servers import memory_etcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from google.protobuf.message import Message

    from etcd.server import EtcdServer

SESSIONS = int(os.environ.get("PODWIRE_FUZZ_SESSIONS", "250"))
AT_A_TIME = 10
DEADLINE_S = 20.0
# How long a connection that is left open by both sides is looked at.
PATIENCE_S = 0.05
KV, WATCH, LEASE = "/etcdserverpb.KV/", "/etcdserverpb.Watch/", "/etcdserverpb.Lease/"


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("PODWIRE_SEED") or random.randrange(2**32))
    print(f"replay with PODWIRE_SEED={seed}")
    return random.Random(seed)


def valid_session(rng: random.Random) -> bytes:
    """What a client sends that puts, reads, watches, keeps a lease and pings."""
    client = h2.Http2Connection(client=True)

    def call(path: str, *messages: Message, end: bool = True) -> None:
        stream = client.open_stream(grpc.request_block(path, "fuzz", timeout_s=1))
        for number, message in enumerate(messages):
            last = end and number == len(messages) - 1
            data = grpc.frame(message.SerializeToString())
            client.send_data(stream, data, end_stream=last)

    key = b"fuzz/%d" % rng.randrange(5)
    steps: list[Callable[[], None]] = [
        lambda: call(KV + "Put", pb.PutRequest(key=key, value=rng.randbytes(rng.randrange(300)))),
        lambda: call(KV + "Range", pb.RangeRequest(key=b"fuzz/", range_end=b"fuzz0")),
        lambda: call(KV + "DeleteRange", pb.DeleteRangeRequest(key=key)),
        lambda: call(
            KV + "Txn",
            pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=key, value=b"x"))]),
        ),
        lambda: call(
            WATCH + "Watch",
            pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"fuzz/", start_revision=1)),
            end=False,
        ),
        lambda: call(LEASE + "LeaseKeepAlive", *[pb.LeaseKeepAliveRequest(ID=1)] * 3),
        lambda: call("/etcdserverpb.Maintenance/Status", pb.StatusRequest()),
        client.ping,
    ]
    for _ in range(rng.randrange(1, 12)):
        rng.choice(steps)()
    return client.data_to_send()


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Damage a session in one to four places."""
    buffer = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(buffer) or 1)
        match rng.randrange(6):
            case 0:
                buffer[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del buffer[at : at + rng.randrange(1, 20)]
            case 2:
                buffer[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 3:
                buffer[at:at] = buffer[at : at + rng.randrange(1, 200)]
            case 4:
                del buffer[at:]
            case _:
                # A frame header with fields at their ends.
                frame = rng.choice((0, 1, 9, 2**14, 2**24 - 1)).to_bytes(3, "big")
                frame += bytes([rng.randrange(12), rng.randrange(256)])
                buffer[at:at] = frame + rng.choice((0, 1, 2, 2**31 - 1)).to_bytes(4, "big")
    return bytes(buffer)


def random_bytes(rng: random.Random) -> bytes:
    """Noise, alone or behind a beginning that some protocol has."""
    heads = (
        b"",
        PREFACE,
        PREFACE + b"\0\0\0\4\0\0\0\0\0",
        b"PRI * HTTP/1.1\r\n\r\n",
        b"POST /v3/kv/range HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n",
        b"GET /",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    )
    return rng.choice(heads) + rng.randbytes(rng.randrange(2000))


async def attack(endpoint: str, data: bytes, rng: random.Random) -> None:
    """Send bytes in pieces, read what comes, go away in one of three ways."""
    host, port = endpoint.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        with contextlib.suppress(ConnectionError, TimeoutError):
            cut = rng.randrange(len(data) + 1)
            for piece in (data[:cut], data[cut:]):
                writer.write(piece)
                await writer.drain()
            if rng.random() < 0.3:
                writer.write_eof()
            async with asyncio.timeout(PATIENCE_S):
                while await reader.read(65536):
                    pass
    finally:
        if rng.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()


class Bystander:
    """A client that must not notice anything."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.puts = 0
        self.seen: list[int] = []

    async def run(self) -> None:
        async with (
            EtcdClient([self._endpoint], timeout_s=DEADLINE_S) as client,
            client.watch(b"mine", filters=("NODELETE",)) as batches,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._write(client), name="write")
            async for batch in batches:
                self.seen += [int(event.kv.value) for event in batch.events]

    async def _write(self, client: EtcdClient) -> None:
        while True:
            self.puts += 1
            await client.put(b"mine", b"%d" % self.puts)
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def unharmed() -> AsyncIterator[EtcdServer]:
    """A server with a bystander; afterwards no connection, watch or error may be left."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with memory_etcd() as server:
        bystander = Bystander(server.endpoint)
        task = asyncio.create_task(bystander.run(), name="bystander")
        try:
            yield server
            reached = bystander.puts
            async with asyncio.timeout(DEADLINE_S):
                while len(bystander.seen) < reached + 3 and not task.done():
                    await asyncio.sleep(0.005)
                while len(server.connections) > 1 or len(server.member.hub.streams) > 1:
                    await asyncio.sleep(0.005)
            assert not task.done(), task.exception()
            assert bystander.seen == list(range(1, len(bystander.seen) + 1))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert not problems


async def _attack_often(make: Callable[[], bytes], rng: random.Random) -> None:
    async with unharmed() as server:
        for _ in range(SESSIONS // AT_A_TIME):
            attacks = [attack(server.endpoint, make(), rng) for _ in range(AT_A_TIME)]
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*attacks)


async def test_random_bytes_end_their_own_connection(rng: random.Random) -> None:
    await _attack_often(lambda: random_bytes(rng), rng)


async def test_damaged_sessions_end_their_own_connection(rng: random.Random) -> None:
    await _attack_often(lambda: mutated(rng, valid_session(rng)), rng)


async def test_whole_sessions_that_end_anyhow_leave_nothing(rng: random.Random) -> None:
    await _attack_often(lambda: valid_session(rng), rng)
