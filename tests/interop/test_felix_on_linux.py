# ruff: noqa: E501 - the program inside the namespace is one text
"""felix's sets and rules on a real kernel: taken, printed and obeyed as on ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from agents.calico.felix.compute import compute
from agents.calico.felix.reading import read_state
from agents.calico.felix.tables import restore_text
from agents.calico.resources import new_resource
from agents.calico.validation import prepare
from emulator.netstack.netfilter import run_iptables_save
from emulator.netstack.netfilter.rules import Table
from tests.calico_policy_world import NODE, PODS, World, address_of

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("iptables-restore", "ipset", "unshare", "ip")),
        reason="needs iptables, ipset, unshare and ip",
    ),
]

WEB, API = {"selector": "app == 'web'"}, {"selector": "app == 'api'"}
POLICIES = [
    new_resource(
        "NetworkPolicy",
        "knp.default.api",
        {
            "selector": "app == 'api'",
            "order": 1000.0,
            "types": ["Ingress"],
            "ingress": [
                {
                    "action": "Allow",
                    "protocol": "UDP",
                    "source": WEB,
                    "destination": {"ports": ["dns", 443, "8000:8100"]},
                }
            ],
        },
        namespace="shop",
    ),
    new_resource(
        "GlobalNetworkPolicy",
        "default.bank",
        {
            "namespaceSelector": "team == 'b'",
            "order": 10,
            "types": ["Ingress", "Egress"],
            "ingress": [
                {"action": "Deny", "source": {"nets": ["192.168.0.2/32", "10.0.0.0/8"]}},
                {"action": "Log", "protocol": "UDP", "destination": {"ports": [443]}},
                {
                    "action": "Allow",
                    "protocol": "UDP",
                    "source": {"notSelector": "app == 'web'"},
                    "destination": {"notPorts": [80]},
                },
            ],
            "egress": [
                {
                    "action": "Allow",
                    "protocol": "UDP",
                    "source": {},
                    "destination": {
                        "nets": ["192.168.0.0/24", "172.17.0.0/16"],
                        "notNets": ["192.168.0.2/32"],
                        "ports": [53, 443],
                    },
                },
                {"action": "Pass", "protocol": "ICMP", "icmp": {"type": 8}},
            ],
        },
    ),
]
FLOWS = [
    (src, dst, port)
    for src in (*PODS, "host")
    for dst in (*PODS, "host")
    for port in (53, 80, 443, 8080)
    if src != dst
]
# Runs in new network and mount namespaces: a node with pods as Calico wires them.
NODE_PROGRAM = r"""
import ctypes, json, os, select, socket, subprocess, sys
job = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
def sh(text, **more):
    return subprocess.run(text, shell=True, check=True, capture_output=True, text=True, **more).stdout
sh("mount -t tmpfs tmpfs /run && mkdir -p /run/netns /var/run/netns")
sh("ip link set lo up; ip link add u0 type veth peer name u1; ip link set u1 up; ip link set u0 up;"
   "ip addr add %s/24 dev u0; ip route add default via 172.17.4.1;"
   "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0" % job["node"])
for name, (address, cali) in job["pods"].items():
    sh(f"ip netns add {name}; ip link add {cali} type veth peer name eth0 netns {name};"
       f"ip link set {cali} address ee:ee:ee:ee:ee:ee up; sysctl -qw net.ipv4.conf.{cali}.proxy_arp=1"
       f" net.ipv4.neigh.{cali}.proxy_delay=0 net.ipv4.conf.{cali}.rp_filter=0;"
       f"ip route add {address} dev {cali} scope link;"
       f"ip -n {name} link set lo up; ip -n {name} link set eth0 up;"
       f"ip -n {name} addr add {address}/32 dev eth0; ip -n {name} route add 169.254.1.1 dev eth0;"
       f"ip -n {name} route add default via 169.254.1.1")
sh("ipset restore", input=job["sets"])
for text in job["rules"]:
    sh("iptables-restore --noflush", input=text)
saved = sh("iptables-save")
own = os.open("/proc/self/ns/net", os.O_RDONLY)
def inside(name):
    fd = own if name == "host" else os.open(f"/run/netns/{name}", os.O_RDONLY)
    if libc.setns(fd, 0):
        raise OSError(ctypes.get_errno(), name)
listening = {}
for name in [*job["pods"], "host"]:
    inside(name)
    for port in job["ports"]:
        sock = listening[name, port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", port))
        sock.setblocking(False)
senders = []
for number, (src, dst, port) in enumerate(job["flows"]):
    inside(src)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    address = job["node"] if dst == "host" else job["pods"][dst][0]
    try:
        sock.sendto(b"%d" % number, (address, port))
    except OSError:
        pass
    senders.append(sock)
got = []
while select.select(list(listening.values()), [], [], 0.5)[0]:
    for sock in listening.values():
        try:
            got.append(int(sock.recv(99)))
        except BlockingIOError:
            pass
json.dump({"saved": saved, "got": sorted(got)}, sys.stdout)
"""


def comparable(text: str) -> str:
    """Without dates, and the counters of policies, which nf_tables does not keep."""
    text = re.sub(r" on \w+ \w+ .*\d{4}$", "", text, flags=re.M)
    return re.sub(r"^(:\S+ \S+) \[\d+:\d+\]$", r"\1", text, flags=re.M)


def test_a_real_kernel_takes_prints_and_obeys_felixs_rules_as_ours_does() -> None:
    ours = World()
    policies = [prepare(policy) for policy in POLICIES]
    ours.install(policies)
    netfilter = ours.root.netfilter
    state = read_state(ours.items(policies), "kube-0")
    desired = compute(state)
    job = {
        "node": NODE,
        "pods": {name: (address_of(name), f"cali{PODS[name][2]:011d}") for name in PODS},
        "ports": [53, 80, 443, 8080],
        "flows": FLOWS,
        "sets": "".join(
            f"create {name} {each.kind}\n" + "".join(f"add {name} {m}\n" for m in each.members)
            for name, each in desired.sets.items()
        ),
        "rules": [
            restore_text(Table(name), name, rules, insert=True)
            for name, rules in desired.tables.items()
        ],
    }
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-c", NODE_PROGRAM],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    expected = [
        number
        for number, (src, dst, port) in enumerate(FLOWS)
        if ours.passes(src, dst, "UDP", port)
    ]
    assert [FLOWS[n] for n in answer["got"]] == [FLOWS[n] for n in expected]
    assert 10 < len(expected) < len(FLOWS) - 10
    saved = run_iptables_save(netfilter).stdout
    assert comparable(answer["saved"]) == comparable(saved)
