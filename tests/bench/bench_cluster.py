"""How fast a cluster is up, what a node costs, how long 100 nodes take.

``python -m tests.bench.bench_cluster``

Bytecode lies in a directory of its own, written by a first start that is not counted: what is
measured is the second start of an installation, whatever the environment says of ``.pyc`` files.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulator.runtime.control import ControlClient
from tests.e2e.harness import Podwire

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = 5
LARGE = 100
MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: nginx, image: nginx}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, nodePort: 30080}]
"""


@contextmanager
def running(nodes: int, bytecode: Path) -> Iterator[Podwire]:
    """A cluster, up."""
    home = Path(tempfile.mkdtemp(prefix="pw-bench-"))
    podwire = Podwire(home, "bench")
    podwire.env.pop("PYTHONDONTWRITEBYTECODE", None)
    podwire.env["PYTHONPYCACHEPREFIX"] = str(bytecode)
    try:
        podwire.podwire("up", "--nodes", str(nodes), "--detach")
        podwire.env["KUBECONFIG"] = str(home / "bench" / "kubeconfig")
        yield podwire
    finally:
        podwire.podwire("down", check=False)
        shutil.rmtree(home, ignore_errors=True)


def status_of(podwire: Podwire) -> dict[str, Any]:
    """What the supervisor knows; ``podwire status`` asks every role, which is work for them."""

    async def ask() -> dict[str, Any]:
        async with ControlClient(str(podwire.home / "bench" / "run" / "supervisor.sock")) as client:
            status: dict[str, Any] = await client.call("status")
            return status

    return asyncio.run(ask())


def first_curl_s(bytecode: Path) -> tuple[float, float]:
    """Seconds from typing ``podwire up`` to up, and to the first page through a NodePort."""
    started_at = time.monotonic()
    with running(3, bytecode) as podwire:
        up_s = time.monotonic() - started_at
        url = f"http://{status_of(podwire)['nodes'][0]['underlay']}:30080"
        podwire.kubectl("create", "-f", "-", stdin=MANIFEST)
        while "Welcome to nginx" not in curl(url):
            if time.monotonic() - started_at > 60:
                sys.exit("no page within 60 s")
        return up_s, time.monotonic() - started_at


def curl(url: str) -> str:
    done = subprocess.run(["curl", "-s", "-m", "2", url], capture_output=True, check=False)
    return done.stdout.decode()


def pss_kib(pid: int) -> int:
    """Proportional set size of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("smaps_rollup has no Pss line")


def total_pss_kib(status: dict[str, Any]) -> int:
    """What all processes of a cluster take together."""
    roles = [status[role] for role in ("supervisor", "etcd", "controlplane")]
    pids = [role["pid"] for role in (*roles, *status["nodes"])]
    return sum(map(pss_kib, [*pids, parent_of(status["etcd"]["pid"])]))


def parent_of(pid: int) -> int:
    """The process that forked it."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def with_pods(nodes: int, bytecode: Path) -> tuple[list[int], int]:
    """KiB of PSS of each node and of all processes, idle, with one pod on each node."""
    with running(nodes, bytecode) as podwire:
        many = MANIFEST.replace("replicas: 3", f"replicas: {nodes}")
        podwire.kubectl("create", "-f", "-", stdin=many)
        podwire.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
        status = status_of(podwire)
        each = [pss_kib(node["pid"]) for node in status["nodes"]]
        return each, total_pss_kib(status)


def mb(kib: float) -> str:
    """KiB as MB of a million bytes."""
    return f"{kib * 1.024 / 1000:.1f} MB"


def node_memory(bytecode: Path) -> None:
    """What a node costs: what the whole cluster grows by with one more, and its own PSS.

    Its own PSS has a share of what all processes have in common, which is the larger the fewer they
    are; it is no node's cost.
    """
    sizes = (3, 10, 20)
    measured = [with_pods(nodes, bytecode) for nodes in sizes]
    for few, many in ((0, 1), (1, 2)):
        growth = (measured[many][1] - measured[few][1]) / (sizes[many] - sizes[few])
        print(f"PSS of all processes, each node more, {sizes[few]} to {sizes[many]}: {mb(growth)}")
    for nodes, (each, total) in zip(sizes, measured, strict=True):
        one = mb(statistics.median(each))
        print(f"PSS of one of {nodes} nodes, 1 pod each: median {one}; all processes {mb(total)}")


async def all_routes(sockets: list[str], deadline: float) -> None:
    """Return when every node has a route to every other's subnet."""

    async def ask(path: str) -> None:
        async with ControlClient(path) as node:
            while True:
                chunks = [chunk async for chunk in node.stream("exec", argv=["ip", "route"])]
                out = b"".join(chunk["data"] for chunk in chunks if chunk.get("fd") == 1)
                if out.count(b"dev flannel.1 onlink") == len(sockets) - 1:
                    return
                if time.monotonic() > deadline:
                    sys.exit(f"{path}: not all routes in time")
                await asyncio.sleep(0.1)

    await asyncio.gather(*map(ask, sockets))


def large_cluster(bytecode: Path) -> None:
    """Seconds from typing ``podwire up`` until every node has a route to every other's subnet."""
    started_at = time.monotonic()
    with running(LARGE, bytecode) as podwire:
        up_s = time.monotonic() - started_at
        status = status_of(podwire)
        sockets = [node["control"] for node in status["nodes"]]
        asyncio.run(all_routes(sockets, started_at + 300))
        routes_s = time.monotonic() - started_at
        one = mb(statistics.median(pss_kib(node["pid"]) for node in status["nodes"]))
        total = mb(total_pss_kib(status))
    print(f"{LARGE} nodes: up {up_s:.1f} s, all routes seen in all nodes {routes_s:.1f} s")
    print(f"PSS of one of {LARGE} nodes: median {one}; all processes {total}")


def main() -> None:
    """Print the figures."""
    bytecode = Path(tempfile.mkdtemp(prefix="pw-bench-pyc-"))
    try:
        with running(1, bytecode):
            pass
        runs = [first_curl_s(bytecode) for _ in range(RUNS)]
        ups, curls = [run[0] for run in runs], [run[1] for run in runs]
        print(f"3 nodes, {RUNS} runs: up median {statistics.median(ups):.2f} s")
        print(f"3 nodes to first curl through a NodePort: median {statistics.median(curls):.2f} s")
        node_memory(bytecode)
        large_cluster(bytecode)
    finally:
        shutil.rmtree(bytecode, ignore_errors=True)


if __name__ == "__main__":
    main()
