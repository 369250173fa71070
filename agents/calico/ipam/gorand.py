"""Go's math/rand: the additive lagged Fibonacci source and big.Int.Rand (pure).

Theory of operation.  The source is x[k] = x[k-607] + x[k-273] mod 2**64.  ``Seed`` fills its 607
words from a small generator (x' = 48271 x mod 2**31-1) and XORs each with a constant: the state of
the same recurrence, filled in the same way from seed 1, after 7.8e12 steps.  That state is linear
in the first 607 values: its coefficients are X**7.8e12 mod X**607 - X**334 - 1 over Z/2**64, which
43 squarings give.  So no table is kept, and only the words a caller reaches are computed.
Source: Go's math/rand/rng.go and gen_cooked.go (what they compute), math/big Int.Rand.
"""

from __future__ import annotations

import functools
from typing import Final

_LENGTH: Final = 607
_TAP: Final = 273
_FEED: Final = _LENGTH - _TAP
_STEPS: Final = 7_800_000_000_000
_MULTIPLIER: Final = 48271
_MODULUS: Final = (1 << 31) - 1
_MASK: Final = (1 << 64) - 1
# Steps of the small generator before the first word is filled.
_WARM_UP: Final = 20
# A slot of a packed polynomial holds a sum of 607 products of 64-bit numbers.
_SLOT: Final = 144


# Draws of 64 bits one block's choice may take: the first, and more where a value is refused.
_USUAL_DRAWS: Final = 8


def prepare() -> None:
    """Compute what every first draw needs (0.1 s), once for processes that are forked later."""
    source = GoSource(1)
    for _ in range(2 * _USUAL_DRAWS):
        source.uint64()


class GoSource:
    """``rand.New(rand.NewSource(seed))``; words are computed when they are drawn."""

    def __init__(self, seed: int) -> None:
        self._seed = seed % _MODULUS or 89482311
        # Word of each index as far as it is known; the state is updated in place, as Go's.
        self._words: dict[int, int] = {}
        self._tap = 0
        self._feed = _FEED

    def uint64(self) -> int:
        """The next word of the recurrence."""
        self._tap = (self._tap - 1) % _LENGTH
        self._feed = (self._feed - 1) % _LENGTH
        word = (self._word(self._feed) + self._word(self._tap)) & _MASK
        self._words[self._feed] = word
        return word

    def int63(self) -> int:
        """A number of 63 bits."""
        return self.uint64() & (_MASK >> 1)

    def uint32(self) -> int:
        """A number of 32 bits."""
        return self.int63() >> 31

    def below(self, limit: int) -> int:
        """big.Int.Rand on a 64-bit machine: a number 0 … ``limit`` - 1; 0 for limit 0."""
        if limit <= 0:
            return 0
        bits = limit.bit_length()
        words = (bits + 63) // 64
        top = (1 << (bits % 64 or 64)) - 1
        while True:
            value = 0
            for index in range(words):
                word = self.uint32() | self.uint32() << 32
                if index == words - 1:
                    word &= top
                value |= word << (64 * index)
            if value < limit:
                return value

    def _word(self, index: int) -> int:
        word = self._words.get(index)
        if word is None:
            word = self._words[index] = _filled(self._seed, index, 40, 20) ^ _constant(index)
        return word


def _filled(seed: int, index: int, first_shift: int, second_shift: int) -> int:
    """The word ``Seed`` makes of three successive values of the small generator."""
    x = seed * pow(_MULTIPLIER, _WARM_UP + 3 * index + 1, _MODULUS) % _MODULUS
    word = x << first_shift
    x = x * _MULTIPLIER % _MODULUS
    word ^= x << second_shift
    x = x * _MULTIPLIER % _MODULUS
    return (word ^ x) & _MASK


@functools.cache
def _constant(index: int) -> int:
    """The constant of one index: the recurrence from seed 1 after 7.8e12 steps."""
    # Index i holds the last value written to it: that of the step j with 334 - j = i mod 607.
    # The final state's values are numbers _STEPS … _STEPS + 606 of the sequence, oldest first.
    start = (_FEED - index - _STEPS - 1) % _LENGTH
    coefficients, values = _coefficients(), _first_values()
    return sum(map(int.__mul__, coefficients, values[start : start + _LENGTH])) & _MASK


@functools.cache
def _first_values() -> tuple[int, ...]:
    """Twice the length of the sequence from seed 1, oldest first."""
    values = [_filled(1, (_FEED - (n - _LENGTH + 1)) % _LENGTH, 20, 10) for n in range(_LENGTH)]
    for n in range(_LENGTH, 2 * _LENGTH):
        values.append((values[n - _LENGTH] + values[n - _TAP]) & _MASK)
    return tuple(values)


@functools.cache
def _coefficients() -> tuple[int, ...]:
    """X**_STEPS mod X**607 - X**334 - 1 over Z/2**64, lowest power first."""
    result = [1] + [0] * (_LENGTH - 1)
    for bit in f"{_STEPS:b}":
        result = _reduced(_squared(result))
        if bit == "1":
            result = _reduced([0, *result])
    return tuple(result)


def _squared(polynomial: list[int]) -> list[int]:
    """One multiplication of integers does it: each coefficient in a slot of its own."""
    width = _SLOT // 8
    packed = int.from_bytes(b"".join(c.to_bytes(width, "little") for c in polynomial), "little")
    square = (packed * packed).to_bytes(width * 2 * len(polynomial), "little")
    return [
        int.from_bytes(square[at : at + 8], "little")
        for at in range(0, width * (2 * len(polynomial) - 1), width)
    ]


def _reduced(polynomial: list[int]) -> list[int]:
    """Replace X**(607+k) by X**(334+k) + X**k, highest first."""
    for power in range(len(polynomial) - 1, _LENGTH - 1, -1):
        high = polynomial[power]
        polynomial[power - _LENGTH] += high
        polynomial[power - _TAP] += high
    return [c & _MASK for c in polynomial[:_LENGTH]]
