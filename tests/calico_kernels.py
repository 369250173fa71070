"""Kernels joined as Calico joins nodes: routed pods behind veths, IP in IP or no tunnel between.

Time is virtual, as in tests.joined_kernels, whose Segment moves the batches.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from emulator.addr import Prefix, parse_ip
from emulator.netstack.fib import Route, RouteType
from emulator.netstack.kernel import Kernel
from tests.joined_kernels import Segment

if TYPE_CHECKING:
    from emulator.netstack.netns import NetNs

LINK_LOCAL = parse_ip("169.254.1.1")
HOST_MAC = b"\xee" * 6


class CalicoSegment(Segment):
    """Nodes 172.17.4.201 … with blocks 192.168.0.0/26, 192.168.0.64/26 …, tunl0 on .0 of each."""

    def __init__(self, nodes: int = 2, *, tunnel: bool = True) -> None:
        self.tunnel = tunnel
        super().__init__(nodes)

    def subnet(self, number: int) -> Prefix:
        return Prefix(parse_ip("192.168.0.0") + 64 * number, 26)

    def _make(self, number: int) -> Kernel:
        kernel = Kernel(f"kube-{number}", clock=lambda: self.now, rng=random.Random(number))
        root, block = kernel.root, self.subnet(number)
        root.link_add("eth0", "underlay")
        root.link_set("eth0", up=True)
        root.addr_add("eth0", self.node_ip(number), 24)
        # A pod asks for 169.254.1.1; a node answers for what it has a route to.
        root.route_add(Route(Prefix(0, 0), gateway=parse_ip("172.17.4.1"), dev="eth0"))
        if self.tunnel:
            root.link_add("tunl0", "ipip", mtu=1480)
            root.link_set("tunl0", up=True)
            root.addr_add("tunl0", block.network, 32)
        root.route_add(Route(block, type=RouteType.BLACKHOLE, protocol="bird"))
        return kernel

    def _introduce(self, number: int, other: int) -> None:
        root, theirs = self.kernels[number].root, self.kernels[other].root
        nic = root.device("eth0")
        nic.peer_set(self.node_ip(other), theirs.link("eth0").mac)
        dev = "tunl0" if self.tunnel else "eth0"
        root.route_add(
            Route(
                self.subnet(other),
                gateway=self.node_ip(other),
                dev=dev,
                onlink=self.tunnel,
                protocol="bird",
            )
        )

    def pod(self, number: int, host: int, name: str = "") -> NetNs:
        """A pod of address ``block.host``, wired as Calico's CNI plugin wires one."""
        kernel, block = self.kernels[number], self.subnet(number)
        address, cali = block.host(host), f"cali{host:011d}"
        pod = kernel.netns_add(name or f"pod-{host}")
        pod.link_set("lo", up=True)
        pod.link_add("eth0", "veth", mtu=1480, peer=cali, peer_ns=kernel.root, peer_mac=HOST_MAC)
        pod.link_set("eth0", up=True)
        pod.addr_add("eth0", address, 32)
        pod.route_add(Route(Prefix(LINK_LOCAL, 32), dev="eth0"))
        pod.route_add(Route(Prefix(0, 0), gateway=LINK_LOCAL, dev="eth0"))
        root = kernel.root
        root.sysctl[f"net.ipv4.conf.{cali}.proxy_arp"] = 1
        root.sysctl[f"net.ipv4.neigh.{cali}.proxy_delay"] = 0
        root.sysctl[f"net.ipv4.conf.{cali}.route_localnet"] = 1
        root.sysctl[f"net.ipv4.conf.{cali}.forwarding"] = 1
        root.link_set(cali, up=True)
        root.route_add(Route(Prefix(address, 32), dev=cali))
        return pod
