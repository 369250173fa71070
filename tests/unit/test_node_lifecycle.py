"""Silent nodes, their taints and pods; owners and dependents."""

from __future__ import annotations

from typing import Any

import pytest

from agents.controllers.actions import Delete, Emit, Patch, Plan
from agents.controllers.expectations import EXPECTATION_TIMEOUT_S, Expectations
from agents.controllers.garbage import OwnerGraph, item_of, plan_item, unknown_owners
from agents.controllers.nodelifecycle import (
    EvictionLimiter,
    Heartbeats,
    NodeTimings,
    eviction_delay,
    eviction_rate,
    pods_not_ready,
    silence,
    taint_actions,
)
from emulator.kubeclient.resource import DEPLOYMENTS, PODS, REPLICASETS

Object = dict[str, Any]
NOW = 1_700_000_000.0
TIMINGS = NodeTimings(monitor_grace_s=40, startup_grace_s=60)


def node(ready: str = "True", taints: list[Object] | None = None, **spec: Any) -> Object:
    conditions = [{"type": "Ready", "status": ready, "lastHeartbeatTime": "t0"}] if ready else []
    return {
        "metadata": {"name": "n", "resourceVersion": "7"},
        "spec": {**spec, **({"taints": taints} if taints else {})},
        "status": {"conditions": conditions},
    }


def lease(renewed: str) -> Object:
    return {"metadata": {"name": "n"}, "spec": {"renewTime": renewed}}


def test_a_renewed_lease_or_a_posted_status_restarts_the_grace() -> None:
    beats = Heartbeats(TIMINGS)
    beats.observe(node(), lease("1"), 100)
    assert beats.left_s(node(), 130) == 10
    beats.observe(node(), lease("1"), 130)
    assert beats.left_s(node(), 130) == 10
    beats.observe(node(), lease("2"), 130)
    assert beats.left_s(node(), 130) == 40
    never = node(ready="")
    beats.forget("n")
    beats.observe(never, None, 0)
    assert beats.left_s(never, 0) == 60


def test_what_this_controller_wrote_is_no_sign_of_life() -> None:
    beats = Heartbeats(TIMINGS)
    beats.observe(node(), lease("1"), 0)
    silent = node()
    (patch,) = silence(silent, NOW)
    assert isinstance(patch, Patch)
    silent["status"] = patch.body["status"]
    beats.observe(silent, lease("1"), 39)
    assert beats.left_s(silent, 40) == 0


def test_silence_turns_every_condition_to_unknown_once() -> None:
    (patch,) = silence(node(), NOW)
    assert isinstance(patch, Patch)
    told = {c["type"]: (c["status"], c["reason"]) for c in patch.body["status"]["conditions"]}
    assert told == {
        "Ready": ("Unknown", "NodeStatusUnknown"),
        "MemoryPressure": ("Unknown", "NodeStatusNeverUpdated"),
        "DiskPressure": ("Unknown", "NodeStatusNeverUpdated"),
        "PIDPressure": ("Unknown", "NodeStatusNeverUpdated"),
    }
    after = node()
    after["status"] = patch.body["status"]
    assert silence(after, NOW) == []


def taints_of(**options: Any) -> list[str] | None:
    defaults = {"may_evict": True, "in_disruption": False, "now": NOW}
    subject = options.pop("node")
    actions = taint_actions(subject, **{**defaults, **options})
    if not actions:
        return None
    (patch,) = actions
    assert isinstance(patch, Patch)
    return [f"{t['key']}:{t['effect']}" for t in patch.body["spec"]["taints"] or ()]


UNREACHABLE = "node.kubernetes.io/unreachable"
NOT_READY = "node.kubernetes.io/not-ready"


def test_taints_follow_the_conditions() -> None:
    mine = {"key": "mine", "effect": "NoSchedule"}
    assert taints_of(node=node()) is None
    assert taints_of(node=node("Unknown", [mine])) == [
        "mine:NoSchedule",
        f"{UNREACHABLE}:NoSchedule",
        f"{UNREACHABLE}:NoExecute",
    ]
    assert taints_of(node=node("False"), may_evict=False) == [f"{NOT_READY}:NoSchedule"]
    assert taints_of(node=node("Unknown"), in_disruption=True) == [f"{UNREACHABLE}:NoSchedule"]
    assert taints_of(node=node("")) == [f"{NOT_READY}:NoSchedule"]
    assert taints_of(node=node(unschedulable=True)) == [
        "node.kubernetes.io/unschedulable:NoSchedule"
    ]
    left = [{"key": UNREACHABLE, "effect": e} for e in ("NoSchedule", "NoExecute")]
    # Once given up it stays so, whoever's turn it is.
    assert taints_of(node=node("Unknown", left), may_evict=False) is None
    assert taints_of(node=node("True", [mine, *left])) == ["mine:NoSchedule"]
    assert taints_of(node=node("True", left)) == []


def test_pods_of_a_silent_node_that_said_they_were_ready_are_not_any_more() -> None:
    def pod(name: str, phase: str, ready: str) -> Object:
        conditions = [{"type": "Ready", "status": ready}, {"type": "Initialized", "status": "True"}]
        meta = {"name": name, "namespace": "default", "uid": name, "resourceVersion": "5"}
        return {"metadata": meta, "status": {"phase": phase, "conditions": conditions}}

    pods = [
        pod("runs", "Running", "True"),
        pod("starts", "Running", "False"),
        pod("ended", "Succeeded", "True"),
    ]
    patch, event = pods_not_ready(pods, NOW)
    assert isinstance(patch, Patch)
    assert isinstance(event, Emit)
    assert (patch.name, event.reason) == ("runs", "NodeNotReady")
    assert [(c["type"], c["status"]) for c in patch.body["status"]["conditions"]] == [
        ("Ready", "False"),
        ("Initialized", "True"),
    ]


def test_how_fast_nodes_may_be_given_up() -> None:
    assert eviction_rate(TIMINGS, 3, 0) == 0.1
    assert eviction_rate(TIMINGS, 0, 3) == 0.0
    assert eviction_rate(TIMINGS, 2, 3) == 0.0
    # Two lost nodes are no disruption unless they are all there are (ComputeZoneState).
    assert eviction_rate(TIMINGS, 1, 2) == 0.1
    assert eviction_rate(TIMINGS, 0, 2) == 0.0
    assert eviction_rate(TIMINGS, 20, 60) == 0.01
    limiter = EvictionLimiter()
    assert limiter.wait_s(0.1, 100) == 0.0
    assert limiter.wait_s(0.1, 104) == 6
    assert limiter.wait_s(0.0, 104) is None
    assert limiter.wait_s(0.1, 110) == 0.0


def toleration(key: str, seconds: int | None) -> Object:
    limit = {} if seconds is None else {"tolerationSeconds": seconds}
    return {"key": key, "operator": "Exists", "effect": "NoExecute", **limit}


@pytest.mark.parametrize(
    ("tolerations", "expected"),
    [
        ([], 0.0),
        ([toleration(UNREACHABLE, 300)], 300.0),
        ([toleration(UNREACHABLE, None)], None),
        ([toleration(UNREACHABLE, None), toleration(UNREACHABLE, 5)], 5.0),
        ([toleration(UNREACHABLE, 300), toleration(UNREACHABLE, 5)], 5.0),
        ([toleration(UNREACHABLE, -1)], 0.0),
        ([toleration(NOT_READY, 300)], 0.0),
    ],
)
def test_how_long_a_pod_may_stay(tolerations: list[Object], expected: float | None) -> None:
    taint = {"key": UNREACHABLE, "effect": "NoExecute"}
    assert eviction_delay(tolerations, [taint, {"key": "x", "effect": "NoSchedule"}]) == expected
    assert eviction_delay(tolerations, []) is None


def test_expectations_hold_until_seen_or_forgotten() -> None:
    expected = Expectations()
    expected.expect_creations("a", 2, 0)
    expected.creation_seen("a")
    assert not expected.satisfied("a", 1)
    assert expected.satisfied("a", EXPECTATION_TIMEOUT_S + 1)
    expected.creation_seen("a")
    assert expected.satisfied("a", 1)
    expected.expect_deletion("a", "u", 2)
    assert not expected.satisfied("a", 3)
    expected.deletion_seen("a", "u")
    assert expected.satisfied("a", 3)


def obj(uid: str, *owners: str, blocks: bool = True, **meta: Any) -> Object:
    references = [
        {
            "uid": owner,
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": owner,
            "blockOwnerDeletion": blocks,
        }
        for owner in owners
    ]
    base = {"name": uid, "namespace": "default", "uid": uid, "ownerReferences": references}
    return {"metadata": {**base, **meta}}


def test_a_dependent_goes_when_its_last_owner_is_gone() -> None:
    graph = OwnerGraph()
    graph.put(item_of(obj("d"), DEPLOYMENTS))
    assert graph.put(item_of(obj("r", "d", "e"), REPLICASETS)) == ["r"]
    dependent = graph.get("r")
    assert dependent is not None
    assert [o.uid for o in unknown_owners(dependent, graph)] == ["e"]
    assert plan_item(dependent, graph, {"d": True, "e": True}) == Plan()
    (release,) = plan_item(dependent, graph, {"d": True, "e": False}).actions
    assert isinstance(release, Patch)
    assert (release.kind, release.body) == (
        "json",
        [
            {"op": "test", "path": "/metadata/uid", "value": "r"},
            {"op": "test", "path": "/metadata/ownerReferences/1/uid", "value": "e"},
            {"op": "remove", "path": "/metadata/ownerReferences/1"},
        ],
    )
    assert graph.remove("d") == ["r"]
    (delete,) = plan_item(dependent, graph, {"d": False, "e": False}).actions
    assert delete == Delete(REPLICASETS, "default", "r", "r", "Background")


def test_a_change_that_is_none_of_its_business_makes_no_work() -> None:
    graph = OwnerGraph()
    graph.put(item_of(obj("r", "d", resourceVersion="1"), REPLICASETS))
    assert graph.put(item_of(obj("r", "d", resourceVersion="2"), REPLICASETS)) == []


def test_foreground_deletion_waits_for_those_that_block() -> None:
    graph = OwnerGraph()
    going = obj("d", deletionTimestamp="now", finalizers=["foregroundDeletion"])
    graph.put(item_of(obj("d"), DEPLOYMENTS))
    graph.put(item_of(obj("r", "d"), REPLICASETS))
    graph.put(item_of(obj("p", "r"), PODS))
    assert graph.put(item_of(going, DEPLOYMENTS)) == ["d", "r"]
    owner, dependent = graph.get("d"), graph.get("r")
    assert owner is not None
    assert dependent is not None
    assert plan_item(owner, graph, {}) == Plan()
    (delete,) = plan_item(dependent, graph, {"d": True}).actions
    assert isinstance(delete, Delete)
    assert delete.propagation == "Foreground"
    graph.remove("p")
    assert graph.remove("r") == ["d"]
    (finish,) = plan_item(owner, graph, {}).actions
    assert isinstance(finish, Patch)
    assert finish.body["metadata"]["finalizers"] == []


def test_orphans_are_let_go_before_their_owner() -> None:
    graph = OwnerGraph()
    graph.put(item_of(obj("r", "d"), REPLICASETS))
    graph.put(item_of(obj("d", deletionTimestamp="now", finalizers=["orphan"]), DEPLOYMENTS))
    owner = graph.get("d")
    assert owner is not None
    release, finish = plan_item(owner, graph, {}).actions
    assert isinstance(release, Patch)
    assert isinstance(finish, Patch)
    assert (release.name, finish.name) == ("r", "d")
