"""One heap of timers for a kernel; what they call is given with them."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


# Cancelled timers the heap may hold, and then only while they are fewer than the others: one for
# each packet put together from fragments would else stay for 30 s.
MAX_CANCELLED: Final = 256


class Timer:
    """One armed call; ``cancel`` is cheap."""

    __slots__ = ("_timers", "at", "call")

    def __init__(self, timers: Timers, at: float, call: Callable[[], None]) -> None:
        self._timers = timers
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Do not call."""
        if self.call is not None:
            self.call = None
            self._timers.note_cancelled()


class Timers:
    """Timers in order of (time, arming)."""

    __slots__ = ("_cancelled", "_count", "_heap", "_on_earlier")

    def __init__(self, on_earlier: Callable[[], None]) -> None:
        """``on_earlier`` is called when a timer is armed that is due before all others."""
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._cancelled = 0
        self._on_earlier = on_earlier

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        """Arm ``call`` for the instant ``when`` of the kernel's clock."""
        timer = Timer(self, when, call)
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, timer))
        if self._heap[0][2] is timer:
            self._on_earlier()
        return timer

    def note_cancelled(self) -> None:
        """One timer of the heap will not be called; when most will not, they go at once."""
        self._cancelled += 1
        heap = self._heap
        if self._cancelled > MAX_CANCELLED and self._cancelled * 2 > len(heap):
            heap[:] = [entry for entry in heap if entry[2].call is not None]
            heapq.heapify(heap)
            self._cancelled = 0

    def next_at(self) -> float | None:
        """When the first armed timer is due."""
        heap = self._heap
        while heap and heap[0][2].call is None:
            heapq.heappop(heap)
            self._cancelled -= 1
        return heap[0][0] if heap else None

    def run(self, now: float) -> None:
        """Call everything due at ``now``, each once."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            timer = heapq.heappop(heap)[2]
            call, timer.call = timer.call, None
            if call is None:
                self._cancelled -= 1
            else:
                call()
