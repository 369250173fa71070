"""The work queue keeps client-go's promises."""

from __future__ import annotations

import asyncio
import logging

import pytest

from emulator.kubeclient import ApiError, Controller, QueueShutDownError, WorkQueue
from emulator.sim.world import World, simulate


async def test_a_key_waits_only_once() -> None:
    queue = WorkQueue()
    for key in ("a", "b", "a"):
        queue.add(key)
    assert len(queue) == 2
    assert [await queue.get(), await queue.get()] == ["a", "b"]


async def test_a_key_added_during_its_work_is_worked_once_more_and_never_twice_at_once() -> None:
    queue = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert len(queue) == 1
    assert await queue.get() == "a"
    queue.done("a")
    assert queue.idle


async def test_the_soonest_of_several_delays_counts() -> None:
    queue = WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 0.01)
    queue.add_after("a", 30)
    async with asyncio.timeout(20):
        assert await queue.get() == "a"


def test_failures_wait_longer_each_time_until_forgotten() -> None:
    async def main(world: World) -> None:
        queue = WorkQueue(base_delay_s=10, max_delay_s=35)

        async def wait_s() -> float:
            began = world.loop.time()
            queue.add_rate_limited("a")
            assert await queue.get() == "a"
            queue.done("a")
            return round(world.loop.time() - began, 3)

        assert [await wait_s() for _ in range(4)] == [10, 20, 35, 35]
        assert queue.num_requeues("a") == 4
        queue.forget("a")
        assert queue.num_requeues("a") == 0
        assert await wait_s() == 10

    simulate(main)


async def test_shut_down_hands_out_the_rest_and_ends_the_workers() -> None:
    queue = WorkQueue()
    queue.add("a")
    queue.add_after("late", 60)
    queue.shut_down()
    queue.add("b")
    assert await queue.get() == "a"
    with pytest.raises(QueueShutDownError):
        await queue.get()


async def test_controller_tries_again_after_failures_of_any_kind() -> None:
    tries: list[str] = []

    async def reconcile(key: str) -> None:
        tries.append(key)
        if len(tries) == 1:
            raise ApiError(409, "Conflict", "changed")
        if len(tries) == 2:
            raise KeyError("spec")
        controller.queue.shut_down()

    log = logging.getLogger("test.controller")
    log.disabled = True
    controller = Controller("test", reconcile, log=log)
    controller.queue.add("a")
    async with asyncio.timeout(20):
        await controller.run()
    assert tries == ["a", "a", "a"]


async def test_controller_comes_back_when_the_reconcile_asks_for_it() -> None:
    tries: list[str] = []

    async def reconcile(key: str) -> float | None:
        tries.append(key)
        if len(tries) == 2:
            controller.queue.shut_down()
        return 0.001

    controller = Controller("test", reconcile)
    controller.queue.add("a")
    async with asyncio.timeout(20):
        await controller.run()
    assert tries == ["a", "a"]
