"""What ip, bridge, brctl and ifconfig print of a namespace."""

from __future__ import annotations

import dataclasses

from emulator.addr import Prefix, parse_ip, parse_mac
from emulator.netstack.fib import Route, RouteType
from emulator.netstack.records import AddrInfo, LinkInfo, NeighInfo, NeighState
from emulator.netstack.show.bridge import render_brctl_show, render_bridge_fdb
from emulator.netstack.show.ifconfig import render_ifconfig_one
from emulator.netstack.show.link import render_ip_addr, render_ip_link
from emulator.netstack.show.neigh import render_arp, render_ip_neigh
from emulator.netstack.show.route import render_ip_route, render_route_get
from tests.joined_kernels import Segment

KUBE_0 = (
    Route(Prefix(0, 0), "eth0", gateway=parse_ip("10.10.64.1")),
    Route(
        Prefix.parse("10.10.64.0/20"),
        "eth0",
        src=parse_ip("10.10.68.222"),
        protocol="kernel",
    ),
    Route(
        Prefix.parse("192.168.126.64/26"),
        "tunl0",
        gateway=parse_ip("10.10.95.205"),
        protocol="bird",
        onlink=True,
    ),
    Route(Prefix.parse("192.168.145.64/26"), protocol="bird", type=RouteType.BLACKHOLE),
    Route(Prefix.parse("192.168.145.65"), "cali6edd91665ff"),
)


def test_ip_route_of_2017_has_its_double_blanks() -> None:
    assert render_ip_route(KUBE_0, style="2017") == (
        "default via 10.10.64.1 dev eth0 \n"
        "10.10.64.0/20 dev eth0  proto kernel  scope link  src 10.10.68.222 \n"
        "192.168.126.64/26 via 10.10.95.205 dev tunl0  proto bird onlink \n"
        "blackhole 192.168.145.64/26  proto bird \n"
        "192.168.145.65 dev cali6edd91665ff  scope link \n"
    )


def test_ip_route_of_today() -> None:
    assert render_ip_route(KUBE_0) == (
        "default via 10.10.64.1 dev eth0 \n"
        "10.10.64.0/20 dev eth0 proto kernel scope link src 10.10.68.222 \n"
        "192.168.126.64/26 via 10.10.95.205 dev tunl0 proto bird onlink \n"
        "blackhole 192.168.145.64/26 proto bird \n"
        "192.168.145.65 dev cali6edd91665ff scope link \n"
    )
    assert render_ip_route(KUBE_0, dev="tunl0") == (
        "192.168.126.64/26 via 10.10.95.205 proto bird onlink \n"
    )


def test_ip_addr_in_a_pod_as_the_tutorial_shows_it() -> None:
    eth0 = LinkInfo(
        *(3, "eth0", "veth", parse_mac("0a:58:0a:02:3b:0d"), 1450, True, True),
        operstate="UP",
        txqlen=0,
        link_index=18,
        link_netnsid=0,
    )
    lo = LinkInfo(1, "lo", "lo", bytes(6), 65536, True, True)
    addrs = (
        AddrInfo(1, "lo", parse_ip("127.0.0.1"), 8, "host"),
        AddrInfo(3, "eth0", parse_ip("10.2.59.13"), 24),
    )
    assert render_ip_addr((lo, eth0), addrs, style="2017") == (
        "1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default"
        " qlen 1000\n"
        "    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00\n"
        "    inet 127.0.0.1/8 scope host lo\n"
        "       valid_lft forever preferred_lft forever\n"
        "3: eth0@if18: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UP group"
        " default \n"
        "    link/ether 0a:58:0a:02:3b:0d brd ff:ff:ff:ff:ff:ff\n"
        "    inet 10.2.59.13/24 scope global eth0\n"
        "       valid_lft forever preferred_lft forever\n"
    )


def test_ifconfig_of_the_bridge_as_the_tutorial_shows_it() -> None:
    cni0 = LinkInfo(
        *(5, "cni0", "bridge", parse_mac("0a:58:0a:02:3b:01"), 1450, True, True),
        rx_packets=160844,
        rx_bytes=30379299,
        tx_packets=166698,
        tx_bytes=145605089,
    )
    assert render_ifconfig_one(cni0, (AddrInfo(5, "cni0", parse_ip("10.2.59.1"), 24),)) == (
        "cni0: flags=4163<UP,BROADCAST,RUNNING,MULTICAST>  mtu 1450\n"
        "        inet 10.2.59.1  netmask 255.255.255.0  broadcast 0.0.0.0\n"
        "        ether 0a:58:0a:02:3b:01  txqueuelen 1000  (Ethernet)\n"
        "        RX packets 160844  bytes 30379299 (28.9 MiB)\n"
        "        RX errors 0  dropped 0  overruns 0  frame 0\n"
        "        TX packets 166698  bytes 145605089 (138.8 MiB)\n"
        "        TX errors 0  dropped 0 overruns 0  carrier 0  collisions 0\n\n"
    )


def test_brctl_show() -> None:
    cni0 = LinkInfo(5, "cni0", "bridge", parse_mac("0a:58:0a:02:3b:01"), 1450, True, True)
    ports = [
        LinkInfo(n, name, "veth", bytes(6), 1450, True, True, master="cni0")
        for n, name in ((9, "veth1c1c704b"), (8, "veth0fb8bcdf"))
    ]
    docker0 = dataclasses.replace(cni0, name="docker0", mac=parse_mac("02:42:a4:56:d7:04"))
    assert render_brctl_show((docker0, cni0, *ports)) == (
        "bridge name\tbridge id\t\tSTP enabled\tinterfaces\n"
        "cni0\t\t8000.0a580a023b01\tno\t\tveth0fb8bcdf\n"
        "\t\t\t\t\t\t\tveth1c1c704b\n"
        "docker0\t\t8000.0242a456d704\tno\t\t\n"
    )


def test_a_flannel_node() -> None:
    net = Segment()
    root = net.kernels[0].root
    mac = net.kernels[1].root.link("flannel.1").mac.hex(":")
    assert "10.2.2.0/24 via 10.2.2.0 dev flannel.1 onlink \n" in render_ip_route(root.routes())
    assert render_bridge_fdb(root.fdb(), dev="flannel.1") == (
        f"{mac} dst 172.17.4.202 self permanent\n"
    )
    assert render_ip_neigh(root.neighs(), dev="flannel.1") == f"10.2.2.0 lladdr {mac} PERMANENT \n"
    assert render_route_get(root, parse_ip("10.2.2.7")) == (
        "10.2.2.7 via 10.2.2.0 dev flannel.1 src 10.2.1.0 uid 0 \n    cache \n",
        "",
    )
    assert "3: flannel.1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450" in render_ip_link(
        root.links()
    )


def test_arp_shows_no_entry_of_a_device_without_arp_and_forgets_what_failed() -> None:
    mac = parse_mac("02:00:00:00:00:01")
    neighs = [
        NeighInfo("eth0", parse_ip("10.0.0.1"), mac, NeighState.REACHABLE),
        NeighInfo("eth0", parse_ip("10.0.0.2"), mac, NeighState.FAILED),
        NeighInfo("eth0", parse_ip("10.0.0.3"), None, NeighState.INCOMPLETE),
        NeighInfo("tunl0", parse_ip("10.0.0.4"), mac, NeighState.NOARP),
        NeighInfo("eth0", parse_ip("10.0.0.5"), mac, NeighState.PERMANENT),
    ]
    assert render_arp(neighs).splitlines()[1:] == [
        "10.0.0.1                 ether   02:00:00:00:00:01   C                     eth0",
        "10.0.0.2                         (incomplete)                              eth0",
        "10.0.0.3                         (incomplete)                              eth0",
        "10.0.0.5                 ether   02:00:00:00:00:01   CM                    eth0",
    ]
