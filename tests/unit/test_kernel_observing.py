"""Captures and traces: nothing a person looks for is left out."""

from __future__ import annotations

from emulator.addr import parse_ip
from emulator.netstack.sock.tcp import Endpoint
from emulator.netstack.trace import TraceFilter
from emulator.wire import pcapng
from emulator.wire.describe import describe_frame
from tests.joined_kernels import Segment


def traced(net: Segment, wanted: TraceFilter, send) -> list[tuple[str, str, str, str]]:
    """Arm every node, send, and return the steps in order of time and node."""
    buffers = [kernel.trace_arm(wanted) for kernel in net.kernels]
    send()
    net.settle()
    steps = [
        (step.node, step.netns, step.stage, step.detail)
        for buffer in buffers
        for step in buffer.take()
    ]
    for buffer in buffers:
        buffer.disarm()
    return steps


def test_a_traced_ping_names_every_hop() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(1, 2)
    net.ping(a, "10.2.2.2")
    sock = a.sockets.ping_open()
    steps = traced(
        net, TraceFilter.icmp(sock.ident, 7), lambda: sock.send(parse_ip("10.2.2.2"), 7, b"")
    )
    vtep = net.kernels[1].root.link("flannel.1").mac.hex(":")
    mac = net.kernels[0].root.link("cni0").mac.hex(":")
    there = [step[1:] for step in steps if step[0] == "node-0"]
    assert there[:6] == [
        ("pod-2", "device", "made here"),
        ("pod-2", "route", "10.2.2.2: default via 10.2.1.1 dev eth0"),
        ("pod-2", "neigh", f"10.2.1.1 dev eth0 lladdr {mac} REACHABLE"),
        ("pod-2", "device", "eth0 transmits"),
        ("root", "device", "veth2 receives"),
        ("root", "device", "cni0 receives"),
    ]
    assert ("root", "fdb", f"flannel.1: {vtep} is at 172.17.4.202") in there
    assert ("root", "encap", "flannel.1: vni 1 to 172.17.4.202 port 8472") in there
    arrived = [step[1:] for step in steps if step[0] == "node-1"]
    assert ("root", "decap", "flannel.1: vni 1 from 172.17.4.201") in arrived
    assert ("pod-2", "deliver", "ICMP echo request, answered") in arrived
    assert there[-1] == ("pod-2", "deliver", "ICMP echo reply")
    assert b.name == "pod-2"


def test_a_traced_syn_shows_the_rule_that_drops_it_and_nothing_of_other_connections() -> None:
    net = Segment()
    a = net.pod(0, 2)
    net.pod(1, 2)
    net.ping(a, "10.2.2.2")
    net.kernels[1].root.netfilter.restore("*filter\n-A FORWARD -p tcp --dport 80 -j DROP\nCOMMIT\n")
    connection = a.sockets.tcp_connect(Endpoint(parse_ip("10.2.2.2"), 80))
    a.sockets.tcp_connect(Endpoint(parse_ip("10.2.2.2"), 81))
    steps = traced(net, TraceFilter.tcp(connection.snd.una), lambda: None)
    last = steps[-1]
    assert last[:3] == ("node-1", "root", "drop")
    assert "netfilter_drop: filter FORWARD rule 1: -A FORWARD -p tcp" in last[3]
    assert sum(step[3] == "made here" for step in steps) == 1


def test_an_icmp_error_about_a_traced_packet_is_traced_too() -> None:
    net = Segment()
    a = net.pod(0, 2)
    token = b"podwire-probe-1"
    sock = a.sockets.udp_bind(0, 0, Endpoint(parse_ip("8.8.8.8"), 9))
    steps = traced(net, TraceFilter.udp(token), lambda: sock.send(token))
    assert ("node-0", "root", "drop", "no_route: no route to 8.8.8.8") in steps
    assert steps[-1] == ("node-0", "pod-2", "deliver", "ICMP error")


def test_captures_are_byte_true_at_every_interface() -> None:
    net = Segment()
    a = net.pod(0, 2)
    net.pod(1, 2)
    net.ping(a, "10.2.2.2")
    kernel = net.kernels[0]
    seen: dict[str, list[str]] = {}
    for dev in ("veth2", "cni0", "flannel.1", "eth0"):
        lines = seen[dev] = []
        kernel.capture(
            "root",
            dev,
            lambda at, frame, out, lines=lines: lines.append(
                f"{'Out' if out else 'In '} {describe_frame(frame)}"
            ),
        )
    sock = a.sockets.ping_open()
    sock.send(parse_ip("10.2.2.2"), 1, bytes(56))
    net.settle()
    ask = f"IP 10.2.1.2 > 10.2.2.2: ICMP echo request, id {sock.ident}, seq 1, length 64"
    reply = f"IP 10.2.2.2 > 10.2.1.2: ICMP echo reply, id {sock.ident}, seq 1, length 64"
    assert seen["veth2"] == [f"In  {ask}", f"Out {reply}"]
    assert seen["cni0"] == [f"In  {ask}", f"Out {reply}"]
    assert seen["flannel.1"] == [f"Out {ask}", f"In  {reply}"]
    outer = [line.split(": VXLAN, ")[1] for line in seen["eth0"]]
    assert outer == [f"flags [I] (0x08), vni 1: {ask}", f"flags [I] (0x08), vni 1: {reply}"]


def test_a_capture_file_has_a_block_for_each_frame() -> None:
    net = Segment()
    a = net.pod(0, 2)
    data = bytearray(pcapng.section_header() + pcapng.interface("eth0"))
    net.kernels[0].capture(
        a, "eth0", lambda at, frame, out: data.extend(pcapng.packet(0, at, frame, outbound=out))
    )
    net.ping(a, "10.2.1.1")
    blocks = pcapng.parse_blocks(bytes(data))
    # ARP request and reply, echo request and reply.
    assert [block.type for block in blocks[2:]] == [pcapng.ENHANCED_PACKET] * 4


def test_a_capture_is_told_when_its_device_goes() -> None:
    net = Segment()
    kernel = net.kernels[0]
    net.pod(0, 2)
    told: list[str] = []
    handle = kernel.capture("root", "veth2", lambda *_: None, lambda: told.append("gone"))
    closed = kernel.capture("root", "veth2", lambda *_: None, lambda: told.append("closed"))
    closed.close()
    kernel.netns_del("pod-2")
    assert told == ["gone"]
    handle.close()
    assert not kernel.observed
