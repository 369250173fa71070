"""IPv4 addresses and prefixes as integers, MAC addresses as six bytes.

The packet path compares and masks addresses millions of times, so an address is a plain ``int``
(0 .. 2**32-1) and a prefix a pair of ints.  Text appears only at the edges: what a person types,
what a renderer prints.
"""

from __future__ import annotations

from typing import NamedTuple

from emulator.errors import UsageError

IP_MAX = 0xFFFFFFFF
BROADCAST_MAC = b"\xff" * 6
ZERO_MAC = b"\x00" * 6


def parse_ip(text: str) -> int:
    """Return the integer of a dotted quad; raises UsageError for anything else.

    Leading zeros are refused as in ``inet_pton(3)``: some programs read them as octal.
    """
    parts = text.split(".")
    if len(parts) != 4:
        raise UsageError(f"{text!r} is not an IPv4 address (expected a.b.c.d)")
    value = 0
    for part in parts:
        if not (part.isascii() and part.isdigit()) or len(part) > 3 or int(part) > 255:
            raise UsageError(f"{text!r} is not an IPv4 address (expected a.b.c.d)")
        if len(part) > 1 and part[0] == "0":
            raise UsageError(f"{text!r} is not an IPv4 address (leading zero in {part!r})")
        value = value << 8 | int(part)
    return value


def format_ip(value: int) -> str:
    """Return the dotted quad of an integer address."""
    return f"{value >> 24 & 255}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"


def parse_mac(text: str) -> bytes:
    """Return the six bytes of ``aa:bb:cc:dd:ee:ff``; raises UsageError for anything else."""
    parts = text.split(":")
    try:
        if len(parts) == 6 and all(len(part) in (1, 2) for part in parts):
            return bytes(int(part, 16) for part in parts)
    except ValueError:
        pass
    raise UsageError(f"{text!r} is not a MAC address (expected aa:bb:cc:dd:ee:ff)")


def format_mac(mac: bytes) -> str:
    """Return ``aa:bb:cc:dd:ee:ff`` of six bytes."""
    return mac.hex(":")


def mask_of(length: int) -> int:
    """Return the netmask integer of a prefix length 0 .. 32."""
    return (IP_MAX << (32 - length)) & IP_MAX


class Prefix(NamedTuple):
    """An IPv4 prefix: ``network`` has no bit set below ``length``."""

    network: int
    length: int

    @classmethod
    def parse(cls, text: str, *, strict: bool = True) -> Prefix:
        """Read ``a.b.c.d/len`` (``a.b.c.d`` alone means /32).

        With strict (the default) host bits below the length are an error, else they are cut.
        Raises UsageError.
        """
        ip_text, slash, length_text = text.partition("/")
        length = 32
        if slash:
            if not (length_text.isascii() and length_text.isdigit()) or int(length_text) > 32:
                raise UsageError(f"{text!r} is not an IPv4 prefix (length must be 0 to 32)")
            length = int(length_text)
        ip = parse_ip(ip_text)
        network = ip & mask_of(length)
        if strict and network != ip:
            raise UsageError(
                f"{text!r} has host bits set; did you mean {format_ip(network)}/{length}?"
            )
        return cls(network, length)

    @classmethod
    def of(cls, ip: int, length: int) -> Prefix:
        """Return the prefix of ``length`` bits that holds ``ip``."""
        return cls(ip & mask_of(length), length)

    def __str__(self) -> str:
        return f"{format_ip(self.network)}/{self.length}"

    def __contains__(self, ip: object) -> bool:
        return isinstance(ip, int) and (ip & mask_of(self.length)) == self.network

    @property
    def size(self) -> int:
        """Number of addresses."""
        return 1 << (32 - self.length)

    @property
    def broadcast(self) -> int:
        """Last address."""
        return self.network | (self.size - 1)

    def overlaps(self, other: Prefix) -> bool:
        """True if the two share an address."""
        shorter = min(self.length, other.length)
        return (self.network & mask_of(shorter)) == (other.network & mask_of(shorter))

    def host(self, index: int) -> int:
        """Return the address ``index`` places after the network address; UsageError if outside."""
        if not 0 <= index < self.size:
            raise UsageError(f"{self} has no address number {index}")
        return self.network + index
