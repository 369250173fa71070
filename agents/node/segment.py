"""The piece of the emulated physical network inside a node's process.

``eth0`` is plugged into a switch whose other ports are remote nodes (reached by real sockets) and,
in the same process, the ``outside`` kernel.  ``Segment`` is that switch as the underlay driver sees
it: what leaves ``eth0`` for a local port is handed over at once, the rest is left to the sockets.
Nodes of other subnets are behind the gateway, a router whose way to them is the same sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.netstack.devices.underlay import Egress
from emulator.netstack.packet import UDP
from emulator.wire import ipv4

if TYPE_CHECKING:
    from emulator.netstack.devices.underlay import Underlay

_UDP_HEADER: Final = 8


class Segment:
    """Joins two underlay devices; stands before ``eth0`` in the underlay driver."""

    def __init__(self, eth0: Underlay, outside: Underlay) -> None:
        self._eth0 = eth0
        self._outside = outside
        self._local: set[int] = set()
        self._remote: set[int] = set()
        self.receive_vxlan = eth0.receive_vxlan
        self.receive_carrier = eth0.receive_carrier

    def join(self, ip: int, mac: bytes) -> None:
        """Give ``outside`` an address on the segment; ``eth0`` finds it by ARP."""
        self._local.add(ip)
        self._eth0.peer_set(ip, mac)

    def peer_set(self, ip: int, mac: bytes) -> None:
        """A remote node is reachable."""
        self._remote.add(ip)
        self._eth0.peer_set(ip, mac)

    def peer_del(self, ip: int) -> None:
        """A remote node is gone."""
        self._remote.discard(ip)
        self._eth0.peer_del(ip)

    @property
    def egress(self) -> list[Egress]:
        """What is still to leave ``eth0``, after local ports took theirs."""
        pending = self._eth0.egress
        if self._local and any(item.dst_ip in self._local for item in pending):
            leaving = []
            for item in pending:
                if item.dst_ip in self._local:
                    # All local ports have one MAC: which address was meant does not show here.
                    onward = self._routed(item)
                    if onward is None:
                        self._outside.receive_carrier(item.payload, item.segment_size)
                        continue
                    item = onward
                leaving.append(item)
            pending[:] = leaving
        return pending

    def _routed(self, item: Egress) -> Egress | None:
        """What the gateway makes of packets for a node of another subnet.

        None for what is not for such a node, or what the gateway must answer itself.
        """
        if item.kind != "carrier" or len(item.payload) < ipv4.HEADER_LEN:
            return None
        peer = int.from_bytes(item.payload[16:20], "big")
        # One batch is one flow: what holds for its first packet holds for all.
        if peer not in self._remote or item.payload[8] <= 1:
            return None
        return forwarded(item, peer, self._eth0.vxlan_port)

    def drain_outside(self) -> None:
        """Hand everything that leaves ``outside`` to ``eth0``: its only neighbour here."""
        pending = list(self._outside.egress)
        self._outside.egress.clear()
        for item in pending:
            self._eth0.receive_carrier(item.payload, item.segment_size)


def forwarded(item: Egress, peer: int, vxlan_port: int) -> Egress:
    """A batch of whole packets one hop later, on its way to the node ``peer``.

    VXLAN datagrams go on as such: the other end expects them on their port.
    """
    size = item.segment_size or len(item.payload)
    pieces = [
        ipv4.decrement_ttl(item.payload[at : at + size]) for at in range(0, len(item.payload), size)
    ]
    head = pieces[0]
    start = (head[0] & 15) * 4
    fragment = head[6] & 0x3F or head[7]
    if head[9] == UDP and not fragment and len(head) >= start + _UDP_HEADER:
        src_port, dst_port = (int.from_bytes(head[at : at + 2], "big") for at in (start, start + 2))
        if dst_port == vxlan_port:
            cut = start + _UDP_HEADER
            length = item.segment_size - cut if item.segment_size else 0
            return Egress(
                peer, "vxlan", b"".join([piece[cut:] for piece in pieces]), length, src_port
            )
    return Egress(peer, "carrier", b"".join(pieces), item.segment_size)
