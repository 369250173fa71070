"""kubectl port-forward's last part: a WebSocket to a port inside a pod.

The dialect of pkg/kubelet/cri/streaming/portforward/websocket.go: ``?port=80`` may be repeated;
port *i* has channel 2i for data and 2i+1 for errors, and each channel begins with the port as two
bytes, little endian.  A frame 255 with a channel's number says that the client writes no more
there, as in exec's v5.channel.k8s.io.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from aiohttp import WSMsgType, web

from agents.kubelet.exec_stream import CLOSE, MAX_MESSAGE_BYTES
from agents.kubelet.texts import forward_failed
from emulator.shell.context import os_error_text

if TYPE_CHECKING:
    from agents.kubelet.sandbox import Sandbox

PROTOCOLS: Final = ("v4.channel.k8s.io", "portforward.k8s.io")
READ_BYTES: Final = 32 * 1024
# Channels are one byte, 255 is taken; nobody forwards more than a few ports at once.
MAX_PORTS: Final = 32
CONNECT_TIMEOUT_S: Final = 10.0


def wanted_ports(request: web.Request) -> list[int]:
    """The ports of the query; HTTPBadRequest for none, too many or bad ones."""
    words = [
        word
        for name in ("port", "ports")
        for value in request.query.getall(name, [])
        for word in value.split(",")
    ]
    if not words or len(words) > MAX_PORTS:
        raise web.HTTPBadRequest(text=f"query parameter 'port' is required 1 to {MAX_PORTS} times")
    for word in words:
        if not (word.isascii() and word.isdigit() and 0 < int(word) < 65536):
            raise web.HTTPBadRequest(text=f'unable to parse "{word}" as a port')
    return [int(word) for word in words]


class _Port:
    """One forwarded port: what the client sent to it so far, until it is connected."""

    def __init__(self, number: int, index: int) -> None:
        self.number = number
        self.data, self.error = bytes([2 * index]), bytes([2 * index + 1])
        # Connected before anything is read from the client, so one entry at most waits here.
        self.connected: asyncio.Future[asyncio.StreamWriter | None] = (
            asyncio.get_running_loop().create_future()
        )

    async def write(self, data: bytes) -> None:
        """Pass on bytes of the client; ``b""`` is their end."""
        writer = await self.connected
        if writer is None or writer.is_closing():
            return
        with contextlib.suppress(OSError):
            if data:
                writer.write(data)
                await writer.drain()
            elif writer.can_write_eof():
                writer.write_eof()


async def serve_port_forward(request: web.Request, sandbox: Sandbox) -> web.WebSocketResponse:
    """Upgrade and carry bytes until the pod or the client ends all connections."""
    ports = [_Port(number, index) for index, number in enumerate(wanted_ports(request))]
    socket = web.WebSocketResponse(
        protocols=PROTOCOLS, max_msg_size=MAX_MESSAGE_BYTES, compress=False
    )
    await socket.prepare(request)
    async with asyncio.TaskGroup() as group:
        carriers = [
            group.create_task(_carry(socket, port, sandbox), name=f"forward.{port.number}")
            for port in ports
        ]
        receiver = group.create_task(_receive(socket, ports), name="forward.receive")
        done, _ = await asyncio.wait({receiver, *carriers}, return_when=asyncio.FIRST_COMPLETED)
        if receiver not in done:
            await asyncio.wait(carriers)
        for task in (receiver, *carriers):
            task.cancel()
    await socket.close()
    return socket


async def _receive(socket: web.WebSocketResponse, ports: list[_Port]) -> None:
    async for message in socket:
        if message.type != WSMsgType.BINARY or not message.data:
            continue
        channel, data = message.data[0], bytes(message.data[1:])
        if channel == CLOSE and data:
            channel, data = data[0], b""
        elif not data:
            continue
        index, is_error = divmod(channel, 2)
        if not is_error and index < len(ports):
            await ports[index].write(data)


async def _carry(socket: web.WebSocketResponse, port: _Port, sandbox: Sandbox) -> None:
    """Connect and copy what the pod answers."""
    writer: asyncio.StreamWriter | None = None
    try:
        for channel in (port.data, port.error):
            await socket.send_bytes(channel + port.number.to_bytes(2, "little"))
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await sandbox.network.open_connection("127.0.0.1", port.number)
        except OSError as error:
            cause = os_error_text(error).lower()
            text = forward_failed(port.number, sandbox.sandbox_id, sandbox.netns, cause)
            await socket.send_bytes(port.error + text.encode())
            return
        port.connected.set_result(writer)
        with contextlib.suppress(ConnectionResetError):
            while data := await reader.read(READ_BYTES):
                await socket.send_bytes(port.data + data)
    except ConnectionError:
        # The client left.
        return
    finally:
        if not port.connected.done():
            port.connected.set_result(None)
        if writer is not None:
            writer.close()
