"""What verbs that talk to a running cluster share: its name, its status, a node's socket.

A supervisor knows everything of its cluster.  Without one (roles started one by one, in terminals
or containers) the control sockets in ``run/`` are asked instead.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

from emulator.addr import parse_ip
from emulator.cluster.plan import cluster_directory
from emulator.cluster.spec import check_cluster_name
from emulator.cluster.state import ClusterDirectory
from emulator.errors import PodwireError, UsageError
from emulator.runtime.control import ControlClient

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine
    from pathlib import Path

T = TypeVar("T")

# A process answers its control socket in milliseconds; one that is stuck must not hide the others.
ANSWER_TIMEOUT_S: Final = 3.0


def is_port(text: str) -> bool:
    """True for 1 to 65535 in digits."""
    return text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 65536


def add_name(parser: argparse.ArgumentParser) -> None:
    """The option every verb has that works on a cluster."""
    parser.add_argument("--name", default="podwire", help="the cluster's name (default: podwire)")


def directory_of(args: argparse.Namespace) -> Path:
    """The cluster's directory; UsageError unless a cluster of that name has been started."""
    check_cluster_name(args.name)
    directory = cluster_directory(args.name)
    if not directory.exists():
        kept = ClusterDirectory(args.name).kept_logs
        hint = f" (logs of the one that ended by itself: {kept})" if kept.exists() else ""
        raise UsageError(f"no cluster {args.name!r} is running{hint}; start one with 'podwire up'")
    return directory


async def fetch_status(args: argparse.Namespace) -> dict[str, Any]:
    """The supervisor's status map, or one of the same shape made of what the roles say."""
    directory = directory_of(args)
    path = directory / "run" / "supervisor.sock"
    if not path.exists():
        return await _status_of_roles(args.name, directory)
    if not ClusterDirectory(args.name).is_running():
        raise UsageError(
            f"cluster {args.name!r} is not running any more; "
            f"'podwire down --name {args.name}' removes what it left"
        )
    async with ControlClient(str(path)) as client:
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
    raise UsageError(f"no node {node!r} (there are: {shown or 'none yet'})")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a verb's coroutine."""
    return asyncio.run(main)


async def _status_of_roles(name: str, directory: Path) -> dict[str, Any]:
    """Ask every control socket; a socket nobody answers at is a role that died."""
    paths = sorted((directory / "run").glob("*.sock"))
    answers = dict(zip(paths, await asyncio.gather(*map(_ask, paths)), strict=True))
    if not any(answers.values()):
        raise UsageError(f"no process of cluster {name!r} answers; start one with 'podwire up'")
    counted = {"restarts": 0, "last_exit": ""}
    plane_path = directory / "run" / "controlplane.sock"
    plane = answers.pop(plane_path, None) or {}
    nodes = [
        {
            "name": path.stem,
            "ip": "",
            "underlay": "",
            "pid": 0,
            "ready": False,
            **counted,
            **(answer or {}),
            "control": str(path),
        }
        for path, answer in answers.items()
    ]
    nodes.sort(key=lambda node: (not node["ip"], parse_ip(node["ip"]) if node["ip"] else 0))
    endpoints: list[str] = []
    for entry in (plane, *nodes):
        endpoints = entry.pop("etcd_endpoints", endpoints)
    networks = {key: plane.pop(key, "") for key in ("network", "pod_cidr", "service_cidr")}
    empty = {"name": "controlplane", "ip": "", "underlay": "", "server": "", "pid": 0}
    return {
        "name": name,
        "up": bool(plane) and all(entry["ready"] for entry in (plane, *nodes)),
        "directory": str(directory),
        "kubeconfig": str(directory / "kubeconfig"),
        **networks,
        "supervisor": None,
        "etcd": {"name": "etcd", "endpoints": endpoints},
        "controlplane": {**empty, "ready": False, **counted, **plane},
        "nodes": nodes,
    }


async def _ask(path: Path) -> dict[str, Any] | None:
    """A role's own status; None if nobody answers."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S), ControlClient(str(path)) as client:
            status: dict[str, Any] = await client.call("status")
            return status
    except (PodwireError, OSError):
        return None
