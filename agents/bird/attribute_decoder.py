"""Path attributes as they are read, with RFC 7606's three answers to malformed ones.

Treat-as-withdraw is a field of the result (``bad``), attribute discard leaves the attribute out,
and only what makes the rest of the message unreadable raises BgpPeerError.  What each case gets is
the table of tests/unit/test_bgp_update_errors.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from agents.bird.attribute_types import (
    AGGREGATOR,
    AS4_AGGREGATOR,
    AS4_PATH,
    AS_PATH,
    ATOMIC_AGGREGATE,
    CLUSTER_LIST,
    COMMUNITIES,
    EXT_COMMUNITIES,
    EXTENDED,
    LARGE_COMMUNITIES,
    LOCAL_PREF,
    MP_REACH_NLRI,
    MP_UNREACH_NLRI,
    MULTI_EXIT_DISC,
    NEXT_HOP,
    OPTIONAL,
    ORIGIN,
    ORIGINATOR_ID,
    PARTIAL,
    TRANSITIVE,
)
from agents.bird.attributes import (
    AS_SEQUENCE,
    AS_SET,
    AS_TRANS,
    DEFAULT_LOCAL_PREF,
    Attrs,
    list_contains,
    merge_as4_path,
)
from agents.bird.errors import UPDATE_ERROR, BgpPeerError

# Optional and Transitive bits of the attributes we know (RFC 4271 §5 and the RFC of each).
_FLAGS: Final = {
    ORIGIN: TRANSITIVE,
    AS_PATH: TRANSITIVE,
    NEXT_HOP: TRANSITIVE,
    MULTI_EXIT_DISC: OPTIONAL,
    LOCAL_PREF: TRANSITIVE,
    ATOMIC_AGGREGATE: TRANSITIVE,
    AGGREGATOR: OPTIONAL | TRANSITIVE,
    COMMUNITIES: OPTIONAL | TRANSITIVE,
    ORIGINATOR_ID: OPTIONAL,
    CLUSTER_LIST: OPTIONAL,
    MP_REACH_NLRI: OPTIONAL,
    MP_UNREACH_NLRI: OPTIONAL,
    EXT_COMMUNITIES: OPTIONAL | TRANSITIVE,
    AS4_PATH: OPTIONAL | TRANSITIVE,
    AS4_AGGREGATOR: OPTIONAL | TRANSITIVE,
    LARGE_COMMUNITIES: OPTIONAL | TRANSITIVE,
}
# Malformed ones of these are left out, the route stays (RFC 7606 §7.6, §7.7; RFC 6793 §6).
_DISCARDED: Final = frozenset({ATOMIC_AGGREGATE, AGGREGATOR, AS4_PATH, AS4_AGGREGATOR})


class DecodeContext(NamedTuple):
    """What of a session decides how attributes are read.

    ``loopback`` allows NEXT_HOP in 127/8; ``own_address`` is refused as NEXT_HOP.
    """

    as4: bool = True
    internal: bool = False
    loopback: bool = False
    own_address: bytes = b""
    enforce_first_as: int = 0
    default_local_pref: int = DEFAULT_LOCAL_PREF
    preference: int = 100


class MpReach(NamedTuple):
    """MP_REACH_NLRI (RFC 4760 §3)."""

    afi: int
    safi: int
    next_hop: bytes
    nlri: bytes


class MpUnreach(NamedTuple):
    """MP_UNREACH_NLRI (RFC 4760 §4)."""

    afi: int
    safi: int
    nlri: bytes


class Decoded(NamedTuple):
    """The attributes of one UPDATE; ``bad`` says why its routes are treated as withdrawn.

    ``malformed``: an attribute itself is wrong, not one missing.  ``looped``: that is only that the
    routes came from us, which is no mistake of the peer's.

    ``attrs.next_hop`` is NEXT_HOP's; routes of ``reach`` take ``reach.next_hop`` instead.
    """

    attrs: Attrs
    bad: str = ""
    reach: MpReach | None = None
    unreach: MpUnreach | None = None
    seen: frozenset[int] = frozenset()
    malformed: bool = False
    looped: bool = False


_Reader = Callable[[bytes, DecodeContext, dict[str, object]], None]


class _MalformedError(Exception):
    """An attribute is wrong; the text says how."""


def split_multiprotocol(block: bytes) -> tuple[bytes, list[tuple[int, int, bytes]]]:
    """Take MP_REACH and MP_UNREACH out of an attribute block.

    Returns the rest, which repeats from message to message, and the (flags, type, value) taken.  A
    block that overruns is returned whole: ``decode`` finds that again.
    """
    kept: list[bytes] = []
    taken: list[tuple[int, int, bytes]] = []
    at = start = 0
    size = len(block)
    while at + 3 <= size:
        flags, kind = block[at], block[at + 1]
        if flags & EXTENDED:
            if at + 4 > size:
                break
            value = at + 4
            end = value + (block[at + 2] << 8 | block[at + 3])
        else:
            value = at + 3
            end = value + block[at + 2]
        if end > size:
            break
        if kind in (MP_REACH_NLRI, MP_UNREACH_NLRI):
            kept.append(block[start:at])
            taken.append((flags, kind, block[value:end]))
            start = end
        at = end
    if not taken:
        return block, taken
    kept.append(block[start:])
    return b"".join(kept), taken


def decode(
    block: bytes, context: DecodeContext, taken: list[tuple[int, int, bytes]] | None = None
) -> Decoded:
    """Read an attribute block; ``taken`` are multiprotocol attributes found before.

    Raises BgpPeerError (3/1, 3/2, 3/9) for what RFC 7606 leaves a session reset.
    """
    if taken is None:
        block, taken = split_multiprotocol(block)
    values: dict[int, bytes] = {}
    unknown: list[tuple[int, int, bytes]] = []
    bad = ""
    at = 0
    size = len(block)
    while at < size:
        if at + 3 > size or (block[at] & EXTENDED and at + 4 > size):
            bad = bad or "attribute header overruns the attributes"
            break
        flags, kind = block[at], block[at + 1]
        if flags & EXTENDED:
            length = block[at + 2] << 8 | block[at + 3]
            at += 4
        else:
            length = block[at + 2]
            at += 3
        value = block[at : at + length]
        at += length
        if at > size:
            bad = bad or f"attribute {kind} overruns the attributes"
            break
        want = _FLAGS.get(kind)
        if want is None:
            if not flags & OPTIONAL:
                raise BgpPeerError(UPDATE_ERROR, 2, bytes((flags, kind)) + value)
            if flags & TRANSITIVE and all(have != kind for _, have, _ in unknown):
                unknown.append((flags & 0xE0 | PARTIAL, kind, value))
            continue
        if kind in values:
            continue
        if flags & (OPTIONAL | TRANSITIVE) != want:
            bad = bad or f"attribute {kind} has flags {flags:#04x}"
            continue
        values[kind] = value
    for flags, kind, _ in taken:
        if flags & (OPTIONAL | TRANSITIVE) != OPTIONAL:
            bad = bad or f"attribute {kind} has flags {flags:#04x}"
    reach, unreach = _multiprotocol(taken)
    attrs, why = _interpret(values, tuple(unknown), context)
    seen = frozenset(values)
    bad = bad or why
    return Decoded(attrs, bad, reach, unreach, seen, malformed=bool(bad))


def _multiprotocol(
    taken: list[tuple[int, int, bytes]],
) -> tuple[MpReach | None, MpUnreach | None]:
    reach: MpReach | None = None
    unreach: MpUnreach | None = None
    for _, kind, value in taken:
        if kind == MP_REACH_NLRI:
            if reach is not None:
                raise BgpPeerError(UPDATE_ERROR, 1)
            if len(value) < 5 or 5 + value[3] > len(value):
                raise BgpPeerError(UPDATE_ERROR, 9, value)
            afi, safi, size = int.from_bytes(value[:2], "big"), value[2], value[3]
            if safi == 1 and size not in {1: (4,), 2: (16, 32)}.get(afi, (size,)):
                raise BgpPeerError(UPDATE_ERROR, 9, value)
            reach = MpReach(afi, safi, value[4 : 4 + size], value[5 + size :])
        else:
            if unreach is not None:
                raise BgpPeerError(UPDATE_ERROR, 1)
            if len(value) < 3:
                raise BgpPeerError(UPDATE_ERROR, 9, value)
            unreach = MpUnreach(int.from_bytes(value[:2], "big"), value[2], value[3:])
    return reach, unreach


def _interpret(
    values: dict[int, bytes], unknown: tuple[tuple[int, int, bytes], ...], context: DecodeContext
) -> tuple[Attrs, str]:
    fields: dict[str, object] = {
        "unknown": unknown,
        "local_pref": context.default_local_pref,
        "preference": context.preference,
    }
    bad = ""
    for kind, value in values.items():
        reader = _READERS.get(kind)
        if reader is None:
            continue
        try:
            reader(value, context, fields)
        except _MalformedError as error:
            if kind not in _DISCARDED:
                bad = bad or str(error)
    if not context.as4 and not bad:
        _merge_as4(values, fields)
    return Attrs(**fields), bad  # type: ignore[arg-type]  # each reader sets its own type


def _origin(value: bytes, _: DecodeContext, out: dict[str, object]) -> None:
    if len(value) != 1 or value[0] > 2:
        raise _MalformedError(f"ORIGIN is {value.hex() or 'empty'}")
    out["origin"] = value[0]


def _widen(value: bytes) -> bytes:
    """A 2-octet AS_PATH in 4-octet form."""
    out = b""
    at = 0
    while at + 2 <= len(value):
        kind, count = value[at], value[at + 1]
        at += 2
        if at + 2 * count > len(value):
            raise _MalformedError("AS_PATH segment overruns")
        asns = struct.unpack_from(f">{count}H", value, at)
        out += bytes((kind, count)) + struct.pack(f">{count}I", *asns)
        at += 2 * count
    if at != len(value):
        raise _MalformedError("AS_PATH has a partial segment")
    return out


def check_path(path: bytes) -> None:
    """Raise _MalformedError unless these are segments of RFC 4271 (4-octet form) without AS 0."""
    at = 0
    while at < len(path):
        if at + 2 > len(path):
            raise _MalformedError("AS_PATH has a partial segment")
        kind, count = path[at], path[at + 1]
        if kind not in (AS_SET, AS_SEQUENCE):
            raise _MalformedError(f"AS_PATH segment of type {kind}")
        end = at + 2 + 4 * count
        if not count or end > len(path):
            raise _MalformedError("AS_PATH segment overruns or is empty")
        if list_contains(path[at + 2 : end], b"\0\0\0\0"):
            raise _MalformedError("AS 0 in AS_PATH")
        at = end


def _as_path(value: bytes, context: DecodeContext, out: dict[str, object]) -> None:
    path = value if context.as4 else _widen(value)
    check_path(path)
    first = context.enforce_first_as
    if first and not (path and path[0] == AS_SEQUENCE and path[2:6] == first.to_bytes(4, "big")):
        raise _MalformedError(f"AS_PATH does not start with the peer's AS {first}")
    out["as_path"] = path


def valid_next_hop(address: bytes, context: DecodeContext) -> str:
    """Why a NEXT_HOP of 4 or 16 (32) octets is refused, "" if it is not."""
    first = address[0]
    if len(address) != 4:
        if first == 0xFF or not any(address[:16]):
            return "NEXT_HOP is no unicast IPv6 address"
        return ""
    if first == 0 or first >= 224:
        return f"NEXT_HOP {'.'.join(map(str, address))} is no unicast address"
    if first == 127 and not context.loopback:
        return "NEXT_HOP is a loopback address"
    if address == context.own_address:
        return "NEXT_HOP is our own address"
    return ""


def _next_hop(value: bytes, context: DecodeContext, out: dict[str, object]) -> None:
    if len(value) != 4:
        raise _MalformedError(f"NEXT_HOP of {len(value)} octets")
    why = valid_next_hop(value, context)
    if why:
        raise _MalformedError(why)
    out["next_hop"] = value


def _number(name: str, field: str) -> _Reader:
    def read(value: bytes, _: DecodeContext, out: dict[str, object]) -> None:
        if len(value) != 4:
            raise _MalformedError(f"{name} of {len(value)} octets")
        out[field] = int.from_bytes(value, "big")

    return read


def _list_of(name: str, field: str, size: int) -> _Reader:
    def read(value: bytes, _: DecodeContext, out: dict[str, object]) -> None:
        if not value or len(value) % size:
            raise _MalformedError(f"{name} of {len(value)} octets")
        out[field] = value

    return read


def _internal(reader: _Reader) -> _Reader:
    """Attributes an external peer may not send are left out (RFC 7606 §7.5, §7.9, §7.10)."""

    def read(value: bytes, context: DecodeContext, out: dict[str, object]) -> None:
        if context.internal:
            reader(value, context, out)

    return read


def _atomic(value: bytes, _: DecodeContext, out: dict[str, object]) -> None:
    if value:
        raise _MalformedError("ATOMIC_AGGREGATE is not empty")
    out["atomic_aggregate"] = True


def _aggregator(value: bytes, context: DecodeContext, out: dict[str, object]) -> None:
    if len(value) != (8 if context.as4 else 6):
        raise _MalformedError(f"AGGREGATOR of {len(value)} octets")
    found = value if context.as4 else b"\0\0" + value
    if found[:4] == b"\0\0\0\0":
        raise _MalformedError("AS 0 in AGGREGATOR")
    out["aggregator"] = found


def _merge_as4(values: dict[int, bytes], fields: dict[str, object]) -> None:
    """AS4_PATH and AS4_AGGREGATOR of a 2-octet peer (RFC 6793 §4.2.3)."""
    aggregator = fields.get("aggregator", b"")
    assert isinstance(aggregator, bytes)
    as4_aggregator = values.get(AS4_AGGREGATOR, b"")
    if aggregator and len(as4_aggregator) == 8:
        if aggregator[:4] != AS_TRANS.to_bytes(4, "big"):
            # Somebody who does not know AS4 aggregated again: both AS4 attributes are stale.
            return
        fields["aggregator"] = as4_aggregator
    as4_path = values.get(AS4_PATH)
    path = fields.get("as_path")
    if as4_path is None or not isinstance(path, bytes):
        return
    as4_path = _without_confederations(as4_path)
    if as4_path is not None:
        fields["as_path"] = merge_as4_path(path, as4_path)


def _without_confederations(path: bytes) -> bytes | None:
    """AS4_PATH without confederation segments; None if it is malformed (RFC 6793 §6)."""
    out = b""
    at = 0
    while at < len(path):
        if at + 2 > len(path):
            return None
        end = at + 2 + 4 * path[at + 1]
        if not path[at + 1] or end > len(path) or not 1 <= path[at] <= 4:
            return None
        if path[at] in (AS_SET, AS_SEQUENCE):
            out += path[at:end]
        at = end
    return out


_READERS: Final[dict[int, _Reader]] = {
    ORIGIN: _origin,
    AS_PATH: _as_path,
    NEXT_HOP: _next_hop,
    MULTI_EXIT_DISC: _number("MULTI_EXIT_DISC", "med"),
    LOCAL_PREF: _internal(_number("LOCAL_PREF", "local_pref")),
    ATOMIC_AGGREGATE: _atomic,
    AGGREGATOR: _aggregator,
    COMMUNITIES: _list_of("COMMUNITIES", "communities", 4),
    ORIGINATOR_ID: _internal(_number("ORIGINATOR_ID", "originator_id")),
    CLUSTER_LIST: _internal(_list_of("CLUSTER_LIST", "cluster_list", 4)),
    EXT_COMMUNITIES: _list_of("EXTENDED_COMMUNITIES", "ext_communities", 8),
    LARGE_COMMUNITIES: _list_of("LARGE_COMMUNITIES", "large_communities", 12),
}
