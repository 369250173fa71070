"""Which of a speaker's peers something is to be done for: now, soon, or at a time.

With a thousand peers nothing may walk them all for each message of one.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agents.bird.peer import Peer


class Agenda:
    """Peers by what they wait for."""

    __slots__ = ("_busy", "_serial", "_talking", "_timers", "_touched")

    def __init__(self) -> None:
        # Something happened to them in this turn; they may have something to send; they have work.
        self._touched: dict[int, Peer] = {}
        self._talking: dict[int, Peer] = {}
        self._busy: dict[int, Peer] = {}
        # Deadlines; an entry counts while it is the peer's ``noted_timer``.
        self._timers: list[tuple[float, int, Peer]] = []
        self._serial = 0

    def touch(self, peer: Peer) -> None:
        """Look after a peer at the end of this turn."""
        self._touched[id(peer)] = peer

    def touched(self) -> Iterator[Peer]:
        """Those touched, also the ones that are meanwhile, until there are none."""
        while self._touched:
            _, peer = self._touched.popitem()
            yield peer

    def note(self, peer: Peer) -> None:
        """Take down what a peer waits for."""
        key = id(peer)
        self._talking[key] = peer
        if peer.busy:
            self._busy[key] = peer
        else:
            self._busy.pop(key, None)
        at = peer.get_timer()
        if at != peer.noted_timer:
            peer.noted_timer = at
            if at is not None:
                self._serial += 1
                heapq.heappush(self._timers, (at, self._serial, peer))

    def forget(self, peer: Peer) -> None:
        """A peer is gone, but for what it may still say."""
        self._talking[id(peer)] = peer
        self._busy.pop(id(peer), None)
        peer.noted_timer = None

    @property
    def has_work(self) -> bool:
        """True while a peer has work to do."""
        return bool(self._busy)

    def busy(self) -> list[Peer]:
        """Those with work to do."""
        return list(self._busy.values())

    def talking(self) -> list[Peer]:
        """Those that may have something to send; each is told once."""
        found = list(self._talking.values())
        self._talking.clear()
        return found

    def next_timer(self) -> float | None:
        """The earliest deadline."""
        timers = self._timers
        while timers and timers[0][2].noted_timer != timers[0][0]:
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def due(self, now: float) -> Iterator[Peer]:
        """Those whose deadline has come."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            at, _, peer = heapq.heappop(timers)
            if peer.noted_timer == at:
                peer.noted_timer = None
                yield peer
