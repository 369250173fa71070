"""UDP sockets of a simulated host."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emulator.sim.fabric import Fabric
    from emulator.sim.host import SimHost

# The largest payload of a UDP datagram over IPv4.
MAX_DATAGRAM_BYTES = 65507


class SimDatagramTransport(asyncio.DatagramTransport):
    """One bound socket; ``peer`` is set for a connected one."""

    def __init__(
        self,
        fabric: Fabric,
        host: SimHost,
        addresses: tuple[tuple[str, int], ...],
        peer: tuple[str, int] | None,
    ) -> None:
        super().__init__({"sockname": addresses[0], "peername": peer})
        self.host = host
        self.addresses = addresses
        self._fabric = fabric
        self._peer = peer
        self._protocol: Any = None
        self._closing = False

    def start(self, protocol: Any) -> None:
        """Hand the socket to its protocol."""
        self._protocol = protocol
        self._fabric.loop.call_soon(protocol.connection_made, self)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send one datagram; too long ones are the protocol's ``error_received``."""
        if self._closing or not self.host.is_up:
            return
        target = addr if addr is not None else self._peer
        if target is None:
            raise ValueError("sendto needs an address on a socket that is not connected")
        payload = bytes(data)
        if len(payload) > MAX_DATAGRAM_BYTES:
            error = OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            self._fabric.loop.call_soon(self._protocol.error_received, error)
            return
        destination = (self._fabric.resolve(target[0]), int(target[1]))
        source = self.addresses[0]

        def deliver(there: SimHost) -> None:
            socket = self._fabric.datagram_at(destination)
            if socket is None or socket.host is not there:
                self._refuse(there)
            else:
                socket.receive(payload, source)

        self._fabric.send(self.host, destination[0], len(payload), "udp", deliver)

    def receive(self, payload: bytes, source: tuple[str, int]) -> None:
        """A datagram arrived; a connected socket takes only its peer's."""
        if not self._closing and self._peer in (None, source):
            self._protocol.datagram_received(payload, source)

    def _refuse(self, there: SimHost) -> None:
        """Port unreachable comes back; only connected sockets are told, as on Linux."""
        if self._peer is None:
            return
        refused = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

        def tell(_: SimHost) -> None:
            if not self._closing:
                self._protocol.error_received(refused)

        self._fabric.send(there, self.host.address, 0, "icmp", tell)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Unbind; ``connection_lost`` follows."""
        if self._closing:
            return
        self._closing = True
        self._fabric.close_datagram(self)
        self._fabric.loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        """The same as close: nothing is buffered."""
        self.close()
