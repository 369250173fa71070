"""Nodes with real kernels in virtual time: what flannel programs carries packets."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agents.flannel.daemon import FlannelConfig, run_flannel
from agents.flannel.lease import format_key
from agents.flannel.subnetenv import parse_previous_subnet
from agents.kubeproxy.daemon import Proxier
from agents.kubeproxy.model import Endpoint, Key, ServicePort
from agents.kubeproxy.ruleset import NodeConfig
from emulator.addr import Prefix, format_ip, parse_ip
from emulator.netstack.fib import Route
from emulator.netstack.kernel import Kernel
from emulator.netstack.records import NeighState
from emulator.runtime.stack import StackNetwork
from emulator.sim.fabric import LinkQuality
from emulator.sim.segment import Segment
from emulator.sim.world import World, simulate
from etcd.client import EtcdClient
from etcd.server.config import EtcdConfig
from etcd.server.daemon import run_etcd

ROOT = Path(__file__).parents[2]
ETCD = "172.17.4.51"
LINK = Prefix.parse("172.17.4.0/24")


class Node:
    """A machine: kernel, flannel, and one pod behind cni0 once there is a subnet."""

    def __init__(self, cluster: Cluster, name: str, ip: str) -> None:
        self.cluster = cluster
        self.host = cluster.world.host(name, ip)
        self.ip = ip
        self.lives = 0
        self.ready = False
        self.file = cluster.folder / name / "subnet.env"

    def boot(self) -> None:
        self.lives += 1
        self.ready = False
        world, name = self.cluster.world, self.host.name
        self.kernel = Kernel(name, clock=world.loop.time, rng=world.rng(name, str(self.lives)))
        root = self.kernel.root
        # A NIC keeps its address over reboots.
        nic = bytes((2, 0, 0, 0, 0, parse_ip(self.ip) & 0xFF))
        root.link_add("eth0", "underlay", mac=nic)
        root.link_set("eth0", up=True)
        root.addr_add("eth0", parse_ip(self.ip), LINK.length)
        # Without a default route nothing for a ClusterIP would get as far as the nat rules.
        root.route_replace(Route(Prefix(0, 0), "eth0", parse_ip("172.17.4.1")))
        self.cluster.segment.plug(self.host, self.kernel, parse_ip(self.ip))
        env = world.env(name, self.lives)
        env = type(env)(env.clock, env.rng, env.log, self._on_ready)
        config = FlannelConfig((f"{ETCD}:2379",), self.ip, str(self.file), rules_resync_s=600)
        self.host.spawn(run_flannel(config, env, self.kernel), name="flannel")

    def _on_ready(self, info: str) -> None:
        self.ready = True
        self._make_pod()

    async def crash(self) -> None:
        self.cluster.segment.unplug(self.host)
        await self.host.crash()

    @property
    def subnet(self) -> Prefix:
        subnet = parse_previous_subnet(self.file.read_text())
        assert subnet is not None
        return subnet

    @property
    def pod_ip(self) -> str:
        return format_ip(self.subnet.host(2))

    def _make_pod(self) -> None:
        """What the bridge plugin does."""
        root, pod = self.kernel.root, self.kernel.netns_add("pod")
        root.link_add("cni0", "bridge", mtu=1450)
        root.link_set("cni0", up=True)
        root.addr_add("cni0", self.subnet.host(1), 24)
        root.link_add("veth0", "veth", mtu=1450, peer="eth0", peer_ns="pod")
        # With br_netfilter a pod's way to itself goes back out of the port it came in by.
        root.link_set("veth0", up=True, master="cni0", hairpin=True)
        pod.link_set("eth0", up=True)
        pod.addr_add("eth0", self.subnet.host(2), 24)
        pod.route_replace(Route(Prefix(0, 0), "eth0", self.subnet.host(1)))

    def network(self, namespace: str = "") -> StackNetwork:
        ns = self.kernel.netns(namespace) if namespace else self.kernel.root
        return StackNetwork(ns, self.cluster.world.loop)


def gateways(kernel: Kernel) -> list[Route]:
    return [route for route in kernel.root.routes() if route.gateway is not None]


class Cluster:
    """An etcd and nodes on one segment."""

    def __init__(self, world: World, folder: Path, backend: str) -> None:
        self.world = world
        self.folder = folder
        self.segment = Segment(world)
        self.etcd = world.host("etcd", ETCD)
        self.nodes: list[Node] = []
        self.backend = backend

    async def start(self, nodes: int) -> None:
        config = EtcdConfig(listen_host=ETCD, durability="memory")
        self.etcd.spawn(run_etcd(config, self.world.env("etcd")), name="server")
        await self.etcd.spawn(self._write_config(), name="config")
        for number in range(1, nodes + 1):
            node = Node(self, f"w{number}", f"172.17.4.{200 + number}")
            self.nodes.append(node)
            node.boot()
        await self.settle()

    async def _write_config(self) -> None:
        document = f'{{"Network":"10.2.0.0/16","Backend":{self.backend}}}'.encode()
        async with EtcdClient([f"{ETCD}:2379"]) as etcd:
            await etcd.put(b"/coreos.com/network/config", document)

    async def settle(self) -> None:
        def settled() -> bool:
            return all(
                node.ready
                and sum(route.dst.length == 24 for route in gateways(node.kernel))
                == len(self.nodes) - 1
                for node in self.nodes
            )

        await self.world.until(settled, what="all nodes have all routes")

    async def stop(self) -> None:
        for node in self.nodes:
            await node.crash()
        await self.etcd.stop()


VXLAN = '{"Type":"vxlan"}'


def in_cluster(
    scenario: Any, folder: Path, *, nodes: int = 2, backend: str = VXLAN, seed: int = 0
) -> Any:
    """Run ``scenario(cluster)`` on a settled cluster."""

    async def main(world: World) -> Any:
        cluster = Cluster(world, folder, backend)
        await cluster.start(nodes)
        result = await scenario(cluster)
        await cluster.stop()
        return result

    return simulate(main, seed=seed)


async def ping(source: Node, destination: str, namespace: str = "pod") -> int:
    """The TTL of the answer, 0 if there was none."""
    result = await source.network(namespace).ping(destination, timeout=2.0)
    return result.answer.ttl if result is not None and result.ok else 0


def test_a_ping_crosses_from_pod_to_pod_with_the_ttl_of_a_real_cluster(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> tuple[int, int]:
        one, two = cluster.nodes
        return await ping(one, two.pod_ip), await ping(one, two.pod_ip, namespace="")

    # Each node forwards once; the tunnel itself takes nothing off.
    assert in_cluster(scenario, tmp_path) == (62, 63)


def test_what_is_programmed_is_what_flannel_programs(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        one, two = cluster.nodes
        root, mac = one.kernel.root, two.kernel.root.link("flannel.1").mac
        link = root.link("flannel.1")
        assert (link.mtu, link.vni, link.port, link.learning) == (1450, 1, 8472, False)
        assert mac[0] & 3 == 2
        addresses = [(a.ip, a.length) for a in root.addrs() if a.dev == "flannel.1"]
        assert addresses == [(one.subnet.network, 32)]
        routes = [route for route in root.routes() if route.dev == "flannel.1"]
        assert routes == [Route(two.subnet, "flannel.1", two.subnet.network, onlink=True)]
        neighbours = [entry for entry in root.neighs() if entry.dev == "flannel.1"]
        assert [(e.ip, e.mac, e.state) for e in neighbours] == [
            (two.subnet.network, mac, NeighState.PERMANENT)
        ]
        fdb = [entry for entry in root.fdb() if entry.dev == "flannel.1"]
        assert [(entry.mac, entry.dst) for entry in fdb] == [(mac, parse_ip(two.ip))]

    in_cluster(scenario, tmp_path)


@pytest.mark.parametrize("backend", ['{"Type":"host-gw"}', '{"Type":"vxlan","DirectRouting":true}'])
def test_pods_reach_each_other_without_a_tunnel(tmp_path: Path, backend: str) -> None:
    async def scenario(cluster: Cluster) -> int:
        one, two = cluster.nodes
        via = [route for route in one.kernel.root.routes() if route.dst == two.subnet]
        assert [(route.dev, route.gateway) for route in via] == [("eth0", parse_ip(two.ip))]
        return await ping(one, two.pod_ip)

    assert in_cluster(scenario, tmp_path, backend=backend) == 62


def test_a_rebooted_node_with_a_new_mac_is_reachable_again(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        subnet, mac = two.subnet, two.kernel.root.link("flannel.1").mac
        await two.crash()
        assert not await ping(one, two.pod_ip)
        await asyncio.sleep(30)
        two.boot()
        await cluster.world.until(lambda: two.ready)
        assert two.subnet == subnet
        assert two.kernel.root.link("flannel.1").mac != mac
        await asyncio.sleep(1)
        assert await ping(one, two.pod_ip)

    in_cluster(scenario, tmp_path, nodes=3)


@pytest.mark.parametrize("vandal", ["link", "address", "route", "neighbour", "fdb"])
def test_what_somebody_removed_is_put_back(tmp_path: Path, vandal: str) -> None:
    async def scenario(cluster: Cluster) -> tuple[int, int]:
        one, two = cluster.nodes
        root, peer = one.kernel.root, two.subnet.network
        mac = root.link("flannel.1").mac
        match vandal:
            case "link":
                root.link_del("flannel.1")
            case "address":
                root.addr_del("flannel.1", one.subnet.network, 32)
            case "route":
                root.route_del(Route(two.subnet))
            case "neighbour":
                root.neigh_del("flannel.1", peer)
            case "fdb":
                root.fdb_del("flannel.1", two.kernel.root.link("flannel.1").mac)
        broken = await ping(one, two.pod_ip, namespace="")
        await asyncio.sleep(601)
        assert root.link("flannel.1").mac == mac
        return broken, await ping(one, two.pod_ip, namespace="")

    assert in_cluster(scenario, tmp_path) == (0, 63)


def test_an_etcd_outage_stops_no_packet(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.etcd.crash()
        await asyncio.sleep(600)
        one, two = cluster.nodes
        assert await ping(one, two.pod_ip)

    in_cluster(scenario, tmp_path)


def test_a_partition_between_nodes_loses_packets_until_it_heals(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> list[int]:
        one, two = cluster.nodes
        fabric = cluster.world.fabric
        seen = [await ping(one, two.pod_ip)]
        fabric.partition([one.host], [two.host])
        seen.append(await ping(one, two.pod_ip))
        fabric.heal()
        seen.append(await ping(one, two.pod_ip))
        return seen

    assert in_cluster(scenario, tmp_path) == [62, 0, 62]


WEB = Key("default", "web", "")
CLUSTER_IP, NODE_PORT = "10.3.0.10", 30080


def proxy(cluster: Cluster, *backends: Node, **more: Any) -> None:
    """Program a service over these nodes' pods on every node, as kube-proxy does."""
    service = ServicePort(WEB, "tcp", CLUSTER_IP, 80, node_port=NODE_PORT, **more)
    for node in cluster.nodes:
        config = NodeConfig(node.host.name, node.ip, Prefix.parse("10.2.0.0/16"))
        endpoints = [Endpoint(backend.pod_ip, 8080, backend is node) for backend in backends]
        Proxier(node.kernel.root, config).sync([service], {WEB: endpoints})


async def serve_names(node: Node) -> asyncio.AbstractServer:
    """A pod that answers each connection with its node's name and the client's address."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = writer.get_extra_info("peername")[0]
        writer.write(f"{node.host.name} {client}".encode())
        writer.close()

    return await node.network("pod").start_server(answer, "0.0.0.0", 8080)


async def ask(node: Node, host: str, port: int, namespace: str = "") -> str:
    reader, writer = await node.network(namespace).open_connection(host, port)
    answer = (await reader.read()).decode()
    writer.close()
    return answer


def test_services_are_reached_from_pods_and_nodes_with_the_real_source_addresses(
    tmp_path: Path,
) -> None:
    async def scenario(cluster: Cluster) -> None:
        one, two = cluster.nodes
        await serve_names(two)
        proxy(cluster, two)
        gateway = format_ip(one.subnet.network)
        # A pod keeps its address; a node's own traffic is masqueraded to its tunnel address.
        assert await ask(one, CLUSTER_IP, 80, "pod") == f"w2 {one.pod_ip}"
        assert await ask(one, CLUSTER_IP, 80) == f"w2 {gateway}"
        # Through another node's port the client is that node.
        assert await ask(two, one.ip, NODE_PORT) == f"w2 {gateway}"
        # A ClusterIP answers no ping: only its port is translated.
        assert await one.network().ping(CLUSTER_IP, timeout=2.0) is None

    in_cluster(scenario, tmp_path)


def test_connections_are_spread_over_the_nodes(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> set[str]:
        for node in cluster.nodes:
            await serve_names(node)
        proxy(cluster, *cluster.nodes)
        one = cluster.nodes[0]
        return {(await ask(one, CLUSTER_IP, 80, "pod")).split()[0] for _ in range(40)}

    assert in_cluster(scenario, tmp_path, nodes=3) == {"w1", "w2", "w3"}


def test_a_pod_reaches_itself_through_its_service(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> str:
        one = cluster.nodes[0]
        await serve_names(one)
        proxy(cluster, one)
        return await ask(one, CLUSTER_IP, 80, "pod")

    node, client = in_cluster(scenario, tmp_path).split()
    assert node == "w1"
    # Masqueraded to the bridge's address, or the answer would never leave the pod.
    assert client.endswith(".1")


def test_a_service_without_endpoints_refuses(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        one, two = cluster.nodes
        proxy(cluster)
        with pytest.raises(ConnectionRefusedError):
            await ask(one, CLUSTER_IP, 80, "pod")
        with pytest.raises(ConnectionRefusedError):
            await ask(two, one.ip, NODE_PORT)

    in_cluster(scenario, tmp_path)


async def eventful(cluster: Cluster) -> str:
    """Pings, balanced connections and a reboot over bad links; the digest of all of it."""
    one, two, three = cluster.nodes
    bad = LinkQuality(latency_s=0.002, jitter_s=0.01, loss=0.05, duplicate=0.02, reorder=0.05)
    cluster.world.fabric.set_quality(one.host, two.host, bad)
    for node in cluster.nodes:
        await serve_names(node)
    proxy(cluster, *cluster.nodes)
    answers = [await ask(one, CLUSTER_IP, 80, "pod") for _ in range(20)]
    answers += [str(await ping(one, two.pod_ip)) for _ in range(10)]
    await three.crash()
    await asyncio.sleep(60)
    three.boot()
    await cluster.world.until(lambda: three.ready)
    await asyncio.sleep(10)
    cluster.world.trace.record("answers", *answers)
    return cluster.world.trace.digest()


def digest_of_a_process(hash_seed: str, seed: int, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, __file__, str(seed), str(folder)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_seed_gives_one_digest_of_every_packet_under_any_hash_seed(tmp_path: Path) -> None:
    runs = (("1", 7), ("2", 7), ("1", 8))
    with ThreadPoolExecutor() as pool:
        digests = list(
            pool.map(lambda run: digest_of_a_process(*run, tmp_path / f"{run[0]}-{run[1]}"), runs)
        )
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


if __name__ == "__main__":
    print(in_cluster(eventful, Path(sys.argv[2]), nodes=3, seed=int(sys.argv[1])))


def test_odd_leases_cost_only_themselves(tmp_path: Path) -> None:
    """Outside the network, and such as overlap a node's own, whose gateway no kernel takes."""
    good = Prefix.parse("10.2.252.0/24")

    async def write(subnets: list[Prefix]) -> None:
        async with EtcdClient([f"{ETCD}:2379"]) as etcd:
            for number, subnet in enumerate(subnets):
                data = f'{{"VNI":1,"VtepMAC":"02:00:00:00:01:0{number}"}}'
                value = f'{{"PublicIP":"172.18.4.9","BackendType":"vxlan","BackendData":{data}}}'
                key = f"/coreos.com/network/subnets/{format_key(subnet)}"
                await etcd.put(key.encode(), value.encode())

    async def scenario(cluster: Cluster) -> None:
        one, two = cluster.nodes
        odd = [
            *map(Prefix.parse, ("0.0.0.0/0", "127.0.0.0/24", "172.17.4.0/24", "10.2.0.0/16")),
            *(Prefix(node.subnet.network, 25) for node in cluster.nodes),
        ]
        before = {node.ip: node.kernel.root.routes() for node in cluster.nodes}
        writer = cluster.world.host("writer", "172.17.4.9")
        await writer.spawn(write([*odd, good]), name="write")
        for node, other in ((one, two), (two, one)):
            root = node.kernel.root
            await cluster.world.until(
                lambda root=root: any(route.dst == good for route in root.routes()),
                what="the one good lease is routed",
            )
            added = {route.dst for route in root.routes()} - {r.dst for r in before[node.ip]}
            assert added == {good, Prefix(other.subnet.network, 25)}
        assert await ping(one, two.pod_ip) == 0, "somebody else has that half of the subnet"
        await writer.crash()

    in_cluster(scenario, tmp_path)
