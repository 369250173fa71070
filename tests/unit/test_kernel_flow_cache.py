"""When the cache may repeat a packet's way, and when it must not."""

from __future__ import annotations

from emulator.addr import format_ip, parse_ip
from emulator.netstack.netfilter.conntrack_command import run_conntrack
from emulator.netstack.packet import DropReason
from emulator.netstack.sock.tcp import Endpoint
from tests.joined_kernels import Segment


def connected(net: Segment, client, server, address: str):
    """A TCP connection between two namespaces, past its handshake."""
    listener = server.sockets.tcp_listen(0, 80)
    connection = client.sockets.tcp_connect(Endpoint(parse_ip(address), 80))
    net.settle()
    accepted = listener.accept()
    assert accepted is not None
    return connection, accepted


def transfer(net: Segment, sender, receiver, data: bytes) -> bytes:
    """Send and read until all of it has arrived."""
    sender.send(data)
    got = bytearray()
    for _ in range(1000):
        net.settle()
        got += receiver.read()
        if len(got) >= len(data):
            return bytes(got)
        net.advance(0.001)
    raise AssertionError(f"{len(got)} of {len(data)} bytes arrived")


def test_bulk_tcp_between_nodes_takes_the_short_way_whole() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(1, 2)
    sender, receiver = connected(net, a, b, "10.2.2.2")
    data = bytes(range(256)) * 4096
    transfer(net, sender, receiver, data[:20000])
    before = [kernel.flows.misses for kernel in net.kernels]
    packets = b.link("eth0").rx_packets
    assert transfer(net, sender, receiver, data) == data
    assert [kernel.flows.misses for kernel in net.kernels] == before
    # 750 segments crossed the wire; the pod saw them joined.
    assert b.link("eth0").rx_packets - packets < 120
    assert net.kernels[1].flows.hits > 700


def test_bulk_tcp_through_a_service_is_translated_on_the_short_way() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(1, 2)
    root = net.kernels[0].root
    root.netfilter.restore(
        "*nat\n-A PREROUTING -d 10.3.0.1/32 -p tcp --dport 80 -j DNAT"
        " --to-destination 10.2.2.2:80\nCOMMIT\n"
    )
    sender, receiver = connected(net, a, b, "10.3.0.1")
    assert format_ip(receiver.remote.ip) == "10.2.1.2"
    data = bytes(range(251)) * 2000
    transfer(net, sender, receiver, data)
    before = net.kernels[0].flows.misses
    assert transfer(net, sender, receiver, data) == data
    assert transfer(net, receiver, sender, data) == data
    assert net.kernels[0].flows.misses - before < 10


def test_a_service_on_the_same_bridge_answers_from_its_own_address() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(0, 3)
    root = net.kernels[0].root
    root.netfilter.restore(
        "*nat\n-A PREROUTING -d 10.3.0.1/32 -p tcp --dport 80 -j DNAT"
        " --to-destination 10.2.1.3:80\nCOMMIT\n"
    )
    sender, receiver = connected(net, a, b, "10.3.0.1")
    data = b"through the bridge" * 1000
    assert transfer(net, sender, receiver, data) == data
    assert transfer(net, receiver, sender, data) == data


def test_without_bridge_nf_the_same_service_does_not_work() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(0, 3)
    root = net.kernels[0].root
    root.sysctl["net.bridge.bridge-nf-call-iptables"] = 0
    root.netfilter.restore(
        "*nat\n-A PREROUTING -d 10.3.0.1/32 -p tcp --dport 80 -j DNAT"
        " --to-destination 10.2.1.3:80\nCOMMIT\n"
    )
    b.sockets.tcp_listen(0, 80)
    connection = a.sockets.tcp_connect(Endpoint(parse_ip("10.3.0.1"), 80))
    net.settle()
    assert not connection.connected


def test_a_pod_reaches_itself_through_its_service_only_with_hairpin() -> None:
    for hairpin in (False, True):
        net = Segment()
        a = net.pod(0, 2)
        root = net.kernels[0].root
        root.link_set("veth2", hairpin=hairpin)
        root.netfilter.restore(
            "*nat\n-A PREROUTING -d 10.3.0.1/32 -p tcp --dport 80 -j DNAT"
            " --to-destination 10.2.1.2:80\n"
            "-A POSTROUTING -s 10.2.1.2/32 -d 10.2.1.2/32 -j MASQUERADE\nCOMMIT\n"
        )
        a.sockets.tcp_listen(0, 80)
        net.ping(a, "10.2.1.1")
        net.ping(root, "10.2.1.2")
        connection = a.sockets.tcp_connect(Endpoint(parse_ip("10.3.0.1"), 80))
        net.settle()
        assert connection.connected is hairpin


def test_a_rule_stops_an_established_flow_at_once() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(1, 2)
    sender, receiver = connected(net, a, b, "10.2.2.2")
    transfer(net, sender, receiver, b"x" * 50000)
    root = net.kernels[1].root
    root.netfilter.restore("*filter\n-A FORWARD -d 10.2.2.2/32 -j DROP\nCOMMIT\n")
    sender.send(b"no more")
    net.advance(0.5)
    assert receiver.read() == b""
    assert root.drops[DropReason.NETFILTER_DROP].packets >= 1


def test_a_vanished_route_stops_an_established_flow_at_once() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(1, 2)
    sender, receiver = connected(net, a, b, "10.2.2.2")
    transfer(net, sender, receiver, b"x" * 50000)
    net.kernels[1].netns_del("pod-2")
    sender.send(b"no more")
    net.advance(0.5)
    assert len(net.kernels[1].flows) == 0


def test_a_capture_sees_every_frame_of_a_cached_flow() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(1, 2)
    sender, receiver = connected(net, a, b, "10.2.2.2")
    transfer(net, sender, receiver, b"x" * 50000)
    frames = []
    kernel = net.kernels[1]
    handle = kernel.capture(kernel.root, "eth0", lambda at, frame, out: frames.append((frame, out)))
    transfer(net, sender, receiver, b"y" * 14000)
    inbound = [frame for frame, out in frames if not out]
    assert b"".join(frame[14 + 28 + 8 + 14 + 40 :] for frame in inbound) == b"y" * 14000
    count = len(frames)
    handle.close()
    transfer(net, sender, receiver, b"z" * 14000)
    assert len(frames) == count


def test_conntrack_entries_of_cached_flows_do_not_expire() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(1, 2)
    root = net.kernels[1].root
    root.netfilter.restore("*nat\n-A POSTROUTING -s 10.9.9.9/32 -j MASQUERADE\nCOMMIT\n")
    there = b.sockets.udp_bind(0, 53)
    here = a.sockets.udp_bind(0, 0, Endpoint(parse_ip("10.2.2.2"), 53))
    for _ in range(100):
        here.send(b"still here")
        net.settle()
        assert there.receive() is not None
        net.advance(20)
    flows = [c for c in root.netfilter.conntrack if c.original.dport == 53]
    assert [c.packets[0] for c in flows] == [100]
    assert net.kernels[1].flows.hits > 0


def test_expired_connections_are_freed_without_traffic() -> None:
    net = Segment()
    a = net.pod(0, 2)
    root = net.kernels[0].root
    root.netfilter.restore("*nat\n-A POSTROUTING -s 10.9.9.9/32 -j MASQUERADE\nCOMMIT\n")
    net.ping(a, "10.2.1.1")
    assert len(root.netfilter.conntrack) == 1
    net.advance(40)
    assert len(root.netfilter.conntrack) == 0


def test_a_connection_that_ends_takes_the_long_way_so_that_conntrack_sees_it_end() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(1, 2)
    root = net.kernels[0].root
    root.netfilter.restore(
        "*nat\n-A PREROUTING -d 10.3.0.1/32 -p tcp --dport 80 -j DNAT"
        " --to-destination 10.2.2.2:80\nCOMMIT\n"
    )
    client, server = connected(net, a, b, "10.3.0.1")
    transfer(net, server, client, b"page" * 5000)
    # As a web server does: the server ends first, so the last segment is its bare ACK.
    server.close(now=net.now)
    net.settle()
    client.close(now=net.now)
    for _ in range(10):
        net.settle()
        net.advance(0.05)
    states = [
        line.split()[3]
        for line in run_conntrack(root.netfilter, ["-L"]).stdout.splitlines()
        if line.startswith("tcp")
    ]
    assert states == ["TIME_WAIT"]
