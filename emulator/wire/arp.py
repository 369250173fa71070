"""ARP for IPv4 over Ethernet (RFC 826)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from emulator.errors import WireError

LENGTH: Final = 28
REQUEST, REPLY = 1, 2

_ARP = struct.Struct("!HHBBH6sI6sI")
_ETHERNET, _IPV4 = 1, 0x0800


class Arp(NamedTuple):
    """``op`` 1 request, 2 reply; hardware addresses are six bytes, protocol addresses ints."""

    op: int
    sender_mac: bytes
    sender_ip: int
    target_mac: bytes
    target_ip: int

    @classmethod
    def parse(cls, data: bytes) -> Arp:
        """Read a message, padding after it ignored; WireError if it is not IPv4 over Ethernet."""
        if len(data) < LENGTH:
            raise WireError(f"truncated ARP message: {len(data)} bytes of {LENGTH}")
        hw, proto, hw_len, proto_len, op, sha, spa, tha, tpa = _ARP.unpack_from(data)
        if (hw, proto, hw_len, proto_len) != (_ETHERNET, _IPV4, 6, 4):
            raise WireError(
                f"ARP for hardware {hw} (length {hw_len}), protocol {proto:#06x} (length"
                f" {proto_len}): only IPv4 over Ethernet is spoken here"
            )
        return cls(op, sha, spa, tha, tpa)

    def emit(self) -> bytes:
        """Return the 28 bytes."""
        return _ARP.pack(
            *(_ETHERNET, _IPV4, 6, 4, self.op),
            *(self.sender_mac, self.sender_ip, self.target_mac, self.target_ip),
        )
