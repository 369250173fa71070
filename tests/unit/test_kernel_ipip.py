"""IP in IP between nodes, routed pods behind proxy ARP, and routes with several next hops."""

from __future__ import annotations

import pytest

from emulator.addr import Prefix, format_ip, parse_ip
from emulator.errors import UsageError
from emulator.netstack.fib import NextHop, Route, RouteType, path_hash
from emulator.netstack.packet import DropReason
from emulator.netstack.show.route import render_ip_route
from emulator.netstack.sock.tcp import Endpoint
from emulator.wire import ipv4, udp
from tests.calico_kernels import CalicoSegment


def frames_of(net: CalicoSegment, node: int, dev: str) -> list[bytes]:
    seen: list[bytes] = []
    net.kernels[node].capture("root", dev, lambda _at, frame, _out: seen.append(frame))
    return seen


def test_a_pod_learns_its_gateway_from_proxy_arp() -> None:
    net = CalicoSegment(1)
    pod = net.pod(0, 2)
    assert net.ping(pod, "172.17.4.201").ttl == 64
    (entry,) = pod.neighs()
    assert (format_ip(entry.ip), entry.mac, entry.state) == (
        "169.254.1.1", b"\xee" * 6, "REACHABLE"
    )  # fmt: skip


def test_a_proxy_waits_unless_proxy_delay_is_nought() -> None:
    net = CalicoSegment(1)
    pod = net.pod(0, 2)
    net.kernels[0].root.sysctl["net.ipv4.neigh.cali00000000002.proxy_delay"] = 80
    sock = pod.sockets.ping_open()
    sock.send(parse_ip("172.17.4.201"), 1, b"x", ttl=64, dont_fragment=True)
    net.settle()
    assert sock.receive() is None
    net.advance(0.8)
    assert sock.receive() is not None


def test_nobody_answers_for_what_is_not_routed_elsewhere() -> None:
    net = CalicoSegment(1)
    pod = net.pod(0, 2)
    net.kernels[0].root.route_del(Route(Prefix(0, 0)))
    net.kernels[0].root.route_del(Route(net.subnet(0), type=RouteType.BLACKHOLE))
    assert net.ping(pod, "172.17.4.201").icmp_type == 3


def test_pods_of_two_nodes_lose_two_of_their_ttl() -> None:
    net = CalicoSegment()
    pod = net.pod(0, 2)
    net.pod(1, 3)
    assert net.ping(pod, "192.168.0.67").ttl == 62
    assert net.ping(net.kernels[0].root, "192.168.0.67").ttl == 63


def test_the_outer_header_inherits_ttl_and_df_and_carries_the_node_addresses() -> None:
    net = CalicoSegment()
    pod = net.pod(0, 2)
    net.pod(1, 3)
    seen = frames_of(net, 0, "eth0")
    net.ping(pod, "192.168.0.67", ttl=40)
    outer = ipv4.Ipv4.parse(next(f[14:] for f in seen if f[14 + 9] == 4))
    assert (format_ip(outer.src), format_ip(outer.dst)) == ("172.17.4.201", "172.17.4.202")
    assert (outer.ttl, outer.frag, outer.tos) == (39, ipv4.DF, 0)
    inner = ipv4.Ipv4.parse(outer.payload)
    assert (format_ip(inner.src), format_ip(inner.dst), inner.ttl) == (
        "192.168.0.2", "192.168.0.67", 39
    )  # fmt: skip


def test_a_node_talks_to_a_remote_pod_with_its_tunnel_address() -> None:
    net = CalicoSegment()
    pod = net.pod(1, 3)
    assert format_ip(net.kernels[0].root.source_address(parse_ip("192.168.0.67"))) == "192.168.0.0"
    assert format_ip(net.kernels[1].root.source_address(parse_ip("192.168.0.67"))) == "172.17.4.202"
    assert pod.source_address(parse_ip("8.8.8.8")) == parse_ip("192.168.0.67")


def test_a_packet_too_big_for_the_tunnel_is_refused_with_the_tunnels_mtu() -> None:
    net = CalicoSegment()
    pod = net.pod(0, 2)
    net.pod(1, 3)
    pod.link_set("eth0", mtu=1500)
    net.kernels[0].root.link_set("tunl0", mtu=1440)
    answer = net.ping(pod, "192.168.0.67", size=1450)
    assert (answer.icmp_type, answer.code, answer.mtu) == (3, 4, 1440)
    assert net.ping(pod, "192.168.0.67", size=1450, df=False).icmp_type == 0


def test_congestion_marked_outside_is_marked_inside() -> None:
    net = CalicoSegment()
    pod = net.pod(1, 3)
    got: list[bytes] = []
    pod.sockets.deliver = lambda packet: got.append(packet.data)
    src, dst = parse_ip("192.168.0.2"), parse_ip("192.168.0.67")
    nic = net.kernels[1].root.device("eth0")
    body = udp.Udp(5000, 5001, b"mark").emit(src, dst)
    for inner_tos, outer_tos in ((2, 3), (0, 3), (2, 2)):
        inner = ipv4.build(src, dst, 17, body, tos=inner_tos)
        outer = ipv4.build(net.node_ip(0), net.node_ip(1), 4, inner, tos=outer_tos)
        nic.receive_carrier(outer, 0)
        net.settle()
    assert [data[1] for data in got] == [3, 2]
    assert net.kernels[1].root.drops[DropReason.BAD_HEADER].packets == 1


def test_a_tunnel_to_itself_is_a_loop_that_ends() -> None:
    net = CalicoSegment()
    root = net.kernels[0].root
    root.route_add(Route(Prefix.parse("10.9.0.0/16"), dev="tunl0"))
    sock = root.sockets.ping_open()
    sock.send(parse_ip("10.9.0.1"), 1, b"x", ttl=64, dont_fragment=True)
    assert root.drops[DropReason.LOOP].packets == 1


def test_without_a_tunnel_that_is_up_protocol_4_is_unreachable() -> None:
    net = CalicoSegment()
    pod = net.pod(0, 2)
    net.pod(1, 3)
    net.kernels[1].root.link_set("tunl0", up=False)
    assert net.ping(pod, "192.168.0.67") is None
    assert net.kernels[1].root.drops[DropReason.UNKNOWN_PROTOCOL].packets == 1


def test_the_blackhole_of_a_block_catches_what_no_pod_has() -> None:
    net = CalicoSegment()
    pod = net.pod(0, 2)
    assert net.ping(pod, "192.168.0.9") is None
    assert net.kernels[0].root.drops[DropReason.BLACKHOLE].packets == 1


class TestNextHops:
    def world(self):
        net = CalicoSegment(3, tunnel=False)
        root = net.kernels[0].root
        hops = tuple(NextHop(gateway=net.node_ip(n), dev="eth0") for n in (1, 2))
        root.route_add(Route(Prefix.parse("10.96.0.0/12"), nexthops=hops, protocol="bird"))
        return net, root

    def test_flows_are_spread_and_each_stays_on_its_way(self) -> None:
        net, root = self.world()
        net.ping(root, "172.17.4.202")
        net.ping(root, "172.17.4.203")
        ways: dict[int, set[int]] = {}
        for _ in range(3):
            for last in range(64):
                dst = parse_ip(f"10.96.0.{last}")
                body = udp.Udp(5000, 53, b"x").emit(net.node_ip(0), dst)
                root.output(ipv4.build(net.node_ip(0), dst, 17, body))
                for item in root.device("eth0").take_egress():
                    ways.setdefault(dst, set()).add(item.dst_ip)
        assert all(len(way) == 1 for way in ways.values())
        used = [next(iter(way)) for way in ways.values()]
        assert 16 < used.count(net.node_ip(1)) < 48

    def test_weights_share_out_the_flows(self) -> None:
        net, root = self.world()
        heavy = (NextHop(gateway=net.node_ip(1), weight=9), NextHop(gateway=net.node_ip(2)))
        root.route_replace(Route(Prefix.parse("10.96.0.0/12"), nexthops=heavy))
        ways = [
            root.route_output(dst, chosen=path_hash(0, dst)).gateway
            for dst in range(0x0A600000, 0x0A600400)
        ]
        assert 0.8 < ways.count(net.node_ip(1)) / len(ways) < 0.97

    def test_a_way_dies_with_its_device_and_comes_back(self) -> None:
        net, root = self.world()
        root.link_add("dummy0", "dummy")
        root.link_set("dummy0", up=True)
        prefix = Prefix.parse("10.5.0.0/16")
        ways = (
            NextHop(gateway=net.node_ip(1), dev="eth0"),
            NextHop(gateway=parse_ip("10.9.0.3"), dev="dummy0", weight=2, onlink=True),
        )
        root.route_add(Route(prefix, nexthops=ways))
        root.link_set("dummy0", up=False)
        assert "\tnexthop via 10.9.0.3 dev dummy0 weight 2 dead onlink linkdown \n" in (
            render_ip_route(root.routes())
        )
        assert root.route_output(prefix.host(1), chosen=0xFFFFFFFF).dev == "eth0"
        root.link_set("dummy0", up=True)
        assert root.route_output(prefix.host(1), chosen=0xFFFFFFFF).dev == "dummy0"
        root.route_add(Route(prefix, dev="eth0", metric=10))
        for up in (False, True):
            # It keeps its place before routes of a higher metric.
            root.link_set("dummy0", up=up)
            assert [r.metric for r in root.routes() if r.dst == prefix] == [0, 10]
        root.route_del(Route(prefix, dev="eth0", metric=10))
        root.link_del("dummy0")
        assert prefix not in [route.dst for route in root.routes()]

    def test_a_way_must_be_reachable(self) -> None:
        _, root = self.world()
        ways = (NextHop(gateway=parse_ip("172.17.4.9")), NextHop(gateway=parse_ip("1.1.1.1")))
        root.route_del(Route(Prefix(0, 0)))
        with pytest.raises(UsageError, match="Network is unreachable"):
            root.route_add(Route(Prefix.parse("10.4.0.0/16"), nexthops=ways))

    def test_both_styles_print_a_line_for_each_way(self) -> None:
        _, root = self.world()
        routes = [route for route in root.routes() if route.nexthops]
        assert render_ip_route(routes) == (
            "10.96.0.0/12 proto bird \n"
            "\tnexthop via 172.17.4.202 dev eth0 weight 1 \n"
            "\tnexthop via 172.17.4.203 dev eth0 weight 1 \n"
        )
        assert render_ip_route(routes, style="2017") == (
            "10.96.0.0/12  proto bird \n"
            "\tnexthop via 172.17.4.202  dev eth0 weight 1\n"
            "\tnexthop via 172.17.4.203  dev eth0 weight 1\n"
        )


def test_the_tutorials_rows_have_their_double_blanks() -> None:
    net = CalicoSegment()
    net.pod(0, 2)
    text = render_ip_route(net.kernels[0].root.routes(), style="2017")
    assert "192.168.0.64/26 via 172.17.4.202 dev tunl0  proto bird onlink \n" in text
    assert "blackhole 192.168.0.0/26  proto bird \n" in text
    assert "192.168.0.2 dev cali00000000002  scope link \n" in text


def test_a_stream_through_the_tunnel_takes_the_short_way() -> None:
    net = CalicoSegment()
    a, b = net.pod(0, 2), net.pod(1, 3)
    listener = b.sockets.tcp_listen(0, 5001)
    connection = a.sockets.tcp_connect(Endpoint(parse_ip("192.168.0.67"), 5001))
    net.settle()
    accepted = listener.accept()
    data = bytes(range(256)) * 1000
    connection.send(data)
    received = b""
    for _ in range(200):
        net.advance(0.05)
        received += accepted.read()
        if len(received) == len(data):
            break
    assert received == data
    for kernel in net.kernels:
        assert kernel.flows.hits > kernel.flows.misses
        assert all(counter.packets == 0 for counter in kernel.root.drops.values())
