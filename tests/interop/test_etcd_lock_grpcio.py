"""Lock and Election over gRPC, with grpcio as the client; etcdctl's commands on top of KV."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from etcd.client import EtcdClient
from etcd.core.pb import v3election_pb2 as election
from etcd.core.pb import v3lock_pb2 as lock
from tests.etcd_servers import memory_etcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ETCDCTL = shutil.which("etcdctl")
needs_etcdctl = pytest.mark.skipif(ETCDCTL is None, reason="etcdctl is not installed (etcd-client)")
TIMEOUT_S = 10.0


def _unary(channel: grpc.aio.Channel, path: str, answer: type) -> grpc.aio.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )


async def _until_count(client: EtcdClient, prefix: bytes, count: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while (await client.get(prefix, prefix=True)).count != count:
            await asyncio.sleep(0.01)


async def test_a_lock_call_waits_and_a_cancelled_one_leaves_no_key() -> None:
    async with (
        memory_etcd() as server,
        grpc.aio.insecure_channel(server.endpoint) as channel,
        EtcdClient([server.endpoint]) as client,
    ):
        take = _unary(channel, "/v3lockpb.Lock/Lock", lock.LockResponse)
        give = _unary(channel, "/v3lockpb.Lock/Unlock", lock.UnlockResponse)
        first = await take(lock.LockRequest(name=b"l"))
        second = take(lock.LockRequest(name=b"l"))
        third = take(lock.LockRequest(name=b"l"), timeout=TIMEOUT_S)
        await _until_count(client, b"l/", 3)
        second.cancel()
        await _until_count(client, b"l/", 2)
        await give(lock.UnlockRequest(key=first.key))
        assert (await third).key != first.key
        late = take(lock.LockRequest(name=b"l"), timeout=0.05)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await late
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await _until_count(client, b"l/", 1)


async def test_errors_come_without_a_code_as_etcds_do() -> None:
    async with memory_etcd() as server, grpc.aio.insecure_channel(server.endpoint) as channel:
        take = _unary(channel, "/v3lockpb.Lock/Lock", lock.LockResponse)
        ask = _unary(channel, "/v3electionpb.Election/Leader", election.LeaderResponse)
        for call, text in (
            (take(lock.LockRequest(name=b"l", lease=9)), "etcdserver: requested lease not found"),
            (ask(election.LeaderRequest(name=b"e")), "election: no leader"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert (error.value.code(), error.value.details()) == (grpc.StatusCode.UNKNOWN, text)


@contextlib.asynccontextmanager
async def _etcdctl(endpoint: str, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    assert ETCDCTL is not None
    process = await asyncio.create_subprocess_exec(
        *(ETCDCTL, f"--endpoints={endpoint}", *words),
        env={**os.environ, "ETCDCTL_API": "3"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        return (await process.stdout.readline()).decode().rstrip("\n")


@needs_etcdctl
async def test_a_command_runs_when_a_killed_holders_lease_has_run_out() -> None:
    async with (
        memory_etcd() as server,
        EtcdClient([server.endpoint]) as client,
        _etcdctl(server.endpoint, "lock", "--ttl=2", "m") as holder,
    ):
        held = await _line(holder)
        assert held.startswith("m/")
        command = ("lock", "m", "printenv", "ETCD_LOCK_KEY")
        async with _etcdctl(server.endpoint, *command) as waiter:
            await _until_count(client, b"m/", 2)
            # Killed, not ended: its lease must run out.
            holder.kill()
            key = await _line(waiter)
            assert key.startswith("m/")
            assert key != held
            async with asyncio.timeout(TIMEOUT_S):
                assert await waiter.wait() == 0


@needs_etcdctl
async def test_elect_l_shows_each_leader() -> None:
    async with (
        memory_etcd() as server,
        _etcdctl(server.endpoint, "elect", "-l", "e") as observer,
        _etcdctl(server.endpoint, "elect", "e", "first") as first,
    ):
        key = await _line(first)
        assert [await _line(observer), await _line(observer)] == [key, "first"]
        async with _etcdctl(server.endpoint, "elect", "e", "second") as second:
            first.terminate()
            key = await _line(second)
            assert [await _line(observer), await _line(observer)] == [key, "second"]
