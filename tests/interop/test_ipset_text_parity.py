"""The same words to Debian's ipset 7.17 on a real kernel and to ours: the same answers."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess

import pytest

from emulator.netstack.kernel import Kernel
from emulator.netstack.netfilter import run_iptables
from emulator.netstack.netfilter.ipset import IpSets
from emulator.netstack.netfilter.ipset_command import run_ipset

STORY = """\
create a hash:ip
create a hash:ip
create a hash:net
create -exist a hash:ip
add a 10.0.0.1
add a 10.0.0.1
add a 10.0.0.1 -exist
add a 10.0.0.0/30
add a 10.1.0.1-10.1.0.3
del a 10.9.0.1
del a 10.9.0.1 -exist
test a 10.0.0.1
test a 10.9.0.1
add a foo
add a 300.1.1.1
add a 1.1.1.1,2
add a 1.2.3.4/33
add a 1.2.3.4/x
create n hash:net maxelem 4 family inet hashsize 100
add n 10.0.0.0/8
add n 10.1.2.3/16
add n 1.2.3.4
add n 0.0.0.0/0
add n 10.2.0.0/16 nomatch
add n 10.3.0.0/16
add n 10.0.0.0/8 nomatch
test n 10.2.0.1
test n 10.3.0.1
test n 10.2.0.0/17
test n 10.0.0.0/7
create r hash:net
add r 10.0.0.1-10.0.0.6
add r 192.168.255.250-192.169.1.3
create p hash:ip,port
add p 10.0.0.1,80
add p 10.0.0.1,udp:53
add p 10.0.0.1,tcp:80-82
add p 10.0.0.3,tcp:90-92
add p 10.0.0.1,sctp:99
add p 10.0.0.2,icmp:8/0
add p 10.0.0.2,icmp:echo-reply
add p 10.0.0.2,icmp:3/1
add p 10.0.0.2,icmp:200/3
add p 10.0.0.2,icmp:foo
add p 10.0.0.1,foo:80
add p 10.0.0.1
test p 10.0.0.1,80
test p 10.0.0.1,81
create np hash:net,port
add np 10.0.0.0/24,tcp:80
test np 10.0.0.7,tcp:80
test np 10.0.0.7,udp:80
create b bitmap:port range 10-20
create c bitmap:port
add b 12
add b 30
add b 12-14
del b 11
list
save
list -n
list -t
list a -o save
list -s p
list nosuch
list a b
list -o json
add nosuch 1.1.1.1
add nosuch
add
del a
swap a n
create a2 hash:ip
add a2 7.7.7.7
swap a a2
swap a nosuch
swap a
rename a zz
rename a2 zz
flush p
flush nosuch
list zz
destroy nosuch
destroy zz p
destroy zz
create a hash:ip foo bar
create x hash:ip foo bar
create x hash:ip maxelem
create q hash:foo
create thisnameisverylongmorethanthirtyone hash:ip
add a 1.1.1.1 timeout 5
foo
create
destroy
save
"""


def _ipset() -> str:
    found = shutil.which("ipset")
    if found is None or shutil.which("unshare") is None:
        return ""
    return subprocess.run([found, "version"], capture_output=True, text=True, check=False).stdout


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network namespace"),
    pytest.mark.skipif(
        not _ipset().startswith("ipset v7.17"), reason="needs ipset v7.17, whose texts these are"
    ),
]


def _blocks(text: str) -> str:
    """Output without what differs from run to run, members in order."""
    text = re.sub(r"initval 0x[0-9a-f]{8}", "initval X", text)
    text = re.sub(r"Size in memory: \d+", "Size in memory: X", text)
    out = []
    for block in text.split("\n\n"):
        head, members, tail = block.partition("Members:\n")
        lines = tail.split("\n") if members else head.split("\n")
        kept = sorted(lines)
        out.append((head if members else "", members, kept))
    return repr(out)


def real(lines: list[str]) -> list[tuple[int, str, str]]:
    script = ""
    for line in lines:
        script += f"ipset {line} 2>/tmp/err.$$; echo \"<$?>\"; cat /tmp/err.$$; echo '<end>'\n"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script + "rm -f /tmp/err.$$"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answers = []
    for part in done.stdout.split("<end>\n")[:-1]:
        out, code, err = re.fullmatch(r"(.*)<(\d+)>\n(.*)", part, re.DOTALL).groups()
        answers.append((int(code), _blocks(out), err))
    return answers


def ours(lines: list[str]) -> list[tuple[int, str, str]]:
    sets = IpSets(rng=random.Random(1), changed=lambda: None, references=lambda _: 0)
    answers = []
    for line in lines:
        result = run_ipset(sets, shlex.split(line))
        answers.append((result.exit_code, _blocks(result.stdout), result.stderr))
    return answers


def test_a_long_story_of_commands_gets_the_same_answers() -> None:
    lines = STORY.splitlines()
    for line, theirs, mine in zip(lines, real(lines), ours(lines), strict=True):
        assert mine == theirs, f"ipset {line}"


@pytest.mark.parametrize("kind", ["hash:ip", "hash:net", "hash:ip,port", "hash:net,port"])
def test_random_members_are_found_alike(kind: str) -> None:
    rng = random.Random(kind)

    def member(*, network: bool) -> str:
        text = f"10.0.{rng.randrange(4)}.{rng.choice([0, 1, 64, 128])}"
        if network and "net" in kind:
            text += f"/{rng.choice([8, 16, 24, 25, 26, 32])}"
        if "port" in kind:
            text += f",{rng.choice(['tcp', 'udp'])}:{rng.choice([80, 81])}"
        return text

    lines = [f"create s {kind}"]
    for _ in range(120):
        verb = rng.choice(["add", "add", "del", "test", "test"])
        line = f"{verb} s {member(network=verb != 'test')}"
        if verb == "add" and "net" in kind and rng.random() < 0.3:
            line += " nomatch"
        lines.append(line)
    lines.append("list")
    for line, theirs, mine in zip(lines, real(lines), ours(lines), strict=True):
        assert mine == theirs, f"ipset {line}"


RULES = """\
ipset create a hash:ip
ipset create p hash:ip,port
iptables -A FORWARD -m set --match-set a src -j DROP
iptables -A FORWARD -m set ! --match-set p dst,dst -j ACCEPT
iptables -A FORWARD -m set --match-set a src -m set --match-set p dst,src
iptables -A FORWARD -m set --match-set nosuch src -j DROP
iptables -A FORWARD -m set --match-set a foo -j DROP
iptables -A FORWARD -m set --match-set a src,dst,src,dst,src,dst,src -j DROP
iptables -A FORWARD -m set -j DROP
iptables -A FORWARD -m set --match-set a
iptables -A FORWARD -m set --match-set a src --match-set p src
iptables -t raw -A PREROUTING -m rpfilter --invert -j DROP
iptables -t mangle -A PREROUTING -m rpfilter --loose --validmark --accept-local -j DROP
iptables -A FORWARD -m rpfilter -j DROP
iptables -t raw -A OUTPUT -m rpfilter -j DROP
iptables -t nat -A POSTROUTING -m addrtype ! --src-type LOCAL --limit-iface-out -j MASQUERADE
iptables -A OUTPUT -m addrtype --src-type LOCAL --limit-iface-in
iptables -t nat -A PREROUTING -m addrtype --src-type LOCAL --limit-iface-out
iptables -A FORWARD -m addrtype --src-type LOCAL --limit-iface-in
iptables -nvL FORWARD
iptables -t raw -L
iptables -t mangle -nL PREROUTING
iptables -S
iptables -t nat -S
ipset destroy a
ipset rename a b
ipset list -t
iptables -D FORWARD -m set --match-set a src -j DROP
iptables -F
ipset destroy a
ipset destroy
ipset list
"""


def test_rules_that_look_into_sets_print_and_hold_them_alike() -> None:
    script = "".join(
        f'{line} 2>/tmp/err.$$; echo "<$?>"; cat /tmp/err.$$; echo "<end>"\n'
        for line in RULES.splitlines()
    )
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script + "rm -f /tmp/err.$$"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    kernel = Kernel("twin", clock=lambda: 0.0, rng=random.Random(1))
    netfilter = kernel.root.netfilter
    parts = done.stdout.split("<end>\n")[:-1]
    for line, part in zip(RULES.splitlines(), parts, strict=True):
        out, code, err = re.fullmatch(r"(.*)<(\d+)>\n(.*)", part, re.DOTALL).groups()
        words = shlex.split(line)
        if words[0] == "ipset":
            result = run_ipset(netfilter.sets, words[1:])
        else:
            result = run_iptables(netfilter, words[1:])
        assert (result.exit_code, _blocks(result.stdout), result.stderr) == (
            int(code), _blocks(out), err
        ), line  # fmt: skip
