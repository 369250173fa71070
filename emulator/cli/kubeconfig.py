"""podwire kubeconfig: the path of the cluster's kubeconfig, or its text for another place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import yaml

from emulator.cli.running import add_name, directory_of
from emulator.errors import UsageError

if TYPE_CHECKING:
    import argparse

_URL: Final = re.compile(r"https://[^/:\s]+(:[0-9]{1,5})?/?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("--raw", action="store_true", help="print the text rather than the path")
    parser.add_argument(
        "--server", metavar="URL", help="with --raw: dial the API server at https://HOST:PORT"
    )


def run(args: argparse.Namespace) -> int:
    path = directory_of(args) / "kubeconfig"
    if args.server is not None and not args.raw:
        raise UsageError("--server: needs --raw; the file itself stays as it is")
    if not args.raw:
        print(path)
        return 0
    if args.server is not None and not _URL.fullmatch(args.server):
        raise UsageError(f"--server: {args.server!r} is not https://HOST:PORT")
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UsageError(f"{path}: not there yet; has the control plane started?") from None
    print(text if args.server is None else _at(args.server, text), end="")
    return 0


def _at(server: str, text: str) -> str:
    document = yaml.safe_load(text)
    for entry in document["clusters"]:
        entry["cluster"]["server"] = server
    return yaml.safe_dump(document, sort_keys=False)
