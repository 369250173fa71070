"""AllocationBlock: one block's addresses, who holds each, what is free in which order (pure).

Source: projectcalico/calico libcalico-go/lib/backend/model/block.go, lib/ipam/ipam_block.go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.calico.errors import ParsingError, UpdateConflictError
from agents.calico.ipam.model import block_key
from agents.calico.net import Cidr, Ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.calico.ipam.pools import Reservations


class Attribute(NamedTuple):
    """Who holds addresses: a handle and what is known of the holder, keys sorted as Go's."""

    handle: str | None
    secondary: dict[str, str] | None

    @property
    def handle_id(self) -> str:
        """The handle, "" for none; what follows a carriage return is an old migration's garbage."""
        return (self.handle or "").split("\r")[0]


@dataclass(frozen=True, slots=True)
class ReleaseOptions:
    """One address to release; a handle or sequence number that is not the stored one refuses."""

    address: Ip
    handle: str = ""
    sequence_number: int | None = None


class Released(NamedTuple):
    """What a release did: addresses that were free already, and how many each handle lost."""

    unallocated: tuple[Ip, ...]
    by_handle: dict[str, int]


@dataclass(slots=True)
class AllocationBlock:
    """A block as it is read, changed and written back by compare-and-swap.

    ``allocations[ordinal]`` is None or an index into ``attributes``; ``unallocated`` holds the
    free ordinals, the next to give out first; ``sequence_number`` (Unix ns at creation) grows with
    every write; ``sequence_numbers`` holds the number at which each ordinal was given out.
    """

    cidr: Cidr
    affinity: str | None
    allocations: list[int | None]
    unallocated: list[int]
    attributes: list[Attribute] | None
    sequence_number: int
    sequence_numbers: dict[int, int] = field(default_factory=dict)
    # RFC 3339; None in blocks of older clients.
    affinity_claim_time: str | None = None

    @classmethod
    def new(cls, cidr: Cidr, affinity: str, *, now_ns: int, claim_time: str) -> AllocationBlock:
        """An empty block claimed by ``host:<node>``."""
        return cls(
            cidr,
            affinity,
            [None] * cidr.size,
            list(range(cidr.size)),
            None,
            now_ns,
            affinity_claim_time=claim_time,
        )

    # The stored form ---------------------------------------------------------------------------

    @classmethod
    def from_value(cls, value: Any) -> AllocationBlock:
        """Read a stored block; raises ParsingError."""
        try:
            cidr = Cidr.parse(value["cidr"])
            affinity = value.get("affinity")
            if affinity is None and value.get("hostAffinity"):
                # Clients before 1.2 named the host alone.
                affinity = f"host:{value['hostAffinity']}"
            stored = value.get("attributes")
            attributes = stored and [
                Attribute(each.get("handle_id"), each.get("secondary")) for each in stored
            ]
            numbers = value.get("sequenceNumberForAllocation") or {}
            block = cls(
                cidr,
                affinity,
                list(value["allocations"]),
                list(value["unallocated"] or ()),
                attributes,
                int(value.get("sequenceNumber", 0)),
                {int(ordinal): int(number) for ordinal, number in numbers.items()},
                value.get("affinity_claim_time"),
            )
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            text = f"not an allocation block ({error})"
            raise ParsingError("block", str(value)[:200], text) from None
        held = len(attributes or ())
        if len(block.allocations) != cidr.size or any(
            index is not None and not 0 <= index < held for index in block.allocations
        ):
            raise ParsingError(
                block_key(cidr), str(value)[:200], "allocations do not fit the block"
            )
        return block

    def to_value(self) -> dict[str, Any]:
        """The stored form, fields in the order of the Go struct."""
        claim_time = self.affinity_claim_time
        # Go sorts the keys of a map as strings.
        numbers = sorted(
            (str(ordinal), number) for ordinal, number in self.sequence_numbers.items()
        )
        return {
            "cidr": str(self.cidr),
            "affinity": self.affinity,
            **({"affinity_claim_time": claim_time} if claim_time else {}),
            "allocations": self.allocations,
            "unallocated": self.unallocated,
            "attributes": None
            if self.attributes is None
            else [
                {"handle_id": each.handle, "secondary": each.secondary} for each in self.attributes
            ],
            "sequenceNumber": self.sequence_number,
            "sequenceNumberForAllocation": dict(numbers),
            "deleted": False,
        }

    # Looking -----------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """The node it is affine to, "" for none."""
        return (self.affinity or "").removeprefix("host:") if self.affinity else ""

    def is_empty(self) -> bool:
        """True if no address is held."""
        return all(index is None for index in self.allocations)

    def free_count(self, reserved: Reservations) -> int:
        """How many addresses can be given out."""
        if not reserved.touches(self.cidr):
            return len(self.unallocated)
        return sum(not reserved.holds(self.cidr.ip(ordinal)) for ordinal in self.unallocated)

    def holder(self, ip: Ip) -> Attribute | None:
        """Who holds an address, None if it is free; UsageError if it is not in the block."""
        index = self.allocations[self.cidr.ordinal(ip)]
        return None if index is None or self.attributes is None else self.attributes[index]

    def held(self) -> list[tuple[Ip, Attribute, int]]:
        """Every held address with its holder and sequence number, ascending."""
        attributes = self.attributes or []
        return [
            (self.cidr.ip(ordinal), attributes[index], self.sequence_numbers.get(ordinal, 0))
            for ordinal, index in enumerate(self.allocations)
            if index is not None
        ]

    def ips_by_handle(self, handle: str) -> list[Ip]:
        """The addresses a handle holds, ascending."""
        return [ip for ip, attribute, _ in self.held() if attribute.handle_id == handle]

    # Changing ----------------------------------------------------------------------------------

    def auto_assign(
        self,
        count: int,
        handle: str | None,
        secondary: dict[str, str] | None,
        reserved: Reservations,
    ) -> list[Ip]:
        """Give out up to ``count`` addresses from the head; reserved ones keep their place."""
        taken: list[Ip] = []
        left: list[int] = []
        index = -1
        for at, ordinal in enumerate(self.unallocated):
            if len(taken) >= count:
                left.extend(self.unallocated[at:])
                break
            ip = self.cidr.ip(ordinal)
            if reserved.holds(ip):
                left.append(ordinal)
                continue
            if index < 0:
                index = self._attribute(handle, secondary)
            self.allocations[ordinal] = index
            self.sequence_numbers[ordinal] = self.sequence_number
            taken.append(ip)
        self.unallocated = left
        return taken

    def assign(self, ip: Ip, handle: str | None, secondary: dict[str, str] | None) -> bool:
        """Give out one address; False if somebody holds it."""
        ordinal = self.cidr.ordinal(ip)
        if self.allocations[ordinal] is not None:
            return False
        self.allocations[ordinal] = self._attribute(handle, secondary)
        self.sequence_numbers[ordinal] = self.sequence_number
        self.unallocated.remove(ordinal)
        return True

    def release(self, options: Sequence[ReleaseOptions]) -> Released:
        """Free addresses, to the tail of the line; raises UpdateConflictError and changes nothing.

        A repeated address counts once, with its last options.
        """
        unique = {each.address: each for each in options}
        unallocated: list[Ip] = []
        ordinals: list[int] = []
        by_handle: dict[str, int] = {}
        for ip, each in unique.items():
            ordinal = self.cidr.ordinal(ip)
            stored = self.sequence_numbers.get(ordinal, 0)
            if each.sequence_number is not None and each.sequence_number != stored:
                raise UpdateConflictError(
                    str(ip),
                    f"the given sequence number ({each.sequence_number}) does not match ({stored}) "
                    "when attempting to release IP",
                )
            attribute = self.holder(ip)
            if attribute is None:
                unallocated.append(ip)
                continue
            if each.handle and each.handle.split("\r")[0] != attribute.handle_id:
                raise UpdateConflictError(
                    str(ip),
                    f"the given handle ({each.handle}) does not match ({attribute.handle_id}) "
                    "when attempting to release IP",
                )
            ordinals.append(ordinal)
            if attribute.handle_id:
                by_handle[attribute.handle_id] = by_handle.get(attribute.handle_id, 0) + 1
        self._free(ordinals)
        return Released(tuple(unallocated), by_handle)

    def release_by_handle(self, handle: str, sequence_number: int | None = None) -> int:
        """Free what a handle holds; return how many addresses that were."""
        ordinals = [
            self.cidr.ordinal(ip)
            for ip, attribute, number in self.held()
            if attribute.handle_id == handle and sequence_number in (None, number)
        ]
        self._free(ordinals)
        return len(ordinals)

    def _free(self, ordinals: Sequence[int]) -> None:
        if not ordinals:
            return
        for ordinal in ordinals:
            self.allocations[ordinal] = None
            self.unallocated.append(ordinal)
            self.sequence_numbers.pop(ordinal, None)
        self._compact()

    def _attribute(self, handle: str | None, secondary: dict[str, str] | None) -> int:
        """The index of an equal attribute, added if there is none."""
        known = None if secondary is None else dict(sorted(secondary.items()))
        wanted = Attribute(handle, known)
        if self.attributes is None:
            self.attributes = []
        if wanted not in self.attributes:
            self.attributes.append(wanted)
        return self.attributes.index(wanted)

    def _compact(self) -> None:
        """Drop attributes nobody refers to and renumber the rest."""
        used = sorted({index for index in self.allocations if index is not None})
        new = {old: number for number, old in enumerate(used)}
        attributes = self.attributes or []
        self.attributes = [attributes[old] for old in used]
        self.allocations = [None if index is None else new[index] for index in self.allocations]
