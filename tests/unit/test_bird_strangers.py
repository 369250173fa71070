"""Who connects before the configuration knows of it, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agents.bird.config import SpeakerConfig
from agents.bird.daemon import BirdDaemon
from agents.bird.messages import OPEN
from agents.bird.speaker import Speaker
from emulator.addr import parse_ip
from emulator.runtime.listener import listen_tcp
from tests.bgp_speakers import bgp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OURS, THEIRS = "127.44.7.1", "127.44.7.2"
CONFIG = SpeakerConfig(parse_ip(OURS))


@contextlib.asynccontextmanager
async def daemon(patience_s: float) -> AsyncIterator[BirdDaemon]:
    """One that knows nobody yet."""
    speaker = Speaker(CONFIG, random.Random(1), now=asyncio.get_running_loop().time())
    log = logging.getLogger("podwire.bird")
    found = BirdDaemon(speaker, log, listen=listen_tcp(OURS, 0), patience_s=patience_s)
    started = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(found.run(started.set), name="bird")
        await started.wait()
        yield found
        task.cancel()


@contextlib.asynccontextmanager
async def connection(found: BirdDaemon) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection(OURS, found.port, local_addr=(THEIRS, 0))
    try:
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_who_comes_by_a_second_port_is_heard_as_who_comes_by_the_first() -> None:
    async with asyncio.timeout(30), daemon(0.0) as found:
        found.configure(replace(CONFIG, bgp=(bgp("peer", THEIRS, passive=True),)))
        second = listen_tcp(OURS, 0)
        port = second.getsockname()[1]
        await found.listen_also(second)
        for wanted in (port, found.port):
            reader, writer = await asyncio.open_connection(OURS, wanted, local_addr=(THEIRS, 0))
            assert (await reader.readexactly(19))[18] == OPEN
            writer.close()
            await writer.wait_closed()
            while found.speaker.peers["peer"].connections.incoming is not None:
                await asyncio.sleep(0.01)
        await found.listen_also(None)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(OURS, port)


async def nothing(reader: asyncio.StreamReader) -> bool:
    """Wait until the connection ends; true if not a word was said."""
    with contextlib.suppress(ConnectionResetError):
        return not await reader.read()
    return True


async def test_a_peer_that_comes_before_its_configuration_is_taken_in_with_it() -> None:
    async with asyncio.timeout(30), daemon(60.0) as found, connection(found) as reader:
        while not found.strangers:
            await asyncio.sleep(0.001)
        peer = bgp("early", THEIRS, passive=True)
        found.configure(replace(CONFIG, bgp=(peer,)))
        header = await reader.readexactly(19)
        assert header[18] == OPEN
        assert not found.strangers


async def test_patience_ends() -> None:
    async with asyncio.timeout(30), daemon(0.05) as found, connection(found) as reader:
        assert await nothing(reader)
        assert not found.strangers


async def test_without_patience_nobody_waits() -> None:
    async with asyncio.timeout(30), daemon(0.0) as found, connection(found) as reader:
        assert await nothing(reader)


async def test_a_stranger_that_leaves_is_forgotten() -> None:
    async with asyncio.timeout(30), daemon(0.2) as found:
        async with connection(found):
            while not found.strangers:
                await asyncio.sleep(0.001)
        while found.strangers:
            await asyncio.sleep(0.001)
