"""podwire status: a cluster's processes, as a table or as JSON.

With names of roles it shows only those and fails unless all of them are ready, so that scripts and
container health checks can ask.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

from emulator.cli.answering import note_silent
from emulator.cli.running import add_name, fetch_status, run_async
from emulator.errors import UsageError

if TYPE_CHECKING:
    import argparse

WIDE: Final = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument(
        "role", nargs="*", metavar="ROLE", help="only these; exit code 1 unless they are ready"
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")


def run(args: argparse.Namespace) -> int:
    status = run_async(_status(args))
    roles = [status["etcd"], status["controlplane"], *status["nodes"]]
    if args.role:
        roles = [_role(roles, name) for name in args.role]
    if args.output == "json":
        print(json.dumps(roles if args.role else status, indent=2))
    else:
        _print_table(status, roles)
    # An etcd of its own is nobody's to judge here.
    ready = all(entry.get("ready", True) for entry in roles)
    return 0 if ready or not args.role else 1


async def _status(args: argparse.Namespace) -> dict[str, Any]:
    status = await fetch_status(args)
    # Without a supervisor each role has just been asked itself.
    if status["supervisor"] is not None:
        await note_silent([status["etcd"], status["controlplane"], *status["nodes"]])
    return status


def _ready(entry: dict[str, Any]) -> str:
    if not entry.get("responding", True):
        return "not responding"
    return "yes" if entry["ready"] else "no"


def _role(roles: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for entry in roles:
        if entry["name"] == name:
            return entry
    known = ", ".join(entry["name"] for entry in roles)
    raise UsageError(f"no role {name!r} (there are: {known})")


def _print_table(status: dict[str, Any], roles: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ROLE", "IP", "UNDERLAY", "PID", "READY", "RESTARTS", "LAST EXIT"):
        table.add_column(column, no_wrap=True)
    for entry in roles:
        if "pid" in entry:
            cells = [entry["pid"] or "-", _ready(entry), entry["restarts"]]
            cells.append(entry["last_exit"] or "-")
        else:
            cells = ["-", "external", "-", "-"]
        where = entry.get("underlay") or ",".join(entry.get("endpoints", ()))
        table.add_row(entry["name"], entry.get("ip") or "-", where or "-", *map(str, cells))
    # Into a pipe or a file: as wide as it needs to be.
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    console.print(table)
    console.print(f"\nkubeconfig: {status['kubeconfig']}", soft_wrap=True, highlight=False)
