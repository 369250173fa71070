# ruff: noqa: E501 - the program inside the namespace is one text
"""The same packets through Linux's netfilter and through ours.

A router with two devices stands in a network namespace; packets are put on one wire and taken from
the other.  What leaves must be equal byte for byte, and so must every counter and every tracked
connection afterwards.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from emulator.addr import Prefix, format_ip, parse_ip
from emulator.netstack.netfilter import Netfilter, run_conntrack, run_iptables_save
from emulator.netstack.netfilter.connection import Tuple
from emulator.netstack.packet import AddressType, Hook, Packet
from emulator.wire.checksum import checksum, pseudo_header_sum
from emulator.wire.ipv4 import decrement_ttl

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network namespace"),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("iptables-restore", "unshare", "ip")),
        reason="needs iptables, unshare and ip",
    ),
]

# Runs inside the namespace: pods are on the wire of a0, the rest of the world on that of b0.
ROUTER = r"""
import json, select, socket, subprocess, sys
job = json.load(sys.stdin)
def sh(text, **more):
    return subprocess.run(text, shell=True, check=True, capture_output=True, text=True, **more)
sh('''
set -e
ip link set lo up
ip link add a0 type veth peer name a1
ip link add b0 type veth peer name b1
for dev in a0 a1 b0 b1; do
  sysctl -qw net.ipv6.conf.$dev.disable_ipv6=1
  sysctl -qw net.ipv4.conf.$dev.rp_filter=0 net.ipv4.conf.$dev.send_redirects=0
  ip link set $dev arp off up
done
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.send_redirects=0 net.ipv4.ip_forward=1
ip addr add 10.2.59.1/24 dev a0
ip addr add 172.17.4.201/24 dev b0
ip route add default via 172.17.4.1 dev b0
''')
sh('iptables-restore', input=job['rules'])
sh('sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=1')
wires = {}
for dev in ('a1', 'b1'):
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    wire.bind((dev, 0))
    wires[dev[0]] = wire
def mac(dev):
    words = sh(f'ip -o link show dev {dev}').stdout.split()
    return bytes.fromhex(words[words.index('link/ether') + 1].replace(':', ''))
towards = {'a': mac('a0'), 'b': mac('b0')}
def take(found, wait):
    ready, _, _ = select.select(list(wires.values()), [], [], wait)
    for side, wire in wires.items():
        if wire in ready:
            frame, address = wire.recvfrom(70000)
            if address[2] != socket.PACKET_OUTGOING:
                found.append([side, frame[14:].hex()])
    return bool(ready)
answers = []
for side, packet, expected in job['packets']:
    wires[side].send(towards[side] + bytes.fromhex('020000000099') + b'\x08\0' + bytes.fromhex(packet))
    found = []
    while len(found) < expected and take(found, 1.0):
        pass
    while take(found, 0):
        pass
    answers.append(found)
try:
    tracked = open('/proc/net/nf_conntrack').read()
except FileNotFoundError:
    tracked = None
json.dump({'answers': answers, 'saved': sh('iptables-save -c').stdout, 'tracked': tracked}, sys.stdout)
"""

RULES = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-SEP-WEB - [0:0]
:KUBE-SVC-DNS - [0:0]
:FLANNEL-POSTRTG - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE
-A KUBE-SERVICES -m tcp -p tcp -d 10.3.0.10/32 --dport 80 -j KUBE-SVC-WEB
-A KUBE-SERVICES -m udp -p udp -d 10.3.0.11/32 --dport 53 -j KUBE-SVC-DNS
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-SVC-WEB
-A KUBE-SVC-WEB ! -s 10.2.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-SVC-WEB -m statistic --mode random --probability 1.0 -j KUBE-SEP-WEB
-A KUBE-SVC-WEB -j KUBE-SEP-WEB
-A KUBE-SEP-WEB -s 10.2.59.13/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-WEB -m recent --name KUBE-SEP-WEB --set -m tcp -p tcp -j DNAT --to 10.2.59.13:8080
-A KUBE-SVC-DNS -m recent --name DNS --rcheck --seconds 100 --reap
-A KUBE-SVC-DNS -m recent --name DNS --set -m udp -p udp -j DNAT --to 10.2.59.14:5353
-A FLANNEL-POSTRTG -s 10.2.0.0/16 -d 10.2.0.0/16 -j RETURN
-A FLANNEL-POSTRTG -s 10.2.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
COMMIT
*mangle
-A FORWARD -p tcp --syn -m comment --comment "count the first segments"
-A PREROUTING -m statistic --mode nth --every 3 --packet 1
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate RELATED -p icmp -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p udp -m multiport --dports 7,9:11 -j DROP
-A FORWARD -m conntrack --ctstate NEW,DNAT -j ACCEPT
COMMIT
"""

SYN, SYNACK, ACK, FIN, RST, PSH = 0x02, 0x12, 0x10, 0x11, 0x04, 0x18
CLIENT, POD, DNS, REMOTE, WEB = "203.0.113.9", "10.2.59.13", "10.2.59.14", "10.2.1.5", "10.3.0.10"
NODE = "172.17.4.201"


def ipv4(src: str, dst: str, proto: int, payload: bytes) -> bytes:
    ends = parse_ip(src), parse_ip(dst)
    head = struct.pack(">BBHHHBBHII", 0x45, 0, 20 + len(payload), 77, 0x4000, 64, proto, 0, *ends)
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def sum_of(src: str, dst: str, proto: int, body: bytes) -> bytes:
    pseudo = pseudo_header_sum(parse_ip(src), parse_ip(dst), proto, len(body))
    return checksum(body, pseudo).to_bytes(2, "big")


def tcp(
    src: str, sport: int, dst: str, dport: int, flags: int, body: bytes = b"", *, seq: int = 1
) -> bytes:
    ack = 2 if flags & ACK else 0
    segment = struct.pack(">HHIIBBHHH", sport, dport, seq, ack, 0x50, flags, 64240, 0, 0) + body
    return ipv4(src, dst, 6, segment[:16] + sum_of(src, dst, 6, segment) + segment[18:])


def udp(src: str, sport: int, dst: str, dport: int, *, summed: bool = True) -> bytes:
    data = struct.pack(">HHHH", sport, dport, 12, 0) + b"ping"
    total = sum_of(src, dst, 17, data) if summed else b"\0\0"
    return ipv4(src, dst, 17, data[:6] + total + data[8:])


def icmp(src: str, dst: str, kind: int, code: int, rest: bytes) -> bytes:
    message = bytes((kind, code, 0, 0)) + rest
    return ipv4(src, dst, 1, message[:2] + checksum(message).to_bytes(2, "big") + message[4:])


class Router:
    """The little of a router that the comparison needs, around our netfilter."""

    def __init__(self) -> None:
        self.netfilter = Netfilter(self, clock=lambda: 1000.0, rng=random.Random(1))
        self.netfilter.restore(RULES, noflush=False)

    def address_type(self, ip: int) -> AddressType:
        local = (parse_ip("10.2.59.1"), parse_ip(NODE))
        return AddressType.LOCAL if ip in local else AddressType.UNICAST

    def primary_address(self, dev: str, dst: int) -> int | None:
        return {"a0": parse_ip("10.2.59.1"), "b0": parse_ip(NODE)}.get(dev)

    def invalidate_flows(self) -> None:
        return

    def pass_on(self, side: str, data: bytes) -> list[tuple[str, bytes]]:
        in_dev = f"{side}0"
        packet = Packet(data, in_dev=in_dev)
        if self.netfilter.hook(Hook.PREROUTING, packet, in_dev, "") is not None:
            return []
        assert self.address_type(packet.dst) is AddressType.UNICAST, format_ip(packet.dst)
        out = "a" if packet.dst in Prefix.parse("10.2.59.0/24") else "b"
        packet.replace(decrement_ttl(packet.data))
        for hook, dev in ((Hook.FORWARD, in_dev), (Hook.POSTROUTING, "")):
            if self.netfilter.hook(hook, packet, dev, f"{out}0") is not None:
                return []
        return [(out, packet.data)]


def scenario() -> Iterable[tuple[str, bytes]]:
    """Yield packets as (wire, bytes)."""
    # A client outside through the service: DNAT and masquerade, a whole life.
    yield "b", tcp(CLIENT, 40000, WEB, 80, SYN)
    yield "a", tcp(POD, 8080, "10.2.59.1", 40000, SYNACK)
    yield "b", tcp(CLIENT, 40000, WEB, 80, ACK)
    yield "b", tcp(CLIENT, 40000, WEB, 80, PSH, b"GET / HTTP/1.0\r\n\r\n")
    yield "a", tcp(POD, 8080, "10.2.59.1", 40000, PSH, b"HTTP/1.0 200 OK\r\n\r\n")
    yield "a", tcp(POD, 8080, "10.2.59.1", 40000, FIN)
    yield "b", tcp(CLIENT, 40000, WEB, 80, ACK)
    yield "b", tcp(CLIENT, 40000, WEB, 80, FIN)
    yield "a", tcp(POD, 8080, "10.2.59.1", 40000, ACK)
    # The same client again: TIME_WAIT is reopened by the SYN.
    yield "b", tcp(CLIENT, 40000, WEB, 80, SYN)
    # Through the NodePort.
    yield "b", tcp(CLIENT, 40001, NODE, 30080, SYN)
    yield "a", tcp(POD, 8080, "10.2.59.1", 40001, SYNACK)
    # A pod elsewhere keeps its address; the endpoint refuses it; it tries again.
    yield "b", tcp(REMOTE, 50000, WEB, 80, SYN)
    yield "b", tcp(REMOTE, 50000, WEB, 80, SYN)
    yield "a", tcp(POD, 8080, REMOTE, 50000, RST | ACK)
    yield "b", tcp(REMOTE, 50000, WEB, 80, SYN)
    # The endpoint reaches itself through the service.
    yield "a", tcp(POD, 33000, WEB, 80, SYN)
    yield "a", tcp(POD, 8080, "10.2.59.1", 33000, SYNACK)
    # Segments from nowhere: an ACK is picked up, a SYN ACK is invalid.
    yield "b", tcp(REMOTE, 50001, WEB, 80, ACK, b"middle")
    yield "a", tcp(POD, 8080, REMOTE, 50002, SYNACK)
    yield "b", tcp(REMOTE, 50003, POD, 8080, 0)
    # A RST that starts nothing.
    yield "b", tcp(REMOTE, 50004, WEB, 80, RST)
    # UDP service, with and without checksum, and answers.
    yield "b", udp(REMOTE, 4000, "10.3.0.11", 53)
    yield "a", udp(DNS, 5353, REMOTE, 4000)
    yield "b", udp(REMOTE, 4001, "10.3.0.11", 53, summed=False)
    yield "a", udp(DNS, 5353, REMOTE, 4001, summed=False)
    yield "b", udp(REMOTE, 4000, "10.3.0.11", 53)
    # A pod to the world: masqueraded; port unreachable and time exceeded come back to it.
    yield "a", udp(POD, 6000, "8.8.8.8", 53)
    sent = decrement_ttl(udp(NODE, 6000, "8.8.8.8", 53))
    yield "b", icmp("8.8.8.8", NODE, 3, 3, bytes(4) + sent)
    yield "b", icmp("198.51.100.1", NODE, 11, 0, bytes(4) + sent[:28])
    # An error about an answer of the service's endpoint travels from the client to the endpoint.
    answered = tcp(NODE, 30080, CLIENT, 40001, SYNACK)
    yield "b", icmp("198.51.100.1", NODE, 3, 1, bytes(4) + answered[:28])
    dnat = decrement_ttl(tcp("10.2.59.1", 40001, POD, 8080, ACK))
    yield "a", icmp(POD, "10.2.59.1", 3, 4, b"\0\0\5\0" + dnat[:28])
    # Echo: masqueraded by identifier, answered; a stray answer; an error about nothing known.
    yield "a", icmp(POD, "8.8.8.8", 8, 0, b"\0\7\0\1payload!")
    yield "b", icmp("8.8.8.8", NODE, 0, 0, b"\0\7\0\1payload!")
    yield "b", icmp("8.8.8.8", POD, 0, 0, b"\0\x63\0\1payload!")
    yield "b", icmp("8.8.8.8", POD, 3, 3, bytes(4) + udp("10.9.9.9", 1, "10.8.8.8", 2)[:28])
    # Filtered, and a protocol without ports.
    yield "b", udp(REMOTE, 4002, POD, 10)
    yield "b", ipv4(REMOTE, WEB, 99, bytes(16))
    yield "a", ipv4(POD, "8.8.8.8", 97, b"\0\0\x08\0data")


def comparable(text: str) -> str:
    """Cut dates, and the policies' counters: nf_tables keeps none, x_tables and we do."""
    text = re.sub(r" on \w+ \w+ .*\d{4}$", "", text, flags=re.M)
    return re.sub(r"^(:\w+ (?:ACCEPT|DROP)) \[\d+:\d+\]$", r"\1", text, flags=re.M)


def tracked(lines: str) -> list[tuple[str, int]]:
    """Connections as the two programs print them, less what only one of them knows.

    The seconds left come apart from the text.
    """
    found = []
    for line in lines.splitlines():
        text = re.sub(r"^ipv4 +2 +", "", line)
        text = re.sub(r" (zone|use|mark|secctx|packets|bytes)=\S+", "", text)
        _, proto, left, rest = text.split(None, 3)
        found.append((f"{proto} {rest.strip()}", int(left)))
    return sorted(found)


def compare_with_linux(router: Router, packets: Iterable[tuple[str, bytes]]) -> None:
    """Feed both; ``packets`` may look at the router between two of them."""
    steps, job = [], []
    for side, data in packets:
        expected = router.pass_on(side, data)
        steps.append((side, data, expected))
        job.append([side, data.hex(), len(expected)])
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", ROUTER],
        input=json.dumps({"rules": RULES, "packets": job}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    linux = json.loads(done.stdout)
    for number, ((side, data, expected), got) in enumerate(
        zip(steps, linux["answers"], strict=True), 1
    ):
        made = [[out, new.hex()] for out, new in expected]
        assert got == made, f"packet {number} from {side}: {data.hex()}"
    saved = run_iptables_save(router.netfilter, ["-c"]).stdout
    assert comparable(saved) == comparable(linux["saved"])
    if linux["tracked"] is not None:
        ours = tracked(run_conntrack(router.netfilter, ["-L"]).stdout)
        theirs = tracked(linux["tracked"])
        assert [text for text, _ in ours] == [text for text, _ in theirs]
        for (text, left), (_, real) in zip(ours, theirs, strict=True):
            assert left - 5 <= real <= left, text


def test_packets_counters_and_connections_are_those_of_linux() -> None:
    compare_with_linux(Router(), scenario())


FLAGS = (2, 2, 2, 0x12, 0x12, 0x10, 0x10, 0x10, 0x11, 4, 0x14, 0x18, 0, 1, 0x29, 3, 6, 0x13)


def storm(router: Router, rng: random.Random, count: int) -> Iterable[tuple[str, bytes]]:
    """Segments of any flags both ways on four connections, UDP, echoes and errors between them.

    An endpoint starts no connection of its own here: the two would clash, and a clash is settled
    by a random port.  Sequence numbers stand still, so that no window is ever left.
    """

    def known(proto: int, src: str, sport: int, port: int) -> bool:
        key = Tuple(proto, parse_ip(src), parse_ip(REMOTE), sport, port)
        return router.netfilter.conntrack.lookup(key) is not None

    for _ in range(count):
        port, flags, dice = rng.randrange(40000, 40004), rng.choice(FLAGS), rng.random()
        if dice < 0.4:
            yield "b", tcp(REMOTE, port, WEB, 80, flags, seq=2)
        elif dice < 0.8:
            if flags not in (2, 0x10, 0x18) or known(6, POD, 8080, port):
                yield "a", tcp(POD, 8080, REMOTE, port, flags, seq=2)
        elif dice < 0.85:
            yield "b", udp(REMOTE, port, "10.3.0.11", 53)
        elif dice < 0.9:
            if known(17, DNS, 5353, port):
                yield "a", udp(DNS, 5353, REMOTE, port)
        elif dice < 0.95:
            ident = bytes((0, rng.randrange(4), 0, 1))
            yield "a", icmp(POD, "8.8.8.8", rng.choice((8, 13, 15, 17, 0, 9)), 0, ident + bytes(8))
        else:
            quoted = rng.choice((tcp(REMOTE, port, POD, 8080, 16), udp(REMOTE, port, DNS, 5353)))
            kind, code = rng.choice(((3, 3), (3, 4), (11, 0), (4, 0), (5, 1), (12, 0)))
            cut = decrement_ttl(quoted)[: rng.choice((40, 28, 24))]
            yield "a", icmp(rng.choice((POD, "10.2.59.77")), REMOTE, kind, code, bytes(4) + cut)


@pytest.mark.parametrize("seed", [4, 7])
def test_a_storm_of_random_segments_leaves_both_in_the_same_state(seed: int) -> None:
    router = Router()
    compare_with_linux(router, storm(router, random.Random(seed), 400))
