"""A cluster's directory: who may use it, what is left of a dead one, which blocks are taken."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import time
from typing import TYPE_CHECKING, Final

from emulator.cluster.plan import (
    FIRST_BLOCK,
    LAST_BLOCK,
    cluster_directory,
    home,
    loopback_is_routable,
    preferred_block,
)
from emulator.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


# UDP port, on the block's first address, whose holder owns the block.
CLAIM_PORT: Final = 8470
PARTS: Final = ("run", "logs", "nodes", "pki")
LOCK_TRIES: Final = 5
LOCK_PAUSE_S: Final = 0.02


def _locked(lock: int, mode: int) -> bool:
    """Take a lock; False if somebody keeps it.  Who asks ``is_running`` has it for a moment."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
        else:
            return True
    return False


class ClusterDirectory:
    """The directory of one cluster, held by a lock while its supervisor lives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = cluster_directory(name)
        self._lock: int | None = None
        self._claim: socket.socket | None = None

    def acquire(self) -> None:
        """Take the directory, clean of an earlier cluster; UsageError if it cannot be had."""
        self._take_lock(
            fcntl.LOCK_EX,
            f"cluster {self.name!r} is already running; take it down with "
            f"'podwire down --name {self.name}' or start another with --name",
        )
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
            self._make_parts()
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({error.strerror})") from None

    def join(self) -> None:
        """Share the directory with other roles started one by one; UsageError if ``up`` has it."""
        self._take_lock(
            fcntl.LOCK_SH,
            f"cluster {self.name!r} is already running as a whole ('podwire up'); "
            "give this one another name with --cluster",
        )
        try:
            self._make_parts()
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _make_parts(self) -> None:
        for part in PARTS:
            (self.path / part).mkdir(mode=0o700, parents=True, exist_ok=True)

    def _take_lock(self, mode: int, taken: str) -> None:
        """Lock the cluster's name; UsageError with ``taken`` if another holds it."""
        while self._lock is None:
            try:
                home().mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise UsageError(
                    f"{home()}: cannot be written ({error.strerror}); set PODWIRE_HOME elsewhere"
                ) from None
            if not _locked(lock, mode):
                os.close(lock)
                raise UsageError(taken)
            # Its last holder may have removed the file between our open and our lock.
            if self._lock_path.exists() and os.path.samestat(
                os.fstat(lock), self._lock_path.stat()
            ):
                self._lock = lock
            else:
                os.close(lock)

    @property
    def _lock_path(self) -> Path:
        return home() / f".{self.name}.lock"

    def descriptors(self) -> tuple[int, ...]:
        """The lock and the claim of the block: forked roles must close them."""
        held = [] if self._lock is None else [self._lock]
        if self._claim is not None:
            held.append(self._claim.fileno())
        return tuple(held)

    def is_running(self) -> bool:
        """True while some supervisor holds the directory."""
        try:
            lock = os.open(self._lock_path, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise UsageError(
                f"{self._lock_path}: {error.strerror}; is this another user's PODWIRE_HOME?"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    @property
    def kept_logs(self) -> Path:
        """Where the logs of the last cluster of this name that ended by itself are, if any."""
        return home() / f".{self.name}.logs"

    def keep_logs(self) -> Path:
        """Put the logs where ``remove`` leaves them, in the place of older ones."""
        self.forget_kept_logs()
        with contextlib.suppress(OSError):
            (self.path / "logs").rename(self.kept_logs)
        return self.kept_logs

    def forget_kept_logs(self) -> None:
        """Remove what ``keep_logs`` kept."""
        shutil.rmtree(self.kept_logs, ignore_errors=True)

    def remove(self) -> None:
        """Remove everything of the cluster, the lock last."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._lock_path.unlink()
        if self._claim is not None:
            self._claim.close()
            self._claim = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def claim_block(self) -> int:
        """Choose and hold the cluster's 127.X.0.0/16; UsageError when none is free.

        The cluster's name decides which is tried first, so that addresses stay the same from
        start to start.  The claim is a bound socket: it also holds against clusters of other homes
        and users, and ends with its last process.
        """
        count = LAST_BLOCK - FIRST_BLOCK + 1
        first = preferred_block(self.name) - FIRST_BLOCK
        for step in range(count):
            block = FIRST_BLOCK + (first + step) % count
            if not loopback_is_routable():
                return block
            claim = _claim(block)
            if claim is not None:
                self._claim = claim
                return block
        raise UsageError(f"all {count} loopback blocks are in use; take a cluster down first")


def _claim(block: int) -> socket.socket | None:
    """Bind the block's claim; None if it is another cluster's."""
    claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        claim.bind((f"127.{block}.0.1", CLAIM_PORT))
    except OSError:
        claim.close()
        return None
    return claim
