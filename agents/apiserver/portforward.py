"""port-forward: from kubectl's SPDY, bare or inside a WebSocket, to the kubelet's WebSockets.

A client opens two streams for each connection, ``streamtype`` error and data with one
``requestid``; each such pair gets a WebSocket of its own to the kubelet.  Clients of the older
v4.channel.k8s.io WebSocket dialect (the Python client) speak the kubelet's language already.
Source: k8s.io/kubelet/pkg/cri/streaming/portforward, k8s.io/apiserver/pkg/util/proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import WSMsgType, web

from agents.apiserver.spdy import DataReceived, SpdyError, SpdyServer, StreamOpened, StreamReset
from emulator.apimachinery.status import StatusError, bad_request, internal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agents.apiserver.call import Call
    from agents.apiserver.nodeproxy import NodeProxy

    Dial = Callable[[str], Awaitable[aiohttp.ClientWebSocketResponse]]
    Send = Callable[[bytes], Awaitable[None]]

TUNNEL: Final = "SPDY/3.1+portforward.k8s.io"
SPDY_PROTOCOL: Final = "portforward.k8s.io"
CHANNELS: Final = "v4.channel.k8s.io"
DATA, ERROR, CLOSE = 0, 1, 255
MAX_MESSAGE_BYTES: Final = 1024 * 1024
READ_BYTES: Final = 64 * 1024
# Connections of one kubectl at a time; each costs a WebSocket to the kubelet.
MAX_CONNECTIONS: Final = 256
# Frames (at most 32 KiB from kubectl) that wait for one pod; then the whole session waits, as
# SPDY without its flow control does.
MAX_WAITING_FRAMES: Final = 32


async def serve(nodes: NodeProxy, call: Call, kubelet: str) -> web.StreamResponse:
    """Answer port-forward of a pod.  StatusError before the upgrade."""
    request = call.request
    upgrade = request.headers.get("Upgrade", "").lower()
    if "upgrade" not in request.headers.get("Connection", "").lower() or not upgrade:
        raise bad_request("Upgrade request required")
    url = f"{kubelet}/portForward/{call.namespace}/{call.name}"
    if upgrade == "websocket":
        offered = [
            word.strip() for word in request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        ]
        if TUNNEL in offered:
            return await _tunnel(request, _dialer(nodes, url))
        if CHANNELS in offered:
            return await _channels(nodes, call, url)
        raise bad_request(
            f"unable to negotiate protocol: client supports {offered}, server supports "
            f"{[TUNNEL, CHANNELS]}"
        )
    if upgrade == "spdy/3.1":
        return await _bare(request, _dialer(nodes, url))
    raise bad_request(f"unable to upgrade: {upgrade} is not served")


def _dialer(nodes: NodeProxy, url: str) -> Dial:
    async def dial(port: str) -> aiohttp.ClientWebSocketResponse:
        return await nodes.session.ws_connect(
            url, params={"port": port}, protocols=(CHANNELS,), max_msg_size=MAX_MESSAGE_BYTES
        )

    return dial


class _Connection:
    """One pair of streams."""

    def __init__(self) -> None:
        self.data = self.error = 0
        self.port = ""
        self.frames: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING_FRAMES)
        self.ended = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Hand over bytes of the client, ``b""`` for their end; nothing once it is over."""
        if not self.ended.is_set():
            await self.frames.put(data)

    def end(self) -> None:
        """Let go of whoever waits to hand over more."""
        self.ended.set()
        while not self.frames.empty():
            self.frames.get_nowait()


class _Session:
    """One client: SPDY on one side, a WebSocket for each connection on the other."""

    def __init__(self, dial: Dial, send: Send) -> None:
        self._dial = dial
        self._send = send
        self._spdy = SpdyServer()
        self._sending = asyncio.Lock()
        self._pairs: dict[str, _Connection] = {}
        self._by_stream: dict[int, _Connection] = {}

    async def run(self, receive: Callable[[], Awaitable[bytes]]) -> None:
        """Serve until ``receive`` gives ``b""`` or the client breaks the framing."""
        with contextlib.suppress(ConnectionError, SpdyError):
            async with asyncio.TaskGroup() as group:
                carriers: dict[asyncio.Task[None], None] = {}
                while data := await receive():
                    for event in self._spdy.receive_data(data):
                        ready = await self._take(event)
                        if ready is not None:
                            task = group.create_task(self._carry(ready), name="forward.carry")
                            carriers[task] = None
                            task.add_done_callback(carriers.pop)
                    await self._flush()
                for task in list(carriers):
                    task.cancel()

    async def _take(self, event: StreamOpened | DataReceived | StreamReset) -> _Connection | None:
        """Note an event; a connection whose two streams are there."""
        match event:
            case StreamOpened(stream, headers):
                request = headers.get("requestid", str(stream))
                connection = self._pairs.setdefault(request, _Connection())
                self._by_stream[stream] = connection
                if headers.get("streamtype") == "error":
                    connection.error = stream
                else:
                    connection.data, connection.port = stream, headers.get("port", "")
                if connection.error and connection.data:
                    del self._pairs[request]
                    return connection
            case DataReceived(stream, data, ended):
                found = self._by_stream.get(stream)
                if found is not None and stream == found.data:
                    if data:
                        await found.put(data)
                    if ended:
                        await found.put(b"")
            case StreamReset(stream):
                found = self._by_stream.get(stream)
                if found is not None and stream == found.data:
                    await found.put(b"")
        return None

    async def _carry(self, connection: _Connection) -> None:
        failure = ""
        try:
            if len(self._by_stream) > 2 * MAX_CONNECTIONS:
                failure = f"more than {MAX_CONNECTIONS} connections at once"
            else:
                failure = await self._through_kubelet(connection)
        finally:
            connection.end()
            self._by_stream.pop(connection.data, None)
            self._by_stream.pop(connection.error, None)
        if failure:
            self._spdy.send(connection.error, failure.encode())
        self._spdy.send(connection.error, b"", end=True)
        self._spdy.send(connection.data, b"", end=True)
        await self._flush()

    async def _through_kubelet(self, connection: _Connection) -> str:
        """Carry one connection to its end; what the kubelet complained about."""
        try:
            kubelet = await self._dial(connection.port)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return f"error dialing backend: {str(error) or type(error).__name__}"
        failure = b""

        async def upward() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    data = await connection.frames.get()
                    await kubelet.send_bytes(bytes([DATA]) + data if data else bytes([CLOSE, DATA]))

        try:
            async with asyncio.TaskGroup() as group:
                up = group.create_task(upward(), name="forward.up")
                greeted: set[int] = set()
                async for message in kubelet:
                    if message.type is not WSMsgType.BINARY or not message.data:
                        continue
                    channel, data = message.data[0], message.data[1:]
                    if channel not in greeted:
                        # The first message of a channel repeats the port.
                        greeted.add(channel)
                    elif channel == DATA:
                        self._spdy.send(connection.data, data)
                        await self._flush()
                    elif channel == ERROR:
                        failure += data
                up.cancel()
        finally:
            await kubelet.close()
        return failure.decode("utf-8", "replace")

    async def _flush(self) -> None:
        async with self._sending:
            data = self._spdy.data_to_send()
            if data:
                await self._send(data)


async def _tunnel(request: web.BaseRequest, dial: Dial) -> web.StreamResponse:
    """SPDY frames in the binary messages of a WebSocket."""
    client = web.WebSocketResponse(protocols=(TUNNEL,), max_msg_size=MAX_MESSAGE_BYTES)
    await client.prepare(request)

    async def receive() -> bytes:
        async for message in client:
            if message.type is WSMsgType.BINARY and message.data:
                return bytes(message.data)
        return b""

    await _Session(dial, client.send_bytes).run(receive)
    await client.close()
    return client


async def _bare(request: web.BaseRequest, dial: Dial) -> web.StreamResponse:
    """SPDY frames on the connection itself, which HTTP gives up after the 101."""
    offered = [
        word.strip()
        for line in request.headers.getall("X-Stream-Protocol-Version", [])
        for word in line.split(",")
    ]
    if SPDY_PROTOCOL not in offered:
        raise StatusError(
            403, "Forbidden",
            f"unable to upgrade: unable to negotiate protocol: client supports {offered}, server "
            f"supports {[SPDY_PROTOCOL]}",
        )  # fmt: skip
    transport = request.transport
    if not isinstance(transport, asyncio.Transport):
        raise ConnectionResetError("client went away before the upgrade")
    http = transport.get_protocol()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(READ_BYTES, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    try:
        transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            b"X-Stream-Protocol-Version: " + SPDY_PROTOCOL.encode() + b"\r\n\r\n"
        )
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        with contextlib.suppress(RuntimeError):
            transport.resume_reading()
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)

        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        async def receive() -> bytes:
            return await reader.read(READ_BYTES)

        await _Session(dial, send).run(receive)
    finally:
        transport.close()
    # The HTTP server must forget this connection: it is no longer HTTP.
    http.connection_lost(None)
    raise asyncio.CancelledError


async def _channels(nodes: NodeProxy, call: Call, url: str) -> web.StreamResponse:
    """The same frames on both sides."""
    params = [("port", value) for value in call.query.getall("ports", [])]
    try:
        kubelet = await nodes.session.ws_connect(
            url, params=params, protocols=(CHANNELS,), max_msg_size=MAX_MESSAGE_BYTES
        )
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise internal(f"error dialing backend: {str(error) or type(error).__name__}") from None
    from agents.apiserver.streams import relay

    try:
        client = web.WebSocketResponse(protocols=(CHANNELS,), max_msg_size=MAX_MESSAGE_BYTES)
        await client.prepare(call.request)
        await relay(client, kubelet)
        return client
    finally:
        await kubelet.close()
