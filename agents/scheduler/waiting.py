"""Pods that wait for a node: ready to be tried, backing off, or unschedulable for now; pure.

Source: k8s.io/kubernetes/pkg/scheduler/internal/queue.  A pod that did not fit rests until
something in the cluster changes; then it is tried again, but not before its backoff is over.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.scheduler.cluster import PodInfo

# Upstream's podInitialBackoffSeconds and podMaxBackoffSeconds.
INITIAL_BACKOFF_S = 1.0
MAX_BACKOFF_S = 10.0
# Even without any event an unschedulable pod is tried again after this (flush interval).
MAX_UNSCHEDULABLE_S = 300.0


class _Entry:
    __slots__ = ("attempts", "in_flight", "missed", "pod", "rests_until", "tried_at")

    def __init__(self, pod: PodInfo) -> None:
        self.pod = pod
        self.attempts = 0
        self.tried_at = 0.0
        self.rests_until = 0.0
        self.in_flight = False
        self.missed = False


class WaitingPods:
    """By pod uid; higher priority first, then order of arrival."""

    def __init__(
        self, initial_backoff_s: float = INITIAL_BACKOFF_S, max_backoff_s: float = MAX_BACKOFF_S
    ) -> None:
        self._initial_backoff_s = initial_backoff_s
        self._max_backoff_s = max_backoff_s
        self._entries: dict[str, _Entry] = {}
        self._arrivals = 0
        self._active: list[tuple[int, int, str]] = []
        self._active_uids: dict[str, None] = {}
        self._backing_off: dict[str, None] = {}
        # Tried in vain: nothing has changed since.
        self._resting: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, pod: PodInfo) -> None:
        """A new or changed pod wants a node; a change makes it worth trying again."""
        entry = self._entries.get(pod.uid)
        if entry is None:
            entry = self._entries[pod.uid] = _Entry(pod)
        entry.pod = pod
        if entry.in_flight:
            entry.missed = True
        else:
            self._activate(pod.uid)

    def remove(self, uid: str) -> None:
        """The pod is gone, or has a node."""
        self._entries.pop(uid, None)
        self._active_uids.pop(uid, None)
        self._backing_off.pop(uid, None)
        self._resting.pop(uid, None)

    def pop(self, now: float) -> PodInfo | None:
        """The next pod to try, None if all rest; answer with ``failed`` or ``remove``."""
        self._wake_due(now)
        while self._active:
            _, _, uid = heapq.heappop(self._active)
            entry = self._entries.get(uid)
            if entry is None or uid not in self._active_uids:
                continue
            del self._active_uids[uid]
            entry.in_flight = True
            entry.missed = False
            entry.attempts += 1
            return entry.pod
        return None

    def failed(self, uid: str, now: float, *, retry: bool = False) -> None:
        """The try came to nothing; ``retry`` for an error that time alone may cure."""
        entry = self._entries.get(uid)
        if entry is None:
            return
        entry.in_flight = False
        entry.tried_at = now
        backoff = self._initial_backoff_s * 2.0 ** min(entry.attempts - 1, 32)
        entry.rests_until = now + min(backoff, self._max_backoff_s)
        # Something changed while the pod was being tried: that look may have been too early.
        waits = self._backing_off if retry or entry.missed else self._resting
        waits[uid] = None

    def wake_all(self, now: float) -> None:
        """The cluster changed: whoever did not fit may fit now, after its backoff."""
        for entry in self._entries.values():
            if entry.in_flight:
                entry.missed = True
        self._backing_off |= self._resting
        self._resting.clear()
        self._wake_due(now)

    def next_due(self) -> float | None:
        """When ``pop`` may have more to give without any event, None for never."""
        due = [self._entries[uid].rests_until for uid in self._backing_off]
        due += [self._entries[uid].tried_at + MAX_UNSCHEDULABLE_S for uid in self._resting]
        return min(due, default=None)

    def _wake_due(self, now: float) -> None:
        for uid in [u for u in self._backing_off if self._entries[u].rests_until <= now]:
            self._activate(uid)
        overdue = now - MAX_UNSCHEDULABLE_S
        for uid in [u for u in self._resting if self._entries[u].tried_at <= overdue]:
            self._activate(uid)

    def _activate(self, uid: str) -> None:
        self._backing_off.pop(uid, None)
        self._resting.pop(uid, None)
        if uid not in self._active_uids:
            self._active_uids[uid] = None
            self._arrivals += 1
            priority = -self._entries[uid].pod.priority
            heapq.heappush(self._active, (priority, self._arrivals, uid))
