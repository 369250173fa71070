"""What a command runs in: a namespace, files, an environment, and where its bytes go."""

from __future__ import annotations

import asyncio
import os
import posixpath
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import Any

    from emulator.netstack.kernel import Kernel
    from emulator.netstack.netns import NetNs
    from emulator.runtime.clock import Clock
    from emulator.runtime.stack import StackNetwork

    Command = Callable[["ShellContext", Sequence[str]], Coroutine[Any, Any, int]]

MAX_DIGITS = 18  # what fits 64 bits
# What one command substitution may bring, or one variable hold: ARG_MAX of Linux is 2 MiB.
MAX_EXPANSION_BYTES = 2 * 1024 * 1024
# Bytes a pipe holds before its writer waits; Linux's default.
PIPE_BYTES = 65536
READ_BYTES = 65536
# The lines that stand for Ctrl-C and Ctrl-D where lines are edited elsewhere.
INTERRUPT = "\x03"
END_OF_INPUT = "\x04"


class ByteSink(Protocol):
    """Where a command's output goes."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...


class Files(Protocol):
    """A file system; see emulator.shell.files for the two there are."""

    def read(self, path: str) -> bytes: ...

    def write(self, path: str, data: bytes, *, append: bool = False) -> None: ...

    def remove(self, path: str) -> None: ...

    def make_dir(self, path: str) -> None: ...

    def listdir(self, path: str) -> list[str]: ...

    def is_dir(self, path: str) -> bool: ...

    def exists(self, path: str) -> bool: ...

    def mtime(self, path: str) -> float: ...


class Buffer:
    """A sink that keeps what is written: command substitution, probes and tests."""

    def __init__(self, limit: int = MAX_EXPANSION_BYTES) -> None:
        self.data = bytearray()
        self._limit = limit

    def write(self, data: bytes) -> None:
        """Append the bytes; BrokenPipeError where they are more than ``limit`` in all."""
        if len(self.data) + len(data) > self._limit:
            raise BrokenPipeError
        self.data += data

    async def drain(self) -> None:
        """Let others run."""
        await asyncio.sleep(0)

    @property
    def text(self) -> str:
        """What was written, as text."""
        return self.data.decode("utf-8", "replace")


class _Throttle(asyncio.Transport):
    """What a StreamReader believes it reads from: it pauses us while its buffer is full."""

    def __init__(self) -> None:
        super().__init__()
        self.flowing = asyncio.Event()
        self.flowing.set()

    def pause_reading(self) -> None:
        self.flowing.clear()

    def resume_reading(self) -> None:
        self.flowing.set()


class Pipe:
    """A pipe between two commands; ``reader`` is the end to read from."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=PIPE_BYTES)
        self._throttle = _Throttle()
        self.reader.set_transport(self._throttle)
        self._reader_gone = False

    def write(self, data: bytes) -> None:
        """Append the bytes; BrokenPipeError once the reader has gone."""
        if self._reader_gone:
            raise BrokenPipeError
        if data:
            self.reader.feed_data(data)

    async def drain(self) -> None:
        """Let the reader run, then wait while the pipe is full."""
        await asyncio.sleep(0)
        await self._throttle.flowing.wait()
        if self._reader_gone:
            raise BrokenPipeError

    def close_write(self) -> None:
        """The writer has ended: the reader sees the end of file."""
        self.reader.feed_eof()

    def close_read(self) -> None:
        """The reader has ended: writes fail from now on."""
        self._reader_gone = True
        self._throttle.flowing.set()


@dataclass(slots=True)
class ShellContext:
    """One place to run commands in.

    ``style`` is the flavour of the tools: "gnu" (a node, Debian images) or "busybox"; ``era``
    ("2017" or "modern") chooses texts that changed over the years.  ``interrupt`` is SIGINT;
    with ``tty`` a shell prompts; whoever edits lines elsewhere is told by ``ask`` what to prompt,
    nothing for what a command reads.
    """

    kernel: Kernel
    ns: NetNs
    network: StackNetwork
    files: Files
    hostname: str
    env: dict[str, str]
    stdout: ByteSink
    stderr: ByteSink
    clock: Clock
    rng: random.Random
    stdin: asyncio.StreamReader | None = None
    style: str = "gnu"
    era: str = "modern"
    interrupt: asyncio.Event = field(default_factory=asyncio.Event)
    cwd: str = "/"
    status: int = 0
    depth: int = 0
    tty: bool = False
    ask: Callable[[str], Awaitable[None]] | None = None

    def out(self, text: str) -> None:
        """Write text to standard output."""
        self.stdout.write(text.encode())

    def err(self, text: str) -> None:
        """Write text to standard error."""
        self.stderr.write(text.encode())

    def path(self, name: str) -> str:
        """A path of the command line made absolute."""
        return posixpath.join(self.cwd, name)

    async def read(self) -> bytes:
        """Some of standard input as soon as there is any, b"" at its end."""
        if self.stdin is None:
            return b""
        if self.ask is None:
            return await self.stdin.read(READ_BYTES)
        await self.ask("")
        data = await self.stdin.read(READ_BYTES)
        return b"" if data == f"{END_OF_INPUT}\n".encode() else data

    def redirected(
        self,
        *,
        stdin: asyncio.StreamReader | None = None,
        stdout: ByteSink | None = None,
        stderr: ByteSink | None = None,
    ) -> ShellContext:
        """The same place with other streams; variables are shared, not copied."""
        typed = stdin is None or stdin is self.stdin
        return replace(
            self,
            tty=self.tty and typed,
            ask=self.ask if typed else None,
            stdin=stdin if stdin is not None else self.stdin,
            stdout=stdout if stdout is not None else self.stdout,
            stderr=stderr if stderr is not None else self.stderr,
        )

    def subshell(self) -> ShellContext:
        """A copy whose variables and directory are its own."""
        return replace(self, env=dict(self.env), depth=self.depth + 1)


def whole_number(text: str) -> int | None:
    """The value of up to 18 decimal digits; None for anything else, which int() may refuse."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def seconds_of(text: str) -> float | None:
    """A time as strtod(3) reads it, finite and not negative: a loop's timers bear nothing else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def os_error_text(error: OSError) -> str:
    """``No such file or directory``: the errno's text, whatever else the error carries."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or type(error).__name__
