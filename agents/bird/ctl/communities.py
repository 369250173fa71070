"""Communities in BIRD's filter language: extended ones as values, patterns of all kinds (pure).

An extended community is its 8 octets as one number.  Source: BIRD's lib/attrs.h and nest/a-set.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agents.bird.net import format_address

if TYPE_CHECKING:
    from collections.abc import Sequence

GENERIC: Final = "generic"
# The low octet of the type of those that have names.
_NAMES: Final = {0x02: "rt", 0x03: "ro"}
KINDS: Final = (*_NAMES.values(), GENERIC)


class Extended(NamedTuple):
    """``(rt, 10, 20)``."""

    number: int


class Pattern(NamedTuple):
    """``(64512, *)`` or ``(64512, 1..9)`` in a set: all from ``low`` to ``high``."""

    low: tuple[int, ...]
    high: tuple[int, ...]

    def matches(self, value: object) -> bool:
        """True for a community of as many parts in between."""
        if isinstance(value, Extended) or not isinstance(value, tuple):
            return False
        return len(value) == len(self.low) and self.low <= value <= self.high


class ExtendedPattern(NamedTuple):
    """``(rt, 10, *)`` in a set."""

    low: int
    high: int

    def matches(self, value: object) -> bool:
        """True for an extended community in between."""
        return isinstance(value, Extended) and self.low <= value.number <= self.high


def extended_of(octets: bytes) -> tuple[Extended, ...]:
    """The values of a route's attribute."""
    return tuple(
        Extended(int.from_bytes(octets[at : at + 8], "big")) for at in range(0, len(octets), 8)
    )


def make_extended(name: str, key: int | bytes, value: int) -> Extended:
    """A value of one of KINDS; ``key`` is a number, or the octets of an address.

    Raises ValueError for parts that are too large.
    """
    most = largest_value(name, key)
    if value > most:
        raise ValueError(f"Value {value} out of range (0-{most})")
    if name == GENERIC:
        if isinstance(key, bytes):
            raise ValueError("Can't use an address in a generic community")
        return Extended(key << 32 | value)
    sub = next(sub for sub, known in _NAMES.items() if known == name)
    if isinstance(key, bytes):
        return Extended((0x0100 | sub) << 48 | int.from_bytes(key, "big") << 16 | value)
    if key <= 0xFFFF:
        return Extended(sub << 48 | key << 32 | value)
    return Extended((0x0200 | sub) << 48 | key << 16 | value)


def largest_value(name: str, key: int | bytes) -> int:
    """What ``*`` reaches up to beside a key."""
    return 0xFFFFFFFF if name == GENERIC or (isinstance(key, int) and key <= 0xFFFF) else 0xFFFF


def format_extended(octets: bytes) -> str:
    """``(rt, key, value)``, or ``(generic, 0x…, 0x…)`` for what has no name."""
    kind, sub = octets[0] & 0x3F, octets[1]
    name = _NAMES.get(sub)
    if name is None or kind > 2:
        high, low = (int.from_bytes(part, "big") for part in (octets[:4], octets[4:]))
        return f"(generic, 0x{high:x}, 0x{low:x})"
    if kind == 0:
        key = str(int.from_bytes(octets[2:4], "big"))
        value = int.from_bytes(octets[4:], "big")
    else:
        key = format_address(octets[2:6]) if kind == 1 else str(int.from_bytes(octets[2:6], "big"))
        value = int.from_bytes(octets[6:], "big")
    return f"({name}, {key}, {value})"


def format_community(parts: Sequence[int]) -> str:
    """``(a,b)`` of a standard, ``(a, b, c)`` of a large community."""
    return f"({(',' if len(parts) == 2 else ', ').join(map(str, parts))})"
