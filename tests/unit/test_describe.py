"""One line a packet, as ``tcpdump -n`` words it."""

from __future__ import annotations

from emulator.addr import parse_ip
from emulator.wire import icmpv4, ipv4, tcp, udp
from emulator.wire.arp import Arp
from emulator.wire.describe import describe_frame, describe_packet
from emulator.wire.ethernet import Frame

A, B = parse_ip("10.2.1.2"), parse_ip("10.2.2.3")
MAC = bytes.fromhex("02000000aa01")


def test_syn_with_the_options_of_linux() -> None:
    options = tcp.Options(mss=1410, sack_ok=True, timestamps=tcp.Timestamps(5, 0), wscale=7)
    segment = tcp.Tcp(44000, 80, 1000, 0, tcp.SYN, 64240, b"", options)
    assert describe_packet(ipv4.build(A, B, 6, segment.emit(A, B))) == (
        "IP 10.2.1.2.44000 > 10.2.2.3.80: Flags [S], seq 1000, win 64240,"
        " options [mss 1410,sackOK,TS val 5 ecr 0,nop,wscale 7], length 0"
    )


def test_data_segment() -> None:
    segment = tcp.Tcp(80, 44000, 7, 9, tcp.PSH | tcp.ACK, 502, b"hello")
    assert describe_packet(ipv4.build(B, A, 6, segment.emit(B, A))) == (
        "IP 10.2.2.3.80 > 10.2.1.2.44000: Flags [P.], seq 7:12, ack 9, win 502, length 5"
    )


def test_echo_and_the_errors_about_a_packet() -> None:
    echo = icmpv4.echo_request(17, 2, bytes(56)).emit()
    packet = ipv4.build(A, B, 1, echo)
    assert describe_packet(packet) == (
        "IP 10.2.1.2 > 10.2.2.3: ICMP echo request, id 17, seq 2, length 64"
    )
    exceeded = icmpv4.error(icmpv4.TIME_EXCEEDED, 0, packet[:28]).emit()
    assert describe_packet(ipv4.build(B, A, 1, exceeded)) == (
        "IP 10.2.2.3 > 10.2.1.2: ICMP time exceeded in-transit, length 36"
    )
    too_big = icmpv4.error(icmpv4.UNREACHABLE, icmpv4.FRAG_NEEDED, packet[:28], mtu=1450).emit()
    assert describe_packet(ipv4.build(B, A, 1, too_big)) == (
        "IP 10.2.2.3 > 10.2.1.2: ICMP 10.2.2.3 unreachable - need to frag (mtu 1450), length 36"
    )
    datagram = ipv4.build(A, B, 17, udp.Udp(5, 33434, b"x").emit(A, B))
    port = icmpv4.error(icmpv4.UNREACHABLE, icmpv4.PORT, datagram).emit()
    assert describe_packet(ipv4.build(B, A, 1, port)) == (
        "IP 10.2.2.3 > 10.2.1.2: ICMP 10.2.2.3 udp port 33434 unreachable, length 37"
    )


def test_arp() -> None:
    ask = Frame(b"\xff" * 6, MAC, 0x0806, Arp(1, MAC, A, bytes(6), B).emit()).emit()
    assert describe_frame(ask) == "ARP, Request who-has 10.2.2.3 tell 10.2.1.2, length 28"
    answer = Frame(MAC, MAC, 0x0806, Arp(2, MAC, B, MAC, A).emit()).emit()
    assert describe_frame(answer) == "ARP, Reply 10.2.2.3 is-at 02:00:00:00:aa:01, length 28"
