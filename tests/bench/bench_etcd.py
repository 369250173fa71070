"""Our etcd beside a real one: ``python -m tests.bench.bench_etcd [seconds] [--rounds N]``.

Both sync every write, on the same filesystem (PODWIRE_BENCH_DIR chooses it), and are measured in
turns, so that what else the machine does hits both alike; rates are medians of the rounds.  The
load generator costs 2 µs a call (``etcd_load``) and is the same for both.  Figures marked "x" are
ratios to the real etcd.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from etcd.client import EtcdClient
from etcd.core.pb import rpc_pb2 as pb
from etcd.server import EtcdConfig, run_etcd
from tests.bench.etcd_load import start_load
from tests.etcd_servers import (
    NO_REAL_ETCD,
    free_port,
    process_etcd,
    real_etcd_binary,
    real_etcd_process,
    role_env,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

CONNECTIONS = 4
KEYS = 1000
VALUE = random.Random(1).randbytes(256)
WATCHERS = 300
EVENTS = 300
MEMORY_KEYS = 100_000
MILLION = 1_000_000
MIDDLE = 1000
PUTS_A_TXN = 125
# Loaded with so many transactions in flight.
LOADERS = 16
START_RUNS = 5

Process = asyncio.subprocess.Process


class Goal(NamedTuple):
    """What a figure must and should reach; ``ratio``: to the real etcd, else absolute."""

    must: float
    aim: float
    ratio: bool
    more_is_better: bool


GOALS = {
    "puts/s, 64 clients": Goal(0.8, 1.5, True, True),
    "puts/s, 1 client": Goal(1, 1.5, True, True),
    "ranges/s, 64 clients": Goal(0.8, 1.3, True, True),
    f"fan-out {WATCHERS}x{EVENTS}, server CPU s": Goal(3, 1.5, False, False),
    "start to first answer, forked warm, ms": Goal(150, 60, False, False),
    "start to first answer, new process, ms": Goal(150, 60, False, False),
    f"memory with {MEMORY_KEYS} keys, MB": Goal(1.5, 1, True, False),
    "restart with a million keys, s": Goal(float("inf"), 10, False, False),
}


class Report:
    """Prints each figure as soon as both sides have it."""

    def __init__(self) -> None:
        self._theirs: dict[str, float] = {}

    def add(self, what: str, ours: float, theirs: float | None, note: str = "") -> None:
        """Print one line of the table."""
        line = f"{what:42} {ours:10.4g}"
        ratio = ours / theirs if theirs else float("nan")
        line += f"  etcd {theirs:9.4g}  x {ratio:5.2f}" if theirs is not None else " " * 26
        goal = GOALS.get(what)
        if goal is not None and (theirs is not None or not goal.ratio):
            value = ratio if goal.ratio else ours
            reached = [
                value >= bound if goal.more_is_better else value <= bound
                for bound in (goal.must, goal.aim)
            ]
            verdict = "aim reached" if reached[1] else "must reached" if reached[0] else "MISSED"
            line += f"  must {goal.must:g}, aim {goal.aim:g}: {verdict}"
        print(line + (f"  ({note})" if note else ""), flush=True)


# Measuring one server ----------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


class Rate(NamedTuple):
    """Calls a second, and what one cost the server and the generator in microseconds of CPU."""

    per_s: float
    server_us: float
    load_us: float


async def rate(
    server: tuple[Process, str], path: str, requests: Sequence[bytes], clients: int, seconds: float
) -> Rate:
    """Measure with so many calls in flight."""
    process, endpoint = server
    loads = await start_load(endpoint, path, requests, clients, CONNECTIONS)
    await asyncio.sleep(seconds / 4)
    done, begun = sum(load.done for load in loads), time.monotonic()
    cpu, mine = cpu_s(process.pid), time.process_time()
    await asyncio.sleep(seconds)
    calls = sum(load.done for load in loads) - done
    took = time.monotonic() - begun
    cpu, mine = cpu_s(process.pid) - cpu, time.process_time() - mine
    for load in loads:
        load.close()
    return Rate(calls / took, cpu / calls * 1e6, mine / calls * 1e6)


async def fan_out(server: tuple[Process, str]) -> tuple[float, float]:
    """Return server CPU and wall seconds for many watchers of one prefix."""
    process, endpoint = server
    seen = 0
    done = asyncio.Event()

    async def follow(client: EtcdClient, ready: asyncio.Event) -> None:
        nonlocal seen
        async with client.watch(b"fan/", prefix=True) as batches:
            ready.set()
            async for batch in batches:
                seen += len(batch.events)
                if seen >= WATCHERS * EVENTS:
                    done.set()

    clients = [EtcdClient([endpoint]) for _ in range(10)]
    readies = [asyncio.Event() for _ in range(WATCHERS)]
    tasks = [
        asyncio.create_task(follow(clients[n % len(clients)], readies[n])) for n in range(WATCHERS)
    ]
    for ready in readies:
        await ready.wait()
    cpu, begun = cpu_s(process.pid), time.monotonic()
    for number in range(EVENTS):
        await clients[0].put(b"fan/%d" % number, b"x" * 100)
    await done.wait()
    result = cpu_s(process.pid) - cpu, time.monotonic() - begun
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in clients:
        await client.close()
    return result


async def load_keys(endpoint: str, count: int, value: bytes) -> None:
    """Put keys ``key%07d``, many to a transaction."""
    pending = iter(range(0, count, PUTS_A_TXN))

    async def work(client: EtcdClient) -> None:
        for first in pending:
            puts = [
                pb.RequestOp(request_put=pb.PutRequest(key=b"key%07d" % n, value=value))
                for n in range(first, min(first + PUTS_A_TXN, count))
            ]
            request = pb.TxnRequest(success=puts)
            await client._channel.call("/etcdserverpb.KV/Txn", request, pb.TxnResponse, read=False)

    async with EtcdClient([endpoint], timeout_s=60) as client:
        await asyncio.gather(*(work(client) for _ in range(LOADERS)))


async def middle_ms(client: EtcdClient, count: int) -> float:
    """Return the best time of a range of 1,000 keys in the middle."""
    first = count // 2
    times = []
    for _ in range(10):
        begun = time.monotonic()
        found = await client.get(b"key%07d" % first, range_end=b"key%07d" % (first + MIDDLE))
        times.append((time.monotonic() - begun) * 1000)
        assert found.count == len(found.kvs) == MIDDLE
        assert found.kvs[0].key == b"key%07d" % first
    return min(times)


# Both servers ------------------------------------------------------------------------------

Starter = tuple[str, "Callable[[Path], AbstractAsyncContextManager[tuple[Process, str]]]"]


@contextlib.asynccontextmanager
async def real_without_limit(data_dir: Path) -> AsyncIterator[tuple[Process, str]]:
    """The real etcd as it comes: its quota of 2 GB holds every load of this program."""
    async with real_etcd_process(data_dir) as server:
        yield server


async def rates(report: Report, base: Path, starters: Sequence[Starter], arguments: object) -> None:
    """Puts, ranges and fan-out of servers that run at the same time, measured in turns."""
    seconds = getattr(arguments, "seconds", 2.0)
    rounds = getattr(arguments, "rounds", 3)
    puts = [pb.PutRequest(key=b"key%06d" % n, value=VALUE).SerializeToString() for n in range(KEYS)]
    ranges = [pb.RangeRequest(key=b"key%06d" % n).SerializeToString() for n in range(KEYS)]
    found: dict[tuple[str, str], list[Rate]] = {}
    async with contextlib.AsyncExitStack() as stack:
        servers = {}
        for name, start in starters:
            servers[name] = await stack.enter_async_context(start(base / f"rates-{name}"))
        for _, (kind, path, requests), clients, name in itertools.product(
            range(rounds),
            (("puts", "/etcdserverpb.KV/Put", puts), ("ranges", "/etcdserverpb.KV/Range", ranges)),
            (1, 64),
            servers,
        ):
            one = await rate(servers[name], path, requests, clients, seconds)
            what = f"{kind}/s, {clients} client{'s' if clients > 1 else ''}"
            found.setdefault((what, name), []).append(one)
        for what in dict.fromkeys(what for what, _ in found):
            _report_rate(report, what, found)
        spread = {name: await fan_out(server) for name, server in servers.items()}
        theirs = spread.get("etcd")
        what = f"fan-out {WATCHERS}x{EVENTS}, server CPU s"
        report.add(what, spread["ours"][0], theirs and theirs[0], f"{spread['ours'][1]:.1f} s wall")


def _report_rate(report: Report, what: str, found: dict[tuple[str, str], list[Rate]]) -> None:
    def middle(name: str, field: str) -> float | None:
        values = [getattr(one, field) for one in found.get((what, name), [])]
        return statistics.median(values) if values else None

    ours, theirs = middle("ours", "per_s"), middle("etcd", "per_s")
    assert ours is not None
    note = f"generator {middle('ours', 'load_us'):.1f} µs a call"
    report.add(what, ours, theirs, note)
    server = middle("ours", "server_us")
    assert server is not None
    report.add("  server CPU µs a call", server, middle("etcd", "server_us"))


async def memory(report: Report, base: Path, starters: Sequence[Starter]) -> None:
    """Resident memory of fresh servers with 100,000 keys."""
    found = {}
    empty = {}
    for name, start in starters:
        async with start(base / f"memory-{name}") as (process, endpoint):
            empty[name] = rss_mb(process.pid)
            await load_keys(endpoint, MEMORY_KEYS, VALUE)
            found[name] = rss_mb(process.pid)
    note = f"empty {empty['ours']:.0f}"
    report.add(f"memory with {MEMORY_KEYS} keys, MB", found["ours"], found.get("etcd"), note)


async def million(report: Report, base: Path, starters: Sequence[Starter]) -> None:
    """Restart with a million keys, and whether a range in the middle depends on their number."""
    figures: dict[str, dict[str, float]] = {}
    for name, start in starters:
        mine = figures[name] = {}
        directory = base / f"million-{name}"
        async with start(directory) as (_, endpoint), EtcdClient([endpoint]) as client:
            await load_keys(endpoint, 10 * MIDDLE, VALUE)
            mine["small"] = await middle_ms(client, 10 * MIDDLE)
            await load_keys(endpoint, MILLION, VALUE)
        begun = time.monotonic()
        async with (
            start(directory) as (process, endpoint),
            EtcdClient([endpoint], timeout_s=60) as client,
        ):
            await client.get(b"key0000000")
            mine["restart"] = time.monotonic() - begun
            mine["large"] = await middle_ms(client, MILLION)
            mine["rss"] = rss_mb(process.pid)
    ours, theirs = figures["ours"], figures.get("etcd", {})
    report.add("restart with a million keys, s", ours["restart"], theirs.get("restart"))
    report.add("  range of 1,000 in the middle, ms", ours["large"], theirs.get("large"))
    report.add("  the same among 10,000 keys, ms", ours["small"], theirs.get("small"))
    report.add("  memory with a million keys, MB", ours["rss"], theirs.get("rss"))


# Starting ----------------------------------------------------------------------------------


async def start_ms(
    start: Callable[[Path], AbstractAsyncContextManager[object]], base: Path
) -> float:
    """Return the best time from starting a process to its first answer."""
    times = []
    for number in range(START_RUNS):
        begun = time.monotonic()
        async with start(base / f"{number}") as server:
            assert isinstance(server, tuple)
            async with EtcdClient([server[1]]) as client:
                await client.get(b"x")
                times.append((time.monotonic() - begun) * 1000)
    return min(times)


def _serve_forked(data_dir: str, port: int) -> None:
    config = EtcdConfig(data_dir=data_dir, listen_port=port)
    asyncio.run(run_etcd(config, role_env()))


def forked_ms(base: Path) -> float:
    """The same from a fork of this process, where everything is imported, as in ``podwire up``."""
    context = multiprocessing.get_context("fork")
    times = []
    for number in range(START_RUNS):
        port = free_port()
        begun = time.monotonic()
        child = context.Process(target=_serve_forked, args=(str(base / f"{number}"), port))
        child.start()
        try:
            asyncio.run(_first_answer(f"127.0.0.1:{port}"))
            times.append((time.monotonic() - begun) * 1000)
        finally:
            child.kill()
            child.join()
    return min(times)


async def _first_answer(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    while True:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(0.001)
            continue
        writer.close()
        break
    async with EtcdClient([endpoint]) as client:
        await client.get(b"x")


async def run(base: Path, arguments: argparse.Namespace) -> None:
    report = Report()
    starters: list[Starter] = [("ours", process_etcd)]
    if real_etcd_binary() is None:
        print(NO_REAL_ETCD)
    else:
        starters.insert(0, ("etcd", real_without_limit))
    print(f"{'':42} {'ours':>10}")
    theirs = None
    if len(starters) > 1:
        theirs = await start_ms(real_without_limit, base / "start-etcd")
    ours = await start_ms(process_etcd, base / "start-ours")
    report.add("start to first answer, new process, ms", ours, theirs, "imports included")
    await rates(report, base, starters, arguments)
    await memory(report, base, starters)
    if not arguments.no_million:
        await million(report, base, starters)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each rate")
    parser.add_argument("--no-million", action="store_true", help="skip the million keys")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=os.environ.get("PODWIRE_BENCH_DIR")) as directory:
        base = Path(directory)
        warm = forked_ms(base / "forked")
        Report().add("start to first answer, forked warm, ms", warm, None, "as in podwire up")
        asyncio.run(run(base, given))


if __name__ == "__main__":
    main(sys.argv[1:])
