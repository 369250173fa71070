"""Who may use a cluster's directory."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

import pytest

from emulator.cluster.state import LOCK_TRIES, ClusterDirectory
from emulator.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_whoever_looks_whether_a_cluster_runs_does_not_keep_it_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PODWIRE_HOME", str(tmp_path))
    looking = os.open(tmp_path / ".c.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_EX)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            fcntl.flock(looking, fcntl.LOCK_UN)

    monkeypatch.setattr(time, "sleep", pause)
    directory = ClusterDirectory("c")
    directory.acquire()
    assert len(pauses) == 2
    assert directory.is_running()
    with pytest.raises(UsageError, match="already running"):
        ClusterDirectory("c").acquire()
    assert len(pauses) == 2 + LOCK_TRIES
    directory.remove()
    assert not directory.is_running()
    os.close(looking)
