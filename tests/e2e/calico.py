"""Calico clusters for tests: how they are started and asked, and long conversations."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import Podwire, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness import Done

POOL = "default-ipv4-ippool"
WELCOME = "<title>Welcome to nginx!</title>"
REQUEST = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
# a and b share a subnet, c and d another one behind the gateway.
NODES = {
    "a": "10.10.64.11/20",
    "b": "10.10.64.12/20",
    "c": "10.10.80.13/20",
    "d": "10.10.80.14/20",
}
ADDRESS = {name: text.partition("/")[0] for name, text in NODES.items()}


def cluster_file(nodes: str, **network: object) -> str:
    """A cluster of the nodes named by letters; ``network`` says more about the pod network."""
    document = {
        "apiVersion": "podwire.dev/v1alpha1",
        "kind": "Cluster",
        "network": {"type": "calico", **network},
        "serviceCIDR": "10.96.0.0/12",
        "nodeNetwork": {"cidr": "10.10.64.0/19", "gateway": "10.10.64.1"},
        "nodes": [{"name": name, "ip": NODES[name]} for name in nodes],
    }
    return json.dumps(document)


def pod(name: str, node: str, image: str = "nginx", **more: Any) -> dict[str, Any]:
    """A pod on a node; images but nginx only sleep.  ``labels`` and ``annotations`` are told."""
    container: dict[str, Any] = {"name": "c", "image": image}
    if image != "nginx":
        container["command"] = ["sleep", "3600"]
    spec: dict[str, Any] = {"containers": [container], "terminationGracePeriodSeconds": 0}
    if node:
        spec["nodeName"] = node
    metadata = {"name": name, **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def crd(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """One of Calico's resources as kubectl sees it."""
    version = "crd.projectcalico.org/v1"
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, **metadata},
        "spec": spec,
    }


def ask_bird(path: str, command: str) -> list[str]:
    """Say one thing to a control socket of BIRD; the lines it answers."""
    with socket.socket(socket.AF_UNIX) as talk:
        talk.settimeout(5)
        talk.connect(path)
        with talk.makefile("r") as lines:
            lines.readline()
            talk.sendall(f"{command}\n".encode())
            answer = []
            for line in lines:
                if line[:4].isdigit() and line[4:5] == " ":
                    if line[:4] != "0000":
                        answer.append(line)
                    return answer
                answer.append(line)
    return answer


class Calico(Podwire):
    """A Calico cluster of one test file."""

    def up(self, *argv: str, text: str | None = None) -> None:
        """Start it: of a cluster file's text, or of other arguments."""
        if shutil.which("kubectl", path=self.env["PATH"]) is None:
            pytest.skip("kubectl is not installed")
        if text is not None:
            path = self.home / f"{self.name}.yaml"
            path.write_text(text)
            argv = (str(path), *argv)
        self.podwire("up", *argv, "--detach")
        self.env["KUBECONFIG"] = self.podwire("kubeconfig").out.strip()

    def apply(self, *objects: dict[str, Any]) -> None:
        """``kubectl apply`` of all in one call."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"kind": "List", "apiVersion": "v1",
                                                           "items": list(objects)}))  # fmt: skip

    def pods(self, *objects: dict[str, Any], namespace: str = "default") -> dict[str, str]:
        """Make pods and wait until they run; their addresses by name."""
        self.apply(*objects)
        names = [each["metadata"]["name"] for each in objects]
        self.kubectl(
            *("wait", "--for=condition=Ready", "--timeout=30s", "-n", namespace),
            *(f"pod/{name}" for name in names),
        )
        found = self.get("pods", "-n", namespace)["items"]
        held = {each["metadata"]["name"]: each["status"]["podIP"] for each in found}
        return {name: held[name] for name in names}

    def pool(self, name: str = POOL, **spec: object) -> None:
        """``kubectl patch ippool``."""
        patch = json.dumps({"spec": spec})
        self.kubectl("patch", "ippool", name, "--type=merge", "-p", patch)

    def calicoctl(self, *argv: str, check: bool = True, stdin: str | None = None) -> Done:
        """``podwire calicoctl``."""
        command = [sys.executable, "-m", "emulator.cli.main", "calicoctl", "--name", self.name]
        return self.run([*command, *argv], check=check, stdin=stdin)

    def protocols(self, node: str) -> dict[str, tuple[str, str, str]]:
        """``birdc show protocols`` without a client: (state, since, info) of BGP sessions."""
        paths = {each["name"]: each["bird_ctl"] for each in self.status()["nodes"]}
        lines = ask_bird(paths[node], "show protocols")
        words = [line[5:].split() if line[:1].isdigit() else line.split() for line in lines]
        return {
            each[0]: (each[3], each[4], " ".join(each[5:]))
            for each in words
            if len(each) >= 5 and each[1] == "BGP"
        }

    def routes(self, node: str) -> list[str]:
        """``ip route`` without the blanks at the ends of lines."""
        return [line.rstrip() for line in self.node(node, "ip", "route").out.splitlines()]

    def block(self, node: str) -> str:
        """The first block a node has announced in its own table."""
        lines = self.routes(node)
        return next(line.split()[1] for line in lines if line.startswith("blackhole"))

    def until_routed(self, node: str, route: str, within_s: float = 20.0) -> None:
        """Wait until a node's table has this very line."""
        wait_for(f"{node} routes {route}", lambda: route in self.routes(node), within_s)

    def gets(self, who: str, url: str, *, timeout_s: float = 1, namespace: str = "default") -> bool:
        """Whether a pod gets nginx's page."""
        done = self.kubectl(
            *("exec", "-n", namespace, who, "--"),
            *("curl", "-s", "-m", str(timeout_s), f"http://{url}/"),
            check=False,
        )
        return WELCOME in done.out

    def refused(self, who: str, url: str, *, namespace: str = "default") -> bool:
        """Whether a pod that asks twice gets nothing."""
        return not any(self.gets(who, url, timeout_s=0.4, namespace=namespace) for _ in range(2))

    def node_gets(self, node: str, url: str) -> bool:
        """Whether a node gets nginx's page."""
        return WELCOME in self.node(node, "curl", "-s", "-m", "1", url, check=False).out

    def etcdctl(self, *argv: str, stdin: str | None = None) -> str:
        """Debian's etcdctl on the cluster's etcd."""
        if shutil.which("etcdctl") is None:
            pytest.skip("etcdctl is not installed")
        endpoint = self.status()["etcd"]["endpoints"][0]
        return self.run(["etcdctl", "--endpoints", endpoint, *argv], stdin=stdin).out

    def underlay(self, node: str) -> str:
        """A node's address on the host."""
        return str(next(n["underlay"] for n in self.status()["nodes"] if n["name"] == node))

    def pid(self, role: str) -> int:
        """The process of a node, of etcd or of the control plane."""
        status = self.status()
        roles = (status["etcd"], status["controlplane"], *status["nodes"])
        return int(next(entry["pid"] for entry in roles if entry["name"] == role))


class Conversation:
    """One TCP connection of a pod with an nginx, asked ten times a second until closed.

    ``longest_s`` is the longest time between two answers, ``answers`` how many there were.
    """

    def __init__(self, cluster: Podwire, who: str, address: str) -> None:
        self.answers = 0
        self.longest_s = 0.0
        self._last = 0.0
        self._process = subprocess.Popen(
            ["kubectl", "exec", "-i", who, "--", "nc", address, "80"],
            env=cluster.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._stop = threading.Event()
        self._threads = (
            threading.Thread(target=self._ask, daemon=True),
            threading.Thread(target=self._listen, daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        assert self._process.stdin is not None
        while not self._stop.wait(0.1):
            try:
                self._process.stdin.write(REQUEST)
                self._process.stdin.flush()
            except OSError:
                return

    def _listen(self) -> None:
        assert self._process.stdout is not None
        tail = b""
        while data := os.read(self._process.stdout.fileno(), 65536):
            found = (tail + data).count(b"HTTP/1.1 200 OK")
            tail = (tail + data)[-14:]
            if found:
                now = time.monotonic()
                if self.answers:
                    self.longest_s = max(self.longest_s, now - self._last)
                self._last = now
                self.answers += found

    def silent_s(self) -> float:
        """How long ago the last answer came."""
        return time.monotonic() - self._last

    def until_answered(self, what: str, within_s: float = 10.0) -> None:
        """Wait for an answer to something asked from now on."""
        before = self.answers + 2
        wait_for(f"answers {what}", lambda: self.answers >= before, within_s)

    def forget(self) -> None:
        """Measure the longest silence anew."""
        self.longest_s = 0.0

    def close(self) -> None:
        self._stop.set()
        self._process.kill()
        self._process.wait(10)
        for thread in self._threads:
            thread.join(10)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def calico(home: Path, prefix: str) -> Calico:
    """A cluster with a name of this process."""
    return Calico(home, f"{prefix}{os.getpid()}")
