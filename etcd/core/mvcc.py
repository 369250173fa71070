"""The multi-version store: every revision of every key since the last compaction.

Theory of operation.  Each transaction that changes something gets the next main revision; its
changes are numbered 0, 1, ... (the sub revision).  A change is a ``KeyValue``; a deletion is a
``KeyValue`` with version 0, called a tombstone.  ``_live`` maps each existing key to its newest
version, ``_past`` holds the older versions (and a final tombstone) of the keys that have any, and
``_log`` lists the changes by main revision for watches that start in the past.  Compaction at R
keeps, per key, the newest version <= R: reads at R stay possible, older ones do not.

Sources: etcd server/mvcc/{kvstore,kvstore_txn,key_index,index}.go.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain, islice
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from etcd.core.crc32c import crc32c
from etcd.core.errors import COMPACTED, FUTURE_REVISION, EtcdError
from etcd.core.sortedkeys import SortedKeys
from etcd.core.versions import Changes, Compaction, KeyValue, Rows, consume, kv_message

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

# The types of versions are as much part of this module's face as the store.
__all__ = ["Changes", "Found", "KeyValue", "Rows", "Store", "WriteTxn", "interval", "kv_message"]


class Found(NamedTuple):
    """A range's outcome: the entries (cut at the limit), all matches, the store's revision."""

    kvs: list[KeyValue]
    total: int
    revision: int


# Versions to go on with a compaction between two looks at the clock: about a millisecond.
COMPACT_SLICE_ROWS = 500
# Rows hashed between two yields of ``hash_kv``: about a millisecond.
HASH_SLICE_ROWS = 500
_mod_revision = attrgetter("mod_revision")


def interval(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None] | None:
    """Return ``[lo, hi)`` of a range request, or None when it names exactly one key."""
    if not range_end:
        return None
    return key, None if range_end == b"\0" else range_end


class Store:
    """All keys and their history, in memory."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = -1
        # Bytes of keys and values in the history; the "database size" of Status.
        self.size = 0
        self._live: dict[bytes, KeyValue] = {}
        self._past: dict[bytes, list[KeyValue]] = {}
        self._keys = SortedKeys()
        # _log[i] holds the changes of revision _log_base + i; a single change stands for itself,
        # which saves a tuple for each of the many one-key revisions.
        self._log: list[Changes | KeyValue] = []
        self._log_base = 2
        # Versions a compaction kept, in revision order, and those of their sub revisions not 0.
        self._kept: list[KeyValue] = []
        self._kept_subs: dict[tuple[int, bytes], int] = {}
        # A compaction that is not done; ``_kept`` is empty meanwhile.
        self._compaction: Compaction | None = None
        self.compacted_rows = 0

    def __len__(self) -> int:
        """Count the keys that exist now."""
        return len(self._live)

    # Reading -------------------------------------------------------------------------------

    def check_revision(self, revision: int) -> None:
        """Raise EtcdError when a read at ``revision`` (<= 0: now) is impossible."""
        if revision > self.revision:
            raise EtcdError(*FUTURE_REVISION)
        if 0 < revision < self.compacted:
            raise EtcdError(*COMPACTED)

    def get(self, key: bytes) -> KeyValue | None:
        """Return the newest version of a key that exists."""
        return self._live.get(key)

    def get_at(self, key: bytes, revision: int) -> KeyValue | None:
        """Return the version a read at ``revision`` sees (any sub revision), None if deleted."""
        kv = self._live.get(key)
        if kv is not None and kv.mod_revision <= revision:
            return kv
        past = self._past.get(key)
        if past is None:
            return None
        at = bisect_right(past, revision, key=_mod_revision)
        if at == 0:
            return None
        kv = past[at - 1]
        return kv if kv.version else None

    def previous(self, key: bytes, mod_revision: int) -> KeyValue | None:
        """Return what a change at ``mod_revision`` replaced, None if compacted or nothing."""
        if mod_revision - 1 < self.compacted:
            return None
        return self.get_at(key, mod_revision - 1)

    def range(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        revision: int = 0,
        limit: int = 0,
        count_only: bool = False,
    ) -> Found:
        """Return the matches in key order, at most ``limit`` of them if it is positive.

        Raises EtcdError for a future or a compacted revision.
        """
        self.check_revision(revision)
        now = self.revision
        bounds = interval(key, range_end)
        if bounds is None:
            kv = self._live.get(key) if revision <= 0 else self.get_at(key, revision)
            if kv is None:
                return Found([], 0, now)
            return Found([] if count_only else [kv], 1, now)
        keys = self._keys.slice(*bounds)
        live = self._live
        if revision <= 0:
            if limit > 0 and len(live) == len(self._keys):
                return Found([] if count_only else [live[k] for k in keys[:limit]], len(keys), now)
            kvs = [kv for k in keys if (kv := live.get(k)) is not None]
        else:
            get_at = self.get_at
            kvs = [kv for k in keys if (kv := get_at(k, revision)) is not None]
        count = len(kvs)
        if count_only:
            return Found([], count, now)
        return Found(kvs[:limit] if limit > 0 else kvs, count, now)

    def changes_at(self, revision: int) -> Changes:
        """Return the changes of a revision in order, () if it had none.

        Of the compacted revision only what survived is known; before it, nothing is asked for.
        """
        at = revision - self._log_base
        if 0 <= at < len(self._log):
            entry = self._log[at]
            return (entry,) if isinstance(entry, KeyValue) else entry
        if self._compaction is not None:
            return self._compaction.boundary if revision == self.compacted else ()
        found = []
        for kv in reversed(self._kept):
            if kv.mod_revision < revision:
                break
            if kv.mod_revision == revision:
                found.append(kv)
        return tuple(reversed(found))

    # Writing -------------------------------------------------------------------------------

    def write(self) -> WriteTxn:
        """Begin a transaction; nothing else may read or write until ``end``."""
        return WriteTxn(self)

    def apply(self, revision: int, changes: Changes) -> None:
        """Put recorded changes in as ``revision`` (recovery)."""
        for kv in changes:
            self._install(kv, self._live.get(kv.key))
        self._append(revision, changes)

    def _append(self, revision: int, changes: Changes) -> None:
        log = self._log
        if not log:
            self._log_base = revision
        while self._log_base + len(log) < revision:
            log.append(())
        log.append(changes[0] if len(changes) == 1 else changes)
        self.revision = revision

    def _install(self, kv: KeyValue, old: KeyValue | None) -> None:
        """Make ``kv`` the newest version of its key, which was ``old``."""
        key = kv.key
        self.size += len(key) + len(kv.value)
        if old is not None:
            past = self._past.get(key)
            if past is None:
                self._past[key] = [old]
            else:
                past.append(old)
        elif key not in self._past:
            self._keys.add(key)
        if kv.version:
            self._live[key] = kv
        else:
            self._live.pop(key, None)
            self._past.setdefault(key, []).append(kv)

    # Compaction ----------------------------------------------------------------------------

    def compact(self, revision: int) -> None:
        """Forget versions no read at or after ``revision`` can see; EtcdError as etcd's.

        They are out of sight at once; ``compact_some`` then gives their room back.
        """
        if revision <= self.compacted:
            raise EtcdError(*COMPACTED)
        if revision > self.revision:
            raise EtcdError(*FUTURE_REVISION)
        boundary = tuple(
            kv for kv in self.changes_at(revision) if self._newest_at_most(kv.key, revision) is kv
        )
        drop = max(0, revision + 1 - self._log_base)
        rest = consume(self._kept.copy(), self._kept_subs, self._log_base, self._log[:drop])
        before = self._compaction
        if before is not None:
            # It was not done: what it kept is looked at again, then what it had left.
            rest = chain(consume(before.kept, before.subs, 0, []), before.rest, rest)
        self._compaction = Compaction(boundary, rest)
        self._kept, self._kept_subs = [], {}
        if drop:
            del self._log[:drop]
            self._log_base = revision + 1
        self.compacted = revision

    @property
    def compacting(self) -> bool:
        """Whether a compaction still holds room it will give back."""
        return self._compaction is not None

    def compact_some(self, limit: int) -> bool:
        """Go on with a compaction, at most so many versions; whether there is more to do."""
        work = self._compaction
        if work is None:
            return False
        revision, count = self.compacted, 0
        for main, sub, kv in islice(work.rest, limit):
            count += 1
            if self._newest_at_most(kv.key, revision) is kv and (kv.version or main == revision):
                work.kept.append(kv)
                if sub:
                    work.subs[main, kv.key] = sub
            else:
                self.size -= len(kv.key) + len(kv.value)
                self.compacted_rows += 1
            if kv.key in self._past:
                self._trim(kv.key, revision)
        if count == limit:
            return True
        self._kept, self._kept_subs = work.kept, work.subs
        self._compaction = None
        return False

    def _newest_at_most(self, key: bytes, revision: int) -> KeyValue | None:
        live = self._live.get(key)
        if live is not None and live.mod_revision <= revision:
            return live
        past = self._past.get(key, [])
        at = bisect_right(past, revision, key=_mod_revision)
        return past[at - 1] if at else None

    def _trim(self, key: bytes, revision: int) -> None:
        past = self._past[key]
        live = self._live.get(key)
        if live is not None and live.mod_revision <= revision:
            del self._past[key]
            return
        at = bisect_right(past, revision, key=_mod_revision)
        if at:
            newest = past[at - 1]
            keep = newest.version or newest.mod_revision == revision
            del past[: at - 1 if keep else at]
        if not past:
            del self._past[key]
            if live is None:
                self._keys.remove(key)

    # Whole-store views ---------------------------------------------------------------------

    def rows(self, upto: int | None = None) -> Rows:
        """Return every stored version in revision order, as of this moment.

        A compaction that is not done is finished first, at once.
        """
        while self.compact_some(COMPACT_SLICE_ROWS):
            pass
        stop = len(self._log) if upto is None else max(0, upto + 1 - self._log_base)
        return Rows(self._kept, self._kept_subs, self._log_base, self._log[:stop])

    def hash_kv(self, revision: int) -> Generator[None, None, tuple[int, int]]:
        """Return (crc32c as HashKV gives it, compacted revision) at ``revision`` (0: now).

        Resume the generator until it returns; the hash is of the moment it was first resumed.

        Source: server/mvcc/hash.go, kvstore.go hashByRev.
        """
        if 0 < revision <= self.compacted:
            raise EtcdError(*COMPACTED)
        if revision > self.revision:
            raise EtcdError(*FUTURE_REVISION)
        compacted = self.compacted
        rows = self.rows(revision or self.revision)
        # Only the rows of before the compaction need to know whether something newer follows.
        newest: dict[bytes, int] = {}
        dead: set[bytes] = set()
        for count, (_, _, kv) in enumerate(rows):
            newest[kv.key] = count
            if kv.version:
                dead.discard(kv.key)
            else:
                dead.add(kv.key)
            if count % HASH_SLICE_ROWS == 0:
                yield
        keep_nothing = len(dead) == len(newest)
        crc = crc32c(b"key")
        parts: list[bytes] = []
        for count, (main, sub, kv) in enumerate(rows):
            if count % HASH_SLICE_ROWS == 0:
                crc = crc32c(b"".join(parts), crc)
                parts.clear()
                yield
            outdated = newest[kv.key] != count or kv.key in dead
            if outdated and main <= compacted and not keep_nothing:
                continue
            mark = b"" if kv.version else b"t"
            parts.append(main.to_bytes(8, "big") + b"_" + sub.to_bytes(8, "big") + mark)
            parts.append(kv_message(kv).SerializeToString(deterministic=True))
        return crc32c(b"".join(parts), crc), compacted

    def restore(
        self, revision: int, compacted: int, rows: Iterable[tuple[int, int, KeyValue]]
    ) -> None:
        """Fill an empty store from a snapshot's rows (in revision order)."""
        assert not self._live, "restore needs an empty store"
        assert not self._past, "restore needs an empty store"
        self.compacted = compacted
        group: list[KeyValue] = []
        group_main = 0
        fresh: dict[bytes, None] = {}
        for main, sub, kv in rows:
            self._restore_row(kv, fresh)
            if main <= compacted:
                self._kept.append(kv)
                if sub:
                    self._kept_subs[main, kv.key] = sub
                continue
            if main != group_main and group:
                self._append(group_main, tuple(group))
                group = []
            group_main = main
            group.append(kv)
        if group:
            self._append(group_main, tuple(group))
        self._keys = SortedKeys(fresh)
        if not self._log:
            self._log_base = revision + 1
        self.revision = revision

    def _restore_row(self, kv: KeyValue, fresh: dict[bytes, None]) -> None:
        key = kv.key
        fresh[key] = None
        self.size += len(key) + len(kv.value)
        old = self._live.pop(key, None)
        if old is not None:
            self._past.setdefault(key, []).append(old)
        if kv.version:
            self._live[key] = kv
        else:
            self._past.setdefault(key, []).append(kv)

    def live(self) -> Iterator[KeyValue]:
        """Yield the keys that exist now, in no particular order of keys but a stable one."""
        return iter(self._live.values())


class WriteTxn:
    """One transaction: reads see its own writes, ``end`` gives its changes."""

    __slots__ = ("_changes", "_store", "revision")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changes: list[KeyValue] = []
        self.revision = store.revision + 1

    @property
    def seen_revision(self) -> int:
        """The revision responses inside this transaction carry."""
        return self.revision if self._changes else self.revision - 1

    def put(self, key: bytes, value: bytes, lease: int) -> KeyValue | None:
        """Write a key; return the version it replaced."""
        store, revision = self._store, self.revision
        old = store._live.get(key)
        if old is None:
            kv = KeyValue(key, value, revision, revision, 1, lease)
        else:
            kv = KeyValue(key, value, old.create_revision, revision, old.version + 1, lease)
        store._install(kv, old)
        self._changes.append(kv)
        return old

    def delete_range(self, key: bytes, range_end: bytes) -> list[KeyValue]:
        """Delete the existing keys of a range; return what they were, in key order."""
        old = self._store.range(key, range_end).kvs
        for kv in old:
            tombstone = KeyValue(kv.key, b"", 0, self.revision, 0, 0)
            self._store._install(tombstone, kv)
            self._changes.append(tombstone)
        return old

    def end(self) -> Changes:
        """Finish; the store's revision moves on if anything changed."""
        changes = tuple(self._changes)
        if changes:
            self._store._append(self.revision, changes)
        return changes
