"""What packets meet on their way through one node and between two."""

from __future__ import annotations

import errno

import pytest

from emulator.addr import Prefix, format_ip, parse_ip
from emulator.netstack.fib import Route, RouteType
from emulator.netstack.packet import DropReason
from emulator.netstack.records import NeighState
from emulator.netstack.sock.tcp import Endpoint
from emulator.wire import icmpv4, ipv4, udp
from tests.joined_kernels import Segment


def dropped(ns, reason: DropReason) -> int:
    return ns.drops[reason].packets


def test_ping_from_pod_to_pod_loses_two_of_its_ttl() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(1, 2)
    answer = net.ping(pod, "10.2.2.2")
    assert (answer.icmp_type, answer.ttl, answer.size) == (0, 62, 64)


def test_ping_from_a_node_to_a_remote_pod_loses_one() -> None:
    net = Segment()
    net.pod(1, 2)
    assert net.ping(net.kernels[0].root, "10.2.2.2").ttl == 63


def test_a_bridged_ping_loses_none() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(0, 3)
    assert net.ping(pod, "10.2.1.3").ttl == 64


def test_a_pod_reaches_itself_and_localhost() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    assert net.ping(pod, "10.2.1.2").ttl == 64
    assert net.ping(pod, "127.0.0.1").ttl == 64


def test_traceroute_sees_both_nodes() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(1, 2)
    hops = [net.ping(pod, "10.2.2.2", ttl=ttl) for ttl in (1, 2, 3)]
    assert [(hop.icmp_type, format_ip(hop.source)) for hop in hops] == [
        (11, "10.2.1.1"),
        (11, "10.2.2.0"),
        (0, "10.2.2.2"),
    ]
    assert dropped(net.kernels[1].root, DropReason.TTL_EXPIRED) == 1


def test_a_packet_too_big_for_the_overlay_is_refused_with_its_mtu() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(1, 2)
    pod.link_set("eth0", mtu=1500)
    net.kernels[0].root.link_set("veth2", mtu=1500)
    net.kernels[0].root.link_set("cni0", mtu=1500)
    answer = net.ping(pod, "10.2.2.2", size=1440)
    assert (answer.icmp_type, answer.code, answer.mtu) == (3, 4, 1450)
    # The pod has learnt it: the second packet does not leave whole.
    assert pod.route_mtu(parse_ip("10.2.2.2")) == 1450
    assert net.ping(pod, "10.2.2.2", size=1440, df=False).icmp_type == 0
    net.advance(601)
    assert pod.route_mtu(parse_ip("10.2.2.2")) == 1500


def test_a_router_cannot_widen_the_path_that_another_has_found_narrow() -> None:
    net = Segment()
    pod, there = net.pod(0, 2), parse_ip("10.2.2.2")

    def told(mtu: int) -> int:
        quoted = ipv4.build(parse_ip("10.2.1.2"), there, 17, bytes(8))
        message = icmpv4.error(3, 4, quoted, mtu=mtu).emit()
        net.kernels[0].root.output(
            ipv4.build(parse_ip("10.2.1.1"), parse_ip("10.2.1.2"), 1, message)
        )
        net.settle()
        return pod.route_mtu(there)

    assert [told(mtu) for mtu in (9000, 1400, 1430, 1300, 1399)] == [1450, 1400, 1400, 1300, 1300]


def test_of_fragments_only_the_first_is_answered_by_an_error() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    errors: list[bytes] = []

    def sink(at: float, frame: bytes, out: bool) -> None:
        if not out and frame[12:14] == b"\x08\0" and frame[23] == 1:
            errors.append(frame[34:36])

    net.kernels[0].capture(pod, "eth0", sink)
    echo = icmpv4.echo_request(7, 1, bytes(3000)).emit()
    whole = ipv4.build(parse_ip("10.2.1.2"), parse_ip("8.8.8.8"), 1, echo, ident=9)
    *later, first = reversed(ipv4.fragment(whole, 1400))
    for piece in later:
        assert pod.output(piece) is None
    net.settle()
    assert (len(later), errors) == (2, [])
    assert pod.output(first) is None
    net.settle()
    assert errors == [b"\3\0"]


def test_a_big_ping_without_df_is_cut_and_put_together() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(1, 2)
    answer = net.ping(pod, "10.2.2.2", size=5000, df=False)
    assert (answer.icmp_type, answer.size) == (0, 5008)


def test_fragments_cross_a_bridge_that_tracks_connections() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(0, 3)
    net.kernels[0].root.netfilter.restore(
        "*nat\n-A PREROUTING -d 10.3.0.1/32 -j DNAT --to-destination 10.2.1.3\nCOMMIT\n"
    )
    assert net.ping(pod, "10.2.1.3", size=5000, df=False).size == 5008
    assert net.ping(pod, "10.3.0.1", size=5000, df=False).size == 5008


def test_a_missing_fragment_times_out_with_an_error_about_the_first() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    there = net.pod(1, 2)
    src, dst = parse_ip("10.2.1.2"), parse_ip("10.2.2.2")
    sock = pod.sockets.ping_open()
    echo = icmpv4.echo_request(sock.ident, 1, bytes(3000)).emit()
    first = ipv4.fragment(ipv4.build(src, dst, 1, echo, ident=9), 1400)[0]
    assert pod.output(first) is None
    net.settle()
    assert sock.receive() is None
    net.advance(31)
    answer = sock.receive()
    assert (answer.icmp_type, answer.code) == (11, 1)
    assert dropped(there, DropReason.REASSEMBLY_TIMEOUT) == 1


def test_nobody_answers_arp_so_the_host_is_unreachable() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    answer = net.ping(pod, "10.2.1.99")
    assert (answer.icmp_type, answer.code, format_ip(answer.source)) == (3, 1, "10.2.1.2")
    state = {neigh.ip: neigh.state for neigh in pod.neighs()}
    assert state[parse_ip("10.2.1.99")] is NeighState.FAILED
    assert dropped(pod, DropReason.NEIGH_FAILED) == 1


def test_a_dead_node_is_unreachable_for_the_node_that_forwards() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.kernels[0].root.device("eth0").peer_del(net.node_ip(1))
    answer = net.ping(pod, "10.2.2.2")
    # The outer packet fails at this node: its error goes to the node itself, the pod hears nothing.
    assert answer is None
    assert dropped(net.kernels[0].root, DropReason.NEIGH_FAILED) == 1


@pytest.mark.parametrize(
    ("kind", "reason", "answer"),
    [
        (RouteType.BLACKHOLE, DropReason.BLACKHOLE, None),
        (RouteType.UNREACHABLE, DropReason.UNREACHABLE, (3, 1)),
        (RouteType.PROHIBIT, DropReason.PROHIBITED, (3, 13)),
    ],
)
def test_routes_that_say_no(kind, reason, answer) -> None:
    net = Segment()
    pod = net.pod(0, 2)
    root = net.kernels[0].root
    root.route_add(Route(Prefix.parse("10.9.0.0/16"), type=kind))
    got = net.ping(pod, "10.9.1.1")
    assert (got and (got.icmp_type, got.code)) == answer
    assert dropped(root, reason) == 1


def test_no_route_at_all_is_net_unreachable() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    got = net.ping(pod, "8.8.8.8")
    assert (got.icmp_type, got.code, format_ip(got.source)) == (3, 0, "10.2.1.1")


def test_without_ip_forward_nothing_passes() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(1, 2)
    assert net.ping(pod, "10.2.2.2").icmp_type == 0
    net.kernels[0].root.sysctl["net.ipv4.ip_forward"] = 0
    assert net.ping(pod, "10.2.2.2") is None
    assert dropped(net.kernels[0].root, DropReason.NOT_FORWARDING) == 1


def test_a_closed_udp_port_is_answered_and_a_closed_tcp_port_reset() -> None:
    net = Segment()
    pod, there = net.pod(0, 2), net.pod(1, 2)
    sock = pod.sockets.udp_bind(0, 0, Endpoint(parse_ip("10.2.2.2"), 9))
    sock.send(b"anyone?")
    net.settle()
    assert dropped(there, DropReason.NO_SOCKET) == 1
    assert sock.error == errno.ECONNREFUSED
    connection = pod.sockets.tcp_connect(Endpoint(parse_ip("10.2.2.2"), 81))
    net.settle()
    assert connection.error


def test_icmp_errors_are_limited_to_a_burst_and_one_a_second() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    sock = pod.sockets.ping_open()

    def errors() -> int:
        count = 0
        while sock.receive() is not None:
            count += 1
        return count

    for seq in range(20):
        sock.send(parse_ip("8.8.8.8"), seq, b"")
    net.settle()
    assert errors() == 6
    net.advance(1.0)
    sock.send(parse_ip("8.8.8.8"), 99, b"")
    net.settle()
    assert errors() == 1


def test_martians_are_dropped() -> None:
    net = Segment()
    root = net.kernels[0].root
    nic = root.device("eth0")
    datagram = udp.Udp(1, 2, b"x")
    for src, dst in (
        ("127.0.0.1", "172.17.4.201"),
        ("172.17.4.201", "10.2.1.2"),
        ("224.0.0.1", "172.17.4.201"),
        ("172.17.4.202", "127.0.0.1"),
    ):
        a, b = parse_ip(src), parse_ip(dst)
        nic.receive_carrier(ipv4.build(a, b, 17, datagram.emit(a, b)), 0)
    assert dropped(root, DropReason.MARTIAN) == 4


def test_garbage_from_the_wire_is_counted_and_nothing_else() -> None:
    net = Segment()
    root = net.kernels[0].root
    nic = root.device("eth0")
    nic.receive_vxlan(net.node_ip(1), 40000, b"\x00" * 7, 0)
    nic.receive_vxlan(net.node_ip(1), 40000, b"\x08\x00\x00\x00\x00\x00\x09\x00" + bytes(60), 0)
    nic.receive_vxlan(net.node_ip(1), 40000, b"\x08\x00\x00\x00\x00\x00\x01\x00" + bytes(9), 0)
    nic.receive_vxlan(net.node_ip(1), 40000, b"", 0)
    nic.receive_carrier(b"\x45" * 10, 0)
    nic.receive_carrier(b"\x45" * 100, 7)
    assert dropped(root, DropReason.BAD_VNI) == 1
    assert dropped(root, DropReason.BAD_HEADER) >= 2
    assert nic.take_egress() == []


def test_unreplied_arp_wakes_the_driver_once_per_quiet_period() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    kernel = net.kernels[0]
    calls = []
    net.settle()
    kernel.on_work = lambda: calls.append(1)
    sock = pod.sockets.ping_open()
    for seq in range(5):
        sock.send(parse_ip("10.2.2.2"), seq, b"")
    assert len(calls) == 1


def test_hosts_talk_without_an_overlay_over_the_carrier() -> None:
    net = Segment()
    pod, there = net.pod(0, 2), net.pod(1, 2)
    for number, kernel in enumerate(net.kernels):
        other = net.subnet(1 - number)
        kernel.root.route_replace(Route(other, gateway=net.node_ip(1 - number), dev="eth0"))
    assert net.ping(pod, "10.2.2.2").ttl == 62
    assert there.link("eth0").rx_packets >= 1
    assert net.kernels[0].root.link("flannel.1").tx_packets == 0


def test_ip_in_ip_carries_pods_too() -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(1, 2)
    for number, kernel in enumerate(net.kernels):
        root = kernel.root
        root.link_add("tunl0", "ipip")
        root.link_set("tunl0", up=True)
        other = net.node_ip(1 - number)
        root.route_replace(
            Route(net.subnet(1 - number), gateway=other, dev="tunl0", onlink=True, protocol="bird")
        )
    assert net.ping(pod, "10.2.2.2").ttl == 62
    assert net.kernels[0].root.link("tunl0").tx_packets == 1


def test_a_learning_vxlan_floods_to_its_remote_and_learns() -> None:
    net = Segment()
    for number, kernel in enumerate(net.kernels):
        root = kernel.root
        root.link_add("vx7", "vxlan", vni=7, dev="eth0", port=4789, remote=net.node_ip(1 - number))
        root.link_set("vx7", up=True)
        root.addr_add("vx7", parse_ip(f"10.7.0.{1 + number}"), 24)
    assert net.ping(net.kernels[0].root, "10.7.0.2").ttl == 64
    learnt = [e for e in net.kernels[0].root.fdb() if e.dev == "vx7" and not e.permanent]
    assert [format_ip(e.dst) for e in learnt] == ["172.17.4.202"]
    net.advance(400)
    assert all(e.permanent for e in net.kernels[0].root.fdb() if e.dev == "vx7")


def test_a_veth_loop_between_two_bridges_ends() -> None:
    net = Segment()
    root = net.kernels[0].root
    root.link_add("br1", "bridge")
    root.link_add("br2", "bridge")
    for number in (1, 2):
        root.link_add(f"a{number}", "veth", peer=f"b{number}")
        root.link_set(f"a{number}", master="br1", up=True)
        root.link_set(f"b{number}", master="br2", up=True)
    root.link_set("br1", up=True)
    root.link_set("br2", up=True)
    root.addr_add("br1", parse_ip("10.5.0.1"), 24)
    assert net.ping(root, "10.5.0.2").icmp_type == 3
    assert dropped(root, DropReason.LOOP) > 0
