"""The Internet checksum against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.wire.checksum import adjust, checksum


def by_definition(data: bytes) -> int:
    """RFC 1071 section 1, word by word."""
    data += b"\x00" * (len(data) & 1)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@given(st.binary(max_size=200))
def test_checksum_is_rfc_1071(data: bytes) -> None:
    assert checksum(data) == by_definition(data)


@given(st.binary(min_size=4, max_size=60), st.binary(min_size=2, max_size=2))
def test_adjust_equals_a_full_sum(data: bytes, word: bytes) -> None:
    data = b"\x45\x00" + data + b"\x00" * (len(data) & 1)  # a header is never all zeros
    changed = data[:2] + word + data[4:]
    old, new = int.from_bytes(data[2:4], "big"), int.from_bytes(word, "big")
    assert adjust(checksum(data), old, new) == by_definition(changed)
