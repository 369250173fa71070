"""podwire logs: what a role's process wrote."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Final

from emulator.cli.running import add_name, directory_of
from emulator.errors import UsageError

if TYPE_CHECKING:
    import argparse

FOLLOW_POLL_S: Final = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", metavar="ROLE", help="supervisor, etcd, controlplane or a node")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as lines are written")
    add_name(parser)


def run(args: argparse.Namespace) -> int:
    logs = directory_of(args) / "logs"
    path = logs / f"{args.role}.log"
    if not path.is_file() or path.parent != logs:
        known = ", ".join(sorted(file.stem for file in logs.glob("*.log")))
        if not known:
            raise UsageError(
                f"cluster {args.name!r} has no log files: its roles were started one by one, and "
                "each logs to its own terminal or container"
            )
        raise UsageError(f"no role {args.role!r} (there are: {known})")
    with path.open(errors="replace") as file:
        shutil.copyfileobj(file, sys.stdout)
        while args.follow and path.exists():
            sys.stdout.flush()
            time.sleep(FOLLOW_POLL_S)
            shutil.copyfileobj(file, sys.stdout)
    return 0
