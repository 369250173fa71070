"""Exponential backoff with jitter, pure: the caller sleeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """First delay, growth, ceiling and the share of jitter added on top.

    client-go's reflectors use 0.8 s doubling to 30 s with jitter 1.0; a cluster on one machine
    comes back within milliseconds, so the first tries are quicker and the ceiling lower.
    """

    initial_s: float = 0.05
    factor: float = 2.0
    max_s: float = 5.0
    jitter: float = 1.0


class Backoff:
    """One series of failures; ``reset()`` after a success."""

    __slots__ = ("_failures", "_policy", "_rng")

    def __init__(self, policy: BackoffPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._failures = 0

    def next_delay_s(self) -> float:
        """Seconds to wait before the next try; each call counts one more failure."""
        policy = self._policy
        # The exponent is capped so that a day of failures cannot overflow the float.
        delay = min(policy.initial_s * policy.factor ** min(self._failures, 64), policy.max_s)
        self._failures += 1
        return delay * (1.0 + policy.jitter * self._rng.random())

    def reset(self) -> None:
        """Forget the failures."""
        self._failures = 0
