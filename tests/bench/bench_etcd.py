"""Our etcd beside a real one: ``python -m tests.bench.bench_etcd [seconds]``.

Both sync every write.  The load comes from this process, through the HTTP/2 core with requests
encoded beforehand, so that the server is what is measured.  Figures to reach: puts/s 0.8 x etcd
with 64 clients and 1 x with one, ranges/s 0.8 x, start to first answer 150 ms, 300 watchers x 300
events in 3 s of server CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from etcd.client import EtcdClient
from etcd.core import grpc
from etcd.core.http2 import connection as h2
from etcd.core.pb import rpc_pb2 as pb
from tests.etcd_servers import NO_REAL_ETCD, process_etcd, real_etcd, real_etcd_binary

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECTIONS = 4
KEYS = 1000
VALUE = bytes(range(256))
WATCHERS = 300
EVENTS = 300


class Load(asyncio.Protocol):
    """Keeps a number of calls in flight on one connection."""

    def __init__(self, path: str, requests: Sequence[bytes], in_flight: int) -> None:
        self._h2 = h2.Http2Connection(client=True)
        self._block = grpc.request_block(path, "bench")
        self._requests = requests
        self._in_flight = in_flight
        self._rng = random.Random(1)
        self._transport: asyncio.Transport | None = None
        self.done = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        for _ in range(self._in_flight):
            self._call()
        transport.write(self._h2.data_to_send())

    def _call(self) -> None:
        stream_id = self._h2.open_stream(self._block)
        self._h2.send_data(stream_id, self._rng.choice(self._requests), end_stream=True)

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data, now=time.monotonic()):
            if isinstance(event, h2.HeadersReceived) and event.end_stream:
                self.done += 1
                self._call()
            elif isinstance(event, h2.Failed):
                raise AssertionError(event.reason)
        assert self._transport is not None
        self._transport.write(self._h2.data_to_send())

    def close(self) -> None:
        assert self._transport is not None
        self._transport.abort()


async def rate(
    endpoint: str, path: str, requests: Sequence[bytes], clients: int, seconds: float
) -> float:
    """Return calls per second with so many calls in flight."""
    loop = asyncio.get_running_loop()
    host, _, port = endpoint.rpartition(":")
    connections = min(clients, CONNECTIONS)
    loads = []
    for _ in range(connections):
        _, load = await loop.create_connection(
            lambda: Load(path, requests, clients // connections), host, int(port)
        )
        loads.append(load)
    await asyncio.sleep(seconds / 4)
    before, begun = sum(load.done for load in loads), loop.time()
    await asyncio.sleep(seconds)
    result = (sum(load.done for load in loads) - before) / (loop.time() - begun)
    for load in loads:
        load.close()
    return result


async def calls(name: str, endpoint: str, seconds: float) -> dict[str, float]:
    """Measure puts and ranges."""
    puts = [
        grpc.frame(pb.PutRequest(key=b"key%06d" % n, value=VALUE).SerializeToString())
        for n in range(KEYS)
    ]
    ranges = [
        grpc.frame(pb.RangeRequest(key=b"key%06d" % n).SerializeToString()) for n in range(KEYS)
    ]
    found = {}
    for kind, path, requests in (
        ("put", "/etcdserverpb.KV/Put", puts),
        ("range", "/etcdserverpb.KV/Range", ranges),
    ):
        for clients in (1, 64):
            what = f"{kind}s/s, {clients} clients"
            found[what] = await rate(endpoint, path, requests, clients, seconds)
            print(f"{name:12} {what:24} {found[what]:10.0f}", flush=True)
    return found


async def fan_out(name: str, endpoint: str, pid: int) -> None:
    """Measure the server's CPU for many watchers of one prefix."""
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
    cpu = _cpu_s(pid)
    begun = time.monotonic()
    for number in range(EVENTS):
        await clients[0].put(b"fan/%d" % number, b"x" * 100)
    await done.wait()
    print(
        f"{name:12} {WATCHERS} watchers x {EVENTS} events: server CPU {_cpu_s(pid) - cpu:.2f} s, "
        f"wall {time.monotonic() - begun:.2f} s",
        flush=True,
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in clients:
        await client.close()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


async def first_answer(data_dir: Path) -> float:
    """Return milliseconds from starting the process to its first answer."""
    begun = time.monotonic()
    async with process_etcd(data_dir) as (_, endpoint), EtcdClient([endpoint]) as client:
        await client.get(b"x")
        return (time.monotonic() - begun) * 1000


async def run(seconds: float) -> None:
    theirs: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("PODWIRE_BENCH_DIR")) as directory:
        base = Path(directory)
        times = [await first_answer(base / f"start{n}") for n in range(3)]
        print(f"{'ours':12} new process to first answer {min(times):6.0f} ms (imports included)")
        if real_etcd_binary() is None:
            print(NO_REAL_ETCD)
        else:
            async with real_etcd(base / "real") as endpoint:
                theirs = await calls("real etcd", endpoint, seconds)
        async with process_etcd(base / "ours") as (process, endpoint):
            ours = await calls("ours", endpoint, seconds)
            await fan_out("ours", endpoint, process.pid)
            print(f"{'ours':12} resident {_rss_mb(process.pid):.0f} MB")
    for what, value in ours.items():
        if what in theirs:
            print(f"{'ours / real':12} {what:24} {value / theirs[what]:10.2f}")


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=2.0)
    asyncio.run(run(parser.parse_args(arguments).seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
