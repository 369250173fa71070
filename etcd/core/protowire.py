"""Protobuf's bytes by hand, where building a message would cost more than all the rest."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """Return a protobuf varint (negative numbers as 64-bit two's complement)."""
    if value < 0:
        value += 1 << 64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
