"""UDP sockets of one namespace (RFC 768, RFC 1122 section 4.1)."""

from __future__ import annotations

import errno
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.netstack.packet import Drop, DropReason
from emulator.netstack.sock.ports import pick_port
from emulator.netstack.sock.tcp import Endpoint, icmp_errno
from emulator.wire.checksum import checksum, pseudo_header_sum

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from emulator.netstack.packet import Packet
    from emulator.netstack.sock.namespace import SocketNamespace

UDP_PROTO: Final = 17
MAX_PAYLOAD: Final = 65535 - 20 - 8
# net.core.rmem_default; Linux counts each datagram's overhead too, here it is a constant.
RECEIVE_BUFFER: Final = 212992
DATAGRAM_OVERHEAD: Final = 512
# Reports waiting for a socket that asked for them (IP_RECVERR); older ones are dropped.
MAX_REPORTS: Final = 64
# What sendto(2) and connect(2) make of a drop (net/ipv4/fib_semantics.c fib_props for routes).
_REFUSED: Final = {
    DropReason.NO_ROUTE: (errno.ENETUNREACH, "Network is unreachable"),
    DropReason.BLACKHOLE: (errno.EINVAL, "Invalid argument"),
    DropReason.UNREACHABLE: (errno.EHOSTUNREACH, "No route to host"),
    DropReason.PROHIBITED: (errno.EACCES, "Permission denied"),
    DropReason.TOO_BIG: (errno.EMSGSIZE, "Message too long"),
    DropReason.NETFILTER_DROP: (errno.EPERM, "Operation not permitted"),
    DropReason.NETFILTER_REJECT: (errno.EPERM, "Operation not permitted"),
}


class Datagram(NamedTuple):
    """One received datagram; ``ttl`` as it arrived (IP_RECVTTL)."""

    data: bytes
    source: Endpoint
    ttl: int


class IcmpReport(NamedTuple):
    """An ICMP error about a datagram of ours (IP_RECVERR): who said so and what it quoted."""

    icmp_type: int
    code: int
    reporter: int
    local: Endpoint
    remote: Endpoint
    mtu: int


def _nothing() -> None:
    """The default of ``UdpSocket.notify``."""


class UdpSocket:
    """A bound UDP socket; ``notify`` is called when ``receive`` or ``take_error`` has something.

    ``error`` is the pending errno of a connected socket (SO_ERROR).
    """

    __slots__ = (
        "_queue",
        "_queued",
        "_sockets",
        "drops",
        "error",
        "local",
        "notify",
        "remote",
        "reports",
        "want_reports",
    )

    def __init__(self, sockets: UdpSockets, local: Endpoint, remote: Endpoint | None) -> None:
        self._sockets = sockets
        self.local = local
        self.remote = remote
        self.notify: Callable[[], None] = _nothing
        self.error = 0
        self.drops = 0
        self.want_reports = False
        self.reports: deque[IcmpReport] = deque(maxlen=MAX_REPORTS)
        self._queue: deque[Datagram] = deque()
        self._queued = 0

    @property
    def receive_queue(self) -> int:
        """Bytes waiting, overhead included as in ``ss``."""
        return self._queued

    def put(self, datagram: Datagram) -> bool:
        """Queue what arrived; False if the buffer is full."""
        size = len(datagram.data) + DATAGRAM_OVERHEAD
        if self._queued + size > RECEIVE_BUFFER:
            self.drops += 1
            return False
        self._queued += size
        self._queue.append(datagram)
        self.notify()
        return True

    def receive(self) -> Datagram | None:
        """Return the oldest datagram, None if there is none."""
        if not self._queue:
            return None
        datagram = self._queue.popleft()
        self._queued -= len(datagram.data) + DATAGRAM_OVERHEAD
        return datagram

    def take_error(self) -> int:
        """Return and clear the pending errno."""
        error, self.error = self.error, 0
        return error

    def send(self, data: bytes, to: Endpoint | None = None, *, ttl: int = 64) -> None:
        """Send one datagram; raises OSError (EMSGSIZE, ENETUNREACH, EPERM, EDESTADDRREQ)."""
        target = to or self.remote
        if target is None:
            raise OSError(errno.EDESTADDRREQ, "Destination address required")
        self._sockets.transmit(self.local, target, data, ttl)

    def close(self) -> None:
        """Let the port go; what waits is lost."""
        self._sockets.remove(self)
        self._queue.clear()
        self._queued = 0
        self.notify = _nothing


class UdpSockets:
    """All UDP sockets of a namespace, found by port."""

    def __init__(self, ns: SocketNamespace, rng: random.Random) -> None:
        self._ns = ns
        self._rng = rng
        self._by_port: dict[int, list[UdpSocket]] = {}
        self._ident = 0

    def bind(
        self, ip: int, port: int, remote: Endpoint | None = None, *, reuse_address: bool = False
    ) -> UdpSocket:
        """Open a socket at ``ip`` (0: any) and ``port`` (0: ephemeral), connected if ``remote``.

        Raises OSError: EADDRINUSE, EADDRNOTAVAIL, ENETUNREACH, EAGAIN (no ephemeral port left).
        """
        if ip and not self._ns.is_local(ip):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        if remote is not None and not ip:
            source = self._ns.source_address(remote.ip)
            if source is None:
                raise no_way(self._ns, remote.ip)
            ip = source
        if not port:
            free = pick_port(self._rng, lambda candidate: self._taken(ip, candidate))
            if free is None:
                raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
            port = free
        elif not reuse_address and self._taken(ip, port):
            raise OSError(errno.EADDRINUSE, "Address already in use")
        sock = UdpSocket(self, Endpoint(ip, port), remote)
        self._by_port.setdefault(port, []).append(sock)
        return sock

    def _taken(self, ip: int, port: int) -> bool:
        return any(
            not ip or not other.local.ip or other.local.ip == ip
            for other in self._by_port.get(port, ())
        )

    def remove(self, sock: UdpSocket) -> None:
        """Forget a closed socket."""
        sockets = self._by_port.get(sock.local.port, [])
        if sock in sockets:
            sockets.remove(sock)
            if not sockets:
                del self._by_port[sock.local.port]

    def all(self) -> list[UdpSocket]:
        """Every socket, by port then age."""
        return [sock for port in sorted(self._by_port) for sock in self._by_port[port]]

    def find(self, local: Endpoint, remote: Endpoint) -> UdpSocket | None:
        """The best match as Linux scores it: connected, then bound address, then newest."""
        best: UdpSocket | None = None
        best_score = -1
        for sock in self._by_port.get(local.port, ()):
            if sock.local.ip and sock.local.ip != local.ip:
                continue
            if sock.remote is not None and sock.remote != remote:
                continue
            score = 2 * (sock.remote is not None) + (sock.local.ip != 0)
            if score >= best_score:
                best, best_score = sock, score
        return best

    def deliver(self, packet: Packet) -> Drop | None:
        """Take a UDP packet for this namespace."""
        data, offset = packet.data, packet.header_len
        end = int.from_bytes(data[2:4], "big")
        if end > len(data) or end - offset < 8:
            return Drop(DropReason.BAD_HEADER, "short UDP header")
        length = int.from_bytes(data[offset + 4 : offset + 6], "big")
        if not 8 <= length <= end - offset:
            return Drop(DropReason.BAD_HEADER, "bad UDP length")
        stop = offset + length
        if (data[offset + 6] or data[offset + 7]) and checksum(
            data[offset:stop], pseudo_header_sum(packet.src, packet.dst, UDP_PROTO, length)
        ):
            return Drop(DropReason.BAD_CHECKSUM, "UDP")
        source = Endpoint(packet.src, packet.sport)
        sock = self.find(Endpoint(packet.dst, packet.dport), source)
        if sock is None:
            return Drop(DropReason.NO_SOCKET, f"udp port {packet.dport}", icmp=(3, 3))
        if not sock.put(Datagram(data[offset + 8 : stop], source, packet.ttl)):
            return Drop(DropReason.SOCKET_BUFFER_FULL, f"udp port {packet.dport}")
        return None

    def icmp_error(self, report: IcmpReport) -> None:
        """Hand an ICMP error to the socket whose datagram it quotes."""
        sock = self.find(report.local, report.remote)
        if sock is None:
            return
        if sock.want_reports:
            sock.reports.append(report)
            sock.notify()
        if sock.remote is not None:
            error = icmp_errno(report.icmp_type, report.code)
            if error and not (report.icmp_type == 3 and report.code == 4):
                sock.error = error
                sock.notify()

    def transmit(self, local: Endpoint, remote: Endpoint, data: bytes, ttl: int) -> None:
        """Build and send one datagram, fragmented by the namespace if it is too big."""
        if len(data) > MAX_PAYLOAD:
            raise OSError(errno.EMSGSIZE, "Message too long")
        src = local.ip or self._ns.source_address(remote.ip)
        if src is None:
            raise no_way(self._ns, remote.ip)
        length = 8 + len(data)
        words = local.port + remote.port + length
        pseudo = pseudo_header_sum(src, remote.ip, UDP_PROTO, length)
        # RFC 768: a computed zero goes out as all ones.
        udp_checksum = checksum(data, pseudo + words) or 0xFFFF
        total = 20 + length
        # DF as with IP_PMTUDISC_WANT: set where the datagram fits, else it is fragmented here.
        frag = 0x4000 if total <= self._ns.route_mtu(remote.ip) else 0
        self._ident = (self._ident + 1) & 0xFFFF
        header = struct.pack(
            "!BBHHHBBHII", 0x45, 0, total, self._ident, frag, ttl, UDP_PROTO, 0, src, remote.ip
        )
        packet = b"".join(
            (
                header[:10],
                checksum(header).to_bytes(2, "big"),
                header[12:],
                struct.pack("!HHHH", local.port, remote.port, length, udp_checksum),
                data,
            )
        )
        raise_drop(self._ns.output(packet))


def raise_drop(drop: Drop | None) -> None:
    """Turn the drop of a packet just made here into the OSError of sendto(2); most are silent."""
    if drop is not None and drop.reason in _REFUSED:
        raise OSError(*_REFUSED[drop.reason])


def no_way(ns: SocketNamespace, dst: int) -> OSError:
    """The OSError of connect(2) where no route lets anything out to ``dst``."""
    return OSError(*_REFUSED[ns.route_refusal(dst) or DropReason.NO_ROUTE])
