"""asyncio transports over the emulated TCP and UDP sockets.

What the kernel's socket buffer is to a stock transport, the connection's send queue is here: it
takes SEND_BUFFER bytes before they count as the transport's own write buffer, and a protocol that
pauses reading lets the receive window close.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any, Final

from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.netstack.sock.tcp import Endpoint
from emulator.netstack.sock.tcp_state import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.netstack.sock.tcp import TcpConnection
    from emulator.netstack.sock.udp import UdpSocket

    Bytes = bytes | bytearray | memoryview

# What one connection's send queue takes before the writer counts as ahead; between Linux's
# tcp_wmem default (16 KiB) and maximum (4 MiB), and the size of the receive window it fills.
SEND_BUFFER: Final = 512 * 1024
HIGH_WATER: Final = 64 * 1024  # asyncio's default for stock transports
MAX_DATAGRAMS_PER_TURN: Final = 64  # one socket may not keep the loop busy


def error_of(number: int, text: str = "") -> OSError:
    """The OSError of an errno with the text a stock transport gives."""
    return OSError(number, text or os.strerror(number))


def address_of(endpoint: Endpoint) -> tuple[str, int]:
    """``(host, port)`` as asyncio shows addresses."""
    return format_ip(endpoint.ip), endpoint.port


MAX_PORT = 65535


def endpoint_of(address: tuple[str, int]) -> Endpoint:
    """The endpoint of a literal ``(host, port)``; OSError EINVAL if it is none."""
    if not 0 <= address[1] <= MAX_PORT:
        raise OSError(errno.EINVAL, f"port must be 0-{MAX_PORT}")
    try:
        return Endpoint(parse_ip(address[0] or "0.0.0.0"), address[1])
    except UsageError as error:
        raise OSError(errno.EINVAL, str(error)) from None


class StackTransport(asyncio.Transport):
    """A TCP connection as asyncio's Transport."""

    # Lets loop.start_tls() run TLS over it.
    _start_tls_compatible = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: TcpConnection,
        protocol: asyncio.BaseProtocol,
        server: object | None = None,
    ) -> None:
        super().__init__(
            {
                "peername": address_of(connection.remote),
                "sockname": address_of(connection.local),
                "socket": None,
                "sslcontext": None,
            }
        )
        self._loop = loop
        self._connection = connection
        self._protocol = protocol
        self._server = server
        self._scheduled = False
        self._reading = True
        self._closing = False
        self._lost = False
        self._eof_given = False
        self._eof_written = False
        self._writing_paused = False
        self._high = HIGH_WATER
        self._low = HIGH_WATER // 4
        connection.snd.nodelay = True  # as asyncio sets TCP_NODELAY
        connection.notify = self._wake

    def __repr__(self) -> str:
        return f"<StackTransport {self._connection!r}>"

    def start(self) -> None:
        """Introduce protocol and transport, then deliver what is already there."""
        self._loop.call_soon(self._made)

    def _made(self) -> None:
        self._protocol.connection_made(self)
        self._wake()

    # -- reading -------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._scheduled and not self._lost:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Give the protocol everything that changed since the last turn of the loop."""
        self._scheduled = False
        if self._lost:
            return
        try:
            self._tell()
        except Exception as error:  # the boundary: a protocol's bug ends its own connection only
            self._loop.call_exception_handler(
                {
                    "message": "Fatal error: a protocol's callback failed.",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
            self._connection.abort()
            self._finish(error)

    def _tell(self) -> None:
        connection = self._connection
        if self._reading and not self._closing:
            data = connection.read()
            if data:
                self._feed(data)
        if self._reading and not self._closing and connection.eof and not self._eof_given:
            self._eof_given = True
            keep_open = self._protocol.eof_received()  # type: ignore[attr-defined]
            if not keep_open:
                self.close()
        if connection.state is State.CLOSED and connection.error and not self._closing:
            # An orderly end is reported by eof above, and by connection_lost once we close too.
            self._finish(error_of(connection.error))
        elif self._writing_paused and self.get_write_buffer_size() <= self._low:
            self._writing_paused = False
            connection.wants_room = False
            self._protocol.resume_writing()

    def _feed(self, data: bytes) -> None:
        protocol = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            view = memoryview(data)
            while view and not self._lost:
                buffer = memoryview(protocol.get_buffer(len(view)))
                size = min(len(buffer), len(view))
                if not size:
                    raise RuntimeError("get_buffer() returned an empty buffer")
                buffer[:size] = view[:size]
                view = view[size:]
                protocol.buffer_updated(size)
        else:
            protocol.data_received(data)  # type: ignore[attr-defined]

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Leave data in the receive buffer: the window closes as it fills."""
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._wake()

    # -- writing -------------------------------------------------------------------------------

    def write(self, data: Bytes) -> None:
        if self._eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._closing or self._lost:
            return
        self._connection.send(data)
        self._maybe_pause()

    def writelines(self, list_of_data: Iterable[Bytes]) -> None:
        self.write(b"".join(list_of_data))

    def _maybe_pause(self) -> None:
        if not self._writing_paused and self.get_write_buffer_size() > self._high:
            self._writing_paused = True
            self._connection.wants_room = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Bytes written beyond what the socket's own send buffer takes."""
        return max(0, self._connection.send_queue - SEND_BUFFER)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._maybe_pause()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._closing or self._eof_written:
            return
        self._eof_written = True
        self._connection.shutdown()

    # -- ending --------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def close(self) -> None:
        """What was written still goes out, then FIN; unread data makes it a reset, as in Linux."""
        if self._closing or self._lost:
            return
        self._closing = True
        self._connection.close(now=self._loop.time())
        self._loop.call_soon(self._finish, None)

    def abort(self) -> None:
        """Reset the connection at once."""
        self._force_close(None)

    def _force_close(self, error: Exception | None) -> None:
        # By this name asyncio's TLS ends a transport whose handshake failed.
        if self._lost:
            return
        self._closing = True
        self._connection.abort()
        self._loop.call_soon(self._finish, error)

    def _finish(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._closing = True
        self._connection.close(now=self._loop.time())
        if self._writing_paused:
            self._writing_paused = False
        server = self._server
        if server is not None:
            self._server = None
            server._detach(self)  # type: ignore[attr-defined]
        self._protocol.connection_lost(error)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol


class StackDatagramTransport(asyncio.DatagramTransport):
    """A UDP socket as asyncio's DatagramTransport."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: UdpSocket,
        protocol: asyncio.DatagramProtocol,
    ) -> None:
        extra: dict[str, Any] = {"sockname": address_of(sock.local), "socket": None}
        if sock.remote is not None:
            extra["peername"] = address_of(sock.remote)
        super().__init__(extra)
        self._loop = loop
        self._socket = sock
        self._protocol = protocol
        self._scheduled = False
        self._closing = False
        sock.notify = self._wake
        loop.call_soon(self._made)

    def _made(self) -> None:
        self._protocol.connection_made(self)
        self._wake()

    def _wake(self) -> None:
        if not self._scheduled and not self._closing:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        if self._closing:
            return
        error = self._socket.take_error()
        if error:
            self._protocol.error_received(error_of(error))
        for _ in range(MAX_DATAGRAMS_PER_TURN):
            datagram = None if self.is_closing() else self._socket.receive()
            if datagram is None:
                return
            self._protocol.datagram_received(datagram.data, address_of(datagram.source))
        self._wake()

    def sendto(self, data: Bytes, addr: tuple[str, int] | None = None) -> None:  # type: ignore[override]
        """Send one datagram; as in asyncio an error goes to ``error_received``."""
        if self._closing:
            return
        if addr is not None and self._socket.remote not in (None, endpoint_of(addr)):
            raise ValueError(f"Invalid address: must be None or {self.get_extra_info('peername')}")
        try:
            self._socket.send(bytes(data), endpoint_of(addr) if addr is not None else None)
        except OSError as error:
            self._protocol.error_received(error)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._socket.close()
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.DatagramProtocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol
