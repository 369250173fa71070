"""A Calico cluster of real node processes: ``python -m tests.bench.bench_calico [nodes …]``.

From typing ``podwire up`` until every block is a route of every node, and the CPU that took; a new
block in the routes of some of the nodes and its withdrawal; failover by BFD; ``--reflectors N``: N
nodes through two route reflectors.  Beside them meshes of 30 BIRDs with Calico's timers.

Figures to reach: 30 nodes 4 s, aim 1 s; 100 nodes 10 s, aim 2 s; a new block p99 500 ms, aim 50 ms;
failover with BFD of 3 times 100 ms 600 ms, aim 400 ms; 300 nodes by reflectors 20 s, aim 8 s.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import operator
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agents.calico.client import ResourceClient
from agents.calico.datastore import EtcdDatastore
from agents.calico.ipam.ipam import Ipam
from agents.calico.net import Cidr
from agents.calico.resources import new_resource
from emulator.runtime.clock import real_clock
from emulator.runtime.control import ControlClient
from etcd.client import EtcdClient
from tests.bench import bird_meshes
from tests.e2e.harness import Podwire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

DEADLINE_S: Final = 300.0
# New blocks and withdrawals of one run, and the nodes that are watched: each is asked again and
# again, which is work for the same processors.
CHANGES: Final = 10
PAUSE_S: Final = 0.5
WATCHED: Final = 10
ASKED_AT_ONCE: Final = 4
POOL: Final = "10.244.0.0/16"
CLUSTER: Final = """
apiVersion: podwire.dev/v1alpha1
kind: Cluster
nodes: {nodes}
network: {{type: calico, podCIDR: POOL, {more}}}
""".replace("POOL", POOL)


def cpu_s(pid: int) -> float:
    """Seconds a process has computed (proc(5) stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Cluster:
    """A running cluster; ``started_at`` is when ``podwire up`` was typed."""

    def __init__(self, podwire: Podwire, started_at: float, status: dict[str, Any]) -> None:
        self.podwire = podwire
        self.started_at = started_at
        self.status = status
        self.nodes: list[dict[str, Any]] = status["nodes"]

    def cpu(self) -> dict[str, float]:
        """Seconds computed by etcd, the control plane and all nodes."""
        return {
            "etcd": cpu_s(self.status["etcd"]["pid"]),
            "control plane": cpu_s(self.status["controlplane"]["pid"]),
            "nodes": sum(cpu_s(node["pid"]) for node in self.nodes),
        }

    async def routes(self, node: dict[str, Any]) -> bytes:
        """``ip route`` of a node."""
        async with ControlClient(node["control"]) as client:
            chunks = [chunk async for chunk in client.stream("exec", argv=["ip", "route"])]
        return b"".join(chunk["data"] for chunk in chunks if chunk.get("fd") == 1)

    async def wait(
        self,
        nodes: Sequence[dict[str, Any]],
        done: Callable[[bytes], bool],
        look: Sequence[str] = ("ip", "route"),
        every_s: float = 0.02,
    ) -> list[float]:
        """When what a node says to a command was first as wanted, for each of some nodes."""

        async def one(node: dict[str, Any]) -> float:
            async with ControlClient(node["control"]) as client:
                while True:
                    stream = client.stream("exec", argv=list(look))
                    chunks = [chunk async for chunk in stream]
                    text = b"".join(chunk["data"] for chunk in chunks if chunk.get("fd") == 1)
                    if done(text):
                        return time.monotonic()
                    if time.monotonic() > self.started_at + DEADLINE_S:
                        sys.exit(
                            f"{node['name']}: not the routes that were expected\n{text.decode()}"
                        )
                    await asyncio.sleep(every_s)

        return list(await asyncio.gather(*map(one, nodes)))

    async def all_blocks(self) -> float:
        """Seconds from the start until every node was seen with a route to every other's block.

        A few nodes at a time are asked until they have them: to ask all of some hundred again and
        again would be most of the work.
        """
        others = len(self.nodes) - 1

        def complete(text: bytes) -> bool:
            lines = text.splitlines()
            return sum(b"proto bird" in line and b" via " in line for line in lines) >= others

        at = 0.0
        for first in range(0, len(self.nodes), ASKED_AT_ONCE):
            some = self.nodes[first : first + ASKED_AT_ONCE]
            at = max(await self.wait(some, complete, every_s=0.2))
        return at - self.started_at

    @contextlib.asynccontextmanager
    async def datastore(self) -> AsyncIterator[EtcdDatastore]:
        endpoint = self.podwire.run(
            [sys.executable, "-m", "emulator.cli.main", "env", "--name", self.podwire.name]
        ).out
        line = next(line for line in endpoint.splitlines() if "ETCDCTL_ENDPOINTS" in line)
        address = line.partition("=")[2].strip("'\"; ")
        async with EtcdClient([address]) as client:
            yield EtcdDatastore(client)


@contextlib.asynccontextmanager
async def running(nodes: int, bytecode: Path, more: str = "") -> AsyncIterator[Cluster]:
    """A cluster, up."""
    home = Path(tempfile.mkdtemp(prefix="pw-bench-"))
    podwire = Podwire(home, "bench")
    podwire.env.pop("PYTHONDONTWRITEBYTECODE", None)
    podwire.env["PYTHONPYCACHEPREFIX"] = str(bytecode)
    file = home / "cluster.yaml"
    file.write_text(CLUSTER.format(nodes=nodes, more=more))
    try:
        began = time.monotonic()
        argv = ["up", "--name", "bench", str(file), "--detach"]
        up = await asyncio.to_thread(
            podwire.run,
            [sys.executable, "-m", "emulator.cli.main", *argv],
            timeout_s=DEADLINE_S,
        )
        assert up.code == 0
        async with ControlClient(str(home / "bench" / "run" / "supervisor.sock")) as client:
            status = await client.call("status")
        yield Cluster(podwire, began, status)
    finally:
        podwire.podwire("down", check=False)
        shutil.rmtree(home, ignore_errors=True)


def load() -> str:
    """What else the machine does: figures of a busy one are not the code's."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"


async def start(nodes: int, bytecode: Path) -> float:
    """Start a mesh, tell what it took, then what a new block takes."""
    before = load()
    async with running(nodes, bytecode) as cluster:
        up_s = time.monotonic() - cluster.started_at
        seconds = await cluster.all_blocks()
        cpu = cluster.cpu()
        parts = ", ".join(f"{name} {value:.1f}" for name, value in cpu.items())
        print(
            f"{nodes} nodes, {nodes * (nodes - 1) // 2} sessions: up {up_s:.1f} s, every block in "
            f"every node {seconds:.1f} s; CPU s: {parts}, {cpu['nodes'] / nodes * 1000:.0f} ms a "
            f"node; {before} before"
        )
        await new_blocks(cluster)
    return seconds


async def new_blocks(cluster: Cluster) -> None:
    """Claim blocks on one node and give them back; when do others have and lose the route?"""
    rng = random.Random(1)
    watched = rng.sample(cluster.nodes[1:], min(WATCHED, len(cluster.nodes) - 1))
    origin = cluster.nodes[0]["name"]
    came: list[float] = []
    went: list[float] = []
    async with cluster.datastore() as store:
        ipam = Ipam(store, real_clock())
        used = {str(block.cidr) for block in await ipam.blocks()}
        free = [
            text for high in range(255, -1, -1) if (text := f"10.244.{high}.192/26") not in used
        ]
        for text in free[:CHANGES]:
            block, look = Cidr.parse(text), ("ip", "route", "show", text)
            await asyncio.sleep(PAUSE_S)
            began = time.monotonic()
            waiting = asyncio.create_task(cluster.wait(watched, bool, look))
            await ipam.claim_affinity(block, origin)
            came += [at - began for at in await waiting]
            await asyncio.sleep(PAUSE_S)
            began = time.monotonic()
            waiting = asyncio.create_task(cluster.wait(watched, operator.not_, look))
            await ipam.release_affinity(block, origin, must_be_empty=True)
            went += [at - began for at in await waiting]
    for what, times in (("a new block", came), ("its withdrawal", went)):
        p99 = statistics.quantiles(times, n=100)[98]
        print(
            f"  {what} in {len(watched)} of {len(cluster.nodes)} nodes, {CHANGES} times: median "
            f"{statistics.median(times) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms; {load()}"
        )


async def failover(bytecode: Path) -> None:
    """Stop a node: when does another forget its block?  BFD every 100 ms, three missed."""
    times = []
    more = "bfd: {interval: 100ms, multiplier: 3}"
    async with running(3, bytecode, more) as cluster:
        await cluster.all_blocks()
        victim, other = cluster.nodes[2], cluster.nodes[0]
        lines = (await cluster.routes(victim)).splitlines()
        block = next(line.split()[1] for line in lines if line.startswith(b"blackhole"))
        for _ in range(CHANGES // 2):
            await cluster.wait([other], lambda out: block + b" via" in out)
            # BFD is slow (1 s) until it is up.
            await asyncio.sleep(3)
            os.kill(victim["pid"], signal.SIGSTOP)
            began = time.monotonic()
            try:
                lost = await cluster.wait([other], lambda out: block + b" via" not in out)
            finally:
                os.kill(victim["pid"], signal.SIGCONT)
            times.append(lost[0] - began)
    print(
        f"failover with BFD of 3 times 100 ms: median {statistics.median(times) * 1000:.0f} ms, "
        f"worst {max(times) * 1000:.0f} ms of {len(times)}; {load()}"
    )


async def reflectors(nodes: int, bytecode: Path) -> None:
    """From two reflectors' resources to every block in every node, and the start before it."""
    async with running(nodes, bytecode, "nodeToNodeMesh: false") as cluster:
        up_s = time.monotonic() - cluster.started_at
        began = time.monotonic()
        async with cluster.datastore() as store:
            resources = ResourceClient(store, real_clock(), random.Random(1))
            for node in cluster.nodes[:2]:
                found = await resources.get("Node", node["name"])
                found["metadata"].setdefault("labels", {})["route-reflector"] = "true"
                found["spec"]["bgp"]["routeReflectorClusterID"] = "244.0.0.1"
                await resources.update(found)
            spec = {"nodeSelector": "all()", "peerSelector": "has(route-reflector)"}
            await resources.create(new_resource("BGPPeer", "reflectors", spec))
        seconds = await cluster.all_blocks() + cluster.started_at - began
        print(
            f"{nodes} nodes, 2 route reflectors: up {up_s:.1f} s without BGP, then every block in "
            f"every node {seconds:.1f} s after the resources were written; {load()}"
        )


async def measure(sizes: Sequence[int], reflected: int) -> None:
    bytecode = Path(tempfile.mkdtemp(prefix="pw-bench-pyc-"))
    try:
        async with running(2, bytecode):
            pass
        figures = {nodes: await start(nodes, bytecode) for nodes in sizes}
        await failover(bytecode)
        if reflected:
            await reflectors(reflected, bytecode)
        for kind in ("bird1", "bird2"):
            seconds = await bird_meshes.start_s(kind)
            if seconds is None:
                print(f"{kind}: not here, or not up within {bird_meshes.TIMEOUT_S:.0f} s")
                continue
            ours = figures.get(bird_meshes.NODES)
            ratio = f", {seconds / ours:.1f} times ours with its whole cluster" if ours else ""
            print(
                f"{kind}: mesh of {bird_meshes.NODES} daemons up in {seconds:.1f} s{ratio}; "
                f"{load()}"
            )
    finally:
        shutil.rmtree(bytecode, ignore_errors=True)


def main(arguments: Sequence[str] = ()) -> None:
    """Measure with the sizes the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nodes", nargs="*", type=int)
    parser.add_argument("--reflectors", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    asyncio.run(measure(options.nodes or (30, 100), options.reflectors))


if __name__ == "__main__":
    main(sys.argv[1:])
