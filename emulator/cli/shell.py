"""podwire shell: a shell on a node, with a prompt and a history on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from emulator.cli.exec import run_on_node
from emulator.cli.running import add_name, node_socket, run_async
from emulator.runtime.control import ControlClient
from emulator.shell.context import END_OF_INPUT, INTERRUPT

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

ARGV: Final = ["sh"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("--style", choices=("modern", "2018", "2017"), default="modern")
    parser.add_argument("node", metavar="NODE")


def run(args: argparse.Namespace) -> int:
    """Run a shell until ``exit`` or the end of input; returns the last command's exit code.

    Only a terminal is shown a prompt, as by any shell.
    """
    path = run_async(node_socket(args, args.node))
    # Python has no stdin where it was closed.
    if sys.stdin is None or not sys.stdin.isatty():
        return run_async(_script(path, args.style))
    import readline

    readline.set_auto_history(True)
    return _Session(path, args.style).run()


async def _script(path: str, style: str) -> int:
    async with ControlClient(path) as client:
        return await run_on_node(client, ARGV, style, stdin=True)


class _Session:
    """Lines are edited here, in the main thread; another one speaks with the node's shell."""

    def __init__(self, path: str, style: str) -> None:
        self._path = path
        self._style = style
        # What the shell asks for next; the exit code, or why there is none, is the last.
        self._prompts: queue.SimpleQueue[str | int | BaseException] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._feeds: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def run(self) -> int:
        thread = threading.Thread(target=self._speak, name="shell.session", daemon=True)
        thread.start()
        ending = False
        while True:
            try:
                prompt = self._prompts.get()
            except KeyboardInterrupt:
                self._feed({"signal": "INT"})
                ending = True
                continue
            if prompt == "" and ending:
                # A command asked for more before Ctrl-C reached it.
                continue
            if isinstance(prompt, BaseException):
                raise prompt
            if isinstance(prompt, int):
                thread.join()
                return prompt
            ending = False
            self._feed(_answer(prompt))

    def _feed(self, item: dict[str, Any]) -> None:
        # The loop is closed when the shell has ended meanwhile.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._feeds.put_nowait, item)

    def _speak(self) -> None:
        try:
            with contextlib.closing(self._loop):
                self._prompts.put(self._loop.run_until_complete(self._converse()))
        except Exception as error:  # raised where the user waits
            self._prompts.put(error)

    async def _converse(self) -> int:
        async def feed() -> AsyncIterator[object]:
            while True:
                yield await self._feeds.get()

        code = 0
        parameters = {"argv": ARGV, "style": self._style, "prompts": True}
        async with ControlClient(self._path) as client:
            stream = client.stream("exec", feed=feed(), **parameters)
            async with contextlib.aclosing(stream):
                async for item in stream:
                    if "prompt" in item:
                        self._prompts.put(item["prompt"])
                    elif "exit" in item:
                        code = item["exit"]
                    elif "fd" in item:
                        target = sys.stderr if item["fd"] == 2 else sys.stdout
                        target.buffer.write(item["data"])
                        target.flush()
        return code


def _answer(prompt: str) -> dict[str, Any]:
    """A line of the terminal; Ctrl-C gives up what was typed or, without a prompt, the command."""
    try:
        line = input(prompt)
    except EOFError:
        print()
        line = END_OF_INPUT
    except KeyboardInterrupt:
        print()
        if not prompt:
            return {"signal": "INT"}
        line = INTERRUPT
    return {"stdin": f"{line}\n".encode()}
