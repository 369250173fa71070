"""podwire shell: a prompt on a node."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from emulator.cli.exec import run_on_node
from emulator.cli.running import add_name, node_socket, run_async
from emulator.runtime.control import ControlClient

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("--style", choices=("modern", "2018", "2017"), default="modern")
    parser.add_argument("node", metavar="NODE")


def run(args: argparse.Namespace) -> int:
    """Read lines until ``exit`` or the end of input; returns the last command's exit code.

    Only a terminal is shown a prompt, as by any shell.
    """
    import readline

    readline.set_auto_history(True)
    path = run_async(node_socket(args, args.node))
    prompt = f"root@{args.node}:~# " if sys.stdin.isatty() else ""
    code = 0
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            if prompt:
                print()
            return code
        except KeyboardInterrupt:
            print()
            continue
        if line in ("exit", "logout"):
            return code
        if line:
            code = run_async(_line(path, line, args.style))


async def _line(path: str, line: str, style: str) -> int:
    async with ControlClient(path) as client:
        return await run_on_node(client, ["sh", "-c", line], style)
