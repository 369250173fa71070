"""Captures and traces tell what really happened to a packet, at each place it passed."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import Podwire, wait_for
from tests.e2e.taps import capture_command, captures, decoded, hops

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

CLIENT, SERVER = "node-0", "node-1"
ONE = """
apiVersion: v1
kind: Service
metadata: {name: one}
spec:
  type: NodePort
  selector: {only: one}
  ports: [{port: 80, nodePort: 31090}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
"""


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Podwire]:
    """Three nodes without any capability, also where the tests are root's."""
    if shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        pytest.skip("kubectl is not installed")
    podwire = Podwire(home, f"o{os.getpid()}")
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    prefix = powerless if os.geteuid() == 0 and shutil.which("setpriv") is not None else []
    command = [sys.executable, "-m", "emulator.cli.main", "up", "--name", podwire.name]
    podwire.run([*prefix, *command, "--nodes", "3", "--detach"])
    podwire.env["KUBECONFIG"] = podwire.podwire("kubeconfig").out.strip()
    yield podwire
    podwire.podwire("down")


@pytest.fixture(scope="module")
def web(cluster: Podwire) -> dict[str, dict[str, Any]]:
    """An nginx pod on each node, by node name; service one leads to the one on SERVER."""
    cluster.kubectl("create", "deployment", "web", "--image=nginx", "--replicas=3")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    pods = {pod["spec"]["nodeName"]: pod for pod in cluster.get("pods", "-l", "app=web")["items"]}
    cluster.kubectl("label", "pod", pods[SERVER]["metadata"]["name"], "only=one")
    cluster.kubectl("apply", "-f", "-", stdin=ONE)
    for node in (CLIENT, SERVER):
        wait_for(
            f"rules of both services on {node}",
            lambda node=node: (
                "default/one ->" in (text := cluster.node(node, "iptables-save").out)
                and "default/nobody has no endpoints" in text
            ),
        )
    return pods


def cluster_ip(cluster: Podwire, service: str) -> str:
    return str(cluster.get("service", service)["spec"]["clusterIP"])


def ip_of(pod: dict[str, Any]) -> str:
    return str(pod["status"]["podIP"])


def name_of(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def veth_of(cluster: Podwire, node: str, pod: dict[str, Any]) -> str:
    """The pod's end in the node: the bridge port that has learned its MAC."""
    cluster.node(node, "ping", "-c", "1", ip_of(pod))
    neighbour = cluster.node(node, "ip", "neigh", "show", ip_of(pod)).out
    mac = neighbour.split("lladdr ")[1].split()[0]
    fdb = cluster.node(node, "bridge", "fdb", "show", "br", "cni0").out
    return next(line.split(" dev ")[1].split()[0] for line in fdb.splitlines() if mac in line)


def test_nodes_need_no_privilege(cluster: Podwire) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    for node in cluster.status()["nodes"]:
        status = Path(f"/proc/{node['pid']}/status").read_text()
        assert re.search(r"^CapEff:\s0+$", status, re.MULTILINE)


def test_each_interface_shows_the_packet_as_it_is_there(
    cluster: Podwire, web: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is not installed")
    client, server = web[CLIENT], web[SERVER]
    service = cluster_ip(cluster, "one")
    places: dict[str, tuple[str, ...]] = {
        "pod": (CLIENT, "eth0", "--pod", name_of(client)),
        "veth": (CLIENT, veth_of(cluster, CLIENT, client)),
        "cni0": (CLIENT, "cni0"),
        "flannel": (CLIENT, "flannel.1"),
        "eth0": (CLIENT, "eth0"),
        "far-eth0": (SERVER, "eth0"),
        "far-flannel": (SERVER, "flannel.1"),
        "far-cni0": (SERVER, "cni0"),
        "far-pod": (SERVER, "eth0", "--pod", name_of(server)),
    }
    with captures(cluster, places, tmp_path):
        page = cluster.kubectl("exec", name_of(client), "--", "curl", "-s", f"http://{service}/")
        assert "Welcome to nginx!" in page.out

    def syn(place: str) -> tuple[str, str, int]:
        expression = "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"
        text = decoded(cluster, tmp_path / f"{place}.pcapng", "-v", expression)
        (seen,) = [hop for hop in hops(text) if hop[0].startswith(ip_of(client))]
        return seen[0].rpartition(".")[0], seen[1], seen[2]

    mine, theirs = ip_of(client), f"{ip_of(server)}.80"
    assert syn("pod") == (mine, f"{service}.80", 64)
    assert syn("veth") == (mine, f"{service}.80", 64)
    # br_netfilter translates at the bridge's port, before the bridge itself has the packet.
    assert syn("cni0") == (mine, theirs, 64)
    assert syn("flannel") == (mine, theirs, 63)
    assert syn("far-flannel") == (mine, theirs, 63)
    assert syn("far-cni0") == (mine, theirs, 62)
    assert syn("far-pod") == (mine, theirs, 62)
    for place in ("eth0", "far-eth0"):
        text = decoded(cluster, tmp_path / f"{place}.pcapng", "-v", "-T", "vxlan", "port 8472")
        seen = hops(text)
        at = next(i for i, hop in enumerate(seen) if hop[0].startswith(mine + "."))
        assert seen[at][1:] == (theirs, 63)
        source, destination, ttl = seen[at - 1]
        assert source.startswith("172.17.4.201.")
        assert (destination, ttl) == ("172.17.4.202.8472", 64)
    # The way back: the server's address until conntrack gives it the service's again.
    reply = "tcp[tcpflags] & (tcp-syn|tcp-ack) == (tcp-syn|tcp-ack)"
    (back,) = hops(decoded(cluster, tmp_path / "far-pod.pcapng", "-v", reply))
    assert (back[0], back[2]) == (theirs, 64)
    (back,) = hops(decoded(cluster, tmp_path / "pod.pcapng", "-v", reply))
    assert (back[0], back[2]) == (f"{service}.80", 62)


def test_a_nodes_own_request_is_seen_after_masquerade(
    cluster: Podwire, web: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is not installed")
    places = {"flannel": (CLIENT, "flannel.1"), "lo": (CLIENT, "lo")}
    with captures(cluster, places, tmp_path):
        cluster.node(CLIENT, "curl", "-s", f"http://{cluster_ip(cluster, 'one')}/")
        cluster.node(CLIENT, "ping", "-c", "1", "127.0.0.1")
    own = cluster.node(CLIENT, "ip", "addr", "show", "flannel.1").out
    vtep = own.split("inet ")[1].split("/")[0]
    sources = {hop[0] for hop in hops(decoded(cluster, tmp_path / "flannel.pcapng", "-v"))}
    assert {source.rpartition(".")[0] for source in sources} == {vtep, ip_of(web[SERVER])}
    # Both ways over lo: sent, and received.
    seen = decoded(cluster, tmp_path / "lo.pcapng")
    assert seen.count("127.0.0.1 > 127.0.0.1: ICMP echo request") == 2


def test_a_capture_to_stdout_ends_after_so_many_packets(
    cluster: Podwire, web: dict[str, dict[str, Any]]
) -> None:
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is not installed")
    pod = web[CLIENT]
    place = (CLIENT, "eth0", "--pod", name_of(pod), "-w", "-", "-c", "2")
    with subprocess.Popen(
        capture_command(cluster, *place),
        env=cluster.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"capturing on eth0 of node-0")
        cluster.node(CLIENT, "ping", "-c", "3", "-i", "0.05", ip_of(pod))
        data, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (0, b"2 packets captured\n")
    read = subprocess.run(
        ["tcpdump", "-nr", "-"], input=data, capture_output=True, check=True, timeout=10
    )
    assert len(read.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["node-0", "eth9"], "node-0 has no interface 'eth9' (there are: lo, eth0, flannel.1,"),
        (["node-9", "eth0"], "no node 'node-9' (there are: node-0, node-1, node-2)"),
        (["node-0", "eth0", "--pod", "x"], "no pod 'x' in 'default'"),
        (["node-0", "eth0", "--netns", "x"], "node-0 has no network namespace 'x' (there are: "),
        (["node-0", "eth0", "-c", "-1"], "-1 is not a number of packets"),
    ],
)
def test_a_place_that_is_not_there_is_named_in_one_line(
    cluster: Podwire,
    web: dict[str, dict[str, Any]],
    tmp_path: Path,
    argv: list[str],
    complaint: str,
) -> None:
    file = tmp_path / "x.pcapng"
    done = cluster.podwire("capture", *argv, "-w", str(file), check=False)
    assert done.code == 2
    assert complaint in done.err
    assert done.err.count("\n") == 1
    assert not file.exists()


def test_a_capture_onto_a_full_disk_ends_with_one_line(cluster: Podwire) -> None:
    done = cluster.podwire("capture", "node-0", "eth0", "-w", "/dev/full", check=False)
    assert (done.code, done.err) == (1, "podwire: No space left on device\n")


def test_a_capture_ends_with_its_interface(
    cluster: Podwire, web: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    cluster.kubectl("run", "brief", "--image=nginx")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/brief", "--timeout=20s")
    node = cluster.get("pod", "brief")["spec"]["nodeName"]
    place = (node, "eth0", "--pod", "brief", "-w", str(tmp_path / "x.pcapng"))
    with subprocess.Popen(
        capture_command(cluster, *place), env=cluster.env, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"capturing on")
        cluster.kubectl("delete", "pod", "brief", "--wait=false")
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.endswith(b"podwire: eth0 of brief was removed\n")


def trace(cluster: Podwire, *argv: str) -> str:
    return cluster.podwire("trace", *argv, check=False).out


def test_a_trace_tells_the_way_of_a_service_connection_and_ends_with_its_answer(
    cluster: Podwire, web: dict[str, dict[str, Any]]
) -> None:
    client, server = web[CLIENT], web[SERVER]
    service = cluster_ip(cluster, "one")
    out = trace(cluster, name_of(client), "one:80")
    places = [line for line in out.splitlines()[1:] if re.match(r"node-\d", line)]
    near, far = f"{CLIENT}, pod {name_of(client)}", f"{SERVER}, pod {name_of(server)}"
    assert places == [near, CLIENT, SERVER, far, SERVER, CLIENT, near]
    assert f"nat  PREROUTING DNAT {service}:80 → {ip_of(server)}:80" in out
    assert f"DNAT undone: {ip_of(server)}:80 → {service}:80" in out
    assert "encap  flannel.1: vni 1 to 172.17.4.202 port 8472" in out
    assert "decap  flannel.1: vni 1 from 172.17.4.201" in out
    flags = re.findall(r"Flags \[([^]]*)\]", out)
    assert set(flags) == {"S", "S."}
    last = out.rstrip().splitlines()[-3:]
    assert last[0].split() == ["deliver", "TCP", "port", last[0].split()[-1]]
    assert last[2] == f"answer: SYN,ACK; {service}:80 is open"
    # Rules that led nowhere are for -v.
    assert "KUBE-FIREWALL" not in out
    assert "KUBE-PROXY-FIREWALL" in trace(cluster, "-v", name_of(client), "one:80")


def test_a_trace_tells_why_there_is_no_connection(
    cluster: Podwire, web: dict[str, dict[str, Any]]
) -> None:
    client, server = web[CLIENT], web[SERVER]
    rejected = trace(cluster, name_of(client), "nobody:80")
    assert "# default/nobody has no endpoints\n" in rejected
    assert "drop  netfilter_reject, by this rule" in rejected
    assert rejected.endswith("\nanswer: Connection refused\n")

    closed = trace(cluster, CLIENT, f"{name_of(server)}:81")
    assert "drop  no_socket: tcp port 81" in closed
    assert "Flags [R.]" in closed
    assert closed.endswith("\nanswer: Connection refused\n")

    # Nothing rewrites a ping to a ClusterIP, so it leaves for the world and is lost there.
    lost = trace(cluster, "--timeout", "0.3", CLIENT, cluster_ip(cluster, "one"))
    assert "DNAT" not in lost
    assert lost.endswith(
        f"no answer within 0.3 s; last seen on {CLIENT}: eth0 transmits, to 172.17.4.1\n"
    )

    absent = ip_of(server).rpartition(".")[0] + ".99"
    unanswered = trace(cluster, "--timeout", "0.3", CLIENT, f"{absent}:80")
    assert f"last seen on {SERVER}: {absent} dev cni0 INCOMPLETE: asking by ARP\n" in unanswered

    udp = trace(cluster, "--udp", CLIENT, f"{name_of(server)}:5353")
    assert "udp port 5353 unreachable" in udp
    assert udp.endswith("\nanswer: Connection refused\n")


def test_a_trace_tells_masquerade_at_a_node_port_and_pings_nodes(
    cluster: Podwire, web: dict[str, dict[str, Any]]
) -> None:
    out = trace(cluster, "node-2", "node-0:31090")
    assert f"nat  PREROUTING DNAT 172.17.4.201:31090 → {ip_of(web[SERVER])}:80" in out
    assert re.search(r"nat  POSTROUTING SNAT 172\.17\.4\.203:\d+ → 10\.2\.\d+\.0:\d+\n", out)
    assert re.search(r"SNAT undone: 10\.2\.\d+\.0:\d+ → 172\.17\.4\.203:\d+\n", out)
    assert out.endswith("\nanswer: SYN,ACK; 172.17.4.201:31090 is open\n")
    # flannel masquerades what leaves the pods' network, and so the echo's identifier.
    ping = trace(cluster, name_of(web[CLIENT]), SERVER)
    assert re.search(rf"SNAT {ip_of(web[CLIENT])} id \d+ → 172\.17\.4\.201 id \d+\n", ping)
    assert ping.endswith("\nanswer: echo reply from 172.17.4.202, ttl 63\n")


def test_a_trace_as_json_has_every_step(cluster: Podwire, web: dict[str, dict[str, Any]]) -> None:
    server = web[SERVER]
    told = json.loads(trace(cluster, "-o", "json", CLIENT, name_of(server)))
    assert told["probe"]["kind"] == "icmp"
    assert told["answer"]["ok"]
    stages = {step["stage"] for step in told["steps"]}
    assert stages >= {"device", "hook", "route", "neigh", "fdb", "encap", "decap", "deliver"}
    inside = [step for step in told["steps"] if step["pod"]]
    assert {(step["node"], step["pod"]) for step in inside} == {(SERVER, name_of(server))}
    ttls = [step["ttl"] for step in inside if "request" in step["packet"]]
    assert set(ttls) == {63}


def test_a_node_s_command_reads_what_it_is_given(cluster: Podwire) -> None:
    command = [sys.executable, "-m", "emulator.cli.main", "exec", "--name", cluster.name]

    def run(*argv: str, stdin: str | None = None) -> tuple[int, str]:
        done = cluster.run([*command, *argv], stdin=stdin, check=False)
        return done.code, done.out

    # Without -i nothing comes, and nobody waits for it.
    assert run(CLIENT, "--", "cat", stdin="lost\n") == (0, "")
    text = "".join(f"line {number}\n" for number in range(100_000))
    assert run("-i", CLIENT, "--", "wc", "-c", stdin=text) == (0, f"{len(text)}\n")
    rules = cluster.node(CLIENT, "iptables-save", "-t", "filter").out
    assert run("-i", CLIENT, "--", "iptables-restore", stdin=rules) == (0, "")
    # What a command does not want is not sent without end.
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(
            [*command, "-i", CLIENT, "--", "sh", "-c", "head -c 2; sleep 0.5; echo done"],
            env=cluster.env,
            stdin=endless,
            capture_output=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, b"\0\0done\n")


def test_a_script_in_the_shell_s_input_runs_without_prompts(cluster: Podwire) -> None:
    command = [sys.executable, "-m", "emulator.cli.main", "shell", "--name", cluster.name, CLIENT]
    done = cluster.run(command, stdin="echo one\n\ncat\nfalse\n", check=False)
    assert (done.code, done.out, done.err) == (1, "one\n", "")
    done = cluster.run(command, stdin="exit\necho never\n", check=False)
    assert (done.code, done.out, done.err) == (0, "", "")
    done = cluster.run(["sh", "-c", 'exec "$@" <&-', "sh", *command], check=False)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_ctrl_c_in_the_shell_ends_the_command_and_not_the_shell(cluster: Podwire) -> None:
    command = [sys.executable, "-m", "emulator.cli.main", "shell", "--name", cluster.name, CLIENT]
    ours, theirs = pty.openpty()
    shown = ""

    def until(text: str) -> None:
        nonlocal shown
        while text not in shown:
            assert select.select([ours], [], [], 20)[0], f"{text!r} is not in {shown!r}"
            shown += os.read(ours, 4096).decode()
        shown = shown.partition(text)[2]

    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=cluster.env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
    ) as shell:
        os.close(theirs)
        until(f"root@{CLIENT}:/# ")
        os.write(ours, b"ping 127.0.0.1\n")
        until("64 bytes from 127.0.0.1")
        os.write(ours, b"\x03")
        until("packets transmitted")
        until(f"root@{CLIENT}:/# ")
        # What is typed goes to the command that reads, which Ctrl-C ends, too.
        os.write(ours, b"cat\n")
        until("cat\r\n")
        os.write(ours, b"typed\n")
        until("typed\r\n")
        until("typed\r\n")
        os.write(ours, b"\x03")
        until(f"root@{CLIENT}:/# ")
        # It is one shell, which waits for the end of what was begun and forgets it at Ctrl-C.
        for line in (b"cd /etc; N=40\n", b'echo "never\n', b"\x03", b"for i in 2; do\n"):
            os.write(ours, line)
            until("> " if line.endswith((b"never\n", b"do\n")) else f"root@{CLIENT}:/etc# ")
        os.write(ours, b"echo still $((N + i)); done\n")
        until("still 42")
        until(f"root@{CLIENT}:/etc# ")
        os.write(ours, b"exit 4\n")
        assert shell.wait(20) == 4
    os.close(ours)
