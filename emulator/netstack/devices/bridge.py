"""A learning bridge without spanning tree, and what br_netfilter adds to it.

Source: net/bridge/br_input.c, br_forward.c, br_fdb.c, br_netfilter_hooks.c.  With
net.bridge.bridge-nf-call-iptables bridged IPv4 packets pass PREROUTING, FORWARD and POSTROUTING
too; Kubernetes needs it, for only so is the answer of a pod on the same bridge translated back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from emulator.errors import WireError
from emulator.netstack.devices.base import Device
from emulator.netstack.devices.fdb import Fdb, FdbEntry
from emulator.netstack.packet import Drop, DropReason, Hook
from emulator.wire import ipv4
from emulator.wire.ethernet import ETHERTYPE_IPV4

if TYPE_CHECKING:
    from emulator.netstack.netns import NetNs
    from emulator.netstack.packet import Packet
    from emulator.netstack.skb import Skb

MAX_PORTS: Final = 1023  # BR_MAX_PORTS less one
CALL_IPTABLES: Final = "net.bridge.bridge-nf-call-iptables"


class Bridge(Device):
    """A bridge and its own port, the device itself."""

    kind: ClassVar[str] = "bridge"
    reports_carrier: ClassVar[bool] = True
    rx_header: ClassVar[int] = 0

    def __init__(self, ns: NetNs, name: str, mac: bytes, *, mac_given: bool) -> None:
        super().__init__(ns, name, mac)
        self.ports: dict[str, Device] = {}
        self.fdb = Fdb(ns.kernel)
        self._mac_given = mac_given
        self._first_mac = mac
        self._had_port = False

    # -- ports -----------------------------------------------------------------------------------

    @property
    def carrier(self) -> bool:
        """At least one port has a carrier; a bridge that never had a port does not know."""
        if not self._had_port:
            return self.up
        return self.up and any(port.carrier for port in self.ports.values())

    def _operstate(self) -> str:
        if self.up and not self._had_port:
            return "UNKNOWN"
        return super()._operstate()

    def set_mac(self, mac: bytes) -> None:
        """An address given by hand stays whatever ports come."""
        self._forget_local(self.mac)
        self.mac = mac
        self._mac_given = True
        self.fdb.entries[mac] = FdbEntry(mac, local=True)

    def port_add(self, port: Device) -> None:
        """Make a device a port."""
        self.ports[port.name] = port
        self._had_port = True
        port.master = self
        self.fdb.entries[port.mac] = FdbEntry(port.mac, port=port, local=True, permanent=True)
        self.port_changed()

    def port_del(self, port: Device) -> None:
        """A device leaves; what was learnt behind it is forgotten."""
        self.ports.pop(port.name, None)
        port.master = None
        port.hairpin = False
        for mac in [mac for mac, entry in self.fdb.entries.items() if entry.port is port]:
            del self.fdb.entries[mac]
        self.port_changed()

    def port_changed(self) -> None:
        """Ports came, went or changed: the lowest port address is the bridge's (br_stp_if.c)."""
        if not self._mac_given:
            macs = [port.mac for port in self.ports.values()]
            self.mac = min(macs) if macs else self._first_mac
        self.ns.kernel.invalidate_flows()

    def destroy(self) -> None:
        """Free the ports."""
        for port in list(self.ports.values()):
            self.port_del(port)
        self.fdb.close()

    def _forget_local(self, mac: bytes) -> None:
        entry = self.fdb.entries.get(mac)
        if entry is not None and entry.local and entry.port is None:
            del self.fdb.entries[mac]

    # -- frames ----------------------------------------------------------------------------------

    def receive_from_port(self, port: Device, skb: Skb) -> None:
        """br_handle_frame: learn, let netfilter look, then forward or pass up."""
        if not self.up:
            self.ns.count_drop(Drop(DropReason.DEVICE_DOWN, f"dev {self.name} is down"), skb)
            return
        self.fdb.learn(skb, port=port)
        called = skb.ethertype == ETHERTYPE_IPV4 and self.ns.sysctl.get(CALL_IPTABLES)
        if called and not self._prerouting(port, skb):
            return
        self._forward(port, skb)

    def _prerouting(self, port: Device, skb: Skb) -> bool:
        """br_nf_pre_routing: the hook, and a new destination MAC after destination NAT.

        False if the frame ended here or waits for its other fragments.
        """
        ns = self.ns
        if not skb.gso_size:
            try:
                skb.data = ipv4.validate(skb.data)
            except WireError as error:
                ns.count_drop(Drop(DropReason.BAD_HEADER, str(error)), skb)
                return False
        packet = skb.as_packet(self.name)
        packet.physdev_in = port.name
        whole = ns.ip.defragment(packet)
        if whole is None:
            return False
        packet = whole
        before = packet.dst
        drop = ns.ip.hook(Hook.PREROUTING, packet, self.name, "")
        if drop is not None:
            ns.end(packet, drop)
            return False
        skb.packet, skb.prerouted, skb.data = packet, True, packet.data
        if packet.dst != before:
            self._redirect(packet, skb)
        return True

    def _redirect(self, packet: Packet, skb: Skb) -> None:
        """The destination was translated: to a station of this bridge, or up to be routed."""
        route = self.ns.route_output(packet.dst)
        if route is not None and route.dev == self.name and route.type == "unicast":
            nexthop = route.gateway if route.gateway is not None else packet.dst
            mac = self.ns.neigh.resolved(self, nexthop)
            if mac is not None:
                skb.dst = mac
                return
        # A station whose address is not known yet is reached by routing, which asks for it.
        skb.dst = self.mac

    def _forward(self, port: Device | None, skb: Skb) -> None:
        dst = skb.dst
        if dst[0] & 1:
            self._flood(port, skb)
            if port is not None:
                self._pass_up(skb)
            return
        if dst == self.mac:
            if port is not None:
                self._pass_up(skb)
            return
        entry = self.fdb.entries.get(dst)
        if entry is not None and entry.port is not None:
            if entry.local:
                if port is not None:
                    self._pass_up(skb)
                return
            out = entry.port
            if skb.trace is not None:
                self.trace(skb, "fdb", f"{self.name}: {dst.hex(':')} is behind {out.name}")
            if self._may_send(port, out):
                self._send(port, out, skb)
            else:
                detail = f"{self.name}: the port {out.name} has no hairpin or is down"
                self.ns.count_drop(Drop(DropReason.FDB_MISS, detail), skb)
            return
        if skb.trace is not None:
            self.trace(skb, "fdb", f"{self.name}: {dst.hex(':')} is unknown, flooded")
        self._flood(port, skb)

    def _pass_up(self, skb: Skb) -> None:
        """br_pass_frame_up: the bridge's own device receives."""
        length = len(skb.data)
        self.rx.packets += 1
        self.rx.bytes += length
        if skb.flow is not None:
            skb.flow.counters.append(self.rx)
            skb.flow.settle(length)
        if self.taps:
            self._tap(skb, False)
        if skb.trace is not None:
            self.trace(skb, "device", f"{self.name} receives")
        if not skb.dst[0] & 1:
            skb.dst = self.mac
        self.deliver(skb)

    @staticmethod
    def _may_send(port: Device | None, out: Device) -> bool:
        return out.up and (out is not port or out.hairpin)

    def _flood(self, port: Device | None, skb: Skb) -> None:
        for out in list(self.ports.values()):
            if self._may_send(port, out):
                copy = skb.copy()
                copy.packet = skb.packet
                self._send(port, out, copy)

    def _send(self, port: Device | None, out: Device, skb: Skb) -> None:
        if port is not None and skb.packet is not None:
            packet = skb.packet
            ip = self.ns.ip
            drop = ip.hook(Hook.FORWARD, packet, self.name, self.name) or ip.hook(
                Hook.POSTROUTING, packet, "", self.name
            )
            if drop is not None:
                self.ns.end(packet, drop)
                return
            skb.data = packet.data
        if len(skb.data) > out.mtu and not skb.gso_size:
            if skb.packet is not None and not skb.data[6] & 0x40:
                # br_nf_dev_queue_xmit: what connection tracking put together is cut again.
                for piece in ipv4.fragment(skb.data, out.mtu):
                    part = skb.copy()
                    part.data = piece
                    out.transmit(part)
                return
            # is_skb_forwardable: a bridge says nothing, it is not a router.
            detail = f"{len(skb.data)} bytes, {out.name} has mtu {out.mtu}"
            self.ns.count_drop(Drop(DropReason.TOO_BIG, detail), skb)
            return
        out.transmit(skb)

    def _xmit(self, skb: Skb) -> Drop | None:
        skb.packet = None
        self._forward(None, skb)
        return None
