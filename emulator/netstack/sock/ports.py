"""Local ports: the ephemeral range and how it is searched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

EPHEMERAL_FIRST: Final = 32768  # net.ipv4.ip_local_port_range
EPHEMERAL_LAST: Final = 60999


def pick_port(rng: random.Random, taken: Callable[[int], bool]) -> int | None:
    """Return a free ephemeral port, searching on from a random one; None if all are taken."""
    size = EPHEMERAL_LAST - EPHEMERAL_FIRST + 1
    start = rng.randrange(size)
    for step in range(size):
        port = EPHEMERAL_FIRST + (start + step) % size
        if not taken(port):
            return port
    return None
