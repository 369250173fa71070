"""IP sets: named sets of addresses, networks and ports that rules look into.

Source: net/netfilter/ipset (ip_set_core.c, ip_set_hash_*.c, ip_set_bitmap_port.c).  Texts of errors
are those of ipset 7.17.  Members are kept in the order they were added, which is how they are
listed; the real order is that of a hash with a random seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.errors import UsageError
from emulator.netstack.netfilter.ipset_members import (
    IP,
    NET,
    PORT,
    Member,
    format_member,
    parse_members,
)
from emulator.netstack.packet import ICMP, TCP, UDP

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from emulator.netstack.packet import Packet

MAX_NAME: Final = 31  # IPSET_MAXNAMELEN less the final zero
# Sets of one namespace: the kernel starts with 256 and grows its table up to IPSET_INVALID_ID.
MAX_SETS: Final = 65534
DEFAULT_MAXELEM: Final = 65536
# An element costs about 150 bytes here; a set of a million is 150 MB of one node process.
MAX_MAXELEM: Final = 1 << 20
DEFAULT_HASHSIZE: Final = 1024
SCTP, UDPLITE = 132, 136

# Type: (what its members are made of, revision of kernel 6.x)
KINDS: Final[dict[str, tuple[tuple[str, ...], int]]] = {
    "hash:ip": ((IP,), 6),
    "hash:net": ((NET,), 7),
    "hash:ip,port": ((IP, PORT), 7),
    "hash:net,port": ((NET, PORT), 8),
    "bitmap:port": ((PORT,), 3),
}

NO_SET: Final = "The set with the given name does not exist"
PRESENT: Final = "Element cannot be added to the set: it's already added"
ABSENT: Final = "Element cannot be deleted from the set: it's not added"
FULL: Final = "Hash is full, cannot add more elements"


class SetInfo(NamedTuple):
    """One set of a snapshot; ``members`` are as ``ipset list`` prints them."""

    name: str
    kind: str
    revision: int
    header: str
    size_bytes: int
    references: int
    members: tuple[str, ...]


class IpSet:
    """One set.  ``first_port`` and ``last_port`` are a bitmap's range."""

    __slots__ = (
        "_lengths",
        "dimensions",
        "first_port",
        "hashsize",
        "initval",
        "kind",
        "last_port",
        "maxelem",
        "members",
        "name",
    )

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        maxelem: int = DEFAULT_MAXELEM,
        hashsize: int = DEFAULT_HASHSIZE,
        ports: tuple[int, int] = (0, 65535),
        initval: int = 0,
    ) -> None:
        self.name = name
        self.kind = kind
        self.dimensions = KINDS[kind][0]
        self.maxelem = maxelem
        self.hashsize = hashsize
        self.first_port, self.last_port = ports
        self.initval = initval
        # Each member, and whether it is an exception (nomatch).
        self.members: dict[Member, bool] = {}
        # How many members there are of each prefix length, longest first.
        self._lengths: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.members)

    def header(self) -> str:
        """The options, as ``ipset list`` prints them."""
        if self.kind == "bitmap:port":
            return f"range {self.first_port}-{self.last_port}"
        return (
            f"family inet hashsize {self.hashsize} maxelem {self.maxelem} bucketsize 12 "
            f"initval {self.initval:#010x}"
        )

    # -- members ---------------------------------------------------------------------------------

    def parse(self, text: str) -> list[Member]:
        """The members a text stands for; UsageError as ipset complains."""
        return parse_members(self.kind, self.dimensions, text)

    def put(self, member: Member, nomatch: bool) -> bool:
        """Take a member, or how it counts; False if it was there."""
        present = member in self.members
        if not present:
            if self.kind == "bitmap:port":
                if not self.first_port <= member[0] <= self.last_port:
                    raise UsageError("Element is out of the range of the set")
            elif len(self.members) >= self.maxelem:
                raise UsageError(FULL)
            self._count(member, 1)
        self.members[member] = nomatch
        return not present

    def drop(self, member: Member) -> bool:
        """Lose a member; False if it was not there."""
        if self.members.pop(member, None) is None:
            return False
        self._count(member, -1)
        return True

    def clear(self) -> None:
        """Lose every member."""
        self.members.clear()
        self._lengths.clear()

    def _count(self, member: Member, change: int) -> None:
        if self.dimensions[0] != NET:
            return
        length = member[1]
        count = self._lengths.get(length, 0) + change
        if count:
            self._lengths[length] = count
            if change > 0 and count == 1:
                self._lengths = dict(sorted(self._lengths.items(), reverse=True))
        else:
            del self._lengths[length]

    # -- questions -------------------------------------------------------------------------------

    def holds(self, member: Member) -> bool:
        """True if a member, or for networks one it lies in, is there (``ipset test``)."""
        if self.dimensions[0] != NET:
            return member in self.members
        network, length, *rest = member
        for each in self._lengths:
            if each > length:
                continue
            mask = 0xFFFFFFFF << (32 - each) & 0xFFFFFFFF
            nomatch = self.members.get((network & mask, each, *rest))
            if nomatch is not None:
                return not nomatch
        return False

    def matches(self, packet: Packet, sources: tuple[bool, ...]) -> bool:
        """``-m set``: ``sources`` says for each dimension whether the source's is looked at."""
        dimensions = self.dimensions
        if len(sources) < len(dimensions):
            return False
        first = dimensions[0]
        if first == PORT:
            port = _port_of(packet, sources[0])
            return port is not None and (port[1],) in self.members
        address = packet.src if sources[0] else packet.dst
        if len(dimensions) == 1:
            return (address,) in self.members if first == IP else self.holds((address, 32))
        port = _port_of(packet, sources[1])
        if port is None:
            return False
        if first == IP:
            return (address, *port) in self.members
        return self.holds((address, 32, *port))


def _port_of(packet: Packet, source: bool) -> tuple[int, int] | None:
    """ip_set_get_ip4_port: (protocol, port); for ICMP the type and code."""
    data, start, proto = packet.data, packet.header_len, packet.proto
    if data[6] & 0x1F or data[7]:
        return None
    if proto in (TCP, UDP):
        return proto, packet.sport if source else packet.dport
    if proto in (SCTP, UDPLITE) and len(data) >= start + 4:
        at = start if source else start + 2
        return proto, data[at] << 8 | data[at + 1]
    if proto == ICMP and len(data) >= start + 2:
        return proto, data[start] << 8 | data[start + 1]
    return None


class IpSets:
    """The sets of one namespace, by name in the order they were made."""

    def __init__(
        self,
        *,
        rng: random.Random,
        changed: Callable[[], None],
        references: Callable[[str], int],
    ) -> None:
        """``changed`` is called when an answer may differ; ``references`` counts a set's rules."""
        self._sets: dict[str, IpSet] = {}
        self._rng = rng
        self._changed = changed
        self._references = references

    def __len__(self) -> int:
        return len(self._sets)

    def __iter__(self) -> Iterator[IpSet]:
        return iter(list(self._sets.values()))

    def find(self, name: str) -> IpSet | None:
        """A set, or None if there is none of that name."""
        return self._sets.get(name)

    def get(self, name: str) -> IpSet:
        """A set; UsageError if there is none of that name."""
        found = self._sets.get(name)
        if found is None:
            raise UsageError(NO_SET)
        return found

    def create(
        self,
        name: str,
        kind: str,
        *,
        maxelem: int = DEFAULT_MAXELEM,
        hashsize: int = DEFAULT_HASHSIZE,
        ports: tuple[int, int] = (0, 65535),
        exist: bool = False,
    ) -> IpSet:
        """``ipset create``; with ``exist`` a set of the same kind and size may be there."""
        if kind not in KINDS:
            raise UsageError(f"Syntax error: typename '{kind}' is unknown")
        if not name or len(name) > MAX_NAME:
            raise UsageError(f"Syntax error: setname '{name}' is longer than {MAX_NAME} characters")
        present = self._sets.get(name)
        if present is not None:
            if exist and (present.kind, present.maxelem) == (kind, maxelem):
                return present
            raise UsageError("Set cannot be created: set with the same name already exists")
        if len(self._sets) >= MAX_SETS:
            raise UsageError(f"Set cannot be created: there are {MAX_SETS} sets, destroy some")
        if maxelem > MAX_MAXELEM:
            raise UsageError(f"Set cannot be created: maxelem is at most {MAX_MAXELEM} here")
        made = IpSet(
            name,
            kind,
            maxelem=maxelem,
            # The kernel takes the next power of two, 64 at least (htable_bits).
            hashsize=max(64, 1 << (max(hashsize, 1) - 1).bit_length()),
            ports=ports,
            initval=self._rng.getrandbits(32),
        )
        self._sets[name] = made
        return made

    def destroy(self, name: str) -> None:
        """``ipset destroy NAME``: not while a rule looks into it."""
        self.get(name)
        if self._references(name):
            raise UsageError("Set cannot be destroyed: it is in use by a kernel component")
        del self._sets[name]

    def destroy_all(self) -> None:
        """``ipset destroy``: all of them or none."""
        if any(self._references(name) for name in self._sets):
            raise UsageError("Set cannot be destroyed: it is in use by a kernel component")
        self._sets.clear()

    def flush(self, name: str) -> None:
        """``ipset flush NAME``."""
        self.get(name).clear()
        self._changed()

    def rename(self, old: str, new: str) -> None:
        """``ipset rename``: not while a rule looks into it."""
        found = self.get(old)
        if self._references(old):
            raise UsageError("Set cannot be renamed: it is in use by another system")
        if new in self._sets:
            raise UsageError("Set cannot be renamed: a set with the new name already exists")
        del self._sets[old]
        found.name = new
        self._sets[new] = found

    def swap(self, one: str, other: str) -> None:
        """``ipset swap``: rules that look into one see the other's members from now on."""
        first = self.get(one)
        second = self._sets.get(other)
        if second is None:
            raise UsageError("Sets cannot be swapped: the second set does not exist")
        if first.kind != second.kind:
            raise UsageError("The sets cannot be swapped: their type does not match")
        first.name, second.name = other, one
        self._sets[one], self._sets[other] = second, first
        self._changed()

    def add(self, name: str, text: str, *, nomatch: bool = False, exist: bool = False) -> None:
        """``ipset add``: a member, or a range of them."""
        found = self.get(name)
        try:
            for member in found.parse(text):
                if member in found.members and not exist:
                    raise UsageError(PRESENT)
                found.put(member, nomatch)
        finally:
            # What came before the one that was refused stays.
            self._changed()

    def delete(self, name: str, text: str, *, exist: bool = False) -> None:
        """``ipset del``."""
        found = self.get(name)
        try:
            for member in found.parse(text):
                if not found.drop(member) and not exist:
                    raise UsageError(ABSENT)
        finally:
            self._changed()

    def replace(self, name: str, members: tuple[str, ...]) -> tuple[int, int]:
        """Make a set hold exactly these members; returns how many came and went."""
        found = self.get(name)
        wanted = {m: False for text in members for m in found.parse(text)}
        gone = [member for member in found.members if member not in wanted]
        come = [member for member in wanted if found.members.get(member) is not False]
        if len(found.members) - len(gone) + len(come) > found.maxelem:
            raise UsageError(FULL)
        for member in gone:
            found.drop(member)
        for member in come:
            found.put(member, False)
        if gone or come:
            self._changed()
        return len(come), len(gone)

    def test(self, name: str, text: str) -> bool:
        """``ipset test``."""
        found = self.get(name)
        return all(found.holds(member) for member in found.parse(text))

    def snapshot(self, name: str = "") -> tuple[SetInfo, ...]:
        """Frozen records of all sets, or of one."""
        chosen = [self.get(name)] if name else list(self._sets.values())
        return tuple(
            SetInfo(
                each.name,
                each.kind,
                KINDS[each.kind][1],
                each.header(),
                _size(each),
                self._references(each.name),
                tuple(
                    format_member(each.dimensions, member) + (" nomatch" if nomatch else "")
                    for member, nomatch in each.members.items()
                ),
            )
            for each in chosen
        )


def _size(found: IpSet) -> int:
    """About what the kernel would use: a fixed part and its buckets' elements."""
    if found.kind == "bitmap:port":
        return (found.last_port - found.first_port) // 8 + 73
    return 216 + 40 * len(found.members)
