"""A whole simulated world and how to run one."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from emulator.runtime.clock import Clock, loop_clock
from emulator.runtime.rng import seeded_rng
from emulator.runtime.role import RoleEnv
from emulator.sim.fabric import Fabric
from emulator.sim.loop import SimLoop
from emulator.sim.trace import EventTrace

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from emulator.sim.host import SimHost

T = TypeVar("T")

# Every world begins at the same moment: 2026-01-01T00:00:00Z.
EPOCH_S = 1767225600.0
# ``until`` looks so many times between now and its deadline.
LOOKS = 2000


class World:
    """One simulated world: hosts, their network, its clock and its trace."""

    def __init__(self, loop: SimLoop, seed: int) -> None:
        self.seed = seed
        self.loop = loop
        self.trace = EventTrace(loop.time)
        self.clock: Clock = loop_clock(loop, EPOCH_S)
        self.fabric = Fabric(loop, seeded_rng(seed, "fabric"), self.trace)
        loop.fabric = self.fabric

    def host(self, name: str, *addresses: str) -> SimHost:
        """Add a machine with its addresses."""
        return self.fabric.host(name, *addresses)

    def rng(self, *path: str) -> random.Random:
        """A generator for one part of this world."""
        return seeded_rng(self.seed, *path)

    def env(self, name: str, life: int = 0) -> RoleEnv:
        """What a role on this world's clock is handed; its log lines are part of the trace.

        ``life`` tells a restarted role from the first: it draws other numbers.
        """
        log = logging.Logger(name)
        log.addHandler(_TraceHandler(self.trace))
        return RoleEnv(self.clock, self.rng("role", name, str(life)), log)

    async def until(
        self, condition: Callable[[], object], *, within_s: float = 60.0, what: str = ""
    ) -> None:
        """Wait for a condition in virtual time; AssertionError with the last events if it fails."""
        deadline = self.loop.time() + within_s
        while not condition():
            if self.loop.time() >= deadline:
                last = "\n  ".join(list(self.trace.lines)[-20:])
                raise AssertionError(
                    f"not within {within_s} s of virtual time: {what or condition}\n"
                    f"last events:\n  {last}"
                )
            await asyncio.sleep(max(0.001, within_s / LOOKS))


class _TraceHandler(logging.Handler):
    def __init__(self, trace: EventTrace) -> None:
        super().__init__()
        self._trace = trace

    def emit(self, record: logging.LogRecord) -> None:
        self._trace.record("log", record.name, record.levelname, record.getMessage())


def simulate(main: Callable[[World], Awaitable[T]], *, seed: int = 0) -> T:
    """Run ``main(world)`` to its end in a new world; the seed fixes everything in it."""

    async def run() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        return await main(World(loop, seed))

    with asyncio.Runner(loop_factory=SimLoop) as runner:
        return runner.run(run())
