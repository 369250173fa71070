"""The datastore's resources as felix understands them."""

from __future__ import annotations

from typing import Any

from agents.calico.datastore import KVPair
from agents.calico.felix.entities import entity_selector, policy_selector
from agents.calico.felix.reading import StateReader, read_state
from agents.calico.kubecontrollers.conversion import endpoint_labels, namespace_profile
from agents.calico.resources import endpoint_name, new_resource, resource_key
from emulator.addr import Prefix, parse_ip


def kvp(resource: dict[str, Any], revision: int = 1) -> dict[str, KVPair]:
    meta = resource["metadata"]
    key = resource_key(resource["kind"], meta["name"], meta.get("namespace", ""))
    return {key: KVPair(key, resource, revision)}


def endpoint(pod: str, node: str) -> dict[str, Any]:
    spec = {
        "orchestrator": "k8s", "node": node, "pod": pod, "endpoint": "eth0",
        "interfaceName": f"cali{pod}", "ipNetworks": ["192.168.0.2/32"], "profiles": ["kns.shop"],
        "ipNATs": [{"internalIP": "192.168.0.2", "externalIP": "172.18.1.1"}],
    }  # fmt: skip
    labels = endpoint_labels({"metadata": {"name": pod, "namespace": "shop"}, "spec": {}})
    name = endpoint_name(node, "k8s", pod)
    return new_resource("WorkloadEndpoint", name, spec, namespace="shop", labels=labels)


def space(**labels: str) -> dict[str, Any]:
    return namespace_profile({"metadata": {"name": "shop", "labels": labels}})


def test_selectors_of_a_namespaced_policy_stay_in_its_namespace() -> None:
    assert str(policy_selector({"selector": "app == 'a'"}, "shop")) == (
        '(app == "a" && projectcalico.org/namespace == "shop")'
    )
    assert str(entity_selector({"selector": "has(x)"}, "shop")) == (
        '(projectcalico.org/namespace == "shop" && has(x))'
    )
    assert str(entity_selector({"namespaceSelector": "team == 'b'"}, "shop")) == (
        'pcns.team == "b"'
    )
    assert str(entity_selector({"namespaceSelector": "all()"}, "")) == (
        "has(projectcalico.org/namespace)"
    )
    assert str(entity_selector({"namespaceSelector": "global()"}, "")) == (
        "!has(projectcalico.org/namespace)"
    )
    assert entity_selector({"nets": ["10.0.0.0/8"]}, "shop") is None


def test_service_accounts_are_labels_too() -> None:
    accounts = {"serviceAccounts": {"names": ["b", "a"], "selector": "kind == 'bot'"}}
    assert str(entity_selector(accounts, "")) == (
        '(projectcalico.org/serviceaccount in {"a", "b"} && pcsa.kind == "bot")'
    )
    assert "pcsa.kind" in str(policy_selector({"serviceAccountSelector": "kind == 'bot'"}, "shop"))


def test_a_profile_gives_its_labels_and_only_what_changed_is_read_anew() -> None:
    reader = StateReader("kube-0")
    items = {**kvp(endpoint("web", "kube-0")), **kvp(space(team="a"))}
    assert reader.note(items, items)
    (first,) = reader.read(items).endpoints
    assert first.labels["pcns.team"] == "a"
    assert first.nats == ((parse_ip("172.18.1.1"), parse_ip("192.168.0.2")),)
    assert reader.read(items).endpoints[0] is first
    changed = kvp(space(team="b"), revision=2)
    items |= changed
    assert reader.note(items, changed)
    assert reader.read(items).endpoints[0].labels["pcns.team"] == "b"


def test_what_felix_makes_nothing_of_is_no_news() -> None:
    node = new_resource("Node", "kube-1", {"bgp": {"ipv4Address": "10.10.95.205/20"}})
    changed = kvp(node)
    items = {**changed, **kvp(space())}
    reader = StateReader("kube-0")
    assert reader.note(items, items)
    assert not reader.note(items, items)
    labelled = {**node, "metadata": {**node["metadata"], "labels": {"rack": "1"}}}
    items |= kvp(labelled, revision=2)
    assert not reader.note(items, changed)
    assert [each.name for each in reader.read(items).nodes] == ["kube-1"]
    for key in changed:
        del items[key]
    assert reader.note(items, changed)
    assert reader.read(items).nodes == ()
    assert not reader.note(items, changed)


def test_what_happens_elsewhere_matters_only_to_rules_that_ask() -> None:
    items = {
        **kvp(endpoint("web", "kube-0")), **kvp(endpoint("far", "kube-1")), **kvp(space())
    }  # fmt: skip
    state = read_state(items, "kube-0")
    assert [each.workload for each in state.relevant().endpoints] == ["web"]
    asking = {
        "selector": "all()",
        "types": ["Ingress"],
        "ingress": [{"action": "Allow", "source": {"selector": "app == 'x'"}}],
    }
    items |= kvp(new_resource("GlobalNetworkPolicy", "default.asks", asking))
    assert len(read_state(items, "kube-0").relevant().endpoints) == 2


def test_settings_of_the_node_go_before_those_of_all() -> None:
    default = {"defaultEndpointToHostAction": "Drop", "ipipMTU": 1440, "vxlanPort": 4790}
    items = {
        **kvp(new_resource("FelixConfiguration", "default", default)),
        **kvp(new_resource("FelixConfiguration", "node.kube-0", {"ipipMTU": 1400})),
        **kvp(new_resource("FelixConfiguration", "node.kube-1", {"ipipMTU": 1300})),
    }
    settings = read_state(items, "kube-0").settings
    assert (settings.endpoint_to_host, settings.ipip_mtu, settings.vxlan_port) == (
        "DROP", 1400, 4790
    )  # fmt: skip


def test_blocks_say_who_owns_them_and_what_was_borrowed() -> None:
    key = "/calico/ipam/v2/assignment/ipv4/block/192.168.0.0-26"
    block = {
        "cidr": "192.168.0.0/26",
        "affinity": "host:kube-0",
        "allocations": [None, 0, 1] + [None] * 61,
        "attributes": [
            {"handle_id": "a", "secondary": {"node": "kube-0"}},
            {"handle_id": "b", "secondary": {"node": "kube-1"}},
        ],
    }
    blocks = {key: KVPair(key, block, 1)}
    assert read_state(blocks, "kube-0").blocks == ()
    pool = new_resource("IPPool", "all", {"cidr": "192.168.0.0/16", "vxlanMode": "Always"})
    (found,) = read_state({**blocks, **kvp(pool)}, "kube-0").blocks
    assert (found.cidr, found.node) == (Prefix.parse("192.168.0.0/26"), "kube-0")
    assert found.borrowed == ((parse_ip("192.168.0.2"), "kube-1"),)


def test_host_endpoints_and_other_tiers_are_named_as_not_enforced() -> None:
    items = {
        **kvp(new_resource("HostEndpoint", "eth0", {"node": "kube-0", "interfaceName": "eth0"})),
        **kvp(
            new_resource(
                "GlobalNetworkPolicy", "security.deny", {"tier": "security", "selector": "all()"}
            )
        ),
    }
    state = read_state(items, "kube-0")
    assert state.policies == ()
    assert any("host endpoints are not enforced" in text for text in state.refused)
    assert any("only the tier default is known" in text for text in state.refused)


def test_an_endpoint_s_own_labels_come_before_its_profiles() -> None:
    profile = new_resource("Profile", "kns.shop", {"labelsToApply": {"app": "profile", "a": "b"}})
    web = endpoint("web", "kube-0")
    web["metadata"]["labels"] = {"app": "own"}
    (found,) = read_state({**kvp(profile), **kvp(web)}, "kube-0").endpoints
    assert found.labels == {"app": "own", "a": "b"}


def test_a_rule_that_asks_for_more_than_packets_tell_is_left_out_not_widened() -> None:
    rules = [
        {"action": "Allow", "http": {"methods": ["GET"]}},
        {"action": "Allow", "source": {"services": {"name": "web"}}},
        {"action": "Allow", "source": {"nets": ["10.0.0.0/8"]}},
    ]
    policy = new_resource("GlobalNetworkPolicy", "default.p", {"ingress": rules})
    state = read_state(kvp(policy), "a")
    (read,) = state.policies
    assert [rule.source.nets for rule in read.ingress] == [("10.0.0.0/8",)]
    assert [text.partition(" is left out: ")[0] for text in state.refused] == [
        "GlobalNetworkPolicy default.p: ingress rule 1",
        "GlobalNetworkPolicy default.p: ingress rule 2",
    ]
