"""NodePorts as real sockets: a person's curl on the host enters the emulated network.

Each (protocol, port) kube-proxy has a rule for is a real socket on the node's loopback address.
Its traffic enters the node through ``eth0`` from the gateway's address, so that the packets meet
PREROUTING, KUBE-NODEPORTS and the masquerade as those of any outside client do.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final, cast

from emulator.errors import UsageError
from emulator.runtime.relay import kept, relay

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable

    from emulator.runtime.stack import StackNetwork

    Listener = asyncio.AbstractServer | asyncio.DatagramTransport

# Clients of one UDP NodePort whose answers can still find their way back; beyond it the oldest is
# forgotten.  conntrack's default UDP timeout bounds how long each is of use.
MAX_UDP_CLIENTS: Final = 1024


class NodePorts:
    """Keeps the real sockets equal to the wanted set."""

    def __init__(
        self, outside: StackNetwork, *, node_ip: str, host: str, log: logging.Logger
    ) -> None:
        """``node_ip`` is the emulated address connected to, ``host`` the real one listened on."""
        self._outside = outside
        self._node_ip = node_ip
        self._host = host
        self._log = log
        self._wanted: tuple[tuple[str, int], ...] = ()
        self._changed = asyncio.Event()
        self._open: dict[tuple[str, int], Listener] = {}
        # asyncio holds tasks weakly, and a relay whose client has gone is known to nobody else.
        self._relays: set[asyncio.Task[None]] = set()

    def want(self, ports: Iterable[tuple[str, int]]) -> None:
        """Set the wanted (protocol "tcp" or "udp", port) pairs; takes effect in ``run``."""
        self._wanted = tuple(sorted(ports))
        self._changed.set()

    async def run(self) -> None:
        """Open and close sockets until cancelled."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self._apply()
        finally:
            for listener in self._open.values():
                listener.close()
            for task in self._relays:
                task.cancel()

    async def _apply(self) -> None:
        for key in [key for key in self._open if key not in self._wanted]:
            self._open.pop(key).close()
        for key in self._wanted:
            if key in self._open:
                continue
            protocol, port = key
            try:
                self._open[key] = await self._listen(protocol, port)
            except OSError as error:
                # The rules work all the same for emulated clients; only the host's way in is shut.
                self._log.error(
                    "nodePort %s/%s: cannot listen on %s (%s); is another program using it?",
                    port,
                    protocol,
                    self._host,
                    error.strerror,
                )

    async def _listen(self, protocol: str, port: int) -> Listener:
        loop = asyncio.get_running_loop()
        if protocol == "tcp":
            serve = functools.partial(self._serve, port)
            return await asyncio.start_server(serve, self._host, port)
        if protocol == "udp":
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _UdpPort(self._outside, (self._node_ip, port)),
                local_addr=(self._host, port),
            )
            return transport
        raise UsageError(f"nodePort {port}: no listener for protocol {protocol!r}")

    async def _serve(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        dial = functools.partial(self._outside.open_connection, self._node_ip, port)
        with kept(self._relays):
            await relay(reader, writer, dial, what=f"nodePort {port}", log=self._log)


class _UdpPort(asyncio.DatagramProtocol):
    """Gives each real client an emulated socket of its own, so that answers find their way."""

    def __init__(self, outside: StackNetwork, target: tuple[str, int]) -> None:
        self._outside = outside
        self._target = target
        self._clients: dict[tuple[str, int], _UdpClient] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._dials: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asked by isinstance: Python 3.11's own datagram transport derives from no such class.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        client = self._clients.get(addr)
        if client is None:
            if len(self._clients) >= MAX_UDP_CLIENTS:
                self._clients.pop(next(iter(self._clients))).close()
            assert self._transport is not None
            client = self._clients[addr] = _UdpClient(self._transport, addr)
            dial = asyncio.get_running_loop().create_task(
                self._dial(client), name=f"nodeport.udp.{self._target[1]}"
            )
            self._dials.add(dial)
            dial.add_done_callback(self._dials.discard)
        client.send(data)

    async def _dial(self, client: _UdpClient) -> None:
        await self._outside.create_datagram_endpoint(lambda: client, remote_addr=self._target)

    def connection_lost(self, exc: Exception | None) -> None:
        for dial in self._dials:
            dial.cancel()
        for client in self._clients.values():
            client.close()


class _UdpClient(asyncio.DatagramProtocol):
    """One real client: its emulated socket, and what it sent before that was open."""

    def __init__(self, real: asyncio.DatagramTransport, addr: tuple[str, int]) -> None:
        self._real = real
        self._addr = addr
        self._emulated: asyncio.DatagramTransport | None = None
        self._early: list[bytes] = []
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._emulated = cast("asyncio.DatagramTransport", transport)
        if self._closed:
            self._emulated.close()
        for data in self._early:
            self._emulated.sendto(data)
        self._early.clear()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._real.sendto(data, self._addr)

    def send(self, data: bytes) -> None:
        if self._emulated is not None:
            self._emulated.sendto(data)
        else:
            self._early.append(data)

    def close(self) -> None:
        self._closed = True
        if self._emulated is not None:
            self._emulated.close()
