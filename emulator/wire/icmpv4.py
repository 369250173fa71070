"""ICMP (RFC 792; next-hop MTU of RFC 1191)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from emulator.errors import WireError
from emulator.wire.checksum import checksum

HEADER_LEN: Final = 8
ECHO_REPLY, UNREACHABLE, REDIRECT, ECHO_REQUEST, TIME_EXCEEDED, PARAMETER_PROBLEM = (
    0,
    3,
    5,
    8,
    11,
    12,
)
SOURCE_QUENCH: Final = 4
ERROR_TYPES: Final = frozenset(
    (UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM)
)
# Codes of UNREACHABLE (RFC 792, RFC 1122 section 3.2.2.1, RFC 1812 section 5.2.7.1).
NET, HOST, PROTOCOL, PORT, FRAG_NEEDED = 0, 1, 2, 3, 4
NET_PROHIBITED, HOST_PROHIBITED, ADMIN_PROHIBITED = 9, 10, 13
# Codes of TIME_EXCEEDED.
TTL, REASSEMBLY = 0, 1

_HEADER = struct.Struct("!BBHI")


class Icmp(NamedTuple):
    """A message; ``rest`` is the second word of its header, whose meaning depends on the type."""

    type: int
    code: int
    rest: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> Icmp:
        """Read and check a message; WireError if short or corrupt."""
        if len(data) < HEADER_LEN:
            raise WireError(f"truncated ICMP header: {len(data)} bytes of {HEADER_LEN}")
        if checksum(data):
            raise WireError("bad ICMP checksum")
        kind, code, _, rest = _HEADER.unpack_from(data)
        return cls(kind, code, rest, data[HEADER_LEN:])

    def emit(self) -> bytes:
        """Return the bytes, checksum included."""
        data = _HEADER.pack(self.type, self.code, 0, self.rest) + self.payload
        return data[:2] + checksum(data).to_bytes(2, "big") + data[4:]

    @property
    def ident(self) -> int:
        """Identifier of an echo."""
        return self.rest >> 16

    @property
    def seq(self) -> int:
        """Sequence number of an echo."""
        return self.rest & 0xFFFF

    @property
    def mtu(self) -> int:
        """Next-hop MTU of a fragmentation-needed message, 0 from routers older than RFC 1191."""
        return self.rest & 0xFFFF


def echo_request(ident: int, seq: int, payload: bytes = b"") -> Icmp:
    """Return an echo request."""
    return Icmp(ECHO_REQUEST, 0, ident << 16 | seq, payload)


def error(kind: int, code: int, quoted: bytes, *, mtu: int = 0) -> Icmp:
    """Return an error about the packet whose first bytes are ``quoted``."""
    return Icmp(kind, code, mtu, quoted)
