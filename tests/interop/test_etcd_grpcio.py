"""grpcio and curl, which know nothing of us, against the server."""

from __future__ import annotations

import asyncio
import shutil

import grpc
import grpc.aio
import pytest

from etcd.core.pb import health_pb2
from etcd.core.pb import rpc_pb2 as pb
from tests.etcd_servers import memory_etcd

CURL = shutil.which("curl")
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
