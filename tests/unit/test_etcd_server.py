"""The server on its port, and the client against it."""

from __future__ import annotations

import asyncio
import json
import os
import random
from typing import TYPE_CHECKING

import aiohttp
import pytest

from emulator.errors import UsageError
from etcd.client import (
    Code,
    CompactedError,
    Delete,
    EtcdClient,
    EtcdError,
    Get,
    Put,
    Txn,
    create_revision,
    lease_of,
    mod_revision,
    value,
    version,
)
from etcd.core import grpc
from etcd.core.http2 import connection as h2
from etcd.core.http2 import frames as f
from etcd.core.pb import rpc_pb2 as pb
from etcd.server import EtcdConfig, EtcdServer
from tests.etcd_servers import memory_etcd, role_env

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WAIT_S = 10.0


@pytest.fixture
async def server() -> AsyncIterator[EtcdServer]:
    async with memory_etcd() as running:
        yield running


@pytest.fixture
async def client(server: EtcdServer) -> AsyncIterator[EtcdClient]:
    async with EtcdClient([server.endpoint]) as connected:
        yield connected


async def _raw(server: EtcdServer, data: bytes, *, eof: bool = False) -> bytes:
    """Send bytes on a connection of their own; return all that comes until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    if eof:
        writer.write_eof()
    try:
        async with asyncio.timeout(WAIT_S):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_transactions_compare_and_nest(client: EtcdClient) -> None:
    first = await client.txn(compare=[version(b"a") == 0], success=[Put(b"a", b"1")])
    assert first.succeeded
    lease = await client.lease_grant(60)
    await client.put(b"a", b"2", lease=lease.id)
    result = await client.txn(
        compare=[
            value(b"a") == b"2",
            value(b"a") != b"3",
            mod_revision(b"a") > first.revision,
            create_revision(b"a") < first.revision + 1,
            lease_of(b"a") == lease.id,
        ],
        success=[
            Txn(compare=[version(b"b") == 0], success=[Put(b"b", b"x", prev_kv=True)]),
            Get(b"", prefix=True, keys_only=True),
            Delete(b"a", prev_kv=True),
        ],
        failure=[Get(b"a")],
    )
    assert result.succeeded
    nested, found, deleted = result.responses
    assert nested.succeeded  # type: ignore[union-attr]
    assert [kv.key for kv in found.kvs] == [b"a", b"b"]  # type: ignore[union-attr]
    assert deleted.prev_kvs[0].value == b"2"  # type: ignore[union-attr]


async def test_errors_have_etcds_codes_and_texts(client: EtcdClient) -> None:
    await client.put(b"a", b"1")
    await client.put(b"a", b"2")
    await client.compact(3)
    with pytest.raises(EtcdError) as compacted:
        await client.get(b"a", revision=2)
    assert compacted.value.code == Code.OUT_OF_RANGE
    assert compacted.value.message == "etcdserver: mvcc: required revision has been compacted"
    with pytest.raises(EtcdError, match="key is not provided"):
        await client.put(b"", b"")
    with pytest.raises(EtcdError, match="requested lease not found") as missing:
        await client.put(b"a", b"", lease=99)
    assert missing.value.code == Code.NOT_FOUND
    with pytest.raises(EtcdError, match="too many operations in txn request"):
        await client.txn(success=[Put(b"%d" % n, b"") for n in range(129)])
    with pytest.raises(EtcdError, match="request is too large"):
        await client.put(b"a", bytes(1_600_000))
    with pytest.raises(EtcdError) as large:
        await client.put(b"a", bytes(2_500_000))
    assert large.value.message == "grpc: received message larger than max (2500008 vs. 2097152)"
    with pytest.raises(CompactedError) as gone:
        async with client.watch(b"a", start_revision=2) as batches:
            await anext(batches)
    assert gone.value.compact_revision == 3


async def test_unknown_calls_and_garbage_messages_are_refused_as_grpc_go_does(
    client: EtcdClient,
) -> None:
    call = client._channel.call
    for path, text in (
        ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
        ("/foo.Bar/Baz", "unknown service foo.Bar"),
    ):
        with pytest.raises(EtcdError, match=text) as unknown:
            await call(path, pb.RangeRequest(), pb.RangeResponse, read=False)
        assert unknown.value.code == Code.UNIMPLEMENTED
    stream = await client._channel.open("/etcdserverpb.KV/Range")
    stream.send(b"\xff\xff", last=True)
    with pytest.raises(EtcdError, match="error unmarshalling request: unexpected EOF"):
        await stream.receive()


async def test_a_list_larger_than_every_window_arrives(client: EtcdClient) -> None:
    big = os.urandom(1_000_000)
    for number in range(20):
        await client.put(b"big/%02d" % number, big)
    found = await client.get(b"big/", prefix=True)
    assert [kv.value for kv in found.kvs] == [big] * 20


async def test_a_watcher_that_does_not_read_misses_nothing_and_holds_nobody_up(
    server: EtcdServer, client: EtcdClient
) -> None:
    rounds, data = 60, bytes(300_000)
    async with (
        EtcdClient([server.endpoint]) as other,
        client.watch(b"k", prefix=True) as slow,
        other.watch(b"k", prefix=True) as quick,
    ):
        for _ in range(rounds):
            await other.put(b"k", data)
            assert len((await anext(quick)).events) == 1
        assert server.member.hub.lagging
        revisions: list[int] = []
        async with asyncio.timeout(WAIT_S):
            while len(revisions) < rounds:
                revisions += [event.kv.mod_revision for event in (await anext(slow)).events]
        assert revisions == list(range(2, rounds + 2))
        assert not server.member.hub.lagging


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nXX",
        f.PREFACE + b"\xff" * 200,
        f.PREFACE + f.frame(f.SETTINGS, 0, 0) + f.frame(f.DATA, 0, 1, b"x"),
        f.PREFACE + f.frame(f.SETTINGS, 0, 0) + f.frame(f.HEADERS, 5, 1, b"\xff" * 40),
        b"GET / HTTP/9\r\n\r\n\0\0\0",
        random.Random(7).randbytes(4096),
    ],
)
async def test_garbage_ends_only_its_own_connection(
    server: EtcdServer, client: EtcdClient, data: bytes
) -> None:
    await client.put(b"a", b"1")
    async with client.watch(b"a") as batches:
        await _raw(server, data, eof=True)
        await client.put(b"a", b"2")
        assert (await anext(batches)).events[0].kv.value == b"2"


@pytest.mark.parametrize("keep", [30, 100, 140, 160])
async def test_a_call_cut_short_leaves_nothing_behind(
    server: EtcdServer, client: EtcdClient, keep: int
) -> None:
    cut = h2.Http2Connection(client=True)
    stream_id = cut.open_stream(grpc.request_block("/etcdserverpb.Watch/Watch", "x"))
    create = pb.WatchCreateRequest(key=b"a")
    cut.send_data(stream_id, grpc.frame(pb.WatchRequest(create_request=create).SerializeToString()))
    put = cut.open_stream(grpc.request_block("/etcdserverpb.KV/Put", "x"))
    cut.send_data(put, grpc.frame(pb.PutRequest(key=b"cut").SerializeToString())[:-1])
    await _raw(server, cut.data_to_send()[:-keep], eof=True)
    assert (await client.get(b"cut")).count == 0
    async with asyncio.timeout(WAIT_S):
        while server.member.hub.streams or len(server.connections) > 1:
            await asyncio.sleep(0.001)


async def test_short_leases_last_two_seconds_and_take_their_keys_along(client: EtcdClient) -> None:
    lease = await client.lease_grant(1, lease_id=77)
    assert (lease.id, lease.ttl_s) == (77, 2)
    with pytest.raises(EtcdError, match="lease already exists"):
        await client.lease_grant(5, lease_id=77)
    await client.put(b"b", b"", lease=77)
    await client.put(b"a", b"", lease=77)
    status = await client.lease_time_to_live(77, keys=True)
    assert (status.granted_ttl_s, status.keys) == (2, (b"a", b"b"))
    async with client.watch(b"", prefix=True) as batches:
        await client.lease_revoke(77)
        (batch,) = [await anext(batches)]
        assert [event.kv.key for event in batch.events] == [b"a", b"b"]
    assert (await client.lease_time_to_live(77)).ttl_s == -1


async def test_keep_alive_cancels_its_body_when_the_lease_is_gone(client: EtcdClient) -> None:
    with pytest.raises(EtcdError, match="requested lease not found"):
        async with client.keep_alive(4711):
            await asyncio.sleep(WAIT_S)


async def test_a_caller_error_inside_keep_alive_comes_out_as_it_is(client: EtcdClient) -> None:
    lease = await client.lease_grant(60)
    with pytest.raises(ValueError, match="mine"):
        async with client.keep_alive(lease.id):
            raise ValueError("mine")


async def test_the_client_moves_to_an_endpoint_that_answers() -> None:
    async with memory_etcd() as first, memory_etcd() as second:
        endpoints = [first.endpoint, second.endpoint]
        async with EtcdClient(endpoints, rng=random.Random(1)) as client:
            await client.put(b"where", b"first")
            await first.close()
            await client.put(b"where", b"second")
            async with EtcdClient([second.endpoint]) as direct:
                assert (await direct.get(b"where")).kvs[0].value == b"second"


async def test_no_endpoint_answering_is_one_clear_error() -> None:
    async with memory_etcd() as server:
        endpoint = server.endpoint
    async with EtcdClient([endpoint], timeout_s=0.2) as client:
        with pytest.raises(EtcdError, match=f"no etcd endpoint answers: {endpoint}") as error:
            await client.get(b"a")
        assert error.value.code == Code.DEADLINE_EXCEEDED


async def test_a_taken_port_is_one_clear_line(server: EtcdServer) -> None:
    config = EtcdConfig(listen_port=server.port, durability="memory")
    with pytest.raises(UsageError, match=rf"cannot listen on 127\.0\.0\.1:{server.port}: "):
        await EtcdServer(config, role_env()).start()


async def _http(server: EtcdServer, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    answer = (await _raw(server, head.encode() + body)).decode()
    return int(answer.split(" ")[1]), answer.partition("\r\n\r\n")[2]


async def test_the_same_port_speaks_http(server: EtcdServer) -> None:
    assert await _http(server, "GET", "/health") == (200, '{"health":"true","reason":""}')
    status, body = await _http(server, "GET", "/version")
    assert (status, json.loads(body)["etcdserver"]) == (200, "3.5.21")
    status, body = await _http(server, "POST", "/v3/kv/put", b'{"key":"Zm9v","value":"YmFy"}')
    assert (status, json.loads(body)["header"]["revision"]) == (200, "2")
    _, body = await _http(server, "POST", "/v3/kv/range", b'{"key":"Zm9v"}')
    assert json.loads(body)["kvs"][0]["value"] == "YmFy"
    status, body = await _http(server, "POST", "/v3/kv/put", b"{}")
    assert (status, json.loads(body)["code"]) == (400, 3)
    assert (await _http(server, "GET", "/v3/kv/put"))[0] == 405
    assert (await _http(server, "GET", "/"))[1] == "404 page not found\n"


async def test_shutdown_tells_the_watchers() -> None:
    async with memory_etcd() as server, EtcdClient([server.endpoint]) as client:
        stream = await client._channel.open("/etcdserverpb.Watch/Watch")
        create = pb.WatchCreateRequest(key=b"a")
        stream.send(pb.WatchRequest(create_request=create).SerializeToString())
        await stream.receive()
        await server.close()
        with pytest.raises(EtcdError, match="etcdserver: server stopped") as stopped:
            await stream.receive()
        assert stopped.value.code == Code.UNAVAILABLE


def test_every_call_of_the_modules_loaded_later_is_known_from_the_start() -> None:
    from etcd.server.long_calls import LONG_CALLS
    from etcd.server.recipe_calls import RECIPE_CALLS
    from etcd.server.streams import STREAMS

    later = {path for path, call in STREAMS.items() if call.__name__ == "make"}
    assert later == {*LONG_CALLS, *RECIPE_CALLS}


async def test_shutdown_waits_for_no_http_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections are closed at once, those who watch or want a lock are told."""
    from etcd.server import http1

    monkeypatch.setattr(http1, "LAST_WORDS_S", 3600.0)
    async with aiohttp.ClientSession() as http, asyncio.timeout(WAIT_S):
        async with memory_etcd() as etcd:
            url = f"http://{etcd.endpoint}"
            assert (await http.get(f"{url}/version")).status == 200
            name = {"name": "bA=="}
            assert (await http.post(f"{url}/v3/lock/lock", json=name)).status == 200
            waiting = asyncio.create_task(http.post(f"{url}/v3/lock/lock", json=name))
            watch = await http.post(f"{url}/v3/watch", json={"create_request": {"key": "YQ=="}})
            assert b"created" in await watch.content.readline()
            while len(etcd.member.hub.streams) < 2:
                await asyncio.sleep(0)
        last = await watch.read()
        assert b"etcdserver: server stopped" in last
        answer = await waiting
        assert answer.status == 503
        assert (await answer.json())["message"] == "etcdserver: server stopped"
