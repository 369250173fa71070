"""A Calico cluster whose processes die, whose datastore is locked, and that is told nonsense."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.e2e.calico import (
    POOL,
    Calico,
    Conversation,
    ask_bird,
    calico,
    cluster_file,
    crd,
    pod,
)
from tests.e2e.harness import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Calico]:
    podwire = calico(home, "fa")
    podwire.up(text=cluster_file("abc"))
    try:
        yield podwire
    finally:
        podwire.podwire("down")
        left = [name for name in os.listdir(home) if name == podwire.name]
        assert left == [], "down leaves nothing behind"


@pytest.fixture(scope="module")
def pods(cluster: Calico) -> dict[str, str]:
    made = cluster.pods(pod("near", "b"), pod("far", "c"), pod("asks", "a", "nicolaka/netshoot"))
    for name in ("near", "far"):
        wait_for(f"{name} is reached", lambda name=name: cluster.gets("asks", made[name]))
    return made


class Watch:
    """Looks at a node's routes all the time; ``missed`` is in how many looks one was not there."""

    LOOK = "while :; do ip route; echo --; sleep 0.01; done"

    def __init__(self, cluster: Calico, node: str, route: str) -> None:
        self.looks = self.missed = 0
        self._route = route
        argv = ["podwire", "exec", "--name", cluster.name, node, "--", "sh", "-c", self.LOOK]
        self._process = subprocess.Popen(
            argv, env=cluster.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Watch:
        self._thread.start()
        wait_for("the watch looks", lambda: self.looks > 1)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        found = False
        for line in self._process.stdout:
            if line.rstrip() == "--":
                self.looks += 1
                self.missed += not found
                found = False
            found = found or line.rstrip() == self._route


def sessions(cluster: Calico, node: str) -> dict[str, str]:
    return {name: info for name, (_, _, info) in cluster.protocols(node).items()}


def until_meshed(cluster: Calico, node: str) -> None:
    wait_for(
        f"{node}'s sessions are up",
        lambda: [*sessions(cluster, node).values()] == ["Established"] * 2,
        30.0,
    )


def tunnel_address(cluster: Calico, node: str) -> str:
    shown = cluster.node(node, "ip", "-4", "addr", "show", "dev", "tunl0").out
    found = re.search(r"inet ([\d.]+)/32", shown)
    return found.group(1) if found else ""


def test_a_killed_node_comes_back_with_its_block_and_nobody_else_notices(
    cluster: Calico, pods: dict[str, str]
) -> None:
    until_meshed(cluster, "a")
    block, tunnel = cluster.block("c"), tunnel_address(cluster, "c")
    line = f"{block} via 10.10.80.13 dev tunl0 proto bird onlink"
    mesh = cluster.protocols("a")
    between, lost = mesh["Mesh_10_10_64_12"], mesh["Mesh_10_10_80_13"]
    talk = Conversation(cluster, "asks", pods["near"])
    try:
        talk.until_answered("before")
        talk.forget()
        with Watch(cluster, "a", line) as watch:
            os.kill(cluster.pid("c"), signal.SIGKILL)
            # It may be back before anybody has looked: its age tells.
            wait_for(
                "a has lost the session",
                lambda: cluster.protocols("a")["Mesh_10_10_80_13"] != lost,
            )
            until_meshed(cluster, "a")
            until_meshed(cluster, "c")
            wait_for(
                "c has its block", lambda: f"blackhole {block} proto bird" in cluster.routes("c")
            )
        # c's new life does not say that it kept forwarding: RFC 4724 has a drop its routes from c's
        # OPEN to its UPDATE, some milliseconds; c was away for a tenth of a second and more.
        assert watch.looks > 30
        assert watch.missed <= 3, "a keeps c's routes for the time of a graceful restart"
        talk.until_answered("after")
        assert talk.longest_s < 1
    finally:
        talk.close()
    assert cluster.protocols("a")["Mesh_10_10_64_12"] == between
    assert tunnel_address(cluster, "c") == tunnel
    cluster.kubectl("wait", "--for=condition=Ready", "pod/far", "--timeout=30s")
    address = cluster.get("pod", "far")["status"]["podIP"]
    wait_for("c's pod is reached again", lambda: cluster.gets("asks", address))


def test_pods_talk_on_while_etcd_and_the_control_plane_are_dead(
    cluster: Calico, pods: dict[str, str]
) -> None:
    address = cluster.get("pod", "far")["status"]["podIP"]
    since = {name: entry[1] for name, entry in cluster.protocols("a").items()}
    talk = Conversation(cluster, "asks", address)
    other = Conversation(cluster, "asks", pods["near"])
    try:
        for each in (talk, other):
            each.until_answered("before")
            each.forget()
        # The API server carries what kubectl exec says, so it dies after those are measured.
        os.kill(cluster.pid("etcd"), signal.SIGKILL)
        wait_for("etcd is back", lambda: cluster.status()["etcd"]["restarts"] == 1)
        for each in (talk, other):
            each.until_answered("while etcd was away")
            assert each.longest_s < 1
    finally:
        talk.close()
        other.close()
    os.kill(cluster.pid("controlplane"), signal.SIGKILL)
    for _ in range(5):
        assert cluster.node_gets("a", address)
        assert cluster.node_gets("a", pods["near"])
    wait_for("the control plane is back", lambda: cluster.status()["controlplane"]["ready"])
    wait_for("kubectl works", lambda: cluster.kubectl("get", "nodes", check=False).code == 0)
    made = cluster.pods(pod("new", "b"))
    wait_for("new pods work", lambda: cluster.gets("asks", made["new"]))
    assert {name: entry[1] for name, entry in cluster.protocols("a").items()} == since


@pytest.mark.usefixtures("pods")
def test_a_locked_datastore_wires_no_pod_until_it_is_unlocked(cluster: Calico) -> None:
    def lock(ready: bool) -> None:
        patch = json.dumps({"spec": {"datastoreReady": ready}})
        kind = "clusterinformations.crd.projectcalico.org"
        cluster.kubectl("patch", kind, "default", "--type=merge", "-p", patch)

    lock(False)
    cluster.apply(pod("locked", "b"))
    wait_for(
        "the pod says why it waits",
        lambda: (
            "Calico is currently not ready to process requests"
            in cluster.kubectl("describe", "pod", "locked").out
        ),
    )
    lock(True)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/locked", "--timeout=30s")


@pytest.mark.usefixtures("pods")
def test_garbage_on_its_sockets_ends_those_connections_only(cluster: Calico) -> None:
    until_meshed(cluster, "a")
    before = cluster.protocols("a")
    rng = random.Random(4)
    node = next(each for each in cluster.status()["nodes"] if each["name"] == "a")
    bgp = (node["bgp"]["address"], node["bgp"]["port"])
    marker = b"\xff" * 16
    junk = [
        b"",
        rng.randbytes(4096),
        marker + b"\xff\xff\x01",
        marker + b"\x00\x13\x09",
        b"GET / HTTP/1.1\r\n\r\n",
    ]
    for data in junk:
        # Of a stranger: a neighbour's new connection would be its restart (RFC 4724).
        with socket.socket() as talk:
            talk.settimeout(5)
            talk.connect(bgp)
            with contextlib.suppress(OSError):
                talk.sendall(data)
    for data in (rng.randbytes(9000), b"\n" * 5000, b"show\x00\xff\n", b"A" * 100_000):
        with socket.socket(socket.AF_UNIX) as talk:
            talk.settimeout(5)
            talk.connect(node["bird_ctl"])
            with contextlib.suppress(OSError):
                talk.sendall(data)
    assert "Daemon is up and running" in "".join(ask_bird(node["bird_ctl"], "show status"))
    assert ask_bird(node["bird_ctl"], "make coffee")[0].startswith("9001 ")
    assert {
        name: entry for name, entry in cluster.protocols("a").items() if name in before
    } == before


@pytest.mark.usefixtures("pods")
def test_a_peer_that_never_answers_holds_nobody_up(cluster: Calico) -> None:
    until_meshed(cluster, "a")
    before = cluster.protocols("a")
    with socket.create_server(("127.0.113.1", 0)) as silent:
        host, port = silent.getsockname()[:2]
        cluster.apply(
            crd("BGPPeer", "nowhere", {"peerIP": "10.10.64.77", "asNumber": 65001}),
            crd("BGPPeer", "silent", {"peerIP": f"{host}:{port}", "asNumber": 65002}),
        )
        names = ("Global_10_10_64_77", f"Global_127_0_113_1_port_{port}")
        wait_for("a tries both", lambda: {*names} <= {*sessions(cluster, "a")})
        wait_for(
            "it waits for the silent one's OPEN",
            lambda: sessions(cluster, "a")[names[1]].startswith("OpenSent"),
        )
        now = cluster.protocols("a")
        assert {name: now[name] for name in before} == before
        assert "Established" not in sessions(cluster, "a")[names[0]]
        cluster.kubectl("delete", "bgppeers.crd.projectcalico.org", "nowhere", "silent")
        wait_for("they are forgotten", lambda: not {*names} & {*sessions(cluster, "a")})
    assert cluster.protocols("a") == before


REFUSED = [
    (
        {"kind": "IPPool", "metadata": {"name": "over"}, "spec": {"cidr": "192.168.4.0/24"}},
        f"IPPool(over) CIDR overlaps with IPPool({POOL}) CIDR 192.168.0.0/16",
    ),
    (
        {
            "kind": "IPPool",
            "metadata": {"name": "both"},
            "spec": {"cidr": "10.50.0.0/16", "ipipMode": "Always", "vxlanMode": "Always"},
        },
        "both",
    ),
    (
        {"kind": "BGPPeer", "metadata": {"name": "x"}, "spec": {"peerIP": "nonsense"}},
        "nonsense",
    ),
    ({"kind": "Gateway", "metadata": {"name": "x"}, "spec": {}}, "Gateway"),
    (
        {
            "kind": "GlobalNetworkPolicy",
            "metadata": {"name": "x"},
            "spec": {"selector": "app =="},
        },
        "app ==",
    ),
]


@pytest.mark.parametrize(("document", "named"), REFUSED, ids=lambda value: str(value)[:24])
def test_calicoctl_refuses_what_makes_no_sense_and_names_it(
    cluster: Calico, document: dict[str, object], named: str
) -> None:
    text = json.dumps({"apiVersion": "projectcalico.org/v3", **document})
    done = cluster.calicoctl("create", "-f", "-", stdin=text, check=False)
    assert done.code == 1
    assert named in done.out + done.err
    assert "Traceback" not in done.err


BAD_FIELDS = [
    ({"ipipMode": "Sometimes"}, "network.ipipMode"),
    ({"blockSize": 33}, "network.blockSize"),
    ({"ipipMode": "Always", "vxlanMode": "Always"}, "network.vxlanMode"),
    ({"asNumber": 0}, "network.asNumber"),
    ({"podCIDR": "10.10.64.0/20"}, "network.podCIDR"),
    ({"podCIDR": "192.168.0.0/26", "blockSize": 26}, "network.podCIDR"),
    ({"subnetLen": 24}, "network.subnetLen"),
    ({"bgpPort": 99999}, "network.bgpPort"),
]


@pytest.mark.parametrize(("fields", "named"), BAD_FIELDS, ids=lambda value: str(value)[:24])
def test_a_bad_cluster_file_is_refused_by_the_field(
    home: Path, tmp_path: Path, fields: dict[str, object], named: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(cluster_file("ab", **fields))
    done = calico(home, "no").podwire("up", str(path), check=False)
    assert (done.code, done.out) == (2, "")
    assert named in done.err
    assert len(done.err.splitlines()) == 1
