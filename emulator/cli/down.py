"""podwire down: stop every process of a cluster and remove its files."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from emulator.cli.running import add_name, run_async
from emulator.cluster.spec import check_cluster_name
from emulator.cluster.state import ClusterDirectory
from emulator.errors import PodwireError, UsageError
from emulator.runtime.control import ControlClient

if TYPE_CHECKING:
    import argparse

# Three groups of processes, each with its own grace before SIGKILL.
DOWN_TIMEOUT_S: Final = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)


def run(args: argparse.Namespace) -> int:
    check_cluster_name(args.name)
    directory = ClusterDirectory(args.name)
    if directory.is_running():
        if not (directory.path / "run" / "supervisor.sock").exists():
            raise UsageError(
                f"the roles of cluster {args.name!r} were started one by one; end each where it "
                "was started (Ctrl-C), then 'podwire down' removes what they left"
            )
        run_async(_stop(str(directory.path / "run" / "supervisor.sock")))
        deadline = time.monotonic() + DOWN_TIMEOUT_S
        while directory.is_running():
            if time.monotonic() > deadline:
                raise PodwireError(f"cluster {args.name!r} did not stop within {DOWN_TIMEOUT_S} s")
            time.sleep(0.01)
        print(f"cluster {args.name!r} is down")
    elif directory.path.exists():
        print(f"cluster {args.name!r} was not running; removed what it left")
    else:
        print(f"cluster {args.name!r} is not running")
    directory.remove()
    directory.forget_kept_logs()
    return 0


async def _stop(path: str) -> None:
    async with asyncio.timeout(DOWN_TIMEOUT_S), ControlClient(path) as client:
        await client.call("down")
