"""One heap of timers for a kernel; what they call is given with them."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """One armed call; ``cancel`` is cheap, the heap forgets it when its time comes."""

    __slots__ = ("at", "call")

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Do not call."""
        self.call = None


class Timers:
    """Timers in order of (time, arming)."""

    __slots__ = ("_count", "_heap", "_on_earlier")

    def __init__(self, on_earlier: Callable[[], None]) -> None:
        """``on_earlier`` is called when a timer is armed that is due before all others."""
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._on_earlier = on_earlier

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        """Arm ``call`` for the instant ``when`` of the kernel's clock."""
        timer = Timer(when, call)
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, timer))
        if self._heap[0][2] is timer:
            self._on_earlier()
        return timer

    def next_at(self) -> float | None:
        """When the first armed timer is due."""
        heap = self._heap
        while heap and heap[0][2].call is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run(self, now: float) -> None:
        """Call everything due at ``now``, each once."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            timer = heapq.heappop(heap)[2]
            call, timer.call = timer.call, None
            if call is not None:
                call()
