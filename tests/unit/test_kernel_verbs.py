"""ip link, ip addr and ip route as verbs: what they make and take along."""

from __future__ import annotations

import errno
import random

import pytest

from emulator.addr import Prefix, parse_ip
from emulator.errors import UsageError
from emulator.netstack.fib import Route, RouteType
from emulator.netstack.kernel import Kernel
from emulator.netstack.show.link import render_ip_link
from emulator.netstack.show.route import render_ip_route
from emulator.netstack.sock.tcp import Endpoint


@pytest.fixture
def kernel() -> Kernel:
    return Kernel("node-0", clock=lambda: 0.0, rng=random.Random(1))


def table(ns, name: str = "main") -> str:
    return render_ip_route(ns.routes(name))


def test_a_new_namespace_has_lo_down_and_up_brings_localhost(kernel: Kernel) -> None:
    pod = kernel.netns_add("pod")
    assert [(link.name, link.up) for link in pod.links()] == [("lo", False)]
    assert pod.addrs() == ()
    pod.link_set("lo", up=True)
    assert "local 127.0.0.0/8 dev lo proto kernel scope host src 127.0.0.1 \n" in table(
        pod, "local"
    )


def test_the_tutorials_pod_is_index_3_and_its_peer_18(kernel: Kernel) -> None:
    root, pod = kernel.root, kernel.netns_add("pod")
    while root.links()[-1].index < 17:
        root.link_add(f"d{root.links()[-1].index}", "dummy")
    # The plugin of 2017 made the pair in the container and moved one end out.
    pod.link_add("eth0", "veth", peer="veth0fb8bcdf")
    pod.link_set("veth0fb8bcdf", netns=root)
    # Index 2, which it had inside, is taken outside.
    assert root.link("veth0fb8bcdf").index == 18
    assert "3: eth0@if18: " in render_ip_link(pod.links())


def test_a_moved_veth_takes_a_free_index_and_loses_its_addresses(kernel: Kernel) -> None:
    root, pod = kernel.root, kernel.netns_add("pod")
    root.link_add("a", "veth", peer="b")
    root.link_set("b", up=True)
    root.addr_add("b", parse_ip("10.0.0.1"), 24)
    root.link_set("b", netns="pod", new_name="eth0")
    assert [link.name for link in pod.links()] == ["lo", "eth0"]
    assert not pod.link("eth0").up
    assert [a for a in (*pod.addrs(), *root.addrs()) if a.dev != "lo"] == []
    assert table(root) == ""
    assert root.link("a").link_netnsid == 0


def test_deleting_a_namespace_deletes_the_other_ends(kernel: Kernel) -> None:
    root, pod = kernel.root, kernel.netns_add("pod")
    root.link_add("cni0", "bridge")
    pod.link_add("eth0", "veth", peer="veth1", peer_ns=root)
    root.link_set("veth1", master="cni0")
    kernel.netns_del("pod")
    assert [link.name for link in root.links()] == ["lo", "cni0"]
    with pytest.raises(UsageError, match="No such file or directory"):
        kernel.netns("pod")


def test_down_takes_routes_and_up_brings_only_the_connected_ones_back(kernel: Kernel) -> None:
    root = kernel.root
    root.link_add("d0", "dummy")
    root.link_set("d0", up=True)
    root.addr_add("d0", parse_ip("10.0.0.1"), 24)
    root.route_add(Route(Prefix.parse("10.9.0.0/16"), gateway=parse_ip("10.0.0.9")))
    root.link_set("d0", up=False)
    assert table(root) == ""
    assert root.is_local(parse_ip("10.0.0.1"))
    root.link_set("d0", up=True)
    assert table(root) == "10.0.0.0/24 dev d0 proto kernel scope link src 10.0.0.1 \n"


def test_deleting_a_primary_address_takes_its_secondaries_and_routes(kernel: Kernel) -> None:
    root = kernel.root
    root.link_add("d0", "dummy")
    root.link_set("d0", up=True)
    for host in (1, 2, 3):
        root.addr_add("d0", parse_ip(f"10.0.0.{host}"), 24)
    assert [a.secondary for a in root.addrs() if a.dev == "d0"] == [False, True, True]
    root.addr_del("d0", parse_ip("10.0.0.1"), 24)
    assert [a for a in root.addrs() if a.dev == "d0"] == []
    assert "d0" not in table(root) + table(root, "local")


def test_replace_replaces_and_metrics_stand_side_by_side(kernel: Kernel) -> None:
    root = kernel.root
    root.link_add("d0", "dummy")
    root.link_set("d0", up=True)
    prefix = Prefix.parse("10.9.0.0/16")
    root.route_replace(Route(prefix, dev="d0", metric=5))
    root.route_replace(Route(prefix, dev="d0", metric=5, mtu=1300))
    root.route_replace(Route(prefix, dev="d0", metric=1))
    assert table(root) == (
        "10.9.0.0/16 dev d0 scope link metric 1 \n"
        "10.9.0.0/16 dev d0 scope link metric 5 mtu 1300 \n"
    )
    with pytest.raises(UsageError, match="File exists"):
        root.route_add(Route(prefix, dev="d0", metric=1))
    root.route_del(Route(prefix, metric=5))
    assert table(root) == "10.9.0.0/16 dev d0 scope link metric 1 \n"


def test_a_renamed_device_keeps_addresses_and_routes(kernel: Kernel) -> None:
    root = kernel.root
    root.link_add("d0", "dummy")
    root.link_set("d0", up=True)
    root.addr_add("d0", parse_ip("10.0.0.1"), 24)
    root.link_set("d0", new_name="ext0")
    assert table(root) == "10.0.0.0/24 dev ext0 proto kernel scope link src 10.0.0.1 \n"
    assert [a.dev for a in root.addrs()] == ["lo", "ext0"]


def test_a_bridge_has_its_lowest_ports_address_unless_one_was_given(kernel: Kernel) -> None:
    root = kernel.root
    root.link_add("br0", "bridge")
    root.link_add("br1", "bridge", mac=b"\x02\x00\x00\x00\x00\x01")
    for bridge in ("br0", "br1"):
        for number in (2, 1):
            name = f"{bridge}p{number}"
            root.link_add(name, "veth", mac=bytes((0x0A, 0, 0, 0, 0, number)), peer=f"{name}x")
            root.link_set(name, master=bridge)
    assert root.link("br0").mac == b"\x0a\x00\x00\x00\x00\x01"
    assert root.link("br1").mac == b"\x02\x00\x00\x00\x00\x01"
    root.link_set("br0p1", master="")
    assert root.link("br0").mac == b"\x0a\x00\x00\x00\x00\x02"


def test_the_preferred_source_follows_route_then_device(kernel: Kernel) -> None:
    root = kernel.root
    for dev, address in (("d0", "10.0.0.1"), ("d1", "10.1.0.1")):
        root.link_add(dev, "dummy")
        root.link_set(dev, up=True)
        root.addr_add(dev, parse_ip(address), 24)
    root.link_add("d2", "dummy")
    root.link_set("d2", up=True)
    root.route_add(Route(Prefix.parse("9.0.0.0/8"), dev="d2"))
    root.route_add(
        Route(Prefix.parse("8.0.0.0/8"), gateway=parse_ip("10.1.0.9"), src=parse_ip("10.0.0.1"))
    )
    assert root.source_address(parse_ip("10.1.0.7")) == parse_ip("10.1.0.1")
    assert root.source_address(parse_ip("9.1.1.1")) == parse_ip("10.0.0.1")
    assert root.source_address(parse_ip("8.1.1.1")) == parse_ip("10.0.0.1")
    assert root.source_address(parse_ip("10.1.0.1")) == parse_ip("10.1.0.1")
    assert root.source_address(parse_ip("7.7.7.7")) is None
    assert root.primary_address("d1", parse_ip("8.1.1.1")) == parse_ip("10.1.0.1")


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (RouteType.BLACKHOLE, errno.EINVAL),
        (RouteType.UNREACHABLE, errno.EHOSTUNREACH),
        (RouteType.PROHIBIT, errno.EACCES),
        (None, errno.ENETUNREACH),
    ],
)
def test_sockets_are_refused_as_the_route_says(
    kernel: Kernel, kind: RouteType | None, number: int
) -> None:
    root, own = kernel.root, parse_ip("10.0.0.1")
    root.link_add("eth0", "dummy")
    root.link_set("eth0", up=True)
    root.addr_add("eth0", own, 24)
    if kind is not None:
        root.route_replace(Route(Prefix.parse("10.9.0.0/16"), type=kind))
    sockets, far = root.sockets, Endpoint(parse_ip("10.9.0.1"), 80)
    for attempt in (
        lambda: sockets.tcp_connect(far),
        lambda: sockets.tcp_connect(far, Endpoint(own, 0)),
        lambda: sockets.udp_bind(remote=far),
        lambda: sockets.udp_bind().send(b"x", far),
        lambda: sockets.udp_bind(own).send(b"x", far),
        lambda: sockets.ping_open().send(far.ip, 1, b""),
        lambda: sockets.ping_open(own).send(far.ip, 1, b""),
    ):
        with pytest.raises(OSError, match=r".") as caught:
            attempt()
        assert caught.value.errno == number
