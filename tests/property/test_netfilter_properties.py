"""What must hold of netfilter for every input."""

from __future__ import annotations

import random
import struct
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.errors import UsageError
from emulator.netstack.netfilter import (
    Netfilter,
    run_conntrack,
    run_iptables,
    run_iptables_restore,
    run_iptables_save,
)
from emulator.netstack.netfilter.command import CommandParser
from emulator.netstack.netfilter.lexer import quote, tokenize
from emulator.netstack.netfilter.rewrite import rewrite_bytes
from emulator.netstack.packet import AddressType, Drop, Hook, Packet
from emulator.wire.checksum import checksum, pseudo_header_sum

ADDRESSES = st.integers(1, 0xFFFFFFFE)
PORTS = st.integers(1, 65535)


class View:
    def address_type(self, ip: int) -> AddressType:
        return AddressType.LOCAL if ip % 7 == 0 else AddressType.UNICAST

    def primary_address(self, dev: str, dst: int) -> int | None:
        return 0xAC110401

    def invalidate_flows(self) -> None:
        return


def fresh(rules: str = "") -> Netfilter:
    netfilter = Netfilter(View(), clock=lambda: 1.0, rng=random.Random(3))
    if rules:
        netfilter.restore(rules)
    return netfilter


def build(src: int, dst: int, proto: int, body: bytes) -> bytes:
    at = {6: 16, 17: 6, 1: 2}[proto]
    initial = 0 if proto == 1 else pseudo_header_sum(src, dst, proto, len(body))
    body = body[:at] + b"\0\0" + body[at + 2 :]
    total = checksum(body, initial)
    if proto == 17 and total == 0:
        total = 0xFFFF
    body = body[:at] + total.to_bytes(2, "big") + body[at + 2 :]
    head = struct.pack(">BBHHHBBHII", 0x45, 0, 20 + len(body), 9, 0x4000, 64, proto, 0, src, dst)
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def sums_hold(data: bytes) -> bool:
    src, dst = (int.from_bytes(data[at : at + 4], "big") for at in (12, 16))
    initial = 0 if data[9] == 1 else pseudo_header_sum(src, dst, data[9], len(data) - 20)
    return checksum(data[:20]) == 0 and checksum(data[20:], initial) == 0


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    proto = draw(st.sampled_from([6, 17, 1]))
    src, dst = draw(ADDRESSES), draw(ADDRESSES)
    rest = draw(st.binary(max_size=64))
    if proto == 6:
        body = struct.pack(">HHIIBBHHH", draw(PORTS), draw(PORTS), 1, 2, 0x50, 2, 100, 0, 0)
    elif proto == 17:
        body = struct.pack(">HHHH", draw(PORTS), draw(PORTS), 8 + len(rest), 0)
    else:
        body = struct.pack(">BBHHH", 8, 0, 0, draw(PORTS), 1)
    return build(src, dst, proto, body + rest)


def swap_ends(data: bytes) -> bytes:
    """The answer a peer gives: addresses and ports the other way round, echo turned to reply."""
    src, dst = (int.from_bytes(data[at : at + 4], "big") for at in (12, 16))
    body = data[20:]
    if data[9] == 1:
        return build(dst, src, 1, b"\0" + body[1:])
    flags = b"" if data[9] == 17 else body[4:13] + b"\x12" + body[14:]
    return build(dst, src, data[9], body[2:4] + body[:2] + (flags or body[4:]))


@given(packets(), st.booleans(), ADDRESSES, PORTS)
def test_a_rewrite_keeps_checksums_and_is_undone_by_its_inverse(
    data: bytes, source: bool, ip: int, port: int
) -> None:
    changed = rewrite_bytes(data, source=source, ip=ip, port=port)
    assert sums_hold(changed)
    assert len(changed) == len(data)
    old_ip = int.from_bytes(data[12:16] if source else data[16:20], "big")
    at = 24 if data[9] == 1 else 20 if source else 22
    old_port = int.from_bytes(data[at : at + 2], "big")
    assert rewrite_bytes(changed, source=source, ip=old_ip, port=old_port) == data


RULES = """*nat
-A PREROUTING -p tcp -j DNAT --to-destination 10.9.9.9:8080
-A PREROUTING -j DNAT --to-destination 10.9.9.1-10.9.9.8
-A POSTROUTING -m statistic --mode random --probability 0.5 -j MASQUERADE --random-fully
COMMIT
"""


def forward(netfilter: Netfilter, data: bytes) -> Packet:
    packet = Packet(data)
    for hook, in_dev, out_dev in (
        (Hook.PREROUTING, "a", ""),
        (Hook.FORWARD, "a", "b"),
        (Hook.POSTROUTING, "", "b"),
    ):
        drop = netfilter.hook(hook, packet, in_dev, out_dev)
        assert not isinstance(drop, Drop), drop
    return packet


@given(packets())
def test_there_and_back_a_client_sees_only_who_it_spoke_to(data: bytes) -> None:
    netfilter = fresh(RULES)
    out = forward(netfilter, data)
    assert sums_hold(out.data)
    assert out.dst >> 8 == 0x0A0909
    answer = swap_ends(out.data)
    back = forward(netfilter, answer)
    assert back.data == swap_ends(data)
    assert len(netfilter.conntrack) == 1


@given(packets())
def test_the_flow_caches_translation_is_what_the_slow_path_does(data: bytes) -> None:
    netfilter = fresh(RULES)
    out = forward(netfilter, data)
    assert out.ct is not None
    for reply, packet_in, packet_out in (
        (False, data, out.data),
        (True, swap_ends(out.data), swap_ends(data)),
    ):
        translation = out.ct.translation(reply)
        assert translation is not None
        echo = data[9] == 1
        made = rewrite_bytes(packet_in, source=True, ip=translation.src, port=translation.sport)
        made = rewrite_bytes(
            made,
            source=False,
            ip=translation.dst,
            port=translation.sport if echo else translation.dport,
        )
        assert made == packet_out


@settings(max_examples=200)
@given(st.lists(packets(), max_size=8))
def test_no_two_connections_ever_share_a_tuple(data: list[bytes]) -> None:
    rules = "*nat\n-A PREROUTING -j DNAT --to-destination 10.9.9.9\n"
    netfilter = fresh(f"{rules}-A POSTROUTING -j MASQUERADE\nCOMMIT\n")
    for each in data:
        forward(netfilter, each)
    replies = [connection.reply for connection in netfilter.conntrack]
    assert len(set(replies)) == len(replies)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_quoting_is_undone_by_the_reader(text: str) -> None:
    assert tokenize(f"--comment {quote(text)} -j X") == ["--comment", text, "-j", "X"]


NETWORKS = st.builds("{}.2.0.0/{}".format, st.integers(1, 223), st.integers(1, 32))
RANGES = st.tuples(PORTS, PORTS).map(lambda ports: f"{min(ports)}:{max(ports)}")
PORT_WORDS = st.one_of(PORTS.map(str), RANGES)
BANG = st.sampled_from(["", "! "])
COMMENTS = st.text("abz :/>-", min_size=1, max_size=12)
STATES = st.sampled_from(["NEW", "RELATED,DNAT"])
TYPES = st.sampled_from(["LOCAL", "LOCAL,UNICAST"])
UNITS = st.sampled_from(["sec", "min", "day"])
PIECES = [
    st.builds("{}-s {}".format, BANG, NETWORKS),
    st.builds("{}-d {}".format, BANG, NETWORKS),
    st.builds("{}-i {}".format, BANG, st.sampled_from(["eth0", "cni+"])),
    st.builds("-m mark {}--mark {}/{}".format, BANG, PORTS, PORTS),
    st.builds('-m comment --comment "{}"'.format, COMMENTS),
    st.builds("-m statistic --mode random --probability {:.10f}".format, st.floats(0, 1)),
    st.builds("-m recent --rcheck --seconds {} --reap --name N{}".format, PORTS, PORTS),
    st.builds("-m conntrack {}--ctstate {}".format, BANG, STATES),
    st.builds("-m addrtype {}--dst-type {}".format, BANG, TYPES),
    st.builds("-p tcp -m tcp {}--dport {}".format, BANG, PORT_WORDS),
    st.builds("-m limit --limit {}/{}".format, st.integers(1, 90), UNITS),
]
TAILS = st.sampled_from(
    [
        "",
        "-j ACCEPT",
        "-j RETURN",
        "-j MARK --xor-mark 0x4000",
        '-j LOG --log-prefix "x y"',
        "-j REJECT",
    ]
)


@st.composite
def rule_lines(draw: st.DrawFn) -> str:
    chosen = draw(st.lists(st.sampled_from(range(len(PIECES))), unique=True, max_size=5))
    return " ".join(["-A FORWARD", *(draw(PIECES[n]) for n in chosen), draw(TAILS)])


@given(st.lists(rule_lines(), max_size=6))
def test_what_is_saved_restores_to_the_same(lines: list[str]) -> None:
    netfilter = fresh()
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    assert run_iptables_restore(netfilter, [], text).exit_code == 0
    saved = run_iptables_save(netfilter, ["-c"]).stdout
    again = fresh()
    assert run_iptables_restore(again, ["-c"], saved).exit_code == 0
    assert run_iptables_save(again, ["-c"]).stdout == saved
    assert again.snapshot() == netfilter.snapshot()


KNOWN = """
-A -I -D -R -C -N -X -L -S -F -Z -P -E FORWARD INPUT FOO 1 0 -s -d -p tcp udp icmp 10.0.0.0/8 ! -m
-j -g --dport --sport --ports 80 1:2 --to --to-destination 1.2.3.4:80 DNAT SNAT REJECT MASQUERADE
MARK CONNMARK LOG ACCEPT DROP -t nat filter recent statistic multiport conntrack limit addrtype
comment mark --set --name --mode random nth --probability 0.5 --every --ctstate NEW --limit 5/min
--comment --mark 0x1/0x2 -c 3 4 --syn --tcp-flags --icmp-type -n -v -x --line-numbers -w -f -i -o
eth0 --ctexpire --ctorigsrc --reject-with --mask
"""
WORDS = st.one_of(st.text(max_size=12), st.sampled_from(KNOWN.split()))


@settings(max_examples=300)
@given(st.lists(WORDS, max_size=12))
def test_garbage_on_the_command_line_is_only_ever_a_usage_error(words: list[str]) -> None:
    with suppress(UsageError):
        CommandParser(words).parse()
    netfilter = fresh()
    result = run_iptables(netfilter, words)
    assert result.exit_code in (0, 1, 2, 3, 4)
    assert bool(result.stderr) is (result.exit_code != 0)
    run_conntrack(netfilter, words)


@settings(max_examples=300)
@given(st.lists(st.lists(WORDS, max_size=10).map(" ".join), max_size=5), st.booleans())
def test_a_garbled_rule_file_changes_nothing_or_everything(lines: list[str], table: bool) -> None:
    netfilter = fresh("*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n")
    before = netfilter.snapshot()
    text = "\n".join([*(["*filter"] if table else []), *lines, "COMMIT", ""])
    result = run_iptables_restore(netfilter, ["--noflush"], text)
    if result.exit_code:
        assert netfilter.snapshot() == before
        assert result.stderr


@settings(max_examples=300)
@given(st.binary(max_size=60), st.sampled_from([1, 4, 6, 17, 132]), st.booleans())
def test_any_bytes_after_an_ip_header_pass_or_drop(body: bytes, proto: int, fragment: bool) -> None:
    fields = (0x45, 0, 20 + len(body), 9, 100 * fragment, 64, proto, 0, 0x0A020105, 0x0A030001)
    head = struct.pack(">BBHHHBBHII", *fields)
    data = head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body
    netfilter = fresh(
        RULES
        + "*filter\n-A FORWARD -p tcp -m tcp --tcp-option 9\n-A FORWARD -p icmp --icmp-type 3/4\n"
        "-A FORWARD -p tcp --syn -j ACCEPT\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\n"
        "COMMIT\n"
    )
    packet = Packet(data)
    for hook in (Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING):
        drop = netfilter.hook(hook, packet, "a", "b")
        if drop is not None:
            assert drop.detail
            break
