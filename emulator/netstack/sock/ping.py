"""ICMP echo sockets, as Linux's unprivileged ping sockets: one identifier each (RFC 792)."""

from __future__ import annotations

import errno
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.netstack.sock.udp import no_way, raise_drop
from emulator.wire.checksum import checksum

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from emulator.netstack.packet import Packet
    from emulator.netstack.sock.namespace import SocketNamespace

ICMP_PROTO: Final = 1
ECHO_REPLY, ECHO_REQUEST = 0, 8
# Answers nobody has read; ping reads at once, so this is only for a stuck reader.
MAX_QUEUED: Final = 1024
MAX_PAYLOAD: Final = 65535 - 20 - 8


class EchoAnswer(NamedTuple):
    """What came back for an echo request: a reply (type 0) or an ICMP error.

    ``source`` is who sent it, ``ttl`` its TTL on arrival, ``seq`` the request's sequence number,
    ``size`` the ICMP bytes (header included), ``mtu`` set for fragmentation needed.
    """

    icmp_type: int
    code: int
    source: int
    ttl: int
    seq: int
    size: int
    data: bytes
    mtu: int = 0


def _nothing() -> None:
    """The default of ``PingSocket.notify``."""


class PingSocket:
    """An echo identifier; ``notify`` is called when ``receive`` has something."""

    __slots__ = ("_queue", "_sockets", "ident", "notify", "source")

    def __init__(self, sockets: PingSockets, ident: int, source: int) -> None:
        self._sockets = sockets
        self._queue: deque[EchoAnswer] = deque()
        self.ident = ident
        self.source = source
        self.notify: Callable[[], None] = _nothing

    def send(
        self, dst: int, seq: int, data: bytes, *, ttl: int = 64, dont_fragment: bool = True
    ) -> None:
        """Send one echo request; raises OSError (ENETUNREACH, EMSGSIZE, EPERM …)."""
        self._sockets.transmit(self, dst, seq, data, ttl, dont_fragment)

    def put(self, answer: EchoAnswer) -> None:
        """Queue what came back."""
        if len(self._queue) < MAX_QUEUED:
            self._queue.append(answer)
            self.notify()

    def receive(self) -> EchoAnswer | None:
        """Return the oldest answer, None if there is none."""
        return self._queue.popleft() if self._queue else None

    def close(self) -> None:
        """Let the identifier go."""
        self._sockets.remove(self)
        self.notify = _nothing


class PingSockets:
    """All echo sockets of a namespace, found by identifier."""

    def __init__(self, ns: SocketNamespace, rng: random.Random) -> None:
        self._ns = ns
        self._rng = rng
        self._sockets: dict[int, PingSocket] = {}
        self._packet_ident = 0

    def open(self, source: int = 0) -> PingSocket:
        """Open a socket with a free identifier; ``source`` 0 takes the route's address.

        Raises OSError: EADDRNOTAVAIL, EAGAIN (all 65,535 identifiers are in use).
        """
        if source and not self._ns.is_local(source):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        start = self._rng.randrange(1, 65536)
        for step in range(65535):
            ident = 1 + (start + step) % 65535
            if ident not in self._sockets:
                sock = PingSocket(self, ident, source)
                self._sockets[ident] = sock
                return sock
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    def remove(self, sock: PingSocket) -> None:
        """Forget a closed socket."""
        if self._sockets.get(sock.ident) is sock:
            del self._sockets[sock.ident]

    def transmit(
        self, sock: PingSocket, dst: int, seq: int, data: bytes, ttl: int, dont_fragment: bool
    ) -> None:
        """Build and send one echo request."""
        if len(data) > MAX_PAYLOAD:
            raise OSError(errno.EMSGSIZE, "Message too long")
        source = sock.source or self._ns.source_address(dst)
        if source is None:
            raise no_way(self._ns, dst)
        message = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, sock.ident, seq & 0xFFFF) + data
        message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
        total = 20 + len(message)
        fits = total <= self._ns.route_mtu(dst)
        self._packet_ident = (self._packet_ident + 1) & 0xFFFF
        frag = 0x4000 if dont_fragment and fits else 0
        header = struct.pack(
            *("!BBHHHBBHII", 0x45, 0, total, self._packet_ident, frag),
            *(ttl, ICMP_PROTO, 0, source, dst),
        )
        header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
        raise_drop(self._ns.output(header + message))

    def echo_reply(self, packet: Packet) -> None:
        """An echo reply arrived for this namespace."""
        data, offset = packet.data, packet.header_len
        end = int.from_bytes(data[2:4], "big")
        if end > len(data) or end - offset < 8 or checksum(data[offset:end]):
            return
        kind, code, _, ident, seq = struct.unpack_from("!BBHHH", data, offset)
        sock = self._sockets.get(ident)
        if sock is not None and kind == ECHO_REPLY:
            body = data[offset + 8 : end]
            sock.put(EchoAnswer(kind, code, packet.src, packet.ttl, seq, end - offset, body))

    def icmp_error(
        self, packet: Packet, icmp_type: int, code: int, mtu: int, quoted: bytes
    ) -> None:
        """An ICMP error quotes an echo request of ours (``quoted``: its ICMP header and on)."""
        if len(quoted) < 8 or quoted[0] != ECHO_REQUEST:
            return
        ident, seq = struct.unpack_from("!HH", quoted, 4)
        sock = self._sockets.get(ident)
        if sock is not None:
            size = len(packet.data) - packet.header_len
            sock.put(EchoAnswer(icmp_type, code, packet.src, packet.ttl, seq, size, b"", mtu))
