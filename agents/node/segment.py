"""The piece of the emulated physical network inside a node's process.

``eth0`` is plugged into a switch whose other ports are remote nodes (reached by real sockets) and,
in the same process, the ``outside`` kernel.  ``Segment`` is that switch as the underlay driver sees
it: what leaves ``eth0`` for a local port is handed over at once, the rest is left to the sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulator.netstack.devices.underlay import Egress, Underlay


class Segment:
    """Joins two underlay devices; stands before ``eth0`` in the underlay driver."""

    def __init__(self, eth0: Underlay, outside: Underlay) -> None:
        self._eth0 = eth0
        self._outside = outside
        self._local: set[int] = set()
        self.receive_vxlan = eth0.receive_vxlan
        self.receive_carrier = eth0.receive_carrier
        self.peer_set = eth0.peer_set
        self.peer_del = eth0.peer_del

    def join(self, ip: int, mac: bytes) -> None:
        """Give ``outside`` an address on the segment; ``eth0`` finds it by ARP."""
        self._local.add(ip)
        self._eth0.peer_set(ip, mac)

    @property
    def egress(self) -> list[Egress]:
        """What is still to leave ``eth0``, after local ports took theirs."""
        pending = self._eth0.egress
        if self._local and any(item.dst_ip in self._local for item in pending):
            mine = [item for item in pending if item.dst_ip in self._local]
            pending[:] = [item for item in pending if item.dst_ip not in self._local]
            for item in mine:
                self._outside.receive_carrier(item.payload, item.segment_size)
        return pending

    def drain_outside(self) -> None:
        """Hand everything that leaves ``outside`` to ``eth0``: its only neighbour here."""
        pending = list(self._outside.egress)
        self._outside.egress.clear()
        for item in pending:
            self._eth0.receive_carrier(item.payload, item.segment_size)
