"""The same program on asyncio's own loop over loopback and in virtual time sees the same things."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from emulator.sim.world import simulate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def on_the_real_loop(program: Callable[[], Awaitable[list[str]]]) -> list[str]:
    async def main() -> list[str]:
        return await program()

    return asyncio.run(main())


def in_virtual_time(program: Callable[[], Awaitable[list[str]]]) -> list[str]:
    async def main(world: Any) -> list[str]:
        host = world.host("here", "127.0.0.1")
        result: list[str] = await host.spawn(run(), name="program")
        return result

    async def run() -> list[str]:
        return await program()

    return simulate(main)


class Recorder(asyncio.Protocol):
    """Writes down what a protocol is told, chunks of data joined."""

    def __init__(self, name: str, seen: dict[str, list[str]]) -> None:
        self.seen = seen.setdefault(name, [])
        self.lost = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.seen.append("made")

    def data_received(self, data: bytes) -> None:
        text = data.decode()
        if self.seen[-1].startswith("data "):
            self.seen[-1] += text
        else:
            self.seen.append(f"data {text}")

    def eof_received(self) -> bool:
        self.seen.append("eof")
        return self.keeps_open()

    def keeps_open(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.seen.append(f"lost {type(exc).__name__}")
        self.lost.set_result(None)


class HalfOpen(Recorder):
    def keeps_open(self) -> bool:
        self.transport.write(b"after eof")
        self.transport.close()
        return True


async def pair(kind: type[Recorder]) -> tuple[Recorder, Recorder, Any, dict[str, list[str]]]:
    loop, seen = asyncio.get_running_loop(), {}
    accepted: asyncio.Future[Recorder] = loop.create_future()

    def factory() -> Recorder:
        protocol = kind("server", seen)
        accepted.set_result(protocol)
        return protocol

    server = await loop.create_server(factory, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, client = await loop.create_connection(lambda: Recorder("client", seen), "127.0.0.1", port)
    return client, await accepted, server, seen


def told(seen: dict[str, list[str]]) -> list[str]:
    return [f"{name}: {event}" for name in ("client", "server") for event in seen[name]]


async def a_client_writes_and_closes() -> list[str]:
    client, served, server, seen = await pair(Recorder)
    client.transport.write(b"hello")
    client.transport.close()
    await asyncio.gather(client.lost, served.lost)
    server.close()
    return told(seen)


async def a_half_closed_connection_is_answered() -> list[str]:
    client, served, server, seen = await pair(HalfOpen)
    client.transport.write(b"question")
    client.transport.write_eof()
    await asyncio.gather(client.lost, served.lost)
    server.close()
    return told(seen)


async def an_aborted_connection_is_reset() -> list[str]:
    client, served, server, seen = await pair(Recorder)
    served.transport.abort()
    await asyncio.gather(client.lost, served.lost)
    server.close()
    # Linux sends FIN for an abort with nothing unread, RST otherwise: only the end counts.
    return [event.split()[0] + event.split()[1] for event in told(seen) if "lost" in event]


async def a_large_transfer_arrives_whole() -> list[str]:
    client, served, server, seen = await pair(Recorder)
    client.transport.write(b"x" * 1_000_000)
    client.transport.close()
    await asyncio.gather(client.lost, served.lost)
    server.close()
    return [event[:20] + str(len(event)) for event in told(seen)]


async def nobody_listens() -> list[str]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    try:
        await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
    except OSError as error:
        return [type(error).__name__]
    return ["connected"]


async def a_taken_port() -> list[str]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        await loop.create_server(asyncio.Protocol, "127.0.0.1", port)
    except OSError as error:
        return [str(error.errno)]
    finally:
        server.close()
    return ["listening twice"]


async def streams_read_to_the_end() -> list[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"you said " + await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    writer.write(b"hello\n")
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    server.close()
    return [said.decode()]


async def a_task_group_ends_its_children() -> list[str]:
    seen: list[str] = []

    async def child(number: int) -> None:
        try:
            await asyncio.sleep(0.01 * number)
            seen.append(f"{number} done")
        except asyncio.CancelledError:
            seen.append(f"{number} cancelled")
            raise

    async def group() -> None:
        async with asyncio.timeout(0.035), asyncio.TaskGroup() as tasks:
            for number in range(1, 6):
                tasks.create_task(child(number))

    with pytest.raises(TimeoutError):
        await group()
    return sorted(seen)


@pytest.mark.parametrize(
    "program",
    [
        a_client_writes_and_closes, a_half_closed_connection_is_answered,
        an_aborted_connection_is_reset, a_large_transfer_arrives_whole, nobody_listens,
        a_taken_port, streams_read_to_the_end, a_task_group_ends_its_children,
    ],
)  # fmt: skip
def test_both_loops_tell_the_same(program: Callable[[], Awaitable[list[str]]]) -> None:
    assert in_virtual_time(program) == on_the_real_loop(program)
