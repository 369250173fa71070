"""UPDATE: taking one apart, and packing routes into as few as possible (RFC 4271 §4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agents.bird.attribute_encoder import attribute
from agents.bird.attribute_types import MP_REACH_NLRI, MP_UNREACH_NLRI, OPTIONAL
from agents.bird.errors import UPDATE_ERROR, BgpPeerError
from agents.bird.messages import HEADER_SIZE, MARKER, UPDATE, message
from agents.bird.net import SAFI_UNICAST, Afi

if TYPE_CHECKING:
    from collections.abc import Sequence

# Withdrawn length, attribute length.
_LENGTHS: Final = 4


class Parts(NamedTuple):
    """The three blocks of an UPDATE."""

    withdrawn: bytes
    attributes: bytes
    nlri: bytes


def split_update(body: bytes) -> Parts:
    """Cut a body into its blocks; BgpPeerError 3/1 if the lengths do not fit."""
    size = len(body)
    withdrawn_end = 2 + (body[0] << 8 | body[1])
    if withdrawn_end + 2 > size:
        raise BgpPeerError(UPDATE_ERROR, 1)
    start = withdrawn_end + 2
    end = start + (body[withdrawn_end] << 8 | body[withdrawn_end + 1])
    if end > size:
        raise BgpPeerError(UPDATE_ERROR, 1)
    return Parts(body[2:withdrawn_end], body[start:end], body[end:])


def end_of_rib(afi: Afi) -> bytes:
    """The mark that the first feed is over (RFC 4724 §2)."""
    if afi is Afi.IPV4:
        return message(UPDATE, bytes(4))
    unreach = attribute(OPTIONAL, MP_UNREACH_NLRI, bytes((0, afi, SAFI_UNICAST)))
    return message(UPDATE, b"\0\0" + len(unreach).to_bytes(2, "big") + unreach)


def _chunks(keys: Sequence[bytes], room: int) -> list[bytes]:
    """Join keys into blocks of at most ``room`` octets."""
    longest = max(map(len, keys))
    per_block = max(1, room // longest)
    return [b"".join(keys[at : at + per_block]) for at in range(0, len(keys), per_block)]


def announcements(
    afi: Afi, attributes: bytes, next_hop: bytes, keys: Sequence[bytes], limit: int
) -> list[bytes]:
    """Messages that announce ``keys`` (with path identifiers where negotiated) with one block.

    For IPv6 ``attributes`` has no NEXT_HOP and MP_REACH_NLRI goes first (RFC 7606 §5.1).  Returns
    nothing if the attributes leave no room for a prefix: such a route cannot be sent.
    """
    out: list[bytes] = []
    if afi is Afi.IPV4:
        room = limit - HEADER_SIZE - _LENGTHS - len(attributes)
        if room < 9:
            return out
        head = b"\0\0" + len(attributes).to_bytes(2, "big") + attributes
        fixed = HEADER_SIZE + len(head)
        for block in _chunks(keys, room):
            out.append(MARKER)
            out.append((fixed + len(block)).to_bytes(2, "big") + b"\x02" + head)
            out.append(block)
        return out
    reach = bytes((0, afi, SAFI_UNICAST, len(next_hop))) + next_hop + b"\0"
    room = limit - HEADER_SIZE - _LENGTHS - len(attributes) - len(reach) - 4
    if room < 21:
        return out
    for block in _chunks(keys, room):
        blob = attribute(OPTIONAL, MP_REACH_NLRI, reach + block) + attributes
        out.append(message(UPDATE, b"\0\0" + len(blob).to_bytes(2, "big") + blob))
    return out


def withdrawals(afi: Afi, keys: Sequence[bytes], limit: int) -> list[bytes]:
    """Messages that withdraw ``keys``."""
    out: list[bytes] = []
    if afi is Afi.IPV4:
        for block in _chunks(keys, limit - HEADER_SIZE - _LENGTHS):
            out.append(message(UPDATE, len(block).to_bytes(2, "big") + block + b"\0\0"))  # noqa: PERF401
        return out
    head = bytes((0, afi, SAFI_UNICAST))
    for block in _chunks(keys, limit - HEADER_SIZE - _LENGTHS - 7):
        blob = attribute(OPTIONAL, MP_UNREACH_NLRI, head + block)
        out.append(message(UPDATE, b"\0\0" + len(blob).to_bytes(2, "big") + blob))
    return out
