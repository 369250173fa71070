"""pcapng files (draft-ietf-opsawg-pcapng): one section, one interface block a device.

Written little-endian with nanosecond timestamps; Wireshark, tshark and tcpdump read it.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from emulator.errors import WireError

LINKTYPE_ETHERNET: Final = 1
LINKTYPE_RAW: Final = 101
SNAPLEN: Final = 262144  # tcpdump's own
SECTION_HEADER: Final = 0x0A0D0D0A
INTERFACE_DESCRIPTION: Final = 1
ENHANCED_PACKET: Final = 6
BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D

_OPT_END, _SHB_USERAPPL, _IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _EPB_FLAGS = 0, 4, 2, 3, 9, 2
_INBOUND, _OUTBOUND = 1, 2


class Block(NamedTuple):
    """One block: its type and its body without padding of the whole."""

    type: int
    body: bytes


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return b"".join((struct.pack("<II", kind, length), body, struct.pack("<I", length)))


def section_header() -> bytes:
    """Return the block a file begins with."""
    body = struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, -1)
    return _block(
        SECTION_HEADER, body + _option(_SHB_USERAPPL, b"podwire") + _option(_OPT_END, b"")
    )


def interface(name: str, *, description: str = "", linktype: int = LINKTYPE_ETHERNET) -> bytes:
    """Return the block of the next interface; interfaces are numbered from 0 in file order."""
    options = _option(_IF_NAME, name.encode())
    if description:
        options += _option(_IF_DESCRIPTION, description.encode())
    options += _option(_IF_TSRESOL, b"\x09") + _option(_OPT_END, b"")
    return _block(INTERFACE_DESCRIPTION, struct.pack("<HHI", linktype, 0, SNAPLEN) + options)


def packet(index: int, timestamp_s: float, data: bytes, *, outbound: bool) -> bytes:
    """Return the block of a frame seen at interface ``index``, ``timestamp_s`` since the epoch."""
    ticks = round(timestamp_s * 1_000_000_000)
    kept = data[:SNAPLEN]
    flags = _option(_EPB_FLAGS, struct.pack("<I", _OUTBOUND if outbound else _INBOUND))
    body = b"".join(
        (
            struct.pack("<IIIII", index, ticks >> 32, ticks & 0xFFFFFFFF, len(kept), len(data)),
            kept,
            bytes(-len(kept) % 4),
            flags,
            _option(_OPT_END, b""),
        )
    )
    return _block(ENHANCED_PACKET, body)


def parse_blocks(data: bytes) -> list[Block]:
    """Read a little-endian file block by block; WireError if lengths do not agree."""
    blocks: list[Block] = []
    position = 0
    while position < len(data):
        if position + 12 > len(data):
            raise WireError(f"truncated pcapng block header at offset {position}")
        kind, length = struct.unpack_from("<II", data, position)
        end = position + length
        if length < 12 or length % 4 or end > len(data):
            raise WireError(f"pcapng block of {length} bytes at offset {position}")
        if struct.unpack_from("<I", data, end - 4)[0] != length:
            raise WireError(f"pcapng block at offset {position}: its two lengths differ")
        blocks.append(Block(kind, data[position + 8 : end - 4]))
        position = end
    return blocks


class CapturedPacket(NamedTuple):
    """A packet read back: interface number, nanoseconds since the epoch, bytes, direction."""

    interface: int
    timestamp_ns: int
    data: bytes
    outbound: bool


def parse_packet(body: bytes) -> CapturedPacket:
    """Read the body of an enhanced packet block; WireError if short."""
    if len(body) < 20:
        raise WireError(f"truncated enhanced packet block: {len(body)} bytes of 20")
    index, high, low, kept, _ = struct.unpack_from("<IIIII", body)
    if 20 + kept > len(body):
        raise WireError(f"enhanced packet block: {kept} bytes of packet in {len(body)}")
    start = 20 + kept + -kept % 4
    flags = 0
    if len(body) >= start + 8:
        code, length, value = struct.unpack_from("<HHI", body, start)
        flags = value if (code, length) == (_EPB_FLAGS, 4) else 0
    outbound = flags & 3 == _OUTBOUND
    return CapturedPacket(index, high << 32 | low, body[20 : 20 + kept], outbound)
