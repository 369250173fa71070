"""Why a node is not chosen, in the scheduler's own words."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agents.scheduler.cluster import NodeInfo, pod_info
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
