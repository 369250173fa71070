"""Packets through a kube-proxy rule set: what each side sees, both ways."""

from __future__ import annotations

import random
import struct

import pytest

from emulator.addr import Prefix, parse_ip
from emulator.netstack.netfilter import Netfilter, run_conntrack, run_iptables
from emulator.netstack.netfilter.connection import ASSURED, SEEN_REPLY
from emulator.netstack.netfilter.tcp_states import TcpState
from emulator.netstack.packet import (
    AddressType,
    Counter,
    Drop,
    DropReason,
    FlowLog,
    Hook,
    Packet,
)
from emulator.wire.checksum import checksum, pseudo_header_sum

SYN, SYNACK, ACK, FIN, RST = 0x02, 0x12, 0x10, 0x11, 0x04

KUBE_PROXY = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-A - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -m comment --comment "d/web cluster IP" -m tcp -p tcp -d 10.3.0.10/32 --dport 80 \
-j KUBE-SVC-A
-A KUBE-SVC-A -s 10.2.59.13/32 -j KUBE-MARK-MASQ
-A KUBE-SVC-A ! -s 10.2.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-SVC-A -j KUBE-SEP-A
-A KUBE-SEP-A -m tcp -p tcp -j DNAT --to-destination 10.2.59.13:8080
COMMIT
"""


class View:
    """A namespace with a few addresses, all on every device."""

    def __init__(self) -> None:
        self.local = {parse_ip(text) for text in ("172.17.4.201", "10.2.59.1", "127.0.0.1")}
        self.devices = {"eth0": "172.17.4.201", "cni0": "10.2.59.1", "flannel.1": "10.2.59.0"}
        self.invalidations = 0

    def address_type(self, ip: int) -> AddressType:
        if ip in self.local or ip in Prefix.parse("127.0.0.0/8"):
            return AddressType.LOCAL
        return AddressType.UNICAST

    def primary_address(self, dev: str, dst: int) -> int | None:
        text = self.devices.get(dev)
        return parse_ip(text) if text else None

    def invalidate_flows(self) -> None:
        self.invalidations += 1


class Node:
    """A netfilter with a clock to turn and short words for packets."""

    def __init__(self, rules: str = KUBE_PROXY, *, conntrack_max: int = 1000) -> None:
        self.now = 100.0
        self.view = View()
        self.netfilter = Netfilter(
            self.view,
            clock=lambda: self.now,
            rng=random.Random(7),
            netns="w1",
            conntrack_max=conntrack_max,
        )
        if rules:
            self.netfilter.restore(rules)

    def forward(self, data: bytes, *, in_dev: str = "cni0", out_dev: str = "eth0") -> Packet | Drop:
        packet = Packet(data, in_dev=in_dev)
        packet.flow = FlowLog()
        steps = (
            (Hook.PREROUTING, in_dev, ""),
            (Hook.FORWARD, in_dev, out_dev),
            (Hook.POSTROUTING, "", out_dev),
        )
        return self._run(packet, steps)

    def send(self, data: bytes, *, out_dev: str = "cni0") -> Packet | Drop:
        packet = Packet(data)
        packet.flow = FlowLog()
        return self._run(packet, ((Hook.OUTPUT, "", out_dev), (Hook.POSTROUTING, "", out_dev)))

    def receive(self, data: bytes, *, in_dev: str = "eth0") -> Packet | Drop:
        packet = Packet(data, in_dev=in_dev)
        packet.flow = FlowLog()
        return self._run(packet, ((Hook.PREROUTING, in_dev, ""), (Hook.INPUT, in_dev, "")))

    def _run(self, packet: Packet, steps: tuple[tuple[Hook, str, str], ...]) -> Packet | Drop:
        for hook, in_dev, out_dev in steps:
            drop = self.netfilter.hook(hook, packet, in_dev, out_dev)
            if drop is not None:
                return drop
        return packet

    def counter(self, chain: str, number: int) -> Counter:
        return self.netfilter.tables["nat"].chains[chain].rules[number - 1].counter


def ipv4(src: str, dst: str, proto: int, payload: bytes, ttl: int = 64) -> bytes:
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        1,
        0x4000,
        ttl,
        proto,
        0,
        parse_ip(src).to_bytes(4, "big"),
        parse_ip(dst).to_bytes(4, "big"),
    )
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def _l4_sum(src: str, dst: str, proto: int, segment: bytes) -> int:
    return checksum(segment, pseudo_header_sum(parse_ip(src), parse_ip(dst), proto, len(segment)))


def tcp(src: str, sport: int, dst: str, dport: int, flags: int, body: bytes = b"") -> bytes:
    segment = struct.pack(">HHIIBBHHH", sport, dport, 1, 2, 0x50, flags, 64240, 0, 0) + body
    total = _l4_sum(src, dst, 6, segment)
    return ipv4(src, dst, 6, segment[:16] + total.to_bytes(2, "big") + segment[18:])


def udp(
    src: str, sport: int, dst: str, dport: int, body: bytes = b"x", *, summed: bool = True
) -> bytes:
    datagram = struct.pack(">HHHH", sport, dport, 8 + len(body), 0) + body
    total = _l4_sum(src, dst, 17, datagram) if summed else 0
    return ipv4(src, dst, 17, datagram[:6] + total.to_bytes(2, "big") + datagram[8:])


def icmp(src: str, dst: str, kind: int, code: int, rest: bytes) -> bytes:
    message = bytes((kind, code, 0, 0)) + rest
    return ipv4(src, dst, 1, message[:2] + checksum(message).to_bytes(2, "big") + message[4:])


def assert_sums_hold(data: bytes) -> None:
    """Every checksum of the packet is right, the quoted packet's IP header included."""
    assert checksum(data[:20]) == 0
    body = data[20:]
    src, dst, proto = data[12:16], data[16:20], data[9]
    pseudo = pseudo_header_sum(
        int.from_bytes(src, "big"), int.from_bytes(dst, "big"), proto, len(body)
    )
    if proto == 6 or (proto == 17 and body[6:8] != b"\0\0"):
        assert checksum(body, pseudo) == 0
    elif proto == 1:
        assert checksum(body) == 0
        if body[0] in (3, 11):
            assert checksum(body[8:28]) == 0


def ends(result: Packet | Drop) -> tuple[str, int, str, int]:
    assert isinstance(result, Packet), result
    assert_sums_hold(result.data)
    from emulator.addr import format_ip

    return format_ip(result.src), result.sport, format_ip(result.dst), result.dport


def test_a_pod_reaches_a_service_and_the_answer_comes_from_the_service() -> None:
    node = Node()
    out = node.forward(tcp("10.2.1.5", 40000, "10.3.0.10", 80, SYN))
    assert ends(out) == ("10.2.1.5", 40000, "10.2.59.13", 8080)
    back = node.forward(tcp("10.2.59.13", 8080, "10.2.1.5", 40000, SYNACK))
    assert ends(back) == ("10.3.0.10", 80, "10.2.1.5", 40000)


def test_a_client_outside_the_cluster_is_masqueraded_to_the_leaving_device() -> None:
    node = Node()
    out = node.forward(tcp("203.0.113.9", 40000, "10.3.0.10", 80, SYN), out_dev="cni0")
    source, port, *destination = ends(out)
    assert (source, destination) == ("10.2.59.1", ["10.2.59.13", 8080])
    assert isinstance(out, Packet)
    assert out.mark == 0
    back = node.forward(tcp("10.2.59.13", 8080, "10.2.59.1", port, SYNACK))
    assert ends(back) == ("10.3.0.10", 80, "203.0.113.9", 40000)


def test_a_pod_that_reaches_itself_through_its_service_is_masqueraded() -> None:
    node = Node()
    out = node.forward(
        tcp("10.2.59.13", 40000, "10.3.0.10", 80, SYN), in_dev="cni0", out_dev="cni0"
    )
    source, port, *destination = ends(out)
    assert (source, destination) == ("10.2.59.1", ["10.2.59.13", 8080])
    back = node.forward(tcp("10.2.59.13", 8080, "10.2.59.1", port, SYNACK), out_dev="cni0")
    assert ends(back) == ("10.3.0.10", 80, "10.2.59.13", 40000)


def test_the_nodes_own_connection_is_translated_at_output_and_undone_at_input() -> None:
    node = Node()
    out = node.send(tcp("172.17.4.201", 40000, "10.3.0.10", 80, SYN))
    assert ends(out)[2:] == ("10.2.59.13", 8080)
    source, port = ends(out)[:2]
    assert source == "10.2.59.1"
    back = node.receive(tcp("10.2.59.13", 8080, "10.2.59.1", port, SYNACK), in_dev="cni0")
    assert ends(back) == ("10.3.0.10", 80, "172.17.4.201", 40000)


def test_a_nat_rule_counts_only_the_first_packet_of_a_connection() -> None:
    node = Node()
    syn = tcp("10.2.1.5", 40000, "10.3.0.10", 80, SYN)
    for data in (syn, syn, tcp("10.2.1.5", 40000, "10.3.0.10", 80, ACK)):
        node.forward(data)
    counter = node.counter("KUBE-SERVICES", 1)
    assert (counter.packets, counter.bytes) == (1, 40)


def test_an_echo_to_the_service_address_is_left_alone() -> None:
    node = Node()
    out = node.forward(icmp("10.2.1.5", "10.3.0.10", 8, 0, b"\0\1\0\1"))
    assert ends(out)[2] == "10.3.0.10"


def test_an_icmp_error_is_brought_back_to_what_the_client_sent() -> None:
    node = Node()
    out = node.forward(tcp("203.0.113.9", 40000, "10.3.0.10", 80, SYN), out_dev="cni0")
    assert isinstance(out, Packet)
    error = icmp("10.2.59.13", "10.2.59.1", 3, 3, bytes(4) + out.data[:28])
    back = node.forward(error)
    assert ends(back)[:1] + ends(back)[2:3] == ("10.3.0.10", "203.0.113.9")
    assert isinstance(back, Packet)
    quoted = Packet(back.data[28:])
    sent = Packet(tcp("203.0.113.9", 40000, "10.3.0.10", 80, SYN))
    assert (quoted.src, quoted.sport, quoted.dst, quoted.dport) == (
        sent.src,
        sent.sport,
        sent.dst,
        sent.dport,
    )


def test_an_icmp_error_this_node_sends_about_a_first_packet_is_translated_too() -> None:
    node = Node()
    packet = Packet(tcp("10.2.1.5", 40000, "10.3.0.10", 80, SYN), in_dev="cni0")
    assert node.netfilter.hook(Hook.PREROUTING, packet, "cni0", "") is None
    error = icmp("10.2.59.1", "10.2.1.5", 11, 0, bytes(4) + packet.data[:28])
    back = node.send(error)
    assert isinstance(back, Packet)
    assert_sums_hold(back.data)
    assert Packet(back.data[28:]).dst == parse_ip("10.3.0.10")


def test_udp_without_a_checksum_keeps_having_none() -> None:
    node = Node("*nat\n-A PREROUTING -p udp -j DNAT --to-destination 10.2.59.13:53\nCOMMIT\n")
    out = node.forward(udp("10.2.1.5", 4000, "10.3.0.10", 5353, summed=False))
    assert ends(out)[2:] == ("10.2.59.13", 53)
    assert isinstance(out, Packet)
    assert out.data[26:28] == b"\0\0"


def test_two_clients_with_one_source_port_get_different_ports_behind_masquerade() -> None:
    node = Node("*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n")
    first = ends(node.forward(udp("10.2.1.5", 4000, "8.8.8.8", 53)))
    second = ends(node.forward(udp("10.2.1.6", 4000, "8.8.8.8", 53)))
    assert first[:2] == ("172.17.4.201", 4000)
    assert second[0] == "172.17.4.201"
    assert second[1] != 4000
    assert second[1] >= 1024


@pytest.mark.parametrize(
    ("port", "low", "high"), [(100, 1, 511), (700, 600, 1023), (5000, 1024, 65535)]
)
def test_a_new_source_port_stays_in_the_class_of_the_old_one(
    port: int, low: int, high: int
) -> None:
    node = Node("*nat\n-A POSTROUTING -o eth0 -j MASQUERADE --random-fully\nCOMMIT\n")
    for host in range(1, 30):
        got = ends(node.forward(udp(f"10.2.1.{host}", port, "8.8.8.8", 53)))[1]
        assert low <= got <= high


def test_a_full_port_range_is_a_named_drop() -> None:
    node = Node("*nat\n-A POSTROUTING -p udp -j MASQUERADE --to-ports 5000-5001\nCOMMIT\n")
    results = [node.forward(udp("10.2.1.5", 4000 + n, "8.8.8.8", 53)) for n in range(3)]
    assert [isinstance(r, Drop) for r in results] == [False, False, True]
    assert isinstance(results[2], Drop)
    assert results[2].reason is DropReason.NAT_EXHAUSTED


def test_echo_identifiers_are_translated_like_ports() -> None:
    node = Node("*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n")
    for host in ("10.2.1.5", "10.2.1.6"):
        node.forward(icmp(host, "8.8.8.8", 8, 0, b"\0\7\0\1"))
    second = list(node.netfilter.conntrack)[1]
    ident = second.reply.sport
    assert ident != 7
    back = node.forward(icmp("8.8.8.8", "172.17.4.201", 0, 0, ident.to_bytes(2, "big") + b"\0\1"))
    assert ends(back)[2] == "10.2.1.6"
    assert isinstance(back, Packet)
    assert back.data[24:26] == b"\0\7"


def test_masqueraded_connections_die_with_the_address() -> None:
    node = Node("*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n")
    node.forward(udp("10.2.1.5", 4000, "8.8.8.8", 53))
    assert node.netfilter.address_gone("eth0", parse_ip("172.17.4.201")) == 1
    assert len(node.netfilter.conntrack) == 0


def test_an_established_flow_is_cacheable_and_says_its_translation() -> None:
    node = Node()
    first = node.forward(tcp("10.2.1.5", 40000, "10.3.0.10", 80, SYN))
    assert isinstance(first, Packet)
    assert first.flow is not None
    assert not first.flow.cacheable
    node.forward(tcp("10.2.59.13", 8080, "10.2.1.5", 40000, SYNACK))
    node.forward(tcp("10.2.1.5", 40000, "10.3.0.10", 80, ACK))
    data = node.forward(tcp("10.2.1.5", 40000, "10.3.0.10", 80, ACK, b"GET /"))
    assert isinstance(data, Packet)
    assert data.flow is not None
    assert data.flow.cacheable
    connection = data.ct
    assert connection is not None
    assert connection.status & (SEEN_REPLY | ASSURED) == SEEN_REPLY | ASSURED
    there, back = connection.translation(False), connection.translation(True)
    assert there == (parse_ip("10.2.1.5"), parse_ip("10.2.59.13"), 40000, 8080)
    assert back == (parse_ip("10.3.0.10"), parse_ip("10.2.1.5"), 80, 40000)
    node.now += 1000.0
    assert connection.refresh(node.now, 10, 5000, reply=True)
    assert connection.packets == [3, 11]
    assert connection.expire_at == node.now + 432000.0


def test_a_fin_ends_the_shortcut() -> None:
    node = Node()
    for data in (
        tcp("10.2.1.5", 40000, "10.3.0.10", 80, SYN),
        tcp("10.2.59.13", 8080, "10.2.1.5", 40000, SYNACK),
        tcp("10.2.1.5", 40000, "10.3.0.10", 80, ACK),
        tcp("10.2.1.5", 40000, "10.3.0.10", 80, FIN),
    ):
        node.forward(data)
    connection = next(iter(node.netfilter.conntrack))
    assert connection.tcp_state.name == "FIN_WAIT"
    assert not connection.refresh(node.now, 1, 40)


def test_the_whole_life_of_a_connection_in_conntracks_words() -> None:
    node = Node()
    lives = []
    for data in (
        tcp("10.2.1.5", 40000, "10.3.0.10", 80, SYN),
        tcp("10.2.59.13", 8080, "10.2.1.5", 40000, SYNACK),
        tcp("10.2.1.5", 40000, "10.3.0.10", 80, ACK),
        tcp("10.2.1.5", 40000, "10.3.0.10", 80, FIN),
        tcp("10.2.59.13", 8080, "10.2.1.5", 40000, ACK),
        tcp("10.2.59.13", 8080, "10.2.1.5", 40000, FIN),
        tcp("10.2.1.5", 40000, "10.3.0.10", 80, ACK),
    ):
        assert isinstance(node.forward(data), Packet)
        lives.append(run_conntrack(node.netfilter, ["-L"]).stdout)
    words = [life.split()[2:4] for life in lives]
    assert words == [
        ["120", "SYN_SENT"],
        ["60", "SYN_RECV"],
        ["432000", "ESTABLISHED"],
        ["120", "FIN_WAIT"],
        ["60", "CLOSE_WAIT"],
        ["30", "LAST_ACK"],
        ["120", "TIME_WAIT"],
    ]
    assert lives[0] == (
        "tcp      6 120 SYN_SENT src=10.2.1.5 dst=10.3.0.10 sport=40000 dport=80 [UNREPLIED] "
        "src=10.2.59.13 dst=10.2.1.5 sport=8080 dport=40000 mark=0 use=1\n"
    )
    assert "[ASSURED] mark=0 use=1\n" in lives[2]


def test_a_syn_reopens_a_connection_in_time_wait_and_is_balanced_anew() -> None:
    node = Node()
    for data in (
        tcp("10.2.1.5", 40000, "10.3.0.10", 80, SYN),
        tcp("10.2.59.13", 8080, "10.2.1.5", 40000, RST),
    ):
        node.forward(data)
    node.forward(tcp("10.2.1.5", 40000, "10.3.0.10", 80, SYN))
    assert node.counter("KUBE-SERVICES", 1).packets == 2


def test_a_stray_segment_is_invalid_and_passes_untranslated() -> None:
    node = Node(KUBE_PROXY + "*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n")
    drop = node.forward(tcp("10.2.59.13", 8080, "10.2.1.5", 40000, SYNACK))
    assert isinstance(drop, Drop)
    assert drop.reason is DropReason.NETFILTER_DROP
    assert drop.detail == (
        "filter FORWARD rule 1: -A FORWARD -m conntrack --ctstate INVALID -j DROP"
    )


def test_reject_names_the_icmp_error_it_owes() -> None:
    node = Node("*filter\n-A FORWARD -p tcp -d 10.3.0.10 -j REJECT\nCOMMIT\n")
    drop = node.forward(tcp("10.2.1.5", 40000, "10.3.0.10", 80, SYN))
    assert isinstance(drop, Drop)
    assert (drop.reason, drop.icmp, drop.reset) == (DropReason.NETFILTER_REJECT, (3, 3), False)
    assert "REJECT --reject-with icmp-port-unreachable" in drop.detail


def test_udp_becomes_a_stream_after_two_seconds_of_both_ways() -> None:
    node = Node("*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n")
    query = udp("10.2.1.5", 4000, "8.8.8.8", 53)
    answer = udp("8.8.8.8", 53, "172.17.4.201", 4000)
    node.forward(query)
    node.forward(answer)
    connection = next(iter(node.netfilter.conntrack))
    assert connection.timeout_s == 30.0
    node.now += 3.0
    node.forward(query)
    assert connection.timeout_s == 120.0
    node.now += 121.0
    assert list(node.netfilter.conntrack) == []


def test_expired_entries_are_swept_when_the_timer_says_so() -> None:
    node = Node("*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n")
    assert node.netfilter.get_timer() is None
    node.forward(udp("10.2.1.5", 4000, "8.8.8.8", 53))
    due = node.netfilter.get_timer()
    assert due is not None
    node.now = due
    node.netfilter.handle_timer()
    assert len(node.netfilter.conntrack) == 0
    assert node.netfilter.get_timer() is None


def test_a_full_table_drops_with_its_name_but_evicts_what_is_not_assured() -> None:
    node = Node(conntrack_max=2)
    for port in (1, 2, 3):
        assert isinstance(node.forward(udp("10.2.1.5", port, "10.2.1.9", 53)), Packet)
    assert node.netfilter.conntrack.statistics.early_drop == 1
    for connection in node.netfilter.conntrack:
        connection.status |= ASSURED
    drop = node.forward(udp("10.2.1.5", 4, "10.2.1.9", 53))
    assert isinstance(drop, Drop)
    assert drop.reason is DropReason.CONNTRACK_FULL
    assert drop.detail == "nf_conntrack: table full (2 entries), dropping packet"


def test_kube_proxy_cleans_up_udp_entries_of_a_gone_endpoint() -> None:
    node = Node("*nat\n-A PREROUTING -p udp -j DNAT --to-destination 10.2.59.13:53\nCOMMIT\n")
    node.forward(udp("10.2.1.5", 4000, "10.3.0.10", 53))
    argv = ["-D", "--orig-dst", "10.3.0.10", "--dst-nat", "10.2.59.14", "-p", "udp"]
    missed = run_conntrack(node.netfilter, argv)
    assert (missed.exit_code, missed.stdout) == (1, "")
    assert missed.stderr.endswith(": 0 flow entries have been deleted.\n")
    argv[4] = "10.2.59.13"
    hit = run_conntrack(node.netfilter, argv)
    assert (hit.exit_code, len(node.netfilter.conntrack)) == (0, 0)
    assert hit.stderr == "conntrack v1.4.7 (conntrack-tools): 1 flow entries have been deleted.\n"


def test_session_affinity_keeps_a_client_at_its_endpoint() -> None:
    rules = ["*nat", ":SVC - [0:0]"]
    rules += [f":SEP{n} - [0:0]" for n in range(5)]
    rules.append("-A PREROUTING -p udp -j SVC")
    rules += [
        f"-A SVC -m recent --name SEP{n} --rcheck --seconds 180 --reap -j SEP{n}" for n in range(5)
    ]
    rules += [
        f"-A SVC -m statistic --mode random --probability {1 / (5 - n):.10f} -j SEP{n}"
        for n in range(4)
    ]
    rules.append("-A SVC -j SEP4")
    rules += [
        f"-A SEP{n} -m recent --name SEP{n} --set -p udp -j DNAT --to 10.2.59.{n}:53"
        for n in range(5)
    ]
    node = Node("\n".join([*rules, "COMMIT", ""]))
    chosen = {ends(node.forward(udp("10.2.1.5", p, "10.3.0.10", 53)))[2] for p in range(1, 30)}
    assert len(chosen) == 1
    node.now += 181.0
    others = {ends(node.forward(udp(f"10.2.1.{p}", 9, "10.3.0.10", 53)))[2] for p in range(1, 60)}
    assert len(others) == 5


def test_statistic_rules_spread_new_connections_evenly() -> None:
    count, rounds = 3, 6000
    rules = ["*nat"]
    rules += [
        f"-A PREROUTING -p udp -m statistic --mode random --probability {1 / (count - n):.10f} "
        f"-j DNAT --to 10.2.59.{n}"
        for n in range(count - 1)
    ]
    rules.append(f"-A PREROUTING -p udp -j DNAT --to 10.2.59.{count - 1}")
    node = Node("\n".join([*rules, "COMMIT", ""]), conntrack_max=10000)
    seen = dict.fromkeys((f"10.2.59.{n}" for n in range(count)), 0)
    for n in range(rounds):
        seen[ends(node.forward(udp("10.2.1.5", n + 1, "10.3.0.10", 53)))[2]] += 1
    expected = rounds / count
    chi_squared = sum((hits - expected) ** 2 / expected for hits in seen.values())
    assert chi_squared < 13.8  # 2 degrees of freedom, p = 0.001


def test_notrack_keeps_a_packet_out_of_the_table() -> None:
    node = Node(
        "*raw\n-A PREROUTING -j NOTRACK\nCOMMIT\n"
        "*filter\n-A FORWARD -m conntrack --ctstate UNTRACKED -j DROP\nCOMMIT\n"
    )
    drop = node.forward(udp("10.2.1.5", 4000, "8.8.8.8", 53))
    assert isinstance(drop, Drop)
    assert len(node.netfilter.conntrack) == 0


def test_without_any_rule_nothing_is_tracked() -> None:
    node = Node("")
    packet = node.forward(udp("10.2.1.5", 4000, "8.8.8.8", 53))
    assert isinstance(packet, Packet)
    assert packet.ct is None
    assert packet.flow is not None
    assert packet.flow.cacheable


def test_a_trace_tells_rules_state_and_translation() -> None:
    steps: list[tuple[str, str, str]] = []

    class Recorder:
        def step(self, netns: str, stage: str, detail: str, packet: Packet) -> None:
            steps.append((netns, stage, detail))

    node = Node()
    packet = Packet(tcp("10.2.1.5", 40000, "10.3.0.10", 80, SYN), in_dev="cni0")
    packet.trace = Recorder()
    node.netfilter.hook(Hook.PREROUTING, packet, "cni0", "")
    assert steps[0] == ("w1", "hook", "conntrack NEW")
    assert steps[1][2] == (
        "nat PREROUTING rule 1: -A PREROUTING -m comment --comment "
        '"kubernetes service portals" -j KUBE-SERVICES'
    )
    assert steps[-2][2].startswith("nat KUBE-SEP-A rule 1: -A KUBE-SEP-A -p tcp -m tcp -j DNAT")
    assert steps[-1] == ("w1", "nat", "PREROUTING DNAT 10.3.0.10:80 → 10.2.59.13:8080")


def test_every_change_of_rules_voids_cached_flows() -> None:
    node = Node()
    before = node.view.invalidations
    run_iptables(node.netfilter, ["-A", "FORWARD", "-j", "ACCEPT"])
    assert node.view.invalidations == before + 1
    run_iptables(node.netfilter, ["-nvL"])
    assert node.view.invalidations == before + 1


def test_a_packet_over_the_loopback_device_is_counted_and_advances_its_connection_once() -> None:
    node = Node()
    here, there = ("127.0.0.1", 40000), ("127.0.0.1", 80)
    story = (
        (here, there, SYN), (there, here, SYNACK), (here, there, ACK),
        (here, there, FIN), (there, here, ACK), (there, here, FIN), (here, there, ACK),
    )  # fmt: skip
    for (src, sport), (dst, dport), flags in story:
        data = tcp(src, sport, dst, dport, flags)
        assert isinstance(node.send(data, out_dev="lo"), Packet)
        assert isinstance(node.receive(data, in_dev="lo"), Packet)
    (connection,) = node.netfilter.conntrack
    assert connection.packets == [4, 3]
    assert connection.tcp_state is TcpState.TIME_WAIT
    assert node.netfilter.conntrack.statistics.invalid == 0
