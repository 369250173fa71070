"""podwire etcd: the embedded etcd alone in this terminal, with etcd's own flags."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from emulator.cli.alone import DEFAULT_ETCD, run_here
from emulator.errors import UsageError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "command",
        nargs="*",
        help="nothing: serve; 'snapshot restore FILE': make --data-dir from a snapshot of etcdctl "
        "or from a stopped real etcd's directory",
    )
    parser.add_argument(
        "--skip-hash-check", action="store_true", help="restore a file that has no sha256"
    )
    parser.add_argument("--name", default="default", help="the member's name")
    parser.add_argument("--data-dir", metavar="DIR", help="default: <name>.etcd")
    parser.add_argument("--listen-client-urls", metavar="URL", default=DEFAULT_ETCD)
    parser.add_argument("--advertise-client-urls", metavar="URLS", help="default: as it listens")


def run(args: argparse.Namespace) -> int:
    if args.command:
        return _snapshot(args)
    from etcd.server.config import EtcdConfig
    from etcd.server.daemon import run_etcd

    host, port = _address("--listen-client-urls", args.listen_client_urls)
    advertised = tuple(filter(None, (args.advertise_client_urls or "").split(",")))
    for url in advertised:
        _address("--advertise-client-urls", url)
    config = EtcdConfig(
        name=args.name,
        data_dir=args.data_dir or f"{args.name}.etcd",
        listen_host=host,
        listen_port=port,
        advertise_client_urls=advertised,
    )
    return run_here(functools.partial(run_etcd, config), "etcd")


def _snapshot(args: argparse.Namespace) -> int:
    match args.command:
        case ["snapshot", "restore", file]:
            from etcd.server.restore import restore_snapshot

            data_dir = args.data_dir or f"{args.name}.etcd"
            skip = args.skip_hash_check
            print(restore_snapshot(file, data_dir, name=args.name, skip_hash_check=skip))
            return 0
        case _:
            words = " ".join(args.command)
            raise UsageError(f"etcd {words}: unknown; there is 'etcd snapshot restore FILE'")


def _address(flag: str, text: str) -> tuple[str, int]:
    """(host, port) of an http URL; UsageError names the flag."""
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if host is None or not port or url.scheme != "http" or url.path not in ("", "/"):
        raise UsageError(f"{flag}: {text!r} is not one http://HOST:PORT")
    return host, port
