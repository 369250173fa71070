"""Calico's IPAM on our etcd: ``python -m tests.bench.bench_ipam [hosts]``.

All hosts ask for one address at the same moment, again and again; each has its own connection, all
are in this process, etcd is another and syncs every write.  Figures to reach: p99 of an address
50 ms, better 20 ms, with 50 hosts at once.  The first round is told apart: every host claims its
block in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agents.calico.client import ResourceClient
from agents.calico.datastore import EtcdDatastore
from agents.calico.ipam.assign import AssignRequest
from agents.calico.ipam.ipam import Ipam
from agents.calico.ipam.order import block_order
from agents.calico.net import Cidr
from agents.calico.resources import new_resource
from emulator.runtime.clock import real_clock
from etcd.client import EtcdClient
from tests.etcd_servers import process_etcd

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

ROUNDS = 40


async def at_once(asks: list[Callable[[], Awaitable[object]]]) -> list[float]:
    """Begin all at the same moment; return what each took, in ms."""

    async def timed(ask: Callable[[], Awaitable[object]]) -> float:
        begun = time.perf_counter()
        await ask()
        return (time.perf_counter() - begun) * 1000

    return list(await asyncio.gather(*(timed(ask) for ask in asks)))


def cpu_s(pid: int) -> float:
    """Seconds a process has computed (proc(5) stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(samples: list[float], part: float) -> float:
    """The value below which a part of the samples lies."""
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * part))]


def show(what: str, samples: list[float]) -> None:
    """One line of figures."""
    print(
        f"{what:<28} {len(samples):5d} samples  median {statistics.median(samples):6.1f} ms  "
        f"p99 {quantile(samples, 0.99):6.1f} ms  max {max(samples):6.1f} ms"
    )


async def measure(hosts: int) -> None:
    """Claim, assign, release; print each."""
    clock, rng = real_clock(), random.Random(1)
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        etcd, endpoint = await stack.enter_async_context(process_etcd(Path(directory)))
        stores = [
            EtcdDatastore(await stack.enter_async_context(EtcdClient([endpoint], rng=rng)))
            for _ in range(hosts)
        ]
        resources = ResourceClient(stores[0], clock, rng)
        await resources.create(new_resource("IPPool", "p", {"cidr": "192.168.0.0/16"}))
        for number in range(hosts):
            await resources.create(new_resource("Node", f"kube-{number}", {}))
        ipams = [Ipam(store, clock) for store in stores]
        # Connections and the constants of the block order are not what is measured.
        await asyncio.gather(*(ipam.config() for ipam in ipams))
        await asyncio.gather(*(ipam.pools() for ipam in ipams))
        for number in range(hosts):
            next(block_order(Cidr.parse("192.168.0.0/16"), 26, f"kube-{number}", now_ns=0))
        got: list[str] = []

        def ask(number: int, round_: int) -> Callable[[], Awaitable[object]]:
            async def assign() -> None:
                request = AssignRequest(
                    f"kube-{number}",
                    handle=f"k8s-pod-network.{number}-{round_}",
                    secondary={"node": f"kube-{number}", "pod": f"pod-{round_}"},
                )
                got.extend(str(ip) for ip in (await ipams[number].auto_assign(request)).ips)

            return assign

        def give_back(number: int, round_: int) -> Callable[[], Awaitable[object]]:
            handle = f"k8s-pod-network.{number}-{round_}"
            return lambda: ipams[number].release_by_handle(handle)

        show(
            f"first address, {hosts} hosts",
            await at_once([ask(number, 0) for number in range(hosts)]),
        )
        assigned: list[float] = []
        ours, theirs = time.process_time(), cpu_s(etcd.pid)
        for round_ in range(1, ROUNDS):
            assigned += await at_once([ask(number, round_) for number in range(hosts)])
        show(f"next address, {hosts} hosts", assigned)
        ours, theirs = time.process_time() - ours, cpu_s(etcd.pid) - theirs
        print(
            f"{'CPU of a next address':<28} hosts {ours / len(assigned) * 1e6:.0f} µs, "
            f"etcd {theirs / len(assigned) * 1e6:.0f} µs"
        )
        assert len(got) == len(set(got)) == hosts * ROUNDS, "an address was given twice"
        released: list[float] = []
        for round_ in range(ROUNDS):
            released += await at_once([give_back(number, round_) for number in range(hosts)])
        show(f"release, {hosts} hosts", released)
        alone: list[float] = []
        for round_ in range(ROUNDS):
            alone += await at_once([ask(0, ROUNDS + round_)])
        show("next address, one host", alone)


def main(arguments: Sequence[str] = ()) -> None:
    """Measure with the hosts the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hosts", nargs="?", type=int, default=50)
    asyncio.run(measure(parser.parse_args(arguments).hosts))


if __name__ == "__main__":
    main(sys.argv[1:])
