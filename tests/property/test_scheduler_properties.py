"""The scheduler never overcommits a node, spreads, and forgets no pod."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agents.scheduler.algorithm import schedule
from agents.scheduler.cluster import ClusterState, pod_info
from agents.scheduler.waiting import WaitingPods

Object = dict[str, Any]


def node(name: str, cpu: int, memory: int, pods: int) -> Object:
    allocatable = {"cpu": f"{cpu}m", "memory": f"{memory}Mi", "pods": str(pods)}
    return {"metadata": {"name": name}, "spec": {}, "status": {"allocatable": allocatable}}


def pod(number: int, cpu: int, memory: int, *, port: int = 0, owner: str = "") -> Object:
    container: Object = {"resources": {"requests": {"cpu": f"{cpu}m", "memory": f"{memory}Mi"}}}
    if port:
        container["ports"] = [{"containerPort": port, "hostPort": port}]
    meta: Object = {"name": f"p{number}", "namespace": "default", "uid": f"u{number}"}
    if owner:
        meta["ownerReferences"] = [{"uid": owner, "controller": True}]
    return {"metadata": meta, "spec": {"containers": [container]}}


pods_strategy = st.lists(
    st.tuples(
        st.integers(0, 1500),
        st.integers(0, 1024),
        st.sampled_from([0, 0, 80, 443]),
        st.sampled_from(["", "a", "b"]),
        st.booleans(),
    ),
    max_size=40,
)
nodes_strategy = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 2048), st.integers(0, 8)), max_size=5
)


@settings(max_examples=60, deadline=None)
@given(nodes_strategy, pods_strategy, st.integers(0, 2**32))
def test_no_node_is_ever_given_more_than_it_has(
    nodes: list[tuple[int, int, int]],
    pods: list[tuple[int, int, int, str, bool]],
    seed: int,
) -> None:
    rng = random.Random(seed)
    cluster = ClusterState()
    for number, (cpu, memory, count) in enumerate(nodes):
        cluster.set_node(node(f"n{number}", cpu, memory, count))
    for number, (cpu, memory, port, owner, leaves) in enumerate(pods):
        info = pod_info(pod(number, cpu, memory, port=port, owner=owner))
        decision = schedule(info, cluster, rng)
        if decision.node:
            cluster.assume(info, decision.node)
            # Every second pod's binding is confirmed, some fail.
            if number % 2:
                cluster.confirm(info, decision.node)
            elif leaves:
                cluster.forget(info.uid)
        else:
            assert decision.message
    for one in cluster.nodes():
        placed = one.pods.values()
        assert sum(p.requests.get("cpu", 0) for p in placed) <= one.allocatable["cpu"]
        assert sum(p.requests.get("memory", 0) for p in placed) <= one.allocatable["memory"]
        assert len(one.pods) <= one.allocatable["pods"]
        ports = Counter(port for p in placed for port in p.host_ports)
        assert all(count == 1 for count in ports.values())
        assert one.requested["cpu"] == sum(p.requests.get("cpu", 0) for p in placed)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32))
def test_replicas_of_one_owner_land_evenly(nodes: int, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    cluster = ClusterState()
    for number in range(nodes):
        cluster.set_node(node(f"n{number}", 4000, 8192, 110))
    for number in range(nodes * rounds):
        info = pod_info(pod(number, 100, 64, owner="rs"))
        cluster.assume(info, schedule(info, cluster, rng).node)
    assert [len(info.pods) for info in cluster.nodes()] == [rounds] * nodes


@given(st.integers(0, 2**32))
def test_the_same_seed_makes_the_same_choices(seed: int) -> None:
    def run() -> list[str]:
        rng = random.Random(seed)
        cluster = ClusterState()
        for number in range(5):
            cluster.set_node(node(f"n{number}", 4000, 8192, 110))
        chosen = []
        for number in range(7):
            info = pod_info(pod(number, 100, 64))
            chosen.append(schedule(info, cluster, rng).node)
            cluster.assume(info, chosen[-1])
        return chosen

    assert run() == run()


class WaitingMachine(RuleBasedStateMachine):
    """Whatever happens, a pod that was added and not removed is tried again in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = WaitingPods()
        self.now = 0.0
        self.known: dict[str, None] = {}
        self.flying: dict[str, None] = {}

    @rule(number=st.integers(0, 5))
    def add(self, number: int) -> None:
        info = pod_info(pod(number, 0, 0))
        self.waiting.add(info)
        self.known[info.uid] = None

    @rule(number=st.integers(0, 5))
    def remove(self, number: int) -> None:
        self.waiting.remove(f"u{number}")
        self.known.pop(f"u{number}", None)
        self.flying.pop(f"u{number}", None)

    @rule()
    def pop(self) -> None:
        info = self.waiting.pop(self.now)
        if info is not None:
            assert info.uid in self.known
            assert info.uid not in self.flying
            self.flying[info.uid] = None

    @precondition(lambda self: self.flying)
    @rule(retry=st.booleans())
    def fail(self, *, retry: bool) -> None:
        uid = next(iter(self.flying))
        del self.flying[uid]
        self.waiting.failed(uid, self.now, retry=retry)

    @rule()
    def wake(self) -> None:
        self.waiting.wake_all(self.now)

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nobody_is_lost(self) -> None:
        assert len(self.waiting) == len(self.known)

    def teardown(self) -> None:
        for uid in self.flying:
            self.waiting.failed(uid, self.now)
        self.waiting.wake_all(self.now)
        seen: dict[str, None] = {}
        while (due := self.waiting.next_due()) is not None or len(seen) < len(self.known):
            if due is not None:
                self.now = max(self.now, due)
            while (info := self.waiting.pop(self.now)) is not None:
                seen[info.uid] = None
            if due is None:
                break
        assert seen.keys() == self.known.keys()


WaitingMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestWaiting = WaitingMachine.TestCase
