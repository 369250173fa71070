"""Following one probe through every stage: what matches, and what is written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.netstack.packet import ICMP, IPIP, TCP, UDP, TraceStep
from emulator.wire import icmpv4, vxlan
from emulator.wire.describe import VXLAN_PORTS, describe_packet

if TYPE_CHECKING:
    from emulator.netstack.kernel import Kernel
    from emulator.netstack.packet import Packet

# Steps of one trace: a probe and its answers through ten nodes are some hundreds.
MAX_STEPS: Final = 4096
# Tunnels looked into, one in another.
MAX_DEPTH: Final = 3
# Shortest UDP payload token: a shorter one matches strangers.
MIN_TOKEN: Final = 8
_VXLAN_INNER: Final = 8 + vxlan.HEADER_LEN + 14


class TraceFilter(NamedTuple):
    """Recognizes a probe by what no NAT changes; make it with tcp(), icmp() or udp()."""

    proto: int
    number: int = 0
    ident: int = 0
    token: bytes = b""

    @classmethod
    def tcp(cls, seq: int) -> TraceFilter:
        """The SYN with this sequence number, and what acknowledges it: SYN,ACK or RST."""
        return cls(TCP, number=seq & 0xFFFFFFFF)

    @classmethod
    def icmp(cls, ident: int, seq: int, token: bytes = b"") -> TraceFilter:
        """An echo request and its reply; NAT may change the identifier, but no ``token`` in it."""
        return cls(ICMP, number=seq, ident=ident, token=token)

    @classmethod
    def udp(cls, token: bytes) -> TraceFilter:
        """Datagrams that hold ``token`` (8 bytes or more)."""
        assert len(token) >= MIN_TOKEN, f"a token of {len(token)} bytes matches strangers"
        return cls(UDP, token=token)

    def matches(self, data: bytes, depth: int = 0) -> bool:
        """True for the probe, its answers, ICMP errors that quote it, in VXLAN and IP in IP too."""
        if len(data) < 20:
            return False
        start = (data[0] & 15) * 4
        proto = data[9]
        body = data[start:]
        if proto == self.proto and not ((data[6] & 0x1F) or data[7]) and self._is_probe(body):
            return True
        if depth >= MAX_DEPTH:
            return False
        if proto == ICMP and len(body) > icmpv4.HEADER_LEN and body[0] in icmpv4.ERROR_TYPES:
            return self.matches(body[icmpv4.HEADER_LEN :], depth + 1)
        if proto == IPIP:
            return self.matches(body, depth + 1)
        if proto == UDP and len(body) > _VXLAN_INNER:
            port = body[2] << 8 | body[3]
            if port in VXLAN_PORTS and body[_VXLAN_INNER - 2 : _VXLAN_INNER] == b"\x08\x00":
                return self.matches(body[_VXLAN_INNER:], depth + 1)
        return False

    def _is_probe(self, body: bytes) -> bool:
        if self.proto == TCP:
            if len(body) < 8:
                return False
            seq = int.from_bytes(body[4:8], "big")
            after = (self.number + 1) & 0xFFFFFFFF
            # A quoted segment may be cut after the sequence number.
            ack = int.from_bytes(body[8:12], "big") if len(body) >= 14 else None
            acknowledges = ack == after and bool(body[13] & 0x10) if ack is not None else False
            return seq == self.number or acknowledges
        if self.proto == ICMP:
            return (
                len(body) >= 8
                and body[0] in (icmpv4.ECHO_REQUEST, icmpv4.ECHO_REPLY)
                and int.from_bytes(body[6:8], "big") == self.number
                and (
                    int.from_bytes(body[4:6], "big") == self.ident
                    or (self.token != b"" and self.token in body[8:])
                )
            )
        return self.token in body[8:]


class TraceBuffer:
    """The steps of one trace on this node, oldest first; also the ``Trace`` packets carry."""

    def __init__(self, kernel: Kernel, wanted: TraceFilter) -> None:
        self._kernel = kernel
        self._wanted = wanted
        self.steps: list[TraceStep] = []
        self.lost = 0

    def match(self, data: bytes) -> TraceBuffer | None:
        """What a packet that enters this node is to carry."""
        return self if self._wanted.matches(data) else None

    def step(self, netns: str, stage: str, detail: str, packet: Packet) -> None:
        """Write a step down; beyond MAX_STEPS only counted."""
        if len(self.steps) >= MAX_STEPS:
            self.lost += 1
            return
        kernel, data = self._kernel, packet.data
        text = describe_packet(data)
        self.steps.append(
            TraceStep(kernel.clock(), kernel.hostname, netns, stage, detail, text, data[8])
        )

    def take(self) -> list[TraceStep]:
        """Return and forget the steps."""
        steps, self.steps = self.steps, []
        return steps

    def disarm(self) -> None:
        """Stop tracing; packets that still carry the trace write on."""
        if self._kernel.tracer is self:
            self._kernel.tracer = None
            self._kernel.invalidate_flows()
