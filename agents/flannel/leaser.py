"""Which subnet a node takes: flannel's algorithm as one decision; pure.

Input: every lease in etcd, the configuration, the subnet held before.  Output: what to delete,
then one lease to take over or one to create.  The shell performs it and, when another node was
faster, asks again with a fresh list (flannel, pkg/subnet/etcd/local_manager.go).

Deviations, each on purpose:
- a lost race is asked again up to ``RACE_RETRIES`` times; flannel compares with an error that its
  own registry never returns, and exits instead;
- a reservation (a key without an etcd lease) stays one when its node takes it over; flannel gives
  it a 24 h lease;
- a takeover and a renewal are conditional on the key's revision, where flannel puts blindly: a
  node whose lease lapsed unseen cannot overwrite the node that has the subnet now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from emulator.addr import Prefix, format_ip
from emulator.errors import ExhaustedError

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from agents.flannel.config import NetworkConfig
    from agents.flannel.lease import Lease

# flannel's raceRetries.
RACE_RETRIES: Final = 10
# flannel stops looking after so many free subnets and picks one of them.
MAX_CANDIDATES: Final = 100


@dataclass(frozen=True, slots=True)
class Reuse:
    """Take the node's own lease over; as a reservation it keeps having no etcd lease."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Create:
    """Create a lease, on the condition that its key does not exist."""

    subnet: Prefix


@dataclass(frozen=True, slots=True)
class Decision:
    """``delete`` first, then ``action``; ``notes`` are flannel's log lines."""

    action: Reuse | Create
    delete: tuple[Lease, ...] = ()
    notes: tuple[str, ...] = ()


class SubnetLeaser:
    """Decides for one node; holds no lease itself."""

    def __init__(
        self,
        config: NetworkConfig,
        public_ip: int,
        *,
        previous: Prefix | None,
        rng: random.Random,
    ) -> None:
        """``previous`` is the subnet of an existing subnet.env, None if there is none."""
        self._config = config
        self._public_ip = public_ip
        self._previous = previous
        self._rng = rng

    def propose(self, leases: Sequence[Lease]) -> Decision:
        """Decide with this view of etcd; ExhaustedError if nothing is free."""
        own_text = format_ip(self._public_ip)
        delete: list[Lease] = []
        notes: list[str] = []
        for lease in leases:
            if lease.attrs.public_ip != self._public_ip:
                continue
            if self._config.is_compatible(lease.subnet) and not lease.ipv6:
                notes.append(
                    f"Found lease (ip: {lease.subnet} ipv6: ::/0)"
                    f" for current IP ({own_text}), reusing"
                )
                return Decision(Reuse(lease), tuple(delete), tuple(notes))
            notes.append(
                f"Found lease ({lease.subnet}) for current IP ({own_text})"
                " but not compatible with current config, deleting"
            )
            delete.append(lease)
        held = [lease.subnet for lease in leases if lease not in delete]
        subnet = self._previous_subnet(held, notes)
        if subnet is None:
            subnet = self._allocate(held, notes)
        return Decision(Create(subnet), tuple(delete), tuple(notes))

    def _previous_subnet(self, held: list[Prefix], notes: list[str]) -> Prefix | None:
        previous = self._previous
        if previous is None or any(previous.overlaps(other) for other in held):
            return None
        if not self._config.is_compatible(previous):
            notes.append(
                f"Found previously leased subnet ({previous}) that is not compatible with"
                " the Etcd network config, ignoring"
            )
            return None
        notes.append(f"Found previously leased subnet ({previous}), reusing")
        return previous

    def _allocate(self, held: list[Prefix], notes: list[str]) -> Prefix:
        config = self._config
        notes.append(
            f"Picking subnet in range {format_ip(config.subnet_min)}"
            f" ... {format_ip(config.subnet_max)}"
        )
        taken = {subnet.network for subnet in held if subnet.length == config.subnet_len}
        others = [subnet for subnet in held if subnet.length != config.subnet_len]
        free: list[Prefix] = []
        for network in range(config.subnet_min, config.subnet_max + 1, config.subnet_size):
            if network in taken:
                continue
            candidate = Prefix(network, config.subnet_len)
            if any(candidate.overlaps(other) for other in others):
                continue
            free.append(candidate)
            if len(free) == MAX_CANDIDATES:
                break
        if not free:
            raise ExhaustedError(
                f"out of subnets: every /{config.subnet_len} from {format_ip(config.subnet_min)} to"
                f" {format_ip(config.subnet_max)} is held; widen Network or raise SubnetLen in the"
                " network config, or delete leases of nodes that are gone"
            )
        return free[self._rng.randrange(len(free))]
