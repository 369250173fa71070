"""Every limit of the etcd server, each reached once: what it answers, and who else notices."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

import pytest

from etcd.client import EtcdClient, EtcdError, Put
from etcd.core import engine, grpc, watch
from etcd.core.http2 import connection as h2
from etcd.core.http2 import frames as f
from etcd.core.http2 import hpack
from etcd.core.http2.sending import SMALL_STEP_BYTES
from etcd.core.pb import rpc_pb2 as pb
from etcd.server import daemon
from tests.etcd_servers import memory_etcd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etcd.core.http2.hpack import Header

SETTINGS = f.frame(f.SETTINGS, 0, 0)
BLOCK = hpack.encode([(b":path", b"/x"), (b"content-type", b"application/grpc")])
TIMEOUT_S = 10.0
RANGE, PUT = "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put"
ASK = grpc.frame(pb.RangeRequest(key=b"k").SerializeToString())


# The protocol core ----------------------------------------------------------------------------


def server(**options: int) -> h2.Http2Connection:
    connection = h2.Http2Connection(client=False, **options)
    connection.receive_data(f.PREFACE + SETTINGS, now=0.0)
    connection.data_to_send()
    return connection


def headers(stream_id: int, flags: int = f.END_HEADERS) -> bytes:
    return f.frame(f.HEADERS, flags, stream_id, BLOCK)


def ends_calm(connection: h2.Http2Connection, frames: Iterable[bytes], most: int) -> None:
    """The connection fails with ENHANCE_YOUR_CALM within ``most`` repetitions."""
    for number, frame in enumerate(frames):
        assert number < most, "nobody stopped it"
        for event in connection.receive_data(frame, now=0.0):
            if isinstance(event, h2.Failed):
                assert event.code == f.ErrorCode.ENHANCE_YOUR_CALM
                assert f.frame(f.GOAWAY, 0, 0)[3:4] in connection.data_to_send()
                return
        connection.data_to_send()
    pytest.fail("nobody stopped it")


def test_streams_reset_as_soon_as_they_are_opened_end_the_connection() -> None:
    cancel = f.ErrorCode.CANCEL.to_bytes(4, "big")
    flood = (
        headers(number) + f.frame(f.RST_STREAM, 0, number, cancel) for number in range(1, 10**6, 2)
    )
    ends_calm(server(), flood, 2 * h2.IDLE_FRAME_BURST)


def test_settings_that_move_many_windows_cost_more() -> None:
    connection = server()
    for number in range(1, 4001, 2):
        connection.receive_data(headers(number), now=0.0)
    windows = [
        f.settings_payload({f.SETTINGS_INITIAL_WINDOW_SIZE: size}) for size in (65_535, 65_536)
    ]
    flood = (f.frame(f.SETTINGS, 0, 0, windows[n % 2]) for n in range(10**6))
    ends_calm(connection, flood, h2.IDLE_FRAME_BURST // 10)


def test_a_window_opened_byte_by_byte_ends_the_connection() -> None:
    connection = server()
    tiny = f.settings_payload({f.SETTINGS_INITIAL_WINDOW_SIZE: 0})
    connection.receive_data(f.frame(f.SETTINGS, 0, 0, tiny) + headers(1), now=0.0)
    connection.send_headers(1, BLOCK)
    connection.send_data(1, bytes(1_000_000))
    flood = (f.frame(f.WINDOW_UPDATE, 0, 1, b"\0\0\0\1") for _ in range(10**6))
    ends_calm(connection, flood, h2.IDLE_FRAME_BURST + 10)


def test_a_window_opened_in_honest_steps_does_not() -> None:
    connection = server()
    zero = f.settings_payload({f.SETTINGS_INITIAL_WINDOW_SIZE: 0})
    connection.receive_data(f.frame(f.SETTINGS, 0, 0, zero) + headers(1), now=0.0)
    connection.send_headers(1, BLOCK)
    connection.send_data(1, bytes(SMALL_STEP_BYTES * 20_000))
    step = SMALL_STEP_BYTES.to_bytes(4, "big")
    both = f.frame(f.WINDOW_UPDATE, 0, 1, step) + f.frame(f.WINDOW_UPDATE, 0, 0, step)
    for _ in range(20_000):
        assert not any(isinstance(e, h2.Failed) for e in connection.receive_data(both, now=0.0))
        connection.data_to_send()
    assert connection.queued_total == 0


def test_streams_beyond_the_limit_are_refused_one_by_one() -> None:
    connection = server(max_streams=3)
    for number in (1, 3, 5):
        connection.receive_data(headers(number), now=0.0)
    assert connection.receive_data(headers(7), now=0.0) == []
    refused = f.ErrorCode.REFUSED_STREAM.to_bytes(4, "big")
    assert connection.data_to_send() == f.frame(f.RST_STREAM, 0, 7, refused)
    assert not connection.failed
    ends_calm(connection, map(headers, range(9, 10**6, 2)), h2.IDLE_FRAME_BURST + 10)


def test_empty_frames_and_acknowledgements_end_the_connection() -> None:
    connection = server()
    connection.receive_data(headers(1), now=0.0)
    ends_calm(connection, (f.frame(f.DATA, 0, 1) for _ in range(10**6)), h2.IDLE_FRAME_BURST + 10)
    flood = (f.frame(f.PRIORITY, 0, 1, bytes(5)) for _ in range(10**6))
    ends_calm(server(), flood, h2.IDLE_FRAME_BURST + 10)


def test_what_waits_for_windows_is_counted_until_it_is_gone() -> None:
    connection = server()
    for number in (1, 3):
        connection.receive_data(headers(number), now=0.0)
        connection.send_headers(number, BLOCK)
        connection.send_data(number, bytes(100_000))
    assert connection.queued_total == 200_000 - f.DEFAULT_WINDOW
    cancel = f.ErrorCode.CANCEL.to_bytes(4, "big")
    connection.receive_data(f.frame(f.RST_STREAM, 0, 1, cancel), now=0.0)
    assert connection.queued_total == 100_000
    wide = f.frame(f.WINDOW_UPDATE, 0, 0, (10**6).to_bytes(4, "big"))
    more = f.frame(f.WINDOW_UPDATE, 0, 3, (10**6).to_bytes(4, "big"))
    connection.receive_data(wide + more, now=0.0)
    assert connection.queued_total == 0


def test_the_end_of_a_stream_waits_for_what_is_queued() -> None:
    connection, client = h2.Http2Connection(client=False), h2.Http2Connection(client=True)
    client.open_stream(BLOCK)
    connection.receive_data(client.data_to_send(), now=0.0)
    connection.send_headers(1, BLOCK)
    size = 5_000_000  # more than a client's window
    connection.send_data(1, bytes(size))
    connection.send_data(1, b"", end_stream=True)
    got = 0
    ended = False
    for _ in range(10):
        for event in client.receive_data(connection.data_to_send(), now=0.0):
            if isinstance(event, h2.DataReceived):
                assert not ended
                got += len(event.data)
                ended = event.end_stream
                client.acknowledge(event.stream_id, event.flow_bytes)
        connection.receive_data(client.data_to_send(), now=0.0)
    assert (got, ended) == (size, True)


def test_streams_take_turns_at_the_connections_window() -> None:
    connection = server()
    big = (10**6).to_bytes(4, "big")
    for number in (1, 3, 5):
        connection.receive_data(headers(number), now=0.0)
        connection.receive_data(f.frame(f.WINDOW_UPDATE, 0, number, big), now=0.0)
        connection.send_headers(number, BLOCK)
    connection.send_data(1, bytes(f.DEFAULT_WINDOW))
    for number in (1, 3, 5):
        connection.send_data(number, bytes(100_000))
    step = f.frame(f.WINDOW_UPDATE, 0, 0, (1000).to_bytes(4, "big"))
    before = {number: connection.queued_bytes(number) for number in (1, 3, 5)}
    for _ in range(6):
        connection.receive_data(step, now=0.0)
    sent = [before[number] - connection.queued_bytes(number) for number in (1, 3, 5)]
    assert sent == [2000, 2000, 2000]


# The server -------------------------------------------------------------------------------------


class Raw:
    """One HTTP/2 connection on which anything can be said."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.h2 = h2.Http2Connection(client=True)

    @classmethod
    async def connect(cls, endpoint: str) -> Raw:
        host, _, port = endpoint.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()

    async def answer(
        self,
        path: str,
        body: bytes,
        metadata: Iterable[Header] = (),
        *,
        end: bool = True,
    ) -> tuple[int, str] | h2.StreamReset:
        """Make a call; return its status, or the reset that ended it."""
        stream_id = self.h2.open_stream(grpc.request_block(path, "x", metadata=metadata))
        if body or end:
            self.h2.send_data(stream_id, body, end_stream=end)
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                self.writer.write(self.h2.data_to_send())
                data = await self._reader.read(65_536)
                assert data, "the server closed the connection"
                for event in self.h2.receive_data(data, now=0.0):
                    if isinstance(event, h2.StreamReset) and event.stream_id == stream_id:
                        return event
                    if isinstance(event, h2.HeadersReceived) and event.stream_id == stream_id:
                        status = grpc.parse_status(event.headers)
                        if status is not None:
                            return int(status[0]), status[1]

    async def until_closed(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionError):
                while await self._reader.read(65_536):
                    pass


def put(size: int) -> bytes:
    return grpc.frame(pb.PutRequest(key=b"k", value=bytes(size)).SerializeToString())


TOO_LARGE = (3, "etcdserver: request is too large")


async def test_the_largest_request_is_a_real_etcds() -> None:
    # Measured with etcd 3.4: a value of 1572839 bytes is taken, one of 1572842 is not.
    async with memory_etcd() as etcd, await Raw.connect(etcd.endpoint) as raw:
        assert await raw.answer(PUT, put(1_572_839)) == (0, "")
        assert await raw.answer(PUT, put(1_572_842)) == TOO_LARGE
        delete = pb.DeleteRangeRequest(key=bytes(1_572_864)).SerializeToString()
        assert await raw.answer("/etcdserverpb.KV/DeleteRange", grpc.frame(delete)) == TOO_LARGE
        status = await raw.answer(PUT, put(2 * 1024 * 1024))
        assert status == (8, "grpc: received message larger than max (2097160 vs. 2097152)")


async def test_limits_follow_the_flags() -> None:
    async with (
        memory_etcd(max_request_bytes=1000, max_txn_ops=2, max_streams=7) as etcd,
        await Raw.connect(etcd.endpoint) as raw,
        EtcdClient([etcd.endpoint]) as client,
    ):
        assert await raw.answer(PUT, put(900)) == (0, "")
        assert await raw.answer(PUT, put(1000)) == TOO_LARGE
        status = await raw.answer(PUT, put(600_000))
        assert status == (8, "grpc: received message larger than max (600007 vs. 525288)")
        assert raw.h2.peer_max_streams == 7
        await client.txn(success=[Put(b"a", b""), Put(b"b", b"")])
        with pytest.raises(EtcdError, match="too many operations in txn request"):
            await client.txn(success=[Put(b"a", b""), Put(b"b", b""), Put(b"c", b"")])


def nested(ops: int, depth: int) -> bytes:
    read = pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))
    txn = pb.TxnRequest(success=[read] * ops)
    for _ in range(depth):
        txn = pb.TxnRequest(success=[pb.RequestOp(request_txn=txn)])
    return grpc.frame(txn.SerializeToString())


async def test_operations_of_nested_transactions_share_one_budget() -> None:
    path, many = "/etcdserverpb.KV/Txn", (3, "etcdserver: too many operations in txn request")
    async with memory_etcd() as etcd, await Raw.connect(etcd.endpoint) as raw:
        assert await raw.answer(path, nested(128, 0)) == (0, "")
        assert await raw.answer(path, nested(129, 0)) == many
        assert await raw.answer(path, nested(88, 40)) == (0, "")
        assert await raw.answer(path, nested(89, 40)) == many


@pytest.mark.parametrize("timeout", [b"0n", b"0S", b"1n"])
async def test_a_deadline_that_is_over_is_said(timeout: bytes) -> None:
    async with memory_etcd() as etcd, await Raw.connect(etcd.endpoint) as raw:
        late = (4, "context deadline exceeded")
        assert await raw.answer(RANGE, ASK, [(b"grpc-timeout", timeout)]) == late
        assert await raw.answer(RANGE, ASK, [(b"grpc-timeout", b"10S")]) == (0, "")


@pytest.mark.parametrize("timeout", [b"abc", b"", b"5", b"123456789S", b"-1S"])
async def test_a_deadline_that_is_none_is_reset(timeout: bytes) -> None:
    async with memory_etcd() as etcd, await Raw.connect(etcd.endpoint) as raw:
        answer = await raw.answer(RANGE, ASK, [(b"grpc-timeout", timeout)])
        assert isinstance(answer, h2.StreamReset)
        assert answer.code == f.ErrorCode.PROTOCOL_ERROR
        assert await raw.answer(RANGE, ASK) == (0, "")


@pytest.mark.parametrize("path", [RANGE, "/etcdserverpb.Watch/Watch"])
async def test_a_request_that_never_ends_meets_its_deadline(path: str) -> None:
    async with memory_etcd() as etcd, await Raw.connect(etcd.endpoint) as raw:
        answer = await raw.answer(path, b"", [(b"grpc-timeout", b"50m")], end=False)
        assert answer == (4, "context deadline exceeded")


async def test_only_the_first_message_of_a_unary_call_counts() -> None:
    async with memory_etcd() as etcd, await Raw.connect(etcd.endpoint) as raw:
        assert await raw.answer(RANGE, ASK + ASK) == (0, "")
        assert await raw.answer(RANGE, ASK[:-1]) == (2, "unexpected EOF")


async def test_leases_and_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_LEASES", 2)
    monkeypatch.setattr(watch, "MAX_WATCHERS", 1)
    async with memory_etcd() as etcd, EtcdClient([etcd.endpoint]) as client:
        await client.lease_grant(100)
        lease = await client.lease_grant(100)
        with pytest.raises(EtcdError, match="too many requests"):
            await client.lease_grant(100)
        await client.lease_revoke(lease.id)
        await client.lease_grant(100)
        async with client.watch(b"a") as first:
            await client.put(b"a", b"1")
            await anext(first)
            with pytest.raises(EtcdError, match="too many requests"):
                async with client.watch(b"b") as second:
                    await anext(second)


async def test_a_client_that_asks_and_does_not_read_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from etcd.server import grpc_server

    monkeypatch.setattr(grpc_server, "MAX_BACKLOG_BYTES", 100_000)
    async with (
        memory_etcd() as etcd,
        EtcdClient([etcd.endpoint]) as client,
        await Raw.connect(etcd.endpoint) as raw,
    ):
        await client.put(b"k", bytes(90_000))
        zero = f.settings_payload({f.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        raw.writer.write(raw.h2.data_to_send() + f.frame(f.SETTINGS, 0, 0, zero))
        for _ in range(2):
            asked = raw.h2.open_stream(grpc.request_block(RANGE, "x"))
            raw.h2.send_data(asked, ASK, end_stream=True)
        assert await raw.answer(RANGE, ASK) == (8, "etcdserver: too many requests")
        assert (await client.get(b"k")).count == 1


async def test_a_stream_that_asks_on_and_does_not_read_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from etcd.server import grpc_server

    monkeypatch.setattr(grpc_server, "MAX_BACKLOG_BYTES", 10_000)
    ask = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
    progress = grpc.frame(ask.SerializeToString())
    async with memory_etcd() as etcd, await Raw.connect(etcd.endpoint) as raw:
        zero = f.settings_payload({f.SETTINGS_INITIAL_WINDOW_SIZE: 0})
        raw.writer.write(raw.h2.data_to_send() + f.frame(f.SETTINGS, 0, 0, zero))
        stream = raw.h2.open_stream(grpc.request_block("/etcdserverpb.Watch/Watch", "x"))
        for _ in range(2000):
            raw.h2.send_data(stream, progress)
        # A call answered after them shows that they were read.
        assert (await raw.answer(RANGE, ASK))[0] == 8
        (connection,) = etcd.connections
        assert isinstance(connection, grpc_server.GrpcServerConnection)
        assert connection._h2.queued_total < 20_000
        assert not etcd.member.hub.streams


async def test_requests_begun_and_not_ended_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from etcd.server import grpc_server

    monkeypatch.setattr(grpc_server, "MAX_UNFINISHED_BYTES", 100_000)
    async with memory_etcd() as etcd, await Raw.connect(etcd.endpoint) as raw:
        whole = put(16_000)
        begun = []
        for _ in range(6):
            begun.append(raw.h2.open_stream(grpc.request_block(PUT, "x")))
            raw.h2.send_data(begun[-1], whole[:15_000])
        refused = await raw.answer(PUT, put(60_000)[:15_000], end=False)
        assert refused == (8, "etcdserver: too many requests")
        # Those before go on, and what they held is free again.
        for stream in begun[:5]:
            raw.h2.send_data(stream, whole[15_000:], end_stream=True)
        raw.h2.reset(begun[5], f.ErrorCode.CANCEL)
        assert await raw.answer(PUT, put(95_000)) == (0, "")
        (connection,) = etcd.connections
        assert isinstance(connection, grpc_server.GrpcServerConnection)
        assert (connection._unfinished_total, connection._unfinished) == (0, {})
        assert etcd.member.engine.store.revision == 7


async def test_connections_are_bounded_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with memory_etcd() as etcd, EtcdClient([etcd.endpoint]) as client:
        await client.put(b"a", b"1")
        etcd.max_connections = 1
        host, _, port = etcd.endpoint.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(TIMEOUT_S):
            assert await reader.read() == b""
        writer.close()
        assert (await client.get(b"a")).count == 1
        etcd.max_connections = 10
        async with await Raw.connect(etcd.endpoint) as raw:
            assert await raw.answer(RANGE, ASK) == (0, "")


async def test_a_client_that_vanished_is_pinged_and_let_go() -> None:
    async with (
        memory_etcd(keepalive_interval_s=0.1, keepalive_timeout_s=0.1) as etcd,
        await Raw.connect(etcd.endpoint) as dead,
        EtcdClient([etcd.endpoint]) as alive,
    ):
        dead.writer.write(dead.h2.data_to_send())
        await alive.put(b"a", b"1")
        # It reads and says nothing.
        await dead.until_closed()
        assert (await alive.get(b"a")).count == 1


async def test_a_silent_connection_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "FIRST_BYTES_TIMEOUT_S", 0.05)
    async with memory_etcd() as etcd, await Raw.connect(etcd.endpoint) as raw:
        await raw.until_closed()


# Any bytes --------------------------------------------------------------------------------------


def _sessions() -> list[bytes]:
    """Whole conversations of honest clients, as bytes."""
    found = []
    create = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"a"))
    calls = (
        (PUT, put(20)),
        (RANGE, ASK),
        ("/etcdserverpb.Watch/Watch", grpc.frame(create.SerializeToString())),
        ("/etcdserverpb.KV/Txn", nested(3, 2)),
    )
    client = h2.Http2Connection(client=True)
    for path, body in calls:
        stream_id = client.open_stream(grpc.request_block(path, "x"))
        client.send_data(stream_id, body, end_stream=True)
    client.ping()
    found.append(client.data_to_send())
    found.append(
        b'POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n{"key":"YQ=="}'
    )
    found.append(b"PUT /v2/keys/a?value=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    return found


def _mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out))
        match rng.randrange(4):
            case 0:
                out[at] = rng.randrange(256)
            case 1:
                del out[at : at + rng.randint(1, 20)]
            case 2:
                out[at:at] = rng.randbytes(rng.randint(1, 20))
            case _:
                out[at:at] = out[at : at + rng.randint(1, 60)]
        if not out:
            break
    return bytes(out)


async def test_any_bytes_end_at_most_their_own_connection() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    sessions = _sessions()
    async with memory_etcd(enable_v2=True) as etcd, EtcdClient([etcd.endpoint]) as client:
        host, _, port = etcd.endpoint.rpartition(":")
        for number in range(250):
            data = (
                rng.randbytes(rng.randint(1, 200))
                if number % 5 == 0
                else _mutated(rng.choice(sessions), rng)
            )
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(data)
            writer.write_eof()
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    while await reader.read(65_536):
                        pass
            except ConnectionError:
                pass
            writer.close()
            await client.put(b"alive", b"%d" % number)
        assert (await client.get(b"alive")).kvs[0].value == b"249", f"seed {seed}"
