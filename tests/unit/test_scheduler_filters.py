"""Why a node is not chosen, in the scheduler's own words."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agents.scheduler.algorithm import schedule
from agents.scheduler.cluster import ClusterState, NodeInfo, pod_info
from agents.scheduler.filters import fit_error, reasons_against
from agents.scheduler.resources import pod_requests
from agents.scheduler.scores import best_node
from emulator.kubeclient.placement import matches_term, tolerates

Object = dict[str, Any]


def node(name: str = "n", spec: Object | None = None, **labels: str) -> NodeInfo:
    info = NodeInfo(name)
    allocatable = {"cpu": "1", "memory": "1Gi", "pods": "2"}
    meta = {"name": name, "labels": labels}
    info.set_node({"metadata": meta, "spec": spec or {}, "status": {"allocatable": allocatable}})
    return info


def pod(uid: str = "u", cpu: str = "100m", **spec: Any) -> Object:
    containers = [{"resources": {"requests": {"cpu": cpu}}}]
    meta = {"name": uid, "namespace": "default", "uid": uid}
    return {"metadata": meta, "spec": {"containers": containers, **spec}}


TAINT = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("spec", "pod_spec", "reasons"),
    [
        ({}, {}, []),
        ({"unschedulable": True}, {}, ["node(s) were unschedulable"]),
        ({}, {"nodeName": "m"}, ["node(s) didn't match the requested node name"]),
        (
            {"taints": [TAINT]},
            {},
            ["node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }"],
        ),
        ({"taints": [TAINT]}, {"tolerations": [{"operator": "Exists"}]}, []),
        ({"taints": [{"key": "a", "value": "b", "effect": "PreferNoSchedule"}]}, {}, []),
        (
            {},
            {"nodeSelector": {"disk": "ssd"}},
            ["node(s) didn't match Pod's node affinity/selector"],
        ),
        ({}, {"cpu": "2"}, ["Insufficient cpu"]),
    ],
)
def test_each_filter_says_why(spec: Object, pod_spec: Object, reasons: list[str]) -> None:
    assert reasons_against(pod_info(pod(**pod_spec)), node(spec=spec)) == reasons


def test_taken_ports_and_too_many_pods() -> None:
    info = node()
    with_port = pod("a")
    with_port["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 80}]
    info.add(pod_info(with_port))
    other = pod("b")
    other["spec"]["containers"][0]["ports"] = [{"containerPort": 1, "hostPort": 80}]
    assert reasons_against(pod_info(other), info) == [
        "node(s) didn't have free ports for the requested pod ports"
    ]
    info.add(pod_info(pod("c")))
    assert reasons_against(pod_info(pod("d", cpu="1")), info) == [
        "Too many pods",
        "Insufficient cpu",
    ]


@pytest.mark.parametrize(
    ("held", "asked", "free"),
    [
        ("10.0.0.1", "10.0.0.2", True),
        ("10.0.0.1", "10.0.0.1", False),
        ("10.0.0.1", "", False),
        ("0.0.0.0", "10.0.0.1", False),
    ],
)
def test_a_host_port_is_taken_per_address(held: str, asked: str, free: bool) -> None:
    def with_port(name: str, ip: str) -> Object:
        made = pod(name)
        port = {"containerPort": 80, "hostPort": 80, "hostIP": ip}
        made["spec"]["containers"][0]["ports"] = [port]
        return made

    info = node()
    info.add(pod_info(with_port("a", held)))
    assert (reasons_against(pod_info(with_port("b", asked)), info) == []) is free


def test_the_event_counts_nodes_by_reason() -> None:
    taint = "node(s) had untolerated taint {node.kubernetes.io/unreachable: }"
    assert fit_error(3, [[taint], ["Insufficient cpu"], ["Insufficient cpu"]]) == (
        "0/3 nodes are available: 1 node(s) had untolerated taint "
        "{node.kubernetes.io/unreachable: }, 2 Insufficient cpu. preemption: 0/3 nodes are "
        "available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found for "
        "incoming pod."
    )
    assert fit_error(0, []) == "no nodes available to schedule pods"


def test_init_containers_count_by_their_greediest() -> None:
    spec = {
        "initContainers": [
            {"resources": {"requests": {"cpu": "3"}}},
            {"restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
        ],
        "containers": [{"resources": {"requests": {"cpu": "1", "memory": "1Ki"}}}],
    }
    assert pod_requests(spec) == {"cpu": 3000, "memory": 1024}


def test_a_preferred_node_wins_over_an_emptier_one() -> None:
    preference = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}
    affinity = {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": preference}
            ]
        }
    }
    fast, empty = node("fast", disk="ssd"), node("empty")
    fast.add(pod_info(pod("a")))
    chosen = best_node(pod_info(pod("b", affinity=affinity)), [empty, fast], random.Random(1))
    assert chosen.name == "fast"


def test_a_node_whose_taint_prefers_others_comes_last() -> None:
    taint = {"key": "k", "value": "v", "effect": "PreferNoSchedule"}
    busy, avoided = node("busy"), node("avoided", {"taints": [taint]})
    busy.add(pod_info(pod("a")))
    assert best_node(pod_info(pod("b")), [avoided, busy], random.Random(1)).name == "busy"
    told = pod_info(pod("b", tolerations=[{"key": "k", "operator": "Exists"}]))
    assert best_node(told, [avoided, busy], random.Random(1)).name == "avoided"


def test_pods_of_one_owner_are_spread_over_emptiness_and_chance() -> None:
    def owned(uid: str, owner: str, cpu: str) -> Object:
        made = pod(uid, cpu)
        made["metadata"]["ownerReferences"] = [{"uid": owner, "controller": True}]
        return made

    sibling, full = node("sibling"), node("full")
    sibling.add(pod_info(owned("a", "rs", "10m")))
    full.add(pod_info(owned("b", "other", "600m")))
    third = pod_info(owned("c", "rs", "10m"))
    assert best_node(third, [sibling, full], random.Random(1)).name == "full"
    equal = [node(name) for name in "abc"]
    chosen = {best_node(third, equal, random.Random(seed)).name for seed in range(40)}
    assert chosen == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "k", "operator": "Exists"}, True),
        ({"key": "k", "value": "v"}, True),
        ({"key": "k", "value": "w"}, False),
        ({"key": "k", "operator": "Exists", "effect": "NoSchedule"}, False),
        ({"key": "k", "operator": "Unheard"}, False),
        ({}, False),
    ],
)
def test_tolerations(toleration: Object, expected: bool) -> None:
    taint = {"key": "k", "value": "v", "effect": "NoExecute"}
    assert tolerates(toleration, taint) is expected


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("In", ["4"], True),
        ("NotIn", ["4"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
        ("Gt", ["3"], True),
        ("Lt", ["3"], False),
        ("Gt", ["x"], False),
    ],
)
def test_node_selector_operators(operator: str, values: list[str], expected: bool) -> None:
    term = {"matchExpressions": [{"key": "cores", "operator": operator, "values": values}]}
    assert matches_term(term, {"metadata": {"name": "n", "labels": {"cores": "4"}}}) is expected


def test_an_empty_term_matches_nothing_and_fields_match_the_name() -> None:
    there = {"metadata": {"name": "n"}}
    assert not matches_term({}, there)
    field = {"key": "metadata.name", "operator": "In", "values": ["n"]}
    assert matches_term({"matchFields": [field]}, there)


def zoned() -> ClusterState:
    cluster = ClusterState()
    for number, zone in enumerate(("a", "a", "b")):
        allocatable = {"cpu": "4", "memory": "4Gi", "pods": "20"}
        name = f"n{number}"
        labels = {"zone": zone, "kubernetes.io/hostname": name}
        cluster.set_node(
            {
                "metadata": {"name": name, "labels": labels},
                "spec": {},
                "status": {"allocatable": allocatable},
            }
        )
    return cluster


def place(cluster: ClusterState, count: int, **spec: Any) -> list[str]:
    """Schedule pods labelled ``app=web`` one after another; their nodes or the refusals."""
    results: list[str] = []
    for number in range(count):
        new = pod(f"web{len(cluster.nodes())}{number}{len(results)}{id(spec)}", **spec)
        new["metadata"]["labels"] = {"app": "web"}
        info = pod_info(new)
        decision = schedule(info, cluster, random.Random(1))
        if decision.node:
            cluster.assume(info, decision.node)
        results.append(decision.node or decision.message)
    return results


def rule(kind: str, key: str) -> Object:
    term = {"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}}
    return {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def test_pods_that_stay_away_from_each_other_get_a_node_each() -> None:
    away = rule("podAntiAffinity", "kubernetes.io/hostname")
    cluster = zoned()
    *placed, refused = place(cluster, 4, affinity=away)
    assert sorted(placed) == ["n0", "n1", "n2"]
    assert "3 node(s) didn't match pod anti-affinity rules" in refused
    (other,) = place(cluster, 1)
    assert "3 node(s) didn't satisfy existing pods anti-affinity rules" in other


def test_pods_that_want_company_follow_the_first_into_its_zone() -> None:
    near = rule("podAffinity", "zone")
    zones = {"n0": "a", "n1": "a", "n2": "b"}
    placed = place(zoned(), 5, affinity=near)
    assert len({zones[name] for name in placed}) == 1


def test_a_spread_constraint_keeps_zones_level() -> None:
    constraint = {
        "maxSkew": 1,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    placed = place(zoned(), 6, topologySpreadConstraints=[constraint])
    assert placed.count("n2") == 3
    (refused,) = place(zoned(), 1, topologySpreadConstraints=[{**constraint, "topologyKey": "x"}])
    assert "3 node(s) didn't match pod topology spread constraints (missing" in refused
