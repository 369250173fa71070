"""All sockets of one network namespace: demultiplexing, listeners, timers, output.

Input never sends.  A connection that has something to say is put into the output queue and the
namespace is poked; the driver calls ``handle_timer`` soon after, which fires what is due and drains
the queue.  So a burst of input costs one round of output, and two sockets of one host cannot
recurse into each other.
"""

from __future__ import annotations

import errno
import heapq
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.netstack.packet import Drop, DropReason
from emulator.netstack.sock.ping import PingSocket, PingSockets
from emulator.netstack.sock.ports import pick_port
from emulator.netstack.sock.segment import SEQ_MASK, Segment, emit_packet, parse_segment
from emulator.netstack.sock.tcp import MIN_MSS, Endpoint, TcpConnection, TcpInfo
from emulator.netstack.sock.tcp_state import State
from emulator.netstack.sock.udp import IcmpReport, UdpSocket, UdpSockets, no_way
from emulator.wire.tcp import ACK, FIN, RST, SYN

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from emulator.netstack.packet import Packet
    from emulator.netstack.sock.namespace import SocketNamespace

SOMAXCONN: Final = 4096  # net.core.somaxconn: a larger backlog is cut to this
# Half-open connections a listener keeps; Linux takes the smaller of tcp_max_syn_backlog (which
# grows with memory) and the backlog.  More SYNs are dropped: no SYN cookies here.
MAX_SYN_BACKLOG: Final = 1024
# Connections in TIME_WAIT; the oldest end early beyond it (net.ipv4.tcp_max_tw_buckets; one takes
# about 3 KB here).
MAX_TIME_WAIT: Final = 4096
# All connections of a namespace; a SYN beyond it is dropped, connect() gives ENOBUFS.
MAX_CONNECTIONS: Final = 65536
# Stateless answers (RST) waiting for output; beyond it they are not sent.
MAX_REPLIES: Final = 1024
# A restarted connection in TIME_WAIT starts this far beyond the old one (tcp_conn_request).
TIME_WAIT_REUSE_GAP: Final = 65535 + 2

MAX_PACKET: Final = 65535  # an IPv4 packet's total length; lo's MTU is one more
ANY: Final = Endpoint(0, 0)
Key = tuple[int, int, int, int]


def _nothing() -> None:
    """The default of ``TcpListener.notify``."""


class TcpListener:
    """A socket in LISTEN; ``notify`` is called when ``accept`` has a connection."""

    __slots__ = ("_table", "accept_queue", "backlog", "half_open", "local", "notify", "overflows")

    def __init__(self, table: SocketTable, local: Endpoint, backlog: int) -> None:
        self._table = table
        self.local = local
        self.backlog = min(max(backlog, 1), SOMAXCONN)
        self.accept_queue: deque[TcpConnection] = deque()
        self.half_open = 0
        self.overflows = 0  # ListenOverflows of netstat -s
        self.notify: Callable[[], None] = _nothing

    @property
    def full(self) -> bool:
        """The accept queue is full (sk_acceptq_is_full: one more than the backlog)."""
        return len(self.accept_queue) > self.backlog

    def accept(self) -> TcpConnection | None:
        """Return the oldest established connection, None if there is none."""
        return self.accept_queue.popleft() if self.accept_queue else None

    def close(self) -> None:
        """Stop listening; connections nobody accepted are reset."""
        self._table.remove_listener(self)


class SocketInfo(NamedTuple):
    """One socket for ``ss``: ``proto`` is ``tcp`` or ``udp``."""

    proto: str
    tcp: TcpInfo


class SocketTable:
    """The transport layer of one namespace; implements ``LocalDelivery``."""

    def __init__(
        self, ns: SocketNamespace, *, clock: Callable[[], float], rng: random.Random
    ) -> None:
        """``clock`` gives seconds (the loop's time); ``rng`` ports and sequence numbers."""
        self._ns = ns
        self._clock = clock
        self._rng = rng
        self._secret = rng.getrandbits(64)
        self._connections: dict[Key, TcpConnection] = {}
        self._listeners: dict[Endpoint, TcpListener] = {}
        self._embryos: dict[Key, TcpListener] = {}
        self._time_wait: dict[Key, TcpConnection] = {}
        self._udp = UdpSockets(ns, rng)
        self._ping = PingSockets(ns, rng)
        self._ready: deque[TcpConnection] = deque()
        self._replies: deque[bytes] = deque()
        self._heap: list[tuple[float, int, TcpConnection]] = []
        self._heap_count = 0
        self._ident = rng.getrandbits(16)
        self._flushing = False

    # -- opening sockets -----------------------------------------------------------------------

    def tcp_listen(self, ip: int, port: int, backlog: int = 128) -> TcpListener:
        """Listen at ``ip`` (0 is any) and ``port`` (0 is ephemeral), as with SO_REUSEADDR.

        Raises OSError: EADDRINUSE, EADDRNOTAVAIL.
        """
        if ip and not self._ns.is_local(ip):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        if not port:
            free = pick_port(self._rng, lambda candidate: self._listening(ip, candidate))
            if free is None:
                raise OSError(errno.EADDRINUSE, "Address already in use")
            port = free
        elif self._listening(ip, port):
            raise OSError(errno.EADDRINUSE, "Address already in use")
        listener = TcpListener(self, Endpoint(ip, port), backlog)
        self._listeners[listener.local] = listener
        return listener

    def _listening(self, ip: int, port: int) -> bool:
        if ip:
            return (ip, port) in self._listeners or (0, port) in self._listeners
        return any(local.port == port for local in self._listeners)

    def tcp_connect(
        self, remote: Endpoint, local: Endpoint = ANY, *, iss: int | None = None
    ) -> TcpConnection:
        """Start connecting; the SYN goes out with the next ``handle_timer``.

        ``iss`` chooses the first sequence number, by which a trace recognizes its probe.

        Raises OSError: ENETUNREACH or what its route refuses with, EADDRNOTAVAIL (address not
        ours, no port left), EADDRINUSE, ENOBUFS.
        """
        if local.ip and not self._ns.is_local(local.ip):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        source = local.ip or self._ns.source_address(remote.ip)
        if source is None or (local.ip and self._ns.route_refusal(remote.ip) is not None):
            raise no_way(self._ns, remote.ip)
        if len(self._connections) >= MAX_CONNECTIONS:
            raise OSError(errno.ENOBUFS, "No buffer space available")
        port = local.port
        if not port:
            free = pick_port(
                self._rng,
                lambda candidate: (
                    (source, candidate, *remote) in self._connections
                    or self._listening(source, candidate)
                ),
            )
            if free is None:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            port = free
        key = (source, port, *remote)
        old = self._connections.get(key)
        if old is not None:
            if old.state is not State.TIME_WAIT:
                raise OSError(errno.EADDRINUSE, "Address already in use")
            self._forget(old)
        connection = self._new_connection(key, iss)
        connection.connect()
        return connection

    def udp_bind(
        self,
        ip: int = 0,
        port: int = 0,
        remote: Endpoint | None = None,
        *,
        reuse_address: bool = False,
    ) -> UdpSocket:
        """Open a UDP socket; see ``UdpSockets.bind``."""
        return self._udp.bind(ip, port, remote, reuse_address=reuse_address)

    def ping_open(self, source: int = 0) -> PingSocket:
        """Open an ICMP echo socket; see ``PingSockets.open``."""
        return self._ping.open(source)

    def _new_connection(self, key: Key, iss: int | None = None) -> TcpConnection:
        local, remote = Endpoint(key[0], key[1]), Endpoint(key[2], key[3])
        mss = max(MIN_MSS, min(self._ns.route_mtu(remote.ip), MAX_PACKET) - 40)
        connection = TcpConnection(
            local, remote, iss=self._iss(key) if iss is None else iss, mss=mss
        )
        connection.schedule = self._touch
        self._connections[key] = connection
        return connection

    def _iss(self, key: Key) -> int:
        """RFC 6528: a clock of 4 µs plus a keyed hash of the four-tuple."""
        mixed = self._secret
        for part in key:
            mixed = ((mixed ^ part) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed ^= mixed >> 29
        return (int(self._clock() * 250_000) + mixed) & SEQ_MASK

    # -- what arrives --------------------------------------------------------------------------

    def deliver(self, packet: Packet) -> Drop | None:
        """Take a TCP or UDP packet addressed to this namespace."""
        if packet.proto != 6:
            return self._udp.deliver(packet)
        segment = parse_segment(
            packet.data, packet.header_len, packet.src, packet.dst, packet.gso_size
        )
        if segment is None:
            return Drop(DropReason.BAD_CHECKSUM, "TCP")
        key = (packet.dst, packet.dport, packet.src, packet.sport)
        connection = self._connections.get(key)
        if connection is None:
            return self._deliver_to_listener(key, segment, None)
        state = connection.state
        if state is State.SYN_RECEIVED:
            return self._deliver_to_embryo(key, connection, segment)
        if state is State.TIME_WAIT and segment.flags & (SYN | ACK | RST) == SYN:
            # RFC 9293 section 3.10.7.4: a new connection may begin if its number is beyond the old.
            ahead = (segment.seq - connection.rcv.next) & SEQ_MASK
            if ahead < 0x80000000 and self._listener_of(key) is not None:
                iss = (connection.snd.nxt + TIME_WAIT_REUSE_GAP) & SEQ_MASK
                self._forget(connection)
                return self._deliver_to_listener(key, segment, iss)
        connection.receive_segment(segment, now=self._clock())
        self._touch(connection)
        return None

    def _listener_of(self, key: Key) -> TcpListener | None:
        listeners = self._listeners
        return listeners.get(Endpoint(key[0], key[1])) or listeners.get(Endpoint(0, key[1]))

    def _deliver_to_listener(self, key: Key, segment: Segment, iss: int | None) -> Drop | None:
        listener = self._listener_of(key)
        flags = segment.flags
        if flags & RST:
            return Drop(DropReason.NO_SOCKET, f"tcp port {key[1]}: RST for no connection")
        if listener is None or flags & ACK:
            self._reset(key, segment)
            return Drop(DropReason.NO_SOCKET, f"tcp port {key[1]}")
        if not flags & SYN or flags & FIN:
            return Drop(DropReason.BAD_HEADER, "neither SYN nor ACK for a listening port")
        if listener.full or listener.half_open >= min(listener.backlog, MAX_SYN_BACKLOG):
            listener.overflows += 1
            return Drop(DropReason.QUEUE_FULL, f"tcp port {key[1]}: backlog is full")
        if len(self._connections) >= MAX_CONNECTIONS:
            return Drop(DropReason.QUEUE_FULL, "too many connections")
        connection = self._new_connection(key, iss)
        self._embryos[key] = listener
        listener.half_open += 1
        connection.accept(segment)
        return None

    def _deliver_to_embryo(
        self, key: Key, connection: TcpConnection, segment: Segment
    ) -> Drop | None:
        listener = self._embryos.get(key)
        if listener is not None and listener.full and not segment.flags & (RST | SYN):
            # As Linux: the ACK is forgotten, the SYN,ACK goes out again later.
            listener.overflows += 1
            return Drop(DropReason.QUEUE_FULL, f"tcp port {key[1]}: accept queue is full")
        connection.receive_segment(segment, now=self._clock())
        self._touch(connection)
        if listener is not None and connection.state is not State.SYN_RECEIVED:
            self._leave_embryo(key, listener)
            if connection.state is not State.CLOSED:
                listener.accept_queue.append(connection)
                listener.notify()
        return None

    def _leave_embryo(self, key: Key, listener: TcpListener) -> None:
        del self._embryos[key]
        listener.half_open -= 1

    def _reset(self, key: Key, segment: Segment) -> None:
        """Answer a segment for no connection (RFC 9293 section 3.10.7.1)."""
        if len(self._replies) >= MAX_REPLIES:
            return
        if segment.flags & ACK:
            answer = Segment(segment.ack, 0, RST, 0)
        else:
            answer = Segment(0, (segment.seq + segment.length) & SEQ_MASK, RST | ACK, 0)
        self._ident = (self._ident + 1) & 0xFFFF
        self._replies.append(emit_packet(key[0], key[2], key[1], key[3], self._ident, answer))
        self._poke()

    def icmp_error(self, packet: Packet) -> None:
        """An ICMP error arrived; its payload quotes the start of a packet some socket sent."""
        data, offset = packet.data, packet.header_len
        if len(data) < offset + 8 + 20 + 8:
            return
        icmp_type, code = data[offset], data[offset + 1]
        mtu = int.from_bytes(data[offset + 6 : offset + 8], "big") if code == 4 else 0
        if icmp_type != 3:
            mtu = 0
        inner = data[offset + 8 :]
        inner_len = (inner[0] & 15) * 4
        if inner_len < 20 or len(inner) < inner_len + 8:
            return
        src = int.from_bytes(inner[12:16], "big")
        dst = int.from_bytes(inner[16:20], "big")
        sport = int.from_bytes(inner[inner_len : inner_len + 2], "big")
        dport = int.from_bytes(inner[inner_len + 2 : inner_len + 4], "big")
        match inner[9]:
            case 6:
                connection = self._connections.get((src, sport, dst, dport))
                if connection is not None:
                    seq = int.from_bytes(inner[inner_len + 4 : inner_len + 8], "big")
                    connection.receive_icmp(icmp_type, code, mtu, seq)
                    self._touch(connection)
            case 17:
                local, remote = Endpoint(src, sport), Endpoint(dst, dport)
                self._udp.icmp_error(IcmpReport(icmp_type, code, packet.src, local, remote, mtu))
            case 1:
                self._ping.icmp_error(packet, icmp_type, code, mtu, inner[inner_len:])

    def icmp_echo_reply(self, packet: Packet) -> None:
        """An ICMP echo reply arrived."""
        self._ping.echo_reply(packet)

    # -- timers and output ---------------------------------------------------------------------

    def _poke(self) -> None:
        if not self._flushing:
            self._ns.poke()

    def _touch(self, connection: TcpConnection) -> None:
        """Queue a connection for output."""
        if not connection.queued_for_output:
            connection.queued_for_output = True
            self._ready.append(connection)
            if len(self._ready) == 1:
                self._poke()

    def get_timer(self) -> float | None:
        """When ``handle_timer`` wants to be called: at once if output waits."""
        if self._ready or self._replies:
            return self._clock()
        heap = self._heap
        while heap and heap[0][0] != heap[0][2].timer_at:
            heapq.heappop(heap)  # its connection is gone, or an earlier entry serves it
        return heap[0][0] if heap else None

    def handle_timer(self) -> None:
        """Fire what is due and send what waits.

        What becomes due while sending (a connection of this host to itself) is left for the next
        call, so that one call is bounded.
        """
        now = self._clock()
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, _, connection = heapq.heappop(heap)
            if at != connection.timer_at:
                continue  # an earlier entry has already served this connection
            connection.timer_at = None
            due = connection.get_timer()
            if due is not None and due <= now:
                connection.handle_timer(now=now)
                self._touch(connection)
            else:
                self._arm(connection)
        self._flushing = True
        try:
            for _ in range(len(self._replies)):
                self._ns.output(self._replies.popleft())
            for _ in range(len(self._ready)):
                self._flush(self._ready.popleft(), now)
        finally:
            self._flushing = False
        if self._ready or self._replies:
            self._ns.poke()

    def _flush(self, connection: TcpConnection, now: float) -> None:
        connection.queued_for_output = False
        local, remote = connection.local, connection.remote
        for segment in connection.segments_to_send(now=now):
            self._ident = (self._ident + 1) & 0xFFFF
            packet = emit_packet(
                *(local.ip, remote.ip, local.port, remote.port, self._ident, segment)
            )
            drop = self._ns.output(packet, gso_size=segment.gso_size)
            if drop is not None and (drop.icmp is not None or drop.mtu):
                self._dropped(connection, segment, drop)
        state = connection.state
        if state is State.CLOSED:
            self._forget(connection)
            return
        if state is State.TIME_WAIT:
            self._keep_time_wait(connection)
        self._arm(connection)

    def _dropped(self, connection: TcpConnection, segment: Segment, drop: Drop) -> None:
        """Our own host refused a segment: the same as if a router's ICMP error came back."""
        icmp_type, code = drop.icmp or (3, 4)
        connection.receive_icmp(icmp_type, code, drop.mtu, segment.seq)

    def _arm(self, connection: TcpConnection) -> None:
        at = connection.get_timer()
        if at is not None and (connection.timer_at is None or at < connection.timer_at):
            connection.timer_at = at
            self._heap_count += 1
            heapq.heappush(self._heap, (at, self._heap_count, connection))

    def _keep_time_wait(self, connection: TcpConnection) -> None:
        self._time_wait[(*connection.local, *connection.remote)] = connection
        if len(self._time_wait) > MAX_TIME_WAIT:
            self._forget(next(iter(self._time_wait.values())))

    def _forget(self, connection: TcpConnection) -> None:
        key = (*connection.local, *connection.remote)
        connection.timer_at = None
        if self._connections.get(key) is connection:
            del self._connections[key]
            self._time_wait.pop(key, None)
            listener = self._embryos.get(key)
            if listener is not None:
                self._leave_embryo(key, listener)

    # -- closing -------------------------------------------------------------------------------

    def remove_listener(self, listener: TcpListener) -> None:
        """Stop a listener; what nobody accepted is reset."""
        if self._listeners.get(listener.local) is not listener:
            return
        del self._listeners[listener.local]
        listener.notify = _nothing
        for key in [key for key, parent in self._embryos.items() if parent is listener]:
            self._connections[key].abort()
        for connection in listener.accept_queue:
            connection.abort()
        listener.accept_queue.clear()

    def close(self, error: int = errno.ENETDOWN) -> None:
        """The namespace goes away: every socket ends with ``error``, nothing is sent."""
        for listener in list(self._listeners.values()):
            self.remove_listener(listener)
        for connection in list(self._connections.values()):
            connection.abort(error)
            self._forget(connection)
        for sock in self._udp.all():
            sock.error = error
            sock.notify()
            sock.close()
        self._ready.clear()
        self._replies.clear()
        self._heap.clear()

    # -- snapshots -----------------------------------------------------------------------------

    def sockets(self) -> tuple[SocketInfo, ...]:
        """Every socket: UDP by port, TCP listeners, then connections in order of creation."""
        rows = [
            SocketInfo(
                "udp",
                TcpInfo(
                    State.ESTABLISHED if sock.remote else State.CLOSED,
                    *(sock.receive_queue, 0, sock.local, sock.remote or Endpoint(0, 0)),
                    *(0, 0.0, 0),
                ),
            )
            for sock in self._udp.all()
        ]
        for listener in self._listeners.values():
            queue, local = len(listener.accept_queue), listener.local
            info = TcpInfo(State.LISTEN, queue, listener.backlog, local, Endpoint(0, 0), 0, 0.0, 0)
            rows.append(SocketInfo("tcp", info))
        rows += [
            SocketInfo("tcp", connection.info())
            for connection in self._connections.values()
            if connection.state is not State.CLOSED  # ended, about to be forgotten
        ]
        return tuple(rows)
