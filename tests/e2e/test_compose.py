"""compose.yaml with a real engine: the roles of one image, a container each.

An image is built, so only with ``PODWIRE_TEST_COMPOSE=1``.  The test starts an engine of its own;
what stays of it are its (empty) chains in the host's iptables, as of every Docker engine.
Where no registry of images can be reached, ``PODWIRE_TEST_BASE_TAR`` is a root file system to build
from::

    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm root
    tar -C root -cf base.tar .
    PODWIRE_TEST_COMPOSE=1 PODWIRE_TEST_BASE_TAR=base.tar pytest tests/e2e/test_compose.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import COMMAND_TIMEOUT_S, Done, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
BUILD_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
WELCOME = "<title>Welcome to nginx!</title>"
NODES = {"kube-0": "10.10.68.222", "kube-1": "10.10.95.205"}
WEB = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
"""

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(900)]


class Engine:
    """A container engine of the test's own, and the compose project on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {
            **os.environ,
            "DOCKER_HOST": f"unix://{home}/sock",
            "HOME": str(home),
            "KUBECONFIG": str(home / "kubeconfig"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PODWIRE_IMAGE": "podwire-test",
        }

    def run(
        self,
        *argv: str,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> Done:
        """Run a command against the engine."""
        done = subprocess.run(
            argv,
            env=self.env,
            cwd=ROOT,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return Done(list(argv), done.returncode, done.stdout, done.stderr)

    def compose(self, *argv: str, check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S) -> Done:
        return self.run(
            *("docker-compose", "--project-name", "podwire-test", *argv),
            check=check,
            timeout_s=timeout_s,
        )

    def podwire(self, service: str, *argv: str, check: bool = True) -> Done:
        """A verb of podwire inside a container."""
        return self.compose("exec", "-T", service, "podwire", *argv, check=check)

    def kubectl(self, *argv: str, stdin: str | None = None) -> Done:
        return self.run("kubectl", *argv, stdin=stdin)

    def docker(self, *argv: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Done:
        return self.run("docker", *argv, timeout_s=timeout_s)

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", service).out.strip()

    def gets_page(self, url: str) -> bool:
        return WELCOME in self.run("curl", "-sS", "-m", "2", url, check=False).out


@pytest.fixture(scope="module")
def engine(home: Path) -> Iterator[Engine]:
    """The project is up: every container healthy."""
    if os.environ.get("PODWIRE_TEST_COMPOSE") != "1":
        pytest.skip("builds an image: set PODWIRE_TEST_COMPOSE=1")
    missing = [name for name in ("dockerd", "docker", "docker-compose") if not shutil.which(name)]
    if os.getuid() != 0 or missing:
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'}")
    made = Engine(home)
    daemon = subprocess.Popen(
        [
            *("dockerd", "--host", made.env["DOCKER_HOST"], "--bridge", "none"),
            *("--data-root", f"{home}/data", "--exec-root", f"{home}/exec"),
            *("--pidfile", f"{home}/pid"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for("dockerd answers", lambda: made.run("docker", "info", check=False).code == 0)
        build(made)
        try:
            made.compose("up", "-d", timeout_s=120)
            wait_until_healthy(made)
            made.home.joinpath("kubeconfig").write_text(
                made.podwire("controlplane", "kubeconfig", "--raw").out
            )
            yield made
        finally:
            made.compose("down", "--volumes", check=False)
    finally:
        daemon.terminate()
        daemon.wait(STOP_TIMEOUT_S)
        # The host's own namespace, which the engine binds there and leaves.
        subprocess.run(["umount", f"{home}/exec/netns/default"], check=False)


def build(engine: Engine) -> None:
    """Build the image; its network is the host's, as package indexes may only be known there."""
    argv = ["build", "--quiet", "--network", "host", "--tag", engine.env["PODWIRE_IMAGE"]]
    if tar := os.environ.get("PODWIRE_TEST_BASE_TAR"):
        bundle = "/etc/ssl/certs/ca-certificates.crt"
        change = f"ENV PIP_CERT={bundle}"
        engine.docker("import", "--change", change, tar, "podwire-base", timeout_s=BUILD_TIMEOUT_S)
        argv += ["--build-arg", "BASE=podwire-base"]
    engine.docker(*argv, str(ROOT), timeout_s=BUILD_TIMEOUT_S)


def wait_until_healthy(engine: Engine) -> None:
    """All four containers; their logs are shown if not."""
    services = ("etcd", "controlplane", *NODES)
    try:
        for service in services:
            wait_for(
                f"{service} is healthy",
                lambda name=service: state(engine, name) == "healthy",
                within_s=60.0,
                every_s=0.5,
            )
    except pytest.fail.Exception:
        print(engine.compose("ps").out, engine.compose("logs", "--no-color", "--tail", "20").out)
        raise


def state(engine: Engine, service: str) -> str:
    found = engine.docker("inspect", "-f", "{{.State.Health.Status}}", engine.container(service))
    return found.out.strip()


def test_no_container_has_any_privilege(engine: Engine) -> None:
    for service in ("etcd", "controlplane", *NODES):
        (found,) = json.loads(engine.docker("inspect", engine.container(service)).out)
        host = found["HostConfig"]
        assert not host["Privileged"]
        assert not host["CapAdd"]
        assert host["CapDrop"] == ["ALL"]
        assert host["ReadonlyRootfs"]
        assert found["Config"]["User"] == "65534:65534"
        for bindings in (host["PortBindings"] or {}).values():
            assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"]


def test_the_host_drives_the_cluster_and_reaches_its_pods(engine: Engine) -> None:
    nodes = json.loads(engine.kubectl("get", "nodes", "-o", "json").out)["items"]
    assert {
        node["metadata"]["name"]: node["status"]["addresses"][0]["address"] for node in nodes
    } == NODES
    engine.kubectl("create", "deployment", "web", "--image=nginx:1.7.9", "--replicas=2")
    engine.kubectl("create", "-f", "-", stdin=WEB)
    engine.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    here = ("127.0.0.1:30080", "127.0.0.1:30081")
    for place in (*(f"{ip}:30080" for ip in NODES.values()), *here):
        wait_for(f"http://{place} answers", lambda at=place: engine.gets_page(f"http://{at}"))
    published = engine.podwire(
        "controlplane", "kubeconfig", "--raw", "--server", "https://127.0.0.1:6443"
    ).out
    other = engine.home / "published"
    other.write_text(published)
    assert "kube-1" in engine.kubectl("--kubeconfig", str(other), "get", "nodes").out


def test_pods_of_two_containers_reach_each_other(engine: Engine) -> None:
    first, second = (pod(engine, node) for node in NODES)
    ip = second["status"]["podIP"]
    out = engine.kubectl("exec", first["metadata"]["name"], "--", "ping", "-c", "1", ip).out
    assert "ttl=62" in out
    # Control sockets lie in the shared volume: every container can ask every node.
    routes = engine.podwire("kube-0", "exec", "kube-1", "--", "ip", "route").out
    assert "10.10.64.0/19 dev eth0 proto kernel scope link src 10.10.95.205" in routes
    traced = engine.podwire("kube-1", "trace", "kube-0", f"{ip}:80").out
    assert "flannel.1" in traced
    assert re.search(r"^kube-1", traced, re.MULTILINE)


def pod(engine: Engine, node: str) -> dict[str, Any]:
    found = json.loads(engine.kubectl("get", "pods", "-l", "app=web", "-o", "json").out)["items"]
    (chosen,) = [item for item in found if item["spec"]["nodeName"] == node]
    return dict(chosen)


def test_a_killed_node_comes_back_with_its_subnet_and_its_pods(engine: Engine) -> None:
    before = pod(engine, "kube-1")["status"]["podIP"]
    container = engine.container("kube-1")
    engine.docker("kill", container)
    assert engine.podwire("kube-0", "status", "kube-1", check=False).code == 1
    engine.docker("start", container)
    wait_for("kube-1 is healthy", lambda: state(engine, "kube-1") == "healthy", within_s=60.0)
    wait_for("its port answers", lambda: engine.gets_page("http://10.10.95.205:30080"))
    after = pod(engine, "kube-1")["status"]["podIP"]
    assert before.rsplit(".", 1)[0] == after.rsplit(".", 1)[0]


def test_down_leaves_nothing(engine: Engine) -> None:
    engine.compose("down", "--volumes")
    assert engine.docker("ps", "-aq").out == ""
    assert engine.docker("volume", "ls", "-q").out == ""
