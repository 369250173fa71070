"""What a container's program is handed, and what it answers.

A program is ``async def program(ctx: ContainerContext) -> int``; it returns its exit code.
``ctx.stop`` is set by SIGTERM: a program that handles the signal returns soon after; one that
does not is cancelled when the grace period ends, which is SIGKILL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from emulator.runtime.clock import Clock
    from emulator.runtime.stack import StackNetwork

    Program = Callable[["ContainerContext"], Awaitable[int]]

# Exit codes of a shell's and a runtime's own making.
EXIT_SIGKILL = 128 + 9
EXIT_NOT_FOUND = 127


class ByteSink(Protocol):
    """Where a program's output goes."""

    def write(self, data: bytes) -> None:
        """Take the bytes; never blocks."""

    async def drain(self) -> None:
        """Wait until the reader has caught up; BrokenPipeError when it went away."""


class Files(Protocol):
    """A container's file system: absolute paths, whole files.

    Errors are the OSErrors of a real one: FileNotFoundError, IsADirectoryError,
    NotADirectoryError, PermissionError (read-only), OSError ENOSPC.
    """

    def read(self, path: str) -> bytes: ...

    def write(self, path: str, data: bytes, *, append: bool = False) -> None: ...

    def listdir(self, path: str) -> list[str]: ...

    def is_dir(self, path: str) -> bool: ...

    def exists(self, path: str) -> bool: ...

    def mtime(self, path: str) -> float: ...


class CommandRunner(Protocol):
    """Runs a command of the container's image in its namespace, as ``execve`` would."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        stdin: asyncio.StreamReader | None,
        stdout: ByteSink,
        stderr: ByteSink,
        interrupt: asyncio.Event,
    ) -> int: ...


@dataclass(slots=True)
class ContainerContext:
    """One container as its program sees it.

    ``argv`` is the image's or the pod's command line, ``addresses`` the pod's own, loopback first.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    hostname: str
    addresses: tuple[str, ...]
    network: StackNetwork
    files: Files
    stdout: ByteSink
    stderr: ByteSink
    stdin: asyncio.StreamReader | None
    stop: asyncio.Event
    clock: Clock
    rng: random.Random
    run: CommandRunner

    def print(self, line: str) -> None:
        """Write one line to standard output."""
        self.stdout.write(line.encode() + b"\n")

    def complain(self, line: str) -> None:
        """Write one line to standard error."""
        self.stderr.write(line.encode() + b"\n")
