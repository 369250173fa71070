"""A node's real UDP sockets: batches out and in, with and without the kernel's segmentation."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import NamedTuple

import pytest

from emulator.addr import parse_ip
from emulator.errors import UsageError
from emulator.runtime import underlay_socket
from emulator.runtime.underlay import KernelDriver, UnderlayDriver
from emulator.runtime.underlay_socket import UnderlaySocket, probe_offload
from tests.waiting import until

NODE_A, NODE_B = parse_ip("172.17.4.201"), parse_ip("172.17.4.202")
HOST_A, HOST_B, STRANGER = "127.77.1.1", "127.77.1.2", "127.77.1.9"


class Leaving(NamedTuple):
    dst_ip: int
    kind: str
    payload: bytes
    segment_size: int
    src_port: int = 0


class Nic:
    """An underlay device that only remembers."""

    def __init__(self) -> None:
        self.egress: list[Leaving] = []
        self.vxlan: list[tuple[int, int, bytes, int]] = []
        self.carrier: list[tuple[bytes, int]] = []
        self.arp: dict[int, bytes] = {}

    def receive_vxlan(self, src_ip, src_port, payload, segment_size) -> None:
        self.vxlan.append((src_ip, src_port, payload, segment_size))

    def receive_carrier(self, payload, segment_size) -> None:
        self.carrier.append((payload, segment_size))

    def peer_set(self, ip: int, mac: bytes) -> None:
        self.arp[ip] = mac

    def peer_del(self, ip: int) -> None:
        self.arp.pop(ip, None)


class Kernel:
    """A kernel with one timer."""

    def __init__(self) -> None:
        self.on_work = lambda: None
        self.at: float | None = None
        self.fired = 0

    def get_timer(self) -> float | None:
        return self.at

    def handle_timer(self) -> None:
        self.at = None
        self.fired += 1


class Pair:
    """Two nodes that know each other."""

    def __init__(self, offload: bool) -> None:
        self.nic_a, self.nic_b = Nic(), Nic()
        self.a, self.b = (
            UnderlayDriver(Kernel(), nic, host, vxlan_port=0, carrier_port=0, offload=offload)
            for nic, host in ((self.nic_a, HOST_A), (self.nic_b, HOST_B))
        )

    async def start(self) -> None:
        await self.a.start()
        await self.b.start()
        self.a.set_peer(NODE_B, HOST_B, self.b.vxlan_port, self.b.carrier_port, mac=b"\2" * 6)
        self.b.set_peer(NODE_A, HOST_A, self.a.vxlan_port, self.a.carrier_port)

    async def close(self) -> None:
        await self.a.close()
        await self.b.close()


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
async def pair(request):
    pair = Pair(request.param)
    await pair.start()
    yield pair
    await pair.close()


def pieces(batches: list[tuple[bytes, int]]) -> list[bytes]:
    """The datagrams of what arrived, however it was batched."""
    return [
        payload[start : start + (size or len(payload))]
        for payload, size in batches
        for start in range(0, len(payload), size or len(payload))
    ]


async def test_batches_cross_as_the_same_datagrams(pair: Pair) -> None:
    rng = random.Random(1)
    sent = [rng.randbytes(1472) for _ in range(100)] + [rng.randbytes(700)]
    pair.nic_a.egress.append(Leaving(NODE_B, "vxlan", b"".join(sent), 1472))
    pair.nic_a.egress.append(Leaving(NODE_B, "carrier", b"packet", 0))
    pair.a.wake()
    await until(lambda: len(pieces([row[2:] for row in pair.nic_b.vxlan])) == len(sent))
    await until(lambda: bool(pair.nic_b.carrier))
    assert pieces([row[2:] for row in pair.nic_b.vxlan]) == sent
    assert {row[0] for row in pair.nic_b.vxlan} == {NODE_A}
    first, last = pair.a.source_ports
    assert last - first == 3
    assert all(first <= row[1] <= last for row in pair.nic_b.vxlan)
    assert pieces(pair.nic_b.carrier) == [b"packet"]
    assert pair.a.counters().sent == len(sent) + 1
    assert pair.b.counters().received == len(sent) + 1
    assert pair.nic_a.arp == {NODE_B: b"\2" * 6}


async def test_offload_is_used_where_the_kernel_has_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        can = probe_offload(probe)
    if can != (True, True):
        pytest.skip("this kernel has no UDP_SEGMENT and UDP_GRO")
    pair = Pair(offload=True)
    await pair.start()
    pair.nic_a.egress.append(Leaving(NODE_B, "vxlan", bytes(1000) * 40, 1000))
    pair.a.wake()
    await until(lambda: bool(pair.nic_b.vxlan))
    assert pair.nic_b.vxlan[0][3] == 1000
    await pair.close()


async def test_strangers_and_forgotten_peers_are_counted_and_ignored(pair: Pair) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind((STRANGER, 0))
        stranger.sendto(b"garbage", (HOST_B, pair.b.vxlan_port))
        stranger.sendto(b"", (HOST_B, pair.b.carrier_port))
        await until(lambda: pair.b.counters().unknown_peer_received == 2)
    pair.a.del_peer(NODE_B)
    pair.nic_a.egress.append(Leaving(NODE_B, "vxlan", b"x", 0))
    pair.a.wake()
    await until(lambda: pair.a.counters().unknown_peer_sent == 1)
    assert pair.nic_b.vxlan == []
    assert pair.nic_a.arp == {}


async def test_two_peers_cannot_share_an_underlay_host(pair: Pair) -> None:
    with pytest.raises(UsageError, match="already belongs to 172"):
        pair.a.set_peer(NODE_A, HOST_B)


async def test_a_taken_port_says_which(pair: Pair) -> None:
    again = UnderlayDriver(Kernel(), Nic(), HOST_B, vxlan_port=pair.b.vxlan_port, carrier_port=0)
    with pytest.raises(OSError, match=rf"in use: UDP {HOST_B}:{pair.b.vxlan_port}"):
        await again.start()


def test_a_full_send_buffer_queues_then_drops_and_counts(monkeypatch) -> None:
    sender = UnderlaySocket((HOST_A, 0))
    blocked = True

    class Kernel:
        """Stands for the socket whose send buffer is full."""

        def sendto(self, payload: bytes, to) -> None:
            if blocked:
                raise BlockingIOError

        def sendmsg(self, *args) -> None:
            self.sendto(b"", None)

        def close(self) -> None: ...

    sender.close()
    monkeypatch.setattr(sender, "_socket", Kernel())
    for _ in range(underlay_socket.MAX_QUEUED_BYTES // 50_000 + 10):
        sender.send((HOST_B, 1), bytes(50_000), 1000)
    assert sender.backlogged
    assert sender.send_drops > 0
    assert sender.send_drops % 50 == 0
    blocked = False
    sender.flush()
    assert not sender.backlogged


async def test_a_kernels_timer_fires_and_is_armed_again() -> None:
    kernel = Kernel()
    loop = asyncio.get_running_loop()
    driver = KernelDriver(kernel, loop=loop)
    driver.start()
    kernel.at = loop.time() + 60
    kernel.on_work()
    await asyncio.sleep(0)
    kernel.at = loop.time() + 0.001
    kernel.on_work()
    await until(lambda: kernel.fired == 1)
    kernel.at = loop.time() + 0.001
    driver.wake()
    await until(lambda: kernel.fired == 2)
    driver.stop()
