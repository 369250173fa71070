"""IP in IP, VXLAN and plain routes between pods, changed under live connections."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest

from emulator.wire import ipv4
from tests.e2e.calico import POOL, Calico, Conversation, calico, cluster_file, pod
from tests.e2e.harness import wait_for
from tests.e2e.taps import captures, decoded, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


class Modes(NamedTuple):
    """A pool's modes and how node a then reaches b, of its subnet, and c, behind the gateway."""

    ipip: str
    vxlan: str
    near: str
    far: str


TUNL0 = "via {node} dev tunl0 proto bird onlink"
VXLAN = "via {vtep} dev vxlan.calico proto 80 onlink"
MODES = (
    Modes("CrossSubnet", "Never", "via {node} dev eth0 proto bird", TUNL0),
    Modes("Always", "Never", TUNL0, TUNL0),
    Modes("Never", "Always", VXLAN, VXLAN),
    Modes("Never", "CrossSubnet", "via {node} dev eth0 proto 80 onlink", VXLAN),
    Modes("Always", "Never", TUNL0, TUNL0),
)


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Calico]:
    podwire = calico(home, "en")
    podwire.up(text=cluster_file("abc", ipipMode="Always"))
    try:
        yield podwire
    finally:
        podwire.podwire("down")


@pytest.fixture(scope="module")
def addresses(cluster: Calico) -> dict[str, str]:
    made = cluster.pods(
        pod("near", "b"), pod("far", "c"), pod("here", "a"), pod("asks", "a", "nicolaka/netshoot")
    )
    for name in ("near", "far"):
        wait_for(f"{name} is reached", lambda name=name: cluster.node_gets("a", made[name]))
    return made


def tunnel_address(cluster: Calico, node: str, device: str) -> str | None:
    shown = cluster.node(node, "ip", "-4", "addr", "show", "dev", device, check=False).out
    found = re.search(r"inet ([\d.]+)/32 scope global", shown)
    return found.group(1) if found else None


def check_routes(cluster: Calico, modes: Modes) -> None:
    for node, wanted, address in (
        ("b", modes.near, "10.10.64.12"),
        ("c", modes.far, "10.10.80.13"),
    ):
        vtep = ""
        if "{vtep}" in wanted:
            vtep = wait_for(
                "a vtep", lambda node=node: tunnel_address(cluster, node, "vxlan.calico")
            )
        line = wanted.format(node=address, vtep=vtep)
        prefix = cluster.block(node)
        cluster.until_routed("a", f"{prefix} {line}")
    own = cluster.block("a")
    protocol = "80" if modes.vxlan != "Never" else "bird"
    cluster.until_routed("a", f"blackhole {own} proto {protocol}")


def test_live_connections_survive_every_change_of_mode(
    cluster: Calico, addresses: dict[str, str]
) -> None:
    with contextlib.ExitStack() as stack:
        talks = {name: Conversation(cluster, "asks", addresses[name]) for name in ("near", "far")}
        for name, talk in talks.items():
            stack.callback(talk.close)
            talk.until_answered(f"from {name} before any change")
            talk.forget()
        for number, modes in enumerate(MODES):
            if number == 1:
                shown = cluster.calicoctl("get", "ippool", POOL, "-o", "yaml").out
                changed = shown.replace("ipipMode: CrossSubnet", f"ipipMode: {modes.ipip}")
                cluster.calicoctl("apply", "-f", "-", stdin=changed)
            else:
                cluster.pool(ipipMode=modes.ipip, vxlanMode=modes.vxlan)
            check_routes(cluster, modes)
            for name, talk in talks.items():
                talk.until_answered(f"from {name} with {modes}")
                assert talk.longest_s < 1, f"{name} was silent for {talk.longest_s:.2f} s: {modes}"
                assert cluster.node_gets("a", addresses[name])
            if modes.vxlan == "Never":
                gone = "vxlan.calico" not in cluster.node("a", "ip", "link").out
                assert gone, "the device went with the last VXLAN pool"


def test_without_tunnels_only_the_own_subnet_is_reached(
    cluster: Calico, addresses: dict[str, str]
) -> None:
    cluster.pool(ipipMode="Never", vxlanMode="Never")
    near, far = cluster.block("b"), cluster.block("c")
    cluster.until_routed("a", f"{near} via 10.10.64.12 dev eth0 proto bird")
    # The gateway knows nothing of pods: as in the tutorials' clouds, only a tunnel crosses it.
    cluster.until_routed("a", f"{far} via 10.10.64.1 dev eth0 proto bird")
    assert cluster.gets("asks", addresses["near"])
    assert not cluster.gets("asks", addresses["far"])
    trace = cluster.podwire("trace", "asks", f"{addresses['far']}:80", check=False)
    assert "eth0 transmits, to 10.10.64.1" in trace.out
    assert tunnel_address(cluster, "a", "tunl0") is None, "no pool needs a tunnel's address"
    cluster.pool(ipipMode="Always", vxlanMode="Never")
    cluster.until_routed("a", f"{far} via 10.10.80.13 dev tunl0 proto bird onlink")
    wait_for("the tunnel has an address", lambda: tunnel_address(cluster, "a", "tunl0"))
    wait_for("far is reached again", lambda: cluster.gets("asks", addresses["far"]))


def test_the_tunnel_takes_20_bytes_of_the_path_and_senders_learn_it(
    cluster: Calico, addresses: dict[str, str]
) -> None:
    cluster.pool(ipipMode="Always", vxlanMode="Never")
    cluster.until_routed("a", f"{cluster.block('c')} via 10.10.80.13 dev tunl0 proto bird onlink")
    link = cluster.node("a", "ip", "link", "show", "dev", "tunl0").out
    assert "mtu 1480" in link
    wait_for("tunl0 works", lambda: cluster.node_gets("a", addresses["far"]))
    path = cluster.node("a", "tracepath", "-n", addresses["far"]).out
    assert "pmtu 1480" in path
    # Fragments of a datagram larger than any device on the way come together again.
    sizes = ("1412", "1413", "4000")
    for size in sizes:
        ping = ("exec", "asks", "--", "ping", "-c", "1", "-W", "2", "-s", size, addresses["far"])
        assert "1 packets received" in cluster.kubectl(*ping).out
    # The inner TTL is counted before the packet enters the tunnel: two routers on the way.
    ping = ("exec", "asks", "--", "ping", "-c", "1", "-W", "2", addresses["far"])
    assert "ttl=62" in cluster.kubectl(*ping).out


def test_a_capture_of_tunl0_shows_the_inner_and_of_eth0_the_outer_packets(
    cluster: Calico, addresses: dict[str, str], tmp_path: Path
) -> None:
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is not installed")
    far = addresses["far"]
    places = {"tunl0": ("a", "tunl0"), "eth0": ("a", "eth0")}
    with captures(cluster, places, tmp_path):
        assert cluster.gets("asks", far)
    inner = decoded(cluster, tmp_path / "tunl0.pcapng")
    assert f"IP {addresses['asks']}." in inner
    assert f"> {far}.80: Flags [S]" in inner
    outer = decoded(cluster, tmp_path / "eth0.pcapng")
    inside = rf"IP 10\.10\.64\.11 > 10\.10\.80\.13: IP {addresses['asks']}\.\d+ > {far}\.80"
    assert re.search(inside, outer), outer


def on_loopback(cluster: Calico, path: Path, hosts: tuple[str, str], port: int) -> list[str]:
    tcpdump = ["tcpdump", "--immediate-mode", "-U", "-Z", "root", "-w", str(path), "-ni", "lo"]
    first, second = hosts
    return [*tcpdump, *f"udp port {port} and host {first} and host {second}".split()]


@pytest.mark.root
def test_the_carrier_on_loopback_holds_whole_ip_in_ip_packets(
    cluster: Calico, addresses: dict[str, str], tmp_path: Path
) -> None:
    if os.geteuid() != 0 or shutil.which("tcpdump") is None:
        pytest.skip("needs root and tcpdump: it listens on lo")
    path = tmp_path / "lo.pcap"
    hosts = (cluster.underlay("a"), cluster.underlay("c"))
    with running(cluster, on_loopback(cluster, path, hosts, 8473), "listening on"):
        ping = ("exec", "asks", "--", "ping", "-c", "2", "-i", "0.2", addresses["far"])
        assert "2 packets received" in cluster.kubectl(*ping).out
        wait_for("tcpdump has them", lambda: len(datagrams(path)) >= 4)
    carried = [ipv4.Ipv4.parse(data) for data in datagrams(path)]
    tunnelled = [header for header in carried if header.proto == 4]
    ends = {(header.src, header.dst) for header in tunnelled}
    a, c = 0x0A0A400B, 0x0A0A500D
    assert ends == {(a, c), (c, a)}


def datagrams(path: Path) -> list[bytes]:
    """The UDP payloads of a pcap of lo (link type Ethernet)."""
    if not path.exists():
        return []
    data, found, at = path.read_bytes(), [], 24
    while at + 16 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 8)
        frame = data[at + 16 : at + 16 + length]
        at += 16 + length
        if len(frame) == length:
            found.append(frame[14 + 20 + 8 :])
    return found


@pytest.mark.root
def test_vxlan_on_loopback_is_vxlan_of_port_4789_to_a_stranger(home: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("tcpdump") is None:
        pytest.skip("needs root and tcpdump: it listens on lo")
    cluster = calico(home, "vx")
    cluster.up(text=cluster_file("ac", vxlanMode="Always"))
    try:
        made = cluster.pods(pod("far", "c"), pod("asks", "a", "nicolaka/netshoot"))
        wait_for("far is reached", lambda: cluster.node_gets("a", made["far"]))
        path = tmp_path / "lo.pcap"
        hosts = (cluster.underlay("a"), cluster.underlay("c"))
        with running(cluster, on_loopback(cluster, path, hosts, 4789), "listening on"):
            ping = ("exec", "asks", "--", "ping", "-c", "1", made["far"])
            assert "ttl=62" in cluster.kubectl(*ping).out
            wait_for("tcpdump has both", lambda: decoded(cluster, path).count("VXLAN") >= 2)
        seen = decoded(cluster, path)
        assert re.search(rf"{re.escape(hosts[1])}\.4789: VXLAN, flags \[I\] .*vni 4096", seen)
        assert f"{made['asks']} > {made['far']}: ICMP echo request" in seen
        assert f"{made['far']} > {made['asks']}: ICMP echo reply" in seen
        devices = cluster.node("a", "ip", "link").out
        assert "tunl0" not in devices
    finally:
        cluster.podwire("down")
