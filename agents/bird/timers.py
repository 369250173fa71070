"""The timers of one BGP connection (RFC 4271 §8.1.3, RFC 9687, BIRD's connect delay)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.bird.fsm import Input

if TYPE_CHECKING:
    from collections.abc import Iterator


class ConnectionTimers:
    """When each expires, on the speaker's clock; None for one that does not run."""

    __slots__ = ("delay_at", "hold_at", "keepalive_at", "retry_at", "send_hold_at")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Stop all."""
        self.delay_at: float | None = None
        self.retry_at: float | None = None
        self.hold_at: float | None = None
        self.keepalive_at: float | None = None
        self.send_hold_at: float | None = None

    def next(self) -> float | None:
        """The earliest."""
        at = self.hold_at
        for other in (self.keepalive_at, self.delay_at, self.retry_at, self.send_hold_at):
            if other is not None and (at is None or other < at):
                at = other
        return at

    def expired(self, now: float) -> Iterator[Input]:
        """What has happened by ``now``; each input is to be handled before the next is asked for.

        One that ends the connection clears the others.
        """
        if self.delay_at is not None and now >= self.delay_at:
            self.delay_at = None
            yield Input.DELAY_EXPIRES
        if self.retry_at is not None and now >= self.retry_at:
            self.retry_at = None
            yield Input.CONNECT_RETRY_TIMER_EXPIRES
        if self.hold_at is not None and now >= self.hold_at:
            self.hold_at = None
            yield Input.HOLD_TIMER_EXPIRES
        if self.send_hold_at is not None and now >= self.send_hold_at:
            self.send_hold_at = None
            yield Input.SEND_HOLD_TIMER_EXPIRES
        if self.keepalive_at is not None and now >= self.keepalive_at:
            self.keepalive_at = None
            yield Input.KEEPALIVE_TIMER_EXPIRES
