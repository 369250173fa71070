"""Packets no honest peer sends, and what is left of the node afterwards."""

from __future__ import annotations

import random

import pytest

from emulator.addr import Prefix, format_ip, parse_ip
from emulator.errors import UsageError
from emulator.netstack.fib import Route
from emulator.netstack.neigh import MAX_ENTRIES
from emulator.netstack.netfilter.conntrack import EARLY_DROP_RANGE
from emulator.netstack.packet import DropReason
from emulator.netstack.reassembly import HIGH_THRESHOLD, MAX_PIECES
from emulator.netstack.sock.tcp import Endpoint
from emulator.netstack.timers import MAX_CANCELLED, Timers
from emulator.wire import ethernet, ipv4, tcp, udp, vxlan
from emulator.wire.checksum import checksum, pseudo_header_sum
from tests.joined_kernels import Segment
from tests.unit.test_kernel_flow_cache import connected, transfer


def dropped(ns, reason: DropReason) -> int:
    return ns.drops[reason].packets


class TestTunnelsInTunnels:
    def test_a_packet_of_2000_ip_in_ip_headers_is_taken_apart(self) -> None:
        net = Segment()
        root = net.kernels[1].root
        root.link_add("tunl0", "ipip")
        root.link_set("tunl0", up=True)
        src, dst = net.node_ip(0), net.node_ip(1)
        data = ipv4.build(src, dst, 17, b"x" * 8)
        for _ in range(2000):
            data = ipv4.build(src, dst, 4, data)
        root.device("eth0").receive_carrier(data, 0)
        net.settle()
        assert root.link("tunl0").rx_packets == 2000

    def test_a_datagram_of_1000_vxlan_headers_is_taken_apart(self) -> None:
        net = Segment()
        root = net.kernels[1].root
        src, dst, mac = net.node_ip(0), net.node_ip(1), root.link("flannel.1").mac
        frame = b"end"
        for _ in range(1000):
            datagram = udp.Udp(1234, 8472, vxlan.Vxlan(1, frame).emit())
            packet = ipv4.build(src, dst, 17, datagram.emit(src, dst, with_checksum=False))
            frame = ethernet.Frame(mac, b"\x02\0\0\0\0\1", 0x800, packet).emit()
        nic = root.device("eth0")
        nic.receive_vxlan(net.node_ip(0), 1234, vxlan.Vxlan(1, frame).emit(), 0)
        net.settle()
        assert root.link("flannel.1").rx_packets == 1000

    def test_a_vtep_that_is_behind_its_own_device_is_a_dead_loop(self) -> None:
        net = Segment()
        root = net.kernels[0].root
        vtep = net.kernels[1].root.link("flannel.1").mac
        root.route_replace(Route(Prefix(net.node_ip(1), 32), dev="flannel.1"))
        root.neigh_replace("flannel.1", net.node_ip(1), vtep)
        root.sockets.ping_open().send(parse_ip("10.2.2.0"), 1, bytes(56))
        net.settle()
        assert dropped(root, DropReason.LOOP) == 1

    def test_two_tunnels_that_lead_into_each_other_are_a_dead_loop(self) -> None:
        net = Segment()
        root = net.kernels[0].root
        for name, other, far in (("t1", "t2", "192.0.2.1"), ("t2", "t1", "192.0.2.2")):
            root.link_add(name, "ipip", local=net.node_ip(0), remote=parse_ip(far))
            root.link_set(name, up=True)
            if other in root.devices:
                root.route_replace(Route(Prefix.parse("192.0.2.2/32"), dev="t1"))
                root.route_replace(Route(Prefix.parse("192.0.2.1/32"), dev="t2"))
        root.route_replace(Route(Prefix.parse("198.51.100.0/24"), dev="t1"))
        root.sockets.ping_open().send(parse_ip("198.51.100.1"), 1, b"", dont_fragment=False)
        net.settle()
        assert dropped(root, DropReason.LOOP) == 1


class TestFragments:
    def setup_method(self) -> None:
        self.net = Segment()
        self.root = self.net.kernels[1].root
        self.src, self.dst = self.net.node_ip(0), self.net.node_ip(1)
        self.sock = self.root.sockets.udp_bind(0, 5000)

    def receive(
        self, offset: int, body: bytes, *, more: bool, options: bytes = b"", ident: int = 7
    ) -> None:
        frag = (ipv4.MF if more else 0) | offset // 8
        packet = ipv4.build(self.src, self.dst, 17, body, ident=ident, frag=frag, options=options)
        self.root.device("eth0").receive_carrier(packet, 0)

    def test_two_last_fragments_do_not_make_a_packet_with_a_hole(self) -> None:
        data = udp.Udp(1, 5000, b"A" * 16).emit(self.src, self.dst, with_checksum=False)
        self.receive(0, data[:8], more=True)
        self.receive(24, data[16:], more=False)
        self.receive(16, data[8:16], more=False)
        assert self.sock.receive() is None
        assert dropped(self.root, DropReason.BAD_HEADER) == 1

    def test_nothing_follows_the_last_fragment(self) -> None:
        data = udp.Udp(1, 5000, b"A" * 24).emit(self.src, self.dst, with_checksum=False)
        self.receive(8, data[8:16], more=False)
        self.receive(16, data[16:24], more=True)
        assert dropped(self.root, DropReason.BAD_HEADER) == 1

    def test_fragments_of_more_than_an_ipv4_packet_holds_are_dropped(self) -> None:
        self.receive(0, bytes(32000), more=True, options=b"\x01" * 40)
        self.receive(32000, bytes(32000), more=True)
        self.receive(64000, bytes(1515), more=False)
        assert dropped(self.root, DropReason.BAD_HEADER) == 1

    def test_fragments_without_data_are_not_kept(self) -> None:
        for ident in range(100):
            self.receive(0, b"", more=True, ident=ident)
        assert dropped(self.root, DropReason.BAD_HEADER) == 100

    def test_a_packet_comes_in_no_more_than_so_many_pieces(self) -> None:
        data = udp.Udp(1, 5000, bytes(8 * MAX_PIECES)).emit(self.src, self.dst, with_checksum=False)
        for number in range(MAX_PIECES):
            self.receive(8 * number, data[8 * number :][:8], more=True)
        assert dropped(self.root, DropReason.BAD_HEADER) == 0
        self.receive(8 * MAX_PIECES, data[8 * MAX_PIECES :], more=True)
        assert dropped(self.root, DropReason.BAD_HEADER) == 1
        assert self.sock.receive() is None

    def test_tiny_fragments_count_with_what_they_cost(self) -> None:
        for ident in range(HIGH_THRESHOLD // 512):
            self.receive(0, bytes(8), more=True, ident=ident)
        assert dropped(self.root, DropReason.REASSEMBLY_FULL) > 0


class TestCachedFlows:
    def test_segments_with_a_short_data_offset_are_not_joined(self) -> None:
        net = Segment()
        root = net.kernels[1].root
        sender, receiver = connected(net, net.pod(0, 2), root, "172.17.4.202")
        transfer(net, sender, receiver, b"x" * 50000)
        src, dst = receiver.remote.ip, receiver.local.ip
        seq = sender.snd.nxt & 0xFFFFFFFF
        batch = b""
        for number in range(2):
            segment = tcp.Tcp(
                *(sender.local.port, 80, seq + 120 * number, sender.rcv.next & 0xFFFFFFFF, 16, 500),
                b"y" * 100,
            )
            data = bytearray(segment.emit(src, dst))
            data[12], data[16:18] = 0, b"\0\0"
            value = checksum(bytes(data), pseudo_header_sum(src, dst, 6, len(data)))
            data[16:18] = value.to_bytes(2, "big")
            batch += ipv4.build(src, dst, 6, bytes(data), ttl=63, frag=ipv4.DF)
        root.device("eth0").receive_carrier(batch, len(batch) // 2)
        net.settle()
        assert receiver.read() == b""
        assert transfer(net, sender, receiver, b"still here") == b"still here"

    @pytest.mark.parametrize("size", [1, 10, 30, 39])
    def test_datagrams_too_short_for_a_flow_are_not_taken_for_the_next_ones(self, size) -> None:
        net = Segment()
        root = net.kernels[1].root
        sender, receiver = connected(net, net.pod(0, 2), root, "172.17.4.202")
        arrived = []
        nic = root.device("eth0")
        receive = nic.receive_carrier
        nic.receive_carrier = lambda data, cut: (arrived.append(data), receive(data, cut))
        transfer(net, sender, receiver, b"x" * 3000)
        before = dropped(root, DropReason.BAD_HEADER)
        receive(arrived[-1][:60] * 2, size)
        assert dropped(root, DropReason.BAD_HEADER) > before

    def test_a_shorter_mtu_at_the_far_end_of_a_veth_holds(self) -> None:
        net = Segment()
        a, b = net.pod(0, 2), net.pod(1, 2)
        b.link_set("eth0", mtu=1000)
        there = b.sockets.udp_bind(0, 5000)
        here = a.sockets.udp_bind(0, 6000)
        for size in (100, 100, 1300):
            here.send(bytes(size), Endpoint(parse_ip("10.2.2.2"), 5000))
            net.settle()
        assert [len(there.receive().data) for _ in range(2)] == [100, 100]
        assert there.receive() is None
        assert dropped(net.kernels[1].root, DropReason.TOO_BIG) == 1

    def test_a_rule_about_the_push_flag_sees_every_segment(self) -> None:
        net = Segment()
        a, b = net.pod(0, 2), net.pod(1, 2)
        root = net.kernels[1].root
        root.netfilter.restore(
            "*filter\n-A FORWARD -d 10.2.2.2/32 -p tcp -m tcp --tcp-flags PSH PSH -j DROP\nCOMMIT\n"
        )
        client, server = connected(net, a, b, "10.2.2.2")
        server.send(bytes(30000))
        for _ in range(20):
            client.read()
            net.advance(0.05)
        client.send(b"pushed")
        net.advance(0.1)
        assert server.read() == b""
        assert dropped(root, DropReason.NETFILTER_DROP) >= 1


def test_long_lived_connections_do_not_shield_the_others_of_a_full_table() -> None:
    net = Segment()
    root = net.kernels[0].root
    root.netfilter.restore("*nat\n-A POSTROUTING -d 192.0.2.1/32 -j ACCEPT\nCOMMIT\n")
    table = root.netfilter.conntrack
    server = root.sockets.tcp_listen(0, 80)
    address = Endpoint(parse_ip("127.0.0.1"), 80)
    for _ in range(EARLY_DROP_RANGE + 1):
        root.sockets.tcp_connect(address)
        net.settle()
    assert len(table) == EARLY_DROP_RANGE + 1
    sock = root.sockets.udp_bind(0, 5000)
    table.limit = len(table) + 8
    for number in range(20):
        sock.send(b"?", Endpoint(parse_ip("172.17.4.202"), 9000 + number))
    assert len(table) == table.limit
    assert table.statistics.early_drop >= 10
    assert server.accept() is not None


def test_a_full_neighbour_table_says_so() -> None:
    net = Segment()
    root = net.kernels[0].root
    root.addr_add("cni0", parse_ip("10.99.0.1"), 16)
    ping = root.sockets.ping_open()
    for number in range(MAX_ENTRIES + 10):
        ping.send(parse_ip("10.99.1.0") + number, 1, b"")
    assert dropped(root, DropReason.NEIGH_QUEUE_FULL) >= 10


def test_a_tunnel_that_was_refused_leaves_nothing_behind() -> None:
    net = Segment()
    root = net.kernels[0].root
    for kind, attrs in (("vxlan", {"vni": 9}), ("ipip", {"remote": 5})):
        for mtu in (10, None):
            if mtu is not None:
                with pytest.raises(UsageError, match="mtu less than device minimum"):
                    root.link_add("t", kind, mtu=mtu, **attrs)
            else:
                root.link_add("t", kind, **attrs)
        root.link_del("t")


def test_a_set_takes_no_text_that_stands_for_billions_of_members() -> None:
    sets = Segment().kernels[0].root.netfilter.sets
    sets.create("pairs", "hash:ip,port")
    with pytest.raises(UsageError, match="4294901760 elements"):
        sets.add("pairs", "10.0.0.0/16,1-65535")
    with pytest.raises(UsageError, match="invalid as number"):
        sets.add("pairs", "10.0.0.1,²")
    assert format_ip(sets.get("pairs").parse("10.0.0.1,80")[0][0]) == "10.0.0.1"


def test_cancelled_timers_do_not_pile_up() -> None:
    timers = Timers(lambda: None)
    called: list[float] = []
    rng = random.Random(1)
    kept = []
    for _ in range(20 * MAX_CANCELLED):
        when = rng.random()
        timer = timers.at(when, lambda when=when: called.append(when))
        if rng.random() < 0.02:
            kept.append(when)
        else:
            timer.cancel()
            timer.cancel()
    assert len(timers._heap) <= 2 * MAX_CANCELLED + len(kept)
    timers.run(0.5)
    timers.run(2.0)
    assert called == sorted(kept)
    assert timers.next_at() is None
