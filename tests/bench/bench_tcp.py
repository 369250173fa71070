"""TCP pod to pod across two node processes: ``python -m tests.bench.bench_tcp [seconds]``.

Each process is a node as flannel leaves it (eth0, flannel.1, cni0, one pod); between them real
VXLAN datagrams cross the loopback.  One pod writes a stream as fast as it can, the other reads.
Figure to reach: 150 Mbit/s, aim 1 Gbit/s.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from typing import TYPE_CHECKING

from emulator.addr import Prefix, format_ip, parse_ip
from emulator.netstack.fib import Route
from emulator.netstack.kernel import Kernel
from emulator.netstack.records import NeighState
from emulator.runtime.stack import StackNetwork
from emulator.runtime.underlay import UnderlayDriver

if TYPE_CHECKING:
    from collections.abc import Sequence

HOSTS = ("127.78.1.1", "127.78.1.2")
NODES = (parse_ip("172.17.4.201"), parse_ip("172.17.4.202"))
SUBNETS = (Prefix.parse("10.2.1.0/24"), Prefix.parse("10.2.2.0/24"))
CHUNK = bytes(128 * 1024)


def nic_mac(number: int) -> bytes:
    return bytes((2, 0, 172, 17, 4, 201 + number))


def vtep_mac(number: int) -> bytes:
    return bytes((2, 0, 10, 2, 1 + number, 0))


class Node:
    """One node with one pod."""

    def __init__(self, number: int, offload: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.number = number
        kernel = Kernel(hostname=f"node-{number}", clock=self.loop.time, rng=random.Random(number))
        self.kernel = kernel
        root = kernel.root
        root.link_add("eth0", "underlay", mac=nic_mac(number), mtu=1500)
        root.link_set("eth0", up=True)
        root.addr_add("eth0", NODES[number], 24)
        self.driver = UnderlayDriver(
            kernel, root.devices["eth0"], HOSTS[number], offload=offload, loop=self.loop
        )

    async def start(self) -> None:
        """Bind the sockets, then do what flannel and the CNI plugin do."""
        await self.driver.start()
        me, other = self.number, 1 - self.number
        self.driver.set_peer(NODES[other], HOSTS[other], mac=nic_mac(other))
        root = self.kernel.root
        root.sysctl["net.ipv4.ip_forward"] = 1
        root.link_add(
            "flannel.1",
            "vxlan",
            mac=vtep_mac(me),
            mtu=1450,
            vni=1,
            local=NODES[me],
            dev="eth0",
            port=8472,
            learning=False,
            srcport=self.driver.source_ports,
        )
        root.addr_add("flannel.1", SUBNETS[me].network, 32)
        root.link_set("flannel.1", up=True)
        vtep = SUBNETS[other].network
        root.route_replace(Route(SUBNETS[other], "flannel.1", gateway=vtep, onlink=True))
        root.neigh_replace("flannel.1", vtep, vtep_mac(other), NeighState.PERMANENT)
        root.fdb_replace("flannel.1", vtep_mac(other), dst=NODES[other])
        root.link_add("cni0", "bridge", mtu=1450)
        root.addr_add("cni0", SUBNETS[me].host(1), 24)
        root.link_set("cni0", up=True)
        pod = self.kernel.netns_add("pod")
        root.link_add("veth0", "veth", mtu=1450, peer="eth0", peer_ns=pod)
        root.link_set("veth0", master="cni0", up=True)
        pod.link_set("eth0", up=True, mtu=1450)
        pod.addr_add("eth0", SUBNETS[me].host(2), 24)
        pod.route_replace(Route(Prefix(0, 0), "eth0", gateway=SUBNETS[me].host(1)))
        self.pod = pod
        self.network = StackNetwork(pod, self.loop)

    async def close(self) -> None:
        await self.driver.close()


class Sink(asyncio.Protocol):
    """Counts what arrives until the stream ends."""

    def __init__(self) -> None:
        self.received = 0
        self.began = 0.0
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        if not self.received:
            self.began = time.perf_counter()
        self.received += len(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()


class Source(asyncio.Protocol):
    """Knows when there is room to write."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()


async def serve(node: Node, ready: int) -> None:
    """Receive one stream and print the figure."""
    sink = Sink()
    await node.network.create_server(lambda: sink, None, 5001)
    os.write(ready, b"r")
    began = time.process_time()
    await sink.ended.wait()
    seconds = time.perf_counter() - sink.began
    cpu = (time.process_time() - began) / seconds
    counters = node.driver.counters()
    print(f"TCP pod to pod: {sink.received * 8 / seconds / 1e6:,.0f} Mbit/s")
    print(
        f"  receiver: {cpu:.0%} CPU, {counters.received:,} datagrams, offload {node.driver.offload}"
    )


async def send(node: Node, ready: int, seconds: float) -> None:
    """Write for a while, then close."""
    await node.loop.run_in_executor(None, os.read, ready, 1)
    transport, source = await node.network.create_connection(
        Source, format_ip(SUBNETS[1 - node.number].host(2)), 5001
    )
    began, cpu = node.loop.time(), time.process_time()
    while node.loop.time() < began + seconds:
        transport.write(CHUNK)
        await source.room.wait()
    cpu = (time.process_time() - cpu) / (node.loop.time() - began)
    info = [row.tcp for row in node.pod.sockets.sockets() if row.proto == "tcp"][-1]
    transport.close()
    while node.pod.sockets.sockets() and node.pod.sockets.sockets()[-1].tcp.send_queue:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    print(
        f"  sender: {cpu:.0%} CPU, {node.driver.counters().sent:,} datagrams, "
        f"rtt {info.rtt_s * 1000:.2f} ms, cwnd {info.cwnd}, retransmits {info.retransmits}",
        flush=True,
    )


async def run(number: int, pipe: tuple[int, int], seconds: float, offload: bool) -> None:
    node = Node(number, offload)
    await node.start()
    if number:
        await serve(node, pipe[1])
    else:
        await send(node, pipe[0], seconds)
    await node.close()


def main(argv: Sequence[str] = ()) -> None:
    """Fork the two nodes, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=5.0)
    parser.add_argument("--plain", action="store_true", help="without UDP_SEGMENT and UDP_GRO")
    arguments = parser.parse_args(argv)
    pipe = os.pipe()
    child = os.fork()
    number = int(not child)
    try:
        asyncio.run(run(number, pipe, arguments.seconds, not arguments.plain))
    finally:
        if not child:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
