"""lo, dummy and veth: the devices without state of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from emulator.netstack.devices.base import ETH_MAX_MTU, MAX_HOPS, Device
from emulator.netstack.packet import Drop, DropReason

if TYPE_CHECKING:
    from emulator.netstack.netns import NetNs
    from emulator.netstack.skb import Skb


class Loopback(Device):
    """lo: what it sends comes back in."""

    kind: ClassVar[str] = "lo"
    arp: ClassVar[bool] = False
    default_mtu: ClassVar[int] = 65536
    max_mtu: ClassVar[int] = 1 << 30
    min_mtu: ClassVar[int] = 0
    rx_header: ClassVar[int] = 0

    def _xmit(self, skb: Skb) -> Drop | None:
        # loopback_xmit has taken the Ethernet header off before it counts.
        self.tx.bytes -= skb.length - len(skb.data)
        if skb.flow is not None:
            skb.flow.lengths[-1] = len(skb.data)
        self.ns.kernel.backlog(self, skb)
        return None


class Dummy(Device):
    """dummy: what it sends is gone."""

    kind: ClassVar[str] = "dummy"
    arp: ClassVar[bool] = False
    min_mtu: ClassVar[int] = 0

    def _xmit(self, skb: Skb) -> Drop | None:
        if skb.flow is not None:
            skb.flow.cacheable = False
        return None


class Veth(Device):
    """One end of a pair; the other end may be in another namespace."""

    kind: ClassVar[str] = "veth"
    reports_carrier: ClassVar[bool] = True
    no_carrier_state: ClassVar[str] = "LOWERLAYERDOWN"

    def __init__(self, ns: NetNs, name: str, mac: bytes) -> None:
        super().__init__(ns, name, mac)
        self.peer: Veth | None = None

    @property
    def carrier(self) -> bool:
        """Both ends are up."""
        return self.up and self.peer is not None and self.peer.up

    def on_change(self) -> None:
        """The other end gained or lost its carrier."""
        if self.peer is not None and self.peer.master is not None:
            self.peer.master.port_changed()

    def destroy(self) -> None:
        """The pair goes together."""
        peer, self.peer = self.peer, None
        if peer is not None:
            peer.peer = None
            peer.ns.link_table.remove(peer)

    def _fields(self) -> dict[str, object]:
        fields = super()._fields()
        peer = self.peer
        if peer is not None:
            fields["link_index"] = peer.index
            if peer.ns is self.ns:
                fields["link_name"] = peer.name
                fields["link_down"] = not peer.up
            else:
                fields["link_netnsid"] = self.ns.netnsid(peer.ns)
        return fields

    def _xmit(self, skb: Skb) -> Drop | None:
        peer = self.peer
        if peer is None or not peer.up:
            return Drop(DropReason.DEVICE_DOWN, f"the peer of {self.name} is down")
        if len(skb.data) > peer.mtu and not skb.gso_size:
            return Drop(DropReason.TOO_BIG, f"the peer of {self.name} has mtu {peer.mtu}")
        if skb.flow is not None:
            skb.flow.limit(peer.mtu, len(skb.data))
        if skb.hops > MAX_HOPS:
            return Drop(DropReason.LOOP, f"{MAX_HOPS} veth crossings at {self.name}")
        skb.hops += 1
        # skb_scrub_packet: nothing netfilter knew crosses; the mark stays within a namespace.
        skb.packet = None
        skb.prerouted = False
        if peer.ns is not self.ns:
            skb.mark = 0
        self.ns.kernel.backlog(peer, skb)
        return None


assert Loopback.default_mtu > ETH_MAX_MTU  # lo alone takes a whole super-segment
