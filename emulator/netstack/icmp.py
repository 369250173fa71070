"""ICMP of one namespace: answers to echo, errors sent and received (net/ipv4/icmp.c, RFC 1122)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import IP_MAX
from emulator.errors import WireError
from emulator.netstack.fib import RouteType
from emulator.netstack.packet import ICMP, TCP, Drop, DropReason, Packet
from emulator.wire import icmpv4, ipv4, tcp
from emulator.wire.checksum import checksum

if TYPE_CHECKING:
    from emulator.netstack.netns import NetNs

# An error quotes what fits into this many bytes (RFC 1812 section 4.3.2.3).
MAX_ERROR_LENGTH: Final = 576
# All errors of a host: net.ipv4.icmp_msgs_per_sec and icmp_msgs_burst.
GLOBAL_RATE: Final = 1000
GLOBAL_BURST: Final = 50
# To one destination: net.ipv4.icmp_ratelimit (one a second) with XRLIM_BURST_FACTOR saved up.
PEER_INTERVAL_S: Final = 1.0
PEER_BURST: Final = 6
# Destinations remembered for the limit; beyond it the oldest starts afresh (inet_peer_threshold is
# larger, but a forgotten peer only means one burst more).
MAX_PEERS: Final = 1024
# Destinations with a path MTU of their own (fnhe: 2048 x 5 in Linux) and how long it is believed
# (net.ipv4.route.mtu_expires).
MAX_PATH_MTUS: Final = 2048
PATH_MTU_EXPIRES_S: Final = 600.0
MIN_PATH_MTU: Final = 552  # net.ipv4.route.min_pmtu
# TOS of errors: the precedence "internetwork control" (RFC 1812 section 4.3.2.5).
_ERROR_TOS: Final = 0xC0


class TokenBucket:
    """``rate`` tokens a second, at most ``burst`` saved up."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Use a token if there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class IcmpLayer:
    """The ICMP module of a namespace."""

    def __init__(self, ns: NetNs) -> None:
        self._ns = ns
        self._clock = ns.kernel.clock
        self._global = TokenBucket(GLOBAL_RATE, GLOBAL_BURST, self._clock())
        self._peers: dict[int, TokenBucket] = {}
        self._path_mtus: dict[int, tuple[int, float]] = {}

    # -- in --------------------------------------------------------------------------------------

    def receive(self, packet: Packet) -> Drop | None:
        """icmp_rcv."""
        ns = self._ns
        data = packet.data
        start = packet.header_len
        if len(data) < start + icmpv4.HEADER_LEN:
            return Drop(DropReason.BAD_HEADER, "ICMP message of less than 8 bytes")
        if checksum(data[start:]):
            return Drop(DropReason.BAD_CHECKSUM, "ICMP")
        if packet.flow is not None:
            packet.flow.cacheable = False
        kind = data[start]
        if kind == icmpv4.ECHO_REQUEST:
            return self._answer(packet)
        if kind == icmpv4.ECHO_REPLY:
            if packet.trace is not None:
                packet.trace.step(ns.name, "deliver", "ICMP echo reply", packet)
            ns.sockets.icmp_echo_reply(packet)
            return None
        if kind in icmpv4.ERROR_TYPES:
            if packet.trace is not None:
                packet.trace.step(ns.name, "deliver", "ICMP error", packet)
            self._note_path_mtu(packet)
            ns.sockets.icmp_error(packet)
            return None
        return Drop(DropReason.UNKNOWN_PROTOCOL, f"ICMP type {kind}")

    def _answer(self, packet: Packet) -> Drop | None:
        """icmp_echo: the same message back, type 0."""
        ns = self._ns
        if not ns.is_local(packet.dst):
            return Drop(DropReason.NOT_FOR_US, "echo to a broadcast (icmp_echo_ignore_broadcasts)")
        if packet.trace is not None:
            packet.trace.step(ns.name, "deliver", "ICMP echo request, answered", packet)
        data = packet.data
        start = packet.header_len
        value = (data[start + 2] << 8 | data[start + 3]) + 0x800
        value = (value & 0xFFFF) + (value >> 16)
        message = b"".join((b"\x00\x00", value.to_bytes(2, "big"), data[start + 4 :]))
        answer = Packet(
            ipv4.build(
                *(packet.dst, packet.src, ICMP, message),
                ident=ns.next_ident(),
                tos=data[1] & 0x1E,
            )
        )
        answer.trace = packet.trace
        ns.ip.output_packet(answer, "")
        return None

    def _note_path_mtu(self, packet: Packet) -> None:
        data = packet.data
        start = packet.header_len
        inner = start + icmpv4.HEADER_LEN
        if data[start] != icmpv4.UNREACHABLE or data[start + 1] != icmpv4.FRAG_NEEDED:
            return
        if len(data) < inner + ipv4.HEADER_LEN:
            return
        mtu = data[start + 6] << 8 | data[start + 7]
        dst = int.from_bytes(data[inner + 16 : inner + 20], "big")
        route = self._ns.route_output(dst)
        if route is None or route.type is not RouteType.UNICAST:
            return
        known = self.path_mtu(dst) or self._ns.devices[route.dev].mtu
        mtu = max(mtu, MIN_PATH_MTU)
        if mtu >= known:
            return
        if len(self._path_mtus) >= MAX_PATH_MTUS:
            del self._path_mtus[next(iter(self._path_mtus))]
        self._path_mtus[dst] = (mtu, self._clock() + PATH_MTU_EXPIRES_S)
        self._ns.kernel.invalidate_flows()

    def path_mtu(self, dst: int) -> int | None:
        """The MTU a router told us for ``dst``; None if there is none, or none any more."""
        if not self._path_mtus:
            return None
        found = self._path_mtus.get(dst)
        if found is None:
            return None
        if found[1] <= self._clock():
            del self._path_mtus[dst]
            return None
        return found[0]

    def path_mtu_expires_s(self, dst: int) -> int:
        """Whole seconds a path MTU is still believed; 0 if there is none."""
        found = self._path_mtus.get(dst)
        return max(0, int(found[1] - self._clock())) if found is not None else 0

    # -- out -------------------------------------------------------------------------------------

    def send_error(self, packet: Packet, kind: int, code: int, mtu: int = 0) -> bool:
        """icmp_send: tell the sender of ``packet``; False where the rules forbid or limit it."""
        ns = self._ns
        data = packet.data
        if (data[6] & 0x1F) or data[7]:
            return False
        src, dst = packet.src, packet.dst
        if dst == IP_MAX or dst >> 28 == 0xE or src >> 28 == 0xE or src in (0, IP_MAX):
            return False
        local = ns.local.lookup(dst)
        if local is not None and local.type is RouteType.BROADCAST:
            return False
        if packet.proto == ICMP and len(data) > packet.header_len:
            # RFC 1122 section 3.2.2: no error about an error.
            about = data[packet.header_len]
            if about not in (icmpv4.ECHO_REQUEST, icmpv4.ECHO_REPLY, 13, 14, 15, 16, 17, 18):
                return False
        if not self._allowed(src, kind, code):
            return False
        # A packet that was for us is answered by the address it was for.
        source = dst if ns.is_local(dst) else ns.source_address(src)
        if source is None:
            return False
        quoted = data[: MAX_ERROR_LENGTH - ipv4.HEADER_LEN - icmpv4.HEADER_LEN]
        message = icmpv4.error(kind, code, quoted, mtu=mtu).emit()
        error = Packet(
            ipv4.build(
                source, src, ICMP, message, ident=ns.next_ident(), tos=data[1] & 0x1E | _ERROR_TOS
            )
        )
        error.trace = packet.trace
        ns.ip.output_packet(error, "")
        return True

    def _allowed(self, to: int, kind: int, code: int) -> bool:
        """icmp_ratelimit; path MTU discovery and the host's own packets are never limited."""
        if kind == icmpv4.UNREACHABLE and code == icmpv4.FRAG_NEEDED:
            return True
        if self._ns.is_local(to):
            return True
        now = self._clock()
        if not self._global.take(now):
            return False
        bucket = self._peers.get(to)
        if bucket is None:
            if len(self._peers) >= MAX_PEERS:
                del self._peers[next(iter(self._peers))]
            bucket = self._peers[to] = TokenBucket(1 / PEER_INTERVAL_S, PEER_BURST, now)
        return bucket.take(now)

    def send_reset(self, packet: Packet) -> None:
        """nf_send_reset: a TCP RST in the name of the destination (REJECT with tcp-reset)."""
        data = packet.data
        at = packet.header_len
        if packet.proto != TCP or len(data) < at + tcp.HEADER_LEN or (data[6] & 0x1F) or data[7]:
            return
        try:
            segment = tcp.Tcp.parse(data[at:], packet.src, packet.dst, verify=False)
        except WireError:
            return
        if segment.flags & tcp.RST:
            return
        if segment.flags & tcp.ACK:
            seq, ack, flags = segment.ack, 0, tcp.RST
        else:
            length = len(segment.payload)
            length += bool(segment.flags & tcp.SYN) + bool(segment.flags & tcp.FIN)
            seq, ack, flags = 0, (segment.seq + length) & 0xFFFFFFFF, tcp.RST | tcp.ACK
        answer = tcp.Tcp(segment.dport, segment.sport, seq, ack, flags, 0)
        body = answer.emit(packet.dst, packet.src)
        reset = Packet(ipv4.build(packet.dst, packet.src, TCP, body, ident=0, frag=ipv4.DF))
        reset.trace = packet.trace
        self._ns.ip.output_packet(reset, "")
