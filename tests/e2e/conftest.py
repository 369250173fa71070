"""A cluster of real processes for the tests of one file."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import Podwire

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A short-named directory: unix socket paths are limited to 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="pw-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Podwire]:
    """Three nodes, up and Ready."""
    if shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        pytest.skip("kubectl is not installed")
    podwire = Podwire(home, f"t{os.getpid()}")
    podwire.podwire("up", "--nodes", "3", "--detach")
    podwire.env["KUBECONFIG"] = podwire.podwire("kubeconfig").out.strip()
    yield podwire
    podwire.podwire("down")
