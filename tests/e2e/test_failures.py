"""What happens when processes die, sockets get garbage and disks fill up, while clients go on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from emulator.wire.vxlan import header
from tests.e2e.harness import Podwire, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.e2e


class Clients:
    """Asks URLs in turn until told to stop; ``failures`` is what did not answer."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._urls = urls
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            for url in self._urls:
                try:
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        answer.read()
                    self.answers += 1
                except OSError as error:
                    self.failures.append(f"{url}: {error}")


def roles_of(cluster: Podwire) -> dict[str, dict[str, Any]]:
    status = cluster.status()
    return {
        entry["name"]: entry for entry in (status["etcd"], status["controlplane"], *status["nodes"])
    }


def alive(pid: int) -> bool:
    """True unless the process has ended, waited for or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def replicas_with_rules(cluster: Podwire, node: str) -> int:
    rules = cluster.node(node, "iptables", "-t", "nat", "-S").out.splitlines()
    return sum("default/web" in rule and "-j DNAT" in rule for rule in rules)


@pytest.fixture(scope="module")
def port(cluster: Podwire) -> int:
    """The NodePort of three nginx pods, served by every node."""
    cluster.kubectl("create", "deployment", "web", "--image=nginx", "--replicas=3")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    cluster.kubectl("expose", "deployment", "web", "--port=80", "--type=NodePort")
    number: int = cluster.get("service", "web")["spec"]["ports"][0]["nodePort"]
    for node in cluster.status()["nodes"]:
        wait_for(
            f"rules on {node['name']}",
            lambda name=node["name"]: replicas_with_rules(cluster, name) == 3,
        )
    return number


def urls(nodes: Sequence[dict[str, Any]], port: int) -> list[str]:
    return [f"http://{node['underlay']}:{port}/" for node in nodes]


@pytest.fixture
def small(home: Path) -> Iterator[Podwire]:
    """A cluster of one node of its own, for tests that end it."""
    podwire = Podwire(home, f"s{os.getpid()}")
    podwire.podwire("up", "--nodes", "1", "--detach")
    yield podwire
    podwire.podwire("down")
    assert [entry for entry in os.listdir(home) if podwire.name in entry] == []


def kill_and_see_it_back(cluster: Podwire, role: str) -> None:
    before = roles_of(cluster)[role]
    os.kill(before["pid"], signal.SIGKILL)

    def back() -> bool:
        now = roles_of(cluster)[role]
        return bool(now["ready"]) and now["restarts"] == before["restarts"] + 1

    wait_for(f"{role} is back and counted", back)
    assert roles_of(cluster)[role]["last_exit"] == "killed by SIGKILL"


def scale_and_see_all_nodes_follow(cluster: Podwire, replicas: int) -> None:
    wait_for(
        "the API server takes a write",
        lambda: (
            cluster.kubectl("scale", "deployment/web", f"--replicas={replicas}", check=False).code
            == 0
        ),
    )
    for node in cluster.status()["nodes"]:
        wait_for(
            f"{replicas} endpoints in the rules of {node['name']}",
            lambda name=node["name"]: replicas_with_rules(cluster, name) == replicas,
        )


def test_a_role_that_is_stopped_is_not_called_ready(cluster: Podwire) -> None:
    roles = roles_of(cluster)
    assert all(role["responding"] for role in roles.values())
    names = ("etcd", "controlplane", "node-0")
    for name in names:
        os.kill(roles[name]["pid"], signal.SIGSTOP)
    try:
        shown = cluster.podwire("status", *names, "node-1", check=False)
    finally:
        for name in names:
            os.kill(roles[name]["pid"], signal.SIGCONT)
    assert shown.code == 1
    silent = [line.split()[0] for line in shown.out.splitlines() if "not responding" in line]
    assert silent == list(names)
    wait_for("all answer", lambda: all(role["ready"] for role in roles_of(cluster).values()))


@pytest.mark.parametrize(("role", "replicas"), [("etcd", 4), ("controlplane", 5)])
def test_the_data_plane_does_not_notice_the_death_of(
    cluster: Podwire, port: int, role: str, replicas: int
) -> None:
    cluster.kubectl("create", "configmap", f"before-{role}", "--from-literal=a=b")
    with Clients(urls(cluster.status()["nodes"], port)) as clients:
        kill_and_see_it_back(cluster, role)
        wait_for(
            "kubectl works and nothing acknowledged is lost",
            lambda: cluster.kubectl("get", "configmap", f"before-{role}", check=False).code == 0,
        )
        # More pods, not fewer: a request on its way to a pod that ends may be lost.
        scale_and_see_all_nodes_follow(cluster, replicas)
    assert clients.failures == []
    assert clients.answers > 0


def test_a_killed_node_comes_back_with_its_subnet_and_its_pods(cluster: Podwire, port: int) -> None:
    def pods() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cluster.get("pods", "-l", "app=web")["items"]
        return found

    def restarts() -> dict[str, int]:
        return {
            pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"]
            for pod in pods()
        }

    subnet = cluster.node("node-1", "cat", "/run/flannel/subnet.env").out
    routes = cluster.node("node-0", "ip", "route").out
    cluster.kubectl("wait", "--for=condition=Ready", "pod", "-l", "app=web", "--timeout=20s")
    mine = {pod["metadata"]["name"] for pod in pods() if pod["spec"]["nodeName"] == "node-1"}
    assert mine
    expected = {name: count + (name in mine) for name, count in restarts().items()}
    kill_and_see_it_back(cluster, "node-1")
    assert cluster.node("node-1", "cat", "/run/flannel/subnet.env").out == subnet
    assert cluster.node("node-0", "ip", "route").out == routes
    wait_for("its pods run again", lambda: restarts() == expected)
    cluster.kubectl("wait", "--for=condition=Ready", "pod", "-l", "app=web", "--timeout=20s")
    scale_and_see_all_nodes_follow(cluster, 6)
    for pod in pods():
        if pod["metadata"]["name"] in mine:
            cluster.node("node-0", "curl", "-s", "-m", "2", pod["status"]["podIP"])
    with Clients(urls(cluster.status()["nodes"], port)) as clients:
        wait_for("every node's port answers again", lambda: clients.answers > 20)
    assert clients.failures == []


def test_connections_end_with_their_clients(cluster: Podwire, port: int) -> None:
    with Clients(urls(cluster.status()["nodes"], port)) as clients:
        wait_for("requests", lambda: clients.answers > 20)
    pods = [pod["metadata"]["name"] for pod in cluster.get("pods", "-l", "app=web")["items"]]
    assert pods
    for pod in pods:
        wait_for(
            f"no half-closed connection in {pod}",
            lambda pod=pod: (
                "CLOSE-WAIT" not in cluster.kubectl("exec", pod, "--", "ss", "-tan").out
            ),
        )


def garbage_datagrams(rng: random.Random) -> list[bytes]:
    ethernet = bytes.fromhex("020202020202 040404040404 0800")
    ip = bytes.fromhex("4500001400010000400600000a02010a0a020202")
    datagrams = [rng.randbytes(rng.randrange(1500)) for _ in range(300)]
    datagrams += [header(1) + (ethernet + ip)[:size] for size in range(34)]
    datagrams += [header(vni) + ethernet + ip for vni in (0, 2, 0xFFFFFF)]
    datagrams += [b"", b"\x08", bytes(8), rng.randbytes(60_000)]
    datagrams += [header(1) + ethernet + b"\x45" + rng.randbytes(60) for _ in range(300)]
    return datagrams


def test_garbage_datagrams_are_counted_and_change_nothing(cluster: Podwire, port: int) -> None:
    node, peer = cluster.status()["nodes"][:2]
    before = counters(node["control"])
    datagrams = garbage_datagrams(random.Random(1))
    with Clients(urls(cluster.status()["nodes"], port)) as clients:
        for source in ("127.0.0.1", peer["underlay"]):
            with socket.socket(type=socket.SOCK_DGRAM) as sender:
                sender.bind((source, 0))
                for data in datagrams:
                    sender.sendto(data, (node["underlay"], node["vxlan_port"]))
                    sender.sendto(data, (node["underlay"], node["carrier_port"]))
        wait_for(
            "what strangers sent is counted",
            lambda: (
                counters(node["control"])["unknown_peer_received"]
                >= before["unknown_peer_received"] + len(datagrams)
            ),
        )
        wait_for("clients go on", lambda: clients.answers > 20)
    assert clients.failures == []
    after = counters(node["control"])
    for reason in ("bad_header", "bad_vni"):
        assert after.get(reason, 0) > before.get(reason, 0)


def counters(control: str) -> dict[str, int]:
    """A node's counters of its underlay sockets and of dropped packets."""
    import asyncio

    from emulator.runtime.control import ControlClient

    async def ask() -> dict[str, int]:
        async with ControlClient(control) as client:
            status = await client.call("status")
            return {**status["counters"], **status["drops"]}

    return asyncio.run(ask())


def http2_frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def test_garbage_on_every_socket_ends_that_connection_only(cluster: Podwire, port: int) -> None:
    rng = random.Random(2)
    roles = roles_of(cluster)
    node = roles["node-0"]
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0, b"")
    call = http2_frame(1, 4, 1, b"\x83\x86\x44\x16/etcdserverpb.KV/Range\x41\x01x")
    everywhere = [
        rng.randbytes(2000),
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET " + b"a" * 100_000,
        b"\x16\x03\x01\x00\xff" + rng.randbytes(50),
        preface + rng.randbytes(500),
        # A gRPC message cut in the middle: of its length, of its body, of the frame it is in.
        preface + call + http2_frame(0, 0, 1, b"\0\0\0"),
        preface + call + http2_frame(0, 1, 1, b"\0\0\0\0\x20abc"),
        preface + call + http2_frame(0, 0, 1, b"\0\0\0\0\x20abc")[:12],
    ]
    api = (roles["controlplane"]["underlay"], 6443)
    kubelet = (node["underlay"], node["kubelet_port"])
    etcd = (roles["etcd"]["underlay"], 2379)
    with Clients(urls(cluster.status()["nodes"], port)) as clients:
        for data in everywhere:
            for address in (api, kubelet, etcd):
                send_tcp(address, data, tls=False)
            for address in (api, kubelet):
                send_tcp(address, data, tls=True)
            for name in ("node-0", "supervisor"):
                send_unix(cluster.home / cluster.name / "run" / f"{name}.sock", data)
        wait_for("clients go on", lambda: clients.answers > 20)
    assert clients.failures == []
    after = roles_of(cluster)
    assert {name: entry["pid"] for name, entry in after.items()} == {
        name: entry["pid"] for name, entry in roles.items()
    }
    assert len(cluster.get("nodes")["items"]) == 3


def send_tcp(address: tuple[str, int], data: bytes, *, tls: bool) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # It must be there and shake hands; only what the garbage does to the connection is its own.
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(address, timeout=5))
        if tls:
            connection = stack.enter_context(context.wrap_socket(connection))
        with contextlib.suppress(OSError):
            connection.sendall(data)


def send_unix(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        with contextlib.suppress(OSError):
            connection.sendall(data)


def test_an_unknown_image_is_told_by_get_and_describe(cluster: Podwire) -> None:
    cluster.kubectl("run", "bad", "--image=nosuch/image:1")
    wait_for(
        "ImagePullBackOff",
        lambda: "ImagePullBackOff" in cluster.kubectl("get", "pod", "bad").out,
    )
    described = cluster.kubectl("describe", "pod", "bad").out
    assert 'Failed to pull image "nosuch/image:1": rpc error: code = NotFound' in described
    logs = cluster.kubectl("logs", "bad", check=False).err
    assert 'container "bad" in pod "bad" is waiting to start: trying and failing to pull' in logs
    cluster.kubectl("delete", "pod", "bad", "--now")


def test_a_second_cluster_does_not_disturb_the_first(
    cluster: Podwire, port: int, small: Podwire
) -> None:
    ours = {node["underlay"] for node in cluster.status()["nodes"]}
    assert not ours & {node["underlay"] for node in small.status()["nodes"]}
    assert "10.2." in small.node("node-0", "cat", "/run/flannel/subnet.env").out
    with Clients(urls(cluster.status()["nodes"], port)) as clients:
        small.podwire("down")
        wait_for("clients go on", lambda: clients.answers > 20)
    assert clients.failures == []


@pytest.mark.parametrize("victim", ["supervisor", "parent of all roles"])
def test_nothing_outlives(small: Podwire, victim: str) -> None:
    status = small.status()
    roles = [entry["pid"] for entry in roles_of(small).values()]
    supervisor, zygote = status["supervisor"]["pid"], parent_of(roles[0])
    os.kill(supervisor if victim == "supervisor" else zygote, signal.SIGKILL)
    wait_for("all have ended", lambda: not any(map(alive, [*roles, supervisor, zygote])), 10)
    done = small.podwire("status", check=False)
    assert (done.code, done.err.count("\n")) == (2, 1)
    # Who ends a cluster by failure leaves its logs and says where; who is killed leaves all.
    kept = small.home / f".{small.name}.logs"
    assert (str(kept) in done.err, kept.exists()) == (victim != "supervisor",) * 2
    if kept.exists():
        assert "the parent of all processes died" in (kept / "supervisor.log").read_text()


def test_logs_hold_no_traceback(cluster: Podwire) -> None:
    for role in ("supervisor", *roles_of(cluster)):
        log = cluster.podwire("logs", role).out
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
        assert " E asyncio" not in log
        assert "was never" not in log


@pytest.fixture
def on_small_disk(tmp_path: Path) -> Iterator[Podwire]:
    """A cluster whose files are on a file system of 4 MB."""
    disk = tmp_path / "d"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    podwire = Podwire(disk, f"f{os.getpid()}")
    try:
        podwire.podwire("up", "--nodes", "1", "--detach")
        podwire.env["KUBECONFIG"] = podwire.podwire("kubeconfig").out.strip()
        yield podwire
        podwire.podwire("down")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_stops_writes_and_nothing_else(on_small_disk: Podwire, tmp_path: Path) -> None:
    cluster = on_small_disk
    cluster.kubectl("create", "deployment", "web", "--image=nginx")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    cluster.kubectl("expose", "deployment", "web", "--port=80", "--type=NodePort")
    port = cluster.get("service", "web")["spec"]["ports"][0]["nodePort"]
    wait_for("rules", lambda: replicas_with_rules(cluster, "node-0") == 1)
    (tmp_path / "big").write_text("x" * 300_000)
    acknowledged = []
    with Clients(urls(cluster.status()["nodes"], port)) as clients:
        for number in range(20):
            argv = ("create", "configmap", f"c{number}", f"--from-file={tmp_path / 'big'}")
            done = cluster.kubectl(*argv, check=False)
            if done.code != 0:
                break
            acknowledged.append(f"c{number}")
        assert "etcdserver: mvcc: database space exceeded" in done.err
        assert acknowledged

        def kept() -> bool:
            found = cluster.kubectl("get", "configmaps", "-o", "json", check=False)
            items = json.loads(found.out or "{}").get("items", ())
            names = {
                item["metadata"]["name"]
                for item in items
                if len(item.get("data", {}).get("big", "")) == 300_000
            }
            return names >= set(acknowledged)

        assert kept()
        kill_and_see_it_back(cluster, "etcd")
        wait_for("every acknowledged object is there", kept)
    assert clients.failures == []
    assert clients.answers > 0
