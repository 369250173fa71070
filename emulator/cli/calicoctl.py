"""podwire calicoctl: Calico's own command line on a cluster whose network is Calico.

Everything after podwire's own options is calicoctl's, ``--help`` too.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emulator.cli.running import add_name, fetch_status, run_async
from emulator.errors import UsageError

if TYPE_CHECKING:
    from etcd.core.access import EtcdAccess

# As calicoctl waits for BIRD.
BIRD_TIMEOUT_S: Final = 2.0
# The longest line of BIRD's table.
MAX_LINE: Final = 64 * 1024
STDIN: Final = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument(
        "--node", metavar="NODE", default="", help="the node it runs on (default: the first)"
    )
    parser.add_argument(
        "--password", default="", help="of the cluster's etcd user, where etcd has users"
    )
    parser.add_argument(
        "argv", metavar="ARGS", nargs=argparse.REMAINDER, help="calicoctl's arguments; try --help"
    )


def run(args: argparse.Namespace) -> int:
    return run_async(_run(args))


async def _run(args: argparse.Namespace) -> int:
    import random

    from agents.calico.ctl.commands import Console
    from agents.calico.ctl.main import Environment, run_calicoctl
    from agents.calico.datastore import EtcdDatastore
    from emulator.runtime.clock import real_clock
    from etcd.client import EtcdClient, EtcdError

    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    status = await fetch_status(args)
    node = _node(status, args)

    async def ask_bird(line: str) -> list[str]:
        return await ask(node["bird_ctl"], line)

    console = Console(_out, _err, _read, _write)
    access = _access(status["etcd"], args.password)
    try:
        async with EtcdClient(status["etcd"]["endpoints"], access=access) as client:
            env = Environment(
                EtcdDatastore(client), real_clock(), random.Random(), console, ask_bird
            )
            return await run_calicoctl(argv, env)
    except EtcdError as error:
        raise UsageError(f"etcd of cluster {args.name!r}: {error}") from None


def _node(status: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The node to run on; UsageError for a cluster without Calico or an unknown node."""
    nodes: list[dict[str, Any]] = status["nodes"]
    if not any("bird_ctl" in node for node in nodes):
        network = status.get("network") or "another"
        raise UsageError(
            f"cluster {args.name!r} has no Calico, its network is {network}; "
            "start one with 'podwire up --preset calico'"
        )
    for node in nodes:
        if args.node in ("", node["name"]):
            return node
    names = ", ".join(node["name"] for node in nodes)
    raise UsageError(f"no node {args.node!r} (there are: {names})")


def _access(etcd: dict[str, Any], password: str) -> EtcdAccess:
    from etcd.core.access import EtcdAccess

    known = {name: etcd.get(name, "") for name in ("user", "cacert", "cert", "key")}
    if known["user"] and not password:
        raise UsageError(f"--password: the cluster's etcd has a user {known['user']!r}")
    return EtcdAccess.parse(password=password if known["user"] else "", **known)


async def ask(path: str, line: str) -> list[str]:
    """One command on a control socket of BIRD; the reply's lines without its end.

    Raises OSError if BIRD does not answer in time.
    """
    from agents.calico.ctl.node_status import END

    async with asyncio.timeout(BIRD_TIMEOUT_S):
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE)
        try:
            await reader.readline()
            writer.write(f"{line}\n".encode())
            lines: list[str] = []
            while data := await reader.readline():
                text = data.decode("utf-8", "replace").rstrip("\n")
                if text.startswith(END):
                    return lines
                lines.append(text)
            raise ConnectionResetError("bird closed its control socket")
        finally:
            writer.close()


def _out(text: str) -> None:
    sys.stdout.write(text)


def _err(text: str) -> None:
    sys.stderr.write(text)


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == STDIN else Path(name).read_text()
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not text: {error.reason}") from None


def _write(name: str, text: str) -> None:
    try:
        Path(name).write_text(text)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from None
