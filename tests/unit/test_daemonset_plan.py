"""A DaemonSet as values: one pod on each node that may have it, replaced a few at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agents.controllers.actions import Create, Delete, Patch
from agents.controllers.daemonset import (
    REVISION_HASH,
    DaemonPlan,
    daemon_pod,
    daemonset_status,
    plan_daemons,
    revision_actions,
    target_node,
)
from emulator.kubeclient.meta import format_time

Object = dict[str, Any]
NOW = 1_700_000_000.0
NODES = ("a", "b", "c", "d")


def daemon_set(template: Object | None = None, **spec: Any) -> Object:
    return {
        "metadata": {"name": "agent", "namespace": "default", "uid": "ds", "generation": 3},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": template or {}},
            **spec,
        },
    }


def node(name: str, *taints: Object, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "spec": {"taints": [*taints]}}


def pod(name: str, on: str, **fields: Any) -> Object:
    since = format_time(NOW - fields.get("ready_s", 100))
    ready = {"type": "Ready", "status": str(fields.get("ready", True)), "lastTransitionTime": since}
    meta: Object = {
        "name": name,
        "uid": name,
        "labels": {"app": "agent", REVISION_HASH: fields.get("hash", "now")},
        "creationTimestamp": format_time(NOW - fields.get("age_s", 100)),
    }
    if fields.get("going"):
        meta["deletionTimestamp"] = format_time(NOW)
    status = {"phase": fields.get("phase", "Running"), "conditions": [ready]}
    return {"metadata": meta, "spec": {"nodeName": on}, "status": status}


def waiting(name: str, meant_for: str) -> Object:
    """A pod the scheduler has not bound yet."""
    made = daemon_pod(daemon_set(), meant_for, "now", random.Random(1))
    made["metadata"]["name"] = name
    return made


def plan(pods: list[Object], ds: Object | None = None, nodes: list[Object] | None = None) -> Any:
    """(nodes to create on, names to delete, names of failed ones)."""
    there = [node(name) for name in NODES] if nodes is None else nodes
    found: DaemonPlan = plan_daemons(ds or daemon_set(), there, pods, "now", NOW)
    names = [[each["metadata"]["name"] for each in part] for part in (found.delete, found.failed)]
    return found.create_on, *names


def everywhere(**fields: Any) -> list[Object]:
    return [pod(f"on-{name}", name, **fields) for name in NODES]


def test_each_node_gets_one_pod_and_keeps_the_older_of_two() -> None:
    assert plan([]) == (NODES, [], [])
    assert plan(everywhere()) == ((), [], [])
    twice = [*everywhere(), pod("newer", "b", age_s=5), waiting("unbound", "c")]
    assert plan(twice) == ((), ["newer", "unbound"], [])
    assert target_node(waiting("x", "c")) == "c"


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_pod_that_ended_goes_before_its_successor_comes(phase: str) -> None:
    pods = [*everywhere()[1:], pod("ended", "a", phase=phase)]
    assert plan(pods) == ((), ["ended"], ["ended"])
    assert plan([*everywhere()[1:], pod("leaving", "a", going=True)]) == ((), [], [])
    assert plan(everywhere()[1:]) == (("a",), [], [])


def test_nodes_are_chosen_by_name_selector_and_taints() -> None:
    taint = {"key": "gpu", "effect": "NoSchedule"}
    evicting = {"key": "gpu", "effect": "NoExecute"}
    nodes = [node("a", disk="ssd"), node("b", taint, disk="ssd"), node("c", evicting, disk="ssd")]
    assert plan([], nodes=nodes)[0] == ("a",)
    assert plan([], daemon_set({"nodeName": "b"}), [node("a"), node("b")])[0] == ("b",)
    assert plan([], daemon_set({"nodeSelector": {"disk": "hdd"}}), nodes)[0] == ()
    # One that may not start there may stay, but for NoExecute.
    assert plan([pod(f"on-{n}", n) for n in "abc"], nodes=nodes) == ((), ["on-c"], [])
    # What a node's trouble taints it with keeps no daemon away.
    ill = node("a", *({"key": f"node.kubernetes.io/{word}", "effect": effect} for word, effect in (
        ("not-ready", "NoExecute"), ("unreachable", "NoExecute"), ("unschedulable", "NoSchedule"),
        ("disk-pressure", "NoSchedule"),
    )))  # fmt: skip
    assert plan([], nodes=[ill])[0] == ("a",)
    away = node("a", {"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"})
    assert plan([], nodes=[away])[0] == ()
    assert plan([], daemon_set({"hostNetwork": True}), [away])[0] == ("a",)


def test_bound_pods_of_a_node_that_is_gone_are_left_to_the_pod_collector() -> None:
    pods = [*everywhere(), pod("bound", "gone"), waiting("unbound", "gone")]
    assert plan(pods) == ((), ["unbound"], [])


def rolling(most: int | str, **spec: Any) -> Object:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most}}
    return daemon_set(updateStrategy=strategy, **spec)


@pytest.mark.parametrize(
    ("most", "goes"),
    [(1, ["on-a"]), (2, ["on-a", "on-b"]), ("30%", ["on-a", "on-b"]), (0, ["on-a"])],
)
def test_a_rolling_update_takes_so_many_at_a_time(most: int | str, goes: list[str]) -> None:
    assert plan(everywhere(hash="before"), rolling(most))[1] == goes


def test_what_does_not_run_anyway_counts_against_an_update() -> None:
    before = everywhere(hash="before")
    new = [pod("on-a", "a", ready=False), *before[1:]]
    assert plan(new, rolling(1))[1] == []
    assert plan(new, rolling(2))[1] == ["on-b"]
    fresh = [pod("on-a", "a", ready_s=10), *before[1:]]
    assert plan(fresh, rolling(1, minReadySeconds=30))[1] == []
    assert plan(fresh, rolling(1))[1] == ["on-b"]
    # An old one that is broken goes beyond the budget.
    broken = [pod("on-a", "a", ready=False, hash="before"), *before[1:]]
    assert plan(broken, rolling(1))[1] == ["on-a"]
    assert plan(broken, rolling(2))[1] == ["on-a", "on-b"]
    # As does a node whose pod is still going.
    leaving = [pod("on-a", "a", going=True), *before[1:]]
    assert plan(leaving, rolling(1))[1] == []
    # Where a pod is missing, that comes first.
    assert plan(before[1:], rolling(2)) == (("a",), [], [])
    assert plan(before, daemon_set(updateStrategy={"type": "OnDelete"}))[1] == []


def test_the_status_counts_nodes() -> None:
    taint = {"key": "gpu", "effect": "NoSchedule"}
    nodes = [node("a"), node("b"), node("c"), node("d", taint)]
    pods = [
        pod("on-a", "a", hash="before"),
        pod("on-b", "b", ready_s=10),
        pod("on-d", "d"),
        pod("ended", "c", phase="Failed"),
    ]
    status, again_s = daemonset_status(daemon_set(minReadySeconds=30), nodes, pods, "now", NOW)
    assert status == {
        "currentNumberScheduled": 2,
        "numberMisscheduled": 1,
        "desiredNumberScheduled": 3,
        "numberReady": 2,
        "observedGeneration": 3,
        "updatedNumberScheduled": 1,
        "numberAvailable": 1,
        "numberUnavailable": 2,
    }
    assert again_s == 20


def revision(number: int, hash_: str) -> Object:
    meta = {"name": f"agent-{hash_}", "uid": hash_, "labels": {REVISION_HASH: hash_}}
    return {"metadata": meta, "revision": number}


def test_a_new_template_is_a_new_revision_without_kubectls_copy_of_it() -> None:
    ds = daemon_set()
    ds["metadata"]["annotations"] = {
        "kubernetes.io/change-cause": "a better one",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
    }
    (create,) = revision_actions(ds, [revision(4, "before")], [], "now")
    assert isinstance(create, Create)
    assert (create.obj["metadata"]["name"], create.obj["revision"]) == ("agent-now", 5)
    assert create.obj["metadata"]["annotations"] == {"kubernetes.io/change-cause": "a better one"}


def test_an_earlier_template_that_is_back_becomes_the_newest_revision() -> None:
    (patch,) = revision_actions(
        daemon_set(), [revision(1, "now"), revision(2, "before")], [], "now"
    )
    assert isinstance(patch, Patch)
    assert (patch.name, patch.body) == ("agent-now", {"revision": 3})
    assert revision_actions(daemon_set(), [revision(3, "now"), revision(2, "x")], [], "now") == []


def test_only_revisions_that_no_pod_has_are_forgotten() -> None:
    old = [revision(number, f"r{number}") for number in range(1, 5)]
    pods = [pod("on-a", "a", hash="r1")]
    ds = daemon_set(revisionHistoryLimit=1)
    actions = revision_actions(ds, [*old, revision(5, "now")], pods, "now")
    assert [each.name for each in actions if isinstance(each, Delete)] == ["agent-r2", "agent-r3"]
    assert len(actions) == 2
