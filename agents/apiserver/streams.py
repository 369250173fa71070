"""exec and attach: from kubectl's WebSocket or SPDY to the kubelet's WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import WSMsgType, web

from agents.apiserver.spdy import DataReceived, SpdyError, SpdyServer, StreamOpened, StreamReset
from emulator.apimachinery.objects import dump_json
from emulator.apimachinery.status import StatusError, bad_request, internal

if TYPE_CHECKING:
    from agents.apiserver.call import Call
    from agents.apiserver.nodeproxy import NodeProxy, Target
    from emulator.apimachinery.objects import Obj

WEBSOCKET_PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
SPDY_PROTOCOLS: Final = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io",
                         "channel.k8s.io")  # fmt: skip
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
_CHANNELS: Final = {
    "stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": ERROR, "resize": RESIZE,
}  # fmt: skip
# One message of a remote command; clients write at most 32 KiB at once.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
# A SPDY client opens its streams right after the upgrade (streamCreationTimeout).
STREAMS_TIMEOUT_S: Final = 30.0


async def serve(nodes: NodeProxy, call: Call, pod: Obj) -> web.StreamResponse:
    """Answer exec or attach of a pod.  StatusError before the upgrade, a Status channel after."""
    request = call.request
    target = nodes.target(call, pod)
    connection = request.headers.get("Connection", "").lower()
    upgrade = request.headers.get("Upgrade", "").lower()
    if "upgrade" not in connection or not upgrade:
        raise bad_request("Upgrade request required")
    if call.subresource == "exec" and not call.query.getall("command", []):
        raise bad_request("you must specify at least 1 command for the container")
    if upgrade == "websocket":
        return await _websocket(nodes, call, target)
    if upgrade == "spdy/3.1":
        return await _spdy(nodes, call, target)
    raise bad_request(f"unable to upgrade: {upgrade} is not served")


async def _dial(
    nodes: NodeProxy, call: Call, target: Target, protocol: str
) -> aiohttp.ClientWebSocketResponse:
    query = [(k, v) for k, v in call.query.items() if k != "container"]
    try:
        return await nodes.session.ws_connect(
            target.url(call.subresource),
            params=query,
            protocols=(protocol,),
            max_msg_size=MAX_MESSAGE_BYTES,
        )
    except aiohttp.WSServerHandshakeError as error:
        code = error.status if error.status in (400, 403, 404) else 500
        raise StatusError(
            code, "BadRequest" if code == 400 else "InternalError",
            f"error dialing backend: {error.message}",
        ) from None  # fmt: skip
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise internal(f"error dialing backend: {str(error) or type(error).__name__}") from None


async def _websocket(nodes: NodeProxy, call: Call, target: Target) -> web.StreamResponse:
    """The same frames on both sides: the client's protocol is the one asked of the kubelet."""
    offered = [
        p.strip()
        for p in call.request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        if p.strip()
    ]
    protocol = next((p for p in WEBSOCKET_PROTOCOLS if p in offered), None)
    if protocol is None:
        raise bad_request(
            f"unable to negotiate protocol: client supports {offered}, server supports "
            f"{list(WEBSOCKET_PROTOCOLS)}"
        )
    kubelet = await _dial(nodes, call, target, protocol)
    try:
        client = web.WebSocketResponse(protocols=(protocol,), max_msg_size=MAX_MESSAGE_BYTES)
        await client.prepare(call.request)
        await relay(client, kubelet)
        return client
    finally:
        await kubelet.close()


async def relay(client: web.WebSocketResponse, kubelet: aiohttp.ClientWebSocketResponse) -> None:
    """Pass messages both ways until the kubelet has ended or the client has left."""
    async with asyncio.TaskGroup() as group:
        up = group.create_task(_to_kubelet(client, kubelet), name="stream.up")
        await _to_client(kubelet, client)
        up.cancel()
    await client.close()


async def _to_kubelet(
    client: web.WebSocketResponse, kubelet: aiohttp.ClientWebSocketResponse
) -> None:
    try:
        async for message in client:
            if message.type is WSMsgType.BINARY:
                await kubelet.send_bytes(message.data)
            elif message.type is WSMsgType.TEXT:
                await kubelet.send_bytes(message.data.encode())
    except ConnectionError:
        pass
    await kubelet.close()


async def _to_client(
    kubelet: aiohttp.ClientWebSocketResponse, client: web.WebSocketResponse
) -> None:
    with contextlib.suppress(ConnectionError):
        async for message in kubelet:
            if message.type is WSMsgType.BINARY and not client.closed:
                await client.send_bytes(message.data)


class _SpdyConnection(asyncio.Protocol):
    """Takes the connection over from the HTTP server after the 101."""

    def __init__(self, transport: asyncio.Transport, expected: frozenset[str]) -> None:
        self._transport = transport
        self._expected = expected
        self._server = SpdyServer()
        self._writable = asyncio.Event()
        self._writable.set()
        self.streams: dict[str, int] = {}
        self.ready = asyncio.Event()
        self.incoming: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._server.receive_data(data)
        except SpdyError:
            self._transport.abort()
            return
        self._flush()
        for event in events:
            match event:
                case StreamOpened(stream, headers):
                    self.streams[headers.get("streamtype", "")] = stream
                    if self._expected <= set(self.streams):
                        self.ready.set()
                case DataReceived(stream, payload, ended):
                    self._input(stream, payload, ended)
                case StreamReset():
                    pass

    def _input(self, stream: int, payload: bytes, ended: bool) -> None:
        name = next((n for n, s in self.streams.items() if s == stream), "")
        channel = _CHANNELS.get(name)
        if channel not in (STDIN, RESIZE):
            return
        if payload:
            self.incoming.put_nowait((channel, payload))
        if ended and channel == STDIN:
            self.incoming.put_nowait((CLOSE, bytes([STDIN])))

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self.incoming.put_nowait(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _flush(self) -> None:
        data = self._server.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    async def send(self, channel: int, data: bytes, *, end: bool = False) -> None:
        """Write to the stream of a channel, if the client opened one."""
        name = next(n for n, c in _CHANNELS.items() if c == channel)
        stream = self.streams.get(name)
        if stream is None:
            return
        await self._writable.wait()
        self._server.send(stream, data, end=end)
        self._flush()


async def _spdy(nodes: NodeProxy, call: Call, target: Target) -> web.StreamResponse:
    request = call.request
    offered = [
        p.strip()
        for line in request.headers.getall("X-Stream-Protocol-Version", [])
        for p in line.split(",")
    ]
    protocol = next((p for p in SPDY_PROTOCOLS if p in offered), None)
    if protocol is None:
        raise StatusError(
            403,
            "Forbidden",
            f"unable to upgrade: unable to negotiate protocol: client supports {offered}, server "
            f"supports {list(SPDY_PROTOCOLS)}",
        )
    transport = request.transport
    if not isinstance(transport, asyncio.Transport):
        raise ConnectionResetError("client went away before the upgrade")
    kubelet = await _dial(nodes, call, target, WEBSOCKET_PROTOCOLS[0])
    http = transport.get_protocol()
    connection = _SpdyConnection(transport, _expected(call))
    try:
        transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            b"X-Stream-Protocol-Version: " + protocol.encode() + b"\r\n\r\n"
        )
        transport.set_protocol(connection)
        with contextlib.suppress(RuntimeError):
            transport.resume_reading()
        await _bridge(connection, kubelet, protocol)
    finally:
        await kubelet.close()
        transport.close()
    # The HTTP server must forget this connection: it is no longer HTTP.
    http.connection_lost(None)
    raise asyncio.CancelledError


def _expected(call: Call) -> frozenset[str]:
    """The streams the client is going to open."""
    wanted = {"error"}
    for name in ("stdin", "stdout", "stderr"):
        if call.query.get(name) in ("true", "1"):
            wanted.add(name)
    if call.query.get("tty") in ("true", "1"):
        wanted.discard("stderr")
    return frozenset(wanted)


async def _bridge(
    connection: _SpdyConnection, kubelet: aiohttp.ClientWebSocketResponse, protocol: str
) -> None:
    try:
        async with asyncio.timeout(STREAMS_TIMEOUT_S):
            await connection.ready.wait()
    except TimeoutError:
        return

    async def upward() -> None:
        with contextlib.suppress(ConnectionError):
            while (item := await connection.incoming.get()) is not None:
                channel, data = item
                await kubelet.send_bytes(bytes([channel]) + data)
        await kubelet.close()

    async with asyncio.TaskGroup() as group:
        up = group.create_task(upward(), name="stream.up")
        status = b""
        async for message in kubelet:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel == ERROR:
                status = data
                break
            if channel in (STDOUT, STDERR) and data:
                await connection.send(channel, data)
        up.cancel()
    for channel in (STDOUT, STDERR):
        await connection.send(channel, b"", end=True)
    await connection.send(ERROR, _closing(status, protocol), end=True)


def _closing(status: bytes, protocol: str) -> bytes:
    """The error stream's content: a Status from v4 on, before that text, empty for success."""
    if protocol == SPDY_PROTOCOLS[0]:
        return status or dump_json({"metadata": {}, "status": "Success"})
    return b"" if b'"Success"' in status else status
