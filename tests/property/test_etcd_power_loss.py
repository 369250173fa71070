"""The power fails at any write: what was acknowledged is found again, and nothing refuses to start.

A disk that keeps only what was synced, and of the rest whatever it likes: each write whole, in part
or not at all, names in the order they were given up to some point.
"""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd.core.engine import Engine
from etcd.core.pb import rpc_pb2 as pb
from etcd.server import storage as storage_module
from etcd.server.storage import Storage

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

SECTOR = 512


class PowerLossError(Exception):
    """The moment the machine stops."""


class File:
    """One file: what is on the platter, and the writes that may still be on their way."""

    def __init__(self) -> None:
        self.durable = b""
        self.size = 0
        self.pending: list[tuple[int, bytes]] = []

    def after_crash(self, rng: random.Random) -> bytes:
        data = bytearray(self.durable)
        for at, piece in self.pending:
            # A sector is written or not; which ones nobody knows.
            fate = rng.choice(("lost", "whole", "torn"))
            for start in range(0, len(piece), SECTOR):
                if fate == "lost" or (fate == "torn" and rng.random() < 0.5):
                    continue
                part = piece[start : start + SECTOR]
                end = at + start + len(part)
                data.extend(bytes(max(0, end - len(data))))
                data[at + start : end] = part
        return bytes(data)


class Disk:
    """Stands in for ``os`` in the storage module; writes through to a real directory."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._files: dict[int, File] = {}  # by inode
        self._names: dict[str, int] = {}  # durable names
        self._renames: list[tuple[str, str | None, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _spend(self) -> None:
        self._budget -= 1
        if self._budget < 0:
            raise PowerLossError

    def _file(self, fd: int) -> File:
        return self._files.setdefault(os.fstat(fd).st_ino, File())

    def pwrite(self, fd: int, data: bytes, at: int) -> int:
        self._file(fd).pending.append((at, bytes(data)))
        written = os.pwrite(fd, data, at)
        self._spend()
        return written

    def ftruncate(self, fd: int, size: int) -> None:
        self._sync(fd)
        os.ftruncate(fd, size)
        self._sync(fd)

    def fdatasync(self, fd: int) -> None:
        self._spend()
        self._sync(fd)

    def _sync(self, fd: int) -> None:
        file = self._file(fd)
        file.durable = os.pread(fd, os.fstat(fd).st_size, 0)
        file.pending = []

    def fsync(self, fd: int) -> None:
        """Only directories are synced this way: their names are durable from here on."""
        self._spend()
        for name, old, inode in self._renames:
            self._apply(name, old, inode)
        self._renames = []

    def _apply(self, name: str, old: str | None, inode: int) -> None:
        if old is not None:
            self._names.pop(old, None)
        if inode:
            self._names[name] = inode
        else:
            self._names.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)
        self._renames.append((new, old, os.stat(new).st_ino))
        self._spend()

    def unlink(self, path: str) -> None:
        os.unlink(path)
        self._renames.append((path, None, 0))
        self._spend()

    def crash(self, rng: random.Random, source: str, target: str) -> None:
        """Lay out in ``target`` what a machine finds that starts again."""
        for name, old, inode in self._renames[: rng.randint(0, len(self._renames))]:
            self._apply(name, old, inode)
        for directory in ("wal", "snap"):
            os.makedirs(os.path.join(target, directory), exist_ok=True)
        for name, inode in self._names.items():
            path = os.path.join(target, os.path.relpath(name, source))
            with open(path, "wb") as file:
                file.write(self._files[inode].after_crash(rng))


class SnapshotFile:
    """What ``open(path, "wb", buffering=0)`` gives the storage, over a disk."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._at = 0

    def __enter__(self) -> SnapshotFile:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def write(self, data: bytes) -> int:
        self._at += self._disk.pwrite(self._fd, data, self._at)
        return len(data)

    def fileno(self) -> int:
        return self._fd

    def tell(self) -> int:
        return self._at


def _digest(engine: Engine) -> tuple[object, ...]:
    leases = tuple(sorted((lease.id, lease.ttl_s) for lease in engine.leases))
    return tuple(engine.store.rows()), engine.store.compacted, leases


def _work(rng: random.Random, engine: Engine) -> None:
    roll = rng.random()
    if roll < 0.7:
        value = rng.randbytes(rng.choice((3, 3, 700, 3000)))
        engine.put(pb.PutRequest(key=b"k%d" % rng.randrange(6), value=value))
    elif roll < 0.8:
        engine.delete_range(pb.DeleteRangeRequest(key=b"k", range_end=b"k3"))
    elif roll < 0.9:
        engine.lease_grant(engine.raft_index + 1000, 60, now=0.0)
    elif engine.store.compacted < engine.store.revision:
        engine.compact(pb.CompactionRequest(revision=engine.store.revision))


@settings(deadline=None, max_examples=60)
@given(rng=st.randoms(use_true_random=False), budget=st.integers(2, 120))
def test_what_was_synced_survives_a_power_loss_at_any_write(
    rng: random.Random, budget: int
) -> None:
    with tempfile.TemporaryDirectory() as base, pytest.MonkeyPatch.context() as patch:
        source, target = os.path.join(base, "before"), os.path.join(base, "after")
        disk = Disk(budget)

        def opened(path: str, mode: str, **options: Any) -> Any:
            return SnapshotFile(disk, path) if "w" in mode else open(path, mode, **options)

        patch.setattr(storage_module, "os", disk)
        patch.setattr(storage_module, "open", opened, raising=False)
        patch.setattr(storage_module, "FIRST_FILL_BYTES", 4096)
        patch.setattr(storage_module, "FILL_BYTES", 16384)
        patch.setattr(storage_module, "LOW_BYTES", 2048)
        storage = Storage(source, sync=True)
        engine = Engine(11, 22)
        states = [_digest(engine)]
        acknowledged = 0
        snapshot: Iterator[None] | None = None
        began = False
        try:
            storage.load(engine)
            began = True
            while True:
                _work(rng, engine)
                states.append(_digest(engine))
                records = engine.take_records()
                engine.take_commits()
                if records:
                    storage.append(records)
                acknowledged = len(states) - 1
                if snapshot is None and rng.random() < 0.15:
                    snapshot = storage.write_snapshot(engine.snapshot(storage.sequence))
                if snapshot is not None and next(snapshot, errno.ENODATA) is errno.ENODATA:
                    snapshot = None
        except PowerLossError:
            pass
        patch.undo()
        if snapshot is not None:
            snapshot.close()  # type: ignore[attr-defined]  # a generator
        storage.close()
        disk.crash(rng, source, target)
        again = Storage(target, sync=False)
        found = Engine(11, 22)
        try:
            again.load(found)
        finally:
            again.close()
        # Everything acknowledged, perhaps the write that was under way, nothing else.
        assert _digest(found) in states[acknowledged : acknowledged + 2]
        assert began or acknowledged == 0
