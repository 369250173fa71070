"""A load generator for etcd that costs next to nothing beside any server.

It speaks as much HTTP/2 as it takes to keep calls in flight: requests are frames made beforehand
into which the stream id is put, responses are counted by their frame headers.  The header block is
indexed after the first call, as every real gRPC client's is.
"""

from __future__ import annotations

import asyncio
import random
import struct
from typing import TYPE_CHECKING

from etcd.core import grpc
from etcd.core.http2 import frames as f
from etcd.core.http2 import hpack

if TYPE_CHECKING:
    from collections.abc import Sequence

# The response windows are this wide and refilled when half is used, so they never limit anything.
WINDOW = f.MAX_WINDOW
_HEAD = struct.Struct(">HBBBI")
_FIRST_DYNAMIC = 62


def _blocks(path: str, authority: str) -> tuple[bytes, bytes]:
    """Return the header block of the first call and that of all others."""
    first = [b"\x83\x86"]  # :method POST, :scheme http
    literals = [
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"podwire-bench"),
        (b"te", b"trailers"),
    ]
    for name, value in literals:
        first.append(b"\x40" + b"".join(_plain(text) for text in (name, value)))
    newest = _FIRST_DYNAMIC + len(literals) - 1
    later = bytes(0x80 | newest - n for n in range(len(literals)))
    return b"".join(first), b"\x83\x86" + later


def _plain(text: bytes) -> bytes:
    return hpack.encode_integer(len(text), 7, 0) + text


class Load(asyncio.Protocol):
    """Keeps ``in_flight`` unary calls going on one connection, drawn from ``requests``."""

    def __init__(self, path: str, requests: Sequence[bytes], in_flight: int, *, seed: int) -> None:
        first, later = _blocks(path, "bench")
        self._first, self._block = first, later
        rng = random.Random(seed)
        # A fixed long draw: choosing at random for each call costs as much as the call.
        self._bodies = [grpc.frame(rng.choice(requests)) for _ in range(4096)]
        self._in_flight = in_flight
        self._next_id = 1
        self._rest = b""
        self._unacked = 0
        self._transport: asyncio.Transport | None = None
        self.done = 0
        self.answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = f.settings_payload(
            {f.SETTINGS_ENABLE_PUSH: 0, f.SETTINGS_INITIAL_WINDOW_SIZE: WINDOW}
        )
        grow = (WINDOW - f.DEFAULT_WINDOW).to_bytes(4, "big")
        head = f.PREFACE + f.frame(f.SETTINGS, 0, 0, settings)
        transport.write(head + f.frame(f.WINDOW_UPDATE, 0, 0, grow) + self._calls(self._in_flight))

    def _calls(self, count: int) -> bytes:
        out = []
        block, bodies, pack = self._block, self._bodies, _HEAD.pack
        for _ in range(count):
            stream_id = self._next_id
            self._next_id += 2
            head = block if stream_id > 1 else self._first
            body = bodies[(stream_id >> 1) & 4095]
            out.append(pack(0, len(head), f.HEADERS, f.END_HEADERS, stream_id))
            out.append(head)
            out.append(pack(len(body) >> 8, len(body) & 255, f.DATA, f.END_STREAM, stream_id))
            out.append(body)
        return b"".join(out)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at, end = 0, len(data)
        unpack = _HEAD.unpack_from
        ended = 0
        more = b""
        while end - at >= 9:
            high, low, kind, flags, _ = unpack(data, at)
            size = high << 8 | low
            if end - at - 9 < size:
                break
            if kind == f.DATA:
                self._unacked += size
                self.answered += 1
            elif kind == f.HEADERS:
                ended += flags & f.END_STREAM
            elif kind == f.PING and not flags & f.ACK:
                more += f.frame(f.PING, f.ACK, 0, data[at + 9 : at + 9 + size])
            elif kind == f.SETTINGS and not flags & f.ACK:
                more += f.frame(f.SETTINGS, f.ACK, 0)
            elif kind in (f.GOAWAY, f.RST_STREAM):
                raise AssertionError(f"frame {kind}: {data[at : at + 9 + size]!r}")
            at += 9 + size
        self._rest = data[at:]
        self.done += ended
        if self._unacked > WINDOW // 2:
            more += f.frame(f.WINDOW_UPDATE, 0, 0, self._unacked.to_bytes(4, "big"))
            self._unacked = 0
        assert self._transport is not None
        self._transport.write(more + self._calls(ended))

    def close(self) -> None:
        """Check that every call that ended had an answer, and go."""
        assert self._transport is not None
        self._transport.abort()
        assert self.answered >= self.done, "calls ended in errors"


async def start_load(
    endpoint: str, path: str, requests: Sequence[bytes], clients: int, connections: int
) -> list[Load]:
    """Begin ``clients`` concurrent calls, spread over connections."""
    loop = asyncio.get_running_loop()
    host, _, port = endpoint.rpartition(":")
    connections = min(clients, connections)
    loads = []
    for number in range(connections):
        _, load = await loop.create_connection(
            lambda number=number: Load(path, requests, clients // connections, seed=number),
            host,
            int(port),
        )
        loads.append(load)
    return loads
