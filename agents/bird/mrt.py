"""MRT: tables and messages as other tools read them (pure).  RFC 6396, RFC 8050 for path ids.

``table_dump`` writes TABLE_DUMP_V2: a PEER_INDEX_TABLE, then one RIB record a network.  Routes that
are not BGP's come from peer 0, as in BIRD's dumps.  ``message_record`` and ``state_record`` write
BGP4MP_ET, with microseconds.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from agents.bird.attribute_encoder import encode
from agents.bird.attributes import AS_TRANS, ORIGIN_IGP, Attrs
from agents.bird.fsm import State
from agents.bird.messages import message
from agents.bird.net import Afi

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agents.bird.rib import Path
    from agents.bird.speaker import Speaker

TABLE_DUMP_V2: Final = 13
BGP4MP_ET: Final = 17

PEER_INDEX_TABLE: Final = 1
RIB_UNICAST: Final = {Afi.IPV4: 2, Afi.IPV6: 4}
RIB_UNICAST_ADDPATH: Final = {Afi.IPV4: 8, Afi.IPV6: 10}

# BGP4MP subtypes by (4-octet AS, sent by us, with path identifiers).
MESSAGE_SUBTYPES: Final = {
    (False, False, False): 1,
    (True, False, False): 4,
    (False, True, False): 6,
    (True, True, False): 7,
    (False, False, True): 8,
    (True, False, True): 9,
    (False, True, True): 10,
    (True, True, True): 11,
}
STATE_CHANGE_AS4: Final = 5
# RFC 6396 §4.4.1 numbers the states as RFC 4271 lists them.
STATES: Final = {
    State.IDLE: 1,
    State.CONNECT: 2,
    State.ACTIVE: 3,
    State.OPEN_SENT: 4,
    State.OPEN_CONFIRM: 5,
    State.ESTABLISHED: 6,
}

# A peer's type octet: its address is IPv6 (never here), its AS has four octets.
_PEER_AS4: Final = 0x02
# Networks written between two pauses.
SLICE: Final = 500
# RIB records hold at most this many routes of a network: the count has 16 bits.
MAX_ENTRIES: Final = 0xFFFF
_MP_REACH: Final = 14
_OPTIONAL: Final = 0x80
# A RIB entry has two octets for their length; room for MP_REACH_NLRI is left.
_MOST_ATTRIBUTES: Final = 0xFFFF - 40


class Ends(NamedTuple):
    """Who a BGP4MP record is about: IPv4 addresses and AS numbers of both ends."""

    peer_as: int
    local_as: int
    peer_ip: int
    local_ip: int


def record(at: float, kind: int, subtype: int, body: bytes) -> bytes:
    """One MRT record; ``at`` is Unix time.  BGP4MP_ET has the microseconds before the body."""
    seconds = int(at)
    if kind == BGP4MP_ET:
        body = int((at - seconds) * 1_000_000).to_bytes(4, "big") + body
    return struct.pack(">IHHI", seconds & 0xFFFFFFFF, kind, subtype, len(body)) + body


def message_record(
    at: float, ends: Ends, kind: int, body: bytes, *, received: bool, as4: bool, path_ids: bool
) -> bytes:
    """One BGP message of a session; ``as4`` and ``path_ids`` are what the session agreed on."""
    subtype = MESSAGE_SUBTYPES[as4, not received, path_ids]
    return record(at, BGP4MP_ET, subtype, _head(ends, wide=as4) + message(kind, body))


def state_record(at: float, ends: Ends, old: State, new: State) -> bytes:
    """A session's state changed."""
    body = _head(ends, wide=True) + struct.pack(">HH", STATES[old], STATES[new])
    return record(at, BGP4MP_ET, STATE_CHANGE_AS4, body)


def _head(ends: Ends, *, wide: bool) -> bytes:
    asns = ends[:2] if wide else [asn if asn <= 0xFFFF else AS_TRANS for asn in ends[:2]]
    numbers = struct.pack(">II" if wide else ">HH", *asns)
    return numbers + struct.pack(">HHII", 0, Afi.IPV4, ends.peer_ip, ends.local_ip)


def table_dump(speaker: Speaker, afi: Afi, at: float, epoch: float) -> Iterator[bytes]:
    """A whole table in pieces of some hundred records.

    ``at`` is the Unix time of the dump, ``epoch`` that of the speaker's clock at 0.
    """
    table = speaker.tables[afi]
    view = "master4" if afi is Afi.IPV4 else "master6"
    # Peer 0 stands for every protocol that is not BGP.
    index = {name: number for number, name in enumerate(speaker.peers, 1)}
    yield record(at, TABLE_DUMP_V2, PEER_INDEX_TABLE, _peer_index(speaker, view))
    with_ids = any(afi in _receives_ids(speaker, name) for name in speaker.peers)
    subtype = (RIB_UNICAST_ADDPATH if with_ids else RIB_UNICAST)[afi]
    piece: list[bytes] = []
    for number, key in enumerate(list(table.routes)):
        paths = table.paths(key)
        if not paths:
            continue
        entries = [
            _entry(path, index.get(path.channel.name, 0), epoch, with_ids=with_ids)
            for path in paths[:MAX_ENTRIES]
        ]
        body = struct.pack(">I", number) + key + struct.pack(">H", len(entries)) + b"".join(entries)
        piece.append(record(at, TABLE_DUMP_V2, subtype, body))
        if len(piece) == SLICE:
            yield b"".join(piece)
            piece = []
    yield b"".join(piece)


def _receives_ids(speaker: Speaker, name: str) -> Sequence[Afi]:
    session = speaker.peers[name].session
    return session.terms.add_path_rx if session is not None and session.terms is not None else ()


def _peer_index(speaker: Speaker, view: str) -> bytes:
    name = view.encode()
    out = struct.pack(">IH", speaker.router_id, len(name)) + name
    out += struct.pack(">H", len(speaker.peers) + 1)
    out += struct.pack(">BIII", _PEER_AS4, 0, 0, 0)
    for peer in speaker.peers.values():
        session = peer.session
        opened = session.peer_open if session is not None else None
        router_id = opened.router_id if opened is not None else 0
        out += struct.pack(">BIII", _PEER_AS4, router_id, peer.config.neighbor, peer.config.peer_as)
    return out


def _entry(path: Path, peer: int, epoch: float, *, with_ids: bool) -> bytes:
    attributes = rib_attributes(path.attrs)
    head = struct.pack(">HI", peer, int(epoch + path.learned_at) & 0xFFFFFFFF)
    if with_ids:
        head += path.path_id.to_bytes(4, "big")
    return head + struct.pack(">H", len(attributes)) + attributes


def rib_attributes(attrs: Attrs) -> bytes:
    """A route's attributes as RFC 6396 §4.3.4 stores them: wide AS numbers, next hop alone."""
    if attrs.origin is None:
        attrs = attrs._replace(origin=ORIGIN_IGP)
    is_ipv4 = len(attrs.next_hop) == 4
    block = encode(attrs, as4=True, next_hop=is_ipv4)
    if len(block) > _MOST_ATTRIBUTES:
        # An AS_PATH of 2-octet numbers that filled a message, widened: only the route is kept.
        bare = Attrs(origin=attrs.origin, next_hop=attrs.next_hop)
        block = encode(bare, as4=True, next_hop=is_ipv4)
    if attrs.next_hop and not is_ipv4:
        value = bytes((len(attrs.next_hop),)) + attrs.next_hop
        block += bytes((_OPTIONAL, _MP_REACH, len(value))) + value
    return block
