"""Whatever somebody writes into the datastore costs only itself: felix and confd go on."""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.calico.admission import admit
from agents.calico.confd.plan import make_plan
from agents.calico.confd.render import render
from agents.calico.confd.speaker import speaker_config
from agents.calico.confd.state import read_state as read_bgp
from agents.calico.datastore import KVPair
from agents.calico.felix.compute import compute
from agents.calico.felix.reading import read_state
from agents.calico.known_fields import unknown_fields
from agents.calico.resources import key_of_resource, new_resource
from agents.calico.validation import prepare
from emulator.errors import UsageError
from tests.calico_policy_world import World

ODD = st.sampled_from(
    [
        *(
            None,
            7,
            -1,
            10**30,
            3.5,
            True,
            "",
            "x",
            "é",
            'a b " c',
            "10.0.0.0/8",
            "1.2.3.4",
            "70000",
        ),
        *([], {}, [7], [None], {"a": 1}, [{"a": None}], {"secretKeyRef": 7}),
    ]
)
_SIDE = {
    "selector": "app == 'api'",
    "namespaceSelector": "all()",
    "nets": ["10.0.0.0/8", "11.0.0.0/8"],
    "notNets": ["10.1.0.0/16"],
    "ports": [1, "2:3", "http"],
    "serviceAccounts": {"names": ["a"], "selector": "has(y)"},
}
FELIX = [
    new_resource(
        "GlobalNetworkPolicy",
        "default.odd",
        {
            "selector": "app == 'vault'",
            "order": 5.0,
            "types": ["Ingress", "Egress"],
            "ingress": [
                {"action": "Allow", "protocol": "TCP", "source": _SIDE, "destination": {}},
                {"action": "Deny", "protocol": "ICMP", "icmp": {"type": 8, "code": 0}},
            ],
            "egress": [{"action": "Log", "notProtocol": "UDP", "ipVersion": 4}],
        },
    ),
    new_resource("GlobalNetworkSet", "s", {"nets": ["1.2.3.0/24"]}, labels={"app": "api"}),
    new_resource(
        "FelixConfiguration",
        "default",
        {"ipipMTU": 1400, "vxlanPort": 4789, "logPrefix": "x", "ipipEnabled": True},
    ),
    new_resource("IPPool", "p", {"cidr": "172.16.0.0/16", "vxlanMode": "CrossSubnet"}),
    new_resource(
        "Node",
        "kube-9",
        {
            "bgp": {"ipv4Address": "172.17.4.202/24", "ipv4IPIPTunnelAddr": "192.168.3.1"},
            "ipv4VXLANTunnelAddr": "172.16.3.1",
            "vxlanTunnelMACAddr": "66:00:00:00:00:01",
        },
    ),
    new_resource(
        "WorkloadEndpoint",
        "kube--9-k8s-a-eth0",
        {
            "orchestrator": "k8s",
            "node": "kube-9",
            "pod": "a",
            "endpoint": "eth0",
            "interfaceName": "cali1",
            "ipNetworks": ["192.168.3.4/32"],
            "profiles": ["kns.shop"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            "ipNATs": [{"internalIP": "192.168.3.4", "externalIP": "1.2.3.4"}],
        },
        namespace="shop",
        labels={"app": "api"},
    ),
]
CLOSED = new_resource(
    "GlobalNetworkPolicy", "default.zz", {"selector": "app == 'web'", "types": ["Ingress"]}
)
CONFD = [
    new_resource("Node", "own", {"bgp": {"ipv4Address": "10.0.0.1/24", "asNumber": 64514}}),
    new_resource("Node", "other", {"bgp": {"ipv4Address": "10.0.0.2/24", "asNumber": "1.10"}}),
    new_resource("IPPool", "p", {"cidr": "192.168.0.0/16", "ipipMode": "Always"}),
    new_resource(
        "BGPConfiguration",
        "default",
        {
            "asNumber": 64513,
            "listenPort": 1790,
            "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}],
            "communities": [{"name": "c", "value": "1:2"}],
            "prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["c", "1:2:3"]}],
            "ignoredInterfaces": ["docker*"],
            "nodeMeshMaxRestartTime": "10s",
        },
    ),
    new_resource(
        "BGPPeer",
        "tor",
        {
            "peerIP": "10.9.0.1:1791",
            "asNumber": 65001,
            "filters": ["f"],
            "password": {"secretKeyRef": {"name": "s", "key": "k"}},
            "localASNumber": 65009,
            "keepaliveTime": "3s",
            "ttlSecurity": 3,
            "reachableBy": "10.0.0.254",
        },
    ),
    new_resource("BGPPeer", "rr", {"nodeSelector": "has(rr)", "peerSelector": "all()"}),
    new_resource(
        "BGPFilter",
        "f",
        {
            "importV4": [
                {
                    "action": "Accept",
                    "cidr": "10.0.0.0/8",
                    "matchOperator": "In",
                    "prefixLength": {"min": 9, "max": 24},
                    "source": "RemotePeers",
                    "interface": "eth*",
                    "peerType": "eBGP",
                    "communities": {"values": ["65000:42"]},
                    "asPathPrefix": [65000, "1.1"],
                    "priority": 100,
                    "operations": [
                        {"addCommunity": {"value": "64512:1:2"}},
                        {"prependASPath": {"prefix": [65000]}},
                        {"setPriority": {"value": 256}},
                    ],
                }
            ]
        },
    ),
]


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    pairs = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        pairs = enumerate(value)
    for key, inner in pairs:
        found += _paths(inner, (*at, key))
    return found


def _with(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    changed = copy.copy(value)
    changed[path[0]] = _with(changed[path[0]], path[1:], odd)
    return changed


def broken(resources: list[dict[str, Any]]) -> st.SearchStrategy[dict[str, KVPair]]:
    """The resources with one field of one of them replaced."""
    places = [(i, path) for i, resource in enumerate(resources) for path in _paths(resource)]

    def make(place: tuple[int, tuple[Any, ...]], odd: Any) -> dict[str, KVPair]:
        items = {}
        for i, resource in enumerate(resources):
            key = key_of_resource(resource)
            value = _with(resource, place[1], odd) if i == place[0] else resource
            items[key] = KVPair(key, value, 1)
        return items

    return st.builds(make, st.sampled_from(places), ODD)


@functools.cache
def world() -> World:
    return World()


@settings(max_examples=150, deadline=None)
@given(broken(FELIX))
def test_felix_enforces_the_rest(items: dict[str, KVPair]) -> None:
    state = read_state({**world().items([CLOSED]), **items}, "kube-0")
    assert world().plane.apply(compute(state.relevant()))
    assert not world().passes("api", "web", "UDP", 53)


@settings(max_examples=300, deadline=None)
@given(broken(CONFD))
def test_confd_configures_the_rest(items: dict[str, KVPair]) -> None:
    state = read_bgp(items.values(), {})
    for name in ("own", "other"):
        plan = make_plan(state, name)
        if plan is not None:
            assert speaker_config(plan).router_id == plan.node.ip
            render(plan, {})
    assert {"own", "other"} & {node.name for node in state.nodes}


@settings(max_examples=300, deadline=None)
@given(broken(FELIX + CONFD))
def test_what_a_person_applies_is_refused_in_words(items: dict[str, KVPair]) -> None:
    for kvp in items.values():
        if isinstance(kvp.value, dict):
            with contextlib.suppress(UsageError):
                prepare(kvp.value)


@pytest.mark.parametrize("resource", [*FELIX, *CONFD], ids=lambda each: each["kind"])
def test_every_field_that_is_read_is_a_known_one(resource: dict[str, Any]) -> None:
    assert unknown_fields(resource) == []


@settings(max_examples=60)
@given(st.sampled_from([*FELIX, *CONFD]), st.data())
def test_the_api_server_judges_whatever_is_written(resource: dict[str, Any], data: Any) -> None:
    odd = copy.deepcopy(resource)
    field = data.draw(st.sampled_from(sorted(odd["spec"]) or ["x"]))
    odd["spec"][field] = data.draw(ODD)
    others = [resource, {"metadata": {"name": "broken"}, "spec": None}]
    findings = admit(odd, resource, others)
    assert all(each.name for each in findings.broken)
    admit(odd, None, others)


def test_a_side_that_is_none_and_ports_without_a_protocol_are_both_named() -> None:
    rule = {"action": "Allow", "source": [[]], "destination": {"ports": [1]}}
    odd = new_resource("GlobalNetworkPolicy", "odd", {"selector": "all()", "ingress": [rule]})
    names = [each.name for each in admit(odd, None, []).broken]
    assert [name for name in names if name.endswith(("Source", "Destination.Ports"))] == names
    assert len(names) == 2
