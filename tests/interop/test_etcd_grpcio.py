"""grpcio and curl, which know nothing of us, against the server."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from etcd.core.http2.connection import Http2Connection
from etcd.core.pb import health_pb2
from etcd.core.pb import rpc_pb2 as pb
from tests.etcd_servers import memory_etcd
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

CURL = shutil.which("curl")
H2LOAD = shutil.which("h2load")
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def _unary(
    channel: grpc.aio.Channel, path: str, response: type
) -> grpc.aio.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )


async def test_grpcio_calls_and_errors() -> None:
    async with (
        memory_etcd() as server,
        grpc.aio.insecure_channel(server.endpoint, options=OPTIONS) as channel,
    ):
        put = _unary(channel, "/etcdserverpb.KV/Put", pb.PutResponse)
        get = _unary(channel, "/etcdserverpb.KV/Range", pb.RangeResponse)
        big = bytes(1_400_000)
        await asyncio.gather(*(put(pb.PutRequest(key=b"%d" % n, value=big)) for n in range(8)))
        found = await get(pb.RangeRequest(key=b"\0", range_end=b"\0"))
        assert [len(kv.value) for kv in found.kvs] == [len(big)] * 8
        with pytest.raises(grpc.aio.AioRpcError) as empty:
            await put(pb.PutRequest())
        assert empty.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert empty.value.details() == "etcdserver: key is not provided"
        with pytest.raises(grpc.aio.AioRpcError) as large:
            await put(pb.PutRequest(key=b"a", value=bytes(2_500_000)))
        assert large.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        health = _unary(channel, "/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse)
        answer = await health(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_grpcio_watches_with_deadline_and_cancel() -> None:
    async with (
        memory_etcd() as server,
        grpc.aio.insecure_channel(server.endpoint) as channel,
    ):
        watch = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.WatchResponse.FromString,
        )
        request = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"a"))
        put = _unary(channel, "/etcdserverpb.KV/Put", pb.PutResponse)
        call = watch()
        await call.write(request)
        assert (await call.read()).created
        await put(pb.PutRequest(key=b"a", value=b"1"))
        assert (await call.read()).events[0].kv.value == b"1"
        call.cancel()
        late = watch(timeout=0.1)
        await late.write(request)
        assert (await late.read()).created
        with pytest.raises(grpc.aio.AioRpcError) as deadline:
            await late.read()
        assert deadline.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(10):
            while server.member.hub.streams:
                await asyncio.sleep(0.001)


async def test_grpcio_compresses_its_requests() -> None:
    async with (
        memory_etcd() as server,
        grpc.aio.insecure_channel(server.endpoint, compression=grpc.Compression.Gzip) as channel,
    ):
        put = _unary(channel, "/etcdserverpb.KV/Put", pb.PutResponse)
        get = _unary(channel, "/etcdserverpb.KV/Range", pb.RangeResponse)
        for value in (b"", b"x", b"x" * 1_000_000):
            await put(pb.PutRequest(key=b"a", value=value))
            assert (await get(pb.RangeRequest(key=b"a"))).kvs[0].value == value
        # A message that is small on the wire and too large when it is unpacked.
        with pytest.raises(grpc.aio.AioRpcError) as bomb:
            await put(pb.PutRequest(key=b"a", value=bytes(50_000_000)))
        assert bomb.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "after decompression larger than max" in (bomb.value.details() or "")
        other = grpc.Compression.Deflate
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await put(pb.PutRequest(key=b"a", value=bytes(1000)), compression=other)
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_grpcio_holds_a_thousand_watches_on_one_connection_under_pings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pings = 0

    def on_ping(self: Http2Connection, *frame: Any) -> None:
        nonlocal pings
        pings += 1
        answer(self, *frame)

    answer = Http2Connection._on_ping
    monkeypatch.setattr(Http2Connection, "_on_ping", on_ping)
    options = (
        ("grpc.keepalive_time_ms", 50),
        ("grpc.keepalive_timeout_ms", 5000),
        ("grpc.http2.max_pings_without_data", 0),
    )
    async with (
        memory_etcd() as server,
        grpc.aio.insecure_channel(server.endpoint, options=options) as channel,
    ):
        watch = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.WatchResponse.FromString,
        )
        put = _unary(channel, "/etcdserverpb.KV/Put", pb.PutResponse)
        calls = [watch() for _ in range(1000)]

        async def begin(number: int) -> None:
            create = pb.WatchCreateRequest(key=b"%d" % (number % 10))
            await calls[number].write(pb.WatchRequest(create_request=create))
            assert (await calls[number].read()).created

        await asyncio.gather(*(begin(number) for number in range(len(calls))))
        assert len(server.member.hub.streams) == 1000
        for round_ in range(3):
            for key in range(10):
                await put(pb.PutRequest(key=b"%d" % key, value=b"%d" % round_))
            said = await asyncio.gather(*(call.read() for call in calls))
            for number, response in enumerate(said):
                kv = response.events[0].kv
                assert (kv.key, kv.value) == (b"%d" % (number % 10), b"%d" % round_)
            # Some keepalive pings between.
            before = pings
            await until(lambda before=before: pings >= before + 2, "pings")  # type: ignore[misc]
        for call in calls:
            call.cancel()


async def test_grpcio_keeps_a_lease_over_one_long_stream() -> None:
    async with (
        memory_etcd() as server,
        grpc.aio.insecure_channel(server.endpoint) as channel,
    ):
        grant = _unary(channel, "/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantResponse)
        keep = channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        lease = (await grant(pb.LeaseGrantRequest(TTL=60))).ID
        call = keep()
        for number in (lease, lease + 1, lease):
            await call.write(pb.LeaseKeepAliveRequest(ID=number))
            response = await call.read()
            assert (number, 60 if number == lease else 0) == (response.ID, response.TTL)
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
async def test_curl_speaks_http2_to_the_same_port() -> None:
    assert CURL is not None
    async with memory_etcd() as server:
        process = await asyncio.create_subprocess_exec(
            *(CURL, "-s", "-i", "--http2-prior-knowledge", "-X", "POST", "--max-time", "10"),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            *("--data-binary", "@-", f"http://{server.endpoint}/etcdserverpb.KV/Range"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate(b"\0\0\0\0\3\x0a\x01a")
        assert process.returncode == 0
        assert out.startswith(b"HTTP/2 200")
        assert b"grpc-status: 0" in out


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
@pytest.mark.parametrize("path", ["/health", "/version", "/v3/kv/range", "/nothing"])
async def test_http2_that_is_no_grpc_is_refused_and_harms_nobody(path: str) -> None:
    """A real etcd resets such a stream; this says 415, as gRPC has it."""
    assert CURL is not None
    async with memory_etcd() as server:
        process = await asyncio.create_subprocess_exec(
            *(CURL, "-s", "-i", "--http2-prior-knowledge", "--max-time", "10"),
            f"http://{server.endpoint}{path}",
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert out.startswith(b"HTTP/2 415")


@pytest.mark.skipif(H2LOAD is None, reason="h2load is not installed (nghttp2-client)")
async def test_h2load_gets_an_answer_to_every_request(tmp_path: Path) -> None:
    assert H2LOAD is not None
    body = tmp_path / "range"
    body.write_bytes(b"\0\0\0\0\3\x0a\x01a")
    async with memory_etcd() as server:
        process = await asyncio.create_subprocess_exec(
            *(H2LOAD, "-n", "20000", "-c", "8", "-m", "50", "-d", str(body)),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            f"http://{server.endpoint}/etcdserverpb.KV/Range",
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"20000 succeeded, 0 failed, 0 errored, 0 timeout" in out, out.decode()
    assert b"status codes: 20000 2xx" in out
