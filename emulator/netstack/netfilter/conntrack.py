"""Connection tracking: tuples, states and timeouts of one namespace.

Theory of operation (net/netfilter/nf_conntrack_core.c): every packet is looked up by its tuple.
A known tuple gives the connection and the direction; an unknown one creates an unconfirmed
connection that enters the table only when its first packet leaves the stack alive.  The reply
tuple is the inverse of the original one until NAT changes it; NAT needs no state beyond these two
tuples.  An ICMP error belongs to the connection of the packet it quotes.

Packets without a connection are INVALID, or UNTRACKED when the raw table said so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.netstack.netfilter.connection import (
    ASSURED,
    CONFIRMED,
    DYING,
    SEEN_REPLY,
    STEADY,
    UDP_STREAM_TIMEOUT_S,
    UNTRACKED,
    Connection,
    Tuple,
    acknowledged,
    is_icmp_error,
    is_sound,
    quoted_tuple,
    segment_end,
    tcp_flags,
    tuple_of,
)
from emulator.netstack.netfilter.rewrite import ICMP_QUERY_REPLY
from emulator.netstack.netfilter.tcp_states import (
    RST,
    TIMEOUT_S,
    TRANSITIONS,
    UNACKNOWLEDGED_TIMEOUT_S,
    Segment,
    TcpState,
    segment_kind,
)
from emulator.netstack.packet import ICMP, TCP, UDP, Drop, DropReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from emulator.netstack.packet import Packet

# Connection is imported from here by the packet path's contract.
__all__ = ["NF_CONNTRACK_MAX", "Connection", "ConntrackStatistics", "ConntrackTable"]

# net.netfilter.nf_conntrack_max.  Linux takes 65536 on a machine of 1 GiB and 262144 above 4 GiB;
# an entry costs about 1 kB here, so a full table is 64 MB of one node process.
NF_CONNTRACK_MAX: Final = 65536
# Entries looked at for a victim when the table is full (Linux: NF_CT_EVICTION_RANGE buckets of 8).
EARLY_DROP_RANGE: Final = 64
# Expired entries answer no lookup, so a sweep only frees memory; once a second is plenty.
SWEEP_INTERVAL_S: Final = 1.0

ICMP_TIMEOUT_S: Final = 30.0
UDP_TIMEOUT_S: Final = 30.0


class ConntrackStatistics:
    """The counters of ``conntrack -S``."""

    __slots__ = ("drop", "early_drop", "found", "insert", "insert_failed", "invalid")

    def __init__(self) -> None:
        self.found = 0
        self.invalid = 0
        self.insert = 0
        self.insert_failed = 0
        self.drop = 0
        self.early_drop = 0


class ConntrackTable:
    """All confirmed connections of a namespace, each under both of its tuples."""

    def __init__(self, clock: Callable[[], float], *, limit: int = NF_CONNTRACK_MAX) -> None:
        self._clock = clock
        self._by_tuple: dict[Tuple, tuple[Connection, bool]] = {}
        self._connections: dict[int, Connection] = {}
        self._next_ident = 1
        # What a full table looks at next for a victim; a copy, made anew when it is used up.
        self._victims: Iterator[Connection] = iter(())
        self._sweep_at: float | None = None
        # The newest unconfirmed connection: an ICMP error or RST the stack sends in answer to its
        # first packet belongs to it (the kernel attaches the connection by nf_ct_attach).
        self._newest: Connection | None = None
        self.limit = limit
        self.statistics = ConntrackStatistics()

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        """Iterate over live connections, oldest first."""
        now = self._clock()
        return iter([c for c in self._connections.values() if c.expire_at > now])

    def lookup(self, key: Tuple) -> tuple[Connection, bool] | None:
        """Return the live connection that has this tuple and whether it is its reply direction."""
        found = self._by_tuple.get(key)
        if found is None:
            return None
        if found[0].expire_at <= self._clock():
            self.delete(found[0])
            return None
        return found

    def tuple_taken(self, reply: Tuple, connection: Connection) -> bool:
        """True if packets of this tuple would already belong to another connection."""
        found = self.lookup(reply)
        return found is not None and found[0] is not connection

    # -- the packet path -------------------------------------------------------------------------

    def track(self, packet: Packet, *, local: bool, looped: bool = False) -> Drop | None:
        """Find or make the connection of a packet and set ``packet.ct`` and ``packet.ct_reply``.

        ``local`` is True for a packet this namespace sends itself, ``looped`` for one that came
        back over the loopback device.  A packet that already has a connection keeps it.
        """
        if packet.ct is not None:
            return None
        if is_icmp_error(packet):
            self._track_icmp_error(packet, local=local)
            return None
        key = tuple_of(packet)
        if key is None or not is_sound(packet):
            self.statistics.invalid += 1
            return None
        now = self._clock()
        found = self._by_tuple.get(key)
        if found is not None and found[0].expire_at <= now:
            self.delete(found[0])
            found = None
        if looped:
            # Its way out has advanced and counted it: twice seen, a FIN would look like two.
            found = found or self._translated(key)
            if found is not None:
                packet.ct, packet.ct_reply = found
                return None
        if found is not None and found[0].proto == TCP and self._reopens(packet, *found):
            self.delete(found[0])
            found = None
        if found is None:
            if local and self._answers_newest(packet, key):
                packet.ct, packet.ct_reply = self._newest, True
                return None
            return self._create(packet, key, now)
        connection, reply = found
        if not self._advance(connection, packet, reply, now):
            self.statistics.invalid += 1
            return None
        packet.ct, packet.ct_reply = connection, reply
        self._account(connection, packet, reply)
        return None

    def confirm(self, packet: Packet) -> Drop | None:
        """Enter the connection of a packet that is about to leave the stack into the table."""
        connection = packet.ct
        if connection is None or connection is UNTRACKED or packet.ct_reply:
            return None
        if connection.status & (CONFIRMED | DYING) or is_icmp_error(packet):
            return None
        if self.lookup(connection.original) or self.lookup(connection.reply):
            self.statistics.insert_failed += 1
            return Drop(
                DropReason.NAT_EXHAUSTED, "nf_conntrack: another connection has the same tuple"
            )
        now = self._clock()
        connection.status |= CONFIRMED
        connection.expire_at = now + connection.timeout_s
        self._connections[connection.ident] = connection
        self._by_tuple[connection.original] = (connection, False)
        self._by_tuple.setdefault(connection.reply, (connection, True))
        self.statistics.insert += 1
        self._arm(connection.expire_at)
        if self._newest is connection:
            self._newest = None
        return None

    def _create(self, packet: Packet, key: Tuple, now: float) -> Drop | None:
        connection = Connection(key, ident=self._next_ident, now=now)
        if not self._start(connection, packet):
            self.statistics.invalid += 1
            return None
        if len(self._connections) >= self.limit and not self._early_drop(now):
            self.statistics.drop += 1
            return Drop(
                DropReason.CONNTRACK_FULL,
                f"nf_conntrack: table full ({self.limit} entries), dropping packet",
            )
        self._next_ident += 1
        connection.expire_at = now + connection.timeout_s
        self._newest = connection
        packet.ct = connection
        self._account(connection, packet, False)
        return None

    def _early_drop(self, now: float) -> bool:
        """Make room by removing an expired or not assured entry among the next ones.

        Each call looks at others, oldest first: those that live long must not shield the rest.
        """
        for _ in range(EARLY_DROP_RANGE):
            connection = next(self._victims, None)
            if connection is None:
                self._victims = iter(list(self._connections.values()))
            elif connection.ident in self._connections and (
                connection.expire_at <= now or not connection.status & ASSURED
            ):
                self.delete(connection)
                self.statistics.early_drop += 1
                return True
        return False

    def _translated(self, key: Tuple) -> tuple[Connection, bool] | None:
        """Find the connection whose packets look so after NAT.

        Linux keeps the connection on a packet that passes the loopback device; here the tuples
        tell it: what NAT made of one direction is the inverse of the other.
        """
        found = self.lookup(key.inverse())
        return None if found is None else (found[0], not found[1])

    def _answers_newest(self, packet: Packet, key: Tuple) -> bool:
        newest = self._newest
        return (
            newest is not None
            and packet.proto == TCP
            and key == newest.reply
            and bool(tcp_flags(packet) & RST)
        )

    def _track_icmp_error(self, packet: Packet, *, local: bool) -> None:
        quoted = quoted_tuple(packet)
        if quoted is None:
            self.statistics.invalid += 1
            return
        inverse = quoted.inverse()
        found = self.lookup(inverse)
        if found is None and local and self._newest is not None and self._newest.reply == inverse:
            found = self._newest, True
        if found is None:
            self.statistics.invalid += 1
            return
        packet.ct, packet.ct_reply = found

    @staticmethod
    def _account(connection: Connection, packet: Packet, reply: bool) -> None:
        side = 1 if reply else 0
        connection.packets[side] += 1
        connection.octets[side] += len(packet.data)

    @staticmethod
    def _start(connection: Connection, packet: Packet) -> bool:
        """Set the first state of a connection; False if its first packet cannot start one."""
        proto = connection.proto
        if proto == TCP:
            state = TRANSITIONS[0][segment_kind(tcp_flags(packet))][TcpState.NONE]
            if state >= TcpState.INVALID:
                return False
            connection.tcp_state = state
            connection.last_segment = segment_kind(tcp_flags(packet))
            connection.timeout_s = TIMEOUT_S[state]
            if state == TcpState.ESTABLISHED:
                connection.timeout_s = UNACKNOWLEDGED_TIMEOUT_S
        elif proto == UDP:
            connection.timeout_s = UDP_TIMEOUT_S
        elif proto == ICMP:
            connection.timeout_s = ICMP_TIMEOUT_S
            return connection.original.dport >> 8 in ICMP_QUERY_REPLY
        return True

    @staticmethod
    def _reopens(packet: Packet, connection: Connection, reply: bool) -> bool:
        """True for a SYN that starts a new life of a finished connection (RFC 1122 4.2.2.13).

        The end must have been said by a FIN, or by a RST of the side that now starts again.
        """
        if connection.tcp_state not in (TcpState.TIME_WAIT, TcpState.CLOSE):
            return False
        kind = segment_kind(tcp_flags(packet))
        if TRANSITIONS[reply][kind][connection.tcp_state] != TcpState.SYN_SENT:
            return False
        gave_up = connection.last_segment == Segment.RST and connection.last_reply is reply
        return connection.closing or gave_up

    def _advance(self, connection: Connection, packet: Packet, reply: bool, now: float) -> bool:
        """Take a packet of a known connection; False if it is INVALID."""
        if connection.proto == TCP:
            believed = self._advance_tcp(connection, packet, reply)
            if believed is not True:
                if believed is None and reply:
                    connection.status |= SEEN_REPLY
                return believed is None
        else:
            if reply:
                connection.status |= SEEN_REPLY
                connection.steady = bool(connection.status & CONFIRMED)
            if connection.proto == UDP and connection.status & SEEN_REPLY:
                connection.timeout_s = UDP_TIMEOUT_S
                if now >= connection.stream_at:
                    connection.status |= ASSURED
                    connection.timeout_s = UDP_STREAM_TIMEOUT_S
        if connection.status & CONFIRMED:
            connection.expire_at = now + connection.timeout_s
            self._arm(connection.expire_at)
        return True

    def _advance_tcp(self, connection: Connection, packet: Packet, reply: bool) -> bool | None:
        """Return True if the segment counts, None if it passes unbelieved, False if INVALID."""
        old = connection.tcp_state
        kind = segment_kind(tcp_flags(packet))
        new = TRANSITIONS[reply][kind][old]
        if new == TcpState.INVALID:
            return False
        if new == TcpState.IGNORE or (new == TcpState.SYN_SENT and old >= TcpState.TIME_WAIT):
            # The ends may know better than we: a SYN let through here and then acknowledged by the
            # other side shows that they began anew.
            answered = (
                kind == Segment.SYNACK
                and connection.last_segment == Segment.SYN
                and connection.last_reply is not reply
                and acknowledged(packet) == connection.last_end
            )
            connection.last_segment, connection.last_reply = kind, reply
            if not answered:
                connection.last_end = segment_end(packet)
                return None
            old, new = TcpState.SYN_SENT, TcpState.SYN_RECV
            connection.closing = False
        if kind == Segment.RST and not connection.status & SEEN_REPLY:
            # Refused, or given up before any answer: nothing is left to track.
            self.delete(connection)
            return None
        connection.last_segment, connection.last_reply = kind, reply
        if new == TcpState.FIN_WAIT and old != new:
            connection.closing = True
        connection.tcp_state = new
        connection.timeout_s = TIMEOUT_S[new]
        if new == TcpState.ESTABLISHED:
            if not connection.status & SEEN_REPLY:
                connection.timeout_s = UNACKNOWLEDGED_TIMEOUT_S
            elif old in (TcpState.SYN_RECV, TcpState.ESTABLISHED):
                connection.status |= ASSURED
        if reply:
            connection.status |= SEEN_REPLY
        connection.steady = new == TcpState.ESTABLISHED and connection.status & STEADY == STEADY
        return True

    # -- removal and time ------------------------------------------------------------------------

    def delete(self, connection: Connection) -> None:
        """Remove a connection; its next packet starts a new one.  Unknown ones are ignored."""
        connection.status |= DYING
        connection.steady = False
        if self._connections.pop(connection.ident, None) is None:
            return
        for key in (connection.original, connection.reply):
            found = self._by_tuple.get(key)
            if found is not None and found[0] is connection:
                del self._by_tuple[key]

    def flush(self) -> int:
        """Remove every connection; returns how many there were."""
        doomed = list(self._connections.values())
        for connection in doomed:
            self.delete(connection)
        return len(doomed)

    def _arm(self, expire_at: float) -> None:
        if self._sweep_at is None or expire_at + SWEEP_INTERVAL_S < self._sweep_at:
            self._sweep_at = expire_at + SWEEP_INTERVAL_S

    def get_timer(self) -> float | None:
        """Return when the next sweep is due; None for an empty table."""
        return self._sweep_at

    def handle_timer(self) -> None:
        """Remove what has expired, if a sweep is due."""
        now = self._clock()
        if self._sweep_at is None or now < self._sweep_at:
            return
        doomed = [c for c in self._connections.values() if c.expire_at <= now]
        for connection in doomed:
            self.delete(connection)
        next_at = min((c.expire_at for c in self._connections.values()), default=None)
        self._sweep_at = None if next_at is None else next_at + SWEEP_INTERVAL_S
