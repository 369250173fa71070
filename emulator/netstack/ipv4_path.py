"""The IPv4 layer of one namespace: receive, route, forward, deliver, send.

Theory of operation (net/ipv4/ip_input.c, ip_forward.c, ip_output.c):
receive → PREROUTING → route → INPUT → deliver, or → forward → FORWARD → POSTROUTING → neighbour.
send → route → OUTPUT → (route again if netfilter changed it) → POSTROUTING → neighbour.
Every stage answers None or a Drop; ``NetNs.end`` counts it and sends the ICMP error it owes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import BROADCAST_MAC, IP_MAX, format_ip
from emulator.errors import WireError
from emulator.netstack.fib import Route, RouteType
from emulator.netstack.packet import ICMP, IPIP, TCP, UDP, Drop, DropReason, Hook, Packet, Terminal
from emulator.netstack.reassembly import Reassembler
from emulator.netstack.skb import Skb
from emulator.wire import ipv4, vxlan

if TYPE_CHECKING:
    from emulator.netstack.devices.base import Device
    from emulator.netstack.netns import NetNs

IP_FORWARD: Final = "net.ipv4.ip_forward"
_MULTICAST_FIRST: Final = 0xE0000000
_MULTICAST_LAST: Final = 0xEFFFFFFF
# Drops for routes that say no: (reason, ICMP error owed when forwarding).
REFUSALS: Final = {
    RouteType.BLACKHOLE: (DropReason.BLACKHOLE, None),
    RouteType.UNREACHABLE: (DropReason.UNREACHABLE, (3, 1)),
    RouteType.PROHIBIT: (DropReason.PROHIBITED, (3, 13)),
}


class Ipv4Path:
    """Takes packets through the hooks and tables of its namespace."""

    def __init__(self, ns: NetNs) -> None:
        self._ns = ns
        self._reassembler = Reassembler(ns)

    def hook(self, hook: Hook, packet: Packet, in_dev: str, out_dev: str) -> Drop | None:
        """Ask netfilter; what it counted and tracked goes into the flow log."""
        drop: Drop | None = self._ns.netfilter.hook(hook, packet, in_dev, out_dev)
        flow = packet.flow
        connection = packet.ct
        if connection is not None:
            self._ns.sweep_later()
        if flow is not None:
            flow.settle(len(packet.data))
            if connection is not None and all(c is not connection for c, *_ in flow.connections):
                flow.connections.append((connection, packet.ct_reply, len(packet.data)))
        return drop

    # -- in --------------------------------------------------------------------------------------

    def receive(self, dev: Device, skb: Skb) -> None:
        """ip_rcv: take the payload of a frame addressed to us."""
        ns = self._ns
        loop = skb.packet if dev.kind == "lo" else None
        if loop is not None:
            self._receive_loopback(dev, loop)
            return
        if skb.prerouted and skb.packet is not None:
            packet = skb.packet
            packet.flow, packet.trace = skb.flow, skb.trace
        else:
            if not skb.gso_size:
                try:
                    skb.data = ipv4.validate(skb.data)
                except WireError as error:
                    bad = "checksum" in str(error)
                    reason = DropReason.BAD_CHECKSUM if bad else DropReason.BAD_HEADER
                    ns.count_drop(Drop(reason, str(error)), skb)
                    return
            packet = skb.as_packet(dev.name)
            whole = self.defragment(packet)
            if whole is None:
                return
            packet = whole
            drop = self.hook(Hook.PREROUTING, packet, dev.name, "")
            if drop is not None:
                ns.end(packet, drop)
                return
        drop = self._route_input(dev, packet)
        if drop is not None:
            ns.end(packet, drop)

    def defragment(self, packet: Packet) -> Packet | None:
        """nf_defrag: connection tracking sees whole packets only; None if more must come."""
        data = packet.data
        if not (data[6] & 0x3F or data[7]) or not getattr(self._ns.netfilter, "tracking", False):
            return packet
        return self._reassembler.add(packet)

    def _receive_loopback(self, dev: Device, packet: Packet) -> None:
        # The packet kept its connection and its route on the way through lo.
        packet.in_dev = dev.name
        drop = self.hook(Hook.PREROUTING, packet, dev.name, "")
        if drop is None:
            drop = self._deliver(dev, packet)
        if drop is not None:
            self._ns.end(packet, drop)

    def _route_input(self, dev: Device, packet: Packet) -> Drop | None:
        """ip_route_input_slow: martians, then local, broadcast or forward."""
        ns = self._ns
        src, dst = packet.src, packet.dst
        if _MULTICAST_FIRST <= src <= _MULTICAST_LAST or src == IP_MAX:
            return Drop(DropReason.MARTIAN, f"martian source {format_ip(src)} from dev {dev.name}")
        if dst == IP_MAX or (src == 0 and dst == 0):
            return self._deliver(dev, packet)
        loopback_allowed = ns.device_sysctl("route_localnet", dev.name)
        if src >> 24 == 0 or (src >> 24 == 127 and not loopback_allowed):
            return Drop(DropReason.MARTIAN, f"martian source {format_ip(src)} from dev {dev.name}")
        if dst >> 24 == 0 or (dst >> 24 == 127 and not loopback_allowed):
            return Drop(
                DropReason.MARTIAN, f"martian destination {format_ip(dst)} from dev {dev.name}"
            )
        if _MULTICAST_FIRST <= dst <= _MULTICAST_LAST:
            return Drop(DropReason.NOT_FOR_US, f"multicast {format_ip(dst)} nobody joined")
        route = ns.local.lookup(dst) or ns.main.match(dst)
        drop = self._validate_source(dev, src)
        if drop is not None:
            return drop
        if route is not None and route.type in (RouteType.LOCAL, RouteType.BROADCAST):
            if packet.trace is not None:
                packet.trace.step(ns.name, "route", f"{format_ip(dst)} is {route.type}", packet)
            return self._deliver(dev, packet)
        if not ns.forwards(dev.name):
            return Drop(
                DropReason.NOT_FORWARDING, f"{format_ip(dst)} is not ours and ip_forward is 0"
            )
        if route is None:
            return Drop(DropReason.NO_ROUTE, f"no route to {format_ip(dst)}", icmp=(3, 0))
        if route.nexthops:
            route = route.path(ns.flow_choice(packet))
        return self._forward(dev, packet, route)

    def _validate_source(self, dev: Device, src: int) -> Drop | None:
        """fib_validate_source: our own address from outside, and reverse path filtering."""
        ns = self._ns
        back = ns.local.lookup(src)
        if back is not None and back.type is not RouteType.UNICAST:
            if ns.device_sysctl("accept_local", dev.name):
                return None
            detail = f"martian source {format_ip(src)} from dev {dev.name}: it is our own"
            return Drop(DropReason.MARTIAN, detail)
        mode = ns.device_sysctl("rp_filter", dev.name)
        if mode:
            back = ns.main.match(src)
            if back is None or (mode == 1 and not back.uses(dev.name)):
                detail = f"reverse path of {format_ip(src)} is not dev {dev.name}"
                return Drop(DropReason.MARTIAN, detail)
        return None

    # -- local delivery --------------------------------------------------------------------------

    def _deliver(self, dev: Device, packet: Packet) -> Drop | None:
        """ip_local_deliver: whole packets, INPUT, then the protocol."""
        ns = self._ns
        if packet.data[6] & 0x3F or packet.data[7]:
            whole = self._reassembler.add(packet)
            if whole is None:
                return None
            packet = whole
        drop = self.hook(Hook.INPUT, packet, dev.name, "")
        if drop is not None:
            ns.end(packet, drop)
            return None
        drop = self._to_protocol(dev, packet)
        if drop is not None:
            ns.end(packet, drop)
        return None

    def _to_protocol(self, dev: Device, packet: Packet) -> Drop | None:
        ns = self._ns
        proto = packet.proto
        if proto in (TCP, UDP):
            if proto == UDP and ns.vteps:
                handled, drop = self._to_vtep(packet)
                if handled:
                    return drop
            if packet.trace is not None:
                name = "TCP" if proto == TCP else "UDP"
                packet.trace.step(ns.name, "deliver", f"{name} port {packet.dport}", packet)
            flow = packet.flow
            if flow is not None:
                flow.ends.append(Terminal("local", ns, packet.data, dev=dev.name))
            refused: Drop | None = ns.sockets.deliver(packet)
            return refused
        if proto == ICMP:
            return ns.icmp.receive(packet)
        if proto == IPIP:
            # ip_tunnel_lookup: the tunnel that says most about the two ends.
            fitting = [
                (bool(tunnel.remote), bool(tunnel.local), -number, tunnel)
                for number, tunnel in enumerate(ns.tunnels)
                if tunnel.up
                and tunnel.local in (0, packet.dst)
                and tunnel.remote in (0, packet.src)
            ]
            if fitting:
                return max(fitting)[3].receive_encapsulated(packet)
            if ns.tunnels:
                detail = f"no tunnel to {format_ip(packet.src)} is up"
                return Drop(DropReason.UNKNOWN_PROTOCOL, detail, icmp=(3, 3))
        return Drop(DropReason.UNKNOWN_PROTOCOL, f"protocol {proto} has no receiver", icmp=(3, 2))

    def _to_vtep(self, packet: Packet) -> tuple[bool, Drop | None]:
        """A kernel UDP socket of vxlan devices takes the datagram before any program."""
        ns = self._ns
        port = packet.dport
        if port not in ns.vtep_ports():
            return False, None
        data = packet.data[packet.header_len + 8 :]
        if len(data) < vxlan.HEADER_LEN or not data[0] & vxlan.FLAG_VNI:
            return True, Drop(DropReason.BAD_HEADER, f"not VXLAN on port {port}")
        vni = int.from_bytes(data[4:7], "big")
        vtep = ns.vteps.get((port, vni))
        if vtep is None:
            return True, Drop(DropReason.BAD_VNI, f"no vxlan device has vni {vni}, port {port}")
        vtep.receive_encapsulated(packet, data[vxlan.HEADER_LEN :])
        return True, None

    # -- forwarding ------------------------------------------------------------------------------

    def _forward(self, dev: Device, packet: Packet, route: Route) -> Drop | None:
        """ip_forward."""
        ns = self._ns
        refusal = REFUSALS.get(route.type)
        if refusal is not None:
            return Drop(refusal[0], f"{route.type} {route.dst}", icmp=refusal[1])
        if packet.trace is not None:
            packet.trace.step(ns.name, "route", ns.route_text(route, packet.dst), packet)
        if packet.ttl <= 1:
            return Drop(DropReason.TTL_EXPIRED, f"ttl {packet.ttl} at {ns.name}", icmp=(11, 0))
        out = ns.devices[route.dev]
        mtu = route.mtu or out.mtu
        data = packet.data
        if data[6] & 0x40 and self._too_big(packet, mtu):
            detail = f"{len(data)} bytes with DF, dev {out.name} has mtu {mtu}"
            return Drop(DropReason.TOO_BIG, detail, icmp=(3, 4), mtu=mtu)
        packet.replace(ipv4.decrement_ttl(data))
        drop = self.hook(Hook.FORWARD, packet, dev.name, out.name)
        if drop is not None:
            return drop
        return self._finish(out, packet, route)

    @staticmethod
    def _too_big(packet: Packet, mtu: int) -> bool:
        if not packet.gso_size:
            return len(packet.data) > mtu
        data, start = packet.data, packet.header_len
        if packet.proto == IPIP:
            start += (data[start] & 15) * 4
        return start + (data[start + 12] >> 4) * 4 + packet.gso_size > mtu

    def _finish(self, out: Device, packet: Packet, route: Route) -> Drop | None:
        """ip_output: POSTROUTING, fragments, the neighbour."""
        drop = self.hook(Hook.POSTROUTING, packet, "", out.name)
        if drop is not None:
            return drop
        mtu = route.mtu or out.mtu
        if self._too_big(packet, mtu):
            if packet.data[6] & 0x40:
                # Netfilter made it longer, or the device shrank since the first look.
                detail = f"{len(packet.data)} bytes with DF, dev {out.name} has mtu {mtu}"
                return Drop(DropReason.TOO_BIG, detail, icmp=(3, 4), mtu=mtu)
            return self._send_fragments(out, packet, route, mtu)
        if packet.flow is not None:
            packet.flow.limit(mtu, len(packet.data))
        return self._to_neighbour(out, packet, route)

    def _send_fragments(self, out: Device, packet: Packet, route: Route, mtu: int) -> Drop | None:
        if packet.flow is not None:
            packet.flow.cacheable = False
        drop: Drop | None = None
        for piece in ipv4.fragment(packet.data, mtu):
            part = Packet(piece, in_dev=packet.in_dev)
            part.mark, part.trace = packet.mark, packet.trace
            drop = self._to_neighbour(out, part, route) or drop
        return drop

    def _to_neighbour(self, out: Device, packet: Packet, route: Route) -> Drop | None:
        nexthop = route.gateway if route.gateway is not None else packet.dst
        if not out.arp:
            # Tunnels without Ethernet read the nexthop where the address of a frame would be.
            far = b"" if out.ethernet else nexthop.to_bytes(4, "big")
            out.transmit(Skb.of(packet, far if not out.ethernet else out.mac, out.mac))
            return None
        if route.type is RouteType.BROADCAST or nexthop == IP_MAX:
            out.transmit(Skb.of(packet, BROADCAST_MAC, out.mac))
            return None
        if _MULTICAST_FIRST <= nexthop <= _MULTICAST_LAST:
            group = b"\x01\x00\x5e" + (nexthop & 0x7FFFFF).to_bytes(3, "big")
            out.transmit(Skb.of(packet, group, out.mac))
            return None
        # What the device refuses it has counted itself.
        self._ns.neigh.send(out, nexthop, packet)
        return None

    # -- out -------------------------------------------------------------------------------------

    def output_packet(self, packet: Packet, oif: str) -> Drop | None:
        """Send a packet made in this namespace; a Drop is for the sender and already counted."""
        ns = self._ns
        route = self._way_out(packet, oif)
        drop = self._refused(packet, route)
        if drop is not None:
            return self._fail(packet, drop, owed=False)
        assert route is not None
        out = self._out_device(route)
        before = (packet.src, packet.dst, packet.mark)
        drop = self.hook(Hook.OUTPUT, packet, "", out.name)
        if drop is not None:
            return self._fail(packet, drop, owed=True)
        if (packet.src, packet.dst, packet.mark) != before:
            # ip_route_me_harder: destination NAT may lead elsewhere.
            route = self._way_out(packet, oif)
            drop = self._refused(packet, route)
            if drop is not None:
                return self._fail(packet, drop, owed=False)
            assert route is not None
            out = self._out_device(route)
        if packet.trace is not None:
            packet.trace.step(ns.name, "route", ns.route_text(route, packet.dst), packet)
        if route.type is RouteType.LOCAL:
            return self._loop_back(out, packet)
        mtu = min(route.mtu or out.mtu, ns.path_mtu(packet.dst) or out.mtu)
        if packet.data[6] & 0x40 and self._too_big(packet, mtu):
            detail = f"{len(packet.data)} bytes with DF, the route has mtu {mtu}"
            drop = Drop(DropReason.TOO_BIG, detail, icmp=(3, 4), mtu=mtu)
            return self._fail(packet, drop, owed=False)
        drop = self._finish(out, packet, route)
        return self._fail(packet, drop, owed=True) if drop is not None else None

    def _way_out(self, packet: Packet, oif: str) -> Route | None:
        ns = self._ns
        return ns.route_output(packet.dst, oif, ns.flow_choice(packet))

    def _out_device(self, route: Route) -> Device:
        ns = self._ns
        return ns.lo if route.type is RouteType.LOCAL else ns.devices[route.dev]

    def _refused(self, packet: Packet, route: Route | None) -> Drop | None:
        if route is None:
            return Drop(DropReason.NO_ROUTE, f"no route to {format_ip(packet.dst)}", icmp=(3, 0))
        refusal = REFUSALS.get(route.type)
        if refusal is not None:
            return Drop(refusal[0], f"{route.type} {route.dst}", icmp=refusal[1])
        return None

    def _fail(self, packet: Packet, drop: Drop, *, owed: bool) -> Drop:
        """Count a drop the sender is told of; only netfilter's also gets an ICMP error."""
        self._ns.end(packet, drop if owed else drop._replace(icmp=None))
        return drop

    def _loop_back(self, lo: Device, packet: Packet) -> Drop | None:
        drop = self.hook(Hook.POSTROUTING, packet, "", lo.name)
        if drop is not None:
            return self._fail(packet, drop, owed=True)
        skb = Skb.of(packet, lo.mac, lo.mac)
        skb.packet = packet
        return lo.transmit(skb)
