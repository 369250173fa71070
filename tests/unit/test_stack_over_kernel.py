"""Pods' programs over real kernels: two nodes in one loop, VXLAN between them on the loopback."""

from __future__ import annotations

import asyncio
import errno
import io
import random

import aiohttp
import pytest
from aiohttp import web

from emulator.addr import Prefix, parse_ip
from emulator.netstack.fib import Route
from emulator.netstack.kernel import Kernel
from emulator.netstack.records import NeighState
from emulator.netstack.sock.tcp_state import State
from emulator.runtime.stack import StackNetwork
from emulator.runtime.stack_http import StackConnector, StackSite
from emulator.runtime.underlay import KernelDriver, UnderlayDriver
from tests.waiting import until

POD_A, POD_B = "10.2.1.2", "10.2.2.2"


class Node:
    """One node with one pod, as flannel and the CNI plugin leave it."""

    def __init__(self, number: int, *, offload: bool) -> None:
        self.number = number
        loop = asyncio.get_running_loop()
        self.kernel = Kernel(f"node-{number}", clock=loop.time, rng=random.Random(number))
        root = self.kernel.root
        root.link_add("eth0", "underlay", mac=self.nic, mtu=1500)
        root.addr_add("eth0", self.ip, 24)
        root.link_set("eth0", up=True)
        self.driver = UnderlayDriver(
            self.kernel,
            root.devices["eth0"],
            self.host,
            vxlan_port=0,
            carrier_port=0,
            offload=offload,
        )

    @property
    def host(self) -> str:
        return f"127.79.1.{1 + self.number}"

    @property
    def ip(self) -> int:
        return parse_ip(f"172.17.4.{201 + self.number}")

    @property
    def subnet(self) -> Prefix:
        return Prefix.parse(f"10.2.{1 + self.number}.0/24")

    @property
    def nic(self) -> bytes:
        return bytes((2, 0, 172, 17, 4, 201 + self.number))

    @property
    def vtep(self) -> bytes:
        return bytes((2, 0, 10, 2, 1 + self.number, 0))

    def configure(self, other: Node) -> None:
        self.driver.set_peer(
            other.ip, other.host, other.driver.vxlan_port, other.driver.carrier_port, mac=other.nic
        )
        root = self.kernel.root
        root.link_add(
            "flannel.1",
            "vxlan",
            mac=self.vtep,
            mtu=1450,
            vni=1,
            local=self.ip,
            dev="eth0",
            port=8472,
            learning=False,
            srcport=self.driver.source_ports,
        )
        root.addr_add("flannel.1", self.subnet.network, 32)
        root.link_set("flannel.1", up=True)
        far = other.subnet.network
        root.route_replace(Route(other.subnet, "flannel.1", gateway=far, onlink=True))
        root.neigh_replace("flannel.1", far, other.vtep, NeighState.PERMANENT)
        root.fdb_replace("flannel.1", other.vtep, dst=other.ip)
        root.link_add("cni0", "bridge", mtu=1450)
        root.addr_add("cni0", self.subnet.host(1), 24)
        root.link_set("cni0", up=True)
        self.pod = self.add_pod("pod", 2)

    def add_pod(self, name: str, host: int) -> StackNetwork:
        root = self.kernel.root
        ns = self.kernel.netns_add(name)
        root.link_add(f"v{name}", "veth", mtu=1450, peer="eth0", peer_ns=ns)
        root.link_set(f"v{name}", master="cni0", up=True)
        ns.link_set("lo", up=True)
        ns.link_set("eth0", up=True, mtu=1450)
        ns.addr_add("eth0", self.subnet.host(host), 24)
        ns.route_replace(Route(Prefix(0, 0), "eth0", gateway=self.subnet.host(1)))
        return StackNetwork(ns)


class Cluster:
    """Two such nodes that know each other."""

    def __init__(self, *, offload: bool) -> None:
        self.a, self.b = Node(0, offload=offload), Node(1, offload=offload)

    async def start(self) -> None:
        await self.a.driver.start()
        await self.b.driver.start()
        self.a.configure(self.b)
        self.b.configure(self.a)

    async def close(self) -> None:
        for node in (self.a, self.b):
            for name in node.kernel.netns_names():
                node.kernel.netns(name).sockets.close()
        for _ in range(3):
            await asyncio.sleep(0)  # the transports tell their protocols
        await self.a.driver.close()
        await self.b.driver.close()


@pytest.fixture
async def cluster():
    cluster = Cluster(offload=True)
    await cluster.start()
    yield cluster
    await cluster.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def echoed(network: StackNetwork, host: str, data: bytes) -> bytes:
    reader, writer = await network.open_connection(host, 7)
    async with asyncio.TaskGroup() as group:
        received = group.create_task(reader.read())
        for start in range(0, len(data), 100_000):
            writer.write(data[start : start + 100_000])
            await writer.drain()
        writer.write_eof()
    writer.close()
    return received.result()


async def test_a_stream_crosses_the_overlay_both_ways(cluster: Cluster) -> None:
    await cluster.b.pod.start_server(echo, None, 7)
    data = random.Random(1).randbytes(2_000_000)
    assert await echoed(cluster.a.pod, POD_B, data) == data
    assert cluster.a.driver.counters().sent > 1000
    await until(lambda: [r.tcp.state for r in cluster.b.pod.sockets.sockets()] == [State.LISTEN])


async def test_the_same_without_offload() -> None:
    plain = Cluster(offload=False)
    await plain.start()
    await test_a_stream_crosses_the_overlay_both_ways(plain)
    await plain.close()


async def test_two_pods_of_one_node_talk_over_the_bridge(cluster: Cluster) -> None:
    other = cluster.a.add_pod("other", 3)
    await other.start_server(echo, None, 7)
    data = random.Random(2).randbytes(2_000_000)
    assert await echoed(cluster.a.pod, "10.2.1.3", data) == data
    await cluster.a.pod.start_server(echo, "127.0.0.1", 7)
    assert await echoed(cluster.a.pod, "127.0.0.1", data) == data


async def test_ping_shows_two_hops_less_and_traceroute_the_hops(cluster: Cluster) -> None:
    result = await cluster.a.pod.ping(POD_B, timeout=5)
    assert result is not None
    assert result.ok
    assert (result.answer.ttl, result.answer.size) == (62, 64)
    result = await cluster.a.pod.ping(POD_B, ttl=1, timeout=5)
    assert result is not None
    assert (result.answer.icmp_type, result.answer.source) == (11, parse_ip("10.2.1.1"))
    sock = cluster.a.pod.sockets.udp_bind()
    sock.want_reports = True
    sock.send(b"x", (await cluster.a.pod._endpoint(POD_B, 33434)), ttl=64)
    await until(lambda: bool(sock.reports))
    assert (sock.reports[0].icmp_type, sock.reports[0].code) == (3, 3)
    assert await cluster.a.pod.ping("10.2.1.1", data=bytes(5000), timeout=5) is not None


async def test_the_errors_a_program_sees_are_linuxs(cluster: Cluster) -> None:
    with pytest.raises(ConnectionRefusedError):
        await cluster.a.pod.open_connection(POD_B, 81)
    # Nobody answers ARP for it: the bridge's namespace says host unreachable.
    with pytest.raises(OSError, match="Connect call failed") as caught:
        await cluster.a.pod.open_connection("10.2.1.77", 80)
    assert caught.value.errno == errno.EHOSTUNREACH
    with pytest.raises(OSError, match="Connect call failed") as caught:
        await cluster.a.pod.open_connection("192.0.2.1", 80)
    assert caught.value.errno == errno.ENETUNREACH
    lonely = StackNetwork(cluster.a.kernel.netns_add("lonely"))
    with pytest.raises(OSError, match="Network is unreachable"):
        await lonely.open_connection(POD_B, 80)


async def test_a_deleted_pod_breaks_its_connections(cluster: Cluster) -> None:
    await cluster.b.pod.start_server(echo, None, 7)
    reader, writer = await cluster.a.pod.open_connection(POD_B, 7)
    cluster.a.kernel.netns_del("pod")
    with pytest.raises(OSError, match="Network is down"):
        await reader.read()
    writer.close()


async def test_garbage_on_the_wire_harms_nobody(cluster: Cluster) -> None:
    rng = random.Random(3)
    device = cluster.b.kernel.root.devices["eth0"]
    for size in (0, 1, 7, 8, 21, 22, 41, 42, 60, 1400):
        for _ in range(50):
            payload = rng.randbytes(size)
            device.receive_vxlan(cluster.a.ip, 40000, payload, 0)
            device.receive_vxlan(cluster.a.ip, 40000, b"\x08\0\0\0\0\0\1\0" + payload, 0)
            device.receive_vxlan(cluster.a.ip, 40000, payload * 3, max(1, size))
            device.receive_carrier(payload, 0)
            device.receive_carrier(b"\x45" + payload * 2, max(1, size))
    await cluster.b.pod.start_server(echo, None, 7)
    assert await echoed(cluster.a.pod, POD_B, b"still here") == b"still here"


async def test_http_between_pods_of_two_nodes(cluster: Cluster) -> None:
    async def upload(request: web.Request) -> web.Response:
        return web.Response(text=f"{len(await request.read())} from {request.remote}")

    app = web.Application(client_max_size=10**8)
    app.router.add_post("/", upload)
    runner = web.AppRunner(app)
    await runner.setup()
    await StackSite(runner, cluster.b.pod, None, 80).start()
    async with aiohttp.ClientSession(connector=StackConnector(cluster.a.pod)) as session:
        for size in (0, 10, 3_000_000):
            answer = await session.post(f"http://{POD_B}/", data=io.BytesIO(bytes(size)))
            assert await answer.text() == f"{size} from {POD_A}"
    await runner.cleanup()


async def test_a_kernel_without_a_wire_runs_on_a_bare_driver() -> None:
    loop = asyncio.get_running_loop()
    kernel = Kernel("alone", clock=loop.time, rng=random.Random(1))
    driver = KernelDriver(kernel, loop=loop)
    driver.start()
    one, two = kernel.netns_add("one"), kernel.netns_add("two")
    one.link_add("eth0", "veth", peer="eth0", peer_ns=two)
    for ns, ip in ((one, "10.0.0.1"), (two, "10.0.0.2")):
        ns.addr_add("eth0", parse_ip(ip), 24)
        ns.link_set("eth0", up=True)
    await StackNetwork(two).start_server(echo, None, 7)
    data = random.Random(4).randbytes(1_000_000)
    assert await echoed(StackNetwork(one), "10.0.0.2", data) == data
    driver.stop()


async def test_both_nodes_see_the_same_outer_packet(cluster: Cluster) -> None:
    seen: dict[str, list[bytes]] = {"a": [], "b": []}
    handles = [
        node.kernel.capture(
            "root", "eth0", lambda _at, frame, _out, name=name: seen[name].append(frame)
        )
        for name, node in (("a", cluster.a), ("b", cluster.b))
    ]
    for _ in range(3):
        assert await cluster.a.pod.ping(POD_B, timeout=5) is not None
    for handle in handles:
        handle.close()
    first, last = cluster.a.driver.source_ports
    requests = {
        name: [frame for frame in frames if frame[26:30] == cluster.a.ip.to_bytes(4, "big")]
        for name, frames in seen.items()
    }
    assert len(requests["a"]) == 3
    # From the outer UDP header on they are byte for byte the same, source port included.
    assert [frame[34:] for frame in requests["a"]] == [frame[34:] for frame in requests["b"]]
    assert all(first <= int.from_bytes(f[34:36], "big") <= last for f in requests["b"])
