"""Networks of both families, as integers for filters and as NLRI bytes for tables.

A table's key is a prefix exactly as RFC 4271 §4.3 writes it: one octet of length in bits, then as
few octets as hold them, host bits zero.  It is a slice of the message it came in, so a million
routes cost a million slices and no parsing.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.addr import Prefix


class Afi(enum.IntEnum):
    """Address family identifiers (IANA); the speaker's subsequent family is always unicast."""

    IPV4 = 1
    IPV6 = 2

    @property
    def bits(self) -> int:
        """Width of an address."""
        return 32 if self is Afi.IPV4 else 128


SAFI_UNICAST: Final = 1


class Net(NamedTuple):
    """A network: ``network`` has no bit set below ``length``."""

    afi: Afi
    network: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Net:
        """Read ``a.b.c.d/len`` or ``x::y/len``; host bits are an error.  Raises UsageError."""
        try:
            found = ipaddress.ip_network(text)
        except ValueError as error:
            raise UsageError(f"{text!r} is not a network: {error}") from None
        afi = Afi.IPV4 if found.version == 4 else Afi.IPV6
        return cls(afi, int(found.network_address), found.prefixlen)

    @classmethod
    def of(cls, prefix: Prefix) -> Net:
        """The same IPv4 prefix."""
        return cls(Afi.IPV4, prefix.network, prefix.length)

    @classmethod
    def from_key(cls, afi: Afi, key: bytes) -> Net:
        """The network an NLRI key names."""
        length = key[0]
        bits = 32 if afi == 1 else 128
        size = len(key) - 1
        return cls(afi, int.from_bytes(key[1:], "big") << (bits - 8 * size), length)

    @property
    def key(self) -> bytes:
        """The NLRI bytes."""
        size = (self.length + 7) // 8
        bits = self.afi.bits
        return bytes((self.length,)) + (self.network >> (bits - 8 * size)).to_bytes(size, "big")

    def __str__(self) -> str:
        return f"{format_address(self.network.to_bytes(self.afi.bits // 8, 'big'))}/{self.length}"

    def covers(self, other: Net) -> bool:
        """True if ``other`` is this network or a part of it."""
        shift = self.afi.bits - self.length
        return (
            self.afi == other.afi
            and other.length >= self.length
            and self.network >> shift == other.network >> shift
        )


def parse_address(text: str) -> bytes:
    """Return the 4 or 16 bytes of an address; UsageError for anything else."""
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        raise UsageError(f"{text!r} is not an IPv4 or IPv6 address") from None


def format_address(address: bytes) -> str:
    """The text of 4 or 16 bytes (of 32 the global one, RFC 2545)."""
    if len(address) == 4:
        return ".".join(map(str, address))
    return str(ipaddress.IPv6Address(address[:16]))


# What follows a length octet of 0..128 bits: octets of the address.
OCTETS: Final = tuple((length + 7) // 8 for length in range(129))
# First octets that BIRD takes for routes (nest/iface.c, net_classify): not 0, 127 and 224 up.
_GOOD_FIRST: Final = bytes(octet for octet in range(1, 224) if octet != 127)
# _CLEAN[n]: last octets of a prefix whose length is n modulo 8 that have no host bits.
_CLEAN: Final = tuple(
    bytes(octet for octet in range(256) if not octet & (0xFF >> n if n else 0)) for n in range(8)
)


class NlriError(ValueError):
    """The block is not a list of prefixes; ``at`` is the offset of the first bad one."""

    def __init__(self, at: int) -> None:
        super().__init__(f"malformed NLRI at offset {at}")
        self.at = at


def split_nlri(afi: Afi, block: bytes) -> Sequence[bytes]:
    """Cut a block of prefixes into keys, host bits masked; NlriError if one is malformed.

    Senders pack prefixes of one length together, so the block is first tried as an array of equal
    elements, which C code can cut, check and mask at once.
    """
    size = len(block)
    if not size:
        return ()
    bits = block[0]
    limit = 32 if afi == 1 else 128
    if bits > limit:
        raise NlriError(0)
    stride = OCTETS[bits] + 1
    count, rest = divmod(size, stride)
    if not rest and block[::stride].count(bits) == count:
        last = block[stride - 1 :: stride] if bits else b""
        if not bits & 7 or not last.translate(None, _CLEAN[bits & 7]):
            if count == 1:
                return (block,)
            return struct.unpack(f"{stride}s" * count, block)
    keys = []
    at = 0
    while at < size:
        bits = block[at]
        if bits > limit:
            raise NlriError(at)
        end = at + 1 + OCTETS[bits]
        if end > size:
            raise NlriError(at)
        key = block[at:end]
        if bits & 7 and key[-1] & (0xFF >> (bits & 7)):
            key = key[:-1] + bytes((key[-1] & ~(0xFF >> (bits & 7)) & 0xFF,))
        keys.append(key)
        at = end
    return keys


def split_path_nlri(afi: Afi, block: bytes) -> list[tuple[int, bytes]]:
    """Cut a block of prefixes with path identifiers (RFC 7911 §3) into (path id, key)."""
    limit = 32 if afi == 1 else 128
    size = len(block)
    found = []
    at = 0
    while at < size:
        if at + 5 > size or block[at + 4] > limit:
            raise NlriError(at)
        bits = block[at + 4]
        end = at + 5 + OCTETS[bits]
        if end > size:
            raise NlriError(at)
        key = block[at + 4 : end]
        if bits & 7 and key[-1] & (0xFF >> (bits & 7)):
            key = key[:-1] + bytes((key[-1] & ~(0xFF >> (bits & 7)) & 0xFF,))
        found.append((int.from_bytes(block[at : at + 4], "big"), key))
        at = end
    return found


def is_routable(afi: Afi, key: bytes) -> bool:
    """False for what BIRD ignores as a bogus route: loopback, multicast, class E, 0/8 but 0/0."""
    if key[0] == 0:
        return True
    first = key[1]
    if afi == 1:
        return 0 < first < 224 and first != 127
    if first == 0xFF or (first == 0xFE and key[0] >= 10 and key[2] & 0xC0 == 0x80):
        return False
    return not (key[0] == 128 and int.from_bytes(key[1:], "big") in (0, 1))


def routable(afi: Afi, keys: Sequence[bytes], block: bytes) -> Sequence[bytes]:
    """Leave out what ``is_routable`` refuses; ``block`` is what the keys were cut from."""
    if afi == 1 and keys:
        stride = len(keys[0])
        if (
            stride > 1
            and stride * len(keys) == len(block)
            and not block[1::stride].translate(None, _GOOD_FIRST)
        ):
            return keys
    return [key for key in keys if is_routable(afi, key)]
