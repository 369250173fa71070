"""BGP messages: header, OPEN, NOTIFICATION, KEEPALIVE, ROUTE-REFRESH (RFC 4271 §4, RFC 2918).

``Framer`` cuts a byte stream into messages and checks the header; UPDATE is in ``update``.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

from agents.bird.capabilities import MAX_KNOWN, Capabilities, CapabilityReader
from agents.bird.errors import (
    CEASE,
    HEADER_ERROR,
    OPEN_ERROR,
    BgpPeerError,
    error_text,
)

MARKER: Final = b"\xff" * 16
HEADER_SIZE: Final = 19
MAX_MESSAGE: Final = 4096
# RFC 8654.
MAX_EXTENDED_MESSAGE: Final = 65535

OPEN: Final = 1
UPDATE: Final = 2
NOTIFICATION: Final = 3
KEEPALIVE: Final = 4
ROUTE_REFRESH: Final = 5

_MIN_SIZE: Final = {OPEN: 29, UPDATE: 23, NOTIFICATION: 21, KEEPALIVE: 19, ROUTE_REFRESH: 23}

REFRESH_REQUEST: Final = 0
REFRESH_BEGIN: Final = 1
REFRESH_END: Final = 2

# Optional parameter that holds capabilities (RFC 5492), and the mark of RFC 9072's long form.
_PARAMETER_CAPABILITIES: Final = 2
_EXTENDED_PARAMETERS: Final = 255
VERSION: Final = 4
# An RFC 9003 message's octets, at most.
MAX_SHUTDOWN_TEXT: Final = 255


def message(kind: int, body: bytes = b"") -> bytes:
    """A message with its header."""
    return MARKER + (HEADER_SIZE + len(body)).to_bytes(2, "big") + bytes((kind,)) + body


KEEPALIVE_MESSAGE: Final = message(KEEPALIVE)


class Framer:
    """Cuts a stream into (type, body), checking each header as RFC 4271 §6.1 says."""

    __slots__ = ("_buffer", "limit")

    def __init__(self) -> None:
        self._buffer = b""
        # 65535 once extended messages are negotiated; OPEN and KEEPALIVE stay at 4096.
        self.limit = MAX_MESSAGE

    def feed(self, data: bytes) -> None:
        """Add what arrived."""
        self._buffer = self._buffer + data if self._buffer else data

    def take(self) -> list[tuple[int, bytes]]:
        """The whole messages, in order; BgpPeerError (1/x) at the first bad header.

        Messages before a bad header are returned first; the error comes with the next call.
        """
        buffer = self._buffer
        size = len(buffer)
        at = 0
        found: list[tuple[int, bytes]] = []
        while size - at >= HEADER_SIZE:
            length = buffer[at + 16] << 8 | buffer[at + 17]
            kind = buffer[at + 18]
            if (
                buffer[at : at + 16] != MARKER
                or not _MIN_SIZE.get(kind, 99999) <= length <= self.limit
                or (kind != UPDATE and length != HEADER_SIZE)
            ):
                error = self._check(buffer[at : at + HEADER_SIZE], length, kind)
                if error is not None:
                    if found:
                        break
                    raise error
            if size - at < length:
                break
            found.append((kind, buffer[at + HEADER_SIZE : at + length]))
            at += length
            if kind == OPEN:
                # What follows an OPEN is read by its terms.
                break
        self._buffer = buffer[at:] if at else buffer
        return found

    def _check(self, header: bytes, length: int, kind: int) -> BgpPeerError | None:
        if header[:16] != MARKER:
            return BgpPeerError(HEADER_ERROR, 1)
        size = length.to_bytes(2, "big")
        if kind not in _MIN_SIZE:
            if not HEADER_SIZE <= length <= self.limit:
                return BgpPeerError(HEADER_ERROR, 2, size)
            return BgpPeerError(HEADER_ERROR, 3, bytes((kind,)))
        limit = MAX_MESSAGE if kind in (OPEN, KEEPALIVE) else self.limit
        if length < _MIN_SIZE[kind] or length > limit or (kind == KEEPALIVE and length != 19):
            return BgpPeerError(HEADER_ERROR, 2, size)
        return None


class Open(NamedTuple):
    """OPEN.  ``asn`` is the 16-bit field: AS_TRANS for a wide AS; see ``true_as``."""

    asn: int
    hold_s: int
    router_id: int
    capabilities: Capabilities = Capabilities()
    version: int = VERSION

    @property
    def true_as(self) -> int:
        """The AS number, from the capability if there is one."""
        return self.asn if self.capabilities.as4 is None else self.capabilities.as4

    def body(self) -> bytes:
        """What follows the header; over 255 octets of parameters take RFC 9072's form."""
        fixed = (
            bytes((self.version,))
            + self.asn.to_bytes(2, "big")
            + self.hold_s.to_bytes(2, "big")
            + self.router_id.to_bytes(4, "big")
        )
        capabilities = self.capabilities.encode()
        if not capabilities:
            return fixed + b"\0"
        if len(capabilities) <= 253:
            parameter = bytes((_PARAMETER_CAPABILITIES, len(capabilities))) + capabilities
            return fixed + bytes((len(parameter),)) + parameter
        parameter = (
            bytes((_PARAMETER_CAPABILITIES,)) + len(capabilities).to_bytes(2, "big") + capabilities
        )
        return fixed + b"\xff\xff" + len(parameter).to_bytes(2, "big") + parameter

    @classmethod
    def parse(cls, body: bytes) -> Open:
        """Read the body; BgpPeerError 2/0, 2/1 or 2/4."""
        if body[0] != VERSION:
            raise BgpPeerError(OPEN_ERROR, 1, VERSION.to_bytes(2, "big"))
        asn = int.from_bytes(body[1:3], "big")
        hold = int.from_bytes(body[3:5], "big")
        router_id = int.from_bytes(body[5:9], "big")
        return cls(asn, hold, router_id, _parameters(body[9:]))


@functools.lru_cache(maxsize=MAX_KNOWN)
def _parameters(data: bytes) -> Capabilities:
    """The capabilities among an OPEN's optional parameters, which their length leads."""
    size, at, long_form = data[0], 1, False
    if size and len(data) >= 4 and data[1] == _EXTENDED_PARAMETERS:
        size, at, long_form = int.from_bytes(data[2:4], "big"), 4, True
    if at + size != len(data):
        raise BgpPeerError(OPEN_ERROR, 0)
    reader = CapabilityReader()
    head = 3 if long_form else 2
    while at < len(data):
        if at + head > len(data):
            raise BgpPeerError(OPEN_ERROR, 0)
        kind = data[at]
        length = int.from_bytes(data[at + 1 : at + head], "big")
        value = data[at + head : at + head + length]
        at += head + length
        if at > len(data):
            raise BgpPeerError(OPEN_ERROR, 0)
        if kind != _PARAMETER_CAPABILITIES:
            raise BgpPeerError(OPEN_ERROR, 4)
        reader.read(value)
    return reader.result()


class Notification(NamedTuple):
    """NOTIFICATION; for Cease 2 and 4 ``data`` may hold an RFC 9003 text."""

    code: int
    subcode: int
    data: bytes = b""

    def body(self) -> bytes:
        """What follows the header."""
        return bytes((self.code, self.subcode)) + self.data

    @classmethod
    def parse(cls, body: bytes) -> Notification:
        """Read the body (the header's check made sure of two octets)."""
        return cls(body[0], body[1], body[2:])

    @property
    def text(self) -> str:
        """BIRD's words, with the administrator's own behind them if he sent some."""
        words = error_text(self.code, self.subcode)
        said = self.shutdown_text
        return f'{words}: "{said}"' if said else words

    @property
    def shutdown_text(self) -> str:
        """The text of an administrative shutdown or reset, "" if there is none (RFC 9003)."""
        if self.code != CEASE or self.subcode not in (2, 4) or not self.data:
            return ""
        size = self.data[0]
        if not size or size + 1 > len(self.data):
            return ""
        text = self.data[1 : 1 + size].decode("utf-8", "replace")
        return "".join(c if c.isprintable() else "?" for c in text)


def shutdown_data(text: str) -> bytes:
    """The data of an administrative shutdown with a text, cut at 255 octets."""
    if not text:
        return b""
    octets = text.encode()[:MAX_SHUTDOWN_TEXT]
    octets = octets.decode("utf-8", "ignore").encode()
    return bytes((len(octets),)) + octets


class RouteRefresh(NamedTuple):
    """ROUTE-REFRESH; ``subtype`` is RFC 7313's (0 request, 1 BoRR, 2 EoRR)."""

    afi: int
    safi: int
    subtype: int = REFRESH_REQUEST

    def body(self) -> bytes:
        """What follows the header."""
        return self.afi.to_bytes(2, "big") + bytes((self.subtype, self.safi))

    @classmethod
    def parse(cls, body: bytes) -> RouteRefresh:
        """Read four octets."""
        return cls(int.from_bytes(body[:2], "big"), body[3], body[2])
