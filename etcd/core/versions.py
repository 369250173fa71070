"""Versions of keys, and walks through all that are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from etcd.core.pb import kv_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator


class KeyValue(NamedTuple):
    """One version of a key; ``version`` 0 marks a tombstone (then only key and mod count)."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


Changes = tuple[KeyValue, ...]
_GONE = KeyValue(b"", b"", 0, 0, 0, 0)


def kv_message(kv: KeyValue) -> kv_pb2.KeyValue:
    """Return the protobuf form; a tombstone is only its key, as etcd stores it."""
    if not kv.version:
        return kv_pb2.KeyValue(key=kv.key)
    return kv_pb2.KeyValue(
        key=kv.key,
        value=kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease,
    )


class Compaction:
    """A compaction in progress: versions to look at, and those found worth keeping so far.

    ``boundary`` are the changes of its revision that survive it.
    """

    __slots__ = ("boundary", "kept", "rest", "subs")

    def __init__(self, boundary: Changes, rest: Iterator[tuple[int, int, KeyValue]]) -> None:
        self.boundary = boundary
        self.rest = rest
        self.kept: list[KeyValue] = []
        self.subs: dict[tuple[int, bytes], int] = {}


def consume(
    kept: list[KeyValue],
    subs: dict[tuple[int, bytes], int],
    base: int,
    log: list[Changes | KeyValue],
) -> Iterator[tuple[int, int, KeyValue]]:
    """Yield rows as ``Rows`` does and empty the lists: to free a million at once takes a while."""
    nothing: Changes = ()
    for at, kv in enumerate(kept):
        kept[at] = _GONE
        yield kv.mod_revision, subs.get((kv.mod_revision, kv.key), 0), kv
    for at, changes in enumerate(log):
        log[at] = nothing
        if isinstance(changes, KeyValue):
            yield base + at, 0, changes
        else:
            for sub, kv in enumerate(changes):
                yield base + at, sub, kv


class Rows:
    """Stored versions as they were, whatever happens to the store meanwhile.

    Iterating, as often as one likes, yields (main, sub, version) in revision order.
    """

    __slots__ = ("_base", "_kept", "_log", "_subs")

    def __init__(
        self,
        kept: list[KeyValue],
        subs: dict[tuple[int, bytes], int],
        base: int,
        log: list[Changes | KeyValue],
    ) -> None:
        self._kept = kept
        self._subs = subs
        self._base = base
        self._log = log

    def __iter__(self) -> Iterator[tuple[int, int, KeyValue]]:
        subs = self._subs
        for kv in self._kept:
            yield kv.mod_revision, subs.get((kv.mod_revision, kv.key), 0), kv
        for main, changes in enumerate(self._log, self._base):
            if isinstance(changes, KeyValue):
                yield main, 0, changes
            else:
                for sub, kv in enumerate(changes):
                    yield main, sub, kv
