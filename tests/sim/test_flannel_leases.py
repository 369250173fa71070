"""flannel agents and a whole etcd in virtual time: days, crashes, partitions, lost races."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agents.flannel.daemon import FlannelConfig, LeaseRevokedError, run_flannel
from agents.flannel.lease import format_key
from agents.flannel.subnetenv import parse_previous_subnet
from emulator.sim.fabric import LinkQuality
from emulator.sim.world import World, simulate
from etcd.client import EtcdClient
from etcd.server.config import EtcdConfig
from etcd.server.daemon import run_etcd
from tests.flannel_kernel import RememberingKernel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from emulator.sim.host import SimHost

ROOT = Path(__file__).parents[2]
ETCD = "172.17.4.51"
DAY_S = 86400.0
SUBNETS = b"/coreos.com/network/subnets/"


class Cluster:
    """An etcd and nodes with one flannel agent each."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.etcd = world.host("etcd", ETCD)
        self.admin = world.host("admin", "172.17.4.1")
        self.nodes: dict[str, Node] = {}

    def start_etcd(self, life: int = 0) -> None:
        config = EtcdConfig(listen_host=ETCD, data_dir=str(self.folder / "etcd"), durability="none")
        env = self.world.env("etcd", life)
        self.etcd.spawn(run_etcd(config, env), name="server")

    async def ask(self, question: Callable[[EtcdClient], Awaitable[Any]]) -> Any:
        """Ask etcd from a machine of its own."""

        async def client() -> Any:
            async with EtcdClient([f"{ETCD}:2379"], rng=self.world.rng("admin")) as etcd:
                return await question(etcd)

        return await self.admin.spawn(client(), name="ask")

    async def write_config(self, network: str = "10.2.0.0/16") -> None:
        document = f'{{"Network":"{network}","Backend":{{"Type":"vxlan"}}}}'.encode()
        await self.ask(lambda etcd: etcd.put(b"/coreos.com/network/config", document))

    async def leases(self) -> dict[str, bytes]:
        found = await self.ask(lambda etcd: etcd.get(SUBNETS, prefix=True))
        return {kv.key.removeprefix(SUBNETS).decode(): kv.value for kv in found.kvs}

    def node(self, number: int, **options: Any) -> Node:
        name = f"w{number}"
        self.nodes[name] = Node(self, name, f"172.17.4.{200 + number}", options)
        return self.nodes[name]

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.host.stop()
        await self.etcd.stop()


class Node:
    """One machine with flannel on it; each life has a new kernel and so a new VTEP MAC."""

    def __init__(self, cluster: Cluster, name: str, ip: str, options: dict[str, Any]) -> None:
        self.cluster = cluster
        self.ip = ip
        self.host: SimHost = cluster.world.host(name, ip)
        self.lives = 0
        self.ready = False
        self.ended: list[str] = []
        self.kernel = RememberingKernel(ip, 0)
        path = cluster.folder / name / "subnet.env"
        # Rules are repaired every 5 s by default, which would be most of what happens in a day.
        self.config = FlannelConfig((f"{ETCD}:2379",), ip, str(path), rules_resync_s=600, **options)

    def boot(self) -> None:
        """Start the machine's next life."""
        self.lives += 1
        self.ready = False
        seed = f"{self.cluster.world.seed} {self.host.name} {self.lives}".encode()
        self.kernel = RememberingKernel(self.ip, int.from_bytes(hashlib.sha256(seed).digest()[:4]))
        env = self.cluster.world.env(self.host.name, self.lives)
        env = type(env)(env.clock, env.rng, env.log, self._on_ready)
        self.host.spawn(self._run(env), name=f"flannel.{self.lives}")

    def _on_ready(self, info: str) -> None:
        self.ready = True

    async def _run(self, env: Any) -> None:
        try:
            await run_flannel(self.config, env, self.kernel)
        except LeaseRevokedError as error:
            self.ended.append(str(error))
            self.ready = False

    @property
    def subnet(self) -> str:
        """The subnet in subnet.env, as etcd's keys have it."""
        subnet = parse_previous_subnet(Path(self.config.subnet_file).read_text())
        assert subnet is not None
        return format_key(subnet)

    def routes(self) -> list[str]:
        return sorted(str(route.dst) for route in self.kernel.routes())


async def cluster_of(world: World, folder: Path, nodes: int, **options: Any) -> Cluster:
    """A running cluster in which everybody knows everybody."""
    cluster = Cluster(world, folder)
    cluster.start_etcd()
    await cluster.write_config()
    for number in range(1, nodes + 1):
        cluster.node(number, **options).boot()
    await everybody_knows(cluster)
    return cluster


async def everybody_knows(cluster: Cluster) -> None:
    nodes = [*cluster.nodes.values()]
    await cluster.world.until(
        lambda: all(node.ready and len(node.routes()) == len(nodes) - 1 for node in nodes),
        what="all nodes have all routes",
    )


def run(main: Callable[[World, Path], Awaitable[Any]], folder: Path, seed: int = 0) -> Any:
    return simulate(lambda world: main(world, folder), seed=seed)


def test_a_dead_nodes_lease_expires_after_a_day_and_its_routes_go(tmp_path: Path) -> None:
    async def main(world: World, folder: Path) -> tuple[float, list[str]]:
        cluster = await cluster_of(world, folder, 3)
        dead, alive = cluster.nodes["w1"], cluster.nodes["w2"]
        before = dead.subnet
        await dead.host.crash()
        died_at = world.loop.time()
        await asyncio.sleep(DAY_S - 60)
        assert len(alive.routes()) == 2
        await world.until(lambda: len(alive.routes()) == 1, within_s=120)
        gone_after = world.loop.time() - died_at
        leases = await cluster.leases()
        assert before not in leases
        # The others' leases were renewed on the way, an hour before their end.
        assert len(leases) == 2
        await cluster.stop()
        return gone_after, [line for line in world.trace.lines if "Lease renewed" in line]

    gone_after, renewals = run(main, tmp_path)
    assert DAY_S - 5 < gone_after < DAY_S + 5
    assert [float(line.split()[0]) for line in renewals] == [pytest.approx(DAY_S - 3600, abs=5)] * 2


def test_days_of_renewals_keeps_every_subnet(tmp_path: Path) -> None:
    async def main(world: World, folder: Path) -> None:
        cluster = await cluster_of(world, folder, 2)
        before = await cluster.leases()
        await asyncio.sleep(2.5 * DAY_S)
        assert await cluster.leases() == before
        assert all(node.lives == 1 and not node.ended for node in cluster.nodes.values())
        await cluster.stop()

    run(main, tmp_path)


def test_a_node_that_returns_gets_its_subnet_back_and_its_new_mac_is_learnt(
    tmp_path: Path,
) -> None:
    async def main(world: World, folder: Path) -> None:
        cluster = await cluster_of(world, folder, 3)
        node, peer = cluster.nodes["w1"], cluster.nodes["w3"]
        subnet = node.subnet
        old = {entry.mac for entry in peer.kernel.neighs()}
        await node.host.crash()
        await asyncio.sleep(600)
        node.boot()
        await everybody_knows(cluster)
        assert node.subnet == subnet
        mac = next(link.mac for link in node.kernel.links() if link.vni)
        await world.until(lambda: mac in {entry.mac for entry in peer.kernel.neighs()})
        assert mac not in old
        assert len(peer.kernel.fdb()) == 2
        await cluster.stop()

    run(main, tmp_path)


def test_a_node_that_returns_after_its_lease_expired_still_has_its_previous_subnet(
    tmp_path: Path,
) -> None:
    async def main(world: World, folder: Path) -> None:
        cluster = await cluster_of(world, folder, 2)
        node = cluster.nodes["w1"]
        subnet = node.subnet
        await node.host.crash()
        await asyncio.sleep(1.2 * DAY_S)
        assert subnet not in await cluster.leases()
        node.boot()
        await everybody_knows(cluster)
        assert node.subnet == subnet
        await cluster.stop()

    run(main, tmp_path)


def test_a_lost_race_ends_with_two_subnets(tmp_path: Path) -> None:
    async def main(world: World, folder: Path) -> list[str]:
        cluster = Cluster(world, folder)
        cluster.start_etcd()
        # Three subnets for two nodes: in some worlds both want the same first.
        await cluster.write_config("10.2.0.0/24")
        for number in (1, 2):
            cluster.node(number).boot()
        await everybody_knows(cluster)
        subnets = [node.subnet for node in cluster.nodes.values()]
        assert sorted(subnets) == sorted(await cluster.leases())
        assert len(set(subnets)) == 2
        await cluster.stop()
        return [line for line in world.trace.lines if "another node was faster" in line]

    races = sum(bool(run(main, tmp_path / str(seed), seed)) for seed in range(12))
    assert races > 0


def test_agents_outlive_an_etcd_outage(tmp_path: Path) -> None:
    async def main(world: World, folder: Path) -> None:
        cluster = await cluster_of(world, folder, 3)
        before = await cluster.leases()
        await cluster.etcd.crash()
        await asyncio.sleep(3600)
        assert all(len(node.routes()) == 2 for node in cluster.nodes.values())
        cluster.start_etcd(life=1)
        late = cluster.node(4)
        late.boot()
        await everybody_knows(cluster)
        after = await cluster.leases()
        assert after.items() >= before.items()
        assert all(not node.ended for node in cluster.nodes.values())
        await cluster.stop()

    run(main, tmp_path)


def test_a_partitioned_node_whose_lease_expired_learns_it_and_starts_over(
    tmp_path: Path,
) -> None:
    async def main(world: World, folder: Path) -> None:
        cluster = await cluster_of(world, folder, 2)
        lost, other = cluster.nodes["w1"], cluster.nodes["w2"]
        subnet = lost.subnet
        world.fabric.partition([lost.host], [cluster.etcd])
        await asyncio.sleep(1.2 * DAY_S)
        assert subnet not in await cluster.leases()
        assert lost.ready
        # Somebody else takes the subnet meanwhile; the lost node must not take it back.
        taken = b'{"PublicIP":"172.17.4.99","BackendType":"vxlan"}'
        await cluster.ask(lambda etcd: etcd.put(SUBNETS + subnet.encode(), taken))
        world.fabric.heal()
        await world.until(lambda: lost.ended, within_s=600)
        assert lost.ended == [f"the lease of {subnet.replace('-', '/')} was deleted or has expired"]
        lost.boot()
        await world.until(lambda: lost.ready)
        leases = await cluster.leases()
        assert leases[subnet] == taken
        assert lost.subnet != subnet
        assert lost.subnet in leases
        assert other.subnet in leases
        await cluster.stop()

    run(main, tmp_path)


def test_a_watch_behind_a_compaction_resyncs(tmp_path: Path) -> None:
    async def main(world: World, folder: Path) -> list[str]:
        cluster = await cluster_of(world, folder, 3)
        behind = cluster.nodes["w1"]
        world.fabric.partition([behind.host], [cluster.etcd])
        await asyncio.sleep(60)
        gone = cluster.nodes["w2"].subnet
        await cluster.nodes["w2"].host.crash()
        await cluster.ask(lambda etcd: etcd.delete(SUBNETS + gone.encode()))
        new = b'{"PublicIP":"172.17.4.77","BackendType":"vxlan","BackendData":{"VtepMAC":"%s"}}'
        mac = b"02:00:00:00:00:77"
        written = await cluster.ask(lambda etcd: etcd.put(SUBNETS + b"10.2.250.0-24", new % mac))
        await cluster.ask(lambda etcd: etcd.compact(written.revision))
        assert len(behind.routes()) == 2
        world.fabric.heal()
        await world.until(lambda: "10.2.250.0/24" in behind.routes(), within_s=120)
        assert gone.replace("-", "/") not in behind.routes()
        await cluster.stop()
        return [line for line in world.trace.lines if "outside history window" in line]

    assert len(run(main, tmp_path)) == 1


def test_a_node_whose_key_was_deleted_by_hand_stops(tmp_path: Path) -> None:
    async def main(world: World, folder: Path) -> None:
        cluster = await cluster_of(world, folder, 2)
        node = cluster.nodes["w1"]
        await cluster.ask(lambda etcd: etcd.delete(SUBNETS + node.subnet.encode()))
        await world.until(lambda: node.ended)
        await cluster.stop()

    run(main, tmp_path)


def test_a_lease_turned_into_a_reservation_is_kept_without_renewals(tmp_path: Path) -> None:
    async def main(world: World, folder: Path) -> None:
        cluster = await cluster_of(world, folder, 2)
        node = cluster.nodes["w1"]
        key = SUBNETS + node.subnet.encode()
        value = (await cluster.leases())[node.subnet]
        await cluster.ask(lambda etcd: etcd.put(key, value))
        await asyncio.sleep(1.5 * DAY_S)
        found = await cluster.ask(lambda etcd: etcd.get(key))
        assert (found.kvs[0].lease, found.kvs[0].version) == (0, 2)
        assert node.ready
        await cluster.stop()

    run(main, tmp_path)


async def eventful(world: World, folder: Path) -> str:
    """A world with everything in it: its digest tells if two runs are the same."""
    world.fabric.default = LinkQuality(latency_s=0.001, jitter_s=0.002)
    cluster = await cluster_of(world, folder, 3)
    await cluster.nodes["w2"].host.crash()
    world.fabric.partition([cluster.nodes["w3"].host], [cluster.etcd])
    await asyncio.sleep(DAY_S)
    world.fabric.heal()
    cluster.nodes["w2"].boot()
    await cluster.etcd.crash()
    await asyncio.sleep(30)
    cluster.start_etcd(life=1)
    await asyncio.sleep(600)
    await cluster.stop()
    return world.trace.digest()


def digest_of_a_process(hash_seed: str, seed: int, folder: Path) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, str(seed), str(folder)],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_seed_gives_one_digest_under_any_hash_seed(tmp_path: Path) -> None:
    runs = (("1", 7), ("2", 7), ("1", 8))
    with ThreadPoolExecutor() as pool:
        digests = list(
            pool.map(lambda run: digest_of_a_process(*run, tmp_path / f"{run[0]}-{run[1]}"), runs)
        )
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


if __name__ == "__main__":
    print(run(eventful, Path(sys.argv[2]), int(sys.argv[1])))
