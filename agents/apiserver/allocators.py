"""Choosing Service addresses and node ports.

Pure: the owner keeps one allocator per range in memory and rebuilds it from the stored Services at
start.  One API server writes a cluster, and a reservation is made without giving up control, so two
requests can never get the same value.

Dynamic choices prefer the upper band, so that people may pick from the lower one by hand
(pkg/registry/core/service/{ipallocator,portallocator}).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.addr import Prefix
from emulator.errors import ExhaustedError

if TYPE_CHECKING:
    import random


def ip_band(size: int) -> int:
    """Addresses kept for manual choice of a range of ``size``: min(max(16, size/16), 256)."""
    return 0 if size <= 16 else min(max(16, size // 16), 256)


def port_band(size: int) -> int:
    """Ports kept for manual choice of a range of ``size``: min(max(16, size/32), 128)."""
    return 0 if size <= 16 else min(max(16, size // 32), 128)


class Pool:
    """Numbers ``first`` … ``first + size - 1`` with their owners."""

    def __init__(self, first: int, size: int, band: int, rng: random.Random) -> None:
        self.first = first
        self.size = size
        self._band = band
        self._rng = rng
        self._owners: dict[int, str] = {}

    def __contains__(self, value: int) -> bool:
        return self.first <= value < self.first + self.size

    def owner(self, value: int) -> str | None:
        """Who holds a value, None if it is free."""
        return self._owners.get(value)

    def reserve(self, value: int, owner: str) -> bool:
        """Take one value; False if somebody has it."""
        if value in self._owners:
            return False
        self._owners[value] = owner
        return True

    def allocate(self, owner: str) -> int:
        """Take a random free value, from the lower band only when the upper one is full.

        Raises ExhaustedError.
        """
        for low, high in ((self._band, self.size), (0, self._band)):
            span = high - low
            if span <= 0:
                continue
            start = self._rng.randrange(span)
            for step in range(span):
                value = self.first + low + (start + step) % span
                if value not in self._owners:
                    self._owners[value] = owner
                    return value
        raise ExhaustedError("range is full")

    def free(self, value: int) -> None:
        """Give a value back; one that is not taken is ignored."""
        self._owners.pop(value, None)


def ip_pool(cidr: str, rng: random.Random) -> Pool:
    """The pool of a service range: without its network and broadcast address."""
    prefix = Prefix.parse(cidr)
    total = 1 << (32 - prefix.length)
    size = max(total - 2, 0)
    return Pool(prefix.network + 1, size, ip_band(total), rng)


def port_pool(low: int, high: int, rng: random.Random) -> Pool:
    """The pool of node ports ``low`` … ``high``."""
    size = high - low + 1
    return Pool(low, size, port_band(size), rng)
