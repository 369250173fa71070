"""The wait that errors cost a BGP protocol ("error wait time", bgp_update_startup_delay)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.bird.config import Timers


class Penalty:
    """Doubles with each error, up to a bound; is forgiven after long enough without one."""

    __slots__ = ("_failed_at", "delay_s", "until")

    def __init__(self) -> None:
        self.delay_s = 0.0
        # While the protocol waits: until when.
        self.until: float | None = None
        self._failed_at: float | None = None

    def failed(self, timers: Timers, now: float) -> None:
        """There was an error."""
        self.forgive(timers, now)
        self._failed_at = now
        if self.delay_s:
            self.delay_s = min(2 * self.delay_s, timers.error_wait_max_s)
        else:
            self.delay_s = timers.error_wait_min_s

    def forgive(self, timers: Timers, now: float) -> None:
        """Forget errors that are long ago."""
        if self._failed_at is not None and now - self._failed_at >= timers.error_forget_s:
            self.delay_s = 0.0
