"""Container logs on the node's disk, in the CRI's format, rotated and followed.

``var/log/pods/<ns>_<pod>_<uid>/<container>/<restart>.log``, lines of
``2016-10-06T00:17:09.669794202Z stdout F text`` (CRI kubelet-cri-logging.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import shutil
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Container
    from pathlib import Path

    from emulator.runtime.clock import Clock

# containerLogMaxSize and containerLogMaxFiles of the kubelet; the size is smaller because all
# nodes of a cluster share one disk.
MAX_FILE_BYTES = 2 * 1024 * 1024
MAX_FILES = 5
LOG_DIRECTORY = "var/log/pods"
# A line longer than this is cut into partial entries, as containerd does.
MAX_LINE_BYTES = 16 * 1024
# Logs of earlier runs of one container that are kept.
KEPT_RUNS = 2


class LogOptions(NamedTuple):
    """The query of GET /containerLogs; None or 0 is "not given"."""

    follow: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    since_s: float = 0.0
    limit_bytes: int | None = None


def stamp(unix_s: float) -> str:
    """RFC 3339 with nine decimals."""
    whole = int(unix_s)
    moment = datetime.datetime.fromtimestamp(whole, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{int((unix_s - whole) * 1e9):09d}Z"


class ContainerLog:
    """The log of one run of a container; the two sinks write into it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.lost_lines = 0
        self._clock = clock
        self._file: BinaryIO | None = None
        self._size = 0
        self._dropped = 0
        self._grown = asyncio.Event()
        self._partial = {"stdout": b"", "stderr": b""}
        self.closed = False

    @classmethod
    def ended(cls, path: Path, clock: Clock) -> ContainerLog:
        """The log of a run that is over, as it lies on the disk."""
        log = cls(path, clock)
        log.closed = True
        with contextlib.suppress(FileNotFoundError):
            log._size = path.stat().st_size
        return log

    def sink(self, stream: str) -> LogSink:
        """A sink for ``stdout`` or ``stderr``."""
        return LogSink(self, stream)

    def append(self, stream: str, data: bytes) -> None:
        """Cut bytes into lines; the rest waits for its end."""
        *lines, rest = (self._partial[stream] + data).split(b"\n")
        entries = [self._entry(stream, line) for line in lines]
        while len(rest) > MAX_LINE_BYTES:
            entries.append(self._entry(stream, rest[:MAX_LINE_BYTES], tag="P"))
            rest = rest[MAX_LINE_BYTES:]
        self._partial[stream] = rest
        if entries:
            self._write(b"".join(entries), len(entries))

    def _entry(self, stream: str, line: bytes, tag: str = "F") -> bytes:
        return f"{stamp(self._clock.time())} {stream} {tag} ".encode() + line + b"\n"

    def _write(self, data: bytes, lines: int) -> None:
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
                self._size = self._file.tell()
            if self._size + len(data) > MAX_FILE_BYTES and self._size:
                self._rotate()
            assert self._file is not None
            self._file.write(data)
            self._size += len(data)
        except OSError:
            # A full disk must not stop the container: the lines are counted as lost.
            self.lost_lines += lines
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def _rotate(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        for number in range(MAX_FILES - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            name = f"{self.path.name}.{number - 1}" if number > 1 else self.path.name
            newer = self.path.with_name(name)
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)
        self._file = self.path.open("ab", buffering=0)
        self._dropped += self._size
        self._size = 0

    def close(self) -> None:
        """The container has ended: what waits for its line end is written, followers finish."""
        for stream, rest in self._partial.items():
            if rest:
                self._write(self._entry(stream, rest), 1)
        self._partial = {"stdout": b"", "stderr": b""}
        if self._file is not None:
            self._file.close()
            self._file = None
        self.closed = True
        self._grown.set()

    def mark(self) -> asyncio.Event:
        """An event set by the next write."""
        return self._grown

    @property
    def position(self) -> int:
        """Bytes written by this run so far, those of rotated files included."""
        return self._dropped + self._size

    def since(self, position: int) -> bytes:
        """The bytes written after ``position``; what rotation dropped meanwhile is gone."""
        data = b""
        if position < self._dropped:
            rotated = self.path.with_name(f"{self.path.name}.1")
            missed = self._dropped - position
            with contextlib.suppress(FileNotFoundError):
                data = rotated.read_bytes()[-missed:]
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(max(0, position - self._dropped))
            data += file.read()
        return data

    def files(self) -> list[Path]:
        """The log's files, oldest first."""
        rotated = [self.path.with_name(f"{self.path.name}.{n}") for n in range(MAX_FILES, 0, -1)]
        return [path for path in (*rotated, self.path) if path.exists()]


class LogSink:
    """Standard output or error of a container."""

    __slots__ = ("_log", "_stream")

    def __init__(self, log: ContainerLog, stream: str) -> None:
        self._log = log
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Append the bytes."""
        self._log.append(self._stream, data)

    async def drain(self) -> None:
        """Let the node's other tasks run: a container that only prints would starve them."""
        await asyncio.sleep(0)


async def read_log(log: ContainerLog, options: LogOptions, clock: Clock) -> AsyncIterator[bytes]:
    """Yield what ``kubectl logs`` prints, and with ``follow`` go on until the container ends."""
    left = options.limit_bytes
    oldest = stamp(clock.time() - options.since_s).encode() if options.since_s else b""
    mark = log.mark()
    written = log.position
    entries = b"".join([path.read_bytes() for path in log.files()]).splitlines(keepends=True)
    if options.tail_lines is not None:
        entries = entries[len(entries) - min(options.tail_lines, len(entries)) :]
    text = b"".join(_shown(entry, options, oldest) for entry in entries)
    if left is not None:
        text = text[:left]
        left -= len(text)
    if text:
        yield text
    while options.follow and left != 0:
        if not log.closed:
            await mark.wait()
        mark = log.mark()
        data, written = log.since(written), log.position
        text = b"".join(_shown(entry, options, b"") for entry in data.splitlines(keepends=True))
        if left is not None:
            text = text[:left]
            left -= len(text)
        if text:
            yield text
        elif log.closed:
            return


def _shown(entry: bytes, options: LogOptions, oldest: bytes) -> bytes:
    time, _, rest = entry.partition(b" ")
    _, _, rest = rest.partition(b" ")
    tag, _, text = rest.partition(b" ")
    if oldest and time < oldest:
        return b""
    if tag == b"P":
        text = text[:-1]
    return time + b" " + text if options.timestamps else text


def logged_runs(directory: Path) -> list[int]:
    """The runs of a container whose logs are on the disk."""
    found = [path.name.removesuffix(".log") for path in directory.glob("*.log")]
    return [int(number) for number in found if number.isdigit()]


def drop_old_runs(directory: Path, current: int) -> None:
    """Remove the logs of runs before the previous one."""
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        number = path.name.partition(".")[0]
        if number.isdigit() and int(number) <= current - KEPT_RUNS:
            path.unlink(missing_ok=True)


def pod_logs(state_dir: Path, namespace: str, name: str, uid: str) -> Path:
    """The directory of a pod's logs."""
    return state_dir / LOG_DIRECTORY / f"{namespace}_{name}_{uid}"


def remove_pod_logs(directory: Path) -> None:
    """Remove all logs of a pod that is gone."""
    shutil.rmtree(directory, ignore_errors=True)


def drop_other_logs(state_dir: Path, uids: Container[str]) -> None:
    """Remove the logs of all pods but these."""
    directory = state_dir / LOG_DIRECTORY
    for path in [*directory.iterdir()] if directory.is_dir() else ():
        if path.name.rpartition("_")[2] not in uids:
            remove_pod_logs(path)
