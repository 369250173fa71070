"""Learnt and permanent forwarding entries of bridges and vxlan devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from emulator.netstack.devices.base import Device

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
    """One device's entries by MAC."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: dict[bytes, FdbEntry] = {}

    def expire(self, now: float, ageing_s: float) -> bool:
        """Forget what has not been seen for ``ageing_s``; True if something was."""
        old = [
            mac
            for mac, entry in self.entries.items()
            if not entry.permanent and not entry.local and entry.updated_at + ageing_s <= now
        ]
        for mac in old:
            del self.entries[mac]
        return bool(old)

    def oldest(self) -> float | None:
        """When the learnt entry longest unseen was seen; None without one."""
        return min(
            (e.updated_at for e in self.entries.values() if not e.permanent and not e.local),
            default=None,
        )
