"""UDP (RFC 768)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from emulator.errors import WireError
from emulator.wire.checksum import checksum, pseudo_header_sum

HEADER_LEN: Final = 8
PROTO: Final = 17
_HEADER = struct.Struct("!HHHH")


class Udp(NamedTuple):
    """A datagram; its checksum covers the addresses of the packet that carries it."""

    sport: int
    dport: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes, src: int, dst: int) -> Udp:
        """Read and check a datagram; a checksum of 0 means none was made."""
        if len(data) < HEADER_LEN:
            raise WireError(f"truncated UDP header: {len(data)} bytes of {HEADER_LEN}")
        sport, dport, length, value = _HEADER.unpack_from(data)
        if not HEADER_LEN <= length <= len(data):
            raise WireError(f"UDP length {length} in {len(data)} bytes")
        data = data[:length]
        if value and checksum(data, pseudo_header_sum(src, dst, PROTO, length)):
            raise WireError("bad UDP checksum")
        return cls(sport, dport, data[HEADER_LEN:])

    def emit(self, src: int, dst: int, *, with_checksum: bool = True) -> bytes:
        """Return the bytes; vxlan leaves the outer checksum 0 (RFC 7348 section 5)."""
        length = HEADER_LEN + len(self.payload)
        value = 0
        if with_checksum:
            initial = pseudo_header_sum(src, dst, PROTO, length) + self.sport + self.dport + length
            value = checksum(self.payload, initial) or 0xFFFF
        return _HEADER.pack(self.sport, self.dport, length, value) + self.payload
