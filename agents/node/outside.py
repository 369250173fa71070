"""What is beyond a node's NIC: its gateway, and the processes that have no emulated kernel.

Each node process holds a second, tiny kernel, ``outside``, on the segment of ``eth0``.  It owns the
gateway's address (the host's place in the emulated network: a person's ``curl`` to a NodePort
comes from there) and the addresses of the API server and etcd, whose connections it relays to
their real sockets.  As a router it only tells packets whose time is up so; nodes of other subnets
are reached past it (``segment.py``), and what is sent to the world ends there without an answer, as
on the tutorials' machines.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from emulator.addr import Prefix, format_ip
from emulator.netstack.devices.underlay import Underlay
from emulator.netstack.fib import Route, RouteType
from emulator.netstack.kernel import Kernel
from emulator.runtime.relay import kept, relay
from emulator.runtime.stack import StackNetwork
from emulator.runtime.underlay import KernelDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.node.config import NodeConfig, Relay
    from emulator.runtime.role import RoleEnv


class Outside:
    """The second kernel and its relays."""

    def __init__(self, config: NodeConfig, env: RoleEnv, node_mac: bytes) -> None:
        """``node_mac`` is ``eth0``'s, the only neighbour here."""
        self._relays = config.relays
        self._servers: list[asyncio.AbstractServer] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._driver: KernelDriver | None = None
        self._log = env.log
        self._kernel = Kernel("outside", clock=env.clock.monotonic, rng=env.rng)
        root = self._kernel.root
        root.sysctl["net.ipv4.ip_forward"] = 1
        root.link_add("eth0", "underlay")
        self.addresses = tuple(
            dict.fromkeys((config.gateway, *(target.ip for target in config.relays)))
        )
        for ip in self.addresses:
            root.addr_add("eth0", ip, config.network.length if ip in config.network else 32)
        root.link_set("eth0", up=True)
        if config.site != config.network:
            root.link_add("wan", "dummy")
            root.link_set("wan", up=True)
            root.route_replace(Route(config.site, dev="wan", scope="link"))
        root.route_replace(Route(Prefix(0, 0), type=RouteType.BLACKHOLE))
        device = root.device("eth0")
        assert isinstance(device, Underlay)
        self.device = device
        device.peer_set(config.ip, node_mac)
        self.network = StackNetwork(root, asyncio.get_running_loop())

    def connect(self, drain: Callable[[], None]) -> None:
        """Say how what leaves gets to ``eth0``."""
        self._driver = KernelDriver(self._kernel, loop=asyncio.get_running_loop(), drain=drain)

    async def start(self) -> None:
        """Listen for what is to be relayed."""
        assert self._driver is not None, "connect() first"
        self._driver.start()
        for target in self._relays:
            serve = functools.partial(self._relay_out, target)
            server = await self.network.start_server(serve, format_ip(target.ip), target.port)
            self._servers.append(server)

    async def close(self) -> None:
        """Stop serving."""
        for server in self._servers:
            server.close()
        for task in self._serving:
            task.cancel()
        if self._driver is not None:
            self._driver.stop()

    async def _relay_out(
        self, target: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        dial = functools.partial(asyncio.open_connection, target.host, target.host_port)
        with kept(self._serving):
            what = f"relay to {target.host}:{target.host_port}"
            await relay(reader, writer, dial, what=what, log=self._log)
