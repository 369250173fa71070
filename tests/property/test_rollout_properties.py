"""Rollouts stay within their bounds and end, whatever happens to the pods."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.controllers.actions import Create, Patch
from agents.controllers.deployment import plan_deployment
from agents.controllers.replicaset import plan_replicas
from agents.controllers.rollout import Size, fenceposts, proportional, shrink_old
from emulator.kubeclient.meta import format_time

Object = dict[str, Any]
NOW = 1_700_000_000.0
sizes = st.integers(0, 12)
bounds = st.one_of(st.integers(0, 5), st.integers(0, 100).map(lambda n: f"{n}%"))


class Cluster:
    """A Deployment, its sets and their pods, with a controller for each and no API server."""

    def __init__(self, replicas: int, surge: Any, unavailable: Any) -> None:
        rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
        self.sets: dict[str, Object] = {}
        self.pods: dict[str, list[bool]] = {}
        self.deployment: Object = {
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"image": "v0"}},
            },
        }

    def set_image(self, image: str) -> None:
        self.deployment["spec"]["template"]["spec"] = {"image": image}

    @property
    def total(self) -> int:
        return sum(len(pods) for pods in self.pods.values())

    @property
    def asked(self) -> int:
        return sum(rs["spec"]["replicas"] for rs in self.sets.values())

    @property
    def available(self) -> int:
        return sum(sum(pods) for pods in self.pods.values())

    def deploy(self) -> None:
        """One pass of the Deployment's controller."""
        plan = plan_deployment(self.deployment, [*self.sets.values()], {}, NOW)
        for action in plan.actions:
            if isinstance(action, Create):
                rs = action.obj
                name = rs["metadata"]["name"]
                rs["metadata"] |= {
                    "uid": name,
                    "resourceVersion": "1",
                    "creationTimestamp": format_time(NOW + len(self.sets)),
                }
                self.sets[name] = rs
                self.pods[name] = []
            elif isinstance(action, Patch) and action.name in self.sets:
                rs = self.sets[action.name]
                rs["metadata"]["annotations"] |= action.body["metadata"].get("annotations", {})
                rs["spec"] |= action.body.get("spec", {})
            elif isinstance(action, Patch) and action.subresource == "status":
                self.deployment["status"] = action.body["status"]
            elif isinstance(action, Patch):
                self.deployment["metadata"]["annotations"] = action.body["metadata"]["annotations"]

    def replicate(self, name: str) -> None:
        """One pass of a set's controller: new pods are not ready, unready pods go first."""
        pods, wanted = self.pods[name], self.sets[name]["spec"]["replicas"]
        pods.sort()
        del pods[: max(0, len(pods) - wanted)]
        pods += [False] * (wanted - len(pods))
        self.observe(name)

    def observe(self, name: str) -> None:
        pods = self.pods[name]
        self.sets[name]["status"] = {"replicas": len(pods), "availableReplicas": sum(pods)}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), bounds, bounds, st.integers(0, 2**32))
def test_a_rollout_keeps_its_bounds_at_every_step_and_converges(
    replicas: int, surge: Any, unavailable: Any, seed: int
) -> None:
    rng = random.Random(seed)
    cluster = Cluster(replicas, surge, unavailable)
    most, least = fenceposts(cluster.deployment, replicas)

    def check() -> None:
        # The bound is on what is asked for: pods may take their time to end.
        assert cluster.asked <= replicas + most
        assert cluster.available >= replicas - least

    def settle(*, checked: bool) -> None:
        """Everyone works in turn; a rollout needs a few rounds for each pod at most."""
        for _ in range(4 * replicas + 8):
            cluster.deploy()
            for name in cluster.sets:
                cluster.replicate(name)
                cluster.pods[name] = [True] * len(cluster.pods[name])
                cluster.observe(name)
                if checked:
                    check()
        assert cluster.available == cluster.total == replicas

    settle(checked=False)
    for image in ("v1", "v2", "v0"):
        cluster.set_image(image)
        for _ in range(rng.randrange(150)):
            name = rng.choice([*cluster.sets])
            match rng.choice(("deploy", "replicate", "ready", "ready")):
                case "deploy":
                    cluster.deploy()
                case "replicate":
                    cluster.replicate(name)
                case _ if False in cluster.pods[name]:
                    cluster.pods[name][cluster.pods[name].index(False)] = True
                    cluster.observe(name)
            check()
    settle(checked=True)
    live = [rs for name, rs in cluster.sets.items() if cluster.pods[name]]
    assert [rs["spec"]["template"]["spec"] for rs in live] == [{"image": "v0"}]


@given(sizes, st.integers(0, 5), st.lists(st.tuples(sizes, sizes), max_size=5), sizes, sizes)
def test_old_sets_never_grow_and_availability_is_kept(
    wanted: int, unavailable: int, old: list[tuple[int, int]], new: int, new_available: int
) -> None:
    before = [Size(size, min(size, available)) for size, available in old]
    fresh = Size(new, min(new, new_available))
    after = shrink_old(wanted, min(unavailable, wanted), fresh, before)
    assert all(0 <= now <= rs.replicas for now, rs in zip(after, before, strict=True))
    had = fresh.available + sum(rs.available for rs in before)
    has = fresh.available + sum(min(n, rs.available) for n, rs in zip(after, before, strict=True))
    assert has >= min(had, wanted - unavailable)


@given(sizes, st.integers(0, 5), st.lists(st.integers(1, 12), min_size=2, max_size=4))
def test_proportional_scaling_hands_out_exactly_what_is_allowed(
    wanted: int, surge: int, current: list[int]
) -> None:
    ordered = sorted(current, reverse=True)
    result = proportional(wanted, surge, sum(ordered), [Size(n, n, sum(ordered)) for n in ordered])
    assert all(size >= 0 for size in result)
    assert sum(result) == (wanted + surge if wanted else 0)


@given(st.integers(0, 20), st.lists(st.booleans(), max_size=25), st.integers(0, 2**32))
def test_a_set_reaches_its_size_however_pods_die(wanted: int, ready: list[bool], seed: int) -> None:
    rng = random.Random(seed)

    def pod(is_ready: bool) -> Object:
        conditions = [{"type": "Ready", "status": str(is_ready)}]
        status = {"phase": rng.choice(("Running", "Pending")), "conditions": conditions}
        return {"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": status}

    pods = [pod(is_ready) for is_ready in ready]
    for step in range(6):
        plan = plan_replicas(wanted, pods, pods)
        assert not (plan.create and plan.delete)
        pods = [p for p in pods if not any(p is gone for gone in plan.delete)]
        pods += [pod(False) for _ in range(plan.create)]
        assert len(pods) == wanted
        if step < 5:
            pods = [p for p in pods if rng.random() < 0.7]
