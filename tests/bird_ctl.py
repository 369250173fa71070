"""A raw client of BIRD's control socket, and what makes two BIRDs' replies comparable."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import random
import re
from typing import TYPE_CHECKING

from agents.bird.ctl.reply import Dialect
from agents.bird.ctl.server import BirdControl
from agents.bird.daemon import BirdDaemon
from agents.bird.kernel import Interface, InterfaceAddress, KernelRoute
from agents.bird.net import Net
from agents.bird.speaker import Speaker
from emulator.runtime.clock import real_clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from agents.bird.config import SpeakerConfig

LO = Interface(
    1, "lo", True, True, 65536, (InterfaceAddress(b"\x7f\0\0\1", 8, "host"),), loopback=True
)
_END = re.compile(r"\d{4} ")
_TIMES = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{3})?|\d\d:\d\d:\d\d(\.\d{3})?")
# How often a route was looked at depends on what came in which turn.
_EXPORTS = re.compile(r"Export updates: +\d+ +\d+")
_BETWEEN = re.compile(r"\d+ of |Table |$")
_TIMERS = re.compile(r"(timer|delay|wait):(\s+)[\d.]+/")


class LoopbackPort:
    """A kernel with lo only."""

    generation = 0

    def interfaces(self) -> Sequence[Interface]:
        return (LO,)

    def routes(self) -> Sequence[KernelRoute]:
        return ()

    def replace(self, route: KernelRoute) -> None:
        raise AssertionError(route)

    def delete(self, route: KernelRoute) -> None:
        raise AssertionError(route)


class Client:
    """One session."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.echoed: list[str] = []

    async def reply(self) -> list[str]:
        """The lines of one reply, as they came."""
        lines: list[str] = []
        async with asyncio.timeout(20):
            while True:
                data = await self.reader.readline()
                if not data:
                    raise ConnectionResetError(f"closed after {lines}")
                line = data.decode().removesuffix("\n")
                if line.startswith("+"):
                    self.echoed.append(line)
                    continue
                lines.append(line)
                if _END.match(line):
                    return lines

    async def ask(self, line: str) -> list[str]:
        """Send a command; its reply."""
        self.writer.write(f"{line}\n".encode())
        return await self.reply()


@contextlib.asynccontextmanager
async def session(path: Path) -> AsyncIterator[Client]:
    """A session, after its banner."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    client = Client(reader, writer)
    try:
        assert (await client.reply())[0].startswith("0001 BIRD ")
        yield client
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def comparable(lines: list[str], *, same: dict[str, str] | None = None) -> list[str]:
    """A reply without times; ``same`` maps what differs on purpose.  Networks are sorted."""
    found = []
    for line in lines:
        text = _TIMES.sub("T", line)
        text = _TIMERS.sub(r"\1:\2N/", text)
        text = _EXPORTS.sub("Export updates: N", text)
        for old, new in (same or {}).items():
            text = text.replace(old, new)
        found.append(text)
    return _sort_networks(found)


def _sort_networks(lines: list[str]) -> list[str]:
    """Whole networks in order; BIRD shows them in that of its hash."""
    if not lines or not lines[0].startswith("1007-"):
        return lines
    head, groups, tail = [], [], []
    for line in lines:
        text = line[5:] if line[:1].isdigit() else line[1:]
        if _END.match(line) or (groups and _BETWEEN.match(text)):
            tail.append(line)
        elif re.match(r"[0-9a-f.:]+/\d+ ", text):
            groups.append([text])
        elif groups:
            groups[-1].append(line if line.startswith("10") and not line[5:6].isspace() else text)
        else:
            head.append(text)

    def key(group: list[str]) -> Net:
        return Net.parse(group[0].split()[0])

    return [*head, *(line for group in sorted(groups, key=key) for line in group), *tail]


@contextlib.asynccontextmanager
async def controlled(
    config: SpeakerConfig,
    directory: Path,
    *,
    listen: tuple[str, int] | None = None,
    dialect: Dialect = Dialect.BIRD1,
    version: str = "",
) -> AsyncIterator[BirdControl]:
    """A speaker of ours with a control socket ``bird.ctl`` in a directory."""
    loop = asyncio.get_running_loop()
    speaker = Speaker(config, random.Random(7), now=loop.time(), kernel=LoopbackPort())
    controls: list[BirdControl] = []
    daemon = BirdDaemon(
        speaker,
        logging.getLogger("bird"),
        listen=listen,
        on_event=lambda event: controls[0].event(event),
    )
    control = BirdControl(
        daemon,
        path=directory / "bird.ctl",
        read_config=lambda: config,
        clock=real_clock(),
        log=logging.getLogger("bird.ctl"),
        root=directory,
        dialect=dialect,
        version=version,
        config_name="bird.conf",
    )
    controls.append(control)
    tasks = [
        asyncio.create_task(daemon.run(), name="bird"),
        asyncio.create_task(control.run(), name="bird.ctl"),
    ]
    try:
        async with asyncio.timeout(10):
            while not (directory / "bird.ctl").is_socket():
                assert not any(task.done() for task in tasks), tasks
                await asyncio.sleep(0.01)
        yield control
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def utc(at: float) -> datetime.datetime:
    """A wall clock whose 0 is a day in August 2018."""
    start = datetime.datetime(2018, 8, 21, 14, 40, tzinfo=datetime.UTC)
    return start + datetime.timedelta(seconds=at)
