"""Control sockets: length-prefixed msgpack frames between the command line and each process.

Frame: 4-byte big-endian length, then a msgpack map.
Request ``{"id", "method", "params"}``; answers ``{"id", "result"}`` or ``{"id", "error"}`` (with
``"usage": True`` if the caller is to blame); a
stream sends ``{"id", "item"}`` any number of times before its ``{"id", "result": None}``, and ends
early when the caller sends ``{"id", "cancel": True}`` or goes away.  ``{"id", "feed": value}``
reaches a running handler's ``Call.feed`` queue (stdin of an exec).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
from typing import TYPE_CHECKING, Any

import msgpack

from emulator.errors import PeerError, PodwireError, UsageError

if TYPE_CHECKING:
    import logging
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping

    Handler = Callable[["Call"], Awaitable[object] | AsyncGenerator[object, None]]

# A capture's frames and a log's chunk are far smaller; a snapshot of a large node is about 1 MB.
MAX_FRAME_BYTES = 16 * 1024 * 1024
# stdin chunks a handler has not read yet; more than a person types, less than a file's harm.
MAX_FEED_ITEMS = 1024


class ControlError(PeerError):
    """The other end answered with an error; the text is its text."""


class Call:
    """One request being served: its parameters and what the caller feeds while it runs."""

    __slots__ = ("feed", "method", "params")

    def __init__(self, method: str, params: Mapping[str, Any]) -> None:
        self.method = method
        self.params = params
        self.feed: asyncio.Queue[Any] = asyncio.Queue(MAX_FEED_ITEMS)

    def param(self, name: str, kind: type, default: Any = ...) -> Any:
        """Return a parameter of a type; UsageError if it is missing or of another type."""
        value = self.params.get(name, default)
        if value is ...:
            raise UsageError(f"{self.method}: parameter {name!r} is missing")
        if value is not default and not isinstance(value, kind):
            raise UsageError(f"{self.method}: parameter {name!r} must be {kind.__name__}")
        return value


def _frame(message: Mapping[str, Any]) -> bytes:
    body: bytes = msgpack.packb(message, use_bin_type=True)
    return len(body).to_bytes(4, "big") + body


async def _read_frame(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Return the next message, None at a clean end; PeerError for anything that is not one."""
    try:
        head = await reader.readexactly(4)
        size = int.from_bytes(head, "big")
        if size > MAX_FRAME_BYTES:
            raise PeerError(f"control frame of {size} bytes (at most {MAX_FRAME_BYTES})")
        body = await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise PeerError(f"control frame is not msgpack: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("id"), int):
        raise PeerError("control frame is not a map with an integer id")
    return message


def _forget(
    running: dict[int, tuple[asyncio.Task[None], Call]], number: int, _: asyncio.Task[None]
) -> None:
    running.pop(number, None)


class ControlServer:
    """Serves named handlers on a unix socket (or, with a token, on TCP)."""

    def __init__(self, handlers: Mapping[str, Handler], log: logging.Logger) -> None:
        self._handlers = dict(handlers)
        self._log = log
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._path: str | None = None

    async def start_unix(self, path: str) -> None:
        """Listen at ``path``, which only this user may open; a stale socket is replaced."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._server = await asyncio.start_unix_server(self._accept, path)
        os.chmod(path, 0o600)
        self._path = path

    async def close(self) -> None:
        """Stop listening, end the running calls, remove the socket file."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            if self._server is not None and self._server.is_serving():
                raise
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running: dict[int, tuple[asyncio.Task[None], Call]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                while (message := await _read_frame(reader)) is not None:
                    number = message["id"]
                    if message.get("cancel"):
                        if number in running:
                            running.pop(number)[0].cancel()
                    elif "feed" in message:
                        if number in running:
                            _take_in(running[number][1], message["feed"])
                    else:
                        params = message.get("params") or {}
                        if not isinstance(params, dict):
                            raise PeerError("control frame's params are not a map")
                        call = Call(str(message.get("method", "")), params)
                        task = group.create_task(
                            self._answer(number, call, writer), name=f"control.{call.method}"
                        )
                        running[number] = (task, call)
                        task.add_done_callback(functools.partial(_forget, running, number))
                for task, _ in list(running.values()):
                    task.cancel()
        except* ConnectionError:
            pass
        except* PeerError as group:
            self._log.warning("control connection closed: %s", group.exceptions[0])

    async def _answer(self, number: int, call: Call, writer: asyncio.StreamWriter) -> None:
        handler = self._handlers.get(call.method)
        try:
            if handler is None:
                known = ", ".join(sorted(self._handlers))
                raise UsageError(f"no such method {call.method!r} (this process serves: {known})")
            outcome = handler(call)
            result: object = None
            if inspect.isasyncgen(outcome):
                async with contextlib.aclosing(outcome):
                    async for item in outcome:
                        writer.write(_frame({"id": number, "item": item}))
                        await writer.drain()
            else:
                assert inspect.isawaitable(outcome)
                result = await outcome
            writer.write(_frame({"id": number, "result": result}))
        except PodwireError as error:
            usage = isinstance(error, UsageError)
            writer.write(_frame({"id": number, "error": str(error), "usage": usage}))
        except ConnectionError:
            raise
        except OSError as error:
            writer.write(_frame({"id": number, "error": str(error)}))
        except Exception as error:  # the boundary: a handler's bug ends its own call only
            self._log.exception("%s failed", call.method)
            what = f"{call.method}: {type(error).__name__}: {error} (see the process's log)"
            writer.write(_frame({"id": number, "error": what}))
        await writer.drain()


class ControlClient:
    """One connection to a control socket; calls may overlap."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer: asyncio.StreamWriter | None = None
        self._reader_task: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._next = 0

    async def __aenter__(self) -> ControlClient:
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path)
        except (FileNotFoundError, ConnectionError):
            raise UsageError(
                f"nothing answers at {self._path}; is the process running? (podwire status)"
            ) from None
        self._reader_task = asyncio.create_task(self._read(reader), name="control.client")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._reader_task is not None:
            self._reader_task.cancel()
            await asyncio.gather(self._reader_task, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while (message := await _read_frame(reader)) is not None:
                queue = self._waiting.get(message["id"])
                if queue is not None:
                    queue.put_nowait(message)
        finally:
            for queue in self._waiting.values():
                queue.put_nowait(None)

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._writer is not None, "use 'async with ControlClient(path)'"
        self._writer.write(_frame(message))

    def _open(
        self, method: str, params: Mapping[str, Any]
    ) -> tuple[int, asyncio.Queue[dict[str, Any] | None]]:
        self._next += 1
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._waiting[self._next] = queue
        self._send({"id": self._next, "method": method, "params": dict(params)})
        return self._next, queue

    async def call(self, method: str, **params: Any) -> Any:
        """Return the result; when it failed there, raise with the other end's text.

        UsageError if it was raised as one, else ControlError.
        """
        number, queue = self._open(method, params)
        try:
            return _result_of(await queue.get(), method)
        finally:
            del self._waiting[number]

    async def stream(
        self, method: str, *, feed: AsyncIterator[Any] | None = None, **params: Any
    ) -> AsyncGenerator[Any, None]:
        """Yield the items of a streaming method; closing the generator cancels it there."""
        number, queue = self._open(method, params)
        feeder: asyncio.Task[None] | None = None
        if feed is not None:
            feeder = asyncio.create_task(self._feed(number, feed), name="control.feed")
        finished = False
        try:
            while True:
                message = await queue.get()
                if message is not None and "item" in message:
                    yield message["item"]
                    continue
                finished = True
                _result_of(message, method)
                return
        finally:
            if feeder is not None:
                feeder.cancel()
                await asyncio.gather(feeder, return_exceptions=True)
            del self._waiting[number]
            if not finished:
                self._send({"id": number, "cancel": True})

    async def _feed(self, number: int, feed: AsyncIterator[Any]) -> None:
        async for value in feed:
            self._send({"id": number, "feed": value})
            if self._writer is not None:
                await self._writer.drain()


def _take_in(call: Call, value: Any) -> None:
    """Hand a value to a handler; PeerError where it reads none: a part would be lost."""
    try:
        call.feed.put_nowait(value)
    except asyncio.QueueFull:
        raise PeerError(
            f"{call.method}: more than {MAX_FEED_ITEMS} pieces of input wait to be read"
        ) from None


def _result_of(message: dict[str, Any] | None, method: str) -> Any:
    if message is None:
        raise ControlError(f"{method}: the process went away before it answered")
    if "error" in message:
        if message.get("usage"):
            raise UsageError(str(message["error"]))
        raise ControlError(str(message["error"]))
    return message.get("result")
