"""The attributes of a route as one value, and what can be asked of them.

Lists stay the octets of the wire (AS_PATH always in its 4-octet form): they are compared, copied
and sent far more often than read.  Sources: RFC 4271 §4.3 and §5, RFC 6793, RFC 4456, RFC 1997,
RFC 4360, RFC 8092.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

ORIGIN_IGP: Final = 0
ORIGIN_EGP: Final = 1
ORIGIN_INCOMPLETE: Final = 2

AS_SET: Final = 1
AS_SEQUENCE: Final = 2
AS_CONFED_SEQUENCE: Final = 3
AS_CONFED_SET: Final = 4
AS_TRANS: Final = 23456
# A segment's count is one octet.
MAX_SEGMENT: Final = 255

GRACEFUL_SHUTDOWN: Final = 0xFFFF0000
LLGR_STALE: Final = 0xFFFF0006
NO_LLGR: Final = 0xFFFF0007
NO_EXPORT: Final = 0xFFFFFF01
NO_ADVERTISE: Final = 0xFFFFFF02
NO_EXPORT_SUBCONFED: Final = 0xFFFFFF03

DEFAULT_LOCAL_PREF: Final = 100


class Attrs(NamedTuple):
    """Everything a route carries beside its network; absent attributes are None or empty.

    ``origin`` is None for routes that no BGP session or export filter touched.  ``next_hop`` is 4,
    16 or 32 octets, ``aggregator`` 8 (AS, address), ``unknown`` (flags, type, value) of optional
    transitive attributes this speaker does not know.  ``preference krt_tunnel krt_metric`` are
    BIRD's own and never on the wire.
    """

    origin: int | None = None
    as_path: bytes = b""
    next_hop: bytes = b""
    med: int | None = None
    local_pref: int | None = None
    atomic_aggregate: bool = False
    aggregator: bytes = b""
    communities: bytes = b""
    originator_id: int | None = None
    cluster_list: bytes = b""
    ext_communities: bytes = b""
    large_communities: bytes = b""
    unknown: tuple[tuple[int, int, bytes], ...] = ()
    preference: int = 100
    krt_tunnel: str | None = None
    krt_metric: int | None = None


def segments(path: bytes) -> list[tuple[int, tuple[int, ...]]]:
    """The (type, AS numbers) of a path in 4-octet form."""
    found = []
    at = 0
    while at < len(path):
        kind, count = path[at], path[at + 1]
        found.append((kind, struct.unpack_from(f">{count}I", path, at + 2)))
        at += 2 + 4 * count
    return found


def build_path(parts: list[tuple[int, tuple[int, ...]]]) -> bytes:
    """The opposite of ``segments``; a segment of more than 255 is written as several."""
    out = b""
    for kind, asns in parts:
        for start in range(0, len(asns), MAX_SEGMENT):
            some = asns[start : start + MAX_SEGMENT]
            out += bytes((kind, len(some))) + struct.pack(f">{len(some)}I", *some)
    return out


def path_length(path: bytes) -> int:
    """Length for the decision: a set counts 1, confederation segments nothing (RFC 5065 §5.3)."""
    total = 0
    at = 0
    while at < len(path):
        kind, count = path[at], path[at + 1]
        if kind == AS_SEQUENCE:
            total += count
        elif kind == AS_SET:
            total += 1
        at += 2 + 4 * count
    return total


def path_count(path: bytes, asn: int) -> int:
    """How often an AS is in a path."""
    if asn.to_bytes(4, "big") not in path:
        return 0
    return sum(asns.count(asn) for _, asns in segments(path))


def path_first(path: bytes) -> int:
    """The neighbour AS; 0 for an empty path or one that starts with a set."""
    if len(path) >= 6 and path[0] == AS_SEQUENCE:
        return int.from_bytes(path[2:6], "big")
    return 0


def path_last(path: bytes) -> int:
    """The origin AS, 0 if the path is empty or ends with a set."""
    parts = segments(path)
    if parts and parts[-1][0] == AS_SEQUENCE:
        return parts[-1][1][-1]
    return 0


def path_prepend(path: bytes, asn: int, count: int = 1) -> bytes:
    """Put an AS before a path ``count`` times."""
    for _ in range(count):
        if path and path[0] == AS_SEQUENCE and path[1] < MAX_SEGMENT:
            path = bytes((AS_SEQUENCE, path[1] + 1)) + asn.to_bytes(4, "big") + path[2:]
        else:
            path = bytes((AS_SEQUENCE, 1)) + asn.to_bytes(4, "big") + path
    return path


def format_path(path: bytes) -> str:
    """``65001 65002 {65003 65004}`` as BIRD prints it; confederation segments in parentheses."""
    words = []
    for kind, asns in segments(path):
        text = " ".join(map(str, asns))
        match kind:
            case 1:
                text = f"{{{text}}}"
            case 3:
                text = f"({text})"
            case 4:
                text = f"({{{text}}})"
        words.append(text)
    return " ".join(words)


def list_contains(values: bytes, value: bytes) -> bool:
    """True if a list of equal-sized values holds one."""
    size = len(value)
    at = values.find(value)
    while at > 0 and at % size:
        at = values.find(value, at + 1)
    return at >= 0


def list_delete(values: bytes, value: bytes) -> bytes:
    """The list without a value."""
    size = len(value)
    parts = [values[at : at + size] for at in range(0, len(values), size)]
    return b"".join(part for part in parts if part != value)


def has_community(communities: bytes, value: int) -> bool:
    """True if a standard community (as one integer) is there."""
    return bool(communities) and list_contains(communities, value.to_bytes(4, "big"))


def community_pairs(communities: bytes) -> tuple[tuple[int, int], ...]:
    """The (a, b) of standard communities."""
    return tuple(struct.iter_unpack(">HH", communities))


def large_triples(communities: bytes) -> tuple[tuple[int, int, int], ...]:
    """The (a, b, c) of large communities."""
    return tuple(struct.iter_unpack(">III", communities))


def merge_as4_path(path: bytes, as4_path: bytes) -> bytes:
    """Rebuild a path that went through 2-octet speakers (RFC 6793 §4.2.3).

    ``path`` is AS_PATH widened to 4 octets; confederation segments count nothing.
    """
    missing = path_length(path) - path_length(as4_path)
    if missing < 0:
        return path
    head: list[tuple[int, tuple[int, ...]]] = []
    for kind, asns in segments(path):
        if kind in (AS_CONFED_SEQUENCE, AS_CONFED_SET):
            head.append((kind, asns))
        elif missing <= 0:
            break
        elif kind == AS_SET:
            head.append((kind, asns))
            missing -= 1
        else:
            head.append((kind, asns[:missing]))
            missing -= len(asns)
    front = build_path(head)
    if (
        front
        and as4_path
        and len(head) == 1
        and front[0] == AS_SEQUENCE == as4_path[0]
        and front[1] + as4_path[1] <= MAX_SEGMENT
    ):
        return bytes((AS_SEQUENCE, front[1] + as4_path[1])) + front[2:] + as4_path[2:]
    return front + as4_path
