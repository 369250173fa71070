"""kubectl exec and attach over a WebSocket: the channels of v4 and v5.channel.k8s.io.

Each message starts with its channel: 0 stdin, 1 stdout, 2 stderr, 3 the closing Status, 4 resize,
and in v5 255 followed by the number of a channel that is closed
(k8s.io/apimachinery/pkg/util/remotecommand, k8s.io/apiserver/pkg/util/wsstream).
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

from aiohttp import WSMsgType, web

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from emulator.workloads.context import ByteSink

    # Runs the command over three streams and an interrupt; its exit code.
    Session = Callable[
        [asyncio.StreamReader | None, ByteSink, ByteSink, asyncio.Event],
        Coroutine[None, None, int],
    ]

PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
# One frame from a client; kubectl sends at most 32 KiB.
MAX_MESSAGE_BYTES = 1024 * 1024
INTERRUPT = b"\x03"
END_OF_INPUT = b"\x04"


def success_status() -> bytes:
    """The closing Status of exit code 0."""
    return json.dumps({"metadata": {}, "status": "Success"}, separators=(",", ":")).encode()


def exit_status(code: int) -> bytes:
    """The closing Status of a command: kubectl exits with its code."""
    if code == 0:
        return success_status()
    return json.dumps(
        {
            "metadata": {},
            "status": "Failure",
            "message": "command terminated with non-zero exit code: "
            f"command terminated with exit code {code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        },
        separators=(",", ":"),
    ).encode()


def error_status(message: str) -> bytes:
    """The closing Status of a command that could not be started."""
    return json.dumps(
        {
            "metadata": {},
            "status": "Failure",
            "message": f"Internal error occurred: {message}",
            "reason": "InternalError",
            "details": {"causes": [{"message": message}]},
            "code": 500,
        },
        separators=(",", ":"),
    ).encode()


class _Channel:
    """A sink that sends frames of one channel, in order, with the socket's own back pressure."""

    def __init__(self, socket: web.WebSocketResponse, channel: int, *, tty: bool) -> None:
        self._socket = socket
        self._head = bytes([channel])
        self._tty = tty
        self._pending = bytearray()
        self._sending = asyncio.Lock()

    def write(self, data: bytes) -> None:
        self._pending += data.replace(b"\n", b"\r\n") if self._tty else data

    async def drain(self) -> None:
        async with self._sending:
            if not self._pending:
                return
            data, self._pending = bytes(self._pending), bytearray()
            if self._socket.closed:
                raise BrokenPipeError
            try:
                await self._socket.send_bytes(self._head + data)
            except ConnectionError:
                raise BrokenPipeError from None


class _Input:
    """What the client sends: standard input, and the terminal's line discipline with a tty."""

    def __init__(self, reader: asyncio.StreamReader, echo: _Channel | None) -> None:
        self._reader = reader
        self._echo = echo
        self._line = bytearray()
        self.ended = False

    def feed(self, data: bytes, interrupt: asyncio.Event) -> None:
        if self._echo is None:
            self._reader.feed_data(data)
            return
        for value in data:
            byte = bytes([value])
            if byte == INTERRUPT:
                self._echo.write(b"^C\n")
                self._line.clear()
                interrupt.set()
            elif byte == END_OF_INPUT and not self._line:
                self.end()
            elif byte in (b"\r", b"\n"):
                self._echo.write(b"\n")
                self._reader.feed_data(bytes(self._line) + b"\n")
                self._line.clear()
            elif byte in (b"\x7f", b"\x08"):
                if self._line:
                    self._line.pop()
                    self._echo.write(b"\x08 \x08")
            else:
                self._line += byte
                self._echo.write(byte)

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self._reader.feed_eof()


async def serve_streams(
    request: web.Request,
    session: Session,
    *,
    stdin: bool,
    tty: bool,
    failure: str = "",
) -> web.WebSocketResponse:
    """Upgrade and run ``session``; ``failure`` is sent instead when it cannot be started."""
    socket = web.WebSocketResponse(
        protocols=PROTOCOLS, max_msg_size=MAX_MESSAGE_BYTES, compress=False
    )
    await socket.prepare(request)
    if failure:
        await socket.send_bytes(bytes([ERROR]) + error_status(failure))
        await socket.close()
        return socket
    stdout = _Channel(socket, STDOUT, tty=tty)
    stderr = _Channel(socket, STDOUT if tty else STDERR, tty=tty)
    reader = asyncio.StreamReader() if stdin else None
    interrupt = asyncio.Event()
    source = _Input(reader, stdout if tty else None) if reader is not None else None
    async with asyncio.TaskGroup() as group:
        command = group.create_task(session(reader, stdout, stderr, interrupt), name="exec.command")
        receiver = group.create_task(
            _receive(socket, source, stdout, interrupt, command), name="exec.receive"
        )
        flusher = group.create_task(_flush(stdout, stderr), name="exec.flush")
        await asyncio.wait([command])
        receiver.cancel()
        flusher.cancel()
    if not socket.closed and not command.cancelled():
        try:
            await stdout.drain()
            await stderr.drain()
            await socket.send_bytes(bytes([ERROR]) + exit_status(command.result()))
            await socket.close()
        except (BrokenPipeError, ConnectionError):
            # The client left before the end; nobody is there to be told.
            pass
    return socket


# How often output that no command drains is sent on; a keystroke's echo for example.
FLUSH_S = 0.02


async def _flush(stdout: _Channel, stderr: _Channel) -> None:
    try:
        while True:
            await asyncio.sleep(FLUSH_S)
            await stdout.drain()
            await stderr.drain()
    except BrokenPipeError:
        return


async def _receive(
    socket: web.WebSocketResponse,
    source: _Input | None,
    echo: _Channel,
    interrupt: asyncio.Event,
    command: asyncio.Task[int],
) -> None:
    """Take the client's frames; a client that goes away ends the command, as a closed tty does."""
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            data = str(message.data).encode()
        elif message.type == WSMsgType.BINARY:
            data = bytes(message.data)
        else:
            break
        if not data:
            continue
        channel, body = data[0], data[1:]
        if channel == STDIN and source is not None and not source.ended:
            source.feed(body, interrupt)
        elif channel == CLOSE and body[:1] == bytes([STDIN]) and source is not None:
            source.end()
    command.cancel()
