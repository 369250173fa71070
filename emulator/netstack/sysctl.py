"""The settings of a namespace by dotted name (net/ipv4/devinet.c, neighbour.c, route.c).

Only what somebody set is stored; what nobody set has the kernel's default, so that a namespace of
many devices costs nothing.  A device starts with the settings of ``default``, as in Linux.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.netstack.kernel import Kernel

# Settings a namespace has once, with their defaults; those in force here and those often looked at.
GLOBAL: Final = {
    "net.ipv4.fib_multipath_hash_policy": 0,
    "net.ipv4.icmp_echo_ignore_all": 0,
    "net.ipv4.icmp_echo_ignore_broadcasts": 1,
    "net.ipv4.ip_default_ttl": 64,
    "net.ipv4.ip_forward": 0,
    "net.ipv4.tcp_syncookies": 1,
    "net.netfilter.nf_conntrack_max": 65536,
}
# net.ipv4.conf.DEVICE.*, for ``all`` and ``default`` too.
CONF: Final = {
    "accept_local": 0,
    "accept_redirects": 1,
    "accept_source_route": 1,
    "arp_accept": 0,
    "arp_announce": 0,
    "arp_filter": 0,
    "arp_ignore": 0,
    "arp_notify": 0,
    "forwarding": 0,
    "log_martians": 0,
    "medium_id": 0,
    "proxy_arp": 0,
    "proxy_arp_pvlan": 0,
    "route_localnet": 0,
    "rp_filter": 0,
    "secure_redirects": 1,
    "send_redirects": 1,
    "shared_media": 1,
    "src_valid_mark": 0,
}
# net.ipv4.neigh.DEVICE.*, for ``default`` too.  proxy_delay is in hundredths of a second.
NEIGH: Final = {
    "base_reachable_time_ms": 30000,
    "delay_first_probe_time": 5,
    "gc_stale_time": 60,
    "mcast_solicit": 3,
    "proxy_delay": 80,
    "proxy_qlen": 64,
    "retrans_time_ms": 1000,
    "ucast_solicit": 3,
    "unres_qlen": 101,
    "unres_qlen_bytes": 212992,
}
_CONF: Final = "net.ipv4.conf."
_NEIGH: Final = "net.ipv4.neigh."


class Sysctl(dict[str, int]):
    """What was set; cached flows do not outlive a change."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self._kernel = kernel

    def __setitem__(self, name: str, value: int) -> None:
        super().__setitem__(name, value)
        self._kernel.invalidate_flows()

    def read(self, name: str, devices: Iterable[str]) -> int | None:
        """The value in force; None if a namespace with these devices has no such setting."""
        if name in self:
            return self[name]
        if name in GLOBAL:
            return GLOBAL[name]
        for prefix, known, special in (
            (_CONF, CONF, ("all", "default")),
            (_NEIGH, NEIGH, ("default",)),
        ):
            if name.startswith(prefix):
                dev, _, key = name[len(prefix) :].rpartition(".")
                if key not in known or (dev not in special and dev not in devices):
                    return None
                if key == "forwarding":
                    return self.get("net.ipv4.ip_forward", 0)
                return known[key]
        return None

    def names(self, devices: Iterable[str]) -> list[str]:
        """Every setting of a namespace with these devices, sorted."""
        every = dict.fromkeys((*self, *GLOBAL))
        for prefix, known, special in (
            (_CONF, CONF, ("all", "default")),
            (_NEIGH, NEIGH, ("default",)),
        ):
            for dev in (*special, *devices):
                every |= dict.fromkeys(f"{prefix}{dev}.{key}" for key in known)
        return sorted(every)

    def device_added(self, dev: str) -> None:
        """A device starts with the settings of ``default`` (inetdev_init)."""
        for prefix in (_CONF, _NEIGH):
            start = f"{prefix}default."
            for name, value in [item for item in self.items() if item[0].startswith(start)]:
                super().__setitem__(f"{prefix}{dev}.{name[len(start) :]}", value)

    def device_removed(self, dev: str) -> None:
        """A device's settings go with it."""
        for name in [n for n in self if n.startswith((f"{_CONF}{dev}.", f"{_NEIGH}{dev}."))]:
            del self[name]

    def device_renamed(self, old: str, new: str) -> None:
        """A device keeps its settings under its new name."""
        for kind in (_CONF, _NEIGH):
            before, after = f"{kind}{old}.", f"{kind}{new}."
            for name in [n for n in self if n.startswith(before)]:
                super().__setitem__(after + name[len(before) :], self.pop(name))
