"""A Calico cluster that is watched: BFD between nodes, BMP to a collector, MRT of all messages."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from agents.bird.net import Afi
from tests import bgp_peers, bmp_collector
from tests.e2e.harness import Podwire, wait_for
from tests.mrt_reader import named, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e
BIRDC = bgp_peers.bird2_client()


class Collector(threading.Thread):
    """Takes BMP of any number of nodes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.messages: list[bmp_collector.Bmp] = []

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        left = b""
        with connection:
            while True:
                try:
                    data = connection.recv(65536)
                except OSError:
                    return
                if not data:
                    return
                found, left = bmp_collector.parse(left + data)
                self.messages += found

    def announced(self) -> set[str]:
        nets = [m.nets()[0] for m in self.messages if m.kind == bmp_collector.ROUTE_MONITORING]
        return {net for some in nets for net in some}

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()
    found.start()
    yield found
    found.close()


@pytest.fixture(scope="module")
def watched(home: Path, collector: Collector) -> Iterator[Podwire]:
    podwire = Podwire(home, f"w{os.getpid()}")
    file = home / "cluster.yaml"
    file.write_text(
        "apiVersion: podwire.dev/v1alpha1\nkind: Cluster\nnodes: 2\n"
        "network: {type: calico, bfd: {interval: 100ms, multiplier: 3}, mrtMessages: true, "
        f'birdDialect: 2, bmp: "127.0.0.1:{collector.port}"}}\n'
    )
    podwire.podwire("up", str(file), "--detach")
    yield podwire
    podwire.podwire("down")


def nodes(podwire: Podwire) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = podwire.status()["nodes"]
    return found


def ask(path: str, command: str) -> str:
    """One reply of a control socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        with client.makefile("rw") as lines:
            assert lines.readline().startswith("0001 ")
            lines.write(f"{command}\n")
            lines.flush()
            out = ""
            for line in lines:
                out += line
                if line[:4].isdigit() and line[4:5] == " ":
                    break
            return out


def test_the_collector_hears_of_both_nodes(watched: Podwire, collector: Collector) -> None:
    wait_for("both nodes' blocks", lambda: len(collector.announced()) >= 2)
    ups = [m for m in collector.messages if m.kind == bmp_collector.PEER_UP]
    assert {m.peer for m in ups} == {node["ip"] for node in nodes(watched)}
    names = {m.tlvs[2].decode() for m in collector.messages if m.kind == bmp_collector.INITIATION}
    assert names == {node["name"] for node in nodes(watched)}


def test_the_control_socket_speaks_the_bird_that_was_asked_for(watched: Podwire) -> None:
    path = nodes(watched)[0]["bird_ctl"]
    shown = ask(path, "show protocols")
    assert shown.startswith("2002-Name       Proto      Table      State  Since         Info")
    assert "Channel ipv4" in ask(path, "show protocols all")
    assert ask(path, "show route").startswith("1007-Table master4:")


def test_every_message_is_kept(watched: Podwire) -> None:
    files = sorted(watched.home.rglob("var/log/calico/bird/messages.mrt"))
    assert len(files) == 2

    def kinds(path: Path) -> set[str]:
        messages = [each["bgp_message"] for each in read(path) if "bgp_message" in each]
        return {named(message, "type") for message in messages}

    for path in files:
        wait_for(
            "all kinds of messages",
            lambda path=path: {"OPEN", "KEEPALIVE", "UPDATE"} <= kinds(path),
        )
        assert Afi.IPV4 in read(path)[0]["afi"]


def test_birdc_of_bird_2_is_answered_in_its_words(watched: Podwire) -> None:
    client = bgp_peers.bird2_client()
    if client is None:
        pytest.skip(bgp_peers.NO_BIRD2)
    first = nodes(watched)[0]
    shown = client.run("-s", first["bird_ctl"], "show", "protocols").splitlines()
    assert shown[0] == "BIRD 2.0.12 ready."
    assert [line.split()[:3] for line in shown[2:]][1:5] == [
        ["kernel1", "Kernel", "master4"],
        ["device1", "Device", "---"],
        ["direct1", "Direct", "---"],
        ["bfd1", "BFD", "---"],
    ]
    told = client.run("-s", first["bird_ctl"], "show", "route", "protocol", "static1")
    assert "blackhole [static1 " in told


def test_a_frozen_node_is_noticed_in_less_than_half_a_second(watched: Podwire) -> None:
    first, second = nodes(watched)
    path = first["bird_ctl"]

    def is_watched() -> bool:
        rows = ask(path, "show bfd sessions")
        return " Up " in rows and " 0.300\n" in rows

    wait_for("BFD between the nodes", is_watched)
    os.kill(second["pid"], signal.SIGSTOP)
    frozen = time.monotonic()
    try:
        wait_for(
            "the session ends",
            lambda: "Established" not in ask(path, "show protocols"),
            within_s=10,
            every_s=0.005,
        )
        took = time.monotonic() - frozen
        assert "BFD session down" in ask(path, "show protocols")
        # Unloaded it is 0.3 s; without BFD it would be the hold time, 240 s.
        assert took < 2.0
    finally:
        os.kill(second["pid"], signal.SIGCONT)
    wait_for("the session again", lambda: "Established" in ask(path, "show protocols"))
