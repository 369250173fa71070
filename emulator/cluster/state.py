"""A cluster's directory: who may use it, what is left of a dead one, which blocks are taken."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from typing import TYPE_CHECKING, Final

from emulator.cluster.plan import (
    API_PORT,
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


PARTS: Final = ("run", "logs", "nodes", "pki")


class ClusterDirectory:
    """The directory of one cluster, held by a lock while its supervisor lives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = cluster_directory(name)
        self._lock: int | None = None

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
            try:
                fcntl.flock(lock, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise UsageError(taken) from None
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

    @property
    def lock_descriptor(self) -> int | None:
        """The lock's file descriptor, which forked children must close."""
        return self._lock

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

    def remove(self) -> None:
        """Remove everything of the cluster, the lock last."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._lock_path.unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def claim_block(self) -> int:
        """Choose and note the cluster's 127.X.0.0/16; UsageError when none is free.

        The cluster's name decides which is tried first, so that addresses stay the same from
        start to start.
        """
        # Two clusters that start at the same time must not both find a block free.
        everybody = os.open(home(), os.O_RDONLY)
        try:
            fcntl.flock(everybody, fcntl.LOCK_EX)
            block = self._free_block()
            (self.path / "block.json").write_text(json.dumps({"block": block}))
        finally:
            os.close(everybody)
        return block

    def _free_block(self) -> int:
        taken = {
            json.loads(path.read_text())["block"]
            for path in home().glob("*/block.json")
            if path.parent != self.path
        }
        count = LAST_BLOCK - FIRST_BLOCK + 1
        first = preferred_block(self.name) - FIRST_BLOCK
        for step in range(count):
            block = FIRST_BLOCK + (first + step) % count
            if block not in taken and _is_free(block):
                return block
        raise UsageError(f"all {count} loopback blocks are in use; take a cluster down first")


def _is_free(block: int) -> bool:
    """True unless some other program serves the API port in the block."""
    if not loopback_is_routable():
        return True
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((f"127.{block}.0.101", API_PORT))
        except OSError:
            return False
    return True
