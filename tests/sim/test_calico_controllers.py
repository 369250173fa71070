"""Calico's loops in virtual time: tunnel addresses and the node controller follow what changes."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from agents.calico.client import ResourceClient
from agents.calico.ipam.assign import AssignRequest
from agents.calico.ipam.ipam import Ipam
from agents.calico.kubecontrollers.node import NodeController
from agents.calico.resources import new_resource
from agents.calico.tunnel import TunnelAddresses
from emulator.sim.world import World, simulate
from tests.calico_memory import MemoryDatastore

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.calico.kubecontrollers.ipam_garbage import PodFacts, PodKey

LOG = logging.Logger("test")


def test_the_tunnel_address_comes_with_the_pool_that_needs_it_and_goes_with_it() -> None:
    async def main(world: World) -> None:
        store = MemoryDatastore()
        ipam = Ipam(store, world.clock)
        resources = ResourceClient(store, world.clock, random.Random(1))
        told: list[tuple[str, str]] = []
        addresses = TunnelAddresses(
            "kube-1",
            store,
            ipam,
            resources,
            LOG,
            lambda kind, ip: told.append((kind.attribute, ip)),
        )
        # No Node yet: tried again until there is one.
        running = asyncio.create_task(addresses.run())
        await asyncio.sleep(3)
        bgp = {"bgp": {"ipv4Address": "10.10.95.205/20"}}
        await resources.create(new_resource("Node", "kube-1", bgp))
        await asyncio.sleep(3)
        assert told == []
        spec = {"cidr": "192.168.0.0/16", "ipipMode": "CrossSubnet"}
        pool = await resources.create(new_resource("IPPool", "p", spec))
        await asyncio.sleep(0.1)
        assert told == [("ipipTunnelAddress", "192.168.126.64")]
        pool["spec"]["ipipMode"] = "Never"
        await resources.update(pool)
        await asyncio.sleep(0.1)
        assert told[1:] == [("ipipTunnelAddress", "")]
        assert store.keys("/calico/ipam/v2/handle/") == []
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    simulate(main)


class Kubernetes:
    """Nodes and no pods."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)
        self.notify: Callable[[], None] = lambda: None

    def nodes(self) -> frozenset[str]:
        return frozenset(self.names)

    def pods(self) -> dict[PodKey, PodFacts]:
        return {}

    async def live_pod(self, key: PodKey) -> PodFacts | None:
        return None

    def on_deletion(self, notify: Callable[[], None]) -> None:
        self.notify = notify


def test_the_node_controller_acts_on_deletions_at_once_and_on_leaks_in_time() -> None:
    async def main(world: World) -> None:
        store = MemoryDatastore()
        ipam = Ipam(store, world.clock)
        resources = ResourceClient(store, world.clock, random.Random(1))
        await resources.create(new_resource("IPPool", "p", {"cidr": "10.0.0.0/24"}))
        for name in ("a", "b"):
            reference = {"orchRefs": [{"nodeName": name, "orchestrator": "k8s"}]}
            await resources.create(new_resource("Node", name, reference))
            pod = {"node": name, "pod": "gone", "namespace": "default"}
            await ipam.auto_assign(AssignRequest(name, handle=f"h-{name}", secondary=pod))
        view = Kubernetes("a", "b")
        controller = NodeController(view, ipam, resources, world.clock, LOG)
        running = asyncio.create_task(controller.run())
        await asyncio.sleep(10)
        handles = store.keys("/calico/ipam/v2/handle/")
        assert len(handles) == 2
        view.names.remove("b")
        view.notify()
        await asyncio.sleep(5)
        assert store.keys("/calico/ipam/v2/handle/") == ["/calico/ipam/v2/handle/h-a"]
        await asyncio.sleep(800)
        assert store.keys("/calico/ipam/v2/handle/") == ["/calico/ipam/v2/handle/h-a"]
        await asyncio.sleep(600)
        assert store.keys("/calico/ipam/v2/handle/") == []
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    simulate(main)
