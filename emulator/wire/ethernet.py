"""Ethernet II frames (IEEE 802.3 clause 3.2.6; EtherTypes of RFC 9542)."""

from __future__ import annotations

from typing import Final, NamedTuple

from emulator.errors import WireError

HEADER_LEN: Final = 14
ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806


class Frame(NamedTuple):
    """A frame without its check sequence; addresses are six bytes."""

    dst: bytes
    src: bytes
    ethertype: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> Frame:
        """Read a frame; WireError if it is shorter than its header."""
        if len(data) < HEADER_LEN:
            raise WireError(f"truncated Ethernet header: {len(data)} bytes of {HEADER_LEN}")
        return cls(data[:6], data[6:12], data[12] << 8 | data[13], data[14:])

    def emit(self) -> bytes:
        """Return the bytes."""
        return b"".join((self.dst, self.src, self.ethertype.to_bytes(2, "big"), self.payload))
