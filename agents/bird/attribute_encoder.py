"""Path attributes as they are sent."""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Final

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
    MULTI_EXIT_DISC,
    NEXT_HOP,
    OPTIONAL,
    ORIGIN,
    ORIGINATOR_ID,
    TRANSITIVE,
)
from agents.bird.attributes import AS_TRANS, segments

if TYPE_CHECKING:
    from agents.bird.attributes import Attrs

# Blocks remembered as they are sent: those of one burst.
MAX_ENCODED: Final = 1024
# A single attribute's value; longer ones need the extended length (RFC 4271 §4.3).
_SHORT: Final = 255
_LONGEST: Final = 0xFFFF


def attribute(flags: int, kind: int, value: bytes) -> bytes:
    """One attribute with its header; the length takes two octets where one is too small.

    A value that no message can hold (a widened AS_PATH) is not cut: there is no room for it in any
    message, so ``announcements`` never sends it.
    """
    if len(value) > _SHORT:
        size = min(len(value), _LONGEST).to_bytes(2, "big")
        return bytes((flags | EXTENDED, kind)) + size + value
    return bytes((flags, kind, len(value))) + value


# What a reflector sends to one client after the other differs only in the client.
@functools.lru_cache(maxsize=MAX_ENCODED)
def encode(attrs: Attrs, *, as4: bool, next_hop: bool) -> bytes:
    """The attribute block of an UPDATE, by ascending type as BIRD sends it.

    ``next_hop`` False leaves NEXT_HOP out: it is in MP_REACH_NLRI.
    """
    out = [attribute(TRANSITIVE, ORIGIN, bytes((attrs.origin or 0,)))]
    path = attrs.as_path
    as4_path = b""
    if not as4:
        path, as4_path = _narrow(path)
    out.append(attribute(TRANSITIVE, AS_PATH, path))
    if next_hop:
        out.append(attribute(TRANSITIVE, NEXT_HOP, attrs.next_hop))
    if attrs.med is not None:
        out.append(attribute(OPTIONAL, MULTI_EXIT_DISC, attrs.med.to_bytes(4, "big")))
    if attrs.local_pref is not None:
        out.append(attribute(TRANSITIVE, LOCAL_PREF, attrs.local_pref.to_bytes(4, "big")))
    if attrs.atomic_aggregate:
        out.append(attribute(TRANSITIVE, ATOMIC_AGGREGATE, b""))
    as4_aggregator = b""
    if attrs.aggregator:
        aggregator = attrs.aggregator
        if not as4:
            if aggregator[:2] != b"\0\0":
                as4_aggregator = aggregator
                aggregator = AS_TRANS.to_bytes(4, "big") + aggregator[4:]
            aggregator = aggregator[2:]
        out.append(attribute(OPTIONAL | TRANSITIVE, AGGREGATOR, aggregator))
    if attrs.communities:
        out.append(attribute(OPTIONAL | TRANSITIVE, COMMUNITIES, attrs.communities))
    if attrs.originator_id is not None:
        out.append(attribute(OPTIONAL, ORIGINATOR_ID, attrs.originator_id.to_bytes(4, "big")))
    if attrs.cluster_list:
        out.append(attribute(OPTIONAL, CLUSTER_LIST, attrs.cluster_list))
    if attrs.ext_communities:
        out.append(attribute(OPTIONAL | TRANSITIVE, EXT_COMMUNITIES, attrs.ext_communities))
    if as4_path:
        out.append(attribute(OPTIONAL | TRANSITIVE, AS4_PATH, as4_path))
    if as4_aggregator:
        out.append(attribute(OPTIONAL | TRANSITIVE, AS4_AGGREGATOR, as4_aggregator))
    unknown = [(kind, attribute(flags, kind, value)) for flags, kind, value in attrs.unknown]
    if attrs.large_communities:
        large = attribute(OPTIONAL | TRANSITIVE, LARGE_COMMUNITIES, attrs.large_communities)
        unknown.append((LARGE_COMMUNITIES, large))
    out.extend(text for _, text in sorted(unknown))
    return b"".join(out)


def _narrow(path: bytes) -> tuple[bytes, bytes]:
    """AS_PATH for a 2-octet peer, and AS4_PATH if it lost something (RFC 6793 §4.2.2)."""
    out = b""
    wide = False
    for kind, asns in segments(path):
        wide = wide or any(asn > 0xFFFF for asn in asns)
        narrow = [asn if asn <= 0xFFFF else AS_TRANS for asn in asns]
        out += bytes((kind, len(asns))) + struct.pack(f">{len(asns)}H", *narrow)
    return out, path if wide else b""
