"""Whatever arrives, the kernel answers, drops and counts; it never raises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.addr import parse_ip
from emulator.netstack.skb import Skb
from emulator.wire import icmpv4, ipv4, tcp, udp, vxlan
from emulator.wire.arp import Arp
from emulator.wire.ethernet import Frame
from tests.joined_kernels import Segment

ADDRESSES = [
    *("10.2.1.2", "10.2.2.2", "172.17.4.201", "172.17.4.202", "10.2.1.1", "10.2.1.0"),
    *("127.0.0.1", "255.255.255.255", "0.0.0.0", "224.0.0.1", "8.8.8.8", "10.2.1.255"),
]
addresses = st.sampled_from(ADDRESSES).map(parse_ip)
u8, u16 = st.integers(0, 255), st.integers(0, 0xFFFF)


@st.composite
def packets(draw, depth: int = 0) -> bytes:
    """IPv4 packets from sound to absurd."""
    src, dst = draw(addresses), draw(addresses)
    kind = draw(st.sampled_from(["udp", "tcp", "icmp", "error", "vxlan", "ipip", "raw"]))
    proto, body = draw(u8), draw(st.binary(max_size=60))
    if kind == "udp":
        proto, body = 17, udp.Udp(draw(u16), draw(u16), body).emit(src, dst)
    elif kind == "tcp":
        proto, body = 6, tcp.Tcp(draw(u16), 80, 1, 2, draw(u8), 3, body).emit(src, dst)
    elif kind == "icmp":
        proto, body = 1, icmpv4.Icmp(draw(st.sampled_from([0, 8, 13])), 0, 5, body).emit()
    elif depth < 3 and kind != "raw":
        inner = draw(packets(depth + 1))
        if kind == "error":
            code = draw(st.sampled_from([0, 1, 3, 4]))
            proto, body = 1, icmpv4.error(draw(st.sampled_from([3, 11])), code, inner).emit()
        elif kind == "ipip":
            proto, body = 4, inner
        else:
            frame = Frame(draw(st.binary(min_size=6, max_size=6)), b"\x02" * 6, 0x800, inner)
            body = vxlan.Vxlan(draw(st.sampled_from([1, 2])), frame.emit()).emit()
            proto, body = 17, udp.Udp(40000, 8472, body).emit(src, dst)
    frag = draw(st.sampled_from([0, 0, ipv4.DF, ipv4.MF, 1, ipv4.MF | 185, 0x1FFF]))
    options = draw(st.sampled_from([b"", b"", b"\x01\x01\x01\x00", b"\x94\x04\x00\x00"]))
    return ipv4.build(src, dst, proto, body, ttl=draw(u8), frag=frag, options=options, ident=1)


@st.composite
def damaged(draw) -> bytes:
    """A packet with one byte changed, or cut short."""
    data = draw(packets())
    at = draw(st.integers(0, len(data) - 1))
    how = draw(st.sampled_from(["sound", "flip", "cut", "noise"]))
    if how == "flip":
        return data[:at] + bytes((data[at] ^ draw(st.integers(1, 255)),)) + data[at + 1 :]
    if how == "cut":
        return data[:at]
    if how == "noise":
        return draw(st.binary(max_size=100))
    return data


steps = st.lists(
    st.tuples(
        st.sampled_from(["vxlan", "carrier", "veth", "arp", "output"]),
        damaged(),
        st.sampled_from([0, 1, 7, 28, 60]),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_garbage_never_raises(story) -> None:
    net = Segment()
    pod = net.pod(0, 2)
    net.pod(1, 2)
    net.kernels[0].root.netfilter.restore(
        "*nat\n-A PREROUTING -d 8.8.8.8/32 -j DNAT --to-destination 10.2.1.2\n"
        "-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n"
    )
    net.kernels[0].root.link_add("tunl0", "ipip")
    net.kernels[0].root.link_set("tunl0", up=True)
    nic = net.kernels[0].root.device("eth0")
    cni0, vtep = (net.kernels[0].root.link(name).mac for name in ("cni0", "flannel.1"))
    for way, data, size, later in story:
        if way == "vxlan":
            frame = Frame(vtep, b"\x02" * 6, 0x800, data).emit()
            nic.receive_vxlan(net.node_ip(1), 40000, vxlan.Vxlan(1, frame).emit() * 2, size)
        elif way == "carrier":
            nic.receive_carrier(data * 2, size)
        elif way == "veth":
            pod.device("eth0").transmit(Skb(cni0, pod.link("eth0").mac, 0x800, data))
        elif way == "arp":
            message = Arp(1, b"\x02" * 6, 0x0A020102, bytes(6), 0x0A020101).emit()
            pod.device("eth0").transmit(Skb(b"\xff" * 6, b"\x02" * 6, 0x806, data or message))
        elif len(data) >= 20 and data[0] == 0x45:
            pod.output(data)
        if later:
            net.advance(5)
        net.settle()
    net.advance(60)
