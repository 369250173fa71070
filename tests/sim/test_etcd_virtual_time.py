"""etcd's server and client in virtual time: days of leases, partitions and crashes at once."""

from __future__ import annotations

import asyncio
import random

import pytest

from emulator.runtime.clock import loop_clock
from emulator.runtime.role import RoleEnv
from emulator.sim.world import World, simulate
from etcd.client import CompactedError, EtcdAccess, EtcdClient, EtcdError
from etcd.client.channel import Channel
from etcd.server import EtcdConfig, run_etcd
from tests.etcd_auth_calls import Caller

DAY_S = 86_400


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    config = EtcdConfig(listen_host="0.0.0.0", durability="memory", bcrypt_cost=4)
    await run_etcd(config, RoleEnv(loop_clock(loop, 0.0), random.Random(1)))


def test_a_lease_lives_a_day_while_it_is_kept_and_not_a_day_longer() -> None:
    async def main(world: World) -> None:
        world.host("etcd", "10.0.0.1").spawn(_serve(), name="etcd")

        async def agent() -> None:
            async with EtcdClient(["etcd:2379"], rng=random.Random(2)) as client:
                lease = await client.lease_grant(DAY_S)
                await client.put(b"subnet", b"10.2.1.0", lease=lease.id)
                async with client.keep_alive(lease.id):
                    await asyncio.sleep(3 * DAY_S)
                assert (await client.get(b"subnet")).count == 1
                async with client.watch(b"subnet") as batches:
                    event = (await anext(batches)).events[0]
                assert event.kind == "DELETE"
                left = world.loop.time() - 3 * DAY_S
                # The last renewal was at most a third of the TTL before.
                assert 2 / 3 * DAY_S <= left <= DAY_S + 1
                with pytest.raises(EtcdError, match="lease not found"):
                    await client.lease_keep_alive_once(lease.id)

        await world.host("agent", "10.0.0.2").spawn(agent(), name="agent")

    simulate(main)


def test_a_watch_outlives_a_partition_of_an_hour() -> None:
    async def main(world: World) -> None:
        server = world.host("etcd", "10.0.0.1")
        server.spawn(_serve(), name="etcd")
        reader, writer = world.host("reader", "10.0.0.2"), world.host("writer", "10.0.0.3")
        seen: list[bytes] = []

        async def read() -> None:
            async with (
                EtcdClient(["etcd:2379"], rng=random.Random(2)) as client,
                client.watch(b"", prefix=True) as batches,
            ):
                async for batch in batches:
                    seen.extend(event.kv.value for event in batch.events)

        async def write(value: bytes) -> None:
            async with EtcdClient(["etcd:2379"], rng=random.Random(3)) as client:
                await client.put(b"key", value)

        reading = reader.spawn(read(), name="read")
        await asyncio.sleep(1)
        await writer.spawn(write(b"1"), name="write")
        world.fabric.partition([reader], [server])
        await writer.spawn(write(b"2"), name="write")
        await asyncio.sleep(3600)
        world.fabric.heal()
        await asyncio.sleep(60)
        await writer.spawn(write(b"3"), name="write")
        await asyncio.sleep(1)
        assert seen == [b"1", b"2", b"3"]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    simulate(main)


def test_a_token_unused_for_an_hour_is_replaced_when_it_is_needed() -> None:
    access = EtcdAccess("root", "pw")

    async def main(world: World) -> None:
        world.host("etcd", "10.0.0.1").spawn(_serve(), name="etcd")

        async def agent() -> None:
            channel = Channel(["etcd:2379"], access=access, ssl=None, rng=None, timeout_s=10.0)
            call = Caller(channel)
            await call("Auth/UserAdd", name="root", password="pw")
            await call("Auth/UserGrantRole", user="root", role="root")
            await call("Auth/AuthEnable")
            async with EtcdClient(["etcd:2379"], access=access) as client:
                lease = await client.lease_grant(3 * 3600)
                for _ in range(3):
                    await asyncio.sleep(3600)
                    await client.put(b"subnet", b"10.2.1.0", lease=lease.id)
                    await asyncio.sleep(3600)
                    assert (await client.lease_keep_alive_once(lease.id)).ttl_s == 3 * 3600
            await channel.close()

        await world.host("agent", "10.0.0.2").spawn(agent(), name="agent")

    simulate(main)


def test_fifty_leases_end_when_their_keepers_stop_over_a_week() -> None:
    """Each key goes within a second of its lease's end, and never before it."""

    async def main(world: World) -> None:
        world.host("etcd", "10.0.0.1").spawn(_serve(), name="etcd")
        rng = world.rng("lives")
        ends: dict[bytes, float] = {}
        gone: dict[bytes, float] = {}

        async def keeper(number: int) -> None:
            ttl = rng.choice([30, 600, 3600, DAY_S])
            kept_s = ttl * rng.choice([0.0, 1.1, 7.5])
            key = b"keeper/%d" % number
            async with EtcdClient(["etcd:2379"], rng=random.Random(number)) as client:
                lease = await client.lease_grant(ttl)
                await client.put(key, b"", lease=lease.id)
                # The last renewal counts; by hand, so that its moment is known.
                stop = world.loop.time() + kept_s
                while True:
                    await client.lease_keep_alive_once(lease.id)
                    renewed = world.loop.time()
                    if renewed + ttl / 3 > stop:
                        break
                    await asyncio.sleep(ttl / 3)
                ends[key] = renewed + ttl

        async def observe() -> None:
            async with (
                EtcdClient(["etcd:2379"], rng=random.Random(99)) as client,
                client.watch(b"keeper/", prefix=True, filters=("NOPUT",)) as batches,
            ):
                async for batch in batches:
                    for event in batch.events:
                        assert event.kv.key not in gone
                        gone[event.kv.key] = world.loop.time()

        watching = world.host("observer", "10.0.0.2").spawn(observe(), name="observe")
        await asyncio.sleep(1)
        hosts = [world.host(f"h{n}", f"10.0.1.{n}") for n in range(1, 51)]
        await asyncio.gather(
            *(host.spawn(keeper(n), name="keeper") for n, host in enumerate(hosts))
        )
        await asyncio.sleep(2 * DAY_S)
        assert gone.keys() == ends.keys()
        # A server looks every half second; a link adds its latency.
        assert all(-0.1 <= gone[key] - ends[key] <= 1.0 for key in ends)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    simulate(main)


def test_a_watch_that_a_compaction_overtook_is_told_and_can_list_again() -> None:
    async def main(world: World) -> None:
        server = world.host("etcd", "10.0.0.1")
        server.spawn(_serve(), name="etcd")
        reader, writer = world.host("reader", "10.0.0.2"), world.host("writer", "10.0.0.3")
        seen: dict[bytes, bytes] = {}
        lists = 0

        async def read() -> None:
            """As every agent does: list, watch, and list again when history is gone."""
            nonlocal lists
            async with EtcdClient(["etcd:2379"], rng=random.Random(2)) as client:
                while True:
                    found = await client.get(b"k", prefix=True)
                    lists += 1
                    seen.clear()
                    seen.update({kv.key: kv.value for kv in found.kvs})
                    try:
                        async with client.watch(
                            b"k", prefix=True, start_revision=found.revision + 1
                        ) as batches:
                            async for batch in batches:
                                for event in batch.events:
                                    if event.kind == "PUT":
                                        seen[event.kv.key] = event.kv.value
                                    else:
                                        del seen[event.kv.key]
                    except CompactedError:
                        continue

        async def write(first: int, count: int, *, compact: bool) -> None:
            async with EtcdClient(["etcd:2379"], rng=random.Random(3)) as client:
                for number in range(first, first + count):
                    result = await client.put(b"k%d" % (number % 7), b"%d" % number)
                    if number % 3 == 0:
                        result = await client.delete(b"k%d" % ((number + 1) % 7))
                if compact:
                    await client.compact(result.revision)

        async def look() -> dict[bytes, bytes]:
            async with EtcdClient(["etcd:2379"]) as client:
                return {kv.key: kv.value for kv in (await client.get(b"k", prefix=True)).kvs}

        reading = reader.spawn(read(), name="read")
        for turn, compact in enumerate((False, True, False, True)):
            await asyncio.sleep(10)
            world.fabric.partition([reader], [server])
            await writer.spawn(write(turn * 100, 100, compact=compact), name="write")
            await asyncio.sleep(60)
            world.fabric.heal()
            await asyncio.sleep(60)
            assert seen == await writer.spawn(look(), name="look")
        # Only the two compactions cost a list.
        assert lists == 3
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    simulate(main)


def test_one_watcher_that_does_not_read_starves_nobody_and_loses_nothing() -> None:
    """Ten megabytes for each of twenty: far beyond every window and buffer on the way."""
    events, size = 100, 100_000

    async def main(world: World) -> None:
        world.host("etcd", "10.0.0.1").spawn(_serve(), name="etcd")
        times: list[list[float]] = []
        sent: list[float] = []
        reads = asyncio.Event()
        slow_seen: list[int] = []
        ready = 0

        async def fast(number: int) -> None:
            nonlocal ready
            mine: list[float] = []
            times.append(mine)
            async with (
                EtcdClient(["etcd:2379"], rng=random.Random(number)) as client,
                client.watch(b"k") as batches,
            ):
                ready += 1
                async for batch in batches:
                    mine += [world.loop.time()] * len(batch.events)
                    if len(mine) == events:
                        return

        async def slow() -> None:
            nonlocal ready
            async with (
                EtcdClient(["etcd:2379"], rng=random.Random(77)) as client,
                client.watch(b"k") as batches,
            ):
                ready += 1
                await reads.wait()
                async for batch in batches:
                    slow_seen.extend(event.kv.version for event in batch.events)
                    if len(slow_seen) == events:
                        return

        async def write() -> None:
            async with EtcdClient(["etcd:2379"], rng=random.Random(1)) as client:
                for _ in range(events):
                    await asyncio.sleep(1)
                    await client.put(b"k", bytes(size))
                    sent.append(world.loop.time())

        sleeper = world.host("slow", "10.0.0.2").spawn(slow(), name="slow")
        readers = [
            world.host(f"fast{n}", f"10.0.1.{n + 1}").spawn(fast(n), name="fast") for n in range(20)
        ]
        await world.until(lambda: ready == 21)
        await world.host("writer", "10.0.0.3").spawn(write(), name="write")
        await asyncio.gather(*readers)
        assert all(
            abs(at - put) < 0.1 for mine in times for at, put in zip(mine, sent, strict=True)
        )
        reads.set()
        await sleeper
        assert slow_seen == list(range(1, events + 1))

    simulate(main)
