"""Connections that came before their peer was configured: two nodes learn of each other at
different moments, and who is sent away comes back much later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    import logging

    from agents.bird.wire import Wire

# As many as a route reflector has clients that all start at once.
MAX_STRANGERS: Final = 1024


class Strangers:
    """Who waits, with the host address it came from, each for at most ``patience_s``."""

    def __init__(self, patience_s: float, log: logging.Logger) -> None:
        self._patience_s = patience_s
        self._log = log
        self._waiting: dict[Wire, str] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, wire: Wire) -> bool:
        return wire in self._waiting

    @property
    def are_welcome(self) -> bool:
        """False where nobody waits, as with BIRD."""
        return self._patience_s > 0

    def take(self, wire: Wire, host: str, loop: asyncio.AbstractEventLoop) -> None:
        """Let one wait, unless too many do."""
        if len(self._waiting) >= MAX_STRANGERS or wire in self._waiting:
            return
        self._waiting[wire] = host
        loop.call_later(self._patience_s, self._send_away, wire)

    def _send_away(self, wire: Wire) -> None:
        host = self._waiting.pop(wire, None)
        if host is not None:
            self._log.info("Unexpected connect from unknown address %s", host)
            wire.abort()

    def waiting(self) -> list[tuple[Wire, str]]:
        """All of them."""
        return list(self._waiting.items())

    def release(self, wire: Wire) -> None:
        """It waits no more."""
        self._waiting.pop(wire, None)

    def release_all(self) -> list[Wire]:
        """None of them waits any more."""
        wires = list(self._waiting)
        self._waiting.clear()
        return wires
