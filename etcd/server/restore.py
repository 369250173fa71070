"""``podwire etcd snapshot restore``: a data directory of ours from a file of etcd's.

The file is what ``etcdctl snapshot save`` fetched from any etcd, or the database of a stopped real
etcd, whose directory may be named instead (its ``member/snap/db``).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
from typing import TYPE_CHECKING

from emulator.errors import UsageError
from etcd.core import backup, bbolt
from etcd.core.engine import Engine
from etcd.core.identity import derive_ids
from etcd.server.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

_HASH_BLOCK_BYTES = 1024 * 1024
# A database file is whole sectors; the 32 bytes beyond are the checksum (etcdutl snapshot).
_SECTOR_BYTES = 512


def restore_snapshot(
    file: str, data_dir: str, *, skip_hash_check: bool, ids: tuple[int, int] | None = None
) -> str:
    """Make ``data_dir``; return a line that says what it holds.

    ``ids`` are the cluster's and the member's, the default ones if not given.

    Raises UsageError for a file or directory that cannot be used, CorruptionError for a damaged
    file.
    """
    with contextlib.suppress(FileNotFoundError):
        if os.listdir(data_dir):
            raise UsageError(f"data directory {data_dir} is not empty; choose another")
    live = os.path.isdir(file)
    path = os.path.join(file, "member", "snap", "db") if live else file
    with _mapped(path) as data:
        size = len(data)
        if size % _SECTOR_BYTES == backup.SHA256_BYTES:
            size -= backup.SHA256_BYTES
            if not skip_hash_check and _sha256(data[:size]) != data[size:]:
                raise UsageError(
                    f"{path}: expected sha256 {data[size:].hex()}, got {_sha256(data[:size]).hex()}"
                    "; the file is damaged, take the snapshot again (or --skip-hash-check)"
                )
        elif not live and not skip_hash_check:
            raise UsageError(
                f"{path} has no sha256 at its end, so it is not of 'etcdctl snapshot save'; "
                "--skip-hash-check takes it nevertheless"
            )
        engine = Engine(*(ids or derive_ids()))
        backup.load(bbolt.Database(data[:size], path), engine, path)
    storage = Storage(data_dir, sync=True)
    try:
        storage.create(engine)
    finally:
        storage.close()
    return (
        f"restored {len(engine.store)} keys at revision {engine.store.revision} and "
        f"{len(engine.leases)} leases from {path} into {data_dir}"
    )


@contextlib.contextmanager
def _mapped(path: str) -> Iterator[memoryview]:
    """Map a file that nobody is writing."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        # bbolt holds this lock while it has a database open.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Unmapped with the last view of it.
        yield memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    except BlockingIOError:
        raise UsageError(
            f"{path} is in use by a running etcd; stop it, or use 'etcdctl snapshot save'"
        ) from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    finally:
        os.close(fd)


def _sha256(data: memoryview) -> bytes:
    digest = hashlib.sha256()
    for start in range(0, len(data), _HASH_BLOCK_BYTES):
        digest.update(data[start : start + _HASH_BLOCK_BYTES])
    return digest.digest()
