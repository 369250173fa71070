"""A datastore in memory with etcd's meanings, for tests that need no etcd."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agents.calico.datastore import (
    Change,
    Check,
    Create,
    Delete,
    Query,
    Snapshot,
    Unchanged,
    Update,
    Write,
    decode_answer,
    decode_change,
    encode,
    key_of,
    refusal,
)
from etcd.client import CompactedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agents.calico.datastore import KVPair


class MemoryDatastore:
    """Compare-and-swap on a dict of bytes, with history for watches.

    ``before`` is awaited before every read and commit: where a test lets others in.
    """

    def __init__(self, before: Callable[[str, tuple[str, ...]], Awaitable[None]] | None = None):
        self.revision = 1
        self.before = before
        self._data: dict[str, tuple[bytes, int]] = {}
        self._history: list[tuple[int, str, bytes | None]] = []
        self._compacted = 0
        self._changed = asyncio.Event()

    def keys(self, prefix: str = "") -> list[str]:
        """All keys with a prefix, sorted."""
        return sorted(key for key in self._data if key.startswith(prefix))

    def raw(self, key: str) -> bytes:
        """A key's bytes."""
        return self._data[key][0]

    def put(self, key: str, value: Any) -> None:
        """Write unconditionally, as somebody with etcdctl does; bytes go as they are."""
        self.revision += 1
        self._put(key, value if isinstance(value, bytes) else encode(value))
        self._wake()

    def remove(self, key: str) -> None:
        """Delete unconditionally."""
        self.revision += 1
        self._delete(key)
        self._wake()

    def compact(self) -> None:
        """Forget the history so far."""
        self._history.clear()
        self._compacted = self.revision

    async def read(self, *queries: Query) -> Snapshot:
        """See ``Datastore.read``."""
        if self.before is not None:
            await self.before("read", tuple(query.key for query in queries))
        return Snapshot(tuple(self._answer(query) for query in queries), self.revision)

    async def commit(self, *writes: Write) -> int:
        """See ``Datastore.commit``."""
        if self.before is not None:
            await self.before("commit", tuple(key_of(write) for write in writes))
        revisions = {key_of(write): self._data.get(key_of(write), (b"", 0))[1] for write in writes}
        if not all(
            self._is_unchanged(write)
            if isinstance(write, Unchanged)
            else _holds(write, revisions[key_of(write)])
            for write in writes
        ):
            raise refusal(writes, revisions)
        if all(isinstance(write, Check | Unchanged) for write in writes):
            return self.revision
        self.revision += 1
        for write in writes:
            match write:
                case Create(key, value):
                    self._put(key, encode(value))
                case Update(kvp):
                    self._put(kvp.key, encode(kvp.value))
                case Delete(key):
                    self._delete(key)
        self._wake()
        return self.revision

    def watch(
        self, prefix: str, *, from_revision: int, only: tuple[str, ...] = ()
    ) -> MemoryChanges:
        """See ``Datastore.watch``."""
        return MemoryChanges(self, only or (prefix,), from_revision)

    def since(self, prefixes: tuple[str, ...], revision: int) -> tuple[Change, ...]:
        """The changes from a revision on."""
        if revision <= self._compacted:
            raise CompactedError(self._compacted)
        return tuple(
            decode_change(key, data, at)
            for at, key, data in self._history
            if at >= revision and key.startswith(prefixes)
        )

    async def wait(self) -> None:
        """Until the next change."""
        await self._changed.wait()

    def _answer(self, query: Query) -> tuple[KVPair, ...]:
        if query.prefix:
            keys = self.keys(query.key)
        else:
            keys = [query.key] if query.key in self._data else []
        return decode_answer(query, ((key, *self._data[key]) for key in keys))

    def _is_unchanged(self, guard: Unchanged) -> bool:
        return all(
            revision <= guard.revision
            for key, (_, revision) in self._data.items()
            if key.startswith(guard.key)
        )

    def _put(self, key: str, data: bytes) -> None:
        self._data[key] = (data, self.revision)
        self._history.append((self.revision, key, data))

    def _delete(self, key: str) -> None:
        if self._data.pop(key, None) is not None:
            self._history.append((self.revision, key, None))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class MemoryChanges:
    """A watch of a MemoryDatastore."""

    def __init__(self, store: MemoryDatastore, prefixes: tuple[str, ...], revision: int) -> None:
        self._store = store
        self._prefixes = prefixes
        self._next = revision

    async def __aenter__(self) -> MemoryChanges:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    def __aiter__(self) -> MemoryChanges:
        return self

    async def __anext__(self) -> tuple[Change, ...]:
        while True:
            changes = self._store.since(self._prefixes, self._next)
            if changes:
                self._next = changes[-1].kvp.revision + 1
                return changes
            await self._store.wait()


def _holds(write: Create | Update | Check | Delete, now: int) -> bool:
    match write:
        case Create():
            return not now
        case Update(kvp):
            return now == kvp.revision and now > 0
        case Check(_, revision):
            return now == revision
        case Delete(_, revision):
            return now > 0 and revision in (0, now)
