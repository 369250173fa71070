"""How soon a reconciler works again: at once after a pause, seldom while changes pour in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# Changes come in bursts (a node joins: its resource, its claim, its block); one round serves all.
SETTLE_S: Final = 0.01
# A round waits for a pause of so many times what the last one took: a tenth of the time is work.
PAUSE_FACTOR: Final = 8
MAX_PAUSE_S: Final = 0.1
# In a large cluster changes come without end while it starts, and each node works through all of
# them: a round comes after so many times what the last one took even without a pause.
REST_FACTOR: Final = 200
MAX_REST_S: Final = 2.0
# A change that wakes one node wakes all: after a round each leaves the processors to the others for
# as long as theirs take, at most so long.
MAX_TURN_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Rests between the rounds of a reconciler; ``monotonic`` is a clock's.

    ``max_turn_s`` is how long others may go first where many nodes work at the same time.
    """

    monotonic: Callable[[], float]
    settle_s: float = SETTLE_S
    max_turn_s: float = MAX_TURN_S

    async def rest(self, took_s: float, changed: asyncio.Event, nodes: int = 1) -> None:
        """Wait until changes pause, or for long enough; ``changed`` is as true after as before.

        ``nodes`` is how many do the same at the same time.
        """
        pause_s = min(max(self.settle_s, PAUSE_FACTOR * took_s), MAX_PAUSE_S)
        until = self.monotonic() + min(REST_FACTOR * took_s, MAX_REST_S)
        await asyncio.sleep(min(took_s * nodes, self.max_turn_s) - pause_s)
        was_set = changed.is_set()
        changed.clear()
        try:
            while True:
                await asyncio.sleep(pause_s)
                if not changed.is_set() or self.monotonic() >= until:
                    return
                was_set = True
                changed.clear()
        finally:
            if was_set:
                changed.set()
