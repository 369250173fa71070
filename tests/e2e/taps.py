"""Captures that run while a test does something: podwire's own and tcpdump's."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness import Podwire

READY_WITHIN_S = 10.0
END_WITHIN_S = 10.0


@contextlib.contextmanager
def running(podwire: Podwire, argv: list[str], ready: str) -> Iterator[subprocess.Popen[str]]:
    """Run a capture from the moment it says ``ready`` on stderr; end it as Ctrl-C does."""
    process = subprocess.Popen(
        argv,
        env=podwire.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    deadline = time.monotonic() + READY_WITHIN_S
    try:
        while ready not in said:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([process.stderr], [], [], left)[0]:
                pytest.fail(f"{' '.join(argv)}: not ready within {READY_WITHIN_S} s: {said}")
            line = process.stderr.readline()
            if not line:
                pytest.fail(f"{' '.join(argv)}: ended: {said}")
            said += line
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=END_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            pytest.fail(f"{' '.join(argv)}: still there {END_WITHIN_S} s after SIGINT")


def capture_command(podwire: Podwire, *argv: str) -> list[str]:
    return [sys.executable, "-m", "emulator.cli.main", "capture", "--name", podwire.name, *argv]


@contextlib.contextmanager
def captures(
    podwire: Podwire, places: dict[str, tuple[str, ...]], directory: Path
) -> Iterator[None]:
    """Capture at several places at once; each into ``<name>.pcapng``."""
    with contextlib.ExitStack() as stack:
        for name, place in places.items():
            argv = capture_command(podwire, *place, "-w", str(directory / f"{name}.pcapng"))
            stack.enter_context(running(podwire, argv, "capturing on"))
        yield


def decoded(podwire: Podwire, path: Path, *argv: str) -> str:
    """What tcpdump makes of a capture file."""
    return podwire.run(["tcpdump", *argv, "-nr", str(path)]).out


# A header line of `tcpdump -v`, and the line of the packet itself.
_PACKET = re.compile(r"ttl (\d+), .*\n +(\S+) > (\S+):")


def hops(text: str) -> list[tuple[str, str, int]]:
    """(source, destination, ttl) of each packet of ``tcpdump -v``, inner ones too."""
    return [(src, dst, int(ttl)) for ttl, src, dst in _PACKET.findall(text)]
