"""Times as BIRD prints them (pure): of the day, or the date when that is long ago."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agents.bird.ctl.reply import Dialect

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable

# Beyond this a time is shown as its date (BIRD's TM_ISO_SHORT: 20 hours).
SHORT_S: Final = 20 * 3600


@dataclass(frozen=True, slots=True)
class Times:
    """Writes times of the speaker's clock; ``wall`` gives the local time of a clock's reading."""

    dialect: Dialect
    now: float
    wall: Callable[[float], datetime.datetime]

    def short(self, at: float) -> str:
        """A column: ``HH:MM:SS`` (BIRD 2: with milliseconds), the date after 20 hours."""
        when = self.wall(at)
        if self.now - at > SHORT_S:
            return when.strftime("%Y-%m-%d")
        return when.strftime("%H:%M:%S") + self._fraction(when)

    def long(self, at: float) -> str:
        """Date and time, for ``show status``."""
        when = self.wall(at)
        return when.strftime("%Y-%m-%d %H:%M:%S") + self._fraction(when)

    def _fraction(self, when: datetime.datetime) -> str:
        return "" if self.dialect is Dialect.BIRD1 else f".{when.microsecond // 1000:03d}"

    def left(self, seconds: float) -> str:
        """What is left of a timer: whole seconds, BIRD 2 with milliseconds."""
        return str(int(seconds)) if self.dialect is Dialect.BIRD1 else f"{seconds:.3f}"
