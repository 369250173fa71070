"""podwire exec: one command on a node, with its output and exit code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING

from emulator.cli.running import add_name, node_socket, run_async
from emulator.runtime.control import ControlClient

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument(
        "--style",
        choices=("modern", "2018", "2017"),
        default="modern",
        help="the age of the tools whose output is printed",
    )
    parser.add_argument("node", metavar="NODE")
    parser.add_argument("argv", metavar="CMD", nargs="+", help="the command and its arguments")


def run(args: argparse.Namespace) -> int:
    return run_async(_run(args))


async def _run(args: argparse.Namespace) -> int:
    path = await node_socket(args, args.node)
    async with ControlClient(path) as client:
        return await run_on_node(client, args.argv, args.style)


async def run_on_node(client: ControlClient, argv: list[str], style: str) -> int:
    """Copy a command's output to ours; Ctrl-C reaches the command first, as on a terminal."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def signals() -> AsyncIterator[object]:
        while True:
            await interrupted.wait()
            interrupted.clear()
            yield {"signal": "INT"}

    loop.add_signal_handler(signal.SIGINT, interrupted.set)
    code = 0
    try:
        stream = client.stream("exec", feed=signals(), argv=argv, style=style)
        async with contextlib.aclosing(stream):
            async for item in stream:
                if "exit" in item:
                    code = item["exit"]
                    continue
                target = sys.stderr if item["fd"] == 2 else sys.stdout
                target.buffer.write(item["data"])
                target.flush()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    return code
