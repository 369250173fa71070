"""What happened in a world, as lines and as one digest."""

from __future__ import annotations

import hashlib
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Lines kept for a person to read after a failure; the digest covers all of them.
MAX_LINES = 10_000


class EventTrace:
    """An append-only stream of events; equal worlds have equal digests."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._hash = hashlib.sha256()
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        self.count = 0

    def record(self, kind: str, *fields: object) -> None:
        """Add an event; fields must print alike in every run (no addresses, no set order)."""
        line = f"{self._clock():.9f} {kind} {' '.join(map(str, fields))}"
        self.lines.append(line)
        self._hash.update(line.encode() + b"\n")
        self.count += 1

    def digest(self) -> str:
        """SHA-256 over all events so far, in hex."""
        return self._hash.hexdigest()
