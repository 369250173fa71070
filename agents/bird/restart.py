"""A neighbour's graceful restart: which of its routes are kept, and until when.

RFC 4724 as the receiving speaker: from the loss of the session until the neighbour is back its
routes are stale, for its restart time; then until it has repeated them (End-of-RIB).  RFC 9494:
what is left after the restart time may stay as a last resort for the long-lived stale time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agents.bird.capabilities import Negotiated
    from agents.bird.channel import Channel
    from agents.bird.messages import Open
    from agents.bird.net import Afi

# Routes of a restarted peer that never sends End-of-RIB are kept no longer (RFC 4724 §4.2 leaves it
# to the implementation; FRR's stalepath-time).
STALE_PATH_S: Final = 360.0


class NeighborRestart:
    """The stale routes of one neighbour.

    ``until`` is set while the neighbour is away, ``stale_until`` while it repeats its routes.
    """

    def __init__(self, channels: Mapping[Afi, Channel], log: Callable[[str], None]) -> None:
        self.until: float | None = None
        self.stale_until: float | None = None
        self.is_long_lived = False
        # True from the neighbour's return until it has repeated everything.
        self._repeating = False
        self._channels = channels
        self._log = log
        self._long_lived_s: dict[int, int] = {}

    @property
    def is_active(self) -> bool:
        """True while the neighbour is away and its routes are kept."""
        return self.until is not None

    def cancel(self) -> None:
        """No more waiting: whoever calls flushes everything."""
        self.until = self.stale_until = None

    def begin(self, terms: Negotiated, now: float) -> None:
        """The session is lost: keep the routes of the families the neighbour keeps forwarding."""
        restart = terms.peer_restart
        assert restart is not None
        self._log("Neighbor graceful restart detected")
        self.stale_until = None
        for afi, channel in self._channels.items():
            if self._repeating:
                # RFC 4724 §4.2: what was stale before a second restart must go.
                channel.flush_stale()
            channel.grow_stale()
            if restart.preserved(afi) is None:
                channel.flush_stale()
        families = terms.peer_long_lived.families if terms.peer_long_lived is not None else ()
        self._long_lived_s = {afi: stale_s for afi, _, stale_s in families}
        self.is_long_lived = self._repeating = False
        self.until = now + restart.time_s

    def returned(self, opened: Open, families: tuple[Afi, ...], now: float) -> None:
        """The neighbour is back: drop what it did not keep, wait for the rest to be repeated."""
        was_away, self.until = self.until is not None, None
        restart = opened.capabilities.restart
        for afi, channel in self._channels.items():
            kept = afi in families and restart is not None and restart.preserved(afi)
            if channel.stale and not kept:
                channel.flush_stale()
        self._repeating = was_away and self._any_stale()
        if self._repeating:
            self.stale_until = now + STALE_PATH_S

    def refresh_begins(self, channel: Channel, now: float) -> None:
        """BoRR: everything not repeated before EoRR is gone (RFC 7313 §4)."""
        channel.grow_stale()
        self.stale_until = now + STALE_PATH_S

    def repeated(self, channel: Channel) -> bool:
        """End-of-RIB or EoRR; True if that ended the waiting."""
        if not channel.stale:
            return False
        channel.flush_stale()
        if self._any_stale():
            return False
        self.stale_until = None
        self._repeating = False
        return True

    def handle_timer(self, now: float) -> None:
        """Expire what is due."""
        if self.until is not None and now >= self.until:
            self._expired(now)
        if self.stale_until is not None and now >= self.stale_until:
            self.stale_until = None
            self._repeating = False
            for channel in self._channels.values():
                channel.flush_stale()

    def _expired(self, now: float) -> None:
        self.until = None
        longest = 0
        for afi, channel in self._channels.items():
            stale_s = 0 if self.is_long_lived else self._long_lived_s.get(afi, 0)
            if channel.stale and stale_s:
                channel.mark_long_lived()
                longest = max(longest, stale_s)
            else:
                channel.flush_stale()
        self.is_long_lived = bool(longest)
        if longest:
            self.until = now + longest
            self._log("Neighbor long-lived graceful restart")
        else:
            self._log("Neighbor graceful restart timed out")

    def _any_stale(self) -> bool:
        return any(channel.stale for channel in self._channels.values())
