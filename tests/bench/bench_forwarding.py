"""Overlay forwarding through one kernel: ``python -m tests.bench.bench_forwarding [seconds]``.

Batches of VXLAN datagrams as the NIC's driver hands them over (64 at a time where the machine has
UDP_GRO) go in; out come batches for another node, or packets for a pod's socket.  Figure to reach:
60,000 packets a second of an established flow, aim 250,000.  The node has kube-proxy's and
flannel's kind of rules, connection tracking included.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from emulator.addr import parse_ip
from emulator.netstack.devices.underlay import Underlay
from emulator.wire import icmpv4, ipv4, tcp, udp, vxlan
from emulator.wire.ethernet import Frame
from tests.joined_kernels import Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from emulator.netstack.packet import Packet

BATCH = 64
PAYLOAD = 64

RULES = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:FLANNEL-POSTRTG - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -j FLANNEL-POSTRTG
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE
-A FLANNEL-POSTRTG -s 10.2.0.0/16 -d 10.2.0.0/16 -j RETURN
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A FORWARD -j FLANNEL-FWD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FLANNEL-FWD -s 10.2.0.0/16 -j ACCEPT
-A FLANNEL-FWD -d 10.2.0.0/16 -j ACCEPT
COMMIT
"""


class Sink:
    """A pod's sockets that only count."""

    def __init__(self) -> None:
        self.packets = 0
        self.octets = 0

    def deliver(self, packet: Packet) -> None:
        self.packets += 1
        self.octets += len(packet.data)


def frames(net: Segment, inner: Sequence[bytes]) -> bytes:
    """VXLAN datagrams from node 1 to node 0, one after the other."""
    mac = net.kernels[0].root.link("flannel.1").mac
    src = net.kernels[1].root.link("flannel.1").mac
    return b"".join(vxlan.Vxlan(1, Frame(mac, src, 0x0800, data).emit()).emit() for data in inner)


def udp_packets(src: str, dst: str, count: int = BATCH, *, sport: int = 5000) -> list[bytes]:
    """Datagrams of one flow that differ in their identification."""
    a, b = parse_ip(src), parse_ip(dst)
    body = udp.Udp(sport, 5001, bytes(PAYLOAD)).emit(a, b)
    return [ipv4.build(a, b, 17, body, ident=i * 977 & 0xFFFF, ttl=62) for i in range(count)]


def tcp_packets(src: str, dst: str, size: int, count: int) -> list[bytes]:
    """Consecutive full segments of one connection."""
    a, b = parse_ip(src), parse_ip(dst)
    return [
        ipv4.build(
            *(a, b, 6),
            tcp.Tcp(5000, 80, 1 + i * size, 1, tcp.ACK, 500, bytes(size)).emit(a, b),
            ident=i,
            frag=ipv4.DF,
            ttl=62,
        )
        for i in range(count)
    ]


def nic_of(net: Segment) -> Underlay:
    """Node 0's NIC."""
    nic = net.kernels[0].root.device("eth0")
    assert isinstance(nic, Underlay)
    return nic


def give(net: Segment, batch: bytes, size: int) -> None:
    """Hand one batch to node 0's NIC."""
    nic_of(net).receive_vxlan(net.node_ip(1), 40000, batch, size)


def measure(name: str, seconds: float, packets: int, turn: Callable[[], None]) -> float:
    """Run ``turn`` for a while and print packets a second."""
    turn()
    turns = 0
    begin = time.perf_counter()
    while (took := time.perf_counter() - begin) < seconds:
        turn()
        turns += 1
    pps = turns * packets / took
    print(f"{name:58} {pps:12,.0f} packets/s")
    return pps


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=1.0)
    seconds = parser.parse_args([] if argv is None else argv).seconds
    net = Segment(3)
    root = net.kernels[0].root
    root.netfilter.restore(RULES)
    pod = net.pod(0, 2)
    nic = nic_of(net)

    batch = frames(net, udp_packets("10.2.2.2", "10.2.3.2"))
    size = len(batch) // BATCH
    net.ping(root, "10.2.3.1")
    cache = net.kernels[0].flows

    def forward() -> None:
        give(net, batch, size)
        nic.take_egress()

    def slowly() -> None:
        net.kernels[0].invalidate_flows()
        give(net, batch[:size], size)
        nic.take_egress()

    print(f"UDP, {PAYLOAD} bytes of payload, batches of {BATCH}, rules and conntrack on")
    measure("slow path, VXLAN in, VXLAN out", seconds, 1, slowly)
    measure("flow cache, VXLAN in, VXLAN out", seconds, BATCH, forward)
    single = batch[:size]

    def one_by_one() -> None:
        give(net, single, size)
        nic.take_egress()

    measure("flow cache, batches of 1", seconds, 1, one_by_one)

    sink = Sink()
    sockets = pod.sockets
    net.ping(pod, "10.2.1.1")
    pod.sockets = sink
    to_pod = frames(net, udp_packets("10.2.2.2", "10.2.1.2"))
    measure(
        "flow cache, VXLAN in, delivered in a pod", seconds, BATCH, lambda: give(net, to_pod, size)
    )
    segments = frames(net, tcp_packets("10.2.2.2", "10.2.1.2", 1398, 43))
    mtu = len(segments) // 43
    a, b = parse_ip("10.2.1.2"), parse_ip("10.2.2.2")
    give(net, segments[:mtu], mtu)
    answer = tcp.Tcp(80, 5000, 1, 1399, tcp.ACK, 500).emit(a, b)
    pod.output(ipv4.build(a, b, 6, answer, frag=ipv4.DF))
    nic.take_egress()
    pps = measure(
        "flow cache, TCP of 1,398 bytes joined for a pod", seconds, 43,
        lambda: give(net, segments, mtu),
    )  # fmt: skip
    print(f"{'':58} {pps * 1398 * 8 / 1e6:12,.0f} Mbit/s")
    pod.sockets = sockets
    print(f"cache: {len(cache)} entries, {cache.hits:,} hits, {cache.misses:,} misses")
    echo = icmpv4.echo_request(1, 1, bytes(56)).emit()
    ping = frames(net, [ipv4.build(parse_ip("10.2.2.2"), parse_ip("10.2.1.2"), 1, echo, ttl=62)])

    def pings() -> None:
        give(net, ping, len(ping))
        nic.take_egress()

    measure("slow path, echo answered by a pod", seconds, 1, pings)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
