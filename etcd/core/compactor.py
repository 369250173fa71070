"""Automatic compaction: which revision to compact, and when.  No IO, no clock.

Theory of operation.  ``revision`` mode looks every five minutes and keeps the newest N revisions.
``periodic`` mode notes the revision ten times a period (a period above an hour counts as one) and
compacts what was current one retention (and one look) ago: first after a whole retention, then
every period.

Source: etcd server/etcdserver/api/v3compactor/{periodic,revision}.go, release 3.5.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

# revision.go revInterval.
REVISION_INTERVAL_S: Final = 300.0
# periodic.go: the longest time between compactions, and how often a period is looked at.
MAX_PERIOD_S: Final = 3600.0
LOOKS_PER_PERIOD: Final = 10


class Compactor(Protocol):
    """Either mode."""

    def get_timer(self) -> float:
        """When to look next, in seconds on the clock it was given."""

    def handle_timer(self, revision: int, *, now: float) -> int | None:
        """Take the store's revision; return a revision to compact, None for nothing yet."""

    def compacted(self, revision: int, *, now: float) -> None:
        """A returned revision is compacted (or was already)."""


class Periodic:
    """``--auto-compaction-mode=periodic``."""

    def __init__(self, retention_s: float, revision: int, *, now: float) -> None:
        self._retention_s = retention_s
        self._period_s = min(retention_s, MAX_PERIOD_S)
        self._look_s = self._period_s / LOOKS_PER_PERIOD
        self._revisions: deque[int] = deque(
            (revision,), maxlen=int(retention_s / self._look_s + 1e-9) + 1
        )
        # The first compaction waits a whole retention, the others a period.
        self._base_s = retention_s
        self._success = now
        self._last = 0
        self._due = now + self._look_s

    def get_timer(self) -> float:
        """See Compactor."""
        return self._due

    def handle_timer(self, revision: int, *, now: float) -> int | None:
        """See Compactor."""
        # The oldest noted revision was current one retention and one look ago.
        oldest = self._revisions[0]
        self._revisions.append(revision)
        self._due = now + self._look_s
        # Deadlines are sums of floats: half a microsecond is no reason to wait a look longer.
        if now - self._success < self._base_s - 5e-7 or oldest == self._last:
            return None
        self._base_s = self._period_s
        return oldest

    def compacted(self, revision: int, *, now: float) -> None:
        """See Compactor."""
        self._success = now
        self._last = revision


class Revision:
    """``--auto-compaction-mode=revision``."""

    def __init__(self, retention: int, *, now: float) -> None:
        self._retention = retention
        self._last = 0
        self._due = now + REVISION_INTERVAL_S

    def get_timer(self) -> float:
        """See Compactor."""
        return self._due

    def handle_timer(self, revision: int, *, now: float) -> int | None:
        """See Compactor."""
        self._due = now + REVISION_INTERVAL_S
        wanted = revision - self._retention
        return wanted if wanted > 0 and wanted != self._last else None

    def compacted(self, revision: int, *, now: float) -> None:
        """See Compactor."""
        self._last = revision
