"""How fast a cluster is up, what a node costs, how long 100 nodes take.

``python -m tests.bench.bench_cluster``
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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
def running(nodes: int) -> Iterator[Podwire]:
    """A cluster, up."""
    home = Path(tempfile.mkdtemp(prefix="pw-bench-"))
    podwire = Podwire(home, "bench")
    try:
        podwire.podwire("up", "--nodes", str(nodes), "--detach")
        podwire.env["KUBECONFIG"] = str(home / "bench" / "kubeconfig")
        yield podwire
    finally:
        podwire.podwire("down", check=False)
        shutil.rmtree(home, ignore_errors=True)


def first_curl_s() -> tuple[float, float]:
    """Seconds from typing ``podwire up`` to up, and to the first page through a NodePort."""
    started_at = time.monotonic()
    with running(3) as podwire:
        up_s = time.monotonic() - started_at
        url = f"http://{podwire.status()['nodes'][0]['underlay']}:30080"
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


def node_memory() -> None:
    """What one more node costs: the median over nodes, idle, with one pod each."""
    with running(10) as podwire:
        podwire.kubectl("create", "-f", "-", stdin=MANIFEST.replace("replicas: 3", "replicas: 10"))
        podwire.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
        status = podwire.status()
        nodes = [pss_kib(node["pid"]) for node in status["nodes"]]
        print(
            f"PSS of one of 10 nodes, 1 pod each: median {statistics.median(nodes) / 1024:.1f} MiB"
        )
        for role in ("etcd", "controlplane"):
            print(f"PSS of {role}: {pss_kib(status[role]['pid']) / 1024:.1f} MiB")


def large_cluster() -> None:
    """Seconds from typing ``podwire up`` until every node has a route to every other's subnet."""
    started_at = time.monotonic()
    with running(LARGE) as podwire:
        up_s = time.monotonic() - started_at
        for node in podwire.status()["nodes"]:
            while True:
                out = podwire.node(node["name"], "ip", "route").out
                if out.count("dev flannel.1 onlink") == LARGE - 1:
                    break
                if time.monotonic() - started_at > 300:
                    sys.exit(f"{node['name']} has not all routes within 300 s")
        routes_s = time.monotonic() - started_at
    print(f"{LARGE} nodes: up {up_s:.1f} s, all routes seen in all nodes {routes_s:.1f} s")


def main() -> None:
    """Print the figures."""
    runs = [first_curl_s() for _ in range(RUNS)]
    ups, curls = [run[0] for run in runs], [run[1] for run in runs]
    print(f"3 nodes, {RUNS} runs: up median {statistics.median(ups):.2f} s")
    print(f"3 nodes to first curl through a NodePort: median {statistics.median(curls):.2f} s")
    node_memory()
    large_cluster()


if __name__ == "__main__":
    main()
