"""The emulated namespace beside a real one: the same commands, the same output."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from emulator.addr import Prefix, parse_ip, parse_mac
from emulator.errors import UsageError
from emulator.netstack.fib import NextHop, Route, RouteType
from emulator.netstack.show.bridge import render_brctl_show, render_bridge_fdb, render_bridge_link
from emulator.netstack.show.ifconfig import render_ifconfig
from emulator.netstack.show.link import (
    render_ip_addr,
    render_ip_addr_brief,
    render_ip_addr_oneline,
    render_ip_link,
    render_ip_link_brief,
)
from emulator.netstack.show.neigh import render_arp, render_ip_neigh
from emulator.netstack.show.route import render_ip_route, render_route_get
from tests.joined_kernels import Segment

pytestmark = pytest.mark.root


def in_new_netns(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a network namespace of its own."""
    return subprocess.run(
        ["unshare", "-n", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def require_iproute2() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: a real network namespace is made to compare with")
    for tool in ("unshare", "ip", "bridge"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    probe = in_new_netns("ip link add br0 type bridge && ip link add vx type vxlan id 1 dstport 1")
    if probe.returncode:
        pytest.skip(f"network namespaces do not work here: {probe.stderr.strip()}")


SETUP = """
set -e
sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1 || true
ip link set lo up
ip link add cni0 address 02:00:00:00:00:01 type bridge
ip link set cni0 mtu 1450
ip link set cni0 up
ip addr add 10.2.1.1/24 brd 10.2.1.255 dev cni0
ip link add veth0 address 02:00:00:00:00:0a type veth peer name veth1 address 02:00:00:00:00:0b
ip link set veth0 master cni0
ip link set veth0 up
ip link set veth1 up
ip addr add 172.17.4.201/24 dev veth1
ip addr add 172.17.4.211/24 dev veth1
ip addr add 10.3.9.2/30 brd + scope link dev veth1
ip link add flannel.1 address 02:00:00:00:00:0f type vxlan id 1 local 172.17.4.201 \
    dev veth1 dstport 8472 nolearning
ip addr add 10.2.1.0/32 dev flannel.1
ip link set flannel.1 up
bridge fdb add 02:00:00:00:00:99 dev flannel.1 dst 172.17.4.202
ip neigh add 10.2.2.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent
ip route add 10.2.2.0/24 via 10.2.2.0 dev flannel.1 onlink
ip route add default via 172.17.4.1
ip route add blackhole 10.9.0.0/16 proto bird
ip route add unreachable 10.8.0.0/16 metric 50
ip route add prohibit 10.7.0.0/16
ip route add 10.6.0.0/16 dev veth1 metric 20 proto static src 172.17.4.211
ip route add 10.6.0.0/16 dev cni0 metric 10 mtu 1300
ip link add v5 address 02:00:00:00:00:15 type veth peer name v6 address 02:00:00:00:00:16
ip link set v5 up
set +e
"""


def emulated():
    net = Segment(1)
    ns = net.kernels[0].netns_add("twin")
    ns.link_set("lo", up=True)
    ns.link_add("cni0", "bridge", mac=parse_mac("02:00:00:00:00:01"))
    ns.link_set("cni0", mtu=1450)
    ns.link_set("cni0", up=True)
    ns.addr_add("cni0", parse_ip("10.2.1.1"), 24, broadcast=parse_ip("10.2.1.255"))
    ns.link_add(
        "veth0",
        "veth",
        mac=parse_mac("02:00:00:00:00:0a"),
        peer="veth1",
        peer_mac=parse_mac("02:00:00:00:00:0b"),
    )
    ns.link_set("veth0", master="cni0")
    ns.link_set("veth0", up=True)
    ns.link_set("veth1", up=True)
    ns.addr_add("veth1", parse_ip("172.17.4.201"), 24)
    ns.addr_add("veth1", parse_ip("172.17.4.211"), 24)
    ns.addr_add("veth1", parse_ip("10.3.9.2"), 30, "link", parse_ip("10.3.9.3"))
    ns.link_add(
        "flannel.1",
        "vxlan",
        mac=parse_mac("02:00:00:00:00:0f"),
        vni=1,
        local=parse_ip("172.17.4.201"),
        dev="veth1",
        port=8472,
        learning=False,
    )
    ns.addr_add("flannel.1", parse_ip("10.2.1.0"), 32)
    ns.link_set("flannel.1", up=True)
    ns.fdb_add("flannel.1", parse_mac("02:00:00:00:00:99"), parse_ip("172.17.4.202"))
    ns.neigh_replace("flannel.1", parse_ip("10.2.2.0"), parse_mac("02:00:00:00:00:99"))
    other = parse_ip("10.2.2.0")
    ns.route_add(Route(Prefix(other, 24), gateway=other, dev="flannel.1", onlink=True))
    ns.route_add(Route(Prefix(0, 0), gateway=parse_ip("172.17.4.1")))
    ns.route_add(Route(Prefix.parse("10.9.0.0/16"), type=RouteType.BLACKHOLE, protocol="bird"))
    ns.route_add(Route(Prefix.parse("10.8.0.0/16"), type=RouteType.UNREACHABLE, metric=50))
    ns.route_add(Route(Prefix.parse("10.7.0.0/16"), type=RouteType.PROHIBIT))
    six = Prefix.parse("10.6.0.0/16")
    source = parse_ip("172.17.4.211")
    ns.route_add(Route(six, dev="veth1", metric=20, protocol="static", src=source))
    ns.route_add(Route(six, dev="cni0", metric=10, mtu=1300))
    ns.link_add(
        "v5",
        "veth",
        mac=parse_mac("02:00:00:00:00:15"),
        peer="v6",
        peer_mac=parse_mac("02:00:00:00:00:16"),
    )
    ns.link_set("v5", up=True)
    return ns


DESTINATIONS = (
    *("10.2.2.9", "172.17.4.5", "172.17.4.201", "8.8.8.8", "127.0.0.1", "172.17.4.255"),
    *("10.2.1.0", "10.2.1.255", "10.6.1.1", "10.3.9.1"),
)


def test_dumps_are_the_same_text() -> None:
    require_iproute2()
    gets = "\n".join(f"ip route get {dst}" for dst in DESTINATIONS)
    result = in_new_netns(
        f"{SETUP}\nip -4 addr\necho ==\nip link\necho ==\nip route\necho ==\n"
        "ip route show table local\necho ==\nip neigh\necho ==\n"
        f"bridge fdb show dev flannel.1\necho ==\n{gets}"
    )
    real = result.stdout.split("==\n")
    assert len(real) == 7, result.stderr
    ns = emulated()
    links, addrs = ns.links(), ns.addrs()
    assert render_ip_addr(links, addrs, inet_only=True) == real[0]
    # A bridge this kernel calls UP may still be listening to its first port.
    assert render_ip_link(links) == real[1]
    assert render_ip_route(ns.routes()) == real[2]
    ours = sorted(render_ip_route(ns.routes("local")).splitlines())
    assert ours == sorted(line for line in real[3].splitlines() if line)
    assert render_ip_neigh(ns.neighs()) == real[4]
    permanent = [line for line in real[5].splitlines() if "dst" in line]
    assert render_bridge_fdb(ns.fdb(), dev="flannel.1").splitlines() == permanent
    assert "".join(render_route_get(ns, parse_ip(dst))[0] for dst in DESTINATIONS) == real[6]


ERRORS = (
    ("ip link add cni0 type bridge", lambda ns: ns.link_add("cni0", "bridge")),
    ("ip link del nope", lambda ns: ns.link_del("nope")),
    ("ip addr add 10.2.1.1/24 dev cni0", lambda ns: ns.addr_add("cni0", 0x0A020101, 24)),
    ("ip addr del 10.2.1.7/24 dev cni0", lambda ns: ns.addr_del("cni0", 0x0A020107, 24)),
    (
        "ip route add 10.9.0.0/16 dev veth1",
        lambda ns: ns.route_add(Route(Prefix.parse("10.9.0.0/16"), dev="veth1")),
    ),
    (
        "ip route add 1.1.1.0/24 via 9.9.9.9 dev veth1",
        lambda ns: ns.route_add(Route(Prefix.parse("1.1.1.0/24"), gateway=0x09090909, dev="veth1")),
    ),
    (
        "ip route add 1.1.1.0/24 via 172.17.4.201",
        lambda ns: ns.route_add(Route(Prefix.parse("1.1.1.0/24"), gateway=0xAC1104C9)),
    ),
    (
        "ip route add 1.1.1.0/24 via 10.2.2.5",
        lambda ns: ns.route_add(Route(Prefix.parse("1.1.1.0/24"), gateway=0x0A020205)),
    ),
    (
        "ip route add 1.1.1.0/24 via 172.17.4.9 src 7.7.7.7",
        lambda ns: ns.route_add(
            Route(Prefix.parse("1.1.1.0/24"), gateway=0xAC110409, src=0x07070707)
        ),
    ),
    (
        "ip route add 1.1.1.0/24 dev v6",
        lambda ns: ns.route_add(Route(Prefix.parse("1.1.1.0/24"), dev="v6")),
    ),
    (
        "ip route add 1.1.1.0/24 via 2.2.2.2 dev v6 onlink",
        lambda ns: ns.route_add(
            Route(Prefix.parse("1.1.1.0/24"), gateway=0x02020202, dev="v6", onlink=True)
        ),
    ),
    (
        "ip route del 4.4.4.0/24",
        lambda ns: ns.route_del(Route(Prefix.parse("4.4.4.0/24"))),
    ),
    ("ip neigh del 1.2.3.4 dev veth1", lambda ns: ns.neigh_del("veth1", 0x01020304)),
    (
        "bridge fdb del 02:00:00:00:00:98 dev flannel.1",
        lambda ns: ns.fdb_del("flannel.1", parse_mac("02:00:00:00:00:98")),
    ),
    (
        "bridge fdb add 02:00:00:00:00:99 dev flannel.1 dst 1.2.3.4",
        lambda ns: ns.fdb_add("flannel.1", parse_mac("02:00:00:00:00:99"), 0x01020304),
    ),
    ("ip link set lo master cni0", lambda ns: ns.link_set("lo", master="cni0")),
    ("ip link set v5 master v6", lambda ns: ns.link_set("v5", master="v6")),
    ("ip link set v5 mtu 10", lambda ns: ns.link_set("v5", mtu=10)),
    ("ip link set v5 mtu 99999", lambda ns: ns.link_set("v5", mtu=99999)),
    ("ip link del lo", lambda ns: ns.link_del("lo")),
    (
        "ip link add vx9 type vxlan id 1 dstport 8472",
        lambda ns: ns.link_add("vx9", "vxlan", vni=1, port=8472),
    ),
    (
        "ip neigh add 1.1.1.1 dev veth1 nud permanent",
        lambda ns: ns.neigh_replace("veth1", 0x01010101, None),
    ),
    (
        "ip link set v5 name veth1",
        lambda ns: ns.link_set("v5", new_name="veth1"),
    ),
)


def test_errors_are_the_same_text() -> None:
    require_iproute2()
    script = "\n".join(f"echo '## {n}' >&2; {cmd}" for n, (cmd, _) in enumerate(ERRORS))
    result = in_new_netns(f"{SETUP}\n{script}")
    real = [part.strip() for part in re.split(r"^## \d+\n", result.stderr, flags=re.M)[1:]]
    ns = emulated()
    ours = []
    for _, call in ERRORS:
        try:
            call(ns)
        except UsageError as error:
            ours.append(str(error))
        else:
            ours.append("")
    said = {cmd: text for (cmd, _), text in zip(ERRORS, ours, strict=True)}
    assert said == {cmd: text for (cmd, _), text in zip(ERRORS, real, strict=True)}


MULTIPATH = """
ip link set lo up
ip link add e0 type veth peer name e1
ip link add d0 type veth peer name d1
for dev in e0 e1 d0 d1; do ip link set $dev up; done
ip addr add 10.0.0.1/24 dev e0
ip route add 10.5.0.0/16 proto bird \
  nexthop via 10.0.0.2 dev e0 weight 1 nexthop via 10.9.0.3 dev d0 weight 2 onlink
ip route add 10.3.0.0/16 src 10.0.0.1 metric 7 nexthop dev e0 nexthop dev d0
ip route add blackhole 10.6.0.0/16 proto 80
ip route add 10.7.0.0/16 proto 12 nexthop via 10.0.0.9
ip route
echo --
ip link set d0 down
ip route
echo --
ip link set d0 up
ip link set e1 down
# Linux looks at carriers at its leisure, once a second.
for i in $(seq 60); do ip route | grep -q linkdown && break; sleep 0.05; done
ip route
echo --
ip link set e1 up
for i in $(seq 60); do ip route | grep -q linkdown || break; sleep 0.05; done
ip route del 10.5.0.0/16 via 10.0.0.2
ip route
echo --
ip link del d0
ip route
"""


def test_routes_with_several_ways_are_those_of_linux() -> None:
    require_iproute2()
    real = in_new_netns(MULTIPATH)
    ns = Segment(1).kernels[0].netns_add("ways")
    ns.link_set("lo", up=True)
    for near, far in (("e0", "e1"), ("d0", "d1")):
        ns.link_add(near, "veth", peer=far)
        ns.link_set(near, up=True)
        ns.link_set(far, up=True)
    ns.addr_add("e0", parse_ip("10.0.0.1"), 24)
    ways = (
        NextHop("e0", parse_ip("10.0.0.2")),
        NextHop("d0", parse_ip("10.9.0.3"), weight=2, onlink=True),
    )
    five = Prefix.parse("10.5.0.0/16")
    ns.route_add(Route(five, nexthops=ways, protocol="bird"))
    ns.route_add(Route(Prefix.parse("10.3.0.0/16"), src=parse_ip("10.0.0.1"), metric=7,
                       nexthops=(NextHop("e0"), NextHop("d0"))))  # fmt: skip
    ns.route_add(Route(Prefix.parse("10.6.0.0/16"), type=RouteType.BLACKHOLE, protocol="80"))
    single = (NextHop(gateway=parse_ip("10.0.0.9")),)
    ns.route_add(Route(Prefix.parse("10.7.0.0/16"), nexthops=single, protocol="bird"))
    shown = [render_ip_route(ns.routes())]
    ns.link_set("d0", up=False)
    shown.append(render_ip_route(ns.routes()))
    ns.link_set("d0", up=True)
    ns.link_set("e1", up=False)
    shown.append(render_ip_route(ns.routes()))
    ns.link_set("e1", up=True)
    ns.route_del(Route(five, gateway=parse_ip("10.0.0.2")))
    shown.append(render_ip_route(ns.routes()))
    ns.link_del("d0")
    shown.append(render_ip_route(ns.routes()))
    assert "--\n".join(shown) == real.stdout, real.stderr


OTHERS = {
    "ip -br link": lambda ns: render_ip_link_brief(ns.links()),
    "ip -br addr": lambda ns: render_ip_addr_brief(ns.links(), ns.addrs()),
    "ip -o -4 addr": lambda ns: render_ip_addr_oneline(ns.addrs()),
    "ip -o link": lambda ns: render_ip_link(ns.links(), oneline=True),
    "ip addr": lambda ns: render_ip_addr(ns.links(), ns.addrs()),
    "ip -s link": lambda ns: render_ip_link(ns.links(), statistics=True),
    "bridge link": lambda ns: render_bridge_link(ns.links()),
    "brctl show": lambda ns: render_brctl_show(ns.links()),
    "ifconfig": lambda ns: render_ifconfig(ns.links(), ns.addrs()),
    "ifconfig -a": lambda ns: render_ifconfig(ns.links(), ns.addrs(), everything=True),
    "arp -n": lambda ns: render_arp(ns.neighs()),
}


def without_traffic(text: str) -> str:
    """What a real device has sent by itself differs every time."""
    text = re.sub(r"(?m)^ +\d+ +\d+ +0 +\d+ +0 +0 $", "counted", text)
    text = re.sub(r"X packets \d+  bytes \d+ \([^)]*\)", "X packets", text)
    return re.sub(r"dropped \d+", "dropped", text)


def test_the_other_tools_print_the_same_text() -> None:
    require_iproute2()
    known = [command for command in OTHERS if shutil.which(command.split()[0])]
    real = in_new_netns(
        f"{SETUP}\nip neigh add 10.2.1.9 lladdr 02:00:00:00:00:77 dev cni0 nud noarp\n"
        + "echo ==\n".join(f"{command}\n" for command in known)
    )
    ns = emulated()
    said = {command: without_traffic(OTHERS[command](ns)) for command in known}
    printed = (without_traffic(text) for text in real.stdout.split("==\n"))
    assert said == dict(zip(known, printed, strict=True)), real.stderr
