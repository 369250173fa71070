"""BMP: what peers tell us, for a collector (pure).  RFC 7854, pre-policy Adj-RIB-In.

``BmpFeed`` turns a speaker's state and events into messages; ``bmp_client`` carries them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from agents.bird.attribute_encoder import encode
from agents.bird.events import SessionDown, SessionUp
from agents.bird.messages import HEADER_SIZE, MAX_MESSAGE, OPEN, UPDATE, message
from agents.bird.net import Afi
from agents.bird.update import announcements, end_of_rib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agents.bird.channel import Channel
    from agents.bird.connection import Connection
    from agents.bird.events import Event
    from agents.bird.peer import Peer
    from agents.bird.rib import Path
    from agents.bird.speaker import Speaker

VERSION: Final = 3
ROUTE_MONITORING: Final = 0
STATISTICS: Final = 1
PEER_DOWN: Final = 2
PEER_UP: Final = 3
INITIATION: Final = 4
TERMINATION: Final = 5

# §4.4: information TLVs.
SYS_DESCR: Final = 1
SYS_NAME: Final = 2
# §4.5: why monitoring ends.
REASON: Final = 1
ADMINISTRATIVELY_CLOSED: Final = 0
# §4.9: why a peer is down.
LOCAL_NOTIFICATION: Final = 1
LOCAL_EVENT: Final = 2
REMOTE_NOTIFICATION: Final = 3
REMOTE_CLOSED: Final = 4
# §4.2: the peer's AS_PATHs have 2-octet numbers.
LEGACY_PATHS: Final = 0x20
# §4.8: counters and gauges.
REJECTED_BY_POLICY: Final = 0
ADJ_RIB_IN_ROUTES: Final = 7
LOC_RIB_ROUTES: Final = 8
# RFC 4271 §8.1.1, event 2: what ends a session without a NOTIFICATION from us.
MANUAL_STOP: Final = 2

Ports = tuple[int, int]


def frame(kind: int, body: bytes) -> bytes:
    """A message with the common header (§4.1)."""
    return struct.pack(">BIB", VERSION, 6 + len(body), kind) + body


def tlv(kind: int, value: bytes) -> bytes:
    """One information or statistics TLV."""
    return struct.pack(">HH", kind, len(value)) + value


def initiation(name: str, description: str) -> bytes:
    """Who speaks."""
    return frame(INITIATION, tlv(SYS_DESCR, description.encode()) + tlv(SYS_NAME, name.encode()))


def termination(reason: int = ADMINISTRATIVELY_CLOSED) -> bytes:
    """The last message."""
    return frame(TERMINATION, tlv(REASON, struct.pack(">H", reason)))


def peer_header(address: int, asn: int, router_id: int, at: float, *, legacy: bool) -> bytes:
    """The per-peer header (§4.2) of an IPv4 peer; ``at`` is Unix time."""
    seconds = int(at)
    return struct.pack(
        ">BB8s12xIIIII",
        0,
        LEGACY_PATHS if legacy else 0,
        bytes(8),
        address,
        asn,
        router_id,
        seconds & 0xFFFFFFFF,
        int((at - seconds) * 1_000_000),
    )


class _Up(NamedTuple):
    """A session the collector knows of: its connection's number, its messages' header."""

    connection: int
    address: int
    asn: int
    router_id: int
    legacy: bool


class BmpFeed:
    """The messages for one collector's connection."""

    def __init__(
        self,
        speaker: Speaker,
        unix: Callable[[float], float],
        ports_of: Callable[[int], Ports],
    ) -> None:
        """``unix`` is the Unix time of a time of the speaker, ``ports_of`` a connection's ports."""
        self._speaker = speaker
        self._unix = unix
        self._ports_of = ports_of
        # Peers the collector knows as up.
        self._up: dict[str, _Up] = {}

    def start(self, description: str) -> Iterator[bytes]:
        """What a collector hears first: who we are, every peer that is up, what it told us."""
        speaker = self._speaker
        yield initiation(speaker.config.hostname or "bird", description)
        for name in list(speaker.peers):
            peer = speaker.peers.get(name)
            if peer is None or peer.session is None or name in self._up:
                continue
            yield self._peer_up(peer)
            for channel in list(peer.exchange.channels.values()):
                yield from self._routes(peer, channel)

    def message(self, name: str, connection: int, kind: int, body: bytes, now: float) -> bytes:
        """A message a peer sent on a connection, b"" for one that is not monitored."""
        peer = self._speaker.peers.get(name)
        if kind != UPDATE or peer is None or peer.session is None:
            return b""
        before = b""
        known = self._up.get(name)
        if known is None or known.connection != connection:
            # An UPDATE may come in the same piece as the KEEPALIVE that made the session, before
            # anybody heard of this one or of the end of the last.
            if known is not None:
                before = self._peer_down(name, bytes((REMOTE_CLOSED,)), now)
            before += self._peer_up(peer)
        return before + self._monitored(name, message(UPDATE, body), now)

    def event(self, event: Event, now: float) -> bytes:
        """What a session's beginning or end means to the collector, b"" for other events."""
        if isinstance(event, SessionUp):
            peer = self._speaker.peers.get(event.peer)
            if peer is None or peer.session is None or event.peer in self._up:
                return b""
            return self._peer_up(peer)
        if isinstance(event, SessionDown):
            known = self._up.get(event.peer)
            if known is not None and known.connection == event.connection:
                return self._peer_down(event.peer, _down_reason(event), now)
        return b""

    def statistics(self, now: float) -> bytes:
        """A report on every peer that is up."""
        out = b""
        for name in self._up:
            peer = self._speaker.peers.get(name)
            if peer is None:
                continue
            channels = peer.exchange.channels.values()
            filtered = sum(channel.stats.imp_updates_filtered for channel in channels)
            values = (
                tlv(REJECTED_BY_POLICY, struct.pack(">I", filtered & 0xFFFFFFFF)),
                tlv(ADJ_RIB_IN_ROUTES, struct.pack(">Q", sum(len(c.received) for c in channels))),
                tlv(LOC_RIB_ROUTES, struct.pack(">Q", sum(c.routes for c in channels))),
            )
            body = struct.pack(">I", len(values)) + b"".join(values)
            out += frame(STATISTICS, self._header(name, now) + body)
        return out

    # -- inside ------------------------------------------------------------------------------------

    def _header(self, name: str, now: float) -> bytes:
        up = self._up[name]
        return peer_header(up.address, up.asn, up.router_id, self._unix(now), legacy=up.legacy)

    def _peer_down(self, name: str, reason: bytes, now: float) -> bytes:
        header = self._header(name, now)
        del self._up[name]
        return frame(PEER_DOWN, header + reason)

    def _peer_up(self, peer: Peer) -> bytes:
        session = peer.session
        assert session is not None
        assert session.terms is not None
        assert session.peer_open is not None
        assert session.local_open is not None
        config = peer.config
        self._up[config.name] = _Up(
            session.number,
            config.neighbor,
            config.peer_as,
            session.peer_open.router_id,
            not session.terms.as4,
        )
        local_port, remote_port = self._ports_of(session.number)
        body = struct.pack(">12xIHH", peer.source_address, local_port, remote_port)
        body += message(OPEN, session.local_open.body()) + message(OPEN, session.peer_open.body())
        return frame(PEER_UP, self._header(config.name, peer.connections.established_at) + body)

    def _monitored(self, name: str, update: bytes, now: float) -> bytes:
        return frame(ROUTE_MONITORING, self._header(name, now) + update)

    def _stored(self, name: str, session: Connection, update: bytes, at: float) -> bytes:
        """One update of the past, b"" if its session ended meanwhile."""
        peer = self._speaker.peers.get(name)
        if peer is None or peer.session is not session:
            return b""
        return self._monitored(name, update, at)

    def _routes(self, peer: Peer, channel: Channel) -> Iterator[bytes]:
        """What a peer has told so far, as UPDATEs of our making, then End-of-RIB."""
        name, afi, session = peer.config.name, channel.afi, peer.session
        assert session is not None
        assert session.terms is not None
        as4 = session.terms.as4
        groups: dict[int, tuple[Path, list[bytes]]] = {}
        for key, path in channel.received.items():
            groups.setdefault(id(path), (path, []))[1].append(key)
        for path, keys in groups.values():
            block = encode(path.attrs, as4=as4, next_hop=afi is Afi.IPV4)
            pieces = announcements(afi, block, path.attrs.next_hop, keys, MAX_MESSAGE)
            for update in split(b"".join(pieces)):
                yield self._stored(name, session, update, path.learned_at)
        yield self._stored(name, session, end_of_rib(afi), self._speaker.now)


def split(stream: bytes) -> Iterator[bytes]:
    """Cut whole BGP messages that follow each other."""
    at = 0
    while at + HEADER_SIZE <= len(stream):
        size = int.from_bytes(stream[at + 16 : at + 18], "big")
        yield stream[at : at + size]
        at += size


def _down_reason(event: SessionDown) -> bytes:
    """The reason and its data (§4.9)."""
    if event.notification:
        reason = REMOTE_NOTIFICATION if event.received else LOCAL_NOTIFICATION
        return bytes((reason,)) + message(3, event.notification)
    if event.reason.startswith("Socket: "):
        return bytes((REMOTE_CLOSED,))
    return bytes((LOCAL_EVENT,)) + struct.pack(">H", MANUAL_STOP)
