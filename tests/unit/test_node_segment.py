"""The emulated switch and router at a node's NIC."""

from __future__ import annotations

import random

import pytest

from agents.node.segment import Segment
from emulator.addr import Prefix, parse_ip
from emulator.netstack.devices.underlay import Egress, Underlay
from emulator.netstack.fib import Route
from emulator.netstack.kernel import Kernel
from emulator.netstack.packet import UDP
from emulator.wire import ipv4, udp

NODE, NEIGHBOUR, FAR, GATEWAY, API_SERVER = (
    parse_ip(ip)
    for ip in ("10.10.68.222", "10.10.64.7", "10.10.95.205", "10.10.64.1", "10.10.64.101")
)
GATEWAY_MAC, PEER_MAC = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"


class World:
    """One node, its gateway, a neighbour and a node of another subnet."""

    def __init__(self) -> None:
        self.kernel = Kernel("kube-0", clock=lambda: 0.0, rng=random.Random(1))
        self.gateway = Kernel("outside", clock=lambda: 0.0, rng=random.Random(2))
        self.eth0 = self._nic(self.kernel, NODE, None)
        beyond = self._nic(self.gateway, GATEWAY, GATEWAY_MAC)
        beyond.peer_set(NODE, self.eth0.mac)
        self.kernel.root.route_replace(Route(Prefix(0, 0), dev="eth0", gateway=GATEWAY))
        self.segment = Segment(self.eth0, beyond)
        for ip in (GATEWAY, API_SERVER):
            self.segment.join(ip, GATEWAY_MAC)
        self.segment.peer_set(NEIGHBOUR, PEER_MAC)
        self.segment.peer_set(FAR, b"\x02\0\0\0\0\3")

    def _nic(self, kernel: Kernel, ip: int, mac: bytes | None) -> Underlay:
        kernel.root.link_add("eth0", "underlay", **({} if mac is None else {"mac": mac}))
        kernel.root.addr_add("eth0", ip, 20)
        kernel.root.link_set("eth0", up=True)
        device = kernel.root.device("eth0")
        assert isinstance(device, Underlay)
        return device

    def send(self, dst: int, *, port: int = 9, ttl: int = 64, payload: bytes = b"hello") -> None:
        segment = udp.Udp(5353, port, payload).emit(NODE, dst)
        self.kernel.root.output(ipv4.build(NODE, dst, UDP, segment, ttl=ttl))

    def leaves(self) -> list[Egress]:
        """What the sockets get, taken as the driver takes it."""
        pending = self.segment.egress
        taken = list(pending)
        pending.clear()
        return taken


def test_a_neighbour_of_the_same_subnet_gets_packets_as_they_are() -> None:
    world = World()
    world.send(NEIGHBOUR)
    (item,) = world.leaves()
    assert (item.dst_ip, item.kind, item.payload[8]) == (NEIGHBOUR, "carrier", 64)


def test_a_node_of_another_subnet_is_one_hop_behind_the_gateway() -> None:
    world = World()
    world.send(FAR)
    (item,) = world.leaves()
    assert (item.dst_ip, item.kind, item.payload[8]) == (FAR, "carrier", 63)
    assert ipv4.validate(item.payload) == item.payload


def test_vxlan_behind_the_gateway_stays_vxlan() -> None:
    world = World()
    world.send(FAR, port=8472, payload=b"v" * 60)
    (item,) = world.leaves()
    assert item == Egress(FAR, "vxlan", b"v" * 60, 0, 5353)


@pytest.mark.parametrize("fragment", [ipv4.MF, 3])
def test_a_fragment_behind_the_gateway_is_a_packet_whatever_its_first_bytes(fragment: int) -> None:
    world = World()
    datagram = udp.Udp(5353, 8472, b"v" * 56).emit(NODE, FAR)
    whole = ipv4.build(NODE, FAR, UDP, datagram, frag=fragment)
    world.eth0.egress.append(Egress(GATEWAY, "carrier", whole, 0))
    (item,) = world.leaves()
    assert (item.dst_ip, item.kind) == (FAR, "carrier")
    assert item.payload[ipv4.HEADER_LEN :] == datagram


def test_every_packet_of_a_batch_is_forwarded() -> None:
    world = World()
    world.send(FAR)
    (one,) = world.segment.egress
    whole = ipv4.build(NODE, FAR, UDP, udp.Udp(1, 2, b"x").emit(NODE, FAR))
    world.eth0.egress[:] = [Egress(GATEWAY, "carrier", whole * 3, len(whole))]
    (item,) = world.leaves()
    assert item.segment_size == len(whole)
    pieces = [item.payload[at : at + len(whole)] for at in range(0, len(item.payload), len(whole))]
    assert [ipv4.validate(piece)[8] for piece in pieces] == [63, 63, 63]
    assert one.dst_ip == FAR


@pytest.mark.parametrize("dst", ["10.10.95.1", "8.8.8.8"])
def test_what_is_for_no_node_stays_at_the_gateway(dst: str) -> None:
    world = World()
    world.send(parse_ip(dst))
    assert world.leaves() == []


def test_a_packet_whose_time_is_up_is_the_gateways_to_answer() -> None:
    world = World()
    world.gateway.root.sysctl["net.ipv4.ip_forward"] = 1
    world.gateway.root.link_add("wan", "dummy")
    world.gateway.root.link_set("wan", up=True)
    world.gateway.root.route_replace(Route(Prefix.parse("10.10.64.0/19"), dev="wan"))
    world.send(FAR, ttl=1)
    assert world.leaves() == []
    device = world.gateway.root.device("eth0")
    assert isinstance(device, Underlay)
    (answer,) = device.egress
    time_exceeded = 11
    assert answer.payload[20] == time_exceeded
    assert answer.payload[12:16] == GATEWAY.to_bytes(4, "big")


def test_a_node_that_is_gone_is_no_longer_reached() -> None:
    world = World()
    world.segment.peer_del(FAR)
    world.send(FAR)
    assert world.leaves() == []
