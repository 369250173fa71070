"""SPDY/3.1 framing, server side, as kubectl up to 1.29 uses it for exec and attach.

Protocol core: bytes in, events and bytes out.  Only what a server of remote commands needs: streams
opened by the client, data both ways, pings.  Flow control windows are not enforced by kubectl's
library (moby/spdystream) and are ignored here; TCP's own back pressure remains.
Source: SPDY protocol draft 3.1.
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple

from emulator.errors import PeerError

SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY = 1, 2, 3, 6, 7
FLAG_FIN: Final = 1
VERSION: Final = 3
# kubectl writes at most 32 KiB per frame; a header block is some hundred bytes.
MAX_FRAME_BYTES: Final = 1024 * 1024
MAX_HEADERS_BYTES: Final = 64 * 1024

_NAMES: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language "
    "accept-ranges age allow authorization cache-control connection content-base "
    "content-encoding content-language content-length content-location content-md5 "
    "content-range content-type date etag expect expires from host if-match if-modified-since "
    "if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer "
    "transfer-encoding upgrade user-agent vary via warning www-authenticate method get status"
)
_WORDS: Final = (
    *_NAMES.split(),
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
)
_TAIL: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, "
    "Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch"
    "charset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
# The header compression dictionary of draft 3, section 2.6.10.1.
DICTIONARY: Final = (
    b"".join(len(word).to_bytes(4, "big") + word.encode() for word in _WORDS) + _TAIL.encode()
)


class SpdyError(PeerError):
    """The client broke the framing; the connection ends."""


class StreamOpened(NamedTuple):
    """The client opened a stream; header names are lower case."""

    stream: int
    headers: dict[str, str]


class DataReceived(NamedTuple):
    """Bytes of a stream; ``ended`` closes the client's side."""

    stream: int
    data: bytes
    ended: bool


class StreamReset(NamedTuple):
    """The client gave a stream up."""

    stream: int


Event = StreamOpened | DataReceived | StreamReset


class SpdyServer:
    """One connection."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._send = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def receive_data(self, data: bytes) -> list[Event]:
        """Events in what has arrived; SpdyError."""
        self._received += data
        events: list[Event] = []
        while len(self._received) >= 8:
            head = bytes(self._received[:8])
            size = int.from_bytes(head[5:8], "big")
            if size > MAX_FRAME_BYTES:
                raise SpdyError(f"SPDY frame of {size} bytes (at most {MAX_FRAME_BYTES})")
            if len(self._received) < 8 + size:
                break
            payload = bytes(self._received[8 : 8 + size])
            del self._received[: 8 + size]
            events += self._frame(head, payload)
        return events

    def _frame(self, head: bytes, payload: bytes) -> list[Event]:
        flags = head[4]
        first = int.from_bytes(head[:4], "big")
        if not first & 0x80000000:
            return [DataReceived(first, payload, bool(flags & FLAG_FIN))]
        kind = first & 0xFFFF
        if (first >> 16) & 0x7FFF != VERSION:
            raise SpdyError(f"SPDY version {(first >> 16) & 0x7FFF}, not {VERSION}")
        if kind == PING:
            self._control(PING, 0, payload)
            return []
        if kind == SYN_STREAM:
            if len(payload) < 10:
                raise SpdyError("truncated SYN_STREAM")
            stream = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
            opened = StreamOpened(stream, self._headers(payload[10:]))
            self._control(SYN_REPLY, 0, payload[:4] + self._compressed_headers({}))
            if flags & FLAG_FIN:
                return [opened, DataReceived(stream, b"", True)]
            return [opened]
        if kind == RST_STREAM:
            if len(payload) < 8:
                raise SpdyError("truncated RST_STREAM")
            return [StreamReset(int.from_bytes(payload[:4], "big") & 0x7FFFFFFF)]
        return []

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            raw = self._inflate.decompress(block, MAX_HEADERS_BYTES)
        except zlib.error as error:
            raise SpdyError(f"SPDY header block: {error}") from None
        if self._inflate.unconsumed_tail:
            raise SpdyError(f"SPDY header block above {MAX_HEADERS_BYTES} bytes")
        at = 0

        def pull(size: int) -> bytes:
            nonlocal at
            if at + size > len(raw):
                raise SpdyError("truncated SPDY header block")
            at += size
            return raw[at - size : at]

        out: dict[str, str] = {}
        for _ in range(int.from_bytes(pull(4), "big")):
            name = pull(int.from_bytes(pull(4), "big"))
            value = pull(int.from_bytes(pull(4), "big"))
            out[name.decode("latin-1").lower()] = value.decode("latin-1")
        return out

    def _compressed_headers(self, headers: dict[str, str]) -> bytes:
        raw = len(headers).to_bytes(4, "big")
        for name, value in headers.items():
            for text in (name, value):
                raw += len(text).to_bytes(4, "big") + text.encode()
        return self._deflate.compress(raw) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        self._send += (0x80000000 | VERSION << 16 | kind).to_bytes(4, "big")
        self._send += bytes([flags]) + len(payload).to_bytes(3, "big") + payload

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Queue bytes of a stream."""
        self._send += stream.to_bytes(4, "big") + bytes([FLAG_FIN if end else 0])
        self._send += len(data).to_bytes(3, "big") + data

    def data_to_send(self) -> bytes:
        """Bytes for the transport."""
        out = bytes(self._send)
        self._send.clear()
        return out
