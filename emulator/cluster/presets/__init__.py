"""Cluster files that come along: the machines of well-known tutorials."""

from __future__ import annotations

from importlib import resources
from typing import Final

from emulator.errors import UsageError

PRESETS: Final = ("flannel", "calico")


def preset_text(name: str) -> str:
    """The cluster file of that name; UsageError for an unknown one."""
    if name not in PRESETS:
        raise UsageError(f"--preset: {name!r} is not a preset ({', '.join(PRESETS)})")
    return (resources.files(__name__) / f"{name}.yaml").read_text()
