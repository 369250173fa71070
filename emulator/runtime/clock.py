"""The one place that reads the real clock."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Clock:
    """Monotonic seconds and the wall clock derived from them.

    Wall time is an epoch taken once plus the monotonic clock, so both move together: under a
    virtual loop a day passes in milliseconds for both.
    """

    __slots__ = ("_epoch", "monotonic")

    def __init__(self, monotonic: Callable[[], float], epoch: float) -> None:
        """``epoch`` is the Unix time, in seconds, at which ``monotonic()`` is 0."""
        self.monotonic = monotonic
        self._epoch = epoch

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return self._epoch + self.monotonic()

    def rfc3339(self) -> str:
        """Now as Kubernetes writes it in ``metadata.creationTimestamp``: whole seconds, ``Z``."""
        return (
            datetime.datetime.fromtimestamp(self.time(), datetime.UTC)
            .replace(microsecond=0, tzinfo=None)
            .isoformat()
            + "Z"
        )

    def rfc3339_micro(self) -> str:
        """Now as Kubernetes writes a MicroTime (lease renewTime): six decimals, ``Z``."""
        now = datetime.datetime.fromtimestamp(self.time(), datetime.UTC).replace(tzinfo=None)
        return now.isoformat(timespec="microseconds") + "Z"


def real_clock() -> Clock:
    """A clock over CLOCK_MONOTONIC, which the stock event loop also uses for its timers."""
    return Clock(time.monotonic, time.time() - time.monotonic())


def loop_clock(loop: asyncio.AbstractEventLoop, epoch: float) -> Clock:
    """A clock over a loop's own time, for virtual worlds; ``epoch`` as in ``Clock``."""
    return Clock(loop.time, epoch)
