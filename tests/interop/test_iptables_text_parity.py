# ruff: noqa: E501 - rule texts are one line each
"""The same words to Debian's iptables 1.8.9 and to ours: the same answers, byte for byte."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess

import pytest

from emulator.netstack.netfilter import (
    Netfilter,
    run_iptables,
    run_iptables_restore,
    run_iptables_save,
)
from emulator.netstack.packet import AddressType

TABLES = ("raw", "mangle", "filter", "nat")


def _real_version() -> str:
    if shutil.which("iptables") is None or shutil.which("unshare") is None:
        return ""
    return subprocess.run(
        ["iptables", "--version"], capture_output=True, text=True, check=False
    ).stdout


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network namespace"),
    pytest.mark.skipif(
        _real_version() != "iptables v1.8.9 (nf_tables)\n",
        reason="needs iptables v1.8.9 (nf_tables), the release whose texts these are",
    ),
]

KUBE_PROXY_MODERN = """\
*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A INPUT -j KUBE-FIREWALL
-A KUBE-NODEPORTS -m comment --comment "ns2/svc2:p80 health check node port" -m tcp -p tcp --dport 30000 -j ACCEPT
-A KUBE-SERVICES -m comment --comment "ns6/svc6:p80 has no endpoints" -m tcp -p tcp -d 172.30.0.46 --dport 80 -j REJECT
-A KUBE-EXTERNAL-SERVICES -m comment --comment "ns2/svc2:p80 has no local endpoints" -m addrtype --dst-type LOCAL -m tcp -p tcp --dport 3001 -j DROP
-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-PROXY-FIREWALL -m comment --comment "ns5/svc5:p80 traffic not accepted by KUBE-FW-NUKIZ6OKUXPJNT4C" -m tcp -p tcp -d 5.6.7.8 --dport 80 -j DROP
COMMIT
*nat
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXT-GNZBNJ2PO5MGZ6GT - [0:0]
:KUBE-FW-NUKIZ6OKUXPJNT4C - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-SXIVWICOYRO3J4NJ - [0:0]
:KUBE-SEP-UKSFD7AGPMPPLUHC - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-NODEPORTS -m comment --comment ns2/svc2:p80 -m tcp -p tcp --dport 3001 -j KUBE-EXT-GNZBNJ2PO5MGZ6GT
-A KUBE-SERVICES -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 -j KUBE-SVC-XPGD46QRK7WJZT7O
-A KUBE-SERVICES -m comment --comment "ns5/svc5:p80 loadbalancer IP" -m tcp -p tcp -d 5.6.7.8 --dport 80 -j KUBE-FW-NUKIZ6OKUXPJNT4C
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-EXT-GNZBNJ2PO5MGZ6GT -m comment --comment "pod traffic for ns2/svc2:p80 external destinations" -s 10.0.0.0/8 -j KUBE-SVC-XPGD46QRK7WJZT7O
-A KUBE-EXT-GNZBNJ2PO5MGZ6GT -m comment --comment "masquerade LOCAL traffic for ns2/svc2:p80 external destinations" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A KUBE-FW-NUKIZ6OKUXPJNT4C -m comment --comment "ns5/svc5:p80 loadbalancer IP" -s 203.0.113.0/25 -j KUBE-EXT-GNZBNJ2PO5MGZ6GT
-A KUBE-FW-NUKIZ6OKUXPJNT4C -m comment --comment "other traffic to ns5/svc5:p80 will be dropped by KUBE-PROXY-FIREWALL"
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -m recent --name KUBE-SEP-SXIVWICOYRO3J4NJ --rcheck --seconds 10800 --reap -j KUBE-SEP-SXIVWICOYRO3J4NJ
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -m statistic --mode random --probability 0.3333333333 -j KUBE-SEP-SXIVWICOYRO3J4NJ
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 -> 10.180.0.4:80" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-UKSFD7AGPMPPLUHC
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 -> 10.180.0.4:80" -j KUBE-SEP-UKSFD7AGPMPPLUHC
-A KUBE-SEP-SXIVWICOYRO3J4NJ -m comment --comment ns1/svc1:p80 -s 10.180.0.1 -j KUBE-MARK-MASQ
-A KUBE-SEP-SXIVWICOYRO3J4NJ -m comment --comment ns1/svc1:p80 -m recent --name KUBE-SEP-SXIVWICOYRO3J4NJ --set -m tcp -p tcp -j DNAT --to-destination 10.180.0.1:80
-A KUBE-SEP-UKSFD7AGPMPPLUHC -m comment --comment ns1/svc1:p80 -m udp -p udp -j DNAT --to-destination 10.180.0.4:53
COMMIT
"""

KUBE_PROXY_2017 = """\
*filter
:KUBE-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment "kubernetes firewall for dropping marked packets" -m mark --mark 0x00008000/0x00008000 -j DROP
-A KUBE-SERVICES -m comment --comment "default/idle: has no endpoints" -m tcp -p tcp -d 10.3.0.9/32 --dport 80 -j REJECT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-SVC-GYQQTB6TY565JPRW - [0:0]
:KUBE-SEP-ACK5ZHRIFEXLTW3H - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -m mark --mark 0x00004000/0x00004000 -j MASQUERADE
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x00004000/0x00004000
-A KUBE-MARK-DROP -j MARK --set-xmark 0x00008000/0x00008000
-A KUBE-SERVICES -m comment --comment "default/frontend: cluster IP" -m tcp -p tcp -d 10.3.0.252/32 --dport 80 ! -s 10.2.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m comment --comment "default/frontend: cluster IP" -m tcp -p tcp -d 10.3.0.252/32 --dport 80 -j KUBE-SVC-GYQQTB6TY565JPRW
-A KUBE-SERVICES -m comment --comment "default/frontend: external IP" -m tcp -p tcp -d 172.17.4.101/32 --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m comment --comment "default/frontend: external IP" -m tcp -p tcp -d 172.17.4.101/32 --dport 80 -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j KUBE-SVC-GYQQTB6TY565JPRW
-A KUBE-SERVICES -m comment --comment "default/frontend: external IP" -m tcp -p tcp -d 172.17.4.101/32 --dport 80 -m addrtype --dst-type LOCAL -j KUBE-SVC-GYQQTB6TY565JPRW
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-GYQQTB6TY565JPRW -m comment --comment default/frontend: -m recent --name KUBE-SEP-ACK5ZHRIFEXLTW3H --rcheck --seconds 180 --reap -j KUBE-SEP-ACK5ZHRIFEXLTW3H
-A KUBE-SVC-GYQQTB6TY565JPRW -m comment --comment default/frontend: -m statistic --mode random --probability 0.33333 -j KUBE-SEP-ACK5ZHRIFEXLTW3H
-A KUBE-SVC-GYQQTB6TY565JPRW -m comment --comment default/frontend: -j KUBE-SEP-ACK5ZHRIFEXLTW3H
-A KUBE-SEP-ACK5ZHRIFEXLTW3H -m comment --comment default/frontend: -s 10.2.59.13/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-ACK5ZHRIFEXLTW3H -m comment --comment default/frontend: -m tcp -p tcp -j DNAT --to-destination 10.2.59.13:80
COMMIT
"""

FLANNEL = """\
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.2.59.0/24 -d 10.2.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.2.0.0/16 -d 10.2.59.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.2.0.0/16 -d 10.2.59.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.2.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.2.0.0/16 -d 10.2.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.2.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.2.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""

COMMANDS = r"""
-t mangle -A PREROUTING -p tcp --sport 1:5 ! --dport 53
-t mangle -A PREROUTING -p tcp --sport :5 --dport 53:
-t mangle -A PREROUTING -p tcp --syn -j MARK --set-mark 5
-t mangle -A PREROUTING -p tcp ! --tcp-flags ALL NONE
-t mangle -A PREROUTING ! -p tcp -s 10.0.0.1/24 ! -d 10.1.0.0/255.255.0.0 -i eth0
-t mangle -A PREROUTING -s 10.0.0.0/255.0.255.0 ! -i eth+
-t mangle -A PREROUTING -p icmp ! --icmp-type fragmentation-needed
-t mangle -A PREROUTING -p icmp --icmp-type ping
-t mangle -A PREROUTING -p 50
-t mangle -A PREROUTING -m comment --comment "with \"quote\" and \\ back"
-t mangle -A PREROUTING -m comment --comment "it's"
-t mangle -A PREROUTING -m conntrack --ctproto tcp --ctorigsrc 1.2.3.4 --ctorigdst 10.0.0.0/8 ! --ctreplsrcport 3
-t mangle -A PREROUTING -m state ! --state INVALID,NEW
-t mangle -A PREROUTING -m addrtype ! --src-type LOCAL --dst-type UNICAST,BROADCAST
-t mangle -A PREROUTING -m physdev --physdev-in eth0 --physdev-is-in
-t mangle -A PREROUTING -m statistic --mode nth --every 3 --packet 1
-t mangle -A PREROUTING -m recent ! --update --seconds 5 --hitcount 3 --rttl --rdest
-t mangle -A PREROUTING -p tcp -m multiport ! --dports 80,443,8000:8010
-t mangle -A PREROUTING -m limit --limit 9000/hour --limit-burst 7
-t mangle -A PREROUTING -j MARK --set-xmark 0x4/0xff
-t mangle -A PREROUTING -j MARK --and-mark 0xff
-t mangle -A PREROUTING -j CONNMARK --restore-mark --nfmask 0xf0 --ctmask 0x0f
-t mangle -A PREROUTING -m connmark ! --mark 5/0xf -j CONNMARK --save-mark
-t mangle -A PREROUTING -j LOG --log-prefix "a b " --log-level debug --log-uid
-t mangle -A PREROUTING ! -f -p tcp -m tcp -m comment --comment a -m tcp --dport 5 -j RETURN
-t nat -A PREROUTING -p tcp -j DNAT --to 1.2.3.4-1.2.3.9:80-90 --random --persistent
-t nat -A PREROUTING -p tcp -j DNAT --to :80
-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 80-90
-t nat -A POSTROUTING -p tcp -j MASQUERADE --to-ports 1024-2000 --random
-t nat -A POSTROUTING -j SNAT --to 1.2.3.4 --random-fully
-A FORWARD -p tcp -j REJECT --reject-with tcp-rst
-A FORWARD -s 1.2.3.4,1.2.3.5 -c 99999 100000 -j DROP
-N GG
-A FORWARD -g GG
-I FORWARD 2 -d 1.1.1.1 -c 55555555 666666666666 -j GG
-R FORWARD 1 -d 1.1.1.2 -j GG
-D FORWARD -s 1.2.3.4 -j DROP
-C FORWARD -d 1.1.1.2 -j GG
-C FORWARD -j GG
-D FORWARD 9
-I FORWARD 9 -j DROP
-R FORWARD 9 -j DROP
-P INPUT DROP
-P GG DROP
-P INPUT FROB
-N GG
-N ACCEPT
-N this-chain-name-is-way-too-long-for-it
-E GG HH
-E HH INPUT
-A HH -j HH
-A FORWARD -j HH
-A FORWARD -j NOSUCH
-A NOSUCH -j DROP
-X HH
-F NOSUCH
-L NOSUCH
-S HH
-nvL FORWARD
-nL FORWARD --line-numbers
-t nat -A PREROUTING -j DROP
-t nat -A PREROUTING -j MASQUERADE
-t nat -A PREROUTING -j DNAT --to 1.2.3.4:80
-t nat -A PREROUTING -j DNAT
-A FORWARD -j REJECT --reject-with frob
-A FORWARD -j REJECT --reject-with tcp-reset
-A FORWARD --dport 80
-A FORWARD -p tcp --dport frob
-A FORWARD -p frob
-A FORWARD -m nosuch
-A FORWARD -m statistic --mode random --probability 1.5
-A FORWARD -m recent --set --rcheck
-A FORWARD -m mark
-A FORWARD -j MARK
-A FORWARD -s 1.2.3.400
-A FORWARD -s 1.2.3.4/33
-A FORWARD extra
-A FORWARD ! ! -s 1.2.3.4
-A FORWARD -s 1.2.3.4 -s 1.2.3.5
-A INPUT -o eth0
-A FORWARD -L
-L -s 1.2.3.4
-t frob -L
--frob
-A
-P INPUT
-V
""".strip().splitlines()

RESTORES = [
    "*nat\n-A FOO -j ACCEPT\nCOMMIT\n",
    "*nat\n:FOO - [0:0]\n-A FOO -j BAR\nCOMMIT\n",
    "*nat\n:FOO - [0:0]\n",
    "*frob\nCOMMIT\n",
    "hello\n",
    "*nat\n:FOO\nCOMMIT\n",
    "*nat\n:INPUT FROB [0:0]\nCOMMIT\n",
    "*nat\n-A PREROUTING -p tcp --frob\nCOMMIT\n",
    "*nat\n-A PREROUTING -j MASQUERADE\nCOMMIT\n",
    "*nat\n:X - [0:0]\n-A X -j MASQUERADE\n-A PREROUTING -j X\nCOMMIT\n",
    "*nat\n-A PREROUTING -t filter -j ACCEPT\nCOMMIT\n",
    "*filter\n:A - [0:0]\n:B - [0:0]\n-A A -j B\n-A B -j A\n-A FORWARD -j A\nCOMMIT\n",
    "*filter\n:A - [5:10]\n[3:4] -A A -j ACCEPT\nCOMMIT\n*nat\n-A FOO -j ACCEPT\nCOMMIT\n",
    "*filter\n:B - [0:0]\n-A FORWARD -j B\n-X B\nCOMMIT\n",
    "*filter\n-D FORWARD -j ACCEPT\nCOMMIT\n",
    "*filter\n-A FORWARD -j ACCEPT\n*nat\nCOMMIT\n",
    "*filter\n[1:2 -A INPUT\nCOMMIT\n",
    "*filter\n"
    + "".join(f":C{n} - [0:0]\n" for n in range(17))
    + "-A INPUT -j C0\n"
    + "".join(f"-A C{n} -j C{n + 1}\n" for n in range(15))
    + "COMMIT\n",
    "*filter\n:A - [0:0]\n-I FORWARD -j ACCEPT\n-I FORWARD 2 -j DROP\n-D FORWARD 1\n-P INPUT DROP\n"
    "COMMIT\n",
]


class View:
    def address_type(self, ip: int) -> AddressType:
        return AddressType.UNICAST

    def primary_address(self, dev: str, dst: int) -> int | None:
        return None

    def invalidate_flows(self) -> None:
        return


def fresh() -> Netfilter:
    return Netfilter(View(), clock=lambda: 0.0, rng=random.Random(1))


def undated(text: str) -> str:
    return re.sub(r" on \w+ \w+ .*\d{4}$", "", text, flags=re.M)


class Real:
    """Runs many commands in one network namespace of its own."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, argv: list[str], stdin: str = "") -> None:
        feed = f"printf %s {shlex.quote(stdin)} | " if stdin else ""
        command = " ".join(shlex.quote(word) for word in argv)
        self._lines.append(
            f'{feed}{command} > "$D/out" 2> "$D/err"; code=$?; cat "$D/out"; '
            'printf "\\001"; cat "$D/err"; printf "\\001%s\\002" "$code"'
        )

    def run(self) -> list[tuple[int, str, str]]:
        script = "\n".join(["D=$(mktemp -d)", *self._lines, 'rm -r "$D"'])
        done = subprocess.run(
            ["unshare", "--net", "sh", "-s"],
            input=script,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        answers = []
        for piece in done.stdout.split("\x02")[:-1]:
            out, err, code = piece.split("\x01")
            answers.append((int(code), out, err))
        return answers


VIEWS = [
    ["iptables", "-t", table, *flags]
    for table in ("filter", "nat")
    for flags in (["-nL"], ["-nvL"], ["-nvxL", "--line-numbers"], ["-L"], ["-S"], ["-vS"])
]


@pytest.mark.parametrize(
    "rules", [KUBE_PROXY_MODERN, KUBE_PROXY_2017, FLANNEL], ids=["modern", "2017", "flannel"]
)
def test_rule_sets_print_as_the_real_one_prints_them(rules: str) -> None:
    real = Real()
    real.add(["iptables-restore", "--noflush"], rules)
    real.add(["iptables-save", "-c"])
    for argv in VIEWS:
        real.add(argv)
    restored, saved, *shown = real.run()

    ours = fresh()
    assert tuple(run_iptables_restore(ours, ["--noflush"], rules)) == restored
    code, text, err = run_iptables_save(ours, ["-c"])
    assert (code, undated(text), err) == (saved[0], undated(saved[1]), saved[2])
    for argv, expected in zip(VIEWS, shown, strict=True):
        assert tuple(run_iptables(ours, argv[1:])) == expected, argv


def test_what_the_real_one_saves_is_a_fixpoint_of_ours() -> None:
    real = Real()
    real.add(["iptables-restore", "--noflush"], KUBE_PROXY_MODERN)
    real.add(["iptables-save", "-c"])
    saved = real.run()[1][1]
    ours = fresh()
    ours.restore(saved, noflush=False, counters=True)
    assert undated(run_iptables_save(ours, ["-c"]).stdout) == undated(saved)


def test_single_commands_answer_alike_errors_included() -> None:
    real = Real()
    for line in COMMANDS:
        real.add(["iptables", *shlex.split(line)])
    real.add(["iptables-save", "-c"])
    *answers, saved = real.run()
    ours = fresh()
    for line, expected in zip(COMMANDS, answers, strict=True):
        assert tuple(run_iptables(ours, shlex.split(line))) == expected, line
    assert undated(run_iptables_save(ours, ["-c"]).stdout) == undated(saved[1])


def test_rule_files_are_taken_or_refused_alike() -> None:
    real = Real()
    for text in RESTORES:
        real.add(["iptables-restore", "--noflush"], text)
        real.add(["iptables-save", "-c"])
    answers = real.run()
    ours = fresh()
    for index, text in enumerate(RESTORES):
        assert tuple(run_iptables_restore(ours, ["--noflush"], text)) == answers[2 * index], text
        saved = run_iptables_save(ours, ["-c"]).stdout
        assert undated(saved) == undated(answers[2 * index + 1][1]), text
