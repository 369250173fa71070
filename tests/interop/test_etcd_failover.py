"""The agents' client while members die, hang and come back.

One suite, two worlds: a real etcd of three members of which one is killed or the leader is stopped,
and our own server, killed and started again on its directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import TYPE_CHECKING

import pytest

from agents.flannel.daemon import FlannelConfig, run_flannel
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from etcd.client import Code, EtcdClient, EtcdError, Put, channel, version
from tests.etcd_servers import (
    NO_REAL_ETCD,
    RealCluster,
    free_port,
    kill,
    process_etcd,
    real_etcd_binary,
)
from tests.flannel_kernel import RememberingKernel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

needs_real = pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD)
DEADLINE_S = 60.0
TEST_TIMEOUT_S = 180.0
# Short enough that the outage would end it, were it not kept through another member.
LEASE_TTL_S = 8
# flannel waits a minute after a renewal that failed: its leases must be longer, as its 24 h are.
AGENT_TTL_S = 120
SUBNETS = b"/coreos.com/network/subnets/"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


class Traffic:
    """A writer, a transaction writer, a watcher and a kept lease, each with its own client."""

    def __init__(self, endpoints: list[str]) -> None:
        self._endpoints = endpoints
        self.written: dict[bytes, int] = {}
        self.claimed: set[bytes] = set()
        self.seen: list[tuple[int, bytes]] = []
        self.lease = 0
        self._hand_over = asyncio.Event()

    def _client(self) -> EtcdClient:
        return EtcdClient(self._endpoints, rng=random.Random(1))

    async def _put(self) -> None:
        async with self._client() as client:
            number = 0
            while True:
                number += 1
                key = b"t/put%d" % number
                with contextlib.suppress(EtcdError):
                    self.written[key] = (await client.put(key, b"%d" % number)).revision

    async def _claim(self) -> None:
        """As flannel takes a subnet: only if nobody has it; a doubtful claim is looked up."""
        async with self._client() as client:
            number = 0
            while True:
                number += 1
                key = b"t/claim%d" % number
                with contextlib.suppress(EtcdError):
                    done = await client.txn(compare=[version(key) == 0], success=[Put(key, b"me")])
                    assert done.succeeded
                    self.claimed.add(key)

    async def _watch(self) -> None:
        async with (
            self._client() as client,
            client.watch(b"t/", prefix=True, start_revision=1) as batches,
        ):
            async for batch in batches:
                self.seen += [(event.kv.mod_revision, event.kv.key) for event in batch.events]

    async def _keep(self) -> None:
        async with self._client() as client:
            while True:
                lease = (await client.lease_grant(LEASE_TTL_S)).id
                await client.put(b"holder/%d" % lease, b"alive", lease=lease)
                self.lease = lease
                async with client.keep_alive(lease):
                    await self._hand_over.wait()
                self._hand_over.clear()

    async def another_lease(self) -> None:
        """See that the lease is alive, then keep one that is made only now."""
        await self.check_lease()
        before = self.lease
        self._hand_over.set()
        await until(lambda: self.lease != before)

    async def check_lease(self) -> None:
        async with self._client() as client:
            (holder,) = (await client.get(b"holder/%d" % self.lease)).kvs
            assert holder.lease == self.lease
            assert (await client.lease_time_to_live(self.lease)).ttl_s > 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(work(), name=work.__name__)
                for work in (self._watch, self._keep, self._put, self._claim)
            ]
            await self.progress(5)
            yield
            for task in tasks:
                task.cancel()

    async def progress(self, more: int) -> None:
        """Wait until puts, claims and their events have gone on."""
        puts, claims, seen = len(self.written), len(self.claimed), len(self.seen)
        await until(
            lambda: (
                len(self.written) >= puts + more
                and len(self.claimed) >= claims + more
                and len(self.seen) >= seen + 2 * more
                and self.lease
            )
        )

    async def check(self) -> None:
        """Everything acknowledged is there; the watch told each change once, in order."""
        async with self._client() as client:
            found = await client.get(b"t/", prefix=True)
            stored = {kv.key: kv.mod_revision for kv in found.kvs}
            assert self.written.items() <= stored.items()
            assert self.claimed <= stored.keys()
            last = self.seen[-1][0]
            # No key is written twice, so the store holds what a perfect watch would have told.
            told = sorted((rev, key) for key, rev in stored.items() if rev <= last)
            assert self.seen == told
        await self.check_lease()


class Agent:
    """A flannel agent on several endpoints."""

    def __init__(self, endpoints: list[str], folder: Path, number: int) -> None:
        self.kernel = RememberingKernel(f"172.17.4.{number}", number)
        self.ready = asyncio.Event()
        self._config = FlannelConfig(
            tuple(endpoints),
            f"172.17.4.{number}",
            str(folder / f"agent{number}" / "subnet.env"),
            ttl_s=AGENT_TTL_S,
        )
        self._env = RoleEnv(
            real_clock(), random.Random(number), on_ready=lambda _: self.ready.set()
        )

    async def run(self) -> None:
        await run_flannel(self._config, self._env, self.kernel)


@contextlib.asynccontextmanager
async def agents(endpoints: list[str], folder: Path) -> AsyncIterator[list[Agent]]:
    """Two agents that know each other; each must hold its lease to the end."""
    made = [Agent(endpoints, folder, number) for number in (1, 2)]
    async with EtcdClient(endpoints) as client:
        await client.put(
            b"/coreos.com/network/config",
            b'{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}',
        )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(agent.run(), name="flannel") for agent in made]
            await until(lambda: all(len(agent.kernel.routes()) == 1 for agent in made))
            before = await client.get(SUBNETS, prefix=True)
            yield made
            after = await client.get(SUBNETS, prefix=True)
            created = {kv.key: kv.create_revision for kv in after.kvs}
            assert {kv.key: kv.create_revision for kv in before.kvs} == {
                key: created[key] for key in (kv.key for kv in before.kvs)
            }
            for task in tasks:
                task.cancel()


async def a_newcomer_is_seen(known: list[Agent], endpoints: list[str], folder: Path) -> None:
    """The agents' watches work: they learn of a third."""
    third = Agent(endpoints, folder, 3)
    task = asyncio.create_task(third.run(), name="newcomer")
    await until(lambda: all(len(agent.kernel.routes()) == 2 for agent in (*known, third)))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def without_the_member_in_use(
    cluster: RealCluster, traffic: Traffic, during: Callable[[], Awaitable[None]]
) -> None:
    # All clients began with the first endpoint, be it the leader or not.
    await cluster.kill(0)
    await during()
    await cluster.start(0)


async def without_the_leader(
    cluster: RealCluster, traffic: Traffic, during: Callable[[], Awaitable[None]]
) -> None:
    """Every client's member is the leader when it stops answering."""
    leader = await cluster.leader()
    cluster.pause(leader)
    await during()
    # A leader of before etcd 16822 that comes back revokes, in the new leader's name, what its
    # own clock has let expire meanwhile (etcd 15247): it may only meet a lease it does not know.
    await traffic.another_lease()
    cluster.resume(leader)


@needs_real
@pytest.mark.parametrize("outage", [without_the_member_in_use, without_the_leader])
async def test_everything_goes_on_without_one_of_three_members(
    tmp_path: Path,
    outage: Callable[[RealCluster, Traffic, Callable[[], Awaitable[None]]], Awaitable[None]],
) -> None:
    async with asyncio.timeout(TEST_TIMEOUT_S), RealCluster(tmp_path) as cluster:
        endpoints = cluster.endpoints
        if outage is without_the_leader:
            leader = await cluster.leader()
            endpoints = endpoints[leader:] + endpoints[:leader]
        traffic = Traffic(endpoints)
        async with traffic.running(), agents(endpoints, tmp_path) as known:

            async def during() -> None:
                await traffic.progress(50)
                await a_newcomer_is_seen(known, endpoints, tmp_path)

            await outage(cluster, traffic, during)
            await traffic.progress(50)
        await traffic.check()


@needs_real
async def test_a_cluster_without_a_majority_is_waited_for(tmp_path: Path) -> None:
    async with asyncio.timeout(TEST_TIMEOUT_S), contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(RealCluster(tmp_path))
        client = await stack.enter_async_context(EtcdClient(cluster.endpoints, timeout_s=2))
        batches = await stack.enter_async_context(client.watch(b"k"))
        first = await client.put(b"k", b"1")
        assert (await anext(batches)).events[0].kv.value == b"1"
        leader = await cluster.leader()
        others = [number for number in range(3) if number != leader]
        for number in others:
            await cluster.kill(number)
        with pytest.raises(EtcdError) as failed:
            await client.put(b"k", b"lost?")
        assert failed.value.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
        with pytest.raises(EtcdError) as unread:
            await client.get(b"k")
        assert unread.value.code == Code.DEADLINE_EXCEEDED
        for number in others:
            await cluster.start(number)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                with contextlib.suppress(EtcdError):
                    await client.put(b"k", b"2")
                    break
        values = [b"1"]
        while values[-1] != b"2":
            values += [event.kv.value for event in (await anext(batches)).events]
        # The put that failed may have been applied, once.
        assert values in ([b"1", b"2"], [b"1", b"lost?", b"2"])
        assert (await client.get(b"k")).kvs[0].version == len(values)
        assert first.revision > 1


async def test_everything_goes_on_when_our_server_was_killed(tmp_path: Path) -> None:
    port = free_port()
    # A second endpoint at which nobody is: it must only be passed over.
    endpoints = [f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"]
    traffic = Traffic(endpoints)
    async with asyncio.timeout(TEST_TIMEOUT_S), contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(process_etcd(tmp_path / "etcd", port=port))
        async with traffic.running(), agents(endpoints, tmp_path) as known:
            for _ in range(3):
                await kill(first[0])
                first = await stack.enter_async_context(process_etcd(tmp_path / "etcd", port=port))
                await traffic.progress(20)
            await a_newcomer_is_seen(known, endpoints, tmp_path)
        await traffic.check()


async def test_a_port_where_nobody_speaks_is_passed_over_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a stopped process is: the kernel accepts for it."""
    monkeypatch.setattr(channel, "DIAL_TIMEOUT_OF_SEVERAL_S", 0.25)
    rude = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = silent.getsockname()[1], rude.sockets[0].getsockname()[1]
        endpoints = [f"127.0.0.1:{port}" for port in ports]
        async with rude, EtcdClient(endpoints, timeout_s=1) as client:
            with pytest.raises(EtcdError) as failed:
                await client.get(b"x")
    assert f"{endpoints[0]}: no answer within 0.25 s" in failed.value.message
    assert f"{endpoints[1]}: Connection" in failed.value.message
