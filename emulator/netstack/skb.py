"""A frame on its way between devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.netstack.packet import Packet
from emulator.wire.ethernet import ETHERTYPE_IPV4, HEADER_LEN

if TYPE_CHECKING:
    from emulator.netstack.packet import FlowLog, Trace


class Skb:
    """One Ethernet frame (or bare IPv4 packet on devices without Ethernet) inside the host.

    ``data`` is the payload behind the Ethernet header.  ``packet`` is set once netfilter has seen
    the payload (bridge-nf), ``prerouted`` tells the IPv4 layer not to ask it again.
    """

    __slots__ = (
        "data",
        "dst",
        "ethertype",
        "flow",
        "gso_size",
        "hops",
        "mark",
        "packet",
        "prerouted",
        "src",
        "trace",
    )

    def __init__(
        self, dst: bytes, src: bytes, ethertype: int, data: bytes, *, gso_size: int = 0
    ) -> None:
        self.dst = dst
        self.src = src
        self.ethertype = ethertype
        self.data = data
        self.gso_size = gso_size
        self.mark = 0
        self.hops = 0
        self.flow: FlowLog | None = None
        self.trace: Trace | None = None
        self.packet: Packet | None = None
        self.prerouted = False

    @classmethod
    def of(cls, packet: Packet, dst: bytes, src: bytes) -> Skb:
        """Frame an IPv4 packet."""
        skb = cls(dst, src, ETHERTYPE_IPV4, packet.data, gso_size=packet.gso_size)
        skb.mark = packet.mark
        skb.flow = packet.flow
        skb.trace = packet.trace
        return skb

    def copy(self) -> Skb:
        """A copy for another port of a bridge; flooding is never cached."""
        if self.flow is not None:
            self.flow.cacheable = False
        other = Skb(self.dst, self.src, self.ethertype, self.data, gso_size=self.gso_size)
        other.mark, other.hops, other.trace = self.mark, self.hops, self.trace
        return other

    def frame(self) -> bytes:
        """The bytes on the wire."""
        return b"".join((self.dst, self.src, self.ethertype.to_bytes(2, "big"), self.data))

    @property
    def length(self) -> int:
        """Bytes with the Ethernet header."""
        return HEADER_LEN + len(self.data)

    def as_packet(self, in_dev: str = "") -> Packet:
        """The payload as a packet of the IPv4 layer; it must have been validated."""
        packet = Packet(self.data, in_dev=in_dev, gso_size=self.gso_size)
        packet.mark, packet.flow, packet.trace = self.mark, self.flow, self.trace
        return packet
