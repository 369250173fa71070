"""felix as a daemon: the datastore changes, the kernel follows."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
from typing import TYPE_CHECKING, Any

from agents.calico.felix.apply import Dataplane
from agents.calico.felix.daemon import FelixConfig, run_felix
from agents.calico.felix.names import set_name
from agents.calico.ipam.model import block_key
from agents.calico.net import Cidr
from agents.calico.resources import new_resource, resource_key, to_stored
from emulator.errors import UsageError
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from tests.calico_memory import MemoryDatastore
from tests.calico_policy_world import NODE, World
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest


class Running:
    """One felix on the policy world's node, beside a datastore in memory."""

    def __init__(self) -> None:
        self.world = World()
        self.store = MemoryDatastore()
        self.ready = asyncio.Event()
        for resource in self.world.base:
            self.put(resource)

    async def resync(self) -> None:
        """Open the way to web that a policy closed, and wait until felix has closed it again."""
        world = self.world
        world.root.netfilter.restore("*filter\n-F FORWARD\nCOMMIT\n")
        assert world.passes("api", "web", "UDP", 53)
        await until(lambda: not world.passes("api", "web", "UDP", 53), "the jump is back")

    def put(self, resource: dict[str, Any]) -> str:
        meta = resource["metadata"]
        key = resource_key(resource["kind"], meta["name"], meta.get("namespace", ""))
        self.store.put(key, to_stored(resource))
        return key


@contextlib.asynccontextmanager
async def felix(resync_s: float = 0.1) -> AsyncIterator[Running]:
    running = Running()
    env = RoleEnv(real_clock(), random.Random(1), logging.getLogger("podwire.felix"))
    env = dataclasses.replace(env, on_ready=lambda info: running.ready.set())
    config = FelixConfig("kube-0", resync_s=resync_s)
    task = asyncio.create_task(run_felix(config, env, running.world.kernel, running.store))
    try:
        async with asyncio.timeout(30):
            await running.ready.wait()
        yield running
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


CLOSED = new_resource(
    "GlobalNetworkPolicy", "default.closed", {"selector": "app == 'web'", "types": ["Ingress"]}
)


async def test_a_policy_comes_into_force_and_out_of_it() -> None:
    async with felix() as running:
        world = running.world
        assert world.passes("api", "web", "UDP", 53)
        key = running.put(CLOSED)
        await until(lambda: not world.passes("api", "web", "UDP", 53), "the policy is in force")
        assert world.passes("host", "web", "UDP", 53)
        running.store.remove(key)
        await until(lambda: world.passes("api", "web", "UDP", 53), "the policy is gone")


async def test_what_somebody_flushed_comes_back() -> None:
    async with felix() as running:
        running.put(CLOSED)
        world = running.world
        await until(lambda: not world.passes("api", "web", "UDP", 53), "the policy is in force")
        await running.resync()


async def test_the_address_of_a_tunnel_is_one_of_the_host_s_at_once() -> None:
    async with felix(resync_s=60) as running:
        spec = {"bgp": {"ipv4Address": f"{NODE}/24", "ipv4IPIPTunnelAddr": "192.168.77.1"}}
        running.put(new_resource("IPPool", "p", {"cidr": "192.168.0.0/16", "ipipMode": "Always"}))
        running.put(new_resource("Node", "kube-0", spec))
        sets = running.world.root.netfilter.sets
        await until(
            lambda: "192.168.77.1" in sets.snapshot(set_name("this-host"))[0].members,
            "the set has it",
        )


async def test_blocks_are_followed_whenever_vxlan_is_in_use() -> None:
    async with felix(resync_s=60) as running:

        def pool(mode: str) -> None:
            running.put(new_resource("IPPool", "p", {"cidr": "10.5.0.0/16", "vxlanMode": mode}))

        def block(cidr: Cidr, node: str = "far") -> None:
            running.store.put(block_key(cidr), {"cidr": str(cidr), "affinity": f"host:{node}"})

        def routes() -> list[str]:
            found = running.world.root.routes()
            return [str(route.dst) for route in found if route.dev == "vxlan.calico"]

        for name, number in (("kube-0", 1), ("far", 2)):
            address = NODE if name == "kube-0" else "172.31.9.9"
            spec = {
                "bgp": {"ipv4Address": f"{address}/24"},
                "ipv4VXLANTunnelAddr": f"10.5.0.{number}",
                "vxlanTunnelMACAddr": f"66:00:00:00:00:0{number}",
            }
            running.put(new_resource("Node", name, spec))
        first, second = Cidr.parse("10.5.1.0/26"), Cidr.parse("10.5.2.0/26")
        block(first)
        for mode in ("Always", "CrossSubnet"):
            pool(mode)
            await until(lambda: routes() == [str(first)], "the block is reached")
            pool("Never")
            await until(lambda: not routes(), "no route is left")
        pool("Always")
        block(second)
        await until(lambda: routes() == [str(first), str(second)], "a new block is reached")
        pool("Never")
        await until(lambda: not routes(), "no route is left")
        running.store.remove(block_key(first))
        block(second, "kube-0")
        pool("Always")
        await until(lambda: "vxlan.calico" in running.world.root.devices, "the device is back")
        assert routes() == []


async def test_what_is_not_enforced_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with felix() as running:
        spec = {"selector": "all()", "types": ["Ingress"], "preDNAT": True, "applyOnForward": True}
        running.put(new_resource("GlobalNetworkPolicy", "default.early", spec))
        await until(lambda: "preDNAT policies act on host endpoints" in caplog.text, "it is said")
        running.put(CLOSED)
        world = running.world
        await until(lambda: not world.passes("api", "web", "UDP", 53), "the policy is in force")
        await running.resync()
        assert caplog.text.count("preDNAT") == 1


async def test_garbage_in_the_datastore_stops_nobody() -> None:
    async with felix() as running:
        running.store.put(resource_key("IPPool", "broken"), {"kind": "IPPool", "metadata": 7})
        running.store.put(resource_key("GlobalNetworkPolicy", "default.odd"), b"{")
        odd = new_resource("GlobalNetworkPolicy", "default.worse", {"selector": "((", "types": 3})
        running.put(odd)
        running.put(CLOSED)
        world = running.world
        await until(lambda: not world.passes("api", "web", "UDP", 53), "the rest is in force")


async def test_a_node_whose_kernel_refuses_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = 0

    def refuse(self: Dataplane, desired: object, **how: bool) -> bool:
        nonlocal refusals
        refusals += 1
        if refusals < 3:
            raise UsageError("RTNETLINK answers: Cannot allocate memory")
        return apply(self, desired, **how)  # type: ignore[arg-type]

    apply = Dataplane.apply
    monkeypatch.setattr(Dataplane, "apply", refuse)
    async with felix():
        assert refusals >= 3
