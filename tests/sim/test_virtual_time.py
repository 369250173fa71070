"""The virtual-time loop and its network behave as asyncio on Linux does, only at once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from emulator.sim.fabric import LinkQuality
from emulator.sim.loop import NotSimulatedError, StalledError
from emulator.sim.world import World, simulate

if TYPE_CHECKING:
    from emulator.sim.host import SimHost


def two_hosts(world: World) -> tuple[SimHost, SimHost]:
    return world.host("a", "10.0.0.1"), world.host("b", "10.0.0.2")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve_echo() -> None:
    server = await asyncio.start_server(echo, "0.0.0.0", 7)
    await server.serve_forever()


async def ask(text: bytes, host: str = "b") -> bytes:
    reader, writer = await asyncio.open_connection(host, 7)
    writer.write(text)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def test_a_day_passes_in_no_time() -> None:
    async def main(world: World) -> float:
        await asyncio.sleep(3 * 86400)
        return world.loop.time()

    began = time.monotonic()
    assert simulate(main) == pytest.approx(3 * 86400)
    assert time.monotonic() - began < 5


def test_equal_deadlines_fire_in_the_order_they_were_set() -> None:
    async def main(world: World) -> list[int]:
        fired: list[int] = []
        for number in range(200):
            world.loop.call_at(5.0, fired.append, number)
        await asyncio.sleep(6)
        return fired

    assert simulate(main) == list(range(200))


def test_a_task_group_cancels_in_creation_order() -> None:
    async def main(_: World) -> list[int]:
        ended: list[int] = []

        async def wait(number: int) -> None:
            try:
                await asyncio.sleep(100)
            finally:
                ended.append(number)

        async def fail() -> None:
            await asyncio.sleep(1)
            raise ValueError

        async def group_of_20() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(wait(number))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup):
            await group_of_20()
        return ended

    assert simulate(main) == list(range(20))


def test_a_world_where_nothing_can_happen_says_who_waits() -> None:
    async def main(_: World) -> None:
        await asyncio.Event().wait()

    with pytest.raises(StalledError, match=r"nothing can happen any more.*\n.*in Event\.wait"):
        simulate(main)


def test_threads_processes_and_descriptors_are_refused() -> None:
    async def main(world: World) -> None:
        with pytest.raises(NotSimulatedError, match="run_in_executor"):
            await asyncio.to_thread(print)
        with pytest.raises(NotSimulatedError, match="subprocess_exec"):
            await asyncio.create_subprocess_exec("true")
        with pytest.raises(NotSimulatedError, match="add_reader"):
            world.loop.add_reader(0, print)

    simulate(main)


def test_streams_carry_bytes_with_the_links_latency() -> None:
    async def main(world: World) -> tuple[bytes, float]:
        a, b = two_hosts(world)
        world.fabric.set_quality(a, b, LinkQuality(latency_s=0.25))
        b.spawn(serve_echo(), name="echo")
        await asyncio.sleep(0)
        answer = await a.spawn(ask(b"x" * 300_000), name="ask")
        took = world.loop.time()
        await b.stop()
        return answer, took

    answer, took = simulate(main)
    assert answer == b"x" * 300_000
    # Handshake, then request and answer.
    assert 1.0 <= took < 5.0


def test_nobody_listening_refuses_and_nobody_there_times_out() -> None:
    async def main(world: World) -> float:
        a, b = two_hosts(world)
        with pytest.raises(ConnectionRefusedError):
            await a.spawn(ask(b"x"), name="ask")
        with pytest.raises(OSError, match=r"10\.0\.0\.99"):
            await a.spawn(ask(b"x", "10.0.0.99"), name="ask")
        world.fabric.partition([a], [b])
        began = world.loop.time()
        with pytest.raises(TimeoutError):
            await a.spawn(ask(b"x"), name="ask")
        return world.loop.time() - began

    assert simulate(main) == pytest.approx(127, abs=1)


def test_a_partition_holds_a_streams_bytes_until_it_heals() -> None:
    async def main(world: World) -> float:
        a, b = two_hosts(world)
        b.spawn(serve_echo(), name="echo")
        await asyncio.sleep(0)

        async def talk() -> bytes:
            reader, writer = await asyncio.open_connection("b", 7)
            world.fabric.partition([a], [b])
            writer.write(b"held")
            answer = await reader.readexactly(4)
            writer.close()
            return answer

        task = a.spawn(talk(), name="talk")
        await asyncio.sleep(300)
        assert not task.done()
        world.fabric.heal()
        assert await task == b"held"
        ended = world.loop.time()
        await b.stop()
        return ended

    assert simulate(main) < 305


def test_a_crash_says_nothing_and_a_restart_resets() -> None:
    async def main(world: World) -> list[str]:
        a, b = two_hosts(world)
        seen: list[str] = []

        async def client() -> None:
            reader, writer = await asyncio.open_connection("b", 7)
            writer.write(b"1")
            seen.append((await reader.readexactly(1)).decode())
            await b_crashed.wait()
            writer.write(b"2")
            try:
                await reader.readexactly(1)
            except ConnectionResetError:
                seen.append(f"reset after {round(world.loop.time())}")

        async def last_words() -> None:
            try:
                await serve_echo()
            finally:
                seen.append("finally")
                with pytest.raises(OSError, match="Network is down"):
                    await asyncio.open_connection("a", 7)

        b_crashed = asyncio.Event()
        b.spawn(last_words(), name="echo")
        await asyncio.sleep(0)
        task = a.spawn(client(), name="client")
        await world.until(lambda: seen == ["1"])
        await b.crash()
        b_crashed.set()
        await asyncio.sleep(30)
        assert not task.done()
        b.spawn(serve_echo(), name="echo")
        await task
        await b.stop()
        return seen

    seen = simulate(main)
    assert seen[:2] == ["1", "finally"]
    assert seen[2].startswith("reset after 3")


def test_a_stopped_program_closes_its_connections_and_its_machine_refuses_new_ones() -> None:
    async def main(world: World) -> list[str]:
        a, b = two_hosts(world)
        seen: list[str] = []

        async def serve_farewell() -> None:
            async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    await reader.read()
                finally:
                    writer.write(b"farewell")

            await (await asyncio.start_server(greet, "0.0.0.0", 7)).serve_forever()

        async def client() -> None:
            reader, writer = await asyncio.open_connection("b", 7)
            seen.append((await reader.read()).decode())
            writer.close()

        b.spawn(serve_farewell(), name="serve")
        await asyncio.sleep(0)
        task = a.spawn(client(), name="client")
        await asyncio.sleep(1)
        await b.stop()
        await task
        with pytest.raises(ConnectionRefusedError):
            await a.spawn(ask(b"x"), name="ask")
        return seen

    assert simulate(main) == ["farewell"]


class Collector(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.errors: list[Exception] = []

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.append(data)

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)


def test_datagrams_are_lost_doubled_and_reordered_as_asked() -> None:
    async def main(world: World) -> list[bytes]:
        a, b = two_hosts(world)
        quality = LinkQuality(latency_s=0.01, jitter_s=0.05, loss=0.2, duplicate=0.2, reorder=0.1)
        world.fabric.set_quality(a, b, quality)
        collector = Collector()

        async def bind() -> None:
            await world.loop.create_datagram_endpoint(lambda: collector, ("0.0.0.0", 9))

        async def send() -> None:
            transport, _ = await world.loop.create_datagram_endpoint(
                Collector, remote_addr=("b", 9)
            )
            for number in range(1000):
                transport.sendto(b"%d" % number)
                await asyncio.sleep(0.001)

        await b.spawn(bind(), name="bind")
        await a.spawn(send(), name="send")
        await asyncio.sleep(1)
        return collector.received

    received = simulate(main, seed=3)
    assert 900 < len(received) < 1050
    assert 750 < len(set(received)) < 850
    assert received != sorted(received, key=int)
    assert simulate(main, seed=3) == received
    assert simulate(main, seed=4) != received


def test_closed_udp_port_is_told_to_a_connected_socket() -> None:
    async def main(world: World) -> list[Exception]:
        a, _ = two_hosts(world)

        async def send() -> Collector:
            transport, collector = await world.loop.create_datagram_endpoint(
                Collector, remote_addr=("b", 9)
            )
            transport.sendto(b"x")
            await asyncio.sleep(1)
            transport.close()
            return collector

        return (await a.spawn(send(), name="send")).errors

    errors = simulate(main)
    assert [type(error) for error in errors] == [ConnectionRefusedError]


def test_writers_are_paused_while_the_reader_does_not_read() -> None:
    async def main(world: World) -> tuple[bool, int]:
        a, b = two_hosts(world)
        go = asyncio.Event()
        total = 0

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal total
            await go.wait()
            while data := await reader.read(1000):
                total += len(data)
            writer.close()

        async def serve() -> None:
            await (await asyncio.start_server(slow, "0.0.0.0", 7)).serve_forever()

        async def flood() -> None:
            _, writer = await asyncio.open_connection("b", 7)
            for _ in range(100):
                writer.write(b"x" * 10_000)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

        b.spawn(serve(), name="serve")
        await asyncio.sleep(0)
        task = a.spawn(flood(), name="flood")
        await asyncio.sleep(60)
        blocked = not task.done()
        go.set()
        await task
        await world.until(lambda: total == 1_000_000)
        await b.stop()
        return blocked, total

    assert simulate(main) == (True, 1_000_000)
