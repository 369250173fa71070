"""The node controller: what is a leak, when it goes, what a node leaves behind."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import pytest

from agents.calico.client import ResourceClient
from agents.calico.ipam.block import AllocationBlock, ReleaseOptions
from agents.calico.ipam.pools import Reservations
from agents.calico.kubecontrollers.ipam_garbage import IpamGarbage, PodFacts, PodKey
from agents.calico.kubecontrollers.node import NodeController, pod_facts
from agents.calico.net import Cidr, Ip
from agents.calico.resources import new_resource
from tests.calico_cluster import cluster

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN = Reservations()
POD = PodKey("default", "web")
NODES = frozenset({"a", "b"})


def block(text: str = "10.0.0.0/30", host: str = "a", number: int = 100) -> AllocationBlock:
    return AllocationBlock.new(Cidr.parse(text), f"host:{host}", now_ns=number, claim_time="")


def hold(where: AllocationBlock, handle: str = "h", **known: str) -> Ip:
    (ip,) = where.auto_assign(1, handle, known, OPEN)
    return ip


def of_pod(where: AllocationBlock, handle: str = "h", name: str = "web", node: str = "a") -> Ip:
    return hold(where, handle, pod=name, namespace="default", node=node)


def test_an_address_goes_when_its_pod_was_gone_for_the_grace_period() -> None:
    garbage, held = IpamGarbage(), block()
    ip = of_pod(held)
    assert garbage.look([held], {POD: PodFacts("a", (str(ip),))}, NODES, now=0.0).leaks == ()
    assert garbage.look([held], {}, NODES, now=10.0).leaks == ()
    assert garbage.look([held], {}, NODES, now=909.0).leaks == ()
    found = garbage.look([held], {}, NODES, now=910.0)
    assert found.leaks == (ReleaseOptions(ip, "h", 100),)
    assert found.pods == (POD,)
    assert found.nodes == ()


def test_a_pod_that_comes_back_is_suspected_anew() -> None:
    garbage, held = IpamGarbage(), block()
    of_pod(held)
    garbage.look([held], {}, NODES, now=0.0)
    garbage.look([held], {POD: PodFacts("a", ())}, NODES, now=800.0)
    assert garbage.look([held], {}, NODES, now=1000.0).leaks == ()


def test_an_address_taken_anew_is_not_the_one_that_was_suspected() -> None:
    garbage, held = IpamGarbage(), block()
    ip = of_pod(held)
    garbage.look([held], {}, NODES, now=0.0)
    held.release([ReleaseOptions(ip)])
    held.sequence_number += 1
    held.unallocated.sort()
    of_pod(held, handle="h2")
    assert garbage.look([held], {}, NODES, now=1000.0).leaks == ()


@pytest.mark.parametrize(
    ("facts", "leaked"),
    [
        (PodFacts("a", ()), False),
        (PodFacts("", ()), False),
        (PodFacts("a", ("10.0.0.0",)), False),
        (PodFacts("a", ("10.0.0.9",)), True),
        (PodFacts("b", ("10.0.0.0",)), True),
    ],
)
def test_a_pod_uses_its_address_only_where_it_is(facts: PodFacts, leaked: bool) -> None:
    garbage, held = IpamGarbage(), block()
    of_pod(held)
    garbage.look([held], {POD: facts}, NODES, now=0.0)
    assert bool(garbage.look([held], {POD: facts}, NODES, now=901.0).leaks) is leaked


def test_with_its_node_an_address_goes_at_once_and_the_node_is_forgotten() -> None:
    garbage, held = IpamGarbage(), block(host="gone")
    of_pod(held, node="gone")
    hold(held, "ipip-tunnel-addr-gone", node="gone", type="ipipTunnelAddress")
    found = garbage.look([held], {}, NODES, now=0.0)
    assert len(found.leaks) == 2
    assert found.nodes == ("gone",)


def test_a_tunnel_address_lives_as_long_as_its_node() -> None:
    garbage, held = IpamGarbage(), block()
    hold(held, "ipip-tunnel-addr-a", node="a", type="ipipTunnelAddress")
    for now in (0.0, 5000.0):
        assert garbage.look([held], {}, NODES, now=now).leaks == ()


def test_what_nobody_can_tell_stays() -> None:
    garbage, held = IpamGarbage(), block()
    held.auto_assign(1, None, None, OPEN)
    hold(held, "h", note="mine")
    for now in (0.0, 5000.0):
        assert garbage.look([held], {}, frozenset(), now=now).leaks == ()


def test_a_handle_goes_whole_or_not_at_all() -> None:
    garbage, held = IpamGarbage(), block()
    of_pod(held, "h", "web")
    ip = of_pod(held, "h", "other")
    pods = {PodKey("default", "other"): PodFacts("a", (str(ip),))}
    garbage.look([held], pods, NODES, now=0.0)
    assert garbage.look([held], pods, NODES, now=1000.0).leaks == ()
    garbage.look([held], {}, NODES, now=1000.0)
    assert len(garbage.look([held], {}, NODES, now=2000.0).leaks) == 2


def test_an_empty_block_goes_but_never_the_last_one() -> None:
    garbage = IpamGarbage()
    one, two, other = block(), block("10.0.0.4/30"), block("10.0.0.8/30", "b")
    assert garbage.look([one, two, other], {}, NODES, now=0.0).blocks == ()
    assert garbage.look([one, two, other], {}, NODES, now=900.0).blocks == (one.cidr,)
    # Something came and went in between: it was not idle.
    two.sequence_number += 1
    of_pod(one)
    assert garbage.look([one, two, other], {}, NODES, now=901.0).blocks == ()
    assert garbage.look([one, two, other], {}, NODES, now=1801.0).blocks == (two.cidr,)


def test_a_grace_period_of_zero_leaves_pods_of_living_nodes_alone() -> None:
    garbage, held, idle = IpamGarbage(0.0), block(), block("10.0.0.4/30")
    of_pod(held)
    for now in (0.0, 5000.0):
        found = garbage.look([held, idle], {}, NODES, now=now)
        assert (found.leaks, found.blocks) == ((), ())


def test_facts_of_a_pod_are_read_from_its_object() -> None:
    running = {"spec": {"nodeName": "a"}, "status": {"podIP": "1.2.3.4"}}
    assert pod_facts(running) == ("a", ("1.2.3.4",))
    assert pod_facts({"spec": {}, "status": {}}) == ("", ())
    ended = {"spec": {"nodeName": "a"}, "status": {"phase": "Failed", "podIP": "1.2.3.4"}}
    assert pod_facts(ended).ips == ("",)


class FakeKubernetes:
    """A ClusterView of dicts; ``live`` is what the API server itself says."""

    def __init__(self, *nodes: str) -> None:
        self.names = set(nodes)
        self.known: dict[PodKey, PodFacts] = {}
        self.live: dict[PodKey, PodFacts] = {}

    def nodes(self) -> frozenset[str]:
        return frozenset(self.names)

    def pods(self) -> dict[PodKey, PodFacts]:
        return self.known

    async def live_pod(self, key: PodKey) -> PodFacts | None:
        return self.live.get(key)

    def on_deletion(self, notify: Callable[[], None]) -> None:
        self.notify = notify


async def test_the_controller_gives_leaks_back_and_forgets_nodes() -> None:
    async with cluster() as calico:
        view = FakeKubernetes("a", "b")
        resources = ResourceClient(calico.store, calico.clock, random.Random(1))
        clock = calico.clock
        controller = NodeController(view, calico.ipam, resources, clock, logging.Logger("t"))
        await calico.pool("p", "10.0.0.0/24")
        for name in ("a", "b"):
            reference = {"orchRefs": [{"nodeName": name, "orchestrator": "k8s"}]}
            await calico.put(new_resource("Node", name, reference))
            await calico.ipam.mark_host(name)
        known = {"pod": "web", "namespace": "default"}
        (leak,) = (await calico.take("a", handle="h1", secondary={**known, "node": "a"})).ips
        await calico.take("b", handle="h2", secondary={**known, "pod": "db", "node": "b"})
        view.live[POD] = PodFacts("a", (str(leak),))
        await controller.sync()
        calico.now_s = 1000.0
        # The informer has missed the pod; the API server has it.
        assert (await controller.sync()).leaks
        assert "handle/h1" in await calico.keys()
        view.live.clear()
        calico.now_s = 3000.0
        await controller.sync()
        calico.now_s = 4000.0
        await controller.sync()
        assert "handle/h1" not in await calico.keys()
        view.names.remove("b")
        await controller.sync()
        keys = await calico.keys()
        assert [key for key in keys if "b" in key.split("/") or "h2" in key] == []
        assert [
            name for name in await resources.list("Node") if name["metadata"]["name"] == "b"
        ] == []


async def test_a_node_that_has_not_registered_yet_is_left_alone() -> None:
    async with cluster() as calico:
        view = FakeKubernetes()
        resources = ResourceClient(calico.store, calico.clock, random.Random(1))
        clock = calico.clock
        controller = NodeController(view, calico.ipam, resources, clock, logging.Logger("t"))
        await calico.pool("p", "10.0.0.0/24")
        reference = {"orchRefs": [{"nodeName": "a", "orchestrator": "k8s"}]}
        await resources.create(new_resource("Node", "a", reference))
        tunnel = {"node": "a", "type": "ipipTunnelAddress"}
        await calico.take("a", handle="ipip-tunnel-addr-a", secondary=tunnel)
        await controller.sync()
        assert "handle/ipip-tunnel-addr-a" in await calico.keys()
        calico.now_s = 121.0
        await controller.sync()
        assert await calico.keys() == []
