"""What verbs that talk to a running cluster share: its name, its status, a node's socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from emulator.cluster.plan import cluster_directory
from emulator.cluster.spec import check_cluster_name
from emulator.errors import UsageError
from emulator.runtime.control import ControlClient

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine
    from pathlib import Path

T = TypeVar("T")


def add_name(parser: argparse.ArgumentParser) -> None:
    """The option every verb has that works on a cluster."""
    parser.add_argument("--name", default="podwire", help="the cluster's name (default: podwire)")


def directory_of(args: argparse.Namespace) -> Path:
    """The cluster's directory; UsageError unless a cluster of that name has been started."""
    check_cluster_name(args.name)
    directory = cluster_directory(args.name)
    if not directory.exists():
        raise UsageError(f"no cluster {args.name!r} is running; start one with 'podwire up'")
    return directory


async def fetch_status(args: argparse.Namespace) -> dict[str, Any]:
    """The supervisor's status map."""
    async with ControlClient(str(directory_of(args) / "run" / "supervisor.sock")) as client:
        status: dict[str, Any] = await client.call("status")
        return status


async def node_socket(args: argparse.Namespace, node: str) -> str:
    """The control socket of a node; UsageError names the nodes there are."""
    nodes = (await fetch_status(args))["nodes"]
    for entry in nodes:
        if entry["name"] == node:
            return str(entry["control"])
    names = [entry["name"] for entry in nodes]
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise UsageError(f"no node {node!r} (there are: {shown})")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a verb's coroutine."""
    return asyncio.run(main)
