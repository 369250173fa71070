"""gRPC over HTTP/2: message framing, status, deadlines, metadata (grpc: doc/PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from etcd.core.errors import Code, EtcdError
from etcd.core.http2 import hpack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etcd.core.http2.hpack import Header

# etcd's server: 1.5 MiB (--max-request-bytes) plus 512 KiB of overhead.
MAX_RECEIVE_BYTES: Final = 2 * 1024 * 1024
PREFIX_BYTES: Final = 5
# Longest deadline header: 8 digits and a unit.
_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

RESPONSE_HEAD: Final = hpack.encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
OK_TRAILERS: Final = hpack.encode([(b"grpc-status", b"0"), (b"grpc-message", b"")])
# zlib's way to say "gzip".
_GZIP_WBITS: Final = 31
# For calls that are no gRPC (grpc: doc/PROTOCOL-HTTP2.md, "Responses").
UNSUPPORTED_MEDIA_TYPE: Final = hpack.encode([(b":status", b"415")])


def frame(message: bytes) -> bytes:
    """Return a message with its 5-byte prefix."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def whole_message(data: bytes) -> bytes | None:
    """Return the message if ``data`` is exactly one, small and not compressed; else None."""
    size = len(data) - PREFIX_BYTES
    if size < 0 or size > MAX_RECEIVE_BYTES or data[0]:
        return None
    return data[PREFIX_BYTES:] if int.from_bytes(data[1:PREFIX_BYTES], "big") == size else None


class MessageReader:
    """Cuts a stream's bytes into messages."""

    __slots__ = ("_encoding", "_limit", "_missing", "_parts", "held")

    def __init__(self, limit: int, encoding: bytes = b"") -> None:
        """``limit``: bytes of the largest message taken, after decompression by ``encoding``."""
        self._limit = limit
        self._encoding = encoding
        self._parts: list[bytes] = []
        # Bytes until the unfinished message (or its prefix) is whole.
        self._missing = 0
        # Bytes of the unfinished message that wait here.
        self.held = 0

    @property
    def partial(self) -> bool:
        """Whether an unfinished message waits."""
        return bool(self._parts)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete; EtcdError for one too large or undecodable."""
        if self._parts:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                self.held += len(data)
                return []
            data = b"".join(self._parts)
            self._parts = []
            self.held = 0
        messages = []
        at, end = 0, len(data)
        while at < end:
            if end - at < PREFIX_BYTES:
                self._missing = PREFIX_BYTES - (end - at)
                self.held = end - at
                self._parts.append(data[at:])
                break
            size = self._size(data, at)
            if end - at - PREFIX_BYTES < size:
                self._missing = size + PREFIX_BYTES - (end - at)
                self.held = end - at
                self._parts.append(data[at:])
                break
            compressed = data[at]
            at += PREFIX_BYTES + size
            message = data[at - size : at]
            messages.append(self._expand(message) if compressed else message)
        return messages

    def _size(self, data: bytes, at: int) -> int:
        size = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
        if size > self._limit:
            raise EtcdError(
                Code.RESOURCE_EXHAUSTED,
                f"grpc: received message larger than max ({size} vs. {self._limit})",
            )
        return size

    def _expand(self, data: bytes) -> bytes:
        """Decompress a message; the texts are grpc-go's (rpc_util.go)."""
        if self._encoding in (b"", b"identity"):
            raise EtcdError(
                Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding"
            )
        if self._encoding != b"gzip":
            name = self._encoding.decode("latin-1")
            raise EtcdError(
                Code.UNIMPLEMENTED,
                f'grpc: Decompressor is not installed for grpc-encoding "{name}"',
            )
        inflater = zlib.decompressobj(_GZIP_WBITS)
        try:
            message = inflater.decompress(data, self._limit + 1)
        except zlib.error as error:
            raise EtcdError(
                Code.INTERNAL, f"grpc: failed to decompress the received message: {error}"
            ) from None
        if len(message) > self._limit:
            raise EtcdError(
                Code.RESOURCE_EXHAUSTED,
                "grpc: received message after decompression larger than max "
                f"({len(message)} vs. {self._limit})",
            )
        if not inflater.eof:
            raise EtcdError(
                Code.INTERNAL,
                "grpc: failed to decompress the received message: unexpected EOF",
            )
        return message


# Printable ASCII except "%" goes as it is.
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


@lru_cache(maxsize=256)
def status_trailers(code: Code, message: str) -> bytes:
    """Return the header block that ends a call with a status."""
    text = quote_from_bytes(message.encode(), safe=_PLAIN).encode()
    return hpack.encode([(b"grpc-status", str(int(code)).encode()), (b"grpc-message", text)])


@lru_cache(maxsize=256)
def status_only(code: Code, message: str) -> bytes:
    """Return the header block of a response that is nothing but a status."""
    text = quote_from_bytes(message.encode(), safe=_PLAIN).encode()
    return hpack.encode(
        [
            (b":status", b"200"),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", str(int(code)).encode()),
            (b"grpc-message", text),
        ]
    )


def parse_status(headers: Iterable[Header]) -> tuple[Code, str] | None:
    """Return the status in a header list, None if there is none."""
    code: Code | None = None
    message = ""
    for name, value in headers:
        if name == b"grpc-status":
            code = Code(int(value)) if value.isdigit() and int(value) <= 16 else Code.UNKNOWN
        elif name == b"grpc-message":
            message = unquote_to_bytes(value).decode(errors="replace")
    return None if code is None else (code, message)


def parse_timeout_s(value: bytes) -> float | None:
    """Return a grpc-timeout in seconds, None if it is malformed."""
    unit = _UNITS_S.get(value[-1:])
    if unit is None or not 1 < len(value) <= 9 or not value[:-1].isdigit():
        return None
    return int(value[:-1]) * unit


def timeout_value(timeout_s: float) -> bytes:
    """Return a grpc-timeout header's value."""
    return f"{max(1, min(int(timeout_s * 1000), 99_999_999))}m".encode()


def request_block(
    path: str, authority: str, *, timeout_s: float | None = None, metadata: Iterable[Header] = ()
) -> bytes:
    """Return a call's header block."""
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"podwire"),
        (b"te", b"trailers"),
        *metadata,
    ]
    if timeout_s is not None:
        headers.append((b"grpc-timeout", timeout_value(timeout_s)))
    return hpack.encode(headers)
