"""The roles one by one, as a person starts them in separate terminals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import Done, Podwire, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

WELCOME = "<title>Welcome to nginx!</title>"
STOP_WITHIN_S = 10.0


class Terminals:
    """Roles in the foreground, each with a log of what its terminal would show."""

    def __init__(self, podwire: Podwire) -> None:
        self.podwire = podwire
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def open(self, name: str, *argv: str) -> None:
        """Type a command in a terminal of its own."""
        with self.screen(name).open("wb") as screen:
            self.running[name] = subprocess.Popen(
                list(argv),
                env=self.podwire.env,
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def role(self, name: str, *argv: str) -> None:
        """Start a role of podwire."""
        self.open(name, sys.executable, "-m", "emulator.cli.main", *argv)

    def screen(self, name: str) -> Path:
        return self.podwire.home / f"{name}.screen"

    def interrupt(self, name: str) -> int:
        """Ctrl-C; returns the exit code."""
        process = self.running[name]
        process.send_signal(signal.SIGINT)
        code = process.wait(STOP_WITHIN_S)
        del self.running[name]
        return code

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


def block() -> str:
    """A 127.X.0.0/16 no cluster chooses (they start at 127.32), one for each worker process."""
    return f"127.{1 + os.getpid() % 31}"


@pytest.fixture(scope="module")
def terminals(home: Path) -> Iterator[Terminals]:
    """etcd, control plane and two nodes; the nodes were started first."""
    if shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        pytest.skip("kubectl is not installed")
    podwire = Podwire(home, f"s{os.getpid()}")
    opened = Terminals(podwire)
    etcd = f"http://{block()}.0.51:2379"
    shared = ("--cluster", podwire.name, "--etcd-endpoints", etcd)
    try:
        opened.role("node-0", "node", "--name", "node-0", *shared)
        opened.role("node-1", "node", "--name", "node-1", *shared)
        opened.role("controlplane", "controlplane", *shared)
        opened.role("etcd", "etcd", *etcd_flags(home / "etcd", etcd))
        podwire.env["KUBECONFIG"] = str(home / podwire.name / "kubeconfig")
        wait_for("all roles are ready", lambda: is_up(podwire), within_s=40.0)
        yield opened
    finally:
        opened.close()


def etcd_flags(data: Path, url: str) -> list[str]:
    """The flags a real etcd takes as well."""
    return [
        *("--data-dir", str(data)),
        *("--listen-client-urls", url),
        *("--advertise-client-urls", url),
    ]


def is_up(podwire: Podwire, nodes: int = 2) -> bool:
    done = podwire.podwire("status", "-o", "json", check=False)
    if done.code != 0:
        return False
    status = json.loads(done.out)
    return bool(status["up"]) and len(status["nodes"]) == nodes


def web(podwire: Podwire) -> list[dict[str, Any]]:
    """Two nginx pods behind a NodePort, one a node."""
    podwire.kubectl("create", "deployment", "web", "--image=nginx:1.7.9", "--replicas=2")
    podwire.kubectl("expose", "deployment", "web", "--port=80", "--type=NodePort")
    podwire.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    pods: list[dict[str, Any]] = podwire.get("pods", "-l", "app=web")["items"]
    return sorted(pods, key=lambda pod: pod["spec"]["nodeName"])


def test_roles_in_separate_terminals_form_a_cluster(terminals: Terminals) -> None:
    podwire = terminals.podwire
    pods = web(podwire)
    assert [pod["spec"]["nodeName"] for pod in pods] == ["node-0", "node-1"]
    port = podwire.get("service", "web")["spec"]["ports"][0]["nodePort"]
    for node in podwire.status()["nodes"]:
        url = f"http://{node['underlay']}:{port}"
        wait_for(f"{url} answers", lambda url=url: WELCOME in curl(podwire, url).out)
    out = podwire.node("node-0", "ping", "-c", "1", pods[1]["status"]["podIP"]).out
    assert "ttl=63" in out
    inside = podwire.kubectl(
        *("exec", pods[0]["metadata"]["name"], "--"),
        *("curl", "-s", f"http://{pods[1]['status']['podIP']}"),
    )
    assert WELCOME in inside.out
    assert '"GET / HTTP/1.1" 200' in podwire.kubectl("logs", pods[1]["metadata"]["name"]).out


def curl(podwire: Podwire, url: str) -> Done:
    return podwire.run(["curl", "-sS", "-m", "2", url], check=False)


def test_status_is_put_together_from_the_roles_themselves(terminals: Terminals) -> None:
    podwire = terminals.podwire
    status = podwire.status()
    pids = {name: process.pid for name, process in terminals.running.items()}
    assert status["supervisor"] is None
    assert status["controlplane"]["pid"] == pids["controlplane"]
    assert status["controlplane"]["server"].endswith(".0.101:6443")
    assert status["etcd"]["endpoints"] == [f"http://{block()}.0.51:2379"]
    found = [(node["name"], node["ip"], node["pid"], node["ready"]) for node in status["nodes"]]
    assert found == [
        ("node-0", "172.17.4.201", pids["node-0"], True),
        ("node-1", "172.17.4.202", pids["node-1"], True),
    ]
    table = podwire.podwire("status").out
    assert re.search(r"node-1 +172\.17\.4\.202 ", table)
    assert podwire.podwire("status", "node-0").code == 0


def test_trace_and_capture_work_without_a_supervisor(terminals: Terminals) -> None:
    podwire = terminals.podwire
    traced = podwire.podwire("trace", "node-0", "node-1").out
    assert "answer: echo reply from 172.17.4.202" in traced
    file = podwire.home / "eth0.pcapng"
    terminals.role(
        "capture",
        *("capture", "--name", podwire.name, "node-1", "eth0"),
        *("-c", "2", "-w", str(file)),
    )
    wait_for(
        "the capture listens", lambda: "capturing on" in terminals.screen("capture").read_text()
    )
    podwire.node("node-0", "ping", "-c", "1", "172.17.4.202")
    assert terminals.running.pop("capture").wait(10) == 0
    assert file.read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["logs", "node-0"], "each logs to its own terminal or container"),
        (["down"], "end each where it was started"),
        (["exec", "node-9", "--", "true"], "no node 'node-9' (there are: node-0, node-1)"),
        (["status", "node-9"], "no role 'node-9' (there are: etcd, controlplane, node-0, node-1)"),
    ],
)
def test_verbs_that_need_more_say_so(terminals: Terminals, argv: list[str], said: str) -> None:
    done = terminals.podwire.podwire(*argv, check=False)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_up_leaves_the_roles_their_cluster(terminals: Terminals) -> None:
    done = terminals.podwire.podwire("up", "--detach", check=False)
    assert done.code == 2
    assert "is already running" in done.err
    assert is_up(terminals.podwire)


def test_ctrl_c_ends_each_role_and_leaves_no_socket(terminals: Terminals) -> None:
    podwire = terminals.podwire
    run = podwire.home / podwire.name / "run"
    assert terminals.interrupt("node-1") == 0
    assert sorted(path.name for path in run.iterdir()) == ["controlplane.sock", "node-0.sock"]
    assert [node["name"] for node in podwire.status()["nodes"]] == ["node-0"]
    assert terminals.interrupt("controlplane") == 0
    status = podwire.status()
    assert not status["up"]
    assert not status["controlplane"]["ready"]
    assert podwire.podwire("status", "controlplane", check=False).code == 1
    # etcd last or not: nobody needs another to leave.
    assert terminals.interrupt("etcd") == 0
    assert terminals.interrupt("node-0") == 0
    assert list(run.iterdir()) == []
    done = podwire.podwire("status", check=False)
    assert done.code == 2
    assert f"no process of cluster '{podwire.name}' answers" in done.err
    for name in ("node-0", "node-1", "controlplane", "etcd"):
        assert "Traceback" not in terminals.screen(name).read_text()
    assert "removed what it left" in podwire.podwire("down").out
    assert not (podwire.home / podwire.name).exists()


def test_a_node_waits_for_the_control_plane_and_can_be_interrupted(home: Path) -> None:
    podwire = Podwire(home, f"w{os.getpid()}")
    opened = Terminals(podwire)
    node = ("node", "--name", "node-0", "--cluster", podwire.name)
    try:
        opened.role("waits", *node)
        screen = opened.screen("waits")
        wait_for("it says what for", lambda: "waiting for the control plane" in screen.read_text())
        assert opened.interrupt("waits") == 0
        opened.role("gives-up", *node, "--wait", "0.1")
        assert opened.running.pop("gives-up").wait(STOP_WITHIN_S) == 2
        last = opened.screen("gives-up").read_text().splitlines()[-1]
        assert "not there after 0.1 s; is the control plane running" in last
    finally:
        opened.close()


def test_a_taken_port_ends_a_role_with_one_line(home: Path) -> None:
    opened = Terminals(Podwire(home, f"p{os.getpid()}"))
    with socket.create_server((f"{block()}.0.53", 0)) as taken:
        url = f"http://{block()}.0.53:{taken.getsockname()[1]}"
        opened.role("etcd", *("etcd", *etcd_flags(home / "never", url)))
        assert opened.running.pop("etcd").wait(STOP_WITHIN_S) == 2
    (line,) = opened.screen("etcd").read_text().splitlines()
    assert "cannot listen on" in line


def test_a_real_etcd_in_the_first_terminal_serves_as_well(home: Path) -> None:
    program = os.environ.get("PODWIRE_TEST_ETCD") or shutil.which("etcd")
    if program is None or not Path(program).exists():
        pytest.skip("PODWIRE_TEST_ETCD is not set and etcd is not installed")
    podwire = Podwire(home, f"r{os.getpid()}")
    opened = Terminals(podwire)
    url, peers = f"http://{block()}.0.52:2379", f"http://{block()}.0.52:2380"
    shared = ("--cluster", podwire.name, "--etcd-endpoints", url)
    try:
        opened.open(
            "real-etcd",
            *(program, *etcd_flags(home / "real-etcd", url)),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
            *("--initial-cluster", f"default={peers}"),
        )
        opened.role("controlplane", "controlplane", *shared)
        opened.role("node-0", "node", "--name", "node-0", *shared)
        # A node the cluster file does not know.
        place = ("--ip", "172.17.4.250", "--underlay", f"{block()}.1.250")
        opened.role("extra", "node", "--name", "extra", *place, *shared)
        podwire.env["KUBECONFIG"] = str(home / podwire.name / "kubeconfig")
        wait_for("all roles are ready", lambda: is_up(podwire), within_s=40.0)
        assert "ttl=64" in podwire.node("node-0", "ping", "-c", "1", "172.17.4.250").out
        podwire.kubectl("create", "deployment", "web", "--image=nginx:1.7.9", "--replicas=2")
        podwire.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
        for name in ("extra", "node-0", "controlplane"):
            assert opened.interrupt(name) == 0
    finally:
        opened.close()
