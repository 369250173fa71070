"""Which address host-local gives next (pure).

Source: containernetworking/plugins, plugins/ipam/host-local/backend/allocator: next fit from the
last reserved address, wrapping, the gateway skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agents.cni.errors import GENERIC, CniError
from emulator.addr import Prefix, format_ip, parse_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class Range(NamedTuple):
    """One address range; ``start`` and ``end`` are inclusive."""

    subnet: Prefix
    start: int
    end: int
    gateway: int

    @classmethod
    def parse(cls, conf: Mapping[str, Any]) -> Range:
        """Read ``{"subnet", "rangeStart", "rangeEnd", "gateway"}``; raises CniError."""
        try:
            subnet = Prefix.parse(str(conf.get("subnet", "")), strict=False)
            if subnet.length > 30:
                raise CniError(GENERIC, f"Network {subnet} too small to allocate from")
            first, last = subnet.network + 1, subnet.broadcast - 1
            start = parse_ip(conf["rangeStart"]) if conf.get("rangeStart") else first
            end = parse_ip(conf["rangeEnd"]) if conf.get("rangeEnd") else last
            gateway = parse_ip(conf["gateway"]) if conf.get("gateway") else first
        except UsageError as error:
            raise CniError(GENERIC, f"invalid range: {error}") from None
        for name, ip in (("RangeStart", start), ("RangeEnd", end)):
            if ip not in subnet:
                raise CniError(GENERIC, f"{name} {format_ip(ip)} not in network {subnet}")
        return cls(subnet, start, end, gateway)

    def holds(self, ip: int) -> bool:
        """True if ``ip`` may come from this range."""
        return self.start <= ip <= self.end

    def __str__(self) -> str:
        return f"{format_ip(self.start)}-{format_ip(self.end)}"


RangeSet = tuple[Range, ...]


def parse_ranges(ipam: Mapping[str, Any]) -> RangeSet:
    """Return the first range set of an ipam section, old form (``subnet``) or new (``ranges``)."""
    ranges: list[Range] = []
    if ipam.get("subnet"):
        ranges.append(Range.parse(ipam))
    elif ipam.get("ranges"):
        ranges.extend(Range.parse(part) for part in ipam["ranges"][0])
    if not ranges:
        raise CniError(GENERIC, "no IP ranges specified")
    return tuple(ranges)


def candidates(ranges: RangeSet, last_reserved: int | None) -> Iterator[tuple[int, Range]]:
    """Yield every address once, starting after ``last_reserved`` and wrapping."""
    order: list[tuple[int, int, Range]] = []
    for index, part in enumerate(ranges):
        if last_reserved is not None and part.holds(last_reserved):
            order = [(last_reserved + 1, part.end, part)]
            order += [(other.start, other.end, other) for other in ranges[index + 1 :]]
            order += [(other.start, other.end, other) for other in ranges[:index]]
            order.append((part.start, last_reserved, part))
            break
    else:
        order = [(part.start, part.end, part) for part in ranges]
    for start, end, part in order:
        for ip in range(start, end + 1):
            if ip != part.gateway:
                yield ip, part


def allocate(
    ranges: RangeSet, last_reserved: int | None, reserve: Callable[[int], bool]
) -> tuple[int, Range]:
    """Return the first candidate that ``reserve`` grants; CniError when none is left."""
    for ip, part in candidates(ranges, last_reserved):
        if reserve(ip):
            return ip, part
    text = ",".join(str(part) for part in ranges)
    raise CniError(GENERIC, f"no IP addresses available in range set: {text}")


def check_requested(ranges: RangeSet, ip: int) -> Range:
    """Return the range a fixed address lies in; CniError when it may not be given."""
    for part in ranges:
        if part.holds(ip):
            if ip == part.gateway:
                raise CniError(GENERIC, f"requested ip {format_ip(ip)} is subnet's gateway")
            return part
    text = ",".join(str(part) for part in ranges)
    raise CniError(
        GENERIC, f"requested IP address {format_ip(ip)} is not available in range set {text}"
    )
