"""The unit the packet path works on, and the answers it gives.

A ``Packet`` is Linux's sk_buff for one network namespace: a complete IPv4 packet (header and
payload, checksums valid) with what the stack has learnt about it.  Each stage of the path is given
a packet and returns ``None`` (go on) or a ``Drop``; nothing on this path raises or logs.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from emulator.netstack.devices.tunnel import Ipip
    from emulator.netstack.netfilter.conntrack import Connection

ICMP, IPIP, TCP, UDP = 1, 4, 6, 17


class Hook(enum.IntEnum):
    """The five IPv4 hooks of linux/netfilter.h."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class DropReason(enum.StrEnum):
    """Why a packet ended; each has a counter in its namespace (names after dropreason-core.h)."""

    BAD_CHECKSUM = "bad_checksum"
    BAD_HEADER = "bad_header"
    TTL_EXPIRED = "ttl_expired"
    NO_ROUTE = "no_route"
    BLACKHOLE = "blackhole"
    UNREACHABLE = "unreachable"
    PROHIBITED = "prohibited"
    MARTIAN = "martian"
    NOT_FORWARDING = "not_forwarding"
    DEVICE_DOWN = "device_down"
    NOT_FOR_US = "not_for_us"
    NEIGH_FAILED = "neigh_failed"
    NEIGH_QUEUE_FULL = "neigh_queue_full"
    FDB_MISS = "fdb_miss"
    TOO_BIG = "too_big"
    BAD_VNI = "bad_vni"
    NO_SOCKET = "no_socket"
    SOCKET_BUFFER_FULL = "socket_buffer_full"
    UNKNOWN_PROTOCOL = "unknown_protocol"
    NETFILTER_DROP = "netfilter_drop"
    NETFILTER_REJECT = "netfilter_reject"
    CONNTRACK_FULL = "conntrack_full"
    NAT_EXHAUSTED = "nat_exhausted"
    REASSEMBLY_TIMEOUT = "reassembly_timeout"
    REASSEMBLY_FULL = "reassembly_full"
    LOOP = "loop"
    UNDERLAY_UNKNOWN_PEER = "underlay_unknown_peer"
    QUEUE_FULL = "queue_full"


class Counter:
    """Packets and bytes of one rule, chain policy, device direction or drop reason."""

    __slots__ = ("bytes", "packets")

    def __init__(self) -> None:
        self.packets = 0
        self.bytes = 0

    def add(self, packets: int, octets: int) -> None:
        self.packets += packets
        self.bytes += octets


class TraceStep(NamedTuple):
    """One thing that happened to a traced packet; ``at`` is the kernel's clock in seconds."""

    at: float
    node: str
    netns: str
    stage: str  # device | hook | nat | route | neigh | fdb | encap | decap | deliver | drop
    detail: str
    packet: str  # the packet as tcpdump would print it at this point
    ttl: int  # of the outermost IPv4 header at this point


class Trace(Protocol):
    """Collects the steps of a probe; a packet that is not traced carries None."""

    def step(self, netns: str, stage: str, detail: str, packet: Packet) -> None: ...


class FlowLog:
    """What the slow path touched for one packet, so that the flow cache can repeat it.

    Every counter bumped goes to ``counters``.  A stage whose answer could differ for the next
    packet of the flow (a NEW connection, -m statistic, -m recent, a rate limit, a queue) sets
    ``cacheable`` to False.

    The path adds what a repetition needs beyond that: ``lengths`` holds, for each counter, the
    bytes it was given; ``connections`` what conntrack must refresh (connection, reply, bytes);
    ``stations`` the bridge FDB entries the packet taught; ``max_length`` the longest packet (at
    the entry) every device takes whole; ``ends`` where the packet went, a Terminal for each copy;
    ``tunnel`` the IP-in-IP device that put the outer header of the end's ``prefix`` before it.
    """

    __slots__ = (
        "base",
        "cacheable",
        "connections",
        "counters",
        "ends",
        "lengths",
        "max_length",
        "stations",
        "tunnel",
    )

    def __init__(self, base: int = 0) -> None:
        """``base`` is the length of the packet at the entry, in bytes."""
        self.base = base
        self.cacheable = True
        self.counters: list[Counter] = []
        self.lengths: list[int] = []
        self.connections: list[tuple[Connection, bool, int]] = []
        self.stations: list[Station] = []
        self.max_length = 0xFFFF
        self.ends: list[Terminal] = []
        self.tunnel: Ipip | None = None

    def settle(self, length: int) -> None:
        """The counters added since the last call were given ``length`` bytes each."""
        missing = len(self.counters) - len(self.lengths)
        if missing:
            self.lengths += [length] * missing

    def limit(self, mtu: int, length: int) -> None:
        """A device of ``mtu`` took the packet, which was ``length`` bytes long there."""
        self.max_length = min(self.max_length, mtu - (length - self.base))


class Terminal(NamedTuple):
    """Where a packet left the packet path: ``kind`` is ``vxlan``, ``carrier`` or ``local``.

    ``place`` is the underlay device or the namespace, ``data`` the IPv4 packet as it was there,
    ``prefix`` the bytes before it on the wire, ``peer`` the node it goes to (0 for local),
    ``dev`` the device it came in by (local).
    """

    kind: str
    place: object
    data: bytes
    prefix: bytes = b""
    peer: int = 0
    src_port: int = 0
    dev: str = ""


class Station(Protocol):
    """A learnt bridge FDB entry: ``updated_at`` keeps it from ageing."""

    updated_at: float


class Packet:
    """One IPv4 packet inside one namespace.

    ``data`` is the whole packet; ``src dst proto ttl sport dport`` are parsed from it once
    (ports are 0 for protocols without them and for later fragments).  ``replace`` is the only way
    to change the bytes.  With ``gso_size`` non-zero the packet is a TCP super-segment whose
    payload is cut into pieces of that many bytes when it leaves the host, as in Linux.
    """

    __slots__ = (
        "ct",
        "ct_reply",
        "data",
        "dport",
        "dst",
        "flow",
        "gso_size",
        "header_len",
        "in_dev",
        "mark",
        "physdev_in",
        "proto",
        "sport",
        "src",
        "trace",
        "ttl",
    )

    data: bytes
    src: int
    dst: int
    proto: int
    ttl: int
    header_len: int
    sport: int
    dport: int

    def __init__(self, data: bytes, *, in_dev: str = "", gso_size: int = 0) -> None:
        """``data`` must hold a validated IPv4 header (see emulator.wire.ipv4)."""
        self.mark = 0
        self.ct: Connection | None = None
        self.ct_reply = False
        self.in_dev = in_dev
        self.physdev_in = ""
        self.gso_size = gso_size
        self.flow: FlowLog | None = None
        self.trace: Trace | None = None
        self.replace(data)

    def replace(self, data: bytes) -> None:
        """Take new bytes and parse the fields again."""
        self.data = data
        header_len = (data[0] & 15) * 4
        self.header_len = header_len
        self.ttl = data[8]
        proto = self.proto = data[9]
        self.src = int.from_bytes(data[12:16], "big")
        self.dst = int.from_bytes(data[16:20], "big")
        later_fragment = (data[6] & 0x1F) or data[7]
        if proto in (TCP, UDP) and not later_fragment and len(data) >= header_len + 4:
            self.sport = int.from_bytes(data[header_len : header_len + 2], "big")
            self.dport = int.from_bytes(data[header_len + 2 : header_len + 4], "big")
        else:
            self.sport = self.dport = 0


class Drop(NamedTuple):
    """The packet ends here.  ``detail`` names the rule or route that caused it.

    ``icmp`` is the (type, code) of the ICMP error owed to the sender, ``mtu`` the next-hop MTU for
    fragmentation-needed, ``reset`` True where a TCP RST is owed (REJECT --reject-with tcp-reset).
    """

    reason: DropReason
    detail: str = ""
    icmp: tuple[int, int] | None = None
    mtu: int = 0
    reset: bool = False


class AddressType(enum.IntEnum):
    """RTN_* of linux/rtnetlink.h, as -m addrtype sees them."""

    UNSPEC = 0
    UNICAST = 1
    LOCAL = 2
    BROADCAST = 3
    ANYCAST = 4
    MULTICAST = 5
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8


class NamespaceView(Protocol):
    """What netfilter may ask of the namespace it filters for."""

    def address_type(self, ip: int) -> AddressType: ...

    def address_type_on(self, ip: int, dev: str) -> AddressType:
        """The same where only the addresses of one device are local."""

    def reverse_path_ok(self, src: int, dev: str, *, loose: bool, accept_local: bool) -> bool:
        """True if an answer to ``src`` would leave by ``dev``, or anywhere if ``loose``."""

    def primary_address(self, dev: str, dst: int) -> int | None:
        """The address MASQUERADE takes on ``dev`` for a packet to ``dst``; None if it has none."""

    def invalidate_flows(self) -> None:
        """Called whenever a rule, policy or translation changes: cached flows are void."""


class PacketFilter(Protocol):
    """What the forwarding path asks of netfilter: one call a hook, conntrack and NAT included.

    ``Hook.PREROUTING`` and ``Hook.OUTPUT`` look up or create the conntrack entry before the tables
    run; ``INPUT`` and ``POSTROUTING`` confirm it.  The packet is changed in place.
    """

    def hook(self, hook: Hook, packet: Packet, in_dev: str, out_dev: str) -> Drop | None: ...


class LocalDelivery(Protocol):
    """What the forwarding path asks of the sockets of a namespace."""

    def deliver(self, packet: Packet) -> Drop | None:
        """Take a UDP or TCP packet addressed to this namespace.

        No socket: Drop(NO_SOCKET, icmp=(3, 3)) for UDP; for TCP the RST is sent by the sockets
        themselves and the answer is Drop(NO_SOCKET).
        """

    def icmp_error(self, packet: Packet) -> None:
        """An ICMP error arrived; its payload holds the start of a packet some socket sent."""
