"""confd: who peers with whom, what is announced, and what BIRD is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agents.bird.attributes import (
    AS_SEQUENCE,
    Attrs,
    build_path,
    community_pairs,
    format_path,
    large_triples,
)
from agents.bird.config import BfdOptions, GracefulRestart, NextHopRule
from agents.bird.filter_eval import Facts, Leaf, evaluate
from agents.bird.filters import Source
from agents.bird.net import Net
from agents.calico.confd.peering import Peer, Secret, peers_of, seconds
from agents.calico.confd.plan import BgpPlan, make_plan
from agents.calico.confd.policy import kernel_filter
from agents.calico.confd.render import render
from agents.calico.confd.services import Service, announced, read_services
from agents.calico.confd.speaker import SpeakerConfigs, speaker_config
from agents.calico.confd.state import State, confirmed_claims, owned_blocks, read_state
from agents.calico.datastore import KVPair
from agents.calico.errors import ValidationError
from agents.calico.ipam.model import affinity_key, affinity_value, block_key, block_of_key
from agents.calico.net import Cidr
from agents.calico.resources import key_of_resource, new_resource
from agents.calico.validation import checked
from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError

MASTER, ONE, TWO = "kube-master", "kube-node-1", "kube-node-2"


def stored(kind: str, name: str, spec: dict[str, Any], **labels: str) -> KVPair:
    resource = new_resource(kind, name, spec, labels=labels)
    return KVPair(key_of_resource(resource), resource, 1)


def node(name: str, address: str, *, rr: str = "", asn: int | None = None, **labels: str) -> KVPair:
    bgp: dict[str, Any] = {"ipv4Address": address}
    if rr:
        bgp["routeReflectorClusterID"] = rr
    if asn:
        bgp["asNumber"] = asn
    return stored("Node", name, {"bgp": bgp}, **labels)


def claim(host: str, cidr: str, state: str = "confirmed", owner: str | None = None) -> list[KVPair]:
    block = Cidr.parse(cidr)
    affinity = f"host:{host}" if owner is None else owner
    return [
        KVPair(affinity_key(host, block), affinity_value(state), 1),
        KVPair(block_key(block), {"cidr": cidr, "affinity": affinity}, 1),
    ]


NODES = [
    node(MASTER, "10.192.0.2/16"),
    node(ONE, "10.192.0.3/16"),
    node(TWO, "10.192.0.4/16"),
]
POOL = stored("IPPool", "pool", {"cidr": "192.168.0.0/16", "ipipMode": "Always"})


def read(items: list[KVPair]) -> State:
    """As confd reads: claims first, then the blocks that bear them out."""
    blocks = {block: kvp.value for kvp in items if (block := block_of_key(kvp.key)) is not None}
    return read_state(items, owned_blocks(confirmed_claims(items), blocks))


def state(*more: KVPair, nodes: list[KVPair] = NODES) -> State:
    return read([*nodes, POOL, *more])


def plan(name: str = MASTER, *more: KVPair, nodes: list[KVPair] = NODES) -> BgpPlan:
    made = make_plan(state(*more, nodes=nodes), name)
    assert made is not None
    return made


def peers(name: str, *more: KVPair, nodes: list[KVPair] = NODES) -> dict[str, Peer]:
    known = state(*more, nodes=nodes)
    own = known.node(name)
    assert own is not None
    found, _ = peers_of(known, own)
    return {peer.name: peer for peer in found}


def test_a_mesh_has_one_active_side_in_every_session() -> None:
    names = {MASTER: "10.192.0.2", ONE: "10.192.0.3", TWO: "10.192.0.4"}
    passive = {
        (name, format_ip(peer.ip))
        for name in names
        for peer in peers(name).values()
        if peer.passive
    }
    assert passive == {
        (MASTER, "10.192.0.3"),
        (MASTER, "10.192.0.4"),
        (ONE, "10.192.0.4"),
    }
    assert list(peers(MASTER)) == ["Mesh_10_192_0_3", "Mesh_10_192_0_4"]


def test_addresses_are_compared_as_text_for_who_listens() -> None:
    nodes = [node("a", "10.0.0.9/24"), node("b", "10.0.0.10/24")]
    assert peers("b", nodes=nodes)["Mesh_10_0_0_9"].passive
    assert not peers("a", nodes=nodes)["Mesh_10_0_0_10"].passive


def test_the_mesh_can_be_switched_off_and_reflectors_leave_it() -> None:
    off = stored("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False})
    assert peers(MASTER, off) == {}
    nodes = [*NODES[:2], node(TWO, "10.192.0.4/16", rr="244.0.0.1")]
    assert list(peers(MASTER, nodes=nodes)) == ["Mesh_10_192_0_3"]
    assert peers(TWO, nodes=nodes) == {}


def test_only_confirmed_claims_that_the_block_bears_out_are_announced() -> None:
    found = state(
        *claim(MASTER, "192.168.221.192/26"),
        *claim(MASTER, "192.168.221.0/26", "pending"),
        *claim(MASTER, "192.168.221.128/26", "pendingDeletion"),
        *claim(MASTER, "192.168.7.0/26", owner="host:kube-node-1"),
        *claim(ONE, "192.168.8.0/26"),
    )
    assert {host: [str(cidr) for cidr in cidrs] for host, cidrs in found.blocks.items()} == {
        MASTER: ["192.168.221.192/26"],
        ONE: ["192.168.8.0/26"],
    }


RR = [
    node(MASTER, "10.192.0.2/16", rr="244.0.0.1", role="rr"),
    *NODES[1:],
]
TO_RR = stored("BGPPeer", "to-rr", {"nodeSelector": "!has(role)", "peerSelector": "role == 'rr'"})
OFF = stored("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False})


def test_a_peering_with_reflectors_is_configured_at_both_ends() -> None:
    assert list(peers(ONE, TO_RR, OFF, nodes=RR)) == ["Node_10_192_0_2"]
    back = peers(MASTER, TO_RR, OFF, nodes=RR)
    assert list(back) == ["Node_10_192_0_3", "Node_10_192_0_4"]
    assert all(peer.automatic for peer in back.values())
    reflector = plan(MASTER, TO_RR, OFF, nodes=RR)
    sessions = speaker_config(reflector).bgp
    assert [(each.rr_client, each.rr_cluster_id) for each in sessions] == [
        (True, parse_ip("244.0.0.1"))
    ] * 2
    assert not speaker_config(plan(ONE, TO_RR, OFF, nodes=RR)).bgp[0].rr_client


def test_reflectors_of_one_cluster_are_no_clients_of_each_other() -> None:
    both = [*RR[:1], node(ONE, "10.192.0.3/16", rr="244.0.0.1", role="rr"), RR[2]]
    between = stored("BGPPeer", "rr", {"nodeSelector": "all()", "peerSelector": "role == 'rr'"})
    sessions = speaker_config(plan(MASTER, between, OFF, nodes=both)).bgp
    assert {each.name: each.rr_client for each in sessions} == {
        "Node_10_192_0_3": False,
        "Node_10_192_0_4": True,
    }


def test_the_way_back_is_not_made_where_the_operator_makes_it() -> None:
    manual = stored(
        "BGPPeer",
        "to-rr",
        {
            "nodeSelector": "!has(role)",
            "peerSelector": "role == 'rr'",
            "reversePeering": "Manual",
        },
    )
    assert peers(MASTER, manual, OFF, nodes=RR) == {}


def test_a_peer_of_all_nodes_wins_over_a_node_s_own() -> None:
    tor = {"peerIP": "10.192.0.100", "asNumber": 65000}
    both = [
        stored("BGPPeer", "a-own", {**tor, "node": MASTER, "asNumber": 65001}),
        stored("BGPPeer", "z-all", tor),
    ]
    found = peers(MASTER, *both)
    assert found["Global_10_192_0_100"].as_number == 65000
    assert "Node_10_192_0_100" not in found
    port = stored("BGPPeer", "ported", {"peerIP": "10.192.0.100:1179", "asNumber": 65000})
    assert "Global_10_192_0_100_port_1179" in peers(ONE, port)


def test_nodes_are_dialled_where_each_listens_and_named_without_it() -> None:
    ports = [
        stored("BGPConfiguration", "default", {"listenPort": 1179}),
        stored("BGPConfiguration", f"node.{TWO}", {"listenPort": 1279}),
    ]
    made = plan(MASTER, *ports)
    assert (made.listen_port, plan(TWO, *ports).listen_port) == (1179, 1279)
    assert {each.name: each.neighbor_port for each in speaker_config(made).bgp} == {
        "Mesh_10_192_0_3": 1179,
        "Mesh_10_192_0_4": 1279,
    }
    assert "protocol bgp Mesh_10_192_0_4 from" in render(made)["bird.cfg"]
    assert "neighbor 10.192.0.4 port 1279 as 64512;" in render(made)["bird.cfg"]
    # A peer that turns out to be a node is dialled where that listens, unless a port is said.
    to_node = stored("BGPPeer", "two", {"peerIP": "10.192.0.4", "node": MASTER})
    assert peers(MASTER, *ports, to_node)["Node_10_192_0_4_port_1279"].port == 1279
    said = stored("BGPPeer", "two", {"peerIP": "10.192.0.4:179", "node": MASTER})
    session = speaker_config(plan(MASTER, *ports, said)).bgp[-1]
    assert (session.name, session.neighbor_port) == ("Node_10_192_0_4_port_179", None)


def test_a_broken_peer_costs_only_itself() -> None:
    broken = stored("BGPPeer", "broken", {"peerIP": "10.192.0.100"})
    made = plan(MASTER, broken)
    assert made.problems == (
        "BGPPeer broken: asNumber: the AS of 10.192.0.100 is not known; give it",
    )
    assert len(made.peers) == 2
    beyond = stored("BGPPeer", "six", {"peerIP": "fd00::1", "asNumber": 65000})
    (problem,) = plan(MASTER, beyond).problems
    assert problem.startswith("BGPPeer six: peerIP: fd00::1 is left out")


def test_bfd_is_in_the_files_and_for_peers_with_a_source_address() -> None:
    spec = {"peerIP": "10.192.0.100", "asNumber": 65000, "sourceAddress": "None"}
    bfd = BfdOptions(0.05, 0.05, multiplier=3, graceful=True)
    made = make_plan(state(stored("BGPPeer", "tor", spec)), MASTER, bfd=bfd)
    assert made is not None
    watched = {session.name: session.bfd for session in speaker_config(made).bgp}
    assert watched.pop("Global_10_192_0_100") is None
    assert set(watched.values()) == {bfd}
    text = render(made)["bird.cfg"]
    assert "protocol bfd {\n  multihop { interval 50 ms; multiplier 3; };\n}\n" in text
    assert text.count("bfd graceful;") == len(watched) == 2
    assert "bfd" not in render(plan())["bird.cfg"]


def test_what_a_peer_is_told_reaches_the_speaker() -> None:
    spec = {
        "peerIP": "10.192.0.100",
        "asNumber": 65000,
        "keepOriginalNextHop": True,
        "numAllowedLocalASNumbers": 2,
        "ttlSecurity": 1,
        "maxRestartTime": "2m10s",
        "sourceAddress": "None",
        "reachableBy": "10.192.0.1",
        "password": {"secretKeyRef": {"name": "bgp", "key": "tor"}},
    }
    made = plan(MASTER, stored("BGPPeer", "tor", spec), OFF)
    (waiting,) = speaker_config(made).bgp
    assert waiting.disabled, "a session without its password would be refused or, worse, not be"
    (session,) = speaker_config(made, passwords={Secret("bgp", "tor"): "hush"}).bgp
    assert (session.name, session.peer_as, session.local_as) == (
        "Global_10_192_0_100",
        65000,
        64512,
    )
    assert (session.ttl_security, session.multihop, session.source_address) == (True, 1, 0)
    assert (session.allow_local_as, session.password) == (2, "hush")
    assert session.ipv4 is not None
    assert session.ipv4.next_hop is NextHopRule.KEEP
    assert (session.graceful_restart, session.graceful_restart_time_s) == (GracefulRestart.ON, 130)
    (static,) = speaker_config(made).static
    assert [(str(route.net), route.via) for route in static.routes] == [
        ("10.192.0.100/32", bytes((10, 192, 0, 1)))
    ]


TAGGED: dict[str, Any] = {
    "importV4": [
        {
            "action": "Accept",
            "communities": {"values": ["65000:100"]},
            "operations": [{"setPriority": {"value": 256}}],
        },
        {"action": "Reject", "asPathPrefix": [65000, 65001]},
        {"action": "Reject", "peerType": "iBGP"},
    ],
    "exportV4": [
        {"action": "Reject", "priority": 100},
        {
            "action": "Accept",
            "cidr": "10.0.0.0/8",
            "matchOperator": "In",
            "operations": [
                {"addCommunity": {"value": "64512:7"}},
                {"addCommunity": {"value": "64512:7:8"}},
                {"prependASPath": {"prefix": [65000, 65001]}},
            ],
        },
    ],
}


@pytest.mark.parametrize("asn", [64512, 65010])
def test_rules_of_a_filter_match_and_change_what_routes_carry(asn: int) -> None:
    tor = {"peerIP": "10.192.0.100", "asNumber": asn, "filters": ["tagged"]}
    made = plan(MASTER, stored("BGPFilter", "tagged", TAGGED), stored("BGPPeer", "tor", tor), OFF)
    (session,) = speaker_config(made).bgp
    assert session.ipv4 is not None
    facts = Facts(Source.BGP)

    def comes_in(attrs: Attrs) -> Leaf:
        return evaluate(session.ipv4.import_filter, Net.parse("10.9.0.0/16"), attrs, facts)

    def goes_out(net: str, attrs: Attrs) -> Leaf:
        return evaluate(session.ipv4.export_filter, Net.parse(net), attrs, facts)

    marked = Attrs(communities=bytes.fromhex("fde80064"))
    assert comes_in(marked) == Leaf(True, marked._replace(local_pref=2147483391))
    path = build_path([(AS_SEQUENCE, (65000, 65001, 7))])
    assert not comes_in(Attrs(as_path=path)).accept
    # What is left is refused from internal peers only.
    other = build_path([(AS_SEQUENCE, (65000, 7))])
    assert comes_in(Attrs(as_path=other)).accept is (asn != 64512)
    assert not goes_out("10.1.0.0/16", Attrs(local_pref=2**31 - 1 - 100)).accept
    assert not goes_out("11.1.0.0/16", Attrs()).accept
    out = goes_out("10.1.0.0/16", Attrs(as_path=build_path([(AS_SEQUENCE, (7,))])))
    assert out.accept
    assert format_path(out.attrs.as_path) == "65000 65001 7"
    assert community_pairs(out.attrs.communities) == ((64512, 7),)
    assert large_triples(out.attrs.large_communities) == ((64512, 7, 8),)
    text = render(made)["bird.cfg"]
    assert "function 'bgp_tagged_importFilterV4' (bool is_same_as)" not in text
    internal = "true" if asn == 64512 else "false"
    assert f"    bgp_tagged_importFilterV4({internal});\n    accept;" in text
    assert "    bgp_tagged_exportFilterV4();\n" in text
    assert "  if ( (65000,100) ~ bgp_community ) then {\n    bgp_local_pref = 2147483391;\n" in text


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"action": "Reject", "operations": [{"setPriority": {"value": 1}}]}, "only be used with"),
        ({"action": "Accept", "operations": [{}]}, "exactly one operation"),
        ({"action": "Accept", "operations": [{"setPriority": {"value": 0}}]}, "a number from 1"),
        ({"action": "Accept", "operations": [{"addCommunity": {"value": "1"}}]}, "community"),
        ({"action": "Accept", "operations": [{"prependASPath": {"prefix": []}}]}, "at least 1"),
        ({"action": "Accept", "communities": {"values": ["1:2", "3:4"]}}, "exactly 1 item"),
        ({"action": "Accept", "asPathPrefix": ["x"]}, "not a valid AS number"),
        ({"action": "Accept", "peerType": "both"}, "PeerType"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, Any], error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        checked(new_resource("BGPFilter", "f", {"importV4": [rule]}))


@pytest.mark.parametrize(
    ("text", "value"), [("120s", 120), ("1h1m1s", 3661), ("1500ms", 1), ("", None)]
)
def test_durations_are_go_s(text: str, value: int | None) -> None:
    assert seconds(text) == value


def test_an_unknown_duration_is_an_error() -> None:
    with pytest.raises(UsageError, match="'soon' is not a duration"):
        seconds("soon")


# Services ---------------------------------------------------------------------------------------

CONFIG = {
    "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}],
    "serviceExternalIPs": [{"cidr": "5.5.0.0/24"}],
    "serviceLoadBalancerIPs": [{"cidr": "6.6.0.0/24"}, {"cidr": "7.7.7.7/32"}],
}


def service(**changes: Any) -> Service:
    made = Service("NodePort", True, ("10.97.0.1",), ("5.5.0.9",), (), frozenset({ONE}))
    return replace(made, **changes)


def routes(node: str, *services: Service, **labels: str) -> list[str]:
    return [str(cidr) for cidr in announced(CONFIG, services, node, labels).routes]


RANGES = ["5.5.0.0/24", "6.6.0.0/24", "10.96.0.0/12"]


def test_ranges_are_announced_everywhere_and_local_services_where_they_run() -> None:
    assert routes(MASTER, service()) == RANGES
    assert routes(ONE, service()) == ["5.5.0.0/24", "5.5.0.9/32", *RANGES[1:], "10.97.0.1/32"]
    assert routes(ONE, service(local_only=False)) == RANGES


def test_a_single_balancer_address_is_announced_while_it_is_in_use() -> None:
    balancer = service(kind="LoadBalancer", local_only=False, ingress_ips=("7.7.7.7", "8.8.8.8"))
    assert routes(MASTER, balancer) == [*RANGES[:2], "7.7.7.7/32", RANGES[2]]


def test_an_excluded_node_announces_nothing_but_still_keeps_the_ranges_out() -> None:
    label = {"node.kubernetes.io/exclude-from-external-load-balancers": "true"}
    assert routes(ONE, service(), **label) == []
    assert len(announced(CONFIG, (), ONE, label).ranges) == 4
    label = {"node.kubernetes.io/exclude-from-external-load-balancers": "yes"}
    assert routes(ONE, service(), **label) != []


def test_ready_endpoints_say_where_a_service_runs() -> None:
    (found,) = read_services(
        [
            {
                "metadata": {"namespace": "a", "name": "web"},
                "spec": {"clusterIP": "10.97.0.1", "externalTrafficPolicy": "Local"},
            }
        ],
        [
            {
                "metadata": {
                    "namespace": "a",
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "endpoints": [
                    {"nodeName": ONE, "conditions": {"ready": True}},
                    {"nodeName": TWO, "conditions": {"ready": False}},
                ],
            }
        ],
    )
    assert (found.kind, found.local_only, found.ready_on) == ("ClusterIP", True, frozenset({ONE}))


# Files ------------------------------------------------------------------------------------------


def test_the_files_say_what_the_speaker_does() -> None:
    made = plan(MASTER, *claim(MASTER, "192.168.221.192/26"), *claim(MASTER, "10.2.0.1/32"))
    files = render(made)
    assert files["bird_aggr.cfg"] == (
        "# Generated by confd\n"
        "\n"
        "protocol static {\n"
        "  route 192.168.221.192/26 blackhole;\n"
        "}\n"
        "\n"
        "function calico_aggr ()\n"
        "{\n"
        "  if ( net = 10.2.0.1/32 ) then {\n    accept;\n  }\n"
        "  if ( net = 192.168.221.192/26 ) then {\n    accept;\n  }\n"
        "  if ( net ~ 192.168.221.192/26 ) then {\n    reject;\n  }\n"
        "}\n"
    )
    assert files["bird_ipam.cfg"] == (
        "# Generated by confd\n"
        "\n"
        "function calico_export_to_bgp_peers (bool internal_peer)\n"
        "{\n"
        "  if ( ( internal_peer ) && "
        '( ( ifname ~ "*.cali" ) || ( ifname ~ "*.calico" ) ) ) then {\n'
        "    reject;\n"
        "  }\n"
        "  apply_communities();\n"
        "  calico_aggr();\n"
        "  if ( net ~ 192.168.0.0/16 ) then {\n"
        "    accept;\n"
        "  }\n"
        "}\n"
        "\n"
        "filter calico_kernel_programming\n"
        "{\n"
        "  if ( net ~ 192.168.0.0/16 ) then {\n"
        '    krt_tunnel = "tunl0";\n'
        "    accept;\n"
        "  }\n"
        "  accept;\n"
        "}\n"
    )
    assert (
        "protocol bgp Mesh_10_192_0_3 from bgp_template {\n"
        "  neighbor 10.192.0.3 as 64512;\n"
        "  source address 10.192.0.2;\n"
        "  import all;\n"
        "  export filter {\n"
        "    calico_export_to_bgp_peers(true);\n"
        "    reject;\n"
        "  };\n"
        "  passive on;  # the other node connects\n"
        "}\n"
    ) in files["bird.cfg"]


def test_only_what_changed_is_made_anew() -> None:
    configs = SpeakerConfigs()
    before = configs.make(plan(MASTER))
    assert configs.make(plan(MASTER)) == before == speaker_config(plan(MASTER))
    fourth = [*NODES, node("kube-node-3", "10.192.0.5/16")]
    more = configs.make(plan(MASTER, nodes=fourth))
    assert [each.name for each in more.bgp][-1] == "Mesh_10_192_0_5"
    assert all(old is new for old, new in zip(before.bgp, more.bgp, strict=False))
    # Every session's filter changes with an own block.
    own = configs.make(plan(MASTER, *claim(MASTER, "192.168.221.192/26")))
    assert all(old.ipv4 != new.ipv4 for old, new in zip(before.bgp, own.bgp, strict=True))
    assert own == speaker_config(plan(MASTER, *claim(MASTER, "192.168.221.192/26")))


def test_crossing_a_subnet_decides_the_tunnel_route_by_route() -> None:
    pool = stored("IPPool", "pool", {"cidr": "192.168.0.0/16", "ipipMode": "CrossSubnet"})
    made = make_plan(read([*NODES, pool]), MASTER)
    assert made is not None
    assert (
        "    if ( ( defined(bgp_next_hop) ) && ( ( bgp_next_hop ~ 10.192.0.0/16 ) ) ) then {\n"
        '      krt_tunnel = "";\n'
        "    } else {\n"
        '      krt_tunnel = "tunl0";\n'
        "    }\n"
        "    accept;\n"
    ) in render(made)["bird_ipam.cfg"]


def test_routes_of_a_pool_with_vxlan_are_felix_s() -> None:
    pool = stored("IPPool", "pool", {"cidr": "192.168.0.0/16", "vxlanMode": "CrossSubnet"})
    made = make_plan(read([*NODES, pool]), MASTER)
    assert made is not None
    for net, accepted in (("192.168.7.0/26", False), ("10.9.0.0/16", True)):
        assert evaluate(kernel_filter(made), Net.parse(net), Attrs(), Facts(Source.BGP)).accept is (
            accepted
        )


def test_the_router_id_may_be_made_of_the_name() -> None:
    made = make_plan(state(), MASTER, router_id="hash")
    assert made is not None
    assert made.router_id != made.node.ip
    assert made.router_id >> 24 < 224
    # Of a name whose hash begins with more than 223 the class is another.
    made = make_plan(state(nodes=[node("node-18", "10.192.0.9/16")]), "node-18", router_id="hash")
    assert made is not None
    assert format_ip(made.router_id) == "213.194.139.227"
    with pytest.raises(UsageError, match="router id"):
        make_plan(state(), MASTER, router_id="me")
