"""podwire capture: an emulated interface's packets, as pcapng for tcpdump and Wireshark."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING, BinaryIO

from emulator.cli.running import add_name, node_socket, run_async
from emulator.errors import UsageError
from emulator.runtime.control import ControlClient

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("node", metavar="NODE")
    parser.add_argument("interface", metavar="IFACE", help="eth0, flannel.1, cni0, veth…")
    parser.add_argument("-w", "--write", metavar="FILE", required=True, help="'-' for stdout")
    parser.add_argument("-c", "--count", type=int, default=0, help="stop after so many packets")
    parser.add_argument("--netns", default="", help="a namespace other than the node's own")


def run(args: argparse.Namespace) -> int:
    if args.count < 0:
        raise UsageError(f"--count: {args.count} is not a number of packets")
    return run_async(_run(args))


async def _run(args: argparse.Namespace) -> int:
    path = await node_socket(args, args.node)
    with _open(args.write) as file:
        return await _capture(path, args, file)


def _open(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if name == "-":
        return contextlib.nullcontext(sys.stdout.buffer)
    try:
        return open(name, "wb")
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None


async def _capture(path: str, args: argparse.Namespace, file: BinaryIO) -> int:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    packets = 0
    try:
        async with ControlClient(path) as client:
            stream = client.stream(
                "capture", netns=args.netns, device=args.interface, count=args.count
            )
            async with contextlib.aclosing(stream):
                async for item in stream:
                    file.write(item["data"])
                    file.flush()
                    if "listening" in item:
                        print(f"capturing on {item['listening']}", file=sys.stderr, flush=True)
                    packets += item["packets"]
    except asyncio.CancelledError:
        if not stopped:
            raise
    print(f"{packets} packets captured", file=sys.stderr)
    return 0
