"""What an etcd counts: plain numbers, cheap to move, read when somebody asks for the metrics."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from etcd.core.errors import Code

# Upper bounds of etcd's own histograms: 1 ms doubled (server/wal/metrics.go, mvcc/backend).
DURATION_BOUNDS_S = tuple(0.001 * 2**n for n in range(14))
# server/lease/metrics.go: from 1 s to about 97 days.
TTL_BOUNDS_S = tuple(float(2**n) for n in range(24))


class Histogram:
    """Counts of values by bucket; the last bucket has no upper bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class MethodCounts:
    """Calls of one gRPC method; ``failed`` by code."""

    __slots__ = ("failed", "ok", "received", "sent", "started")

    def __init__(self) -> None:
        self.started = 0
        self.ok = 0
        self.failed: dict[Code, int] = {}
        # Messages of streams; a unary call has one each way.
        self.received = 0
        self.sent = 0

    def fail(self, code: Code) -> None:
        """Count a call that ended with an error."""
        self.failed[code] = self.failed.get(code, 0) + 1


class Traffic:
    """Bytes of gRPC messages."""

    __slots__ = ("received_bytes", "sent_bytes")

    def __init__(self) -> None:
        self.received_bytes = 0
        self.sent_bytes = 0


class OperationCounts:
    """What an engine did since it started."""

    __slots__ = (
        "deletes",
        "lease_ttls",
        "leases_expired",
        "leases_granted",
        "leases_renewed",
        "leases_revoked",
        "proposals_failed",
        "put_bytes",
        "puts",
        "ranges",
        "txns",
    )

    def __init__(self) -> None:
        self.puts = 0
        self.put_bytes = 0
        self.deletes = 0
        self.ranges = 0
        # Transactions of more than one operation.
        self.txns = 0
        self.leases_granted = 0
        self.leases_revoked = 0
        self.leases_renewed = 0
        self.leases_expired = 0
        self.lease_ttls = Histogram(TTL_BOUNDS_S)
        self.proposals_failed = 0
