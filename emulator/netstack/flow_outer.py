"""Outer IPv4 headers of IP in IP on the short way: taken off and put on a batch at a time.

What differs between the outer headers of one flow is the total length, the identification and the
checksum; the rest is the flow's own and part of its key.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from emulator.netstack.packet import IPIP

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class IdentSource(Protocol):
        """A tunnel: it numbers its outer packets."""

        def next_ident(self) -> int: ...


OUTER_LEN: Final = 20
# Packet sizes a reader keeps structs for, as MAX_SHAPES of flow_entry.
MAX_SHAPES: Final = 64
_VARIABLE = struct.Struct("!2sHH4sH8s")


def has_outer(data: bytes, at: int) -> bool:
    """True for a whole IP-in-IP packet without IP options."""
    return (
        len(data) >= at + 2 * OUTER_LEN
        and data[at] == 0x45
        and data[at + 9] == IPIP
        and not (data[at + 6] & 0x3F or data[at + 7])
    )


def outer_key(data: bytes, at: int) -> bytes:
    """The bytes of an outer header that are the same for every packet of a flow."""
    return data[at : at + 2] + data[at + 6 : at + 10] + data[at + 12 : at + 20]


def _sum(data: bytes) -> int:
    return int.from_bytes(data, "big")


class OuterReader:
    """Takes the outer headers off packets of one flow."""

    __slots__ = ("_const", "_first", "_middle", "_shapes", "_tail")

    def __init__(self, header: bytes) -> None:
        self._first = header[:2]
        self._middle = header[6:10]
        self._tail = header[12:20]
        self._const = (_sum(self._first) + _sum(self._middle) + _sum(self._tail)) % 0xFFFF
        self._shapes: dict[int, struct.Struct] = {}

    def strip(self, batch: bytes, size: int) -> bytes:
        """The inner packets of the datagrams up to the first that is another flow's or corrupt."""
        shape = self._shapes.get(size)
        if shape is None:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            shape = struct.Struct(f"!2sHH4sH8s{size - OUTER_LEN}s")
            self._shapes[size] = shape
        first, middle, tail = self._first, self._middle, self._tail
        const = self._const + size
        out: list[bytes] = []
        for one, total, ident, two, check, three, inner in shape.iter_unpack(batch):
            if (
                one != first
                or two != middle
                or three != tail
                or total != size
                or (const + ident + check) % 0xFFFF
            ):
                break
            out.append(inner)
        return b"".join(out)


class OuterWriter:
    """Puts outer headers before packets of one flow, numbered by their tunnel."""

    __slots__ = ("_const", "_first", "_middle", "_tail", "_tunnel")

    def __init__(self, header: bytes, tunnel: IdentSource) -> None:
        self._first = header[:2]
        self._middle = header[6:10]
        self._tail = header[12:20]
        self._const = (_sum(self._first) + _sum(self._middle) + _sum(self._tail)) % 0xFFFF
        self._tunnel = tunnel

    def wrap(self, packets: Sequence[bytes]) -> list[bytes]:
        """Each packet behind a header of its own."""
        first, middle, tail, const = self._first, self._middle, self._tail, self._const
        number, pack = self._tunnel.next_ident, _VARIABLE.pack
        out: list[bytes] = []
        for data in packets:
            total = OUTER_LEN + len(data)
            ident = number()
            check = ((const + total + ident) % 0xFFFF or 0xFFFF) ^ 0xFFFF
            out.append(pack(first, total, ident, middle, check, tail) + data)
        return out
