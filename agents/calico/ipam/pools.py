"""Which pools serve a request: use, node and namespace selectors, reservations (pure).

Source: projectcalico/calico libcalico-go/lib/ipam/{ipam,pools}.go determinePools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agents.calico.errors import DatastoreError
from agents.calico.net import Cidr, Ip
from agents.calico.resources import name_of, spec_of
from agents.calico.selector import parse_selector
from agents.calico.validation_pool import default_pool_spec
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agents.calico.datastore import KVPair


class Pool(NamedTuple):
    """What IPAM needs to know of an IPPool."""

    name: str
    cidr: Cidr
    block_size: int
    disabled: bool
    node_selector: str
    namespace_selector: str
    uses: tuple[str, ...]
    automatic: bool
    ipip_mode: str
    vxlan_mode: str

    def selects_node(self, labels: Mapping[str, str]) -> bool:
        """True if a node with these labels takes addresses from the pool."""
        return parse_selector(self.node_selector).matches(labels)

    def selects_namespace(self, labels: Mapping[str, str] | None) -> bool:
        """True if pods of such a namespace do; without a namespace only an open pool."""
        if not self.namespace_selector:
            return True
        return labels is not None and parse_selector(self.namespace_selector).matches(labels)


def read_pools(found: Iterable[KVPair]) -> tuple[Pool, ...]:
    """The pools among stored resources, in the order given; broken ones are left out."""
    pools: list[Pool] = []
    for kvp in found:
        if not isinstance(kvp.value, dict) or not isinstance(kvp.value.get("metadata"), dict):
            continue
        spec = dict(spec_of(kvp.value))
        default_pool_spec(spec)
        try:
            cidr = Cidr.parse(spec["cidr"])
            parse_selector(spec["nodeSelector"])
            parse_selector(spec.get("namespaceSelector") or "")
        except (UsageError, KeyError):
            continue
        pools.append(
            Pool(
                name_of(kvp.value),
                cidr,
                spec["blockSize"],
                bool(spec.get("disabled")),
                spec["nodeSelector"],
                spec.get("namespaceSelector") or "",
                tuple(spec["allowedUses"]),
                spec["assignmentMode"] == "Automatic",
                spec["ipipMode"],
                spec["vxlanMode"],
            )
        )
    return tuple(pools)


def pool_of(pools: Iterable[Pool], ip: Ip) -> Pool | None:
    """The pool an address belongs to."""
    return next((pool for pool in pools if pool.cidr.holds(ip)), None)


def pool_over(pools: Iterable[Pool], block: Cidr) -> Pool | None:
    """The pool a block belongs to."""
    return next((pool for pool in pools if pool.cidr.covers(block)), None)


class NoPoolError(DatastoreError):
    """No pool serves the request."""


def choose_pools(
    pools: Sequence[Pool],
    *,
    version: int,
    requested: Sequence[Cidr],
    host: str,
    node_labels: Mapping[str, str],
    namespace_labels: Mapping[str, str] | None,
) -> tuple[Pool, ...]:
    """The pools that select this request, before its use is looked at.

    Requested pools are taken as they are, whatever they select.  Raises NoPoolError.
    """
    enabled = [pool for pool in pools if pool.cidr.version == version and not pool.disabled]
    if not enabled:
        raise NoPoolError("cannot find a qualified ippool")
    if requested:
        by_cidr = {pool.cidr: pool for pool in enabled}
        for cidr in requested:
            if cidr not in by_cidr:
                raise NoPoolError(f"the given pool ({cidr}) does not exist, or is not enabled")
        return tuple(by_cidr[cidr] for cidr in requested)
    chosen = tuple(
        pool
        for pool in enabled
        if pool.automatic
        and pool.selects_node(node_labels)
        and pool.selects_namespace(namespace_labels)
    )
    if not chosen:
        raise NoPoolError(f"no configured Calico pools for node {host}")
    return chosen


def allowed_for(pools: Sequence[Pool], use: str) -> tuple[Pool, ...]:
    """The pools that serve a use (Workload, Tunnel, LoadBalancer); raises NoPoolError."""
    allowed = tuple(pool for pool in pools if use in pool.uses)
    if not allowed:
        raise NoPoolError(
            f"cannot find a qualified ippool, no pools match the required use ({use})"
        )
    return allowed


class Reservations:
    """The networks of all IPReservations: never given out automatically."""

    __slots__ = ("_cidrs",)

    def __init__(self, cidrs: Iterable[Cidr] = ()) -> None:
        self._cidrs = tuple(cidrs)

    @classmethod
    def read(cls, found: Iterable[KVPair]) -> Reservations:
        """From stored IPReservation resources; what does not parse is left out."""
        cidrs: list[Cidr] = []
        for kvp in found:
            spec = spec_of(kvp.value) if isinstance(kvp.value, dict) else {}
            for text in spec.get("reservedCIDRs") or ():
                try:
                    cidrs.append(Cidr.parse(text))
                except UsageError:
                    continue
        return cls(cidrs)

    def holds(self, ip: Ip) -> bool:
        """True for a reserved address."""
        return any(cidr.holds(ip) for cidr in self._cidrs)

    def covers(self, block: Cidr) -> bool:
        """True if all of a block is reserved by one network."""
        return any(cidr.covers(block) for cidr in self._cidrs)

    def touches(self, block: Cidr) -> bool:
        """True if anything of a block is reserved."""
        return any(cidr.overlaps(block) for cidr in self._cidrs)
