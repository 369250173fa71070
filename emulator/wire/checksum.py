"""The Internet checksum (RFC 1071) and its incremental update (RFC 1624)."""

from __future__ import annotations


def checksum(data: bytes | memoryview, initial: int = 0) -> int:
    """Return the 16-bit ones' complement checksum of ``data``.

    ``initial`` is an already folded or unfolded sum to add, e.g. of a pseudo header.
    One big-integer modulo replaces the loop: 2**16 is 1 modulo 0xFFFF, so the value of the bytes
    as one number is congruent to the sum of its 16-bit words.
    """
    if len(data) & 1:
        data = bytes(data) + b"\x00"
    value = int.from_bytes(data, "big") + initial
    folded = value % 0xFFFF
    # The residue 0 stands for both 0x0000 and 0xFFFF; a sum of nothing but zeros is the former.
    if folded == 0 and value != 0:
        folded = 0xFFFF
    return folded ^ 0xFFFF


def pseudo_header_sum(src: int, dst: int, proto: int, length: int) -> int:
    """Return the unfolded sum of the IPv4 pseudo header (RFC 793, RFC 768)."""
    return (src >> 16) + (src & 0xFFFF) + (dst >> 16) + (dst & 0xFFFF) + proto + length


def adjust(old_checksum: int, old_sum: int, new_sum: int) -> int:
    """Return the checksum when words summing to ``old_sum`` became ``new_sum`` (RFC 1624 eqn 3)."""
    value = (old_checksum ^ 0xFFFF) + new_sum - old_sum
    folded = value % 0xFFFF
    # HC' = ~(~HC + ~m + m'): a zero residue is 0xFFFF unless everything was zero, which a valid
    # IPv4, TCP or UDP header never is.
    return 0 if folded == 0 else folded ^ 0xFFFF
