"""One TCP connection of the BGP daemon, as an asyncio protocol; no decisions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol, cast

from agents.bird.tcp import reason_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agents.bird.speaker import Speaker

# A peer that does not take the last message does not hold the socket longer.
CLOSE_S: Final = 5.0
# The send buffer beyond which routes wait as names, not as bytes; BIRD has 64 KiB per socket.
HIGH_WATER: Final = 1 << 20
# Received at once: about 50,000 prefixes, 10 ms of thinking.
READ_SIZE: Final = 256 * 1024


class WireOwner(Protocol):
    """The daemon, as far as a connection knows it."""

    speaker: Speaker

    def do(self, what: Callable[[], object]) -> None:
        """Tell the core something and do what it wants then."""

    def accepted(self, wire: Wire, host: str) -> int | None:
        """Somebody connected from a host address: the connection's number in the core, or None."""

    def is_stranger(self, wire: Wire) -> bool:
        """True while the connection waits for its peer to become known."""

    def gone(self, wire: Wire, number: int | None) -> None:
        """The connection is over."""


class Wire(asyncio.Protocol):
    """A connection that was dialled (``number`` is the core's) or accepted (None)."""

    def __init__(self, owner: WireOwner, number: int | None) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._number = number
        self._transport: asyncio.Transport | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._dialled = number is not None

    @property
    def socket(self) -> socket.socket | None:
        """The real socket, None in a simulated world."""
        assert self._transport is not None
        found = self._transport.get_extra_info("socket")
        return found if hasattr(found, "setsockopt") else None

    @property
    def peer_port(self) -> int:
        """The port at the other end."""
        assert self._transport is not None
        return int(self._transport.get_extra_info("peername")[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(HIGH_WATER)
        if hasattr(self._transport, "max_size"):
            self._transport.max_size = READ_SIZE
        if self._dialled:
            return
        host = transport.get_extra_info("peername")[0]
        self._owner.do(lambda: self.accept(host))

    def accept(self, host: str) -> None:
        """Become a peer's connection, or wait to, or end."""
        assert self._transport is not None
        self._number = self._owner.accepted(self, host)
        if self._number is not None:
            if not self._transport.is_reading():
                self._transport.resume_reading()
        elif self._owner.is_stranger(self):
            self._transport.pause_reading()
        else:
            self._transport.abort()

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._number is not None and self._closing is None:
            owner, number = self._owner, self._number
            owner.do(lambda: owner.speaker.receive_data(number, data, now=self._loop.time()))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
        number, self._number = self._number, None
        self._owner.gone(self, number)
        if number is None:
            return
        owner = self._owner
        reason = reason_of(exc if isinstance(exc, OSError) else None)
        owner.do(lambda: owner.speaker.connection_lost(number, reason, now=self._loop.time()))

    def pause_writing(self) -> None:
        # The transport says so in the middle of a write: what follows is under way already.
        if self._number is not None:
            self._owner.speaker.set_congested(self._number, True, now=self._loop.time())

    def resume_writing(self) -> None:
        owner, number = self._owner, self._number
        if number is not None:
            owner.do(lambda: owner.speaker.set_congested(number, False, now=self._loop.time()))

    def write(self, data: bytes) -> None:
        """Send; nothing if it is closing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def hang_up(self) -> None:
        """Close after what was written is sent, but do not wait for ever."""
        self._number = None
        if self._transport is not None and self._closing is None:
            self._closing = self._loop.call_later(CLOSE_S, self._transport.abort)
            self._transport.close()

    def abort_if_open(self) -> None:
        """Close at once what is still there."""
        if self._closing is not None:
            self._closing.cancel()
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._transport.abort()
