"""Kubernetes' policies, namespaces, accounts and labels in Calico's datastore."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest

from agents.calico.client import ResourceClient
from agents.calico.datastore import KVPair
from agents.calico.kubecontrollers.conversion import (
    account_profile,
    endpoint_labels,
    namespace_profile,
    network_policy,
)
from agents.calico.kubecontrollers.mirroring import Cluster, plan
from agents.calico.kubecontrollers.policy import PolicyController
from agents.calico.resources import new_resource, resource_key, to_stored
from agents.calico.validation import prepare
from emulator.apimachinery.validate_network import network_policy as validate
from emulator.kubeclient import RestClient
from emulator.kubeclient.informer import SharedInformers
from emulator.kubeclient.resource import NAMESPACES, NETWORKPOLICIES, NODES, PODS
from emulator.runtime.clock import real_clock
from tests.calico_memory import MemoryDatastore
from tests.kube_fakes import FakeApi
from tests.waiting import until

LOG = logging.getLogger("test")


def policy(spec: dict[str, Any], name: str = "web") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def test_a_policy_becomes_knp_default_of_its_namespace() -> None:
    calico = network_policy(
        policy(
            {
                "podSelector": {"matchLabels": {"tier": "db", "app": "shop"}},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {
                        "from": [
                            {"podSelector": {"matchLabels": {"app": "api"}}},
                            {"namespaceSelector": {"matchLabels": {"team": "ops"}}},
                            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                        ],
                        "ports": [{"protocol": "TCP", "port": 5432}],
                    }
                ],
            }
        )
    )
    assert calico["metadata"] == {"name": "knp.default.web", "namespace": "shop"}
    spec = calico["spec"]
    assert spec["selector"] == (
        "projectcalico.org/orchestrator == 'k8s' && app == 'shop' && tier == 'db'"
    )
    assert (spec["order"], spec["types"], "egress" in spec) == (1000.0, ["Ingress"], False)
    assert spec["ingress"] == [
        {
            "action": "Allow",
            "protocol": "TCP",
            "source": {"selector": "projectcalico.org/orchestrator == 'k8s' && app == 'api'"},
            "destination": {"ports": [5432]},
        },
        {
            "action": "Allow",
            "protocol": "TCP",
            "source": {
                "selector": "projectcalico.org/orchestrator == 'k8s'",
                "namespaceSelector": "team == 'ops'",
            },
            "destination": {"ports": [5432]},
        },
        {
            "action": "Allow",
            "protocol": "TCP",
            "source": {"nets": ["10.0.0.0/8"], "notNets": ["10.1.0.0/16"]},
            "destination": {"ports": [5432]},
        },
    ]
    prepare(calico)


def test_an_empty_policy_closes_and_an_empty_rule_opens() -> None:
    closed = network_policy(policy({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))
    assert closed["spec"] == {
        "order": 1000.0,
        "selector": "projectcalico.org/orchestrator == 'k8s'",
        "types": ["Ingress", "Egress"],
    }
    opened = network_policy(policy({"podSelector": {}, "ingress": [{}]}))
    assert opened["spec"]["ingress"] == [{"action": "Allow", "source": {}, "destination": {}}]


def test_types_that_are_not_said_follow_from_the_rules() -> None:
    assert network_policy(policy({"podSelector": {}}))["spec"]["types"] == ["Ingress"]
    both = network_policy(policy({"podSelector": {}, "egress": [{}]}))
    assert both["spec"]["types"] == ["Ingress", "Egress"]


def test_expressions_and_all_namespaces() -> None:
    expressions = [
        {"key": "a", "operator": "In", "values": ["x", "y"]},
        {"key": "b", "operator": "NotIn", "values": ["z"]},
        {"key": "c", "operator": "Exists"},
        {"key": "d", "operator": "DoesNotExist"},
    ]
    calico = network_policy(
        policy(
            {
                "podSelector": {"matchExpressions": expressions},
                "egress": [{"to": [{"namespaceSelector": {}}]}],
                "policyTypes": ["Egress"],
            }
        )
    )
    assert calico["spec"]["selector"].endswith(
        " && a in { 'x', 'y' } && b not in { 'z' } && has(c) && ! has(d)"
    )
    assert calico["spec"]["egress"][0]["destination"] == {
        "selector": "projectcalico.org/orchestrator == 'k8s'", "namespaceSelector": "all()"
    }  # fmt: skip
    prepare(calico)


def test_ports_of_one_protocol_share_a_rule_and_names_and_ranges_stay() -> None:
    ports = [
        {"protocol": "TCP", "port": 80},
        {"protocol": "UDP"},
        {"port": "web"},
        {"protocol": "TCP", "port": 8000, "endPort": 8080},
        {"protocol": "UDP", "port": 53},
    ]
    calico = network_policy(policy({"podSelector": {}, "ingress": [{"ports": ports}]}))
    assert [
        (rule["protocol"], rule["destination"].get("ports")) for rule in calico["spec"]["ingress"]
    ] == [("TCP", [80, "web", "8000:8080"]), ("UDP", None)]
    prepare(calico)


def test_namespaces_and_accounts_give_labels_to_their_pods() -> None:
    profile = namespace_profile({"metadata": {"name": "shop", "labels": {"team": "ops"}}})
    assert profile["metadata"]["name"] == "kns.shop"
    assert profile["spec"]["labelsToApply"] == {
        "pcns.projectcalico.org/name": "shop", "pcns.team": "ops"
    }  # fmt: skip
    assert [rule["action"] for rule in profile["spec"]["ingress"]] == ["Allow"]
    account = account_profile(
        {"metadata": {"name": "robot", "namespace": "shop", "labels": {"kind": "bot"}}}
    )
    assert account["metadata"]["name"] == "ksa.shop.robot"
    assert account["spec"]["labelsToApply"]["pcsa.kind"] == "bot"
    prepare(profile)
    prepare(account)


POD = {
    "metadata": {"name": "a-1", "namespace": "shop", "labels": {"app": "a"}},
    "spec": {"serviceAccountName": "robot", "nodeName": "kube-0"},
}


def stored(resource: dict[str, Any], revision: int = 7) -> dict[str, KVPair]:
    meta = resource["metadata"]
    key = resource_key(resource["kind"], meta["name"], meta.get("namespace", ""))
    return {key: KVPair(key, to_stored(resource), revision)}


def endpoint(labels: dict[str, str]) -> dict[str, Any]:
    spec = {"orchestrator": "k8s", "node": "kube-0", "pod": "a-1", "endpoint": "eth0"}
    return new_resource(
        "WorkloadEndpoint", "kube--0-k8s-a--1-eth0", spec, namespace="shop", labels=labels
    )


def test_only_what_differs_is_written_and_only_what_is_ours_removed() -> None:
    namespace = {"metadata": {"name": "shop"}}
    there = {
        **stored(namespace_profile(namespace)),
        **stored(new_resource("Profile", "mine", {})),
        **stored(new_resource("Profile", "kns.gone", {})),
        **stored(new_resource("NetworkPolicy", "default.own", {}, namespace="shop")),
        **stored(network_policy(policy({"podSelector": {}}, "old"))),
        **stored(endpoint(endpoint_labels(POD))),
    }
    writes = plan(Cluster((namespace,), (), (), (POD,)), there)
    assert (writes.create, writes.update) == ((), ())
    assert [each["metadata"]["name"] for each in writes.delete] == [
        "knp.default.old", "kns.gone"
    ]  # fmt: skip


def test_a_pods_new_label_reaches_its_endpoint_with_its_version() -> None:
    (write,) = plan(Cluster(pods=(POD,)), stored(endpoint({"app": "other"}))).update
    assert write["metadata"]["labels"]["app"] == "a"
    assert write["metadata"]["resourceVersion"] == "7"
    assert write["spec"]["node"] == "kube-0"


def test_a_nodes_labels_are_kubernetes_and_what_people_gave_it() -> None:
    spec = {"orchRefs": [{"nodeName": "kube-0", "orchestrator": "k8s"}]}
    mine = new_resource("Node", "kube-0", spec, labels={"rack": "7", "zone": "old"})
    kube = {"metadata": {"name": "kube-0", "labels": {"zone": "a", "reflector": "yes"}}}
    (write,) = plan(Cluster(nodes=(kube,)), stored(mine)).update
    assert write["metadata"]["labels"] == {"rack": "7", "reflector": "yes", "zone": "a"}
    assert write["metadata"]["resourceVersion"] == "7"
    assert not plan(Cluster(nodes=(kube,)), stored(write)), "what is so is not written again"
    kube["metadata"]["labels"] = {"zone": "b"}
    (again,) = plan(Cluster(nodes=(kube,)), stored(write)).update
    assert again["metadata"]["labels"] == {"rack": "7", "zone": "b"}


async def test_the_controller_follows_the_api_server_and_mends_the_datastore() -> None:
    store = MemoryDatastore()
    clock, rng = real_clock(), random.Random(1)
    synced = asyncio.Event()
    async with FakeApi() as api, RestClient(api.config, rng=rng) as client:
        await client.create(NAMESPACES, {"metadata": {"name": "shop"}})
        informers = SharedInformers(client, LOG)
        controller = PolicyController(
            ResourceClient(store, clock, rng), store, informers, LOG, on_synced=synced.set
        )
        tasks = [asyncio.create_task(informers.run()), asyncio.create_task(controller.run())]
        try:
            async with asyncio.timeout(30):
                await synced.wait()
            profile = resource_key("Profile", "kns.shop")
            assert profile in store.keys("")
            key = resource_key("NetworkPolicy", "knp.default.web", "shop")
            made = await client.create(NETWORKPOLICIES, policy({"podSelector": {}}))
            await until(lambda: key in store.keys(""), "the policy is mirrored")
            store.remove(key)
            await until(lambda: key in store.keys(""), "a removed mirror comes back")
            made["spec"]["ingress"] = [{}]
            await client.update(NETWORKPOLICIES, made)
            await until(lambda: b'"ingress"' in store.raw(key), "a change is mirrored")
            await client.delete(NETWORKPOLICIES, "shop", "web")
            await until(lambda: key not in store.keys(""), "a deletion is mirrored")
            where = resource_key("WorkloadEndpoint", "kube--0-k8s-a--1-eth0", "shop")
            store.put(where, to_stored(endpoint({})))
            await client.create(PODS, POD)
            await until(lambda: b'"app":"a"' in store.raw(where), "labels are mirrored")
            spec = {"orchRefs": [{"nodeName": "kube-0", "orchestrator": "k8s"}]}
            node = resource_key("Node", "kube-0")
            store.put(node, to_stored(new_resource("Node", "kube-0", spec)))
            await client.create(NODES, {"metadata": {"name": "kube-0", "labels": {"rr": "yes"}}})
            await until(lambda: b'"rr":"yes"' in store.raw(node), "a node's labels are mirrored")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


# What the API server refuses ------------------------------------------------------------------

REFUSED = [
    ({"ingress": [{"from": [{}]}]}, "spec.ingress[0].from[0]: Required value: must specify a peer"),
    (
        {"egress": [{"to": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
        "spec.egress[0].to[0]: Forbidden: may not specify both ipBlock and another peer",
    ),
    (
        {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]},
        'spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "11.0.0.0/16": must be a strict '
        "subset of `cidr`",
    ),
    (
        {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/255.0.0.0"}}]}]},
        'spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.0.0.0/255.0.0.0": must be a '
        "valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
    ),
    (
        {"ingress": [{"ports": [{"port": 80, "endPort": 70}]}]},
        "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to "
        "`port`",
    ),
    (
        {"ingress": [{"ports": [{"port": "web", "endPort": 70}]}]},
        "spec.ingress[0].ports[0].endPort: Invalid value: 70: may not be specified when `port` is "
        "non-numeric",
    ),
    (
        {"ingress": [{"ports": [{"protocol": "ICMP"}]}]},
        'spec.ingress[0].ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", '
        '"TCP", "UDP"',
    ),
    (
        {"policyTypes": ["Sideways"]},
        'spec.policyTypes: Unsupported value: "Sideways": supported values: "Egress", "Ingress"',
    ),
]


@pytest.mark.parametrize(("spec", "text"), REFUSED)
def test_a_policy_that_makes_no_sense_is_refused_in_kubernetes_words(
    spec: dict[str, Any], text: str
) -> None:
    assert [str(error) for error in validate(policy({"podSelector": {}, **spec}))] == [text]
