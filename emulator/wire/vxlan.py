"""VXLAN (RFC 7348): eight bytes between UDP and the inner frame."""

from __future__ import annotations

from typing import Final, NamedTuple

from emulator.errors import WireError

HEADER_LEN: Final = 8
# Outer IPv4 20 + UDP 8 + VXLAN 8 + inner Ethernet 14: what an inner packet grows by.
OVERHEAD: Final = 50
PORT_IANA: Final = 4789
# Linux's default and flannel's, older than the assignment.
PORT_LINUX: Final = 8472
FLAG_VNI: Final = 0x08


class Vxlan(NamedTuple):
    """A VXLAN message: 24-bit network identifier and the inner Ethernet frame."""

    vni: int
    frame: bytes

    @classmethod
    def parse(cls, data: bytes) -> Vxlan:
        """Read a UDP payload; WireError if short or without the I flag (RFC 7348 section 5)."""
        if len(data) < HEADER_LEN:
            raise WireError(f"truncated VXLAN header: {len(data)} bytes of {HEADER_LEN}")
        if not data[0] & FLAG_VNI:
            raise WireError(f"VXLAN flags {data[0]:#04x} without a valid VNI")
        return cls(int.from_bytes(data[4:7], "big"), data[HEADER_LEN:])

    def emit(self) -> bytes:
        """Return the bytes."""
        return header(self.vni) + self.frame


def header(vni: int) -> bytes:
    """Return the eight bytes in front of a frame."""
    return b"\x08\x00\x00\x00" + vni.to_bytes(3, "big") + b"\x00"
