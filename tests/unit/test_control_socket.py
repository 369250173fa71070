"""Control sockets: calls, streams, errors and garbage."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from emulator.errors import UsageError
from emulator.runtime.control import (
    MAX_FEED_ITEMS,
    Call,
    ControlClient,
    ControlError,
    ControlServer,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

LOG = logging.getLogger("test")


async def add(call: Call) -> int:
    a: int = call.param("a", int)
    b: int = call.param("b", int)
    return a + b


async def count(call: Call) -> AsyncGenerator[object, None]:
    for number in range(call.param("to", int)):
        yield number


async def echo(call: Call) -> AsyncGenerator[object, None]:
    while (item := await call.feed.get()) is not None:
        yield item


class Endless:
    """A stream that notices when it is cancelled."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def run(self, call: Call) -> AsyncGenerator[object, None]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            self.closed.set()


@pytest.fixture
async def socket_path(tmp_path: Path) -> AsyncIterator[str]:
    path = str(tmp_path / "role.sock")
    server = ControlServer({"add": add, "count": count, "echo": echo}, LOG)
    await server.start_unix(path)
    yield path
    await server.close()
    assert not (tmp_path / "role.sock").exists()


async def test_a_call_returns_the_result(socket_path: str) -> None:
    async with ControlClient(socket_path) as client:
        assert await client.call("add", a=2, b=3) == 5


async def test_overlapping_calls_keep_their_answers(socket_path: str) -> None:
    async with ControlClient(socket_path) as client:
        answers = await asyncio.gather(*(client.call("add", a=n, b=1) for n in range(50)))
        assert answers == list(range(1, 51))


@pytest.mark.parametrize(
    ("method", "params", "text"),
    [
        ("nope", {}, "no such method 'nope' .*add, count, echo"),
        ("add", {"a": 1}, "parameter 'b' is missing"),
        ("add", {"a": 1, "b": "2"}, "parameter 'b' must be int"),
    ],
)
async def test_errors_name_what_is_wrong(
    socket_path: str, method: str, params: dict[str, Any], text: str
) -> None:
    async with ControlClient(socket_path) as client:
        with pytest.raises(UsageError, match=text):
            await client.call(method, **params)


async def test_a_stream_yields_its_items_in_order(socket_path: str) -> None:
    async with ControlClient(socket_path) as client:
        assert [item async for item in client.stream("count", to=5)] == [0, 1, 2, 3, 4]


async def test_a_fed_stream_sees_what_is_fed(socket_path: str) -> None:
    async def typed() -> AsyncIterator[object]:
        yield b"ls\n"
        yield None

    async with ControlClient(socket_path) as client:
        assert [item async for item in client.stream("echo", feed=typed())] == [b"ls\n"]


async def test_a_caller_that_stops_reading_cancels_the_stream(tmp_path: Path) -> None:
    endless = Endless()
    server = ControlServer({"endless": endless.run}, LOG)
    await server.start_unix(str(tmp_path / "s"))
    async with ControlClient(str(tmp_path / "s")) as client:
        stream = client.stream("endless")
        assert await anext(stream) == b"x"
        await stream.aclose()
        async with asyncio.timeout(30):
            await endless.closed.wait()
    await server.close()


async def test_garbage_ends_only_its_own_connection(socket_path: str) -> None:
    reader, writer = await asyncio.open_unix_connection(socket_path)
    writer.write(b"\xff\xff\xff\xffgarbage")
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    writer.close()
    async with ControlClient(socket_path) as client:
        assert await client.call("add", a=1, b=1) == 2


async def test_a_missing_process_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing answers at .*podwire status"):
        async with ControlClient(str(tmp_path / "gone.sock")):
            pass


async def test_input_that_nobody_reads_ends_the_connection_instead_of_being_lost(
    tmp_path: Path,
) -> None:
    async def deaf(call: Call) -> AsyncGenerator[object, None]:
        yield "ready"
        await asyncio.Event().wait()

    async def pieces() -> AsyncIterator[object]:
        for number in range(MAX_FEED_ITEMS + 1):
            yield number

    server = ControlServer({"deaf": deaf}, LOG)
    await server.start_unix(str(tmp_path / "s"))
    async with ControlClient(str(tmp_path / "s")) as client:
        stream = client.stream("deaf", feed=pieces())
        assert await anext(stream) == "ready"
        with pytest.raises(ControlError, match="the process went away"):
            await anext(stream)
    await server.close()
