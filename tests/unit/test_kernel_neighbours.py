"""ARP and the life of a neighbour entry."""

from __future__ import annotations

from emulator.addr import BROADCAST_MAC, parse_ip
from emulator.netstack.neigh import MAX_QUEUE
from emulator.netstack.packet import DropReason
from emulator.netstack.records import NeighState
from emulator.netstack.skb import Skb
from emulator.wire.arp import REPLY, Arp
from emulator.wire.ethernet import ETHERTYPE_ARP
from tests.joined_kernels import Segment


def state_of(ns, ip: str) -> NeighState | None:
    return {n.ip: n.state for n in ns.neighs()}.get(parse_ip(ip))


def arp_frames(net: Segment, ns, dev: str) -> list[Arp]:
    seen: list[Arp] = []

    def sink(at: float, frame: bytes, out: bool) -> None:
        if frame[12:14] == b"\x08\x06":
            seen.append(Arp.parse(frame[14:]))

    net.kernels[0].capture(ns, dev, sink)
    return seen


def test_a_neighbour_in_use_is_probed_and_stays() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(0, 3)
    seen = []
    for _ in range(120):
        net.ping(pod, "10.2.1.3")
        seen.append(state_of(pod, "10.2.1.3"))
        net.advance(1)
    assert seen[0] is NeighState.REACHABLE
    assert NeighState.DELAY in seen
    assert NeighState.FAILED not in seen
    assert NeighState.INCOMPLETE not in seen


def test_an_idle_neighbour_goes_stale() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(0, 3)
    net.ping(pod, "10.2.1.3")
    net.advance(46)
    assert state_of(pod, "10.2.1.3") is NeighState.STALE


def test_a_neighbour_that_left_fails_after_its_probes() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    other = net.pod(0, 3)
    net.ping(pod, "10.2.1.3")
    other.link_set("eth0", up=False)
    for _ in range(70):
        sock = pod.sockets.ping_open()
        sock.send(parse_ip("10.2.1.3"), 1, b"")
        net.advance(1)
        sock.close()
        if state_of(pod, "10.2.1.3") is NeighState.FAILED:
            break
    assert state_of(pod, "10.2.1.3") is NeighState.FAILED


def test_arp_asks_three_times_a_second_apart() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    asked = arp_frames(net, pod, "eth0")
    sock = pod.sockets.ping_open()
    sock.send(parse_ip("10.2.1.99"), 1, b"")
    for expected in (1, 2, 3, 3):
        net.settle()
        assert len(asked) == expected
        net.advance(1)
    assert {(a.op, a.sender_ip, a.target_ip) for a in asked} == {
        (1, parse_ip("10.2.1.2"), parse_ip("10.2.1.99"))
    }


def test_packets_that_wait_for_arp_are_bounded_and_the_oldest_gives_way() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    sock = pod.sockets.ping_open()
    for seq in range(MAX_QUEUE + 5):
        sock.send(parse_ip("10.2.1.99"), seq, b"")
    assert pod.drops[DropReason.NEIGH_QUEUE_FULL].packets == 5
    net.advance(4)
    assert pod.drops[DropReason.NEIGH_FAILED].packets == MAX_QUEUE


def test_a_permanent_neighbour_is_believed_over_arp() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(0, 3)
    pod.neigh_replace("eth0", parse_ip("10.2.1.3"), b"\x02wrong")
    assert net.ping(pod, "10.2.1.3") is None
    assert state_of(pod, "10.2.1.3") is NeighState.PERMANENT
    pod.neigh_del("eth0", parse_ip("10.2.1.3"))
    assert net.ping(pod, "10.2.1.3").icmp_type == 0


def test_proxy_arp_answers_for_what_is_routed_elsewhere() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(1, 2)
    pod.addr_del("eth0", parse_ip("10.2.1.2"), 24)
    pod.addr_add("eth0", parse_ip("10.2.1.2"), 8)
    assert net.ping(pod, "10.2.2.2").icmp_type == 3
    net.kernels[0].root.sysctl["net.ipv4.conf.cni0.proxy_arp"] = 1
    assert net.ping(pod, "10.2.2.2").ttl == 62


def test_an_answer_to_nobody_mentions_a_neighbour_and_confirms_nothing() -> None:
    net = Segment()
    pod, other = net.pod(0, 2), net.pod(0, 3)
    net.ping(pod, "10.2.1.3")
    assert state_of(pod, "10.2.1.3") is NeighState.REACHABLE
    dev, moved = other.device("eth0"), b"\x02\0\0\0\0\x63"
    ip = parse_ip("10.2.1.3")
    news = Arp(REPLY, moved, ip, moved, ip).emit()
    dev.transmit(Skb(BROADCAST_MAC, moved, ETHERTYPE_ARP, news))
    net.settle()
    (entry,) = [n for n in pod.neighs() if n.ip == ip]
    assert (entry.mac, entry.state) == (moved, NeighState.STALE)


def test_a_device_that_goes_down_forgets_its_neighbours() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(0, 3)
    net.ping(pod, "10.2.1.3")
    pod.neigh_replace("eth0", parse_ip("10.2.1.4"), b"\2\0\0\0\0\4")
    pod.link_set("eth0", up=False)
    assert pod.neighs() == ()
