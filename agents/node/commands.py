"""Commands on a node: what ``podwire exec`` and ``podwire shell`` reach over the control socket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from emulator.errors import UsageError
from emulator.runtime.control import MAX_FEED_ITEMS
from emulator.shell.context import Pipe
from emulator.shell.registry import run_command

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from emulator.runtime.control import Call
    from emulator.shell.context import ShellContext

# Output a slow reader has not taken yet; the command waits beyond it, as at a full pipe.
MAX_PENDING_CHUNKS: Final = 256
STYLES: Final = ("modern", "2018", "2017")


class _Output:
    """One of a command's two output streams, as chunks for the caller."""

    def __init__(self, queue: asyncio.Queue[dict[str, Any]], descriptor: int) -> None:
        self._queue = queue
        self._descriptor = descriptor
        self._buffer = bytearray()

    def write(self, data: bytes) -> None:
        self._buffer += data

    async def drain(self) -> None:
        """Hand on what was written; waits while the caller is slow."""
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            await self._queue.put({"fd": self._descriptor, "data": data})


class NodeCommands:
    """Runs commands in the node's root namespace."""

    def __init__(self, make_context: Callable[..., ShellContext]) -> None:
        """``make_context(stdout=, stderr=, stdin=, era=)`` gives the node's shell context."""
        self._make_context = make_context

    async def exec(self, call: Call) -> AsyncGenerator[object, None]:
        """``{"argv": [...], "style": ...}``: yields ``{"fd", "data"}`` chunks, then ``{"exit"}``.

        Feeds: ``{"signal": "INT"}`` and ``{"stdin": bytes}`` (empty bytes end the input); for each
        of those the command can read, ``{"taken"}`` with its length is yielded.  With ``prompts``
        a shell says ``{"prompt": text}`` when it waits for a line.
        """
        argv = call.param("argv", list)
        style = call.param("style", str, "modern")
        if not argv or not all(isinstance(word, str) for word in argv):
            raise UsageError("exec: parameter 'argv' must be a list of words, not empty")
        if style not in STYLES:
            raise UsageError(f"exec: no style {style!r} (there are: {', '.join(STYLES)})")
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_PENDING_CHUNKS)
        out, err = _Output(queue, 1), _Output(queue, 2)
        stdin = Pipe()
        context = self._make_context(stdout=out, stderr=err, stdin=stdin.reader, era=style)
        if call.param("prompts", bool, default=False):
            context.ask = lambda text: queue.put({"prompt": text})
        command = asyncio.create_task(_run(context, argv, out, err), name=f"exec.{argv[0]}")
        feed = asyncio.create_task(_feed(call, context, stdin, queue), name="exec.feed")
        try:
            while not (command.done() and queue.empty()):
                taken = asyncio.create_task(queue.get(), name="exec.output")
                try:
                    await asyncio.wait({command, taken}, return_when=asyncio.FIRST_COMPLETED)
                    if taken.done():
                        yield taken.result()
                finally:
                    taken.cancel()
            yield {"exit": command.result()}
        finally:
            for task in (feed, command):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _run(context: ShellContext, argv: list[str], out: _Output, err: _Output) -> int:
    try:
        return await run_command(context, argv)
    finally:
        await out.drain()
        await err.drain()


async def _feed(
    call: Call, context: ShellContext, stdin: Pipe, answers: asyncio.Queue[dict[str, Any]]
) -> None:
    """Pass on signals at once, and input as fast as the command reads it."""
    # What waits here waits no more in the call's own queue, so it has that queue's bound.
    pieces: asyncio.Queue[bytes] = asyncio.Queue(MAX_FEED_ITEMS)
    async with asyncio.TaskGroup() as group:
        group.create_task(_pour(pieces, stdin, answers), name="exec.stdin")
        while True:
            item = await call.feed.get()
            if not isinstance(item, dict):
                continue
            if item.get("signal") == "INT":
                context.interrupt.set()
            elif isinstance(data := item.get("stdin"), bytes):
                await pieces.put(data)


async def _pour(
    pieces: asyncio.Queue[bytes], stdin: Pipe, answers: asyncio.Queue[dict[str, Any]]
) -> None:
    while data := await pieces.get():
        stdin.write(data)
        await stdin.drain()
        await answers.put({"taken": len(data)})
    stdin.close_write()
