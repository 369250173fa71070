"""Deployment, ReplicaSet and pods as values: what is decided, and in which order."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agents.controllers.actions import Create, Delete, Emit, Patch
from agents.controllers.deployment import new_replicaset, plan_deployment
from agents.controllers.deploymentstatus import deployment_status, resume_or_pause
from agents.controllers.replicaset import plan_replicas, replicaset_status
from agents.controllers.rollout import Size, fenceposts, new_size, proportional, shrink_old
from agents.controllers.template import fnv32a, safe_encode, template_hash
from emulator.apimachinery import mergepatch
from emulator.kubeclient.meta import format_time

Object = dict[str, Any]
NOW = 1_700_000_000.0


def deployment(replicas: int = 3, image: str = "nginx", **spec: Any) -> Object:
    return {
        "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "progressDeadlineSeconds": 600,
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
            **spec,
        },
    }


def stored(rs: Object, number: int = 1, available: int | None = None) -> Object:
    """A ReplicaSet as the API server would show it."""
    found = copy.deepcopy(rs)
    found["metadata"] |= {
        "uid": f"rs-{number}",
        "resourceVersion": str(number),
        "generation": 1,
        "creationTimestamp": format_time(NOW + number),
    }
    replicas = found["spec"]["replicas"]
    ready = replicas if available is None else available
    found["status"] = {
        "replicas": replicas,
        "availableReplicas": ready,
        "readyReplicas": ready,
        "observedGeneration": 1,
    }
    return found


def test_while_new_pods_are_not_there_yet_unhealthy_old_ones_stay_as_well() -> None:
    """reconcileOldReplicaSets: what the new set lacks counts against what may go."""
    assert shrink_old(10, 0, Size(5, 0), [Size(10, 8)]) == (10,)
    assert shrink_old(10, 0, Size(5, 1), [Size(10, 8)]) == (9,)
    assert shrink_old(10, 0, Size(5, 5), [Size(10, 8)]) == (5,)


def test_a_share_never_works_against_the_direction_of_the_scaling() -> None:
    assert proportional(10, 0, 9, [Size(5, 5, 10), Size(4, 4, 20)]) == (6, 4)
    assert proportional(8, 0, 9, [Size(5, 5, 4), Size(4, 4, 8)]) == (4, 4)


def test_the_hash_is_made_of_letters_that_spell_nothing() -> None:
    assert safe_encode("2589014671") == "69df458bc5"
    assert fnv32a(b"") == 0x811C9DC5
    assert fnv32a(b"foobar") == 0xBF9CF968
    value = template_hash(deployment()["spec"]["template"])
    assert set(value) <= set("456789bcdf")
    assert value != template_hash(deployment()["spec"]["template"], 1)


def test_the_first_pass_creates_the_replica_set_and_says_so() -> None:
    plan = plan_deployment(deployment(), [], {}, NOW)
    create, emit, mark, status = plan.actions
    assert isinstance(create, Create)
    assert create.obj["spec"]["replicas"] == 3
    assert create.obj["metadata"]["annotations"] == {
        "deployment.kubernetes.io/desired-replicas": "3",
        "deployment.kubernetes.io/max-replicas": "4",
        "deployment.kubernetes.io/revision": "1",
    }
    name = create.obj["metadata"]["name"]
    assert isinstance(emit, Emit)
    assert emit.message == f"Scaled up replica set {name} from 0 to 3"
    assert isinstance(mark, Patch)
    assert isinstance(status, Patch)
    assert status.subresource == "status"
    assert "deployment.kubernetes.io/revision" in mark.body["metadata"]["annotations"]


def test_an_unchanged_deployment_needs_nothing() -> None:
    owner = deployment()
    rs = stored(new_replicaset(owner, 3, 1))
    owner["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "1"}
    first = plan_deployment(owner, [rs], {}, NOW)
    assert [type(a) for a in first.actions] == [Patch]
    (patch,) = first.actions
    assert isinstance(patch, Patch)
    owner["status"] = patch.body["status"]
    conditions = {c["type"]: c["reason"] for c in owner["status"]["conditions"]}
    assert conditions == {
        "Available": "MinimumReplicasAvailable",
        "Progressing": "NewReplicaSetAvailable",
    }
    assert plan_deployment(owner, [rs], {}, NOW + 5).actions == ()


def test_a_template_that_comes_back_becomes_the_newest_revision() -> None:
    old = stored(new_replicaset(deployment(image="v1"), 0, 1), 1)
    current = stored(new_replicaset(deployment(image="v2"), 3, 2), 2)
    plan = plan_deployment(deployment(image="v1"), [old, current], {}, NOW)
    patch = plan.actions[0]
    assert isinstance(patch, Patch)
    assert patch.name == old["metadata"]["name"]
    assert patch.body["metadata"]["annotations"] == {
        "deployment.kubernetes.io/revision": "3",
        "deployment.kubernetes.io/revision-history": "1",
    }


def test_recreate_waits_for_the_last_old_pod() -> None:
    owner = deployment(image="v2", strategy={"type": "Recreate"})
    old = stored(new_replicaset(deployment(image="v1"), 0, 1), 1)
    terminating = {"metadata": {"name": "p", "deletionTimestamp": "x"}, "spec": {}}
    waiting = plan_deployment(owner, [old], {"rs-1": [terminating]}, NOW)
    assert not any(isinstance(action, Create) for action in waiting.actions)
    ready = plan_deployment(owner, [old], {"rs-1": []}, NOW)
    assert any(isinstance(action, Create) for action in ready.actions)


def test_a_paused_deployment_scales_but_does_not_roll() -> None:
    current = stored(new_replicaset(deployment(image="v1"), 3, 1), 1)
    owner = deployment(5, image="v2", paused=True)
    noted = plan_deployment(owner, [current], {}, NOW)
    (patch,) = noted.actions
    assert isinstance(patch, Patch)
    assert patch.body["status"]["conditions"][0]["reason"] == "DeploymentPaused"
    owner["status"] = patch.body["status"]
    scaled = plan_deployment(owner, [current], {}, NOW).actions[0]
    assert isinstance(scaled, Patch)
    assert (scaled.name, scaled.body["spec"]) == (current["metadata"]["name"], {"replicas": 5})


def test_old_revisions_beyond_the_limit_are_removed_when_the_rollout_is_done() -> None:
    owner = deployment(image="v4", revisionHistoryLimit=1)
    owner["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "4"}
    sets = [
        stored(new_replicaset(deployment(image=f"v{n}"), 0 if n < 4 else 3, n), n)
        for n in range(1, 5)
    ]
    owner["status"] = {"updatedReplicas": 3, "replicas": 3, "availableReplicas": 3}
    removed = [
        a.name for a in plan_deployment(owner, sets, {}, NOW).actions if isinstance(a, Delete)
    ]
    assert removed == [rs["metadata"]["name"] for rs in sets[:2]]


def test_no_progress_within_the_deadline_is_said_once() -> None:
    owner = deployment()
    owner["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "1"}
    rs = stored(new_replicaset(owner, 3, 1), available=0)
    first = plan_deployment(owner, [rs], {}, NOW)
    assert first.again_s == 600
    (patch,) = first.actions
    assert isinstance(patch, Patch)
    owner["status"] = {k: v for k, v in patch.body["status"].items() if v is not None}
    early = plan_deployment(owner, [rs], {}, NOW + 10)
    assert early.actions == ()
    assert early.again_s == pytest.approx(591)
    (late,) = plan_deployment(owner, [rs], {}, NOW + 601).actions
    assert isinstance(late, Patch)
    condition = next(c for c in late.body["status"]["conditions"] if c["type"] == "Progressing")
    assert (condition["status"], condition["reason"], condition["message"]) == (
        "False",
        "ProgressDeadlineExceeded",
        f'ReplicaSet "{rs["metadata"]["name"]}" has timed out progressing.',
    )


@pytest.mark.parametrize(
    ("surge", "unavailable", "replicas", "expected"),
    [
        ("25%", "25%", 3, (1, 0)),
        ("25%", "25%", 4, (1, 1)),
        ("25%", "25%", 10, (3, 2)),
        (0, 0, 5, (0, 1)),
        ("0%", "1%", 5, (0, 1)),
        (2, "50%", 3, (2, 1)),
        (1, 10, 2, (1, 2)),
    ],
)
def test_surge_rounds_up_and_unavailable_rounds_down(
    surge: Any, unavailable: Any, replicas: int, expected: tuple[int, int]
) -> None:
    rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
    owner = deployment(replicas, strategy={"type": "RollingUpdate", "rollingUpdate": rolling})
    assert fenceposts(owner, replicas) == expected


def test_the_arithmetic_of_one_rollout() -> None:
    assert new_size(10, 3, 0, 10) == 3
    assert new_size(10, 3, 3, 13) == 3
    assert new_size(10, 3, 12, 12) == 10
    assert shrink_old(10, 2, Size(3, 0), [Size(10, 10)]) == (8,)
    assert shrink_old(10, 2, Size(5, 5), [Size(8, 8)]) == (3,)
    assert shrink_old(10, 2, Size(5, 3), [Size(1, 0), Size(7, 7)]) == (0, 5)


def test_scaling_in_the_middle_of_a_rollout_keeps_the_proportions() -> None:
    # The example of the Kubernetes documentation: 10 replicas, surge 3, grown to 15.
    assert proportional(15, 3, 13, [Size(8, 8, 13), Size(5, 0, 13)]) == (11, 7)
    assert proportional(0, 0, 13, [Size(8, 8, 13), Size(5, 5, 13)]) == (0, 0)


def pod(name: str, **fields: Any) -> Object:
    ready = fields.get("ready", True)
    since = format_time(NOW - fields.get("ready_s", 100))
    return {
        "metadata": {
            "name": name,
            "labels": {"app": "web"},
            "creationTimestamp": format_time(NOW - fields.get("age_s", 100)),
            **({"annotations": fields["annotations"]} if "annotations" in fields else {}),
        },
        "spec": {"nodeName": fields.get("node", "n")} if fields.get("node", "n") else {},
        "status": {
            "phase": fields.get("phase", "Running"),
            "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": since}],
            "containerStatuses": [{"restartCount": fields.get("restarts", 0)}],
        },
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"node": ""}, {}),
        ({"phase": "Pending", "ready": False}, {"ready": False}),
        ({"ready": False}, {}),
        ({"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}, {}),
        ({"ready_s": 1}, {"ready_s": 50}),
        ({"restarts": 3}, {}),
        ({"age_s": 1}, {"age_s": 50}),
    ],
)
def test_pods_are_deleted_in_upstreams_order(first: Object, second: Object) -> None:
    pods = [pod("stays", **second), pod("goes", **first)]
    assert [p["metadata"]["name"] for p in plan_replicas(1, pods, []).delete] == ["goes"]


def test_of_pods_that_share_a_node_one_goes_first() -> None:
    pods = [pod("alone", node="a"), pod("twin-1", node="b"), pod("twin-2", node="b")]
    assert plan_replicas(2, pods, pods).delete[0]["metadata"]["name"].startswith("twin")


def test_a_ready_pod_is_available_only_after_min_ready_seconds() -> None:
    rs = {
        "metadata": {"generation": 2},
        "spec": {"minReadySeconds": 30, "template": {"metadata": {"labels": {"app": "web"}}}},
    }
    pods = [pod("old", ready_s=100), pod("new", ready_s=10)]
    status, again_s = replicaset_status(rs, pods, "", NOW)
    assert status == {
        "replicas": 2,
        "fullyLabeledReplicas": 2,
        "readyReplicas": 2,
        "availableReplicas": 1,
        "observedGeneration": 2,
    }
    assert again_s == 20


def test_of_many_pods_only_so_many_come_and_go_at_once() -> None:
    assert plan_replicas(10_000, [pod("one")]) == (500, ())
    assert len(plan_replicas(0, [pod(f"p{number}") for number in range(600)]).delete) == 500


def test_only_pods_that_still_run_share_a_node() -> None:
    pods = [pod("alone", node="a"), pod("twin-1", node="b"), pod("twin-2", node="b")]
    done = [pod(f"done-{number}", node="a", phase="Succeeded") for number in range(3)]
    assert plan_replicas(2, pods, [*pods, *done]).delete[0]["metadata"]["name"].startswith("twin")


def test_a_failure_keeps_its_time_until_the_reason_changes() -> None:
    rs: Object = {"metadata": {}, "spec": {}}
    status, _ = replicaset_status(rs, [], "FailedCreate: no room", NOW)
    (condition,) = status["conditions"]
    assert (condition["reason"], condition["message"]) == ("FailedCreate", "no room")
    rs["status"] = status
    again, _ = replicaset_status(rs, [], "FailedCreate: still no room", NOW + 60)
    assert again["conditions"] == [condition]
    other, _ = replicaset_status(rs, [], "FailedDelete: no", NOW + 60)
    assert other["conditions"][0]["lastTransitionTime"] == format_time(NOW + 60)
    well, _ = replicaset_status(rs, [], "", NOW + 60)
    assert "conditions" not in well


def condition(status: Object, kind: str) -> Object:
    return next(each for each in status["conditions"] if each["type"] == kind)


def told(owner: Object, sets: list[Object], now: float) -> Object:
    """The status after one look, kept in the Deployment."""
    for action in deployment_status(owner, sets, sets[-1], now).actions:
        assert isinstance(action, Patch)
        owner["status"] = mergepatch.apply(owner.get("status") or {}, action.body["status"])
    status: Object = owner["status"]
    return status


def test_a_rollout_moves_when_an_old_pod_goes() -> None:
    owner = deployment(3)
    old, new = stored(new_replicaset(owner, 2, 1), 1), stored(new_replicaset(owner, 1, 2), 2)
    told(owner, [old, new], NOW)
    began = condition(told(owner, [old, new], NOW + 60), "Progressing")
    assert (began["reason"], began["lastUpdateTime"]) == ("NewReplicaSetCreated", format_time(NOW))
    old["status"] |= {"replicas": 1}
    moved = condition(told(owner, [old, new], NOW + 90), "Progressing")
    assert (moved["reason"], moved["lastUpdateTime"]) == (
        "ReplicaSetUpdated",
        format_time(NOW + 90),
    )
    new["spec"]["replicas"] = 3
    new["status"] |= {"replicas": 3, "readyReplicas": 3, "availableReplicas": 3}
    done = condition(told(owner, [new], NOW + 120), "Progressing")
    assert (done["reason"], done["lastUpdateTime"]) == (
        "NewReplicaSetAvailable",
        format_time(NOW + 120),
    )
    # It was True all the time.
    assert moved["lastTransitionTime"] == done["lastTransitionTime"] == format_time(NOW)


def test_a_pod_lost_after_the_rollout_is_not_a_rollout() -> None:
    owner = deployment(3)
    rs = stored(new_replicaset(owner, 3, 1))
    done = condition(told(owner, [rs], NOW), "Progressing")
    assert done["reason"] == "NewReplicaSetAvailable"
    rs["status"] |= {"availableReplicas": 1, "readyReplicas": 1}
    status = told(owner, [rs], NOW + 60)
    assert condition(status, "Progressing") == done
    available = condition(status, "Available")
    assert (available["status"], available["lastTransitionTime"]) == (
        "False",
        format_time(NOW + 60),
    )


def test_pausing_and_resuming_is_noted_once() -> None:
    owner = deployment(paused=True)
    patch = resume_or_pause(owner, NOW)
    assert patch is not None
    owner["status"] = patch.body["status"]
    assert condition(owner["status"], "Progressing")["reason"] == "DeploymentPaused"
    assert resume_or_pause(owner, NOW) is None
    owner["spec"]["paused"] = False
    patch = resume_or_pause(owner, NOW)
    assert patch is not None
    assert condition(patch.body["status"], "Progressing")["reason"] == "DeploymentResumed"
    # A rollout that failed stays failed.
    failed = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    owner["status"] = {"conditions": [failed]}
    owner["spec"]["paused"] = True
    assert resume_or_pause(owner, NOW) is None
