"""podwire status: a cluster's processes, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

from emulator.cli.running import add_name, fetch_status, run_async

if TYPE_CHECKING:
    import argparse

WIDE: Final = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")


def run(args: argparse.Namespace) -> int:
    status = run_async(fetch_status(args))
    if args.output == "json":
        print(json.dumps(status, indent=2))
        return 0
    _print_table(status)
    return 0


def _print_table(status: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ROLE", "IP", "UNDERLAY", "PID", "READY", "RESTARTS", "LAST EXIT"):
        table.add_column(column, no_wrap=True)
    for entry in (status["etcd"], status["controlplane"], *status["nodes"]):
        if "pid" in entry:
            cells = [entry["pid"] or "-", "yes" if entry["ready"] else "no", entry["restarts"]]
            cells.append(entry["last_exit"] or "-")
        else:
            cells = ["-", "external", "-", "-"]
        where = entry.get("underlay") or ",".join(entry.get("endpoints", ()))
        table.add_row(entry["name"], entry.get("ip", "-"), where, *map(str, cells))
    # Into a pipe or a file: as wide as it needs to be.
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    console.print(table)
    console.print(f"\nkubeconfig: {status['kubeconfig']}", soft_wrap=True, highlight=False)
