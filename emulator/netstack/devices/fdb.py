"""Learnt and permanent forwarding entries of bridges and vxlan devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from emulator.netstack.devices.base import Device
    from emulator.netstack.kernel import Kernel
    from emulator.netstack.skb import Skb
    from emulator.netstack.timers import Timer

# Entries learnt by one device; more are not learnt, their frames are flooded.  Linux has no bound
# by default (fdb_max_learned, vxlan maxaddr); a node has 110 pods.
MAX_LEARNED: Final = 4096
AGEING_S: Final = 300  # BR_DEFAULT_AGEING_TIME, and vxlan's FDB_AGE_DEFAULT


class FdbEntry:
    """Where frames for ``mac`` go: a bridge port, or for a vxlan device the VTEP ``dst``.

    ``local`` marks a bridge's own addresses, ``permanent`` entries a person made.
    """

    __slots__ = ("dst", "local", "mac", "permanent", "port", "updated_at")

    def __init__(
        self,
        mac: bytes,
        *,
        port: Device | None = None,
        dst: int = 0,
        permanent: bool = False,
        local: bool = False,
        now: float = 0.0,
    ) -> None:
        self.mac = mac
        self.port = port
        self.dst = dst
        self.permanent = permanent
        self.local = local
        self.updated_at = now


class Fdb:
    """One device's entries by MAC: learnt ones age, permanent and local ones stay."""

    __slots__ = ("_kernel", "_timer", "ageing_s", "entries")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._timer: Timer | None = None
        self.ageing_s: float = AGEING_S
        self.entries: dict[bytes, FdbEntry] = {}

    def learn(self, skb: Skb, *, port: Device | None = None, dst: int = 0) -> None:
        """The sender of a frame is behind ``port`` or the VTEP ``dst``."""
        mac = skb.src
        if mac[0] & 1:
            return
        kernel = self._kernel
        now = kernel.clock()
        entry = self.entries.get(mac)
        if entry is None:
            if len(self.entries) >= MAX_LEARNED:
                return
            entry = self.entries[mac] = FdbEntry(mac, port=port, dst=dst, now=now)
            kernel.invalidate_flows()
            if self._timer is None:
                self._timer = kernel.timers.at(now + self.ageing_s, self._age)
        elif not (entry.local or entry.permanent) and (entry.port is not port or entry.dst != dst):
            entry.port, entry.dst = port, dst
            kernel.invalidate_flows()
        entry.updated_at = now
        if skb.flow is not None:
            skb.flow.stations.append(entry)

    def _age(self) -> None:
        """Forget what has not been seen for ``ageing_s``."""
        now = self._kernel.clock()
        learnt = [e for e in self.entries.values() if not e.permanent and not e.local]
        seen_at = None
        for entry in learnt:
            if entry.updated_at + self.ageing_s <= now:
                del self.entries[entry.mac]
                self._kernel.invalidate_flows()
            elif seen_at is None or entry.updated_at < seen_at:
                seen_at = entry.updated_at
        self._timer = None
        if seen_at is not None:
            self._timer = self._kernel.timers.at(seen_at + self.ageing_s, self._age)

    def close(self) -> None:
        """The device is gone."""
        if self._timer is not None:
            self._timer.cancel()
