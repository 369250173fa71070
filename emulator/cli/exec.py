"""podwire exec: one command on a node, with its output and exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from emulator.cli.running import add_name, node_socket, run_async
from emulator.runtime.control import ControlClient

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

# What is read of standard input at once, as much as a pipe holds, and how many such pieces may be
# on their way to a command that has not read them.
READ_BYTES: Final = 65536
MAX_PIECES: Final = 16
NO_INPUT: Final = {"stdin": b""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument(
        "--style",
        choices=("modern", "2018", "2017"),
        default="modern",
        help="the age of the tools whose output is printed",
    )
    parser.add_argument(
        "-i", "--stdin", action="store_true", help="pass standard input to the command"
    )
    parser.add_argument("node", metavar="NODE")
    parser.add_argument("argv", metavar="CMD", nargs="+", help="the command and its arguments")


def run(args: argparse.Namespace) -> int:
    return run_async(_run(args))


async def _run(args: argparse.Namespace) -> int:
    path = await node_socket(args, args.node)
    async with ControlClient(path) as client:
        return await run_on_node(client, args.argv, args.style, stdin=args.stdin)


async def run_on_node(
    client: ControlClient, argv: list[str], style: str, *, stdin: bool = False
) -> int:
    """Copy a command's output to ours; Ctrl-C reaches the command first, as on a terminal.

    Without ``stdin`` the command's standard input is at its end.
    """
    loop = asyncio.get_running_loop()
    feeds: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    room = threading.Semaphore(MAX_PIECES)
    # Python has no stdin where it was closed.
    if stdin and sys.stdin is not None:
        _read_input(loop, feeds, room)
    else:
        feeds.put_nowait(NO_INPUT)

    async def feed() -> AsyncIterator[object]:
        while True:
            yield await feeds.get()

    loop.add_signal_handler(signal.SIGINT, feeds.put_nowait, {"signal": "INT"})
    code = 0
    try:
        stream = client.stream("exec", feed=feed(), argv=argv, style=style)
        async with contextlib.aclosing(stream):
            async for item in stream:
                if "taken" in item:
                    room.release()
                    continue
                if "exit" in item:
                    code = item["exit"]
                    continue
                target = sys.stderr if item["fd"] == 2 else sys.stdout
                target.buffer.write(item["data"])
                target.flush()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    return code


def _read_input(
    loop: asyncio.AbstractEventLoop,
    feeds: asyncio.Queue[dict[str, Any]],
    room: threading.Semaphore,
) -> None:
    """Put standard input into ``feeds``, an empty piece at its end, while there is ``room``.

    A thread reads it, for it may be a file, which no loop waits for; nobody waits for the thread.
    """
    descriptor = sys.stdin.fileno()

    def read() -> None:
        # The loop is closed when the command has ended before its input.
        with contextlib.suppress(RuntimeError, OSError):
            while True:
                room.acquire()
                data = os.read(descriptor, READ_BYTES)
                loop.call_soon_threadsafe(feeds.put_nowait, {"stdin": data})
                if not data:
                    return

    threading.Thread(target=read, name="exec.stdin", daemon=True).start()
