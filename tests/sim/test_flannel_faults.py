"""Any sequence of faults: in the end every node has a subnet of its own and all routes."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.flannel.daemon import FlannelConfig, LeaseRevokedError, run_flannel
from agents.flannel.lease import parse_value
from agents.flannel.subnetenv import parse_previous_subnet
from emulator.addr import Prefix, format_ip
from emulator.runtime.role import RoleEnv
from emulator.sim.world import World, simulate
from etcd.client import EtcdClient
from etcd.server.config import EtcdConfig
from etcd.server.daemon import run_etcd
from tests.flannel_kernel import RememberingKernel

ETCD = "172.17.4.51"
NODES = 4
SUBNETS = b"/coreos.com/network/subnets/"

numbers = st.integers(0, NODES - 1)
faults = st.lists(
    st.one_of(
        st.tuples(st.just("crash"), numbers),
        st.tuples(st.just("boot"), numbers),
        st.tuples(st.just("partition"), numbers),
        st.tuples(st.just("heal"), st.just(0)),
        st.tuples(st.just("etcd"), st.just(0)),
        st.tuples(st.just("delete"), numbers),
        st.tuples(st.just("compact"), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([0.01, 1, 60, 4000, 90000])),
    ),
    max_size=12,
)


class Node:
    """A machine whose supervisor starts flannel again a second after it ended."""

    def __init__(self, world: World, folder: Path, number: int) -> None:
        self.world = world
        self.ip = f"172.17.4.{201 + number}"
        self.host = world.host(f"w{number}", self.ip)
        self.path = folder / f"{number}" / "subnet.env"
        self.config = FlannelConfig((f"{ETCD}:2379",), self.ip, str(self.path), rules_resync_s=3600)
        self.lives = 0
        self.is_up = False
        self.ready = False
        self.kernel = RememberingKernel(self.ip, number)

    def boot(self) -> None:
        if not self.is_up:
            self.is_up = True
            self.kernel = RememberingKernel(self.ip, self.lives * 100 + int(self.ip[-3:]))
            self.host.spawn(self._supervise(), name="supervisor")

    async def crash(self) -> None:
        if self.is_up:
            self.is_up = self.ready = False
            await self.host.crash()

    async def _supervise(self) -> None:
        while True:
            self.lives += 1
            env = self.world.env(self.host.name, self.lives)
            try:
                await run_flannel(
                    self.config, RoleEnv(env.clock, env.rng, env.log, self._on_ready), self.kernel
                )
            except LeaseRevokedError:
                self.ready = False
            await asyncio.sleep(1)

    def _on_ready(self, _: str) -> None:
        self.ready = True

    def subnet(self) -> Prefix | None:
        return parse_previous_subnet(self.path.read_text()) if self.path.exists() else None

    def routes(self) -> set[Prefix]:
        return {route.dst for route in self.kernel.routes()}


class Machinery:
    """The world under test and what may happen to it."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.etcd = world.host("etcd", ETCD)
        self.admin = world.host("admin", "172.17.4.1")
        self.lives = 0
        self.nodes = [Node(world, folder, number) for number in range(NODES)]
        self.start_etcd()

    def start_etcd(self) -> None:
        self.lives += 1
        config = EtcdConfig(listen_host=ETCD, data_dir=str(self.folder / "etcd"), durability="none")
        self.etcd.spawn(run_etcd(config, self.world.env("etcd", self.lives)), name="server")

    async def ask(self, method: str, *args: Any, **options: Any) -> Any:
        async def client() -> Any:
            async with EtcdClient([f"{ETCD}:2379"]) as etcd:
                return await getattr(etcd, method)(*args, **options)

        return await self.admin.spawn(client(), name=method)

    async def holders(self) -> dict[Prefix, str]:
        found = await self.ask("get", SUBNETS, prefix=True)
        return {
            Prefix.parse(kv.key.removeprefix(SUBNETS).decode().replace("-", "/")): format_ip(
                parse_value(kv.value).public_ip
            )
            for kv in found.kvs
        }

    async def do(self, what: str, number: Any) -> None:
        fabric = self.world.fabric
        match what:
            case "crash":
                await self.nodes[number].crash()
            case "boot":
                self.nodes[number].boot()
            case "partition":
                fabric.partition([self.nodes[number].host], [self.etcd])
            case "heal":
                fabric.heal()
            case "etcd":
                await self.etcd.crash()
                await asyncio.sleep(20)
                self.start_etcd()
            case "delete":
                subnet = self.nodes[number].subnet()
                if subnet is not None:
                    key = SUBNETS + str(subnet).replace("/", "-").encode()
                    await self.ask("delete", key)
            case "compact":
                revision = (await self.ask("get", b"x")).revision
                if revision > 2:
                    await self.ask("put", b"x", b"")
                    await self.ask("compact", revision)
            case "wait":
                await asyncio.sleep(number)

    async def settle(self) -> None:
        self.world.fabric.heal()
        for node in self.nodes:
            node.boot()
        await self.world.until(self._settled, within_s=600, what="every node knows the others")

    def _settled(self) -> bool:
        own = [node.subnet() for node in self.nodes]
        return len({*own}) == NODES and all(
            node.ready and node.routes() == {subnet for subnet in own if subnet != mine}
            for node, mine in zip(self.nodes, own, strict=True)
        )


@settings(max_examples=25, deadline=None)
@given(faults, st.integers(0, 2**16))
def test_every_node_ends_with_a_subnet_of_its_own(story: list[tuple[str, Any]], seed: int) -> None:
    async def main(world: World) -> None:
        with tempfile.TemporaryDirectory() as folder:
            machinery = Machinery(world, Path(folder))
            document = b'{"Network":"10.2.0.0/24","SubnetLen":27,"Backend":{"Type":"vxlan"}}'
            await machinery.ask("put", b"/coreos.com/network/config", document)
            for node in machinery.nodes[:2]:
                node.boot()
            for what, number in story:
                await machinery.do(what, number)
                holders = (await machinery.holders()).values()
                assert len(holders) == len({*holders}), "a node holds two subnets"
            await machinery.settle()
            holders = await machinery.holders()
            for node in machinery.nodes:
                subnet = node.subnet()
                assert subnet is not None
                assert holders[subnet] == node.ip
            for node in machinery.nodes:
                await node.crash()
            await machinery.etcd.stop()

    simulate(main, seed=seed)
