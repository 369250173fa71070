"""Forwarding by one node process: ``python -m tests.bench.bench_forwarding_process [seconds]``.

A whole node's loop, sockets included: a sender's VXLAN datagrams arrive on the loopback, are
forwarded by the emulated kernel (rules and connection tracking on) and leave for a third address,
where a sink counts them.  Sender and sink share one other process.  Figure to reach: 60,000 packets
a second, aim 250,000.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import socket
import time
from typing import TYPE_CHECKING

from emulator.netstack.devices.underlay import Underlay
from emulator.netstack.fib import Route
from emulator.netstack.kernel import Kernel
from emulator.runtime.underlay import UnderlayDriver
from tests.bench.bench_forwarding import BATCH, PAYLOAD, RULES, frames, udp_packets
from tests.joined_kernels import Segment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

FORWARDER, SENDER, SINK = "127.79.1.1", "127.79.1.2", "127.79.1.3"
UDP_SEGMENT, UDP_GRO = 103, 104
# Batches the sender is ahead of the sink at most: it must not drown the forwarder's socket buffer.
WINDOW = 12


def generate(ready: Connection, seconds: float, datagrams: bytes, size: int) -> None:
    """Send batches and count what comes out, in one process; reports (packets, seconds)."""
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.bind((SENDER, 0))
    out.setsockopt(socket.SOL_UDP, UDP_SEGMENT, size)
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind((SINK, 8472))
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sink.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
    sink.settimeout(0.2)
    ready.send("ready")
    ready.recv()
    sent = received = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        while sent - received < WINDOW * BATCH:
            out.sendto(datagrams, (FORWARDER, 8472))
            sent += BATCH
        try:
            received += len(sink.recv(65536)) // size
        except TimeoutError:
            sent = received
    ready.send((received, time.perf_counter() - begin))


async def forward(channel: Connection) -> tuple[int, float, float]:
    """Run the node until the generator reports; returns its report and our CPU seconds."""
    loop = asyncio.get_running_loop()
    # The neighbours' addresses, as the generator's frames have them.
    plan = Segment(3)
    kernel = Kernel("node-0", clock=loop.time, rng=random.Random(0))
    root = kernel.root
    mine = plan.kernels[0].root
    root.link_add("eth0", "underlay", mac=mine.link("eth0").mac)
    root.link_set("eth0", up=True)
    root.addr_add("eth0", plan.node_ip(0), 24)
    nic = root.devices["eth0"]
    assert isinstance(nic, Underlay)
    driver = UnderlayDriver(kernel, nic, FORWARDER, loop=loop)
    await driver.start()
    root.link_add(
        "flannel.1",
        "vxlan",
        mac=mine.link("flannel.1").mac,
        vni=1,
        local=plan.node_ip(0),
        dev="eth0",
        learning=False,
        srcport=driver.source_ports,
    )
    root.link_set("flannel.1", up=True)
    root.addr_add("flannel.1", plan.subnet(0).network, 32)
    for number, host in ((1, SENDER), (2, SINK)):
        theirs = plan.kernels[number].root
        driver.set_peer(plan.node_ip(number), host, mac=theirs.link("eth0").mac)
        subnet = plan.subnet(number)
        root.neigh_replace("flannel.1", subnet.network, theirs.link("flannel.1").mac)
        root.fdb_replace("flannel.1", theirs.link("flannel.1").mac, plan.node_ip(number))
        root.route_add(Route(subnet, gateway=subnet.network, dev="flannel.1", onlink=True))
    root.netfilter.restore(RULES)
    done: asyncio.Future[tuple[int, float]] = loop.create_future()

    def reported() -> None:
        if not done.done():
            done.set_result(channel.recv())

    loop.add_reader(channel.fileno(), reported)
    cpu = time.process_time()
    channel.send("go")
    packets, took = await done
    cpu = time.process_time() - cpu
    loop.remove_reader(channel.fileno())
    await driver.close()
    return packets, took, cpu


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=2.0)
    seconds = parser.parse_args([] if argv is None else argv).seconds
    datagrams = frames(Segment(3), udp_packets("10.2.2.2", "10.2.3.2"))
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=generate, args=(theirs, seconds, datagrams, len(datagrams) // BATCH)
    )
    process.start()
    assert ours.recv() == "ready"
    packets, took, cpu = asyncio.run(forward(ours))
    process.join()
    print(f"UDP, {PAYLOAD} bytes of payload, batches of {BATCH}, rules and conntrack on")
    print(f"forwarded by one node process: {packets / took:,.0f} packets/s")
    print(f"CPU of the node: {cpu / took:.0%}, {cpu / packets * 1e6:.2f} µs a packet")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
