"""The data directory: write-ahead log segments, snapshots, a lock.

``<data_dir>/wal/<first sequence>.wal`` and ``<data_dir>/snap/<next sequence>.snap``.  Every file
appears under its name only when its beginning is on disk (written as ``.tmp``, synced, renamed,
directory synced).  A segment is filled with zeros ahead of use: overwriting allocated blocks makes
fdatasync cheaper, and a full disk shows before a write needs the room.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from time import perf_counter
from typing import TYPE_CHECKING

from emulator.errors import PodwireError, UsageError
from etcd.core import wal
from etcd.core.counts import DURATION_BOUNDS_S, Histogram
from etcd.core.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etcd.core.engine import Engine

# Zeros written ahead: first a little for a quick start, then enough to amortise the fill.
FIRST_FILL_BYTES = 512 * 1024
FILL_BYTES = 1024 * 1024
# Zeros are written in pages: Linux keeps a large write as one large folio and every sync of a few
# bytes in it then writes all of it to the disk (2 MiB instead of 4 KiB, measured on 6.18).
FILL_PIECE = bytes(4096)
# Room that must stay ahead; below it the log is filled further.
LOW_BYTES = 128 * 1024
# A snapshot in the making is synced every so many bytes, so that no single sync takes long.
SNAPSHOT_SYNC_BYTES = 4 * 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoSpaceError(PodwireError):
    """The log could not take a write; nothing of it was kept."""


class StorageError(PodwireError):
    """The disk failed a write or a sync: what it holds is unknown, so the server must stop."""


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        at += written
        view = view[written:]


def _write_zeros(fd: int, at: int, size: int) -> None:
    """Write zeros up to ``at + size`` and the end of its page."""
    piece = len(FILL_PIECE)
    if at % piece:
        _write_all(fd, FILL_PIECE[at % piece :], at)
    for start in range(-(-at // piece) * piece, at + size, piece):
        _write_all(fd, FILL_PIECE, start)


class Storage:
    """The open data directory of one server."""

    def __init__(self, data_dir: str, *, sync: bool) -> None:
        """Open (or make) and lock the directory; UsageError when that cannot be."""
        self._sync = sync
        self._wal_dir = os.path.join(data_dir, "wal")
        self._snap_dir = os.path.join(data_dir, "snap")
        self._fd = -1
        self._lock_fd = -1
        self._offset = 0
        self._filled = 0
        self._fill = FIRST_FILL_BYTES
        self._writer = wal.FrameWriter(0)
        self._header = wal.FileHeader(0, 0, 0)
        # Log bytes no snapshot covers yet, and the size of the newest snapshot.
        self.log_bytes = 0
        self.snapshot_size = 0
        # Set when filling ahead failed: the disk is full although this write still went through.
        self.disk_full = False
        # Seconds of each sync of the log, and of each append as a whole; bytes appended.
        self.fsync_s = Histogram(DURATION_BOUNDS_S)
        self.commit_s = Histogram(DURATION_BOUNDS_S)
        self.written = 0
        try:
            if os.path.isdir(os.path.join(data_dir, "member")):
                raise UsageError(
                    f"{data_dir} holds a real etcd's data (member/); choose another data directory"
                )
            for path in (data_dir, self._wal_dir, self._snap_dir):
                os.makedirs(path, mode=0o700, exist_ok=True)
            self._lock_fd = os.open(os.path.join(data_dir, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise UsageError(f"{data_dir} is in use by another etcd process") from None
        except OSError as error:
            raise UsageError(f"data directory {data_dir}: {error.strerror}") from None

    def close(self) -> None:
        """Close the files; what was appended stays."""
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock_fd = -1

    # Recovery ------------------------------------------------------------------------------

    def identity(self) -> tuple[int, int] | None:
        """Return (cluster id, member id) of an existing directory, None for a fresh one."""
        names = self._names(self._wal_dir, ".wal")
        if not names:
            return None
        path = os.path.join(self._wal_dir, names[0])
        with open(path, "rb") as file:
            data = file.read(wal.FILE_HEADER_BYTES)
        header = wal.FileHeader.parse(data, wal.SEGMENT_MAGIC, path)
        return header.cluster_id, header.member_id

    def load(self, engine: Engine) -> None:
        """Bring an empty engine to the stored state and make the log ready for appending.

        Raises CorruptionError when acknowledged data are damaged or missing.
        """
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        for directory in (self._wal_dir, self._snap_dir):
            for name in self._names(directory, ".tmp"):
                os.unlink(os.path.join(directory, name))
        sequence = self._load_snapshot(engine)
        self._header = wal.FileHeader(engine.cluster_id, engine.member_id, 0)
        names = self._names(self._wal_dir, ".wal")
        names = [name for name in names if self._needed(name, names, sequence)]
        if not names:
            if sequence:
                raise CorruptionError(
                    f"{self._wal_dir}: the log after the snapshot is missing; "
                    "restore the directory from a backup"
                )
            self._writer = wal.FrameWriter(0)
            self._create_segment()
            return
        self._replay(engine, names, sequence)

    def create(self, engine: Engine) -> None:
        """Fill a fresh directory with an engine's state."""
        self._header = wal.FileHeader(engine.cluster_id, engine.member_id, 0)
        # The log begins at 1: a snapshot's number is never 0.
        self._writer = wal.FrameWriter(1)
        for _ in self.write_snapshot(engine.snapshot(self.sequence)):
            pass

    @staticmethod
    def _names(directory: str, suffix: str) -> list[str]:
        return sorted(name for name in os.listdir(directory) if name.endswith(suffix))

    @staticmethod
    def _needed(name: str, names: list[str], sequence: int) -> bool:
        """Whether a segment holds frames from ``sequence`` on (the next one starts later)."""
        later = names[names.index(name) + 1 :]
        return not later or int(later[0].split(".")[0], 16) > sequence

    def _load_snapshot(self, engine: Engine) -> int:
        names = self._names(self._snap_dir, ".snap")
        if not names:
            return 0
        path = os.path.join(self._snap_dir, names[-1])
        with open(path, "rb") as file:
            data = file.read()
        wal.FileHeader.parse(data, wal.SNAPSHOT_MAGIC, path)
        self.snapshot_size = len(data)
        reader = wal.FrameReader(0)
        return engine.restore((p for _, p in reader.read(data, path, last=False)), path)

    def _replay(self, engine: Engine, names: list[str], sequence: int) -> None:
        self.log_bytes = 0
        first = int(names[0].split(".")[0], 16)
        if first > sequence:
            raise CorruptionError(
                f"{self._wal_dir}: frames {sequence} to {first - 1} are missing; "
                "restore the directory from a backup"
            )
        reader = wal.FrameReader(first)
        end = 0
        for name in names:
            path = os.path.join(self._wal_dir, name)
            with open(path, "rb") as file:
                data = file.read()
            wal.FileHeader.parse(data, wal.SEGMENT_MAGIC, path)
            end = wal.FILE_HEADER_BYTES
            for offset, payload in reader.read(data, path, last=name == names[-1]):
                end = offset
                if reader.sequence > sequence:
                    engine.replay(payload)
            self.log_bytes += end
        self._writer = wal.FrameWriter(reader.sequence, reader.crc or 0)
        path = os.path.join(self._wal_dir, names[-1])
        self._fd = os.open(path, os.O_RDWR)
        # A torn end goes, so that nothing of it can follow a later frame.
        os.ftruncate(self._fd, end)
        self._offset = self._filled = end
        self._sync_file(self._fd)

    # Appending -----------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """The number of the next frame."""
        return self._writer.sequence

    def append(self, records: list[bytes]) -> None:
        """Make records durable.

        Raises NoSpaceError when the disk is full (the log is as before), StorageError when it
        failed.
        """
        begun = perf_counter()
        state = self._writer.sequence, self._writer.crc
        data = self._writer.frame(b"".join(records))
        try:
            self._make_room(len(data))
            _write_all(self._fd, data, self._offset)
        except OSError as error:
            if error.errno not in _FULL:
                raise StorageError(f"{self._wal_dir}: write failed: {error.strerror}") from error
            self._writer.sequence, self._writer.crc = state
            self._erase(len(data))
            raise NoSpaceError(f"{self._wal_dir}: {error.strerror}") from error
        self._offset += len(data)
        self.log_bytes += len(data)
        self.written += len(data)
        self._sync_file(self._fd)
        self.commit_s.observe(perf_counter() - begun)

    def _make_room(self, size: int) -> None:
        if self._filled - self._offset >= size + LOW_BYTES:
            return
        try:
            more = max(self._fill, size)
            _write_zeros(self._fd, self._filled, more)
            self._filled += more
            self._fill = FILL_BYTES
            self.disk_full = False
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._filled = max(self._filled, os.fstat(self._fd).st_size)
            self.disk_full = True
            if self._filled - self._offset < size:
                raise

    def _erase(self, size: int) -> None:
        """Overwrite a half-written frame, so that no restart takes it for damage."""
        room = max(0, min(size, self._filled - self._offset))
        with contextlib.suppress(OSError):
            _write_all(self._fd, bytes(room), self._offset)

    def _sync_file(self, fd: int) -> None:
        if not self._sync:
            return
        begun = perf_counter()
        try:
            os.fdatasync(fd)
        except OSError as error:
            # A failed fsync may have dropped the pages: trying again would lie (fsyncgate).
            raise StorageError(f"{self._wal_dir}: fsync failed: {error.strerror}") from error
        self.fsync_s.observe(perf_counter() - begun)

    def _create_segment(self) -> None:
        """Begin a segment at the next sequence number."""
        path = os.path.join(self._wal_dir, f"{self._writer.sequence:016x}.wal")
        fd = os.open(path + ".tmp", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            head = self._header._replace(sequence=self._writer.sequence).emit(wal.SEGMENT_MAGIC)
            _write_all(fd, head, 0)
            _write_zeros(fd, len(head), self._fill)
            self._sync_file(fd)
            os.rename(path + ".tmp", path)
            if self._sync:
                _sync_directory(self._wal_dir)
        except BaseException:
            os.close(fd)
            # On a full disk each attempt would leave another.
            with contextlib.suppress(OSError):
                os.unlink(path + ".tmp")
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._offset = wal.FILE_HEADER_BYTES
        self._filled = self._offset + self._fill

    # Snapshots -----------------------------------------------------------------------------

    def write_snapshot(self, payloads: Iterator[bytes]) -> Iterator[None]:
        """Write a snapshot that continues at the current sequence; resume between slices.

        ``payloads`` is ``Engine.snapshot(storage.sequence)`` of this very moment.  A full disk
        raises NoSpaceError and leaves everything as it was.
        """
        sequence = self._writer.sequence
        path = os.path.join(self._snap_dir, f"{sequence:016x}.snap")
        try:
            self._create_segment()
            self.log_bytes = 0
            yield
            yield from self._write_frames(path + ".tmp", payloads)
            os.rename(path + ".tmp", path)
            if self._sync:
                _sync_directory(self._snap_dir)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(path + ".tmp")
            if error.errno not in _FULL:
                raise StorageError(f"{path}: {error.strerror}") from error
            raise NoSpaceError(f"{path}: {error.strerror}") from error
        self._remove_before(sequence)

    def _write_frames(self, path: str, payloads: Iterator[bytes]) -> Iterator[None]:
        writer = wal.FrameWriter(0)
        unsynced = 0
        with open(path, "wb", buffering=0) as file:
            file.write(self._header.emit(wal.SNAPSHOT_MAGIC))
            for payload in payloads:
                data = writer.frame(payload)
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                unsynced += len(data)
                if unsynced >= SNAPSHOT_SYNC_BYTES:
                    self._sync_file(file.fileno())
                    unsynced = 0
                yield
            self._sync_file(file.fileno())
            self.snapshot_size = file.tell()

    def _remove_before(self, sequence: int) -> None:
        names = self._names(self._wal_dir, ".wal")
        for name in names:
            if not self._needed(name, names, sequence):
                os.unlink(os.path.join(self._wal_dir, name))
        for name in self._names(self._snap_dir, ".snap")[:-1]:
            os.unlink(os.path.join(self._snap_dir, name))
