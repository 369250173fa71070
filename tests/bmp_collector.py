"""A BMP collector: reads RFC 7854 as the RFC writes it, nothing of the product's code."""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

ROUTE_MONITORING, STATISTICS, PEER_DOWN, PEER_UP, INITIATION, TERMINATION = range(6)
_HEADER = 6
_PEER = 42


class Bmp(NamedTuple):
    """One message; peer fields are empty for initiation and termination."""

    kind: int
    peer: str
    asn: int
    router_id: str
    legacy: bool
    at: float
    body: bytes

    @property
    def tlvs(self) -> dict[int, bytes]:
        """Of an initiation, a termination or (after its count) a statistics report."""
        body = self.body[4:] if self.kind == STATISTICS else self.body
        found = {}
        while body:
            kind, size = struct.unpack_from(">HH", body)
            assert len(body) >= 4 + size
            found[kind] = body[4 : 4 + size]
            body = body[4 + size :]
        return found

    @property
    def bgp(self) -> list[bytes]:
        """The BGP messages it carries, whole."""
        at = {PEER_UP: 20, ROUTE_MONITORING: 0, PEER_DOWN: 1}[self.kind]
        found = []
        while at < len(self.body):
            assert self.body[at : at + 16] == b"\xff" * 16
            size = struct.unpack_from(">H", self.body, at + 16)[0]
            assert at + size <= len(self.body)
            found.append(self.body[at : at + size])
            at += size
        return found

    def nets(self) -> tuple[list[str], list[str]]:
        """Announced and withdrawn IPv4 networks of a route monitoring message."""
        (update,) = self.bgp
        assert update[18] == 2
        body = update[19:]
        withdrawn_size = struct.unpack_from(">H", body)[0]
        attributes_size = struct.unpack_from(">H", body, 2 + withdrawn_size)[0]
        withdrawn = body[2 : 2 + withdrawn_size]
        return _nets(body[4 + withdrawn_size + attributes_size :]), _nets(withdrawn)


def _nets(block: bytes) -> list[str]:
    found = []
    while block:
        length = block[0]
        size = (length + 7) // 8
        address = ipaddress.IPv4Address(block[1 : 1 + size].ljust(4, b"\0"))
        found.append(f"{address}/{length}")
        block = block[1 + size :]
    return found


def parse(stream: bytes) -> tuple[list[Bmp], bytes]:
    """The whole messages of a stream, and what is left."""
    found = []
    while len(stream) >= _HEADER:
        version, size, kind = struct.unpack_from(">BIB", stream)
        assert version == 3
        assert kind <= TERMINATION
        if len(stream) < size:
            break
        body = stream[_HEADER:size]
        stream = stream[size:]
        if kind in (INITIATION, TERMINATION):
            found.append(Bmp(kind, "", 0, "", False, 0.0, body))
            continue
        assert len(body) >= _PEER
        peer_type, flags, _, padding, address, asn, router_id, seconds, micros = struct.unpack_from(
            ">BB8s12s4sI4sII", body
        )
        assert (peer_type, padding, flags & 0x80) == (0, bytes(12), 0)
        found.append(
            Bmp(
                kind,
                str(ipaddress.IPv4Address(address)),
                asn,
                str(ipaddress.IPv4Address(router_id)),
                bool(flags & 0x20),
                seconds + micros / 1e6,
                body[_PEER:],
            )
        )
    return found, stream
