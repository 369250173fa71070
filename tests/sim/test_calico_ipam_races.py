"""IPAM under races in virtual time: hosts that claim, release, die and return at once.

Every datastore operation of a host takes a random moment, so others come in between everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Any

import pytest

from agents.calico.client import ResourceClient
from agents.calico.datastore import Create, Datastore, EtcdDatastore, Query
from agents.calico.errors import DatastoreError, DoesNotExistError
from agents.calico.ipam.assign import AssignRequest
from agents.calico.ipam.block import AllocationBlock, ReleaseOptions
from agents.calico.ipam.check import PREFIXES, CheckReport, check
from agents.calico.ipam.errors import BlockNotEmptyError
from agents.calico.ipam.ipam import Ipam
from agents.calico.ipam.model import CONFIRMED, Affinity, Handle, IpamConfig, block_of_key
from agents.calico.kubecontrollers.node import NodeController
from agents.calico.net import Cidr, Ip
from agents.calico.resources import endpoint_name, new_resource, resource_key, to_stored
from emulator.runtime.clock import loop_clock
from emulator.runtime.role import RoleEnv
from emulator.sim.world import EPOCH_S, World, simulate
from etcd.client import EtcdClient, EtcdError
from etcd.server import EtcdConfig, run_etcd
from tests.calico_memory import MemoryDatastore

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.calico.kubecontrollers.ipam_garbage import PodFacts, PodKey

IPAM_PREFIX = "/calico/ipam/v2/"
LATENCY_S = 0.004
seeds = pytest.mark.parametrize("seed", range(3))


def racing_store(world: World) -> MemoryDatastore:
    """A datastore that answers after a random moment."""
    rng = world.rng("latency")

    async def before(_verb: str, _keys: tuple[str, ...]) -> None:
        await asyncio.sleep(rng.random() * LATENCY_S)

    return MemoryDatastore(before)


def seed_cluster(store: MemoryDatastore, hosts: list[str], cidr: str, block_size: int) -> None:
    put_resource(store, new_resource("IPPool", "p", {"cidr": cidr, "blockSize": block_size}))
    for host in hosts:
        put_resource(store, new_resource("Node", host, {}))


def put_resource(store: MemoryDatastore, resource: dict[str, Any]) -> None:
    name = resource["metadata"]["name"]
    store.put(resource_key(resource["kind"], name), to_stored(resource))


async def assert_consistent(store: Datastore) -> list[AllocationBlock]:
    """Claims, blocks and handles tell one story; return the blocks."""
    found = (await store.read(Query(IPAM_PREFIX, prefix=True))).results[0]
    blocks = {
        cidr: AllocationBlock.from_value(kvp.value)
        for kvp in found
        if (cidr := block_of_key(kvp.key)) is not None
    }
    claims = [claim for kvp in found if (claim := Affinity.read(kvp)) is not None]
    for claim in claims:
        if claim.state == CONFIRMED:
            assert blocks[claim.cidr].affinity == f"host:{claim.host}", claim
    claimed = {(claim.host, claim.cidr) for claim in claims}
    counted: dict[str, dict[str, int]] = {}
    for cidr, block in blocks.items():
        assert sorted(
            [
                *block.unallocated,
                *(n for n, held in enumerate(block.allocations) if held is not None),
            ]
        ) == list(range(cidr.size))
        assert not block.host or (block.host, cidr) in claimed, f"{cidr} has no claim"
        for _, attribute, _ in block.held():
            blocks_of = counted.setdefault(attribute.handle_id, {})
            blocks_of[str(cidr)] = blocks_of.get(str(cidr), 0) + 1
    counted.pop("", None)
    handles = {
        handle.handle_id: handle.blocks
        for kvp in found
        if kvp.key.startswith(f"{IPAM_PREFIX}handle/") and (handle := Handle.read(kvp))
    }
    assert handles == counted
    return list(blocks.values())


@seeds
def test_many_hosts_claim_one_pool(seed: int) -> None:
    async def main(world: World) -> None:
        hosts = [f"host-{number}" for number in range(32)]
        store = racing_store(world)
        seed_cluster(store, hosts, "10.0.0.0/24", 29)
        got: list[Ip] = []

        async def take(host: str) -> None:
            request = AssignRequest(host, 2, handle=f"h-{host}")
            got.extend((await Ipam(store, world.clock).auto_assign(request)).ips)

        async with asyncio.TaskGroup() as group:
            for host in hosts:
                group.create_task(take(host))
        assert len(got) == len(set(got)) == 64
        blocks = await assert_consistent(store)
        # As many blocks as hosts: everybody has exactly one.
        assert sorted(block.host for block in blocks) == sorted(hosts)

    simulate(main, seed=seed)


@seeds
def test_more_hosts_than_blocks_borrow_without_a_double(seed: int) -> None:
    async def main(world: World) -> None:
        hosts = [f"host-{number}" for number in range(40)]
        store = racing_store(world)
        seed_cluster(store, hosts, "10.0.0.0/26", 29)
        got: list[Ip] = []

        async def take(host: str) -> None:
            got.extend((await Ipam(store, world.clock).auto_assign(AssignRequest(host, 2))).ips)

        async with asyncio.TaskGroup() as group:
            for host in hosts:
                group.create_task(take(host))
        assert len(got) == len(set(got)) == 64
        assert len(await assert_consistent(store)) == 8

    simulate(main, seed=seed)


@seeds
def test_one_host_asks_many_times_at_once_and_claims_no_block_too_many(seed: int) -> None:
    async def main(world: World) -> None:
        store = racing_store(world)
        seed_cluster(store, ["kube-1"], "10.0.0.0/24", 28)
        got: list[Ip] = []

        async def take(number: int) -> None:
            request = AssignRequest("kube-1", handle=f"h{number}")
            got.extend((await Ipam(store, world.clock).auto_assign(request)).ips)

        async with asyncio.TaskGroup() as group:
            for number in range(16):
                group.create_task(take(number))
        assert len(set(got)) == 16
        assert len(await assert_consistent(store)) <= 2

    simulate(main, seed=seed)


@seeds
def test_one_block_claimed_by_all_has_one_owner(seed: int) -> None:
    async def main(world: World) -> None:
        hosts = [f"host-{number}" for number in range(16)]
        store = racing_store(world)
        seed_cluster(store, hosts, "10.0.0.0/24", 26)
        owners: list[str] = []

        async def claim(host: str) -> None:
            ipam = Ipam(store, world.clock)
            if (await ipam.claim_affinity(Cidr.parse("10.0.0.0/26"), host)).claimed:
                owners.append(host)

        async with asyncio.TaskGroup() as group:
            for host in [*hosts, *hosts]:
                group.create_task(claim(host))
        (block,) = await assert_consistent(store)
        assert set(owners) == {block.host}
        assert len(store.keys(f"{IPAM_PREFIX}host/")) == 1

    simulate(main, seed=seed)


@seeds
def test_claims_and_releases_of_one_block_at_once_leave_one_story(seed: int) -> None:
    async def main(world: World) -> None:
        hosts = [f"host-{number}" for number in range(8)]
        store = racing_store(world)
        seed_cluster(store, hosts, "10.0.0.0/28", 28)
        ipam = Ipam(store, world.clock)
        rng = world.rng("storm")

        async def busy(host: str) -> None:
            mine: list[Ip] = []
            for _ in range(12):
                match rng.randrange(4):
                    case 0:
                        with contextlib.suppress(BlockNotEmptyError):
                            await ipam.release_host_affinities(host, must_be_empty=True)
                    case 1 if mine:
                        outcome = await ipam.release_ips(ReleaseOptions(mine.pop(), host))
                        assert outcome.failure is None
                        assert outcome.unallocated == ()
                    case 2:
                        await ipam.release_host_affinities(host, must_be_empty=False)
                    case _:
                        request = AssignRequest(host, handle=host)
                        mine.extend((await ipam.auto_assign(request)).ips)
            held.extend(mine)

        held: list[Ip] = []
        async with asyncio.TaskGroup() as group:
            for host in hosts:
                group.create_task(busy(host))
        blocks = await assert_consistent(store)
        assert sorted(held) == sorted(ip for block in blocks for ip, _, _ in block.held())
        assert len(held) == len(set(held))

    simulate(main, seed=seed)


@seeds
def test_two_hosts_that_reclaim_one_empty_block_do_not_share_it(seed: int) -> None:
    async def main(world: World) -> None:
        hosts = ["owner", *(f"host-{number}" for number in range(6))]
        store = racing_store(world)
        seed_cluster(store, hosts, "10.0.0.0/28", 30)
        ipam = Ipam(store, world.clock)
        await ipam.set_config(IpamConfig(strict_affinity=True))
        await ipam.claim_affinity(Cidr.parse("10.0.0.0/28"), "owner")
        await asyncio.sleep(61)
        got: dict[str, list[Ip]] = {}

        async def take(host: str) -> None:
            request = AssignRequest(host, 2, handle=host)
            got[host] = (await Ipam(store, world.clock).auto_assign(request)).ips

        async with asyncio.TaskGroup() as group:
            for host in hosts:
                group.create_task(take(host))
        ips = [ip for each in got.values() for ip in each]
        assert len(ips) == len(set(ips)) == 8
        for block in await assert_consistent(store):
            assert {attribute.handle_id for _, attribute, _ in block.held()} == {block.host}

    simulate(main, seed=seed)


# The storm -------------------------------------------------------------------------------------


class Kubernetes:
    """What Kubernetes says of nodes; its pods are those with an endpoint."""

    def __init__(self, nodes: list[str]) -> None:
        self.names = set(nodes)

    def nodes(self) -> frozenset[str]:
        return frozenset(self.names)

    def pods(self) -> dict[PodKey, PodFacts]:
        return {}

    async def live_pod(self, key: PodKey) -> PodFacts | None:
        return None

    def on_deletion(self, notify: Callable[[], None]) -> None:
        return None


class StormNode:
    """One node: its pods, and on disk what they may hold, which outlives its lives."""

    def __init__(self, storm: Storm, name: str) -> None:
        self.storm = storm
        self.name = name
        self.journal: dict[str, str] = {}
        self.life = 0
        self.quiet = False
        self.ops = 0

    async def run(self) -> None:
        self.life += 1
        rng = self.storm.world.rng(self.name, str(self.life))
        async with EtcdClient(["etcd:2379"], rng=rng) as client:
            store = EtcdDatastore(client)
            clock = self.storm.world.clock
            ipam, resources = Ipam(store, clock), ResourceClient(store, clock, rng)
            for container in list(self.journal):
                await self._retry(self._delete, ipam, resources, container)
            while not self.quiet:
                if not self.journal or rng.random() < 0.6:
                    await self._add(ipam, resources, f"{rng.getrandbits(64):016x}")
                else:
                    container = rng.choice(list(self.journal))
                    await self._retry(self._delete, ipam, resources, container)
                self.ops += 1
                await asyncio.sleep(rng.random() * 4)

    async def _retry(self, verb: Any, *args: Any) -> None:
        while True:
            try:
                await verb(*args)
            except (EtcdError, DatastoreError):
                await asyncio.sleep(1)
            else:
                return

    async def _add(self, ipam: Ipam, resources: ResourceClient, container: str) -> None:
        self.journal[container] = ""
        secondary = {"node": self.name, "pod": f"pod-{container}", "namespace": "default"}
        request = AssignRequest(self.name, handle=f"net.{container}", secondary=secondary)
        try:
            ips = (await ipam.auto_assign(request)).ips
            if ips:
                self.storm.give(ips[0], container)
                self.journal[container] = str(ips[0])
                await resources.apply(self._endpoint(container, str(ips[0])))
                return
        except (EtcdError, DatastoreError):
            pass
        await self._retry(self._delete, ipam, resources, container)

    async def _delete(self, ipam: Ipam, resources: ResourceClient, container: str) -> None:
        self.storm.take_back(self.journal[container])
        with contextlib.suppress(DoesNotExistError):
            await ipam.release_by_handle(f"net.{container}")
        with contextlib.suppress(DoesNotExistError):
            name = endpoint_name(self.name, "k8s", f"pod-{container}")
            await resources.delete("WorkloadEndpoint", name, "default")
        del self.journal[container]

    def _endpoint(self, container: str, ip: str) -> dict[str, Any]:
        pod = f"pod-{container}"
        spec = {
            "orchestrator": "k8s",
            "node": self.name,
            "pod": pod,
            "endpoint": "eth0",
            "containerID": container,
            "ipNetworks": [f"{ip}/32"],
        }
        name = endpoint_name(self.name, "k8s", pod)
        return new_resource("WorkloadEndpoint", name, spec, namespace="default")


class Storm:
    """Fifty nodes and who holds what, as the nodes believe."""

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        self.nodes = [StormNode(self, f"node-{number}") for number in range(count)]
        self.held: dict[Ip, str] = {}

    def give(self, ip: Ip, container: str) -> None:
        assert ip not in self.held, f"{ip} given to {container} while {self.held[ip]} has it"
        self.held[ip] = container

    def take_back(self, ip: str) -> None:
        if ip:
            self.held.pop(Ip.parse(ip), None)


async def _serve_etcd() -> None:
    loop = asyncio.get_running_loop()
    config = EtcdConfig(listen_host="0.0.0.0", durability="memory")
    await run_etcd(config, RoleEnv(loop_clock(loop, EPOCH_S), random.Random(1)))


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_fifty_nodes_leaves_nothing_behind(seed: int) -> None:
    async def main(world: World) -> None:
        server = world.host("etcd", "10.0.0.1")
        server.spawn(_serve_etcd(), name="etcd")
        storm, rng = Storm(world, 50), world.rng("killer")
        hosts = {
            node.name: world.host(node.name, f"10.0.1.{number + 1}")
            for number, node in enumerate(storm.nodes)
        }
        report, ops = await world.host("admin", "10.0.0.2").spawn(
            _storm(storm, hosts, server, rng), name="admin"
        )
        assert ops > 400
        assert report.double_owners == ()
        assert report.problems == 0, report
        assert report.missing_handles == ()
        assert len(report.allocations) == len(storm.held)
        world.trace.record("end", str(len(report.allocations)))

    async def _storm(
        storm: Storm, hosts: dict[str, Any], server: Any, rng: random.Random
    ) -> tuple[CheckReport, int]:
        async with EtcdClient(["etcd:2379"], rng=rng) as client:
            store = EtcdDatastore(client)
            spec = {"cidr": "192.168.0.0/24", "blockSize": 28}
            await _put(store, new_resource("IPPool", "p", spec))
            for node in storm.nodes:
                reference = {"orchRefs": [{"nodeName": node.name, "orchestrator": "k8s"}]}
                await _put(store, new_resource("Node", node.name, reference))
            for node in storm.nodes:
                hosts[node.name].spawn(node.run(), name="node")
            for _ in range(20):
                victim = rng.choice(storm.nodes)
                if rng.random() < 0.3:
                    storm.world.fabric.partition([hosts[victim.name]], [server])
                    await asyncio.sleep(rng.random() * 3)
                    storm.world.fabric.heal()
                else:
                    await hosts[victim.name].crash()
                    await asyncio.sleep(rng.random() * 3)
                    hosts[victim.name].spawn(victim.run(), name="node")
            # Five die for good; the others come to rest.
            dead = storm.nodes[:5]
            for node in dead:
                await hosts[node.name].crash()
            for node in storm.nodes[5:]:
                node.quiet = True
            await asyncio.sleep(60)
            for node in dead:
                for ip in node.journal.values():
                    storm.take_back(ip)
            view = Kubernetes([node.name for node in storm.nodes[5:]])
            ipam = Ipam(store, storm.world.clock)
            resources = ResourceClient(store, storm.world.clock, rng)
            log = logging.Logger("gc")
            controller = NodeController(
                view, ipam, resources, storm.world.clock, log, grace_s=10**9
            )
            await asyncio.sleep(120)
            await controller.sync()
            await assert_consistent(store)
            found = await store.read(*(Query(prefix, prefix=True) for prefix in PREFIXES))
            report = check(kvp for kvps in found.results for kvp in kvps)
            assert not [block for block in report.blocks if block.affinity in _names(dead)]
            return report, sum(node.ops for node in storm.nodes)

    def _names(nodes: list[StormNode]) -> set[str]:
        return {f"host:{node.name}" for node in nodes}

    async def _put(store: Datastore, resource: dict[str, Any]) -> None:
        resource["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        key = resource_key(resource["kind"], resource["metadata"]["name"])
        await store.commit(Create(key, to_stored(resource)))

    simulate(main, seed=seed)
