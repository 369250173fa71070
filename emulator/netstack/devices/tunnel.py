"""vxlan and ipip: devices whose frames leave inside packets of their namespace.

Source: drivers/net/vxlan/vxlan_core.c, net/ipv4/ipip.c.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final

from emulator.addr import ZERO_MAC, format_ip, format_mac
from emulator.errors import WireError
from emulator.netstack.devices.base import Device
from emulator.netstack.devices.fdb import AGEING_S, Fdb
from emulator.netstack.packet import Drop, DropReason, Packet
from emulator.netstack.skb import Skb
from emulator.wire import ethernet, ipip, ipv4, vxlan
from emulator.wire.ethernet import ETHERTYPE_IPV4

if TYPE_CHECKING:
    from emulator.netstack.netns import NetNs

# udp_flow_src_port with no range given takes net.ipv4.ip_local_port_range.
DEFAULT_SOURCE_PORTS: Final = (32768, 60999)
_UDP_HEADER: Final = 8
# Tunnels a packet may be put into, one in another (XMIT_RECURSION_LIMIT of net/core/dev.h).
MAX_NESTED: Final = 8
_OUTER: Final = struct.Struct("!BBHHHBBHIIHHHH")


def flow_hash(data: bytes) -> int:
    """32 bits from addresses, protocol and ports of an IPv4 packet, the same on every run."""
    value = 0x811C9DC5
    header_len = (data[0] & 15) * 4
    key = data[9:10] + data[12:20]
    if data[9] in (6, 17) and not (data[6] & 0x1F or data[7]):
        key += data[header_len : header_len + 4]
    for byte in key:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def _send_outer(device: Vxlan | Ipip, packet: Packet) -> Drop | None:
    """Send an outer packet; routes may lead it into a tunnel again, but not for ever."""
    kernel = device.ns.kernel
    if kernel.nested_tunnels >= MAX_NESTED:
        return Drop(DropReason.LOOP, f"{device.name}: dead loop, {MAX_NESTED} tunnels deep")
    kernel.nested_tunnels += 1
    try:
        return device.carrier_ns.ip.output_packet(packet, "")
    finally:
        kernel.nested_tunnels -= 1


class Vxlan(Device):
    """A VTEP.  ``srcport`` (0, 0) takes the local port range."""

    kind: ClassVar[str] = "vxlan"
    default_mtu: ClassVar[int] = 1500
    rx_header: ClassVar[int] = 0

    def __init__(
        self,
        ns: NetNs,
        name: str,
        mac: bytes,
        *,
        vni: int,
        local: int,
        lower: str,
        port: int,
        learning: bool,
        srcport: tuple[int, int],
        ttl: int = 0,
        ageing_s: int = AGEING_S,
    ) -> None:
        super().__init__(ns, name, mac)
        self.vni = vni
        self.local = local
        self.lower = lower
        self.port = port
        self.learning = learning
        self.srcport = srcport
        self.ttl = ttl
        self.fdb = Fdb(ns.kernel)
        self.fdb.ageing_s = ageing_s
        self._header = vxlan.header(vni)
        self._ident = 0
        # The namespace a tunnel was made in carries its packets, wherever the device is moved.
        self.carrier_ns = ns

    def destroy(self) -> None:
        """Close the receiving end."""
        self.carrier_ns.vteps.pop((self.port, self.vni), None)
        self.fdb.close()

    def _fields(self) -> dict[str, object]:
        fields = super()._fields()
        fields |= {
            "vni": self.vni,
            "local": self.local,
            "dev": self.lower,
            "port": self.port,
            "learning": self.learning,
            "srcport": self.srcport,
            "ageing_s": int(self.fdb.ageing_s),
        }
        return fields

    def _source_port(self, skb: Skb) -> int:
        low, high = self.srcport if self.srcport[1] else DEFAULT_SOURCE_PORTS
        value = flow_hash(skb.data) if skb.ethertype == ETHERTYPE_IPV4 else skb.src[5]
        return low + (value * (high - low + 1) >> 32)

    def _xmit(self, skb: Skb) -> Drop | None:
        entry = self.fdb.entries.get(skb.dst) or self.fdb.entries.get(ZERO_MAC)
        if entry is None:
            return Drop(
                DropReason.FDB_MISS,
                f"bridge fdb of {self.name}: no entry for {format_mac(skb.dst)}",
            )
        if skb.trace is not None:
            detail = f"{self.name}: {format_mac(skb.dst)} is at {format_ip(entry.dst)}"
            self.trace(skb, "fdb", detail)
        ns = self.carrier_ns
        src = self.local or ns.source_address(entry.dst)
        if src is None:
            return Drop(DropReason.NO_ROUTE, f"{self.name}: no route to {format_ip(entry.dst)}")
        frame = skb.frame()
        length = _UDP_HEADER + vxlan.HEADER_LEN + len(frame)
        total = ipv4.HEADER_LEN + length
        if total > ipv4.MAX_LENGTH:
            return Drop(DropReason.TOO_BIG, f"{self.name}: outer packet of {total} bytes")
        self._ident = (self._ident + 1) & 0xFFFF
        header = _OUTER.pack(
            *(0x45, 0, total, self._ident, 0, self.ttl or ipv4.DEFAULT_TTL, 17, 0),
            *(src, entry.dst, self._source_port(skb), self.port, length, 0),
        )
        head = ipv4.with_total_length(header[:20], total, self._ident, 0)
        data = b"".join((head, header[20:], self._header, frame))
        packet = Packet(data, gso_size=skb.gso_size)
        packet.mark, packet.flow, packet.trace = skb.mark, skb.flow, skb.trace
        if skb.trace is not None:
            detail = f"{self.name}: vni {self.vni} to {format_ip(entry.dst)} port {self.port}"
            skb.trace.step(self.ns.name, "encap", detail, packet)
        return _send_outer(self, packet)

    def receive_encapsulated(self, packet: Packet, frame: bytes) -> None:
        """Take the frame of a VXLAN datagram addressed to this VTEP."""
        try:
            dst, src, ethertype, data = ethernet.Frame.parse(frame)
        except WireError as error:
            self.carrier_ns.count_drop(Drop(DropReason.BAD_HEADER, str(error)), packet)
            return
        skb = Skb(dst, src, ethertype, data, gso_size=packet.gso_size)
        skb.flow, skb.trace = packet.flow, packet.trace
        if self.learning:
            self.fdb.learn(skb, dst=packet.src)
        if skb.trace is not None:
            detail = f"{self.name}: vni {self.vni} from {format_ip(packet.src)}"
            self.trace(skb, "decap", detail)
        # A loop instead of a recursion (gro_cells_receive): a datagram may hold a thousand others.
        self.ns.kernel.backlog(self, skb)


class Ipip(Device):
    """An IP-in-IP tunnel.  ``remote`` 0 makes it a hub: the nexthop of the route is the far end.

    ``ttl`` 0 and DF are inherited from the packet inside, as ``ip tunnel`` has it by default.
    """

    kind: ClassVar[str] = "ipip"
    arp: ClassVar[bool] = False
    ethernet: ClassVar[bool] = False
    default_mtu: ClassVar[int] = 1480
    rx_header: ClassVar[int] = 0

    def __init__(self, ns: NetNs, name: str, *, local: int, remote: int, ttl: int = 0) -> None:
        super().__init__(ns, name, b"")
        self.local = local
        self.remote = remote
        self.ttl = ttl
        self.carrier_ns = ns
        self._ident = ns.next_ident()

    def destroy(self) -> None:
        """Close the receiving end."""
        if self in self.carrier_ns.tunnels:
            self.carrier_ns.tunnels.remove(self)

    def _fields(self) -> dict[str, object]:
        return super()._fields() | {"local": self.local, "remote": self.remote, "ttl": self.ttl}

    def next_ident(self) -> int:
        """The identification of the next outer packet."""
        self._ident = (self._ident + 1) & 0xFFFF
        return self._ident

    def _xmit(self, skb: Skb) -> Drop | None:
        """ip_tunnel_xmit: find the far end and our address towards it, wrap, send."""
        # The IPv4 layer left the nexthop where an Ethernet device has the destination address.
        far = self.remote or int.from_bytes(skb.dst, "big")
        ns = self.carrier_ns
        route = ns.route_output(far)
        src = self.local or ns.source_address(far)
        if not far or route is None or src is None:
            return Drop(DropReason.NO_ROUTE, f"{self.name}: no route to {format_ip(far)}")
        if route.dev == self.name and ns is self.ns:
            detail = f"{self.name}: the far end {format_ip(far)} is behind the tunnel itself"
            return Drop(DropReason.LOOP, detail)
        try:
            data = ipip.encapsulate(skb.data, src, far, ttl=self.ttl, ident=self.next_ident())
        except WireError as error:
            return Drop(DropReason.TOO_BIG, f"{self.name}: {error}")
        packet = Packet(data, gso_size=skb.gso_size)
        packet.mark, packet.trace = skb.mark, skb.trace
        flow = packet.flow = skb.flow
        if flow is not None:
            # One header is put back on a repetition; a tunnel in a tunnel takes the long way.
            flow.cacheable = flow.cacheable and flow.tunnel is None
            flow.tunnel = self
        if skb.trace is not None:
            detail = f"{self.name}: IP in IP to {format_ip(far)}"
            skb.trace.step(self.ns.name, "encap", detail, packet)
        return _send_outer(self, packet)

    def receive_encapsulated(self, packet: Packet) -> Drop | None:
        """Take a packet of protocol 4 addressed to this tunnel."""
        try:
            inner = ipip.decapsulate(packet.data)
        except WireError as error:
            return Drop(DropReason.BAD_HEADER, str(error))
        if packet.data[1] & 3 == ipip.CE:
            if not inner[1] & 3:
                detail = f"{self.name}: congestion marked outside, not capable inside"
                return Drop(DropReason.BAD_HEADER, detail)
            inner = ipv4.with_tos(inner, inner[1] | ipip.CE)
        skb = Skb(b"", b"", ETHERTYPE_IPV4, inner, gso_size=packet.gso_size)
        skb.mark, skb.flow, skb.trace = packet.mark, packet.flow, packet.trace
        if skb.trace is not None:
            self.trace(skb, "decap", f"{self.name}: from {format_ip(packet.src)}")
        self.ns.kernel.backlog(self, skb)
        return None
