"""What a command of the netfilter family answers."""

from __future__ import annotations

from typing import NamedTuple


class CommandResult(NamedTuple):
    """Exit code, standard output, standard error."""

    exit_code: int
    stdout: str
    stderr: str
