"""TTLs of the v2 keys in virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from emulator.runtime.clock import loop_clock
from emulator.runtime.role import RoleEnv
from emulator.sim.world import World, simulate
from etcd.core.v2.errors import V2Error
from etcd.core.v2.request import Change
from etcd.server import EtcdConfig, EtcdServer

DAY_S = 86_400
EPOCH_S = 1_500_000_000.0


class Listener:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.at: list[float] = []

    def on_event(self) -> None:
        self.at.append(self._loop.time())

    def on_cleared(self) -> None:
        """Nothing waits here."""


def test_a_subnet_of_a_day_expires_after_a_day_and_not_before_its_renewal() -> None:
    async def main(world: World) -> None:
        loop = asyncio.get_running_loop()
        config = EtcdConfig(durability="memory", enable_v2=True)
        env = RoleEnv(loop_clock(loop, EPOCH_S), random.Random(1))

        async def serve() -> None:
            async with EtcdServer(config, env) as server:
                keys = server.member.v2
                assert keys is not None

                def put(key: str, ttl: int) -> None:
                    asked = keys.parse("PUT", key, [b"ttl=%d" % ttl])
                    assert isinstance(asked, Change)
                    keys.change(asked)

                put("/soon", 2)
                put("/subnet", DAY_S)
                listener = Listener(loop)
                keys.store.watch(listener, "/subnet", recursive=False, stream=True, since=0)
                await asyncio.sleep(DAY_S - 3600)
                with pytest.raises(V2Error, match="Key not found"):
                    keys.store.get("/soon")
                put("/subnet", DAY_S)
                renewed = loop.time()
                await asyncio.sleep(DAY_S - 1)
                keys.store.get("/subnet")
                await asyncio.sleep(2)
                with pytest.raises(V2Error, match="Key not found"):
                    keys.store.get("/subnet")
                # The renewal, then the removal and its event, as a stream sees them.
                assert listener.at[0] == renewed
                assert DAY_S <= listener.at[-1] - renewed <= DAY_S + 0.5

        await world.host("etcd", "10.0.0.1").spawn(serve(), name="etcd")

    simulate(main)
