"""eth0: the node's NIC, whose wire is real UDP datagrams to the other nodes.

To the namespace it is an Ethernet device like any other.  At its edge a frame is turned into what
the drivers of both nodes exchange: a VXLAN datagram travels as itself, any other packet whole on
the carrier port.  The edge answers ARP for the peers it was told of, as their NICs would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from emulator.addr import BROADCAST_MAC, ZERO_MAC, format_mac
from emulator.errors import WireError
from emulator.netstack import gso
from emulator.netstack.devices.base import Device
from emulator.netstack.packet import IPIP, TCP, UDP, Drop, DropReason, FlowLog, Terminal
from emulator.netstack.skb import Skb
from emulator.wire import arp, ipv4, udp, vxlan
from emulator.wire.ethernet import ETHERTYPE_ARP, ETHERTYPE_IPV4

if TYPE_CHECKING:
    from emulator.netstack.netns import NetNs

# Batches waiting for the driver, which takes them every turn of its loop; Linux's txqueuelen is
# 1000 packets.  More are dropped as a full ring drops.
MAX_EGRESS: Final = 4096
_UDP_HEADER: Final = 8
# VXLAN header and inner Ethernet header: what precedes the inner packet.
VXLAN_PREFIX: Final = vxlan.HEADER_LEN + 14


class Egress(NamedTuple):
    """What leaves; see ARCHITECTURE.md, "The kernel".  ``src_port`` is the VXLAN source port."""

    dst_ip: int
    kind: str
    payload: bytes
    segment_size: int
    src_port: int = 0


class Underlay(Device):
    """The NIC.  Datagrams to ``vxlan_port`` travel as VXLAN, other ports' in whole packets."""

    kind: ClassVar[str] = "underlay"
    reports_carrier: ClassVar[bool] = True
    qdisc: ClassVar[str] = "fq_codel"

    def __init__(
        self, ns: NetNs, name: str, mac: bytes, *, vxlan_port: int = vxlan.PORT_LINUX
    ) -> None:
        super().__init__(ns, name, mac)
        self.vxlan_port = vxlan_port
        self.egress: list[Egress] = []
        self.peers: dict[int, bytes] = {}
        self._by_mac: dict[bytes, int] = {}

    # -- peers -----------------------------------------------------------------------------------

    def peer_set(self, ip: int, mac: bytes) -> None:
        """A node is at the other end of the wire."""
        self.peer_del(ip)
        self.peers[ip] = mac
        self._by_mac[mac] = ip
        self.ns.kernel.invalidate_flows()

    def peer_del(self, ip: int) -> None:
        """A node is gone: its switch port is dark.  Unknown ones are ignored."""
        mac = self.peers.pop(ip, None)
        if mac is not None:
            self._by_mac.pop(mac, None)
            self.ns.kernel.invalidate_flows()

    # -- out -------------------------------------------------------------------------------------

    def take_egress(self) -> list[Egress]:
        """Return and forget what waits to leave."""
        taken = list(self.egress)
        self.egress.clear()
        return taken

    def push(self, item: Egress) -> Drop | None:
        """Queue a batch for the driver."""
        if len(self.egress) >= MAX_EGRESS:
            return Drop(DropReason.QUEUE_FULL, f"{self.name}: {MAX_EGRESS} batches wait")
        self.egress.append(item)
        self.ns.kernel.wake()
        return None

    def _tap(self, skb: Skb, outbound: bool) -> None:
        """What the wire carries: a super-segment is shown cut."""
        if skb.gso_size:
            for data in self._cut(skb.data, skb.gso_size):
                super()._tap(Skb(skb.dst, skb.src, skb.ethertype, data), outbound)
        else:
            super()._tap(skb, outbound)

    def _cut(self, data: bytes, gso_size: int) -> list[bytes]:
        """Cut an outer packet that holds a super-segment into outer packets."""
        header_len = (data[0] & 15) * 4
        if data[9] == TCP:
            return gso.segments(data, gso_size)
        if data[9] == IPIP:
            return self._cut_inner(data, header_len, gso_size)
        start = header_len + _UDP_HEADER + VXLAN_PREFIX
        out = []
        for number, inner in enumerate(gso.segments(data[start:], gso_size)):
            total = start + len(inner)
            ident = (int.from_bytes(data[4:6], "big") + number) & 0xFFFF
            head = ipv4.with_total_length(data[:header_len], total, ident, 0)
            length = (total - header_len).to_bytes(2, "big")
            ports = data[header_len : header_len + 4]
            prefix = data[header_len + 6 : start]
            out.append(b"".join((head, ports, length, prefix, inner)))
        return out

    @staticmethod
    def _cut_inner(data: bytes, header_len: int, gso_size: int) -> list[bytes]:
        """Cut an IP-in-IP packet (inet_gso_segment: each piece has the outer header, numbered)."""
        header, first = data[:header_len], int.from_bytes(data[4:6], "big")
        frag = int.from_bytes(data[6:8], "big")
        return [
            ipv4.with_total_length(header, header_len + len(inner), (first + number) & 0xFFFF, frag)
            + inner
            for number, inner in enumerate(gso.segments(data[header_len:], gso_size))
        ]

    def _xmit(self, skb: Skb) -> Drop | None:
        if skb.ethertype == ETHERTYPE_ARP:
            return self._answer_arp(skb)
        if skb.ethertype != ETHERTYPE_IPV4:
            detail = f"{self.name}: ethertype {skb.ethertype:#06x} is not carried"
            return Drop(DropReason.UNKNOWN_PROTOCOL, detail)
        if skb.dst == BROADCAST_MAC:
            if skb.flow is not None:
                skb.flow.cacheable = False
            for peer in list(self.peers):
                self._carry(skb, peer)
            return None
        peer_ip = self._by_mac.get(skb.dst)
        if peer_ip is None:
            return Drop(
                DropReason.UNDERLAY_UNKNOWN_PEER,
                f"{self.name}: no node has the address {format_mac(skb.dst)}",
            )
        return self._carry(skb, peer_ip)

    def _carry(self, skb: Skb, peer: int) -> Drop | None:
        data = skb.data
        header_len = (data[0] & 15) * 4
        start = header_len + _UDP_HEADER
        src_port = 0
        kind = "carrier"
        if data[9] == UDP and not (data[6] & 0x3F or data[7]) and len(data) >= start + VXLAN_PREFIX:
            src_port = data[header_len] << 8 | data[header_len + 1]
            dst_port = data[header_len + 2] << 8 | data[header_len + 3]
            # A VXLAN datagram for the peer itself is the same thing on the real wire.
            if dst_port == self.vxlan_port and int.from_bytes(data[16:20], "big") == peer:
                kind = "vxlan"
        if kind == "carrier":
            src_port, start = 0, 0
        flow = skb.flow
        if flow is not None:
            # What VXLAN carries may be anything; only an IPv4 packet behind plain headers repeats.
            cut = start + VXLAN_PREFIX if kind == "vxlan" else 0
            if flow.tunnel is not None and data[9] == IPIP and header_len == ipv4.HEADER_LEN:
                cut = header_len
            if len(data) - cut >= ipv4.HEADER_LEN:
                flow.ends.append(Terminal(kind, self, data[cut:], data[start:cut], peer, src_port))
            else:
                flow.cacheable = False
        if not skb.gso_size:
            return self.push(Egress(peer, kind, data[start:], 0, src_port))
        pieces = [piece[start:] for piece in self._cut(data, skb.gso_size)]
        size = len(pieces[0]) if len(pieces) > 1 else 0
        return self.push(Egress(peer, kind, b"".join(pieces), size, src_port))

    def _answer_arp(self, skb: Skb) -> Drop | None:
        try:
            asked = arp.Arp.parse(skb.data)
        except WireError as error:
            return Drop(DropReason.BAD_HEADER, str(error))
        mac = self.peers.get(asked.target_ip)
        if asked.op == arp.REQUEST and mac is not None and skb.dst in (BROADCAST_MAC, mac):
            answer = arp.Arp(arp.REPLY, mac, asked.target_ip, asked.sender_mac, asked.sender_ip)
            self.ns.kernel.backlog(self, Skb(skb.src, mac, ETHERTYPE_ARP, answer.emit()))
        return None

    # -- in --------------------------------------------------------------------------------------

    def receive_vxlan(self, src_ip: int, src_port: int, payload: bytes, segment_size: int) -> None:
        """Take VXLAN datagrams from the node ``src_ip``; the cache first, then one by one."""
        kernel = self.ns.kernel
        kernel.enter()
        try:
            kernel.flows.receive_vxlan(self, src_ip, src_port, payload, segment_size)
        finally:
            kernel.leave()

    def receive_vxlan_slowly(
        self, src_ip: int, src_port: int, payload: bytes, flow: FlowLog | None
    ) -> None:
        """Take one VXLAN datagram through every layer."""
        ip = self.ns.address_on(self)
        if ip is None:
            detail = f"{self.name} has no address"
            self.ns.count_drop(Drop(DropReason.NOT_FOR_US, detail), None)
            return
        length = _UDP_HEADER + len(payload)
        if ipv4.HEADER_LEN + length > ipv4.MAX_LENGTH:
            self.ns.count_drop(Drop(DropReason.BAD_HEADER, f"{length} bytes of VXLAN"), None)
            return
        datagram = udp.Udp(src_port, self.vxlan_port, payload).emit(src_ip, ip, with_checksum=False)
        data = ipv4.build(src_ip, ip, UDP, datagram)
        self._receive_packet(data, self.peers.get(src_ip, ZERO_MAC), flow)

    def receive_carrier(self, payload: bytes, segment_size: int) -> None:
        """Take whole IPv4 packets."""
        kernel = self.ns.kernel
        kernel.enter()
        try:
            kernel.flows.receive_carrier(self, payload, segment_size)
        finally:
            kernel.leave()

    def receive_carrier_slowly(self, data: bytes, flow: FlowLog | None) -> None:
        """Take one packet of the carrier through every layer."""
        if len(data) < ipv4.HEADER_LEN:
            detail = f"{self.name}: {len(data)} bytes on the carrier port"
            self.ns.count_drop(Drop(DropReason.BAD_HEADER, detail), None)
            return
        mac = self.peers.get(int.from_bytes(data[12:16], "big"), ZERO_MAC)
        self._receive_packet(data, mac, flow)

    def _receive_packet(self, data: bytes, src_mac: bytes, flow: FlowLog | None) -> None:
        skb = Skb(self.mac, src_mac, ETHERTYPE_IPV4, data)
        skb.flow = flow
        tracer = self.ns.kernel.tracer
        if tracer is not None and len(data) >= ipv4.HEADER_LEN:
            skb.trace = tracer.match(data)
        self.receive(skb)
