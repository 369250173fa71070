"""A simulated machine: its addresses, the tasks that run on it, its ends."""

from __future__ import annotations

import asyncio
import contextvars
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from emulator.sim.fabric import Fabric

# Which host the running task or callback belongs to; children inherit it.
current_host: ContextVar[SimHost | None] = ContextVar("current_host", default=None)


class SimHost:
    """One machine of a world.

    ``crash()`` is a power cut: the wire is cut first, then the tasks are cancelled, so that no
    ``finally`` says goodbye to anybody.  ``stop()`` is SIGTERM to its processes: the machine stays
    up, closes what they left open and refuses new connections.  After either, ``spawn`` starts the
    next life.
    """

    def __init__(self, fabric: Fabric, name: str, addresses: tuple[str, ...]) -> None:
        self.name = name
        self.addresses = addresses
        self.is_up = True
        self._fabric = fabric
        # In the order of creation; ended tasks leave.
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.context = contextvars.copy_context()
        self.context.run(current_host.set, self)

    @property
    def address(self) -> str:
        """The first address, which is the source of its connections."""
        return self.addresses[0]

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run a coroutine on this host; the task is the host's, which ends it."""
        self.is_up = True
        loop = asyncio.get_running_loop()
        return loop.create_task(coro, name=f"{self.name}.{name}", context=self.context.copy())

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Called by the loop for every task made on this host."""
        self._tasks[task] = None
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    async def crash(self) -> None:
        """Power cut: peers hear nothing until this host is back and resets their connections."""
        self.is_up = False
        self._fabric.cut(self)
        await self._end_tasks()

    async def stop(self) -> None:
        """SIGTERM to everything: tasks end in their own way, their sockets are closed."""
        await self._end_tasks()
        self._fabric.close_sockets(self)

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
