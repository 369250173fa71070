"""Permissions on keys: what a role grants, merged into sets of keys that can be asked.

Source: etcd server/auth/range_perm_cache.go.  A permission names a key, a range ``[key, end)``, or
everything from a key on (``range_end`` one zero byte).  A user may do what any of his roles grants,
and a range is granted when the union of the permissions covers it, whichever of them do.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from etcd.core.pb import auth_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

# range_end meaning "no end", as in Range and Watch requests.
OPEN_END = b"\0"

_READS = (auth_pb2.Permission.READ, auth_pb2.Permission.READWRITE)
_WRITES = (auth_pb2.Permission.WRITE, auth_pb2.Permission.READWRITE)


class Permission(NamedTuple):
    """One grant of a role."""

    kind: auth_pb2.Permission.Type.ValueType
    key: bytes
    range_end: bytes

    def message(self) -> auth_pb2.Permission:
        return auth_pb2.Permission(permType=self.kind, key=self.key, range_end=self.range_end)

    @classmethod
    def of(cls, message: auth_pb2.Permission) -> Permission:
        return cls(message.permType, message.key, message.range_end)


def is_valid_range(key: bytes, range_end: bytes) -> bool:
    """Whether a permission on this range could ever grant anything."""
    if not key:
        return False
    return not range_end or key < range_end or range_end == OPEN_END


def _bounds(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """Return [lo, hi) of a key or range; ``None``: no end."""
    if not range_end:
        return key, key + b"\0"
    return key, None if range_end == OPEN_END else range_end


class KeySet:
    """A union of intervals, kept as disjoint ones in order."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, intervals: Iterable[tuple[bytes, bytes | None]]) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes | None] = []
        for lo, hi in sorted(intervals, key=lambda pair: pair[0]):
            if hi is not None and hi <= lo:
                continue
            last = self._ends[-1] if self._ends else b""
            if self._ends and (last is None or lo <= last):
                if last is not None and (hi is None or hi > last):
                    self._ends[-1] = hi
            else:
                self._starts.append(lo)
                self._ends.append(hi)

    def covers(self, key: bytes, range_end: bytes) -> bool:
        """Whether every key of a key or range is in the set.

        A range that is empty (its end before its start) is covered where its start is, as etcd's
        interval tree has it.
        """
        at = bisect_right(self._starts, key) - 1
        if at < 0:
            return False
        end = self._ends[at]
        if end is None:
            return True
        lo, hi = _bounds(key, range_end)
        return lo < end and hi is not None and hi <= end


class MergedPermissions:
    """What all roles of a user grant together."""

    __slots__ = ("reads", "writes")

    def __init__(self, permissions: Iterable[Permission]) -> None:
        given = [(entry.kind, _bounds(entry.key, entry.range_end)) for entry in permissions]
        self.reads = KeySet(bounds for kind, bounds in given if kind in _READS)
        self.writes = KeySet(bounds for kind, bounds in given if kind in _WRITES)
