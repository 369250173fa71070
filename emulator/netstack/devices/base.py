"""What every network device has: index, name, address, flags, counters, taps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from emulator.netstack.packet import Counter, Drop, DropReason
from emulator.netstack.records import LinkInfo
from emulator.wire.ethernet import ETHERTYPE_ARP, ETHERTYPE_IPV4, HEADER_LEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.netstack.devices.bridge import Bridge
    from emulator.netstack.netns import NetNs
    from emulator.netstack.skb import Skb

    Tap = Callable[[bytes, bool], None]

ETH_MIN_MTU: Final = 68  # ETH_MIN_MTU of linux/if_ether.h
ETH_MAX_MTU: Final = 65535
# A frame that crosses this many devices of one host goes round in circles.
MAX_HOPS: Final = 256


class Device:
    """One network device.  ``taps`` get each frame and whether it is outbound."""

    kind: ClassVar[str] = ""
    # False: nothing to resolve, frames go to whoever is at the other end (IFF_NOARP).
    arp: ClassVar[bool] = True
    ethernet: ClassVar[bool] = True
    default_mtu: ClassVar[int] = 1500
    max_mtu: ClassVar[int] = ETH_MAX_MTU
    min_mtu: ClassVar[int] = ETH_MIN_MTU
    # What RX bytes count beyond the payload: hardware and veth see the Ethernet header, the devices
    # that take it off themselves (bridge, vxlan) do not.
    rx_header: ClassVar[int] = HEADER_LEN
    # Devices that know no carrier are in state UNKNOWN when up; no carrier is DOWN, or what a
    # stacked device says.
    reports_carrier: ClassVar[bool] = False
    no_carrier_state: ClassVar[str] = "DOWN"
    qdisc: ClassVar[str] = "noqueue"

    def __init__(self, ns: NetNs, name: str, mac: bytes) -> None:
        self.ns = ns
        self.name = name
        self.index = 0
        self.mac = mac
        self.mtu = self.default_mtu
        self.up = False
        self.ever_up = False
        self.txqlen = 1000
        self.master: Bridge | None = None
        self.hairpin = False
        self.rx = Counter()
        self.tx = Counter()
        self.rx_dropped = 0
        self.tx_dropped = 0
        self.taps: tuple[Tap, ...] = ()
        # Called once, when the device is taken out.
        self.on_removed: tuple[Callable[[], None], ...] = ()

    # -- state -----------------------------------------------------------------------------------

    @property
    def carrier(self) -> bool:
        """LOWER_UP: the other end could hear us."""
        return self.up

    def on_change(self) -> None:
        """Up, down, MTU or master changed; devices that depend on others override it."""

    def destroy(self) -> None:
        """Let go of what the device holds elsewhere."""

    def info(self) -> LinkInfo:
        """A record for dumps."""
        return LinkInfo(**self._fields())  # type: ignore[arg-type]

    def _fields(self) -> dict[str, object]:
        return {
            "index": self.index,
            "name": self.name,
            "kind": self.kind,
            "mac": self.mac,
            "mtu": self.mtu,
            "up": self.up,
            "running": self.up and self.carrier,
            "operstate": self._operstate(),
            "qdisc": self.qdisc if self.ever_up else "noop",
            "txqlen": self.txqlen,
            "master": self.master.name if self.master is not None else "",
            "hairpin": self.hairpin,
            "noarp": not self.arp,
            "rx_packets": self.rx.packets,
            "rx_bytes": self.rx.bytes,
            "rx_dropped": self.rx_dropped,
            "tx_packets": self.tx.packets,
            "tx_bytes": self.tx.bytes,
            "tx_dropped": self.tx_dropped,
        }

    def _operstate(self) -> str:
        if not self.up:
            return "DOWN"
        if not self.carrier:
            return self.no_carrier_state
        return "UP" if self.reports_carrier else "UNKNOWN"

    # -- frames ----------------------------------------------------------------------------------

    def transmit(self, skb: Skb) -> Drop | None:
        """Send a frame; a Drop says why it did not leave (already counted)."""
        if not self.up:
            return self._lose(skb, Drop(DropReason.DEVICE_DOWN, f"dev {self.name} is down"))
        length = skb.length if self.ethernet else len(skb.data)
        self.tx.packets += 1
        self.tx.bytes += length
        flow = skb.flow
        if flow is not None:
            flow.counters.append(self.tx)
            flow.settle(length)
            flow.limit(self.mtu, len(skb.data))
        if self.taps:
            self._tap(skb, True)
        if skb.trace is not None:
            self.trace(skb, "device", f"{self.name} transmits")
        drop = self._xmit(skb)
        if drop is not None:
            self._lose(skb, drop)
        return drop

    def _xmit(self, skb: Skb) -> Drop | None:
        """Hand a frame to the other end; each kind has its own."""
        raise AssertionError(f"{self.kind} does not transmit")

    def receive(self, skb: Skb) -> None:
        """Take a frame that arrived."""
        if not self.up:
            self.rx_dropped += 1
            self.ns.count_drop(Drop(DropReason.DEVICE_DOWN, f"dev {self.name} is down"), skb)
            return
        length = len(skb.data) + self.rx_header
        self.rx.packets += 1
        self.rx.bytes += length
        flow = skb.flow
        if flow is not None:
            flow.counters.append(self.rx)
            flow.settle(length)
        if self.taps:
            self._tap(skb, False)
        if skb.trace is not None:
            self.trace(skb, "device", f"{self.name} receives")
        master = self.master
        if master is not None:
            master.receive_from_port(self, skb)
        else:
            self.deliver(skb)

    def deliver(self, skb: Skb) -> None:
        """Pass a frame up to the protocols if it is for us."""
        dst = skb.dst
        if dst != self.mac and not dst[0] & 1 and self.ethernet:
            self.ns.count_drop(Drop(DropReason.NOT_FOR_US, f"dev {self.name}: another MAC"), skb)
            return
        if skb.ethertype == ETHERTYPE_IPV4:
            self.ns.ip.receive(self, skb)
        elif skb.ethertype == ETHERTYPE_ARP:
            self.ns.arp.receive(self, skb)
        else:
            detail = f"ethertype {skb.ethertype:#06x}"
            self.ns.count_drop(Drop(DropReason.UNKNOWN_PROTOCOL, detail), skb)

    def _lose(self, skb: Skb, drop: Drop) -> Drop:
        self.tx_dropped += 1
        self.ns.count_drop(drop, skb)
        return drop

    def _tap(self, skb: Skb, outbound: bool) -> None:
        frame = skb.frame() if self.ethernet else skb.data
        for tap in self.taps:
            tap(frame, outbound)

    def trace(self, skb: Skb, stage: str, detail: str) -> None:
        """Record a step of a traced frame."""
        if skb.trace is not None and skb.ethertype == ETHERTYPE_IPV4:
            skb.trace.step(self.ns.name, stage, detail, skb.as_packet(self.name))

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} in {self.ns.name}>"
