"""The other nodes' leases: snapshots and watch events turned into changes; pure.

Deviations from flannel (pkg/subnet/watch.go): the node's own lease is dropped before a snapshot is
compared, and a snapshot sees changed attributes (a new VtepMAC, a new PublicIP), not only new and
missing keys.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agents.flannel.lease import Lease
    from emulator.addr import Prefix


class ChangeKind(enum.StrEnum):
    """What happened to another node's lease."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


class Change(NamedTuple):
    """``old`` is None for ADDED; for REMOVED ``lease`` is the lease that was."""

    kind: ChangeKind
    lease: Lease
    old: Lease | None = None


class LeaseView:
    """Every lease but the node's own, by subnet."""

    def __init__(self, own: Prefix) -> None:
        self._own = own
        self._leases: dict[Prefix, Lease] = {}

    def leases(self) -> tuple[Lease, ...]:
        """The leases of the other nodes, sorted by subnet."""
        return tuple(self._leases[subnet] for subnet in sorted(self._leases))

    def reset(self, leases: Iterable[Lease]) -> list[Change]:
        """Take a complete list; returns what it changes, removals first."""
        listed = {lease.subnet: lease for lease in leases if lease.subnet != self._own}
        changes = [
            change
            for subnet in list(self._leases)
            if subnet not in listed
            for change in self.remove(subnet)
        ]
        for lease in listed.values():
            changes += self.put(lease)
        return changes

    def put(self, lease: Lease) -> list[Change]:
        """A key was written; a renewal, which changes no attribute, is no change."""
        if lease.subnet == self._own:
            return []
        old = self._leases.get(lease.subnet)
        self._leases[lease.subnet] = lease
        if old is None:
            return [Change(ChangeKind.ADDED, lease)]
        if old.attrs == lease.attrs:
            return []
        return [Change(ChangeKind.CHANGED, lease, old)]

    def remove(self, subnet: Prefix) -> list[Change]:
        """A key was deleted or expired."""
        old = self._leases.pop(subnet, None)
        return [] if old is None else [Change(ChangeKind.REMOVED, old, old)]
