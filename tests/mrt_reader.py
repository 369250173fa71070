"""mrtparse, the independent reader of MRT files.

Importing it gives SIGPIPE its deadly default back, which would end the whole test run at the first
write to a closed socket; here the import leaves the signal as it was.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path) -> list[Any]:
    """All records of a file; skips the test where mrtparse is not installed."""
    before = signal.getsignal(signal.SIGPIPE)
    try:
        mrtparse = pytest.importorskip("mrtparse")
    finally:
        signal.signal(signal.SIGPIPE, before)
    return [record.data for record in mrtparse.Reader(str(path))]


def named(data: dict[str, Any], key: str) -> str:
    """The name of a field that mrtparse gives as {number: name}."""
    return str(next(iter(data[key].values())))
