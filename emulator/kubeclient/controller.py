"""Runs a reconcile coroutine for each key of a work queue, with backoff."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from emulator.errors import PodwireError
from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.workqueue import QueueShutDownError, WorkQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    # Brings one key to its desired state; a float asks to be called again after so many seconds.
    Reconcile = Callable[[str], Awaitable[float | None]]

# Failures in a row of one key before its log line is a warning: conflicts are how optimistic
# concurrency works, and go on until the watch shows what was written.  Ten take 5 s.
QUIET_FAILURES = 10


class Controller:
    """A queue and the coroutine that empties it."""

    def __init__(
        self,
        name: str,
        reconcile: Reconcile,
        *,
        workers: int = 1,
        log: logging.Logger | None = None,
        queue: WorkQueue | None = None,
    ) -> None:
        """``workers`` keys are in work at once; one key never is twice."""
        self.name = name
        self.queue = queue if queue is not None else WorkQueue()
        self._reconcile = reconcile
        self._workers = workers
        self._log = log or logging.getLogger("podwire.kubeclient")

    async def run(self) -> None:
        """Work until cancelled or the queue is shut down and drained."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"{self.name}.{number}")

    async def _work(self) -> None:
        queue = self.queue
        while True:
            try:
                key = await queue.get()
            except QueueShutDownError:
                return
            try:
                again_s = await self._reconcile(key)
            except (PodwireError, OSError) as error:
                self._report(key, error)
                queue.add_rate_limited(key)
            except Exception:
                # The supervisor of one pass: an object nobody foresaw must not take the other
                # objects' controller down with it.
                self._log.exception("%s: reconcile of %s failed", self.name, key)
                queue.add_rate_limited(key)
            else:
                queue.forget(key)
                if again_s is not None:
                    queue.add_after(key, again_s)
            finally:
                queue.done(key)

    def _report(self, key: str, error: Exception) -> None:
        requeues = self.queue.num_requeues(key)
        usual = isinstance(error, ApiError) and (error.is_conflict or error.is_not_found)
        level = logging.DEBUG if usual and requeues < QUIET_FAILURES else logging.WARNING
        self._log.log(level, "%s: %s: %s (try %d)", self.name, key, error, requeues + 1)
