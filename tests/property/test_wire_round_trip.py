"""Every codec reads back what it wrote, and garbage raises WireError and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.errors import WireError
from emulator.wire import icmpv4, ipip, ipv4, pcapng, tcp, udp, vxlan
from emulator.wire.arp import Arp
from emulator.wire.describe import describe_frame, describe_packet
from emulator.wire.ethernet import Frame

u8, u16, u32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
macs = st.binary(min_size=6, max_size=6)
small = st.binary(max_size=64)

frames = st.builds(Frame, macs, macs, u16, small)
arps = st.builds(Arp, u16, macs, u32, macs, u32)
packets = st.builds(
    ipv4.Ipv4,
    *(u32, u32, u8, small, u8, u16, u16, u8),
    options=st.integers(0, 10).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n)),
)
icmps = st.builds(icmpv4.Icmp, u8, u8, u32, small)
udps = st.builds(udp.Udp, u16, u16, small)
options = st.builds(
    tcp.Options,
    mss=st.none() | u16,
    wscale=st.none() | u8,
    sack_ok=st.booleans(),
    sack=st.lists(st.tuples(u32, u32), max_size=2).map(tuple),
    timestamps=st.none() | st.builds(tcp.Timestamps, u32, u32),
).filter(lambda o: len(o.emit()) <= 40)
segments = st.builds(tcp.Tcp, u16, u16, u32, u32, u8, u16, small, options, u16)
vxlans = st.builds(vxlan.Vxlan, st.integers(0, 0xFFFFFF), small)


@given(frames)
def test_ethernet(frame: Frame) -> None:
    assert Frame.parse(frame.emit()) == frame


@given(arps)
def test_arp(message: Arp) -> None:
    assert Arp.parse(message.emit()) == message


@given(packets, small)
def test_ipv4_with_padding_behind(packet: ipv4.Ipv4, padding: bytes) -> None:
    assert ipv4.Ipv4.parse(packet.emit() + padding) == packet


@given(icmps)
def test_icmp(message: icmpv4.Icmp) -> None:
    assert icmpv4.Icmp.parse(message.emit()) == message


@given(udps, u32, u32, st.booleans())
def test_udp(datagram: udp.Udp, src: int, dst: int, with_checksum: bool) -> None:
    data = datagram.emit(src, dst, with_checksum=with_checksum)
    assert udp.Udp.parse(data, src, dst) == datagram


@given(segments, u32, u32)
def test_tcp(segment: tcp.Tcp, src: int, dst: int) -> None:
    assert tcp.Tcp.parse(segment.emit(src, dst), src, dst) == segment


@given(vxlans)
def test_vxlan(message: vxlan.Vxlan) -> None:
    assert vxlan.Vxlan.parse(message.emit()) == message


@given(packets, u32, u32, st.integers(1, 255))
def test_ipip(inner: ipv4.Ipv4, src: int, dst: int, ttl: int) -> None:
    outer = ipip.encapsulate(inner.emit(), src, dst, ttl=ttl)
    assert ipip.decapsulate(ipv4.validate(outer)) == inner.emit()


@given(packets.filter(lambda p: p.ttl > 0))
def test_ttl_decrement_keeps_the_checksum_valid(packet: ipv4.Ipv4) -> None:
    assert ipv4.Ipv4.parse(ipv4.decrement_ttl(packet.emit())) == packet._replace(ttl=packet.ttl - 1)


@given(st.binary(max_size=3000), st.integers(68, 1500))
def test_fragments_fit_and_add_up(payload: bytes, mtu: int) -> None:
    whole = ipv4.build(1, 2, 17, payload, ident=7)
    pieces = [ipv4.Ipv4.parse(piece) for piece in ipv4.fragment(whole, mtu)]
    body = bytearray(len(payload))
    for number, piece in enumerate(pieces):
        assert 20 + len(piece.payload) <= mtu
        assert bool(piece.frag & ipv4.MF) == (number + 1 < len(pieces))
        start = (piece.frag & ipv4.OFFSET_MASK) * 8
        body[start : start + len(piece.payload)] = piece.payload
    assert bytes(body) == payload


@given(st.lists(st.tuples(st.floats(0, 4e9), small, st.booleans()), max_size=5))
def test_pcapng(captured: list[tuple[float, bytes, bool]]) -> None:
    data = pcapng.section_header() + pcapng.interface("eth0", description="node-0")
    for at, frame, outbound in captured:
        data += pcapng.packet(0, at, frame, outbound=outbound)
    blocks = pcapng.parse_blocks(data)
    assert [block.type for block in blocks[:2]] == [
        pcapng.SECTION_HEADER,
        pcapng.INTERFACE_DESCRIPTION,
    ]
    read = [pcapng.parse_packet(block.body) for block in blocks[2:]]
    assert [(p.timestamp_ns, p.data, p.outbound) for p in read] == [
        (round(at * 1_000_000_000), frame, outbound) for at, frame, outbound in captured
    ]


PARSERS = {
    "ethernet": Frame.parse,
    "arp": Arp.parse,
    "ipv4": ipv4.Ipv4.parse,
    "icmp": icmpv4.Icmp.parse,
    "udp": lambda data: udp.Udp.parse(data, 1, 2),
    "tcp": lambda data: tcp.Tcp.parse(data, 1, 2, verify=False),
    "vxlan": vxlan.Vxlan.parse,
    "pcapng": pcapng.parse_blocks,
    "pcapng packet": pcapng.parse_packet,
}


@pytest.mark.parametrize("what", PARSERS)
@given(data=st.binary(max_size=120))
def test_garbage_raises_only_wire_error(what: str, data: bytes) -> None:
    with contextlib.suppress(WireError):
        PARSERS[what](data)


def _mangled(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(whole, st.integers(0, 100), u8).map(
        lambda t: t[0][: t[1]] + bytes((t[2],)) + t[0][t[1] + 1 :]
    )


inner_frames = st.builds(
    lambda mac, segment, packet: Frame(
        mac, mac, 0x0800, packet._replace(proto=6, payload=segment.emit(1, 2), frag=0).emit()
    ).emit(),
    *(macs, segments, packets),
)


@given(_mangled(inner_frames) | st.binary(max_size=80))
def test_any_frame_can_be_described(data: bytes) -> None:
    assert "\n" not in describe_frame(data)
    assert "\n" not in describe_packet(data[14:])


@given(inner_frames)
def test_vxlan_is_described_with_its_inner_packet(frame: bytes) -> None:
    datagram = udp.Udp(40000, 8472, vxlan.Vxlan(1, frame).emit()).emit(1, 2, with_checksum=False)
    text = describe_packet(ipv4.build(1, 2, 17, datagram))
    assert text.startswith("IP 0.0.0.1.40000 > 0.0.0.2.8472: VXLAN, flags [I] (0x08), vni 1: IP ")
