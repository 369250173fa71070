"""Several kernels joined in memory: batches that leave one NIC arrive at another.

Time is virtual: it moves when a test says so.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from emulator.addr import Prefix, parse_ip
from emulator.netstack.fib import Route
from emulator.netstack.kernel import Kernel

if TYPE_CHECKING:
    from emulator.netstack.netns import NetNs
    from emulator.netstack.sock.ping import EchoAnswer

MAX_TURNS = 1000


class Segment:
    """A network segment of nodes 172.17.4.201, .202 … with flannel's vxlan between them."""

    def __init__(self, nodes: int = 2) -> None:
        self.now = 0.0
        self.lost: list[str] = []
        self.kernels: list[Kernel] = []
        self.down: set[int] = set()
        for number in range(nodes):
            self.kernels.append(self._make(number))
        for number in range(nodes):
            for other in range(nodes):
                if other != number:
                    self._introduce(number, other)

    def node_ip(self, number: int) -> int:
        return parse_ip(f"172.17.4.{201 + number}")

    def subnet(self, number: int) -> Prefix:
        return Prefix.parse(f"10.2.{1 + number}.0/24")

    def _make(self, number: int) -> Kernel:
        kernel = Kernel(f"node-{number}", clock=lambda: self.now, rng=random.Random(number))
        root, subnet = kernel.root, self.subnet(number)
        root.link_add("eth0", "underlay")
        root.link_set("eth0", up=True)
        root.addr_add("eth0", self.node_ip(number), 24)
        root.link_add(
            "flannel.1",
            "vxlan",
            vni=1,
            local=self.node_ip(number),
            dev="eth0",
            port=8472,
            learning=False,
        )
        root.link_set("flannel.1", up=True)
        root.addr_add("flannel.1", subnet.network, 32)
        root.link_add("cni0", "bridge", mtu=1450)
        root.link_set("cni0", up=True)
        root.addr_add("cni0", subnet.host(1), 24)
        return kernel

    def _introduce(self, number: int, other: int) -> None:
        root, theirs = self.kernels[number].root, self.kernels[other].root
        nic = root.device("eth0")
        nic.peer_set(self.node_ip(other), theirs.link("eth0").mac)
        subnet, vtep = self.subnet(other), theirs.link("flannel.1").mac
        root.neigh_replace("flannel.1", subnet.network, vtep)
        root.fdb_replace("flannel.1", vtep, self.node_ip(other))
        root.route_replace(Route(subnet, gateway=subnet.network, dev="flannel.1", onlink=True))

    def pod(self, number: int, host: int) -> NetNs:
        """Wire a pod of address ``subnet.host`` to a node's bridge."""
        kernel, subnet = self.kernels[number], self.subnet(number)
        pod = kernel.netns_add(f"pod-{host}")
        pod.link_set("lo", up=True)
        pod.link_add("eth0", "veth", mtu=1450, peer=f"veth{host}", peer_ns=kernel.root)
        kernel.root.link_set(f"veth{host}", master="cni0", up=True)
        pod.link_set("eth0", up=True)
        pod.addr_add("eth0", subnet.host(host), 24)
        pod.route_add(Route(Prefix(0, 0), gateway=subnet.host(1), dev="eth0"))
        return pod

    # -- moving batches and time -----------------------------------------------------------------

    def settle(self) -> None:
        """Do everything that is due now, until nothing moves."""
        for _ in range(MAX_TURNS):
            moved = False
            for number, kernel in enumerate(self.kernels):
                at = kernel.get_timer()
                if at is not None and at <= self.now:
                    kernel.handle_timer()
                    moved = True
                for item in kernel.root.device("eth0").take_egress():
                    moved = True
                    self._move(number, item)
            if not moved:
                return
        raise AssertionError(f"still moving after {MAX_TURNS} turns at {self.now}")

    def _move(self, number: int, item) -> None:
        other = item.dst_ip - self.node_ip(0)
        if not 0 <= other < len(self.kernels) or other in self.down:
            return
        nic = self.kernels[other].root.device("eth0")
        if item.kind == "vxlan":
            nic.receive_vxlan(self.node_ip(number), item.src_port, item.payload, item.segment_size)
        else:
            nic.receive_carrier(item.payload, item.segment_size)

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping at every timer on the way."""
        end = self.now + seconds
        while True:
            self.settle()
            times = [at for k in self.kernels if (at := k.get_timer()) is not None]
            at = min(times, default=None)
            if at is None or at > end:
                break
            self.now = max(at, self.now)
        self.now = end
        self.settle()

    def ping(
        self, ns: NetNs, dst: str, *, size: int = 56, ttl: int = 64, df: bool = True
    ) -> EchoAnswer | None:
        """Send one echo request and wait up to 5 s for what comes back."""
        sock = ns.sockets.ping_open()
        sock.send(parse_ip(dst), 1, bytes(size), ttl=ttl, dont_fragment=df)
        self.settle()
        answer = sock.receive()
        if answer is None:
            self.advance(5.0)
            answer = sock.receive()
        sock.close()
        return answer
