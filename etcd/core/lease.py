"""Leases: a time to live that keys hang on.

Sources: etcd server/lease/lessor.go (expiry every 500 ms, at most 1000 revokes a second, minimum
TTL from the election timeout), server/api/v3rpc/lease.go.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from etcd.core.errors import LEASE_EXISTS, LEASE_NOT_FOUND, LEASE_TTL_TOO_LARGE, EtcdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# ceil(1.5 * the default election timeout of 1 s), as etcd derives it.
MIN_TTL_S = 2
# lease.MaxLeaseTTL.
MAX_TTL_S = 9_000_000_000
# lessor.go checks every 500 ms and revokes at most half of leaseRevokeRate (1000/s) each time.
EXPIRY_INTERVAL_S = 0.5
MAX_REVOKES_PER_CHECK = 500


class Lease:
    """One lease: ``expires_at`` is on the clock the table was given."""

    __slots__ = ("expires_at", "id", "keys", "ttl_s")

    def __init__(self, lease_id: int, ttl_s: int, expires_at: float) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self.expires_at = expires_at
        # Insertion-ordered set of the attached keys.
        self.keys: dict[bytes, None] = {}


class LeaseTable:
    """All leases; time comes in with every call, in seconds."""

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}
        self._lease_of: dict[bytes, int] = {}
        # (expires_at, id) with stale entries; the lease itself knows its true time.
        self._heap: list[tuple[float, int]] = []

    def __contains__(self, lease_id: object) -> bool:
        return lease_id in self._leases

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def get(self, lease_id: int) -> Lease | None:
        """Return a lease that has not been revoked (it may be past its time)."""
        return self._leases.get(lease_id)

    def choose(self, lease_id: int, ttl_s: int, pick: Callable[[], int]) -> tuple[int, int]:
        """Return the (id, TTL) a grant gets; ``pick`` gives 63-bit numbers for id 0."""
        if ttl_s > MAX_TTL_S:
            raise EtcdError(*LEASE_TTL_TOO_LARGE)
        if lease_id in self._leases:
            raise EtcdError(*LEASE_EXISTS)
        while lease_id == 0 or lease_id in self._leases:
            lease_id = pick()
        return lease_id, max(ttl_s, MIN_TTL_S)

    def grant(self, lease_id: int, ttl_s: int, *, now: float) -> Lease:
        """Add a chosen lease."""
        lease = Lease(lease_id, ttl_s, now + ttl_s)
        self._leases[lease_id] = lease
        heapq.heappush(self._heap, (lease.expires_at, lease_id))
        return lease

    def revoke(self, lease_id: int) -> list[bytes]:
        """Remove a lease; return its keys, sorted, for the caller to delete."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            raise EtcdError(*LEASE_NOT_FOUND)
        for key in lease.keys:
            del self._lease_of[key]
        return sorted(lease.keys)

    def renew(self, lease_id: int, *, now: float) -> int:
        """Start a lease's time again; return its TTL, 0 if it is unknown or expired."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.expires_at <= now:
            return 0
        lease.expires_at = now + lease.ttl_s
        return lease.ttl_s

    def renew_all(self, *, now: float) -> None:
        """Give every lease its full time (after a restart nobody knows how long it was down)."""
        self._heap = []
        for lease in self._leases.values():
            lease.expires_at = now + lease.ttl_s
            self._heap.append((lease.expires_at, lease.id))
        heapq.heapify(self._heap)

    def remaining_s(self, lease_id: int, *, now: float) -> int:
        """Whole seconds left, -1 if unknown or expired."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.expires_at <= now:
            return -1
        return int(lease.expires_at - now)

    def attach(self, key: bytes, lease_id: int) -> None:
        """Hang a key on a lease (0: on none), taking it off the one it hung on."""
        if not lease_id and not self._lease_of:
            return
        old = self._lease_of.pop(key, 0)
        if old:
            self._leases[old].keys.pop(key, None)
        if lease_id:
            lease = self._leases.get(lease_id)
            if lease is not None:
                lease.keys[key] = None
                self._lease_of[key] = lease_id

    def get_timer(self) -> float | None:
        """When the next lease may expire, None without leases."""
        heap = self._heap
        while heap:
            at, lease_id = heap[0]
            lease = self._leases.get(lease_id)
            if lease is None:
                heapq.heappop(heap)
            elif lease.expires_at > at:
                heapq.heapreplace(heap, (lease.expires_at, lease_id))
            else:
                return at
        return None

    def expired(self, *, now: float) -> list[int]:
        """Return leases to revoke, at most MAX_REVOKES_PER_CHECK, oldest first."""
        found: list[int] = []
        due: list[tuple[float, int]] = []
        while len(found) < MAX_REVOKES_PER_CHECK:
            at = self.get_timer()
            if at is None or at > now:
                break
            due.append(heapq.heappop(self._heap))
            if due[-1][1] not in found[-1:]:
                found.append(due[-1][1])
        for entry in due:
            heapq.heappush(self._heap, entry)
        return found
