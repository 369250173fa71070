"""The decision process, step by step in BIRD's order, and who is told what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.bird.attributes import (
    GRACEFUL_SHUTDOWN,
    NO_ADVERTISE,
    NO_EXPORT,
    Attrs,
    build_path,
    format_path,
)
from agents.bird.channel import Channel
from agents.bird.config import Dest, Limit, LimitAction, NextHopRule, Timers
from agents.bird.decision import mergeable, select
from agents.bird.events import ProtocolLogged, SessionDown
from agents.bird.filter_eval import FRESH_MED, Leaf
from agents.bird.filters import (
    Accept,
    AddCommunity,
    Attr,
    CommunityKind,
    Filter,
    If,
    PrependAs,
    Reject,
    Set,
    Source,
    net_in,
)
from agents.bird.net import Afi, Net
from agents.bird.nexthop import HostEntry, Resolver
from agents.bird.outgoing import Terms, may_export, outgoing
from agents.bird.penalty import Penalty
from agents.bird.rib import NextHop, Path, Table
from agents.bird.snapshot import exported
from tests.bgp_speakers import World, bgp, channel, speaker_config

TABLE = Table(Afi.IPV4)
RESOLVER = Resolver(TABLE)


def source(name: str, *, external: bool = False, router_id: int = 1, neighbor: int = 1) -> Channel:
    found = Channel(name, Source.BGP, TABLE, RESOLVER)
    found.external = external
    found.router_id = router_id
    found.neighbor = neighbor
    return found


def hop(metric: int = 0, dest: Dest = Dest.UNICAST) -> HostEntry:
    entry = HostEntry(b"\x0a\0\0\1")
    entry.dest, entry.metric, entry.ways = dest, metric, (NextHop(b"\x0a\0\0\1", "eth0"),)
    return entry


def path_of(*asns: int) -> bytes:
    return build_path([(2, asns)]) if asns else b""


# Each pair: (better, worse), differing in one step and contrary in all later ones.
STEPS = {
    "preference": (
        Path(source("a"), Attrs(preference=110, local_pref=1), 0.0, hop=hop()),
        Path(source("b"), Attrs(preference=100, local_pref=9), 0.0, hop=hop()),
    ),
    "a next hop that can be reached": (
        Path(source("a"), Attrs(local_pref=1), 0.0, hop=hop()),
        Path(source("b"), Attrs(local_pref=9), 0.0, hop=hop(dest=Dest.UNREACHABLE)),
    ),
    "not long-lived stale": (
        Path(source("a"), Attrs(local_pref=1), 0.0, hop=hop()),
        Path(source("b"), Attrs(local_pref=9, communities=b"\xff\xff\0\6"), 0.0, hop=hop()),
    ),
    "LOCAL_PREF": (
        Path(source("a"), Attrs(local_pref=101, as_path=path_of(1, 2)), 0.0, hop=hop()),
        Path(source("b"), Attrs(local_pref=100), 0.0, hop=hop()),
    ),
    "AS_PATH length": (
        Path(source("a"), Attrs(as_path=path_of(1), origin=2), 0.0, hop=hop()),
        Path(source("b"), Attrs(as_path=path_of(1, 1), origin=0), 0.0, hop=hop()),
    ),
    "a set counts one": (
        Path(source("a"), Attrs(as_path=build_path([(1, (1, 2, 3))]), origin=0), 0.0, hop=hop()),
        Path(source("b"), Attrs(as_path=path_of(1, 1), origin=0), 0.0, hop=hop()),
    ),
    "ORIGIN": (
        Path(source("a"), Attrs(origin=0, med=9), 0.0, hop=hop()),
        Path(source("b"), Attrs(origin=1, med=0), 0.0, hop=hop()),
    ),
    "MED of one neighbour AS": (
        Path(source("a"), Attrs(as_path=path_of(7, 1), med=1), 0.0, hop=hop()),
        Path(source("b", external=True), Attrs(as_path=path_of(7, 2), med=2), 0.0, hop=hop()),
    ),
    "eBGP over iBGP, MED of different ASes aside": (
        Path(source("a", external=True), Attrs(as_path=path_of(8), med=9), 0.0, hop=hop(5)),
        Path(source("b"), Attrs(as_path=path_of(7), med=1), 0.0, hop=hop(1)),
    ),
    "IGP metric": (
        Path(source("a", router_id=9), Attrs(), 0.0, hop=hop(1)),
        Path(source("b", router_id=1), Attrs(), 0.0, hop=hop(2)),
    ),
    "router id": (
        Path(source("a", router_id=1), Attrs(cluster_list=b"12345678"), 0.0, hop=hop()),
        Path(source("b", router_id=2), Attrs(), 0.0, hop=hop()),
    ),
    "ORIGINATOR_ID instead of the router id": (
        Path(source("a", router_id=9), Attrs(originator_id=1), 0.0, hop=hop()),
        Path(source("b", router_id=2), Attrs(), 0.0, hop=hop()),
    ),
    "CLUSTER_LIST length": (
        Path(source("a", neighbor=9), Attrs(cluster_list=b"1234"), 0.0, hop=hop()),
        Path(source("b", neighbor=1), Attrs(cluster_list=b"12345678"), 0.0, hop=hop()),
    ),
    "neighbour address": (
        Path(source("a", neighbor=1), Attrs(), 0.0, hop=hop()),
        Path(source("b", neighbor=2), Attrs(), 0.0, hop=hop()),
    ),
}


@pytest.mark.parametrize("step", STEPS)
def test_each_step_decides(step: str) -> None:
    better, worse = STEPS[step]
    assert select((better, worse)) is better
    assert select((worse, better)) is better


def test_med_decides_the_same_in_every_order() -> None:
    """Pairwise comparison would run in a circle here."""
    a = Path(source("a", router_id=3), Attrs(as_path=path_of(7), med=1), 0.0, hop=hop())
    b = Path(source("b", router_id=2), Attrs(as_path=path_of(8), med=5), 0.0, hop=hop())
    c = Path(source("c", router_id=1), Attrs(as_path=path_of(7), med=2), 0.0, hop=hop())
    for order in ((a, b, c), (c, b, a), (b, a, c), (b, c, a)):
        assert select(order) is b


def test_with_med_metric_med_counts_between_all_neighbours() -> None:
    a = Path(source("a"), Attrs(as_path=path_of(8), med=1), 0.0, hop=hop())
    b = Path(source("b", external=True), Attrs(as_path=path_of(7), med=2), 0.0, hop=hop())
    assert select((a, b)) is select((b, a)) is b
    for each in (a, b):
        each.channel.med_metric = True
    assert select((a, b)) is select((b, a)) is a


INSIDE = Terms(True, 65000, as4=True, limit=4096, next_hop=b"\x0a\0\0\1")
OUTSIDE = INSIDE._replace(internal=False)


def test_what_is_long_lived_stale_is_told_to_those_who_know_what_that_means() -> None:
    stale = Path(source("a", external=True), Attrs(communities=b"\xff\xff\0\6"), 0.0, hop=hop())
    for terms in (INSIDE, OUTSIDE):
        assert not may_export(stale, source("b"), terms)
        assert may_export(stale, source("b"), terms._replace(long_lived=True))


def test_med_and_intransitive_communities_do_not_leave_the_as() -> None:
    transitive, local = b"\0\2" + bytes(6), b"\x40\4" + bytes(6)
    attrs = Attrs(med=5, ext_communities=transitive + local + transitive)
    path = Path(source("a", external=True), attrs, 0.0, hop=hop())
    within = outgoing(Leaf(True, attrs), path, INSIDE, channel())
    assert (within.med, within.ext_communities) == (5, attrs.ext_communities)
    beyond = outgoing(Leaf(True, attrs), path, OUTSIDE, channel())
    assert (beyond.med, beyond.ext_communities) == (None, transitive * 2)
    # Unless a filter of ours has set it.
    assert outgoing(Leaf(True, attrs, FRESH_MED), path, OUTSIDE, channel()).med == 5


def test_an_own_address_is_no_next_hop() -> None:
    table = Table(Afi.IPV4)
    resolver = Resolver(table)
    ways = (NextHop(b"", "eth0"),)
    direct = Channel("direct1", Source.DEVICE, table, resolver)
    net = Net.parse("10.0.0.0/8").key
    table.update(direct, 0, (net,), Path(direct, Attrs(), 0.0, dest=Dest.UNICAST, ways=ways))
    other, own = resolver.entry(b"\x0a\0\0\2"), resolver.entry(b"\x0a\0\0\1")
    assert other.dest is own.dest is Dest.UNICAST
    resolver.local = frozenset({b"\x0a\0\0\1"})
    resolver.refresh()
    assert (other.dest, own.dest) == (Dest.UNICAST, Dest.UNREACHABLE)


def test_errors_are_forgiven_after_long_enough_without_one() -> None:
    timers = Timers(error_wait_min_s=60, error_wait_max_s=300, error_forget_s=1000)
    penalty = Penalty()
    delays = []
    for at in (0, 10, 20, 30, 1029, 2029):
        penalty.failed(timers, at)
        delays.append(penalty.delay_s)
    assert delays == [60, 120, 240, 300, 300, 60]


def test_only_equal_routes_are_merged() -> None:
    a = Path(source("a", router_id=1), Attrs(as_path=path_of(7)), 0.0, hop=hop())
    b = Path(source("b", router_id=2), Attrs(as_path=path_of(8)), 0.0, hop=hop())
    far = Path(source("c", router_id=3), Attrs(as_path=path_of(8)), 0.0, hop=hop(9))
    assert mergeable(a, b)
    assert not mergeable(a, far)


# Who is told what


def line(*configs: tuple[str, list[object], list[str]]) -> World:
    world = World()
    for router_id, peers, routes in configs:
        world.add(speaker_config(router_id, peers, routes))  # type: ignore[arg-type]
    world.run(5, lambda: world.is_up(*world.speakers))
    world.run(1)
    return world


def test_routes_of_inside_are_not_passed_on_inside_but_by_a_reflector() -> None:
    a, hub, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
    world = line(
        (a, [bgp("hub", hub)], ["192.168.1.0/26"]),
        (hub, [bgp("a", a), bgp("c", c)], []),
        (c, [bgp("hub", hub)], []),
    )
    assert world.table(c) == {}
    world.configure(
        speaker_config(hub, [bgp("a", a, rr_client=True, rr_cluster_id=77), bgp("c", c)])
    )
    world.run(20, lambda: world.table(c))
    best = world.speakers[c].tables[Afi.IPV4].best(Net.parse("192.168.1.0/26").key)
    assert best is not None
    assert best.attrs.originator_id == 0x0A000001
    assert best.attrs.cluster_list == (77).to_bytes(4, "big")
    assert world.next_hop(c, "192.168.1.0/26") == a


def test_two_reflectors_of_one_cluster_do_not_loop() -> None:
    a, r1, r2 = "10.0.0.1", "10.0.0.2", "10.0.0.3"
    settings = {"rr_client": True, "rr_cluster_id": 5}
    world = line(
        (a, [bgp("r1", r1), bgp("r2", r2)], ["192.168.1.0/26"]),
        (r1, [bgp("a", a, **settings), bgp("r2", r2, rr_cluster_id=5)], []),
        (r2, [bgp("a", a, **settings), bgp("r1", r1, rr_cluster_id=5)], []),
    )
    assert world.table(r1) == {"192.168.1.0/26": ["a"]}
    assert world.table(r2) == {"192.168.1.0/26": ["a"]}
    assert world.table(a) == {"192.168.1.0/26": ["static1"]}


def test_an_external_session_prepends_and_hides_what_is_internal() -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    world = line(
        (a, [bgp("b", b, peer_as=65002)], ["192.168.1.0/26"]),
        (b, [bgp("a", a, peer_as=64512, local_as=65002)], []),
    )
    (path,) = world.speakers[b].tables[Afi.IPV4].paths(Net.parse("192.168.1.0/26").key)
    assert format_path(path.attrs.as_path) == "64512"
    assert path.attrs.local_pref == 100
    ((_, sent),) = exported(world.speakers[a], "b")
    assert sent.local_pref is None
    assert sent.originator_id is None


@pytest.mark.parametrize(
    ("community", "inside", "outside"),
    [(NO_EXPORT, True, False), (NO_ADVERTISE, False, False)],
)
def test_well_known_communities(community: int, inside: bool, outside: bool) -> None:
    a, b, c, d = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"
    value = (community >> 16, community & 0xFFFF)
    tag = Filter((AddCommunity(CommunityKind.STANDARD, value), Accept()))
    world = line(
        (a, [bgp("b", b, peer_as=65002, ipv4=channel(export_filter=tag))], ["192.168.1.0/26"]),
        (
            b,
            [
                bgp("a", a, local_as=65002),
                bgp("c", c, peer_as=65002, local_as=65002),
                bgp("d", d, peer_as=65004, local_as=65002),
            ],
            [],
        ),
        (c, [bgp("b", b, peer_as=65002, local_as=65002)], []),
        (d, [bgp("b", b, peer_as=65002, local_as=65004)], []),
    )
    assert bool(world.table(c)) is inside
    assert bool(world.table(d)) is outside


def test_graceful_shutdown_makes_routes_the_last_choice() -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    world = line(
        (a, [bgp("b", b, peer_as=65002, graceful_shutdown=True)], ["192.168.1.0/26"]),
        (b, [bgp("a", a, local_as=65002)], []),
    )
    (path,) = world.speakers[b].tables[Afi.IPV4].paths(Net.parse("192.168.1.0/26").key)
    assert path.attrs.communities == GRACEFUL_SHUTDOWN.to_bytes(4, "big")
    assert path.attrs.local_pref == 0


def test_filters_of_both_sides_act_on_networks_and_attributes() -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    out = Filter(
        (
            If(net_in("192.168.1.0/26"), (PrependAs(64512, 2), Set(Attr.MED, 7), Accept())),
            If(net_in("192.168.2.0/24+"), (Reject(),)),
            Accept(),
        )
    )
    into = Filter((If(net_in("192.168.3.0/26"), (Set(Attr.LOCAL_PREF, 300),)), Accept()))
    world = line(
        (
            a,
            [bgp("b", b, peer_as=65002, ipv4=channel(export_filter=out))],
            ["192.168.1.0/26", "192.168.2.0/26", "192.168.3.0/26"],
        ),
        (b, [bgp("a", a, local_as=65002, ipv4=channel(import_filter=into))], []),
    )
    table = world.speakers[b].tables[Afi.IPV4]
    assert sorted(world.table(b)) == ["192.168.1.0/26", "192.168.3.0/26"]
    one = table.best(Net.parse("192.168.1.0/26").key)
    three = table.best(Net.parse("192.168.3.0/26").key)
    assert one is not None
    assert three is not None
    assert format_path(one.attrs.as_path) == "64512 64512 64512"
    assert (one.attrs.med, one.attrs.local_pref) == (7, 100)
    assert (three.attrs.med, three.attrs.local_pref) == (None, 300)
    stats = world.speakers[a].peers["b"].exchange.channels[Afi.IPV4].stats
    assert (stats.exp_updates_received, stats.exp_updates_filtered) == (3, 1)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (NextHopRule.AUTO, "10.0.0.1"),
        (NextHopRule.SELF, "10.0.0.2"),
        (NextHopRule.KEEP, "10.0.0.1"),
    ],
)
def test_next_hop_rules_inside(rule: NextHopRule, expected: str) -> None:
    """A reflector keeps NEXT_HOP unless it is told to put itself."""
    a, hub, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
    world = line(
        (a, [bgp("hub", hub)], ["192.168.1.0/26"]),
        (
            hub,
            [bgp("a", a, rr_client=True), bgp("c", c, ipv4=channel(next_hop=rule))],
            [],
        ),
        (c, [bgp("hub", hub)], []),
    )
    assert world.next_hop(c, "192.168.1.0/26") == expected


def test_next_hop_outside_is_ourselves_unless_kept() -> None:
    a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
    for rule, expected in ((NextHopRule.AUTO, b), (NextHopRule.KEEP, a)):
        world = line(
            (a, [bgp("b", b)], ["192.168.1.0/26"]),
            (b, [bgp("a", a), bgp("c", c, peer_as=65003, ipv4=channel(next_hop=rule))], []),
            (c, [bgp("b", b, local_as=65003)], []),
        )
        assert world.next_hop(c, "192.168.1.0/26") == expected


def test_local_as_stands_for_us_towards_one_peer() -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    world = line(
        (a, [bgp("b", b, peer_as=65002, local_as=64999)], ["192.168.1.0/26"]),
        (b, [bgp("a", a, peer_as=64999, local_as=65002)], []),
    )
    (path,) = world.speakers[b].tables[Afi.IPV4].paths(Net.parse("192.168.1.0/26").key)
    assert format_path(path.attrs.as_path) == "64999"


@pytest.mark.parametrize(
    ("action", "kept", "up"),
    [(LimitAction.WARN, 4, True), (LimitAction.BLOCK, 2, True), (LimitAction.DISABLE, 0, False)],
)
def test_import_limits(action: LimitAction, kept: int, up: bool) -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    limited = channel(import_limit=Limit(2, action))
    world = line(
        (a, [bgp("b", b)], [f"192.168.{i}.0/26" for i in range(4)]),
        (b, [bgp("a", a, ipv4=limited)], []),
    )
    assert len(world.table(b)) == kept
    assert (world.speakers[b].peers["a"].session is not None) is up
    if not up:
        assert world.speakers[b].peers["a"].last_error == (
            "Automatic shutdown: ",
            "Route limit exceeded",
        )
        reasons = [
            e.reason for _, who, e in world.events if isinstance(e, SessionDown) and who == a
        ]
        assert reasons == ["Received: Maximum number of prefixes reached"]


def test_an_import_limit_counts_what_the_filter_let_in() -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    some = Filter((If(net_in("192.168.0.0/24+"), (Accept(),)), Reject()))
    limited = channel(import_limit=Limit(1, LimitAction.DISABLE), import_filter=some)
    world = line(
        (a, [bgp("b", b)], [f"192.168.{i}.0/26" for i in range(4)]),
        (b, [bgp("a", a, ipv4=limited)], []),
    )
    assert list(world.table(b)) == ["192.168.0.0/26"]
    assert world.speakers[b].peers["a"].session is not None


@pytest.mark.parametrize(
    ("action", "told", "up"),
    [(LimitAction.WARN, 4, True), (LimitAction.BLOCK, 2, True), (LimitAction.DISABLE, 0, False)],
)
def test_export_limits(action: LimitAction, told: int, up: bool) -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    limited = channel(export_limit=Limit(2, action))
    routes = [f"192.168.{i}.0/26" for i in range(4)]
    world = line((a, [bgp("b", b, ipv4=limited)], routes[:2]), (b, [bgp("a", a)], []))
    # What was told already may be told again, otherwise.
    marked = Filter((AddCommunity(CommunityKind.STANDARD, (64512, 1)), Accept()))
    again = channel(export_limit=Limit(2, action), export_filter=marked)
    world.configure(speaker_config(a, [bgp("b", b, ipv4=again)], routes[:2]))
    world.run(1.0)
    assert len(world.table(b)) == 2
    for known in (routes[:3], routes):
        world.configure(speaker_config(a, [bgp("b", b, ipv4=again)], known))
        world.run(1.0)
    assert len(world.table(b)) == told
    assert (world.speakers[a].peers["b"].session is not None) is up


@pytest.mark.parametrize("limit", ["receive_limit", "import_limit", "export_limit"])
def test_a_limit_below_what_is_there_acts_at_once(limit: str) -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    routes = ["192.168.0.0/26", "192.168.1.0/26"]
    world = line((a, [bgp("b", b)], routes), (b, [bgp("a", a)], ["172.16.0.0/26", "172.16.1.0/26"]))
    settings = {limit: Limit(1, LimitAction.DISABLE)}
    lower = bgp("a", a, ipv4=channel(**settings))
    world.configure(speaker_config(b, [lower], ["172.16.0.0/26", "172.16.1.0/26"]))
    assert not world.speakers[b].peers["a"].enabled
    assert world.speakers[b].peers["a"].last_error[1] == "Route limit exceeded"


def test_a_route_that_outgrows_every_message_is_withdrawn_and_named() -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    world = line((a, [bgp("b", b)], ["192.168.0.0/26"]), (b, [bgp("a", a)], []))
    assert list(world.table(b)) == ["192.168.0.0/26"]
    many = (AddCommunity(CommunityKind.LARGE, (64512, 0, i)) for i in range(400))
    long = channel(export_filter=Filter((*many, Accept())))
    world.configure(speaker_config(a, [bgp("b", b, ipv4=long)], ["192.168.0.0/26"]))
    world.run(1.0)
    assert world.table(b) == {}
    assert world.is_up(a, b)
    told = [e.text for _, who, e in world.events if isinstance(e, ProtocolLogged) and who == a]
    assert told == ["Attribute list too long, 1 routes are withdrawn instead"]


def test_two_octet_speakers_pass_wide_as_numbers_through() -> None:
    a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
    world = line(
        (a, [bgp("b", b, local_as=200000, peer_as=65002, as4=True)], ["192.168.1.0/26"]),
        (
            b,
            [
                bgp("a", a, local_as=65002, peer_as=200000),
                bgp("c", c, local_as=65002, peer_as=65003, as4=False),
            ],
            [],
        ),
        (c, [bgp("b", b, local_as=65003, peer_as=65002)], []),
    )
    (path,) = world.speakers[c].tables[Afi.IPV4].paths(Net.parse("192.168.1.0/26").key)
    assert format_path(path.attrs.as_path) == "65002 200000"


def test_a_changed_next_hop_rule_needs_no_new_session() -> None:
    a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
    outside = bgp("a", a, peer_as=64512, local_as=65001)
    world = line(
        (a, [bgp("b", b, peer_as=65001), bgp("c", c)], []),
        (b, [outside], ["192.168.1.0/26"]),
        (c, [bgp("a", a)], []),
    )
    session = world.speakers[a].peers["c"].session
    assert world.next_hop(c, "192.168.1.0/26") == b
    for rule, expected in ((NextHopRule.SELF, a), (NextHopRule.KEEP, b), (NextHopRule.AUTO, b)):
        peers = [bgp("b", b, peer_as=65001), bgp("c", c, ipv4=channel(next_hop=rule))]
        world.configure(speaker_config(a, peers, []))
        world.run(1)
        assert world.next_hop(c, "192.168.1.0/26") == expected
    assert world.speakers[a].peers["c"].session is session


def test_changes_that_need_no_new_session_leave_it_alone() -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    world = line((a, [bgp("b", b)], ["192.168.1.0/26"]), (b, [bgp("a", a)], []))
    session = world.speakers[a].peers["b"].session
    refuse = Filter((Reject(),))
    world.configure(
        speaker_config(
            a,
            [bgp("b", b, description="x", ipv4=channel(export_filter=refuse))],
            ["192.168.1.0/26"],
        )
    )
    world.run(1)
    assert world.table(b) == {}
    world.configure(speaker_config(a, [bgp("b", b)], ["192.168.1.0/26"]))
    world.run(1)
    assert world.table(b) == {"192.168.1.0/26": ["a"]}
    assert world.speakers[a].peers["b"].session is session
    # A new hold time is agreed on in a new session only.
    timers = replace(bgp("b", b).timers, hold_s=30)
    world.configure(speaker_config(a, [bgp("b", b, timers=timers)], ["192.168.1.0/26"]))
    assert world.run(20, lambda: world.is_up(a, b) and world.table(b))
    assert world.speakers[a].peers["b"].session is not session
    assert world.speakers[b].peers["a"].session is not None
