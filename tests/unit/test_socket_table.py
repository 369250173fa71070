"""Ports, listeners, pings and reports of one namespace's socket table, and how ss shows them."""

from __future__ import annotations

import errno
import random

import pytest

from emulator.addr import parse_ip
from emulator.netstack.packet import Drop, DropReason, Packet
from emulator.netstack.sock import ports, table, udp
from emulator.netstack.sock.render import render_ss
from emulator.netstack.sock.segment import Segment, emit_packet, parse_segment
from emulator.netstack.sock.table import SocketTable
from emulator.netstack.sock.tcp import Endpoint
from emulator.netstack.sock.tcp_state import State
from emulator.wire.checksum import checksum
from emulator.wire.tcp import ACK, RST, SYN

US, THEM = parse_ip("10.2.1.5"), parse_ip("10.2.2.7")


class Namespace:
    """Keeps what the sockets send."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[tuple[bytes, int]] = []
        self.pokes = 0
        self.drop: Drop | None = None
        self.mtu = 1450
        self.table = SocketTable(self, clock=lambda: self.now, rng=random.Random(1))

    def output(self, data, *, oif="", mark=0, gso_size=0):
        self.sent.append((data, gso_size))
        return self.drop

    def source_address(self, dst: int) -> int | None:
        return US if dst >> 24 == 10 else None

    def route_refusal(self, dst: int) -> DropReason | None:
        return None if self.source_address(dst) else DropReason.NO_ROUTE

    def route_mtu(self, dst: int) -> int:
        return self.mtu

    def is_local(self, ip: int) -> bool:
        return ip == US

    def poke(self) -> None:
        self.pokes += 1

    def segments(self) -> list[Segment]:
        """Run, then return the TCP segments that went out."""
        self.table.handle_timer()
        sent, self.sent = self.sent, []
        return [
            segment
            for data, gso in sent
            if (segment := parse_segment(data, 20, US, THEM, gso)) is not None
        ]

    def tcp(self, sport: int, dport: int, segment: Segment) -> Drop | None:
        return self.table.deliver(Packet(emit_packet(THEM, US, sport, dport, 1, segment)))


@pytest.fixture
def ns() -> Namespace:
    return Namespace()


def accept_one(ns: Namespace, sport: int = 5000) -> None:
    ns.tcp(sport, 80, Segment(0, 0, SYN, 1000))
    (answer,) = ns.segments()
    ns.tcp(sport, 80, Segment(1, answer.seq + 1, ACK, 1000))


def test_a_segment_for_no_socket_is_answered_by_reset(ns: Namespace) -> None:
    drop = ns.tcp(5000, 80, Segment(7, 0, SYN, 1000))
    assert drop is not None
    assert drop.reason is DropReason.NO_SOCKET
    assert ns.pokes == 1
    (answer,) = ns.segments()
    assert (answer.flags, answer.seq, answer.ack) == (RST | ACK, 0, 8)
    ns.tcp(5000, 80, Segment(7, 99, ACK, 1000))
    (answer,) = ns.segments()
    assert (answer.flags, answer.seq) == (RST, 99)
    ns.tcp(5000, 80, Segment(7, 0, RST, 1000))
    assert ns.segments() == []


def test_corrupt_and_short_packets_are_named_drops(ns: Namespace) -> None:
    good = emit_packet(THEM, US, 1, 2, 3, Segment(0, 0, SYN, 1, b"data"))
    assert ns.table.deliver(Packet(good[:-1] + b"\0")).reason is DropReason.BAD_CHECKSUM
    for size in range(20, 40):
        cut = good[:2] + size.to_bytes(2, "big") + good[4:size]
        assert ns.table.deliver(Packet(cut)) is not None
    udp_packet = bytes((0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0)) + good[12:20]
    for body in (b"\0\1\0\2\0\7\0\0", b"\0\1\0\2\0\x09\0\0"):
        assert ns.table.deliver(Packet(udp_packet + body)).reason is DropReason.BAD_HEADER
    for size in range(60):
        ns.table.icmp_error(Packet((udp_packet + bytes(60))[: 20 + size]))


def test_an_established_child_is_accepted_with_its_addresses(ns: Namespace) -> None:
    listener = ns.table.tcp_listen(0, 80)
    accept_one(ns)
    child = listener.accept()
    assert child is not None
    assert (child.local, child.remote) == (Endpoint(US, 80), Endpoint(THEM, 5000))
    assert child.state is State.ESTABLISHED
    assert listener.accept() is None
    assert listener.half_open == 0


def test_a_specific_listener_beats_the_wildcard(ns: Namespace) -> None:
    with pytest.raises(OSError, match="already in use"):
        [ns.table.tcp_listen(0, 80), ns.table.tcp_listen(US, 80)]
    ns = Namespace()
    specific = ns.table.tcp_listen(US, 80)
    accept_one(ns)
    assert specific.accept() is not None


def test_closing_a_listener_resets_whom_nobody_accepted(ns: Namespace) -> None:
    listener = ns.table.tcp_listen(0, 80)
    accept_one(ns, 5000)
    ns.tcp(5001, 80, Segment(0, 0, SYN, 1000))
    ns.segments()
    listener.close()
    assert [segment.flags for segment in ns.segments()] == [RST | ACK, RST | ACK]
    assert ns.table.sockets() == ()
    assert ns.table.get_timer() is None


def test_half_open_connections_end_after_the_synack_retries(ns: Namespace) -> None:
    listener = ns.table.tcp_listen(0, 80)
    ns.tcp(5000, 80, Segment(0, 0, SYN, 1000))
    answers = 0
    while (at := ns.table.get_timer()) is not None:
        ns.now = max(ns.now, at)
        answers += len(ns.segments())
    assert answers == 6
    assert ns.now == 100 + 63
    assert listener.half_open == 0


def test_time_wait_gives_way_to_a_newer_connection(ns: Namespace) -> None:
    listener = ns.table.tcp_listen(0, 80)
    accept_one(ns)
    child = listener.accept()
    child.close(now=ns.now)
    (fin,) = ns.segments()
    ns.tcp(5000, 80, Segment(1, fin.seq + 1, ACK | 1, 1000))
    ns.segments()
    assert child.state is State.TIME_WAIT
    ns.tcp(5000, 80, Segment(1, 0, SYN, 1000))
    assert [s.flags for s in ns.segments()] == [ACK], "an old duplicate: only corrected"
    ns.tcp(5000, 80, Segment(5000, 0, SYN, 1000))
    (answer,) = ns.segments()
    assert answer.flags == SYN | ACK
    assert answer.seq == (fin.seq + 1 + table.TIME_WAIT_REUSE_GAP) & 0xFFFFFFFF


def test_ephemeral_ports_are_in_linuxs_range_and_run_out(ns: Namespace, monkeypatch) -> None:
    monkeypatch.setattr(ports, "EPHEMERAL_LAST", ports.EPHEMERAL_FIRST + 2)
    got = {ns.table.tcp_connect(Endpoint(THEM, 80)).local.port for _ in range(3)}
    assert got == {32768, 32769, 32770}
    with pytest.raises(OSError, match="Cannot assign") as caught:
        ns.table.tcp_connect(Endpoint(THEM, 80))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert ns.table.tcp_connect(Endpoint(THEM, 81)).local.port in got, "another peer: free again"


def test_a_local_refusal_ends_the_connect(ns: Namespace) -> None:
    connection = ns.table.tcp_connect(Endpoint(THEM, 80))
    ns.drop = Drop(DropReason.NETFILTER_REJECT, icmp=(3, 3))
    ns.segments()
    assert connection.error == errno.ECONNREFUSED
    assert ns.table.sockets() == ()


def test_a_super_segment_of_ours_says_so(ns: Namespace) -> None:
    listener = ns.table.tcp_listen(0, 80)
    accept_one(ns)
    child = listener.accept()
    child.snd.nodelay = True
    child.snd.window = child.snd.max_window = 100_000
    child.send(bytes(5000))
    ns.table.handle_timer()
    data, gso_size = ns.sent[-1]
    assert gso_size == child.snd.mss
    assert len(data) == 5040
    assert checksum(data[:20]) == 0


def test_the_namespaces_end_is_the_sockets_end(ns: Namespace) -> None:
    ns.table.tcp_listen(0, 80)
    connection = ns.table.tcp_connect(Endpoint(THEM, 80))
    sock = ns.table.udp_bind(0, 53)
    ns.table.close()
    assert connection.error == errno.ENETDOWN
    assert sock.take_error() == errno.ENETDOWN
    assert ns.table.sockets() == ()
    assert ns.table.get_timer() is None


def datagram(ns: Namespace, data: bytes, dport: int, sport: int = 999) -> Drop | None:
    other = Namespace()
    other.is_local = lambda ip: True
    other.table.udp_bind(THEM, sport).send(data, Endpoint(US, dport))
    return ns.table.deliver(Packet(other.sent[0][0]))


def test_the_best_udp_socket_gets_the_datagram(ns: Namespace) -> None:
    wildcard = ns.table.udp_bind(0, 53)
    with pytest.raises(OSError, match="in use"):
        ns.table.udp_bind(US, 53)
    bound = ns.table.udp_bind(US, 53, reuse_address=True)
    connected = ns.table.udp_bind(US, 53, Endpoint(THEM, 999), reuse_address=True)
    datagram(ns, b"1", 53)
    datagram(ns, b"2", 53, sport=998)
    bound.close()
    datagram(ns, b"3", 53, sport=998)
    assert connected.receive().data == b"1"
    assert wildcard.receive().data == b"3"
    drop = datagram(ns, b"4", 54)
    assert drop.icmp == (3, 3)


def test_a_udp_socket_nobody_reads_drops_what_is_too_much(ns: Namespace) -> None:
    sock = ns.table.udp_bind(0, 53)
    drops = [datagram(ns, bytes(1000), 53) for _ in range(200)]
    assert drops[-1].reason is DropReason.SOCKET_BUFFER_FULL
    assert sock.receive_queue <= udp.RECEIVE_BUFFER
    assert sock.drops == sum(drop is not None for drop in drops)


@pytest.mark.parametrize(
    ("reason", "number"),
    [
        (DropReason.NO_ROUTE, errno.ENETUNREACH),
        (DropReason.UNREACHABLE, errno.EHOSTUNREACH),
        (DropReason.PROHIBITED, errno.EACCES),
        (DropReason.NETFILTER_DROP, errno.EPERM),
    ],
)
def test_sendto_fails_as_in_linux(ns: Namespace, reason: DropReason, number: int) -> None:
    sock = ns.table.udp_bind()
    ns.drop = Drop(reason)
    with pytest.raises(OSError, match=r".") as caught:
        sock.send(b"x", Endpoint(THEM, 1))
    assert caught.value.errno == number
    ns.drop = Drop(DropReason.NEIGH_FAILED)
    sock.send(b"x", Endpoint(THEM, 1))
    with pytest.raises(OSError, match="too long"):
        sock.send(bytes(65508), Endpoint(THEM, 1))
    with pytest.raises(OSError, match="Destination address required"):
        sock.send(b"x")


def icmp_error(packet: bytes, icmp_type: int, code: int, mtu: int = 0) -> Packet:
    body = bytes((icmp_type, code, 0, 0, 0, 0)) + mtu.to_bytes(2, "big") + packet[:28]
    router = parse_ip("10.2.1.1").to_bytes(4, "big") + US.to_bytes(4, "big")
    header = b"\x45\0" + (20 + len(body)).to_bytes(2, "big") + b"\0\0\0\0\x3f\x01\0\0" + router
    return Packet(header + body)


def test_traceroute_by_udp_hears_which_router_said_no(ns: Namespace) -> None:
    sock = ns.table.udp_bind()
    sock.want_reports = True
    sock.send(b"probe", Endpoint(THEM, 33434), ttl=1)
    data = ns.sent[0][0]
    assert data[8] == 1
    ns.table.icmp_error(icmp_error(data, 11, 0))
    report = sock.reports.popleft()
    assert (report.icmp_type, report.reporter) == (11, parse_ip("10.2.1.1"))
    assert report.remote == Endpoint(THEM, 33434)


def test_ping_gets_replies_errors_and_only_its_own(ns: Namespace) -> None:
    sock, other = ns.table.ping_open(), ns.table.ping_open()
    assert sock.ident != other.ident
    sock.send(THEM, 7, b"x" * 56, ttl=3)
    request = ns.sent[0][0]
    assert request[8] == 3
    assert checksum(request[20:]) == 0
    body = bytearray(request[20:])
    body[0] = 0
    body[2:4] = b"\0\0"
    body[2:4] = checksum(bytes(body)).to_bytes(2, "big")
    reply = request[:8] + b"\x3e" + request[9:12] + request[16:20] + request[12:16] + bytes(body)
    ns.table.icmp_echo_reply(Packet(reply))
    answer = sock.receive()
    assert (answer.icmp_type, answer.seq, answer.ttl, answer.size) == (0, 7, 62, 64)
    assert answer.data == b"x" * 56
    ns.table.icmp_error(icmp_error(request, 3, 4, mtu=1400))
    answer = sock.receive()
    assert (answer.icmp_type, answer.code, answer.mtu, answer.seq) == (3, 4, 1400, 7)
    assert other.receive() is None
    sock.close()
    ns.table.icmp_echo_reply(Packet(reply))
    with pytest.raises(OSError, match="Cannot assign"):
        ns.table.ping_open(THEM)


def test_ss_and_netstat_print_what_the_real_ones_print(ns: Namespace) -> None:
    listener = ns.table.tcp_listen(0, 80, backlog=511)
    accept_one(ns, 60120)
    listener.accept()
    ns.table.udp_bind(0, 53)
    rows = ns.table.sockets()
    assert render_ss([row for row in rows if row.proto == "tcp"]) == (
        "State  Recv-Q Send-Q Local Address:Port Peer Address:Port Process\n"
        "LISTEN 0      511          0.0.0.0:80        0.0.0.0:*           \n"
        "ESTAB  0      0           10.2.1.5:80       10.2.2.7:60120       \n"
    )
    assert render_ss(rows, netid=True).splitlines()[:2] == [
        "Netid State  Recv-Q Send-Q Local Address:Port Peer Address:Port Process",
        "udp   UNCONN 0      0            0.0.0.0:53        0.0.0.0:*           ",
    ]
