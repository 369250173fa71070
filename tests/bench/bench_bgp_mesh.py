"""A full mesh of speakers in real processes: ``python -m tests.bench.bench_bgp_mesh [nodes]``.

Every node is a process with Calico's own timers, both sides dial, all start at once; the time is
from the start of the sessions to the moment every node has every block.  ``--daemon bird2`` and
``bird1`` measure the real ones.  Then a new block appears on one node: the time until all have it.

Figures to reach with 30 nodes: 4 s, aim 1 s (BIRD 1.6.8 took 32 s, BIRD 2 took 3.8 s).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PORT = 11791
TIMEOUT_S = 120.0
# New blocks, and withdrawals, of one run.
CHANGES = 5

# One node: argv is number and count.  Commands come as lines: "go", "add", "del"; it answers "all"
# when it has every block, "more" and "less" when the extra one came and went.
NODE = """
import asyncio, gc, logging, random, sys, time
from dataclasses import replace
from agents.bird.config import *
from agents.bird.daemon import BirdDaemon
from agents.bird.filters import ACCEPT_ALL
from agents.bird.net import Afi, Net
from agents.bird.speaker import Speaker

me, count = int(sys.argv[1]), int(sys.argv[2])
eager = sys.argv[3] == "eager"

def ip(n): return (127 << 24) + (89 << 16) + (n // 250 << 8) + n % 250 + 1
def number(ip): return (ip >> 8 & 255) * 250 + (ip & 255) - 1
def name(n): return f"127.89.{n // 250}.{n % 250 + 1}"
timers = replace(CALICO_TIMERS, first_delay_s=0.0) if eager else CALICO_TIMERS

def config(extra):
    routes = [StaticRoute(Net.parse(f"10.{100 + me // 256}.{me % 256}.0/26"))]
    if extra:
        routes.append(StaticRoute(Net.parse("10.99.0.0/26")))
    return SpeakerConfig(ip(me), tuple(
        BgpConfig(f"Mesh_{n}", ip(n), 64512, 64512, timers=timers,
                  ipv4=ChannelConfig(export_filter=ACCEPT_ALL, add_paths=AddPaths.ON),
                  graceful_restart=GracefulRestart.ON)
        for n in range(count) if n != me), (StaticConfig(tuple(routes)),), listen_port=PORT)

async def main():
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    await lines.readline()
    speaker = Speaker(config(False), random.Random(me), now=loop.time())
    table = speaker.tables[Afi.IPV4].routes
    daemon = BirdDaemon(speaker, logging.getLogger(), listen=(name(me), PORT),
                        local_host=name(me), resolve=lambda n: (name(number(n)), PORT))
    task = asyncio.create_task(daemon.run())
    async def wait(check, word):
        while not check():
            await asyncio.sleep(0.002)
        print(word, time.monotonic(), flush=True)
    extra = Net.parse("10.99.0.0/26").key
    await wait(lambda: len(table) == count, "all")
    while line := await lines.readline():
        match line.strip():
            case b"add":
                if me == 0: daemon.configure(config(True))
                await wait(lambda: extra in table, "more")
            case b"del":
                if me == 0: daemon.configure(config(False))
                await wait(lambda: extra not in table, "less")
    task.cancel()

gc.freeze()
asyncio.run(main())
""".replace("PORT", str(PORT))


async def _ask(nodes: Sequence[asyncio.subprocess.Process], word: str) -> list[float]:
    """Tell all nodes a word; the moments of their answers."""

    async def one(node: asyncio.subprocess.Process) -> float:
        assert node.stdout is not None
        line = await node.stdout.readline()
        return float(line.split()[1])

    for node in nodes:
        assert node.stdin is not None
        node.stdin.write(word.encode() + b"\n")
    async with asyncio.timeout(TIMEOUT_S):
        return list(await asyncio.gather(*(one(node) for node in nodes)))


async def measure(count: int, *, eager: bool) -> dict[str, float]:
    """One run: seconds."""
    env = dict(os.environ, PYTHONPATH=os.getcwd())
    nodes = []
    try:
        for number in range(count):
            node = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                NODE,
                str(number),
                str(count),
                "eager" if eager else "calico",
                env=env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            nodes.append(node)
        for node in nodes:
            assert node.stdout is not None
            await node.stdout.readline()
        began = time.monotonic()
        times = await _ask(nodes, "go")
        result = {"converged": max(times) - began}
        waits: dict[str, list[float]] = {"add": [], "del": []}
        for _ in range(CHANGES):
            for word, times in waits.items():
                began = time.monotonic()
                times += [at - began for at in await _ask(nodes, word)]
        for word, times in waits.items():
            result[word] = statistics.quantiles(times, n=100)[98]
        return result
    finally:
        for node in nodes:
            node.kill()
        await asyncio.gather(*(node.wait() for node in nodes))


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nodes", nargs="?", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments if arguments is not None else [])
    for eager in (False, True):
        runs = [asyncio.run(measure(options.nodes, eager=eager)) for _ in range(options.rounds)]
        best = {key: round(statistics.median(r[key] for r in runs), 3) for key in runs[0]}
        worst = round(max(r["converged"] for r in runs), 3)
        what = "first attempt at once" if eager else "Calico's timers"
        print(f"{options.nodes} nodes, {what}: {json.dumps(best)}, worst start {worst} s")


if __name__ == "__main__":
    main(sys.argv[1:])
