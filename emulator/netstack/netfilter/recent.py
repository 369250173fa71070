"""The lists of -m recent: which addresses were seen, and when (net/netfilter/xt_recent.c)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from emulator.addr import format_ip

if TYPE_CHECKING:
    from collections.abc import Iterator

# Addresses a list remembers; beyond it the one seen longest ago goes (ip_list_tot=100).
MAX_ADDRESSES: Final = 100
# Times remembered of one address (ip_pkt_list_tot; 255 since Linux 3.19 and enough for --hitcount).
MAX_STAMPS: Final = 255
# Lists of one namespace: kube-proxy makes one an endpoint with session affinity.
MAX_LISTS: Final = 4096


class Entry:
    """One address: the TTL of its last packet and when its packets came, oldest first."""

    __slots__ = ("stamps", "ttl")

    def __init__(self, ttl: int) -> None:
        self.ttl = ttl
        self.stamps: deque[float] = deque(maxlen=MAX_STAMPS)

    def hits_since(self, since: float | None) -> int:
        """Return how many packets came at or after ``since``; all of them for None."""
        if since is None:
            return len(self.stamps)
        return sum(1 for stamp in self.stamps if stamp >= since)


class RecentList:
    """One named list; entries are in the order they were last seen."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, ip: int, ttl: int) -> Entry | None:
        """Return the entry of an address; with a TTL given, only if it was seen with that TTL."""
        entry = self._entries.get(ip)
        if entry is not None and ttl and entry.ttl != ttl:
            return None
        return entry

    def touch(self, ip: int, now: float, ttl: int) -> None:
        """Note a packet of an address."""
        entry = self._entries.pop(ip, None)
        if entry is None:
            if len(self._entries) >= MAX_ADDRESSES:
                del self._entries[next(iter(self._entries))]
            entry = Entry(ttl)
        self._entries[ip] = entry
        entry.ttl = ttl
        entry.stamps.append(now)

    def remove(self, ip: int) -> None:
        """Forget an address."""
        self._entries.pop(ip, None)

    def reap(self, before: float, *, spare: int | None) -> None:
        """Forget the address seen longest ago if that was before ``before``; one a call."""
        oldest = next(iter(self._entries), None)
        if oldest is None or oldest == spare:
            return
        if self._entries[oldest].stamps[-1] < before:
            del self._entries[oldest]

    def render(self) -> str:
        """Return the text of /proc/net/xt_recent/NAME, times in milliseconds."""
        lines = []
        for ip, entry in self._entries.items():
            stamps = [str(int(stamp * 1000)) for stamp in entry.stamps]
            lines.append(
                f"src={format_ip(ip)} ttl: {entry.ttl} last_seen: {stamps[-1]} "
                f"oldest_pkt: {len(stamps)} {', '.join(stamps)}\n"
            )
        return "".join(lines)


class RecentLists:
    """All lists of a namespace by name."""

    def __init__(self) -> None:
        self._lists: dict[str, RecentList] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._lists)

    def get(self, name: str) -> RecentList:
        """Return a list, made if it is new; rules of one name share it."""
        found = self._lists.get(name)
        if found is None:
            if len(self._lists) >= MAX_LISTS:
                del self._lists[next(iter(self._lists))]
            found = self._lists[name] = RecentList()
        return found

    def keep_only(self, names: set[str]) -> None:
        """Drop the lists that no rule names any more, as the kernel does."""
        for name in [name for name in self._lists if name not in names]:
            del self._lists[name]
