"""The speaker and a node's kernel: krt_tunnel, blackholes, alien routes, ECMP, restarts."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agents.bird import export
from agents.bird.capabilities import Capabilities
from agents.bird.config import (
    DEFAULT_ECMP_LIMIT,
    Dest,
    DeviceConfig,
    DirectConfig,
    KernelConfig,
    SpeakerConfig,
    StaticConfig,
    StaticRoute,
)
from agents.bird.filters import (
    ACCEPT_ALL,
    Accept,
    Attr,
    Filter,
    If,
    IfnameMatches,
    NextHopIn,
    Reject,
    Set,
    net_in,
)
from agents.bird.messages import UPDATE
from agents.bird.net import Afi, Net, parse_address
from agents.bird.netlink import NamespacePort
from agents.bird.snapshot import routes, routes_of
from agents.bird.speaker import Speaker
from emulator.addr import Prefix, parse_ip
from emulator.errors import UsageError
from emulator.netstack.fib import Route, RouteType
from emulator.netstack.kernel import Kernel
from emulator.netstack.show.route import render_ip_route
from tests.bgp_speakers import HandPeer, bgp, channel, speaker_config
from tests.unit.test_bgp_update_errors import update

if TYPE_CHECKING:
    from agents.bird.kernel import Interface, KernelRoute
    from emulator.netstack.netns import NetNs

TUNNEL = Filter(
    (
        If(
            net_in("192.168.0.0/16+"),
            (
                If(
                    NextHopIn((Net.parse("10.10.64.0/20"),)),
                    (Set(Attr.KRT_TUNNEL, ""),),
                    (Set(Attr.KRT_TUNNEL, "tunl0"),),
                ),
                Accept(),
            ),
        ),
        Accept(),
    )
)
KERNEL = KernelConfig(
    learn=True, persist=True, scan_s=2.0, graceful_restart=True, export_filter=TUNNEL
)
DIRECT = DirectConfig(("-cali*", "-kube-ipvs*", "*"))
"""Calico's own settings."""


def node() -> NetNs:
    """kube-0 of the tutorial: eth0 10.10.68.222/20, a default route, tunl0, a pod."""
    kernel = Kernel("kube-0", clock=lambda: 0.0, rng=random.Random(1))
    ns = kernel.root
    for name in ("eth0", "docker0", "cali6edd91665ff"):
        ns.link_add(name, "dummy")
        ns.link_set(name, up=True)
    ns.link_add("tunl0", "ipip", local=0, remote=0)
    ns.link_set("tunl0", up=True)
    ns.addr_add("eth0", parse_ip("10.10.68.222"), 20)
    ns.addr_add("docker0", parse_ip("172.17.0.1"), 16)
    ns.addr_add("tunl0", parse_ip("192.168.145.64"), 32)
    ns.route_replace(Route(Prefix.parse("0.0.0.0/0"), "eth0", parse_ip("10.10.64.1")))
    ns.route_replace(Route(Prefix.parse("192.168.145.65/32"), "cali6edd91665ff"))
    return ns


def config(**changes: object) -> SpeakerConfig:
    peer = bgp("Mesh", "10.10.95.205", passive=True, ipv4=channel())
    settings: dict[str, object] = {
        "kernel": KERNEL,
        "direct": DIRECT,
        "device": DeviceConfig(scan_s=2.0),
        **changes,
    }
    return speaker_config("10.10.68.222", [peer], ["192.168.145.64/26"], **settings)


def attributes(hop: str) -> bytes:
    head = bytes.fromhex("40010100 400200 400304")
    return head + parse_address(hop) + bytes.fromhex("40050400000064")


def neighbor(ns: NetNs, settings: SpeakerConfig | None = None) -> HandPeer:
    peer = HandPeer(settings or config(), neighbor="10.10.95.205", kernel=NamespacePort(ns))
    peer.establish(Capabilities(families=(1,), as4=64512), router_id="10.10.95.205")
    return peer


def table(ns: NetNs) -> list[str]:
    return [line for line in render_ip_route(ns.routes()).splitlines() if "bird" in line]


def test_the_tutorials_rows() -> None:
    ns = node()
    peer = neighbor(ns)
    peer.send(UPDATE, update(attributes("10.10.95.205"), Net.parse("192.168.126.64/26").key))
    assert [line.split() for line in table(ns)] == [
        ["192.168.126.64/26", "via", "10.10.95.205", "dev", "tunl0", "proto", "bird", "onlink"],
        ["blackhole", "192.168.145.64/26", "proto", "bird"],
    ]
    # BIRD's own table shows the way to the next hop: the default gateway, metric unknown.
    (found,) = routes_of(peer.speaker, Net.parse("192.168.126.64/26"))
    assert found.ways[0].gateway == parse_address("10.10.64.1")
    assert found.ways[0].dev == "eth0"
    assert found.metric is None
    peer.lose()
    peer.pass_time(1)
    assert [line.split()[0] for line in table(ns)] == ["blackhole"]


def test_a_peer_on_the_same_subnet_needs_no_tunnel() -> None:
    ns = node()
    peer = neighbor(ns)
    peer.send(UPDATE, update(attributes("10.10.70.1"), Net.parse("192.168.126.64/26").key))
    assert table(ns)[0].split() == [
        "192.168.126.64/26",
        "via",
        "10.10.70.1",
        "dev",
        "eth0",
        "proto",
        "bird",
    ]
    (found,) = routes_of(peer.speaker, Net.parse("192.168.126.64/26"))
    assert found.metric == 0


def test_a_next_hop_nobody_leads_to_becomes_unreachable_and_recovers() -> None:
    ns = node()
    ns.route_del(Route(Prefix.parse("0.0.0.0/0"), "eth0", parse_ip("10.10.64.1")))
    peer = neighbor(ns)
    peer.send(UPDATE, update(attributes("10.10.95.205"), Net.parse("192.168.126.64/26").key))
    assert table(ns)[0].split() == ["unreachable", "192.168.126.64/26", "proto", "bird"]
    ns.route_replace(Route(Prefix.parse("0.0.0.0/0"), "eth0", parse_ip("10.10.64.1")))
    peer.pass_time(2.1)
    assert "dev tunl0" in table(ns)[0]


def test_table_of_direct_and_learnt_routes() -> None:
    peer = neighbor(node())
    found = [(str(r.net), r.protocol, r.attrs.preference) for r in routes(peer.speaker)]
    assert found == [
        ("0.0.0.0/0", "kernel1", 10),
        ("10.10.64.0/20", "direct1", 240),
        ("172.17.0.0/16", "direct1", 240),
        ("192.168.145.64/26", "static1", 200),
        ("192.168.145.64/32", "direct1", 240),
        ("192.168.145.65/32", "kernel1", 10),
    ]


def test_the_scan_repairs_what_others_did_to_our_routes() -> None:
    ns = node()
    peer = neighbor(ns)
    before = table(ns)
    ours = next(route for route in ns.routes() if route.protocol == "bird")
    ns.route_del(ours)
    ns.route_replace(replace(ours, dst=Prefix.parse("192.168.77.0/26")))
    assert table(ns) != before
    peer.pass_time(2.1)
    assert table(ns) == before


def test_a_kernel_that_did_not_change_is_not_read_again() -> None:
    class Counting(NamespacePort):
        reads = 0

        def interfaces(self) -> tuple[Interface, ...]:
            self.reads += 1
            return super().interfaces()

    ns = node()
    port = Counting(ns)
    peer = HandPeer(config(), neighbor="10.10.95.205", kernel=port)
    peer.establish(Capabilities(families=(1,), as4=64512), router_id="10.10.95.205")
    peer.send(UPDATE, update(attributes("10.10.95.205"), Net.parse("192.168.126.64/26").key))
    peer.pass_time(6)
    reads = port.reads
    peer.pass_time(60)
    assert port.reads == reads

    def seen() -> list[tuple[bool, int, int]]:
        (found,) = [i for i in peer.speaker.local.interfaces if i.name == "docker0"]
        return [(found.up, found.mtu, len(found.addresses))]

    for change, shown in (
        (lambda: ns.link_set("docker0", mtu=1400), (True, 1400, 1)),
        (lambda: ns.addr_add("docker0", parse_ip("172.18.0.1"), 16), (True, 1400, 2)),
        (lambda: ns.link_set("docker0", up=False), (False, 1400, 2)),
    ):
        change()
        peer.pass_time(2.1)
        assert seen() == [shown]


def test_routes_persist_over_a_shutdown_only_if_told_to() -> None:
    for persist, left in ((True, 2), (False, 0)):
        ns = node()
        peer = neighbor(ns, config(kernel=replace(KERNEL, persist=persist)))
        peer.send(UPDATE, update(attributes("10.10.95.205"), Net.parse("192.168.126.64/26").key))
        peer.speaker.shut_down(now=peer.now)
        peer.pump()
        peer.pass_time(5)
        assert len(table(ns)) == left


def test_a_route_that_cannot_be_removed_does_not_keep_the_others_there() -> None:
    class Clinging(NamespacePort):
        def delete(self, route: KernelRoute) -> None:
            if route.net == Net.parse("192.168.126.64/26"):
                raise UsageError("RTNETLINK answers: Device or resource busy")
            super().delete(route)

    ns = node()
    settings = config(kernel=replace(KERNEL, persist=False))
    peer = HandPeer(settings, neighbor="10.10.95.205", kernel=Clinging(ns))
    peer.establish(Capabilities(families=(1,), as4=64512), router_id="10.10.95.205")
    nets = (Net.parse(text) for text in ("192.168.126.64/26", "192.168.127.0/26"))
    peer.send(UPDATE, update(attributes("10.10.95.205"), b"".join(net.key for net in nets)))
    assert len(table(ns)) == 3
    peer.speaker.shut_down(now=peer.now)
    assert [line.split()[0] for line in table(ns)] == ["192.168.126.64/26"]


def test_a_restarted_speaker_touches_no_route_before_its_peers_are_done() -> None:
    ns = node()
    first = neighbor(ns)
    first.send(UPDATE, update(attributes("10.10.95.205"), Net.parse("192.168.126.64/26").key))
    kept = table(ns)
    first.speaker.leave_for_restart(now=0.0)
    assert table(ns) == kept
    speaker = Speaker(
        config(recovery_wait_s=30.0),
        random.Random(2),
        now=0.0,
        kernel=NamespacePort(ns),
        recover=True,
    )
    speaker.handle_timer(now=2.0)
    assert table(ns) == kept
    assert speaker.preserved == (Afi.IPV4,)
    for at in (10.0, 20.0, 30.0, 32.5):
        speaker.handle_timer(now=at)
        while speaker.has_work:
            speaker.work(now=at)
    assert not speaker.recovering
    assert [line.split()[0] for line in table(ns)] == ["blackhole"]


def test_a_kernel_route_through_a_gateway_waits_for_its_interface() -> None:
    ns = node()
    via = StaticRoute(Net.parse("192.0.2.7/32"), Dest.UNICAST, parse_address("10.10.70.9"))
    far = StaticRoute(Net.parse("192.0.2.8/32"), Dest.UNICAST, parse_address("203.0.113.1"))
    neighbor(ns, config(static=(StaticConfig((via, far)),)))
    assert [line.split() for line in table(ns)] == [
        ["192.0.2.7", "via", "10.10.70.9", "dev", "eth0", "proto", "bird"]
    ]


def test_merged_paths_follow_every_member() -> None:
    ns = node()
    merged = replace(KERNEL, merge_paths=DEFAULT_ECMP_LIMIT, export_filter=ACCEPT_ALL)
    peers = [bgp(f"p{i}", f"10.10.70.{i}", passive=True) for i in (1, 2)]
    settings = speaker_config("10.10.68.222", peers, kernel=merged, direct=DIRECT)
    hand = HandPeer(settings, neighbor="10.10.70.1", kernel=NamespacePort(ns))
    net = Net.parse("203.0.113.0/24")
    hand.establish(Capabilities(families=(1,), as4=64512), router_id="10.10.70.1")
    hand.send(UPDATE, update(attributes("10.10.70.1"), net.key))
    first = hand.number
    hand.neighbor = "10.10.70.2"
    hand.connect()
    hand.establish(Capabilities(families=(1,), as4=64512), router_id="10.10.70.2")
    hand.send(UPDATE, update(attributes("10.10.70.2"), net.key))
    (route,) = [route for route in ns.routes() if route.protocol == "bird"]
    assert [(hop.gateway, hop.dev) for hop in route.nexthops] == [
        (parse_ip("10.10.70.1"), "eth0"),
        (parse_ip("10.10.70.2"), "eth0"),
    ]
    hand.pass_time(5)
    assert [route] == [route for route in ns.routes() if route.protocol == "bird"]
    hand.speaker.connection_lost(first, "", now=hand.now)
    hand.pump()
    assert table(ns)[0].split() == [
        "203.0.113.0/24",
        "via",
        "10.10.70.2",
        "dev",
        "eth0",
        "proto",
        "bird",
    ]


@pytest.mark.parametrize("name", ["eth0", "docker0"])
def test_an_interface_that_goes_down_takes_its_network_along(name: str) -> None:
    ns = node()
    peer = neighbor(ns)
    ns.link_set(name, up=False)
    peer.pass_time(2.1)
    assert name not in {way.dev for r in routes(peer.speaker) for way in r.ways}


def test_leaving_for_a_restart_leaves_the_kernel_as_it_is() -> None:
    ns = node()
    peer = neighbor(ns)
    peer.send(UPDATE, update(attributes("10.10.95.205"), Net.parse("192.168.126.64/26").key))
    before = table(ns)
    assert len(before) == 2
    peer.speaker.leave_for_restart(now=peer.now)
    peer.pump()
    peer.pass_time(5)
    assert table(ns) == before


def with_metric(metric: int) -> KernelConfig:
    return replace(KERNEL, export_filter=Filter((Set(Attr.KRT_METRIC, metric), Accept())))


def test_a_route_that_gets_another_metric_is_there_once() -> None:
    ns = node()
    peer = neighbor(ns, config(kernel=with_metric(100)))
    assert len(table(ns)) == 1
    peer.speaker.configure(config(kernel=with_metric(200)), now=peer.now)
    peer.pump()
    assert [route.metric for route in ns.routes() if route.protocol == "bird"] == [200]


def test_the_scan_takes_away_what_a_former_life_left_with_another_metric() -> None:
    ns = node()
    for metric in (7, 200, 300):
        ns.route_replace(
            Route(
                Prefix.parse("192.168.145.64/26"),
                type=RouteType.BLACKHOLE,
                metric=metric,
                protocol="bird",
            )
        )
    peer = neighbor(ns, config(kernel=with_metric(200)))
    peer.pass_time(5)
    assert [route.metric for route in ns.routes() if route.protocol == "bird"] == [200]


@pytest.mark.parametrize(
    ("multihop", "gateway", "hop"),
    [
        (0, "10.10.70.1", "10.10.70.1"),
        (0, "10.10.70.9", "10.10.68.222"),
        (0, "172.17.0.9", "10.10.68.222"),
        (64, "10.10.70.1", "10.10.68.222"),
    ],
)
def test_an_external_neighbour_on_the_link_is_sent_to_the_gateway_itself(
    multihop: int, gateway: str, hop: str
) -> None:
    """A third party's address is NEXT_HOP only where the neighbour reaches it without us."""
    route = StaticRoute(Net.parse("10.20.0.0/16"), Dest.UNICAST, via=parse_address(gateway))
    settings = replace(config(), static=(StaticConfig((route,)),))
    (mesh,) = settings.bgp
    outside = replace(mesh, neighbor=parse_ip("10.10.70.9"), peer_as=65001, multihop=multihop)
    peer = HandPeer(
        replace(settings, bgp=(outside,)), neighbor="10.10.70.9", kernel=NamespacePort(node())
    )
    peer.establish(Capabilities(families=(1,), as4=65001), asn=65001, router_id="10.10.70.9")
    exporter = peer.speaker.peers["Mesh"].exchange.exporters[Afi.IPV4]
    told = exporter.sent[Net.parse("10.20.0.0/16").key]
    assert told.next_hop == parse_address(hop)


def test_a_route_the_kernel_refused_is_forgotten_with_its_network() -> None:
    class Refusing(NamespacePort):
        def replace(self, route: KernelRoute) -> None:
            raise UsageError("RTNETLINK answers: Network is unreachable")

    peer = HandPeer(config(), neighbor="10.10.95.205", kernel=Refusing(node()))
    peer.establish(Capabilities(families=(1,), as4=64512), router_id="10.10.95.205")
    net = Net.parse("192.168.126.64/26").key
    peer.send(UPDATE, update(attributes("10.10.95.205"), net))
    kernel = peer.speaker.local.kernel
    assert kernel is not None
    assert net in kernel.refused
    peer.send(UPDATE, update(b"", b"", withdrawn=net))
    assert net not in kernel.refused


def test_a_way_that_changes_during_a_feed_counts_for_what_is_still_to_be_fed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "FEED_SLICE", 2)
    ns = node()
    by_eth0 = Filter((If(IfnameMatches(("eth0",)), (Accept(),)), Reject()))
    peers = [
        bgp("Mesh", "10.10.95.205", passive=True),
        bgp("rack", "10.10.95.9", passive=True, peer_as=65001, ipv4=channel(export_filter=by_eth0)),
    ]
    settings = speaker_config("10.10.68.222", peers, kernel=KERNEL)
    hand = HandPeer(settings, neighbor="10.10.95.205", kernel=NamespacePort(ns))
    hand.establish(Capabilities(families=(1,), as4=64512), router_id="10.10.95.205")
    nets = [Net.parse(f"10.{i}.0.0/16").key for i in range(20, 28)]
    hand.send(UPDATE, update(attributes("10.10.95.205"), b"".join(nets)))
    hand.neighbor = "10.10.95.9"
    hand.connect()
    hand.establish(Capabilities(families=(1,), as4=65001), router_id="10.10.95.9", asn=65001)
    exporter = hand.speaker.peers["rack"].exchange.exporters[Afi.IPV4]
    assert set(nets) <= exporter.sent.keys()

    hand.speaker.reload("rack", now=hand.now, incoming=False)
    hand.speaker.work(now=hand.now)
    hand.speaker.work(now=hand.now)
    assert exporter.busy
    docker0 = Route(Prefix.parse("10.10.95.0/24"), "docker0", parse_ip("172.17.0.9"))
    ns.route_replace(docker0)
    hand.speaker.kernel_changed(now=hand.now)
    hand.speaker.handle_timer(now=hand.now)
    assert exporter.busy
    hand.pump()
    assert exporter.sent.keys().isdisjoint(nets)
