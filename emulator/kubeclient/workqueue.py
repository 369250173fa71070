"""client-go's work queue: a key is processed once at a time and never lost.

A key added while it waits is not added twice; a key added while it is being processed is
processed once more afterwards.  (k8s.io/client-go/util/workqueue: queue.go, delaying_queue.go,
rate_limiting_queue.go.)
"""

from __future__ import annotations

import asyncio
from collections import deque

# client-go's default item limiter: 5 ms doubling to 1000 s.  The ceiling here is lower because a
# whole cluster's life is minutes and its API server comes back within seconds.
BASE_DELAY_S = 0.005
MAX_DELAY_S = 30.0


class QueueShutDownError(Exception):
    """``get`` on a queue that was shut down and is drained."""


class WorkQueue:
    """Keys (``namespace/name``) waiting for a reconcile, in order of arrival."""

    def __init__(self, *, base_delay_s: float = BASE_DELAY_S, max_delay_s: float = MAX_DELAY_S):
        self._base_delay_s = base_delay_s
        self._max_delay_s = max_delay_s
        self._ready: deque[str] = deque()
        self._dirty: dict[str, None] = {}
        self._processing: dict[str, None] = {}
        self._failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._wakeup = asyncio.Event()
        self._shut_down = False

    def __len__(self) -> int:
        """Keys ready to be taken; those in work or waiting for their time do not count."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """True when nothing is ready, in work or waiting for its time."""
        return not (self._dirty or self._processing or self._timers)

    def add(self, key: str) -> None:
        """Mark a key as needing work."""
        if self._shut_down or key in self._dirty:
            return
        self._dirty[key] = None
        if key not in self._processing:
            self._ready.append(key)
            self._wakeup.set()

    def add_after(self, key: str, delay_s: float) -> None:
        """Add a key after a while; of several waits for one key the soonest counts."""
        if self._shut_down:
            return
        if delay_s <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s
        waiting = self._timers.get(key)
        if waiting is not None:
            if waiting.when() <= due:
                return
            waiting.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def add_rate_limited(self, key: str) -> None:
        """Add a key after a delay that doubles with each failure since ``forget``."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.add_after(key, min(self._base_delay_s * 2.0 ** min(failures, 64), self._max_delay_s))

    def forget(self, key: str) -> None:
        """The key succeeded: its next failure starts from the shortest delay."""
        self._failures.pop(key, None)

    def num_requeues(self, key: str) -> int:
        """Failures since the last ``forget``."""
        return self._failures.get(key, 0)

    async def get(self) -> str:
        """Take the next key; the caller must call ``done``.  QueueShutDownError at the end."""
        while not self._ready:
            if self._shut_down:
                raise QueueShutDownError
            self._wakeup.clear()
            await self._wakeup.wait()
        key = self._ready.popleft()
        self._processing[key] = None
        del self._dirty[key]
        if not self._ready and not self._shut_down:
            self._wakeup.clear()
        return key

    def done(self, key: str) -> None:
        """Finish a key; if it was added meanwhile it becomes ready now."""
        self._processing.pop(key, None)
        if key in self._dirty:
            self._ready.append(key)
            self._wakeup.set()

    def shut_down(self) -> None:
        """Take no more keys; those ready are still handed out, delayed ones are dropped."""
        self._shut_down = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._wakeup.set()

    def _due(self, key: str) -> None:
        del self._timers[key]
        self.add(key)
