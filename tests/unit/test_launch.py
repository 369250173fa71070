"""Work that is done in a process beside this one while the cluster's code is imported."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from emulator.cluster.launch import in_a_child
from emulator.errors import PodwireError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_both_are_done_before_it_goes_on(tmp_path: Path) -> None:
    done = []
    with in_a_child((tmp_path / "made").touch):
        done.append(os.getpid())
    assert (tmp_path / "made").exists()
    assert done == [os.getpid()]


def test_what_the_child_could_not_do_is_said_here() -> None:
    def work() -> None:
        raise UsageError("no room for a key")

    with pytest.raises(UsageError, match=r"^no room for a key$"), in_a_child(work):
        pass


def test_a_child_that_dies_is_told() -> None:
    with (
        pytest.raises(PodwireError, match="killed by SIGKILL"),
        in_a_child(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    ):
        pass
