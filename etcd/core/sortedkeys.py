"""An ordered set of byte strings: many keys, cheap insertion, ordered slices.

Keys live in blocks of at most ``MAX_BLOCK`` entries, so an insertion moves a bounded number of
pointers however many keys there are; blocks are found by bisecting their last keys.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Large enough that a million keys need under a thousand blocks, small enough to move in 1 µs.
MAX_BLOCK = 2048


class SortedKeys:
    """Sorted distinct keys; intervals are half-open, ``hi=None`` means no upper end."""

    __slots__ = ("_blocks", "_lasts", "_size")

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        """``keys`` need not be sorted but must be distinct."""
        ordered = sorted(keys)
        half = MAX_BLOCK // 2
        self._blocks = [ordered[i : i + half] for i in range(0, len(ordered), half)]
        self._lasts = [block[-1] for block in self._blocks]
        self._size = len(ordered)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            yield from block

    def add(self, key: bytes) -> None:
        """Insert a key that is not there yet."""
        self._size += 1
        blocks = self._blocks
        if not blocks:
            blocks.append([key])
            self._lasts.append(key)
            return
        at = bisect_left(self._lasts, key)
        if at == len(blocks):
            at -= 1
            blocks[at].append(key)
            self._lasts[at] = key
        else:
            insort(blocks[at], key)
        block = blocks[at]
        if len(block) > MAX_BLOCK:
            half = MAX_BLOCK // 2
            blocks[at : at + 1] = [block[:half], block[half:]]
            self._lasts[at : at + 1] = [block[half - 1], block[-1]]

    def remove(self, key: bytes) -> None:
        """Take out a key that is there."""
        at = bisect_left(self._lasts, key)
        block = self._blocks[at]
        del block[bisect_left(block, key)]
        self._size -= 1
        if not block:
            del self._blocks[at]
            del self._lasts[at]
        else:
            self._lasts[at] = block[-1]

    def slice(self, lo: bytes, hi: bytes | None) -> list[bytes]:
        """Return the keys of ``[lo, hi)`` in order."""
        if hi is not None and hi <= lo:
            return []
        blocks = self._blocks
        first = bisect_left(self._lasts, lo)
        if first == len(blocks):
            return []
        last = len(blocks) - 1 if hi is None else bisect_left(self._lasts, hi, first)
        start = bisect_left(blocks[first], lo)
        if last >= len(blocks):
            last, hi = len(blocks) - 1, None
        stop = len(blocks[last]) if hi is None else bisect_left(blocks[last], hi)
        if first == last:
            return blocks[first][start:stop]
        found = blocks[first][start:]
        for block in blocks[first + 1 : last]:
            found += block
        found += blocks[last][:stop]
        return found
