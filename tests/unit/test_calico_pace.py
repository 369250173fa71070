"""How soon a reconciler works again after its last round."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from agents.calico.pace import MAX_REST_S, Pace
from emulator.sim.loop import SimLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine


def simulated(story: Coroutine[object, object, float]) -> float:
    """Run in virtual time."""
    loop = SimLoop()
    with contextlib.closing(loop):
        return loop.run_until_complete(story)


async def rest(took_s: float, changes_s: float, every_s: float, nodes: int = 1) -> float:
    """Seconds a round of ``took_s`` is rested after while changes come so long, so often."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    began = loop.time()

    async def change() -> None:
        while loop.time() - began < changes_s:
            changed.set()
            await asyncio.sleep(every_s)

    async with asyncio.TaskGroup() as group:
        group.create_task(change(), name="changes")
        await Pace(loop.time).rest(took_s, changed, nodes)
        waited = loop.time() - began
        # What was heard while resting is not forgotten.
        assert changed.is_set() == (changes_s > 0)
    return waited


def test_a_single_change_is_followed_soon() -> None:
    assert simulated(rest(0.001, 0.0, 1.0)) <= 0.011


def test_a_burst_is_waited_for() -> None:
    assert 0.05 <= simulated(rest(0.002, 0.05, 0.005)) <= 0.09


def test_changes_without_end_are_not_waited_for() -> None:
    assert simulated(rest(0.005, 60.0, 0.02)) <= 1.1
    assert simulated(rest(1.0, 60.0, 0.02)) <= MAX_REST_S + 0.25


def test_a_round_gives_way_to_those_of_the_other_nodes() -> None:
    assert 0.1 <= simulated(rest(0.001, 0.0, 1.0, nodes=100)) <= 0.12
    assert simulated(rest(1.0, 0.0, 1.0, nodes=100)) <= 2.11
