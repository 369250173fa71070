"""Drives a cluster of real processes by the command line and kubectl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Done:
    """A finished command."""

    argv: list[str]
    code: int
    out: str
    err: str


class Podwire:
    """The command line with a home of its own."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.name = name
        self.env = {
            **os.environ,
            "PODWIRE_HOME": str(home),
            "HOME": str(home),  # kubectl's caches must not outlive the cluster they describe
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def run(
        self,
        argv: list[str],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> Done:
        """Run any command in the cluster's environment."""
        done = subprocess.run(
            argv,
            env=self.env,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        result = Done(argv, done.returncode, done.stdout, done.stderr)
        if check and result.code != 0:
            pytest.fail(f"{' '.join(argv)}: exit {result.code}\n{result.out}{result.err}")
        return result

    def podwire(self, verb: str, *argv: str, check: bool = True) -> Done:
        """A verb of podwire on this cluster."""
        named = ["--name", self.name]
        return self.run(
            [sys.executable, "-m", "emulator.cli.main", verb, *named, *argv], check=check
        )

    def node(self, node: str, *argv: str, check: bool = True) -> Done:
        """A command on a node."""
        return self.podwire("exec", node, "--", *argv, check=check)

    def kubectl(self, *argv: str, check: bool = True, stdin: str | None = None) -> Done:
        return self.run(["kubectl", *argv], check=check, stdin=stdin)

    def status(self) -> dict[str, Any]:
        """What ``podwire status -o json`` says."""
        status: dict[str, Any] = json.loads(self.podwire("status", "-o", "json").out)
        return status

    def get(self, *argv: str) -> Any:
        """``kubectl get … -o json``, parsed."""
        return json.loads(self.kubectl("get", *argv, "-o", "json").out)


def wait_for(
    what: str, condition: Callable[[], object], within_s: float = 20.0, every_s: float = 0.05
) -> Any:
    """Return the condition's first true value; fail with ``what`` after the deadline."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s} s: {what}")
        time.sleep(every_s)
    return value
