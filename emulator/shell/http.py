"""One HTTP/1.1 exchange over the emulated TCP, as curl, wget and probes make it (RFC 9112).

The head is kept as raw lines: the commands print it byte for byte.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from emulator.shell.context import whole_number

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import AsyncIterator, Sequence

    from emulator.runtime.stack import StackNetwork

# One line of a head, and all of it; servers of this size exist, larger are hostile.
MAX_LINE_BYTES = 16 * 1024
MAX_HEAD_BYTES = 256 * 1024
CHUNK_BYTES = 64 * 1024


class EmptyReplyError(Exception):
    """The server closed without a byte."""


class BadReplyError(Exception):
    """What came is not HTTP."""


class ShortBodyError(Exception):
    """The server closed before the end of the body; ``missing`` bytes did not come."""

    def __init__(self, missing: int) -> None:
        super().__init__(missing)
        self.missing = missing


class Url(NamedTuple):
    """A URL taken apart; ``target`` is the path and query of the request line."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """Read ``[http://]host[:port][/path]``; ValueError for what has no host or a bad port."""
        if "://" not in text:
            text = f"http://{text}"
        parts = urlsplit(text)
        if not parts.hostname:
            raise ValueError(text)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=-._~")
        target = f"{path}?{parts.query}" if parts.query else path
        return cls(parts.scheme.lower(), parts.hostname, port, target)

    @property
    def authority(self) -> str:
        """The Host header: the port only where it is not the scheme's own."""
        usual = 443 if self.scheme == "https" else 80
        return self.host if self.port == usual else f"{self.host}:{self.port}"


class Head(NamedTuple):
    """A response's head: ``lines`` as they came, without line ends."""

    status: int
    reason: str
    version: str
    headers: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]

    def get(self, name: str) -> str:
        """The first header of this name, empty if there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


class Exchange:
    """One connection and one request on it; use ``async with``."""

    def __init__(
        self,
        network: StackNetwork,
        address: str,
        port: int,
        *,
        source: str = "",
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
    ) -> None:
        """``tls`` is the context of an https URL, ``server_name`` the name it must show."""
        self._tls = tls
        self._server_name = server_name
        self._network = network
        self._address = address
        self._port = port
        self._source = source
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.local: tuple[str, int] = ("", 0)

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._writer is not None:
            self._writer.close()

    async def connect(self) -> None:
        """Dial; raises the OSErrors of connect(2), ssl.SSLError for a failed handshake."""
        local = (self._source, 0) if self._source else None
        self._reader, self._writer = await self._network.open_connection(
            self._address,
            self._port,
            limit=MAX_LINE_BYTES,
            local_addr=local,
            ssl=self._tls,
            server_hostname=self._server_name or None,
        )
        self.local = self._writer.get_extra_info("sockname") or ("", 0)

    async def send(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        body: bytes = b"",
        *,
        version: str = "1.1",
    ) -> list[str]:
        """Send the request; returns the lines of its head."""
        assert self._writer is not None, "connect first"
        lines = [f"{method} {target} HTTP/{version}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body)
        await self._writer.drain()
        return lines

    async def head(self) -> Head:
        """Read the response's head, skipping 1xx; EmptyReplyError, BadReplyError, OSError."""
        while True:
            found = await self._one_head()
            if found.status >= 200 or found.status == 101:
                return found

    async def _one_head(self) -> Head:
        assert self._reader is not None, "connect first"
        first = await self._line()
        if not first:
            raise EmptyReplyError
        match = re.match(r"HTTP/(\d\.\d) (\d{3})(?: (.*))?$", first)
        if match is None:
            raise BadReplyError(first[:80])
        lines, size = [first], len(first)
        while line := await self._line():
            lines.append(line)
            size += len(line)
            if size > MAX_HEAD_BYTES:
                raise BadReplyError("head too large")
        headers = []
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers.append((name, value.strip()))
        return Head(int(match[2]), match[3] or "", match[1], tuple(headers), tuple(lines))

    async def _line(self) -> str:
        assert self._reader is not None
        try:
            line = await self._reader.readline()
        except ValueError:
            raise BadReplyError("line too long") from None
        return line.decode("latin-1").rstrip("\r\n")

    async def body(self, method: str, head: Head) -> AsyncIterator[bytes]:
        """Yield the body's bytes; ShortBodyError when the connection ends inside it."""
        assert self._reader is not None
        if method == "HEAD" or head.status in (204, 304):
            return
        if head.get("Transfer-Encoding").lower() == "chunked":
            async for data in self._chunks():
                yield data
            return
        left = whole_number(head.get("Content-Length"))
        if left is None:
            while data := await self._reader.read(CHUNK_BYTES):
                yield data
            return
        while left:
            data = await self._reader.read(min(left, CHUNK_BYTES))
            if not data:
                raise ShortBodyError(left)
            left -= len(data)
            yield data

    async def _chunks(self) -> AsyncIterator[bytes]:
        assert self._reader is not None
        while True:
            size_text = (await self._line()).partition(";")[0].strip()
            if not re.fullmatch(r"[0-9A-Fa-f]{1,15}", size_text):
                raise BadReplyError("bad chunk size")
            size = int(size_text, 16)
            if not size:
                while await self._line():
                    pass
                return
            while size:
                data = await self._reader.read(min(size, CHUNK_BYTES))
                if not data:
                    raise ShortBodyError(size)
                size -= len(data)
                yield data
            await self._line()
