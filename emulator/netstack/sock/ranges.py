"""Sorted, disjoint ranges of sequence space: what was SACKed, what arrived out of order."""

from __future__ import annotations

from bisect import bisect_left
from operator import itemgetter

_END = itemgetter(1)


class RangeSet:
    """Half-open ranges [start, end) of unwrapped sequence numbers, merged where they touch."""

    __slots__ = ("ranges", "total")

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.total = 0

    def add(self, start: int, end: int) -> list[tuple[int, int]]:
        """Take [start, end) in; return the parts of it that were not there before."""
        ranges = self.ranges
        first = last = bisect_left(ranges, start, key=_END)
        fresh: list[tuple[int, int]] = []
        position, left, right = start, start, end
        while last < len(ranges) and ranges[last][0] <= end:
            have_start, have_end = ranges[last]
            if position < have_start:
                fresh.append((position, have_start))
            position = max(position, have_end)
            left = min(left, have_start)
            right = max(right, have_end)
            last += 1
        if position < end:
            fresh.append((position, end))
        ranges[first:last] = [(left, right)]
        self.total += sum(stop - begin for begin, stop in fresh)
        return fresh

    def trim_below(self, edge: int) -> None:
        """Forget everything below ``edge``."""
        ranges = self.ranges
        while ranges and ranges[0][0] < edge:
            start, end = ranges[0]
            if end <= edge:
                del ranges[0]
                self.total -= end - start
            else:
                ranges[0] = (edge, end)
                self.total -= edge - start

    def clear(self) -> None:
        self.ranges.clear()
        self.total = 0

    def covered(self, start: int, end: int) -> int:
        """Number of positions of [start, end) that are in the set."""
        return sum(
            max(0, min(end, have_end) - max(start, have_start))
            for have_start, have_end in self.ranges
        )

    def next_gap(self, start: int, end: int) -> tuple[int, int] | None:
        """The first hole at or after ``start`` and before ``end``."""
        for have_start, have_end in self.ranges:
            if start < have_start:
                break
            start = max(start, have_end)
        else:
            return (start, end) if start < end else None
        return (start, min(end, have_start)) if start < end else None
