"""What passes between node processes, as a stranger sees it: tcpdump on the host's loopback."""

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

from tests.e2e.harness import wait_for
from tests.e2e.taps import captures, decoded, running

if TYPE_CHECKING:
    from tests.e2e.harness import Podwire

pytestmark = pytest.mark.e2e

VXLAN = re.compile(r"(\S+)\.(\d+) > (\S+)\.8472: VXLAN, flags \[I\] \(0x08\), vni 1\n")


@pytest.fixture(scope="module")
def web(cluster: Podwire) -> dict[str, dict[str, Any]]:
    """An nginx pod on each node, by node name."""
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is not installed")
    cluster.kubectl("create", "deployment", "web", "--image=nginx", "--replicas=3")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    return {pod["spec"]["nodeName"]: pod for pod in cluster.get("pods", "-l", "app=web")["items"]}


@pytest.mark.root
def test_tcpdump_on_loopback_decodes_what_nodes_send_each_other(
    cluster: Podwire, web: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: tcpdump listens on lo")
    first, second = (
        next(n["underlay"] for n in cluster.status()["nodes"] if n["name"] == name)
        for name in ("node-0", "node-1")
    )
    here, there = (web[name]["status"]["podIP"] for name in ("node-0", "node-1"))
    outside = tmp_path / "lo.pcap"
    tcpdump = ["tcpdump", "--immediate-mode", "-U", "-Z", "root", "-w", str(outside), "-ni", "lo"]
    wanted = ["udp", "port", "8472", "and", "host", first, "and", "host", second]
    with (
        running(cluster, [*tcpdump, *wanted], "listening on"),
        captures(cluster, {"eth0": ("node-0", "eth0")}, tmp_path),
    ):
        pod = web["node-0"]["metadata"]["name"]
        cluster.kubectl("exec", pod, "--", "ping", "-c", "1", there)
        cluster.kubectl("exec", pod, "--", "curl", "-s", f"http://{there}/")
        # FIN, FIN and the last ACK pass after curl has ended.
        wait_for(
            "the whole conversation is captured",
            lambda: decoded(cluster, outside, "-T", "vxlan").count("Flags [F") >= 2,
        )
    seen = decoded(cluster, outside, "-T", "vxlan", "-vv")
    outer = VXLAN.findall(seen)
    assert {(src, dst) for src, _, dst in outer} == {(first, second), (second, first)}
    assert f"{here} > {there}: ICMP echo request" in seen
    assert f"{there} > {here}: ICMP echo reply" in seen
    # Checksums of what the nodes made; the outer UDP one is left to the host's loopback.
    assert seen.count("(correct)") >= 6
    assert "incorrect" not in seen
    assert "bad cksum" not in seen
    assert "wrong icmp cksum" not in seen

    inside = decoded(cluster, tmp_path / "eth0.pcapng", "-T", "vxlan", "-vv", "port 8472")
    emulated = [entry for entry in VXLAN.findall(inside) if entry[2] in NODES and entry[0] in NODES]
    # The same datagrams, with the nodes' emulated addresses and the very same source ports.
    address = {first: "172.17.4.201", second: "172.17.4.202"}
    translated = [(address[src], port, address[dst]) for src, port, dst in outer]
    assert translated == emulated[: len(translated)]
    assert inner_packets(seen) == inner_packets(inside)[: len(translated)]


NODES = ("172.17.4.201", "172.17.4.202")


def inner_packets(text: str) -> list[str]:
    """The lines under each VXLAN header: the inner IPv4 header and packet."""
    return re.findall(r"vni 1\n(IP .*\n .*)", text)


def test_flows_have_source_ports_of_their_own_within_the_range_of_linux(
    cluster: Podwire, web: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    there = web["node-1"]["status"]["podIP"]
    with captures(cluster, {"eth0": ("node-0", "eth0")}, tmp_path):
        for _ in range(6):
            cluster.node("node-0", "curl", "-s", f"http://{there}/")
    seen = decoded(cluster, tmp_path / "eth0.pcapng", "-T", "vxlan", "-vv")
    flows: dict[str, set[int]] = {}
    pattern = r"172\.17\.4\.201\.(\d+) > \S+ VXLAN.*\nIP .*\n +(\S+) > \S+\.80:"
    for port, client in re.findall(pattern, seen):
        flows.setdefault(client, set()).add(int(port))
    assert len(flows) == 6
    assert all(len(ports) == 1 for ports in flows.values())
    assert len(set.union(*flows.values())) > 1
    assert all(32768 <= port <= 60999 for ports in flows.values() for port in ports)
    # Linux sends VXLAN over IPv4 without a UDP checksum unless asked for one.
    assert "[no cksum]" in decoded(cluster, tmp_path / "eth0.pcapng", "-vv", "udp port 8472")


@pytest.mark.root
def test_a_real_linux_joins_the_cluster_as_a_flannel_node() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: real network namespaces and a vxlan device are made")
    for tool in ("unshare", "nsenter", "ip", "bridge", "ping", "curl", "etcdctl", "kubectl"):
        if shutil.which(tool, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
            pytest.skip(f"{tool} is not installed")
    vxlan = ["ip", "link", "add", "vx", "type", "vxlan", "id", "1", "dstport", "1"]
    able = subprocess.run(["unshare", "-n", *vxlan], capture_output=True, text=True, check=False)
    if able.returncode:
        pytest.skip(f"vxlan devices do not work here: {able.stderr.strip()}")
    # A namespace of processes, too: they all end with the first one.
    alone = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*alone, sys.executable, "-m", "tests.e2e.real_linux_node"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["ping"].count("ttl=63") == 2
    assert "<title>Welcome to nginx!</title>" in seen["page"]
    assert seen["log"].startswith("10.2.200.1 - - [")
    assert seen["back"].count("ttl=63") == 1
    assert seen["trace"].endswith("answer: echo reply from 10.2.200.1, ttl 63\n")
    assert set(seen["bad"].values()) == {0}
