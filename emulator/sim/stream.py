"""TCP connections of simulated hosts: two ordered byte pipes.

A pipe holds its bytes while its link is down, as TCP does by retransmitting, and gives up after
Linux' tcp_retries2.  Bytes for a connection whose end no longer exists (closed, or its host was
restarted) are answered with a reset.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.sim.fabric import Fabric
    from emulator.sim.host import SimHost

# asyncio's default high-water mark, above which pause_writing is called.
HIGH_WATER_BYTES = 64 * 1024
# Retransmissions of one segment take so long before Linux drops the connection (tcp_retries2 15).
RETRANSMIT_FOR_S = 924.6
# How often a held pipe looks if the host is back; retransmissions are 120 s apart at most.
PROBE_S = 1.0

_FIN = b""


class SimStreamTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(
        self, fabric: Fabric, host: SimHost, name: tuple[str, int], peer_name: tuple[str, int]
    ) -> None:
        super().__init__({"sockname": name, "peername": peer_name})
        self.host = host
        self._fabric = fabric
        self._protocol: Any = None
        self._context = contextvars.copy_context()
        self._peer: SimStreamTransport = self
        # To the peer: (earliest delivery, bytes), empty bytes for FIN.
        self._outgoing: deque[tuple[float, bytes]] = deque()
        self._outgoing_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._held_since: float | None = None
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4
        self._writer_paused = False
        self._reading_paused = False
        self._fin_sent = False
        self._fin_received = False
        self._closed = False
        self._vanished = False

    def join(self, peer: SimStreamTransport) -> None:
        """Tie two ends together."""
        self._peer, peer._peer = peer, self

    def start(self, protocol: Any) -> None:
        """Hand this end to its protocol and let waiting bytes in; runs on this end's host."""
        self._protocol = protocol
        self._context = contextvars.copy_context()
        protocol.connection_made(self)
        self._peer.kick()

    # What the protocol calls

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def write(self, data: Any) -> None:
        """Queue bytes; silently dropped after the end, as asyncio does."""
        if self._closed or self._vanished or self._fin_sent:
            return
        payload = bytes(data)
        if payload:
            self._push(payload)

    def write_eof(self) -> None:
        """Send FIN after what is queued; reading goes on."""
        if not (self._fin_sent or self._closed or self._vanished):
            self._fin_sent = True
            self._push(_FIN)

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self._closed or self._vanished

    def close(self) -> None:
        """Send what is queued, then FIN; ``connection_lost`` follows."""
        if self._closed:
            return
        self.write_eof()
        self._end(None)

    def abort(self) -> None:
        """Drop what is queued and reset the peer."""
        if self._closed:
            return
        self._outgoing.clear()
        self._reset_peer()
        self._end(None)

    def is_reading(self) -> bool:
        return not (self._reading_paused or self._closed)

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._peer.kick()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        self._high, self._low = high, high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return self._outgoing_bytes

    # The pipe to the peer

    def _push(self, payload: bytes) -> None:
        now = self._fabric.loop.time()
        latency_s = self._fabric.quality(self.host, self._peer.host).latency_s
        self._outgoing.append((now + latency_s, payload))
        self._outgoing_bytes += len(payload)
        if self._outgoing_bytes > self._high and not self._writer_paused:
            self._writer_paused = True
            self._protocol.pause_writing()
        if self._timer is None:
            self._arm(self._outgoing[0][0])

    def _arm(self, at: float) -> None:
        self._timer = self._fabric.loop.call_at(
            at, self._deliver, context=self._peer._context.copy()
        )

    def kick(self) -> None:
        """Something changed that may let queued bytes through."""
        if self._outgoing:
            if self._timer is not None:
                self._timer.cancel()
            now = self._fabric.loop.time()
            self._arm(max(now, self._outgoing[0][0]))

    def _deliver(self) -> None:
        """Hand everything due to the peer's protocol; runs on the peer's host."""
        self._timer = None
        if self._vanished:
            return
        loop, peer = self._fabric.loop, self._peer
        if not self._fabric.is_reachable(self.host, peer.host):
            self._hold()
            return
        self._held_since = None
        while self._outgoing and self._outgoing[0][0] <= loop.time():
            if peer._protocol is None and not (peer._closed or peer._vanished):
                return
            if peer._reading_paused and not peer._closed:
                return
            _, payload = self._outgoing.popleft()
            self._outgoing_bytes -= len(payload)
            self._fabric.trace.record("tcp", self.host.name, peer.host.name, len(payload))
            if peer._closed or peer._vanished:
                if payload or peer._vanished:
                    self._outgoing.clear()
                    self._lose(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
                    return
                continue
            peer._receive(payload)
        if self._writer_paused and self._outgoing_bytes <= self._low and not self._closed:
            self._writer_paused = False
            self._context.copy().run(self._protocol.resume_writing)
        if self._outgoing and self._timer is None:
            self._arm(self._outgoing[0][0])

    def _hold(self) -> None:
        now = self._fabric.loop.time()
        if self._held_since is None:
            self._held_since = now
        if now - self._held_since >= RETRANSMIT_FOR_S:
            self._outgoing.clear()
            self._lose(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        else:
            self._arm(now + PROBE_S)

    def _receive(self, payload: bytes) -> None:
        protocol = self._protocol
        if not payload:
            self._fin_received = True
            if not protocol.eof_received():
                self.close()
        elif isinstance(protocol, asyncio.BufferedProtocol):
            view = memoryview(payload)
            while view:
                buffer = memoryview(protocol.get_buffer(len(view)))
                size = min(len(buffer), len(view))
                buffer[:size] = view[:size]
                protocol.buffer_updated(size)
                view = view[size:]
        else:
            protocol.data_received(payload)

    # Ends

    def vanish(self) -> None:
        """The host is gone: this end neither sends nor answers, its protocol is told."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._outgoing.clear()
        self._vanished = True
        if not self._closed:
            self._end(ConnectionAbortedError(errno.ECONNABORTED, "the host went down"))

    def _reset_peer(self) -> None:
        peer, fabric = self._peer, self._fabric

        def arrive(_: SimHost) -> None:
            if not peer._closed:
                peer._outgoing.clear()
                peer._lose(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))

        fabric.send(self.host, peer.host.address, 0, "rst", arrive)

    def _lose(self, error: OSError) -> None:
        if not self._closed:
            self._end(error)

    def _end(self, error: OSError | None) -> None:
        self._closed = True
        self._fabric.forget_stream(self)
        if self._protocol is not None:
            self._fabric.loop.call_soon(
                self._protocol.connection_lost, error, context=self._context.copy()
            )


def connect_pair(
    fabric: Fabric,
    here: SimHost,
    source: tuple[str, int],
    server: SimServer,
    target: tuple[str, int],
) -> tuple[SimStreamTransport, SimStreamTransport]:
    """Make the two ends of a connection: the client's and the server's."""
    client = SimStreamTransport(fabric, here, source, target)
    accepted = SimStreamTransport(fabric, server.host, target, source)
    client.join(accepted)
    return client, accepted


class _ListeningSocket:
    """What ``server.sockets`` holds: enough to ask for its address."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def getsockname(self) -> tuple[str, int]:
        return self._address


class SimServer(asyncio.AbstractServer):
    """A listening socket."""

    def __init__(
        self,
        fabric: Fabric,
        host: SimHost,
        factory: Callable[[], Any],
        addresses: tuple[tuple[str, int], ...],
    ) -> None:
        self.host = host
        self.addresses = addresses
        self._fabric = fabric
        self._factory = factory
        self._context = contextvars.copy_context()
        self._closed: asyncio.Future[None] = fabric.loop.create_future()

    @property
    def sockets(self) -> tuple[_ListeningSocket, ...]:
        """One per address, as asyncio.Server has."""
        return tuple(_ListeningSocket(address) for address in self.addresses)

    def accept(self, transport: SimStreamTransport) -> None:
        """A connection arrived; its protocol runs on this server's host."""
        self._context.copy().run(lambda: transport.start(self._factory()))

    def is_serving(self) -> bool:
        return not self._closed.done()

    async def start_serving(self) -> None:
        """Nothing to do: it serves from the start."""

    async def serve_forever(self) -> None:
        """Return when closed; close when cancelled."""
        try:
            await asyncio.shield(self._closed)
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening; connections go on."""
        self._fabric.close_server(self)
        if not self._closed.done():
            self._closed.set_result(None)

    async def wait_closed(self) -> None:
        """Return once it no longer listens."""
        await asyncio.shield(self._closed)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._fabric.loop

    async def __aenter__(self) -> SimServer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
