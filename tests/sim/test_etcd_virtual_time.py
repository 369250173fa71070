"""etcd's server and client in virtual time: days of leases, partitions and crashes at once."""

from __future__ import annotations

import asyncio
import random

import pytest

from emulator.runtime.clock import loop_clock
from emulator.runtime.role import RoleEnv
from emulator.sim.world import World, simulate
from etcd.client import EtcdAccess, EtcdClient, EtcdError
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
