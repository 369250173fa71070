"""Addresses and networks of both families, as integers (pure).

The emulated kernel speaks IPv4 only; IPAM, resources and policies name IPv6 too.
"""

from __future__ import annotations

import functools
import ipaddress
from typing import NamedTuple

from emulator.addr import format_ip
from emulator.errors import UsageError

BITS = {4: 32, 6: 128}


class Ip(NamedTuple):
    """One address; ``version`` is 4 or 6."""

    version: int
    value: int

    @classmethod
    def parse(cls, text: str) -> Ip:
        """Read an address as Go does: no zone, ``::ffff:1.2.3.4`` is IPv4; raises UsageError."""
        try:
            if "%" in text:
                raise ValueError
            address = ipaddress.ip_address(text)
        except ValueError:
            raise UsageError(f"invalid IP address: {text}") from None
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return cls(address.version, int(address))

    def __str__(self) -> str:
        return (
            format_ip(self.value) if self.version == 4 else str(ipaddress.IPv6Address(self.value))
        )


class Cidr(NamedTuple):
    """A network: ``network`` has no bit set below ``length``."""

    version: int
    network: int
    length: int

    @classmethod
    def parse(cls, text: str, *, strict: bool = False) -> Cidr:
        """Read ``address/length``, or an address alone as one of full length.

        With ``strict`` host bits are an error, else they are cut.  Raises UsageError.
        """
        return cls(*_network(text, strict))

    @classmethod
    def of(cls, ip: Ip, length: int) -> Cidr:
        """The network of ``length`` bits that holds ``ip``."""
        shift = BITS[ip.version] - length
        return cls(ip.version, ip.value >> shift << shift, length)

    def __str__(self) -> str:
        return f"{Ip(self.version, self.network)}/{self.length}"

    @property
    def size(self) -> int:
        """Number of addresses."""
        return 1 << (BITS[self.version] - self.length)

    def holds(self, ip: Ip) -> bool:
        """True for an address inside."""
        return ip.version == self.version and 0 <= ip.value - self.network < self.size

    def covers(self, other: Cidr) -> bool:
        """True for a network that lies inside, itself included."""
        return other.length >= self.length and self.holds(Ip(other.version, other.network))

    def overlaps(self, other: Cidr) -> bool:
        """True if the two share an address."""
        return self.covers(other) or other.covers(self)

    def ip(self, ordinal: int) -> Ip:
        """The address so many places after the network's."""
        return Ip(self.version, self.network + ordinal)

    def ordinal(self, ip: Ip) -> int:
        """How far into the network an address lies; UsageError if outside."""
        if not self.holds(ip):
            raise UsageError(f"IP {ip} not in block {self}")
        return ip.value - self.network


# Keys and values name the same blocks again and again; errors are not remembered.
@functools.lru_cache(maxsize=8192)
def _network(text: str, strict: bool) -> tuple[int, int, int]:
    try:
        # Python alone takes a netmask for a length, and a zone.
        length = text.partition("/")[2]
        if "%" in text or (length and not length.isdigit()):
            raise ValueError
        network = ipaddress.ip_network(text, strict=strict)
    except ValueError:
        raise UsageError(f"invalid CIDR address: {text}") from None
    return network.version, int(network.network_address), network.prefixlen
