"""podwire etcd: the embedded etcd alone in this terminal, with etcd's own flags."""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from emulator.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from emulator.runtime.role import RoleEnv
    from etcd.server.flags import Options

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
# Where etcd writes under these names; anything else is a file.
_STDERR: Final = ("default", "stderr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    import argparse

    from etcd.server.flags import names

    parser.allow_abbrev = False
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument(
        "command",
        nargs="*",
        default=[],
        help="nothing: serve; 'snapshot restore FILE': make --data-dir from a snapshot of etcdctl "
        "or from a stopped real etcd's directory",
    )
    parser.add_argument(
        "--skip-hash-check", action="store_true", help="restore a file that has no sha256"
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument(
        "--config-file", metavar="FILE", help="YAML of the flags below; they are then ignored"
    )
    for name, (text, switch) in names().items():
        if switch:
            parser.add_argument(f"--{name}", nargs="?", const="true", metavar="BOOL", help=text)
        else:
            parser.add_argument(f"--{name}", metavar=name.rpartition("-")[2].upper(), help=text)


def run(args: argparse.Namespace) -> int:
    from etcd.server import flags

    given = {name.replace("_", "-"): value for name, value in vars(args).items()}
    if given.get("version"):
        return _version()
    values = {name: value for name, value in given.items() if name in flags.names()}
    options = flags.read(values, os.environ, given.get("config-file"))
    if args.command:
        return _snapshot(args.command, options, skip="skip-hash-check" in given)
    # Not by way of emulator.cli.alone: what it needs of clusters would double the start's time.
    from emulator.cluster.process import run_role

    return run_role(
        functools.partial(_serve, options),
        name="etcd",
        on_ready=lambda _: None,
        # The log has said it already.
        on_failed=lambda _: None,
    )


async def _serve(options: Options, env: RoleEnv) -> Any:
    from etcd.server.daemon import run_etcd

    _direct_log(options)
    for note in options.notes:
        env.log.info("%s", note)
    await run_etcd(options.config, env)


def _direct_log(options: Options) -> None:
    """Send the log where --log-outputs says, from --log-level on."""
    root = logging.getLogger()
    root.setLevel(_LEVELS[options.log_level])
    (first,) = root.handlers
    handlers: list[logging.Handler] = []
    for output in options.log_outputs:
        if output in _STDERR:
            handlers.append(first)
            continue
        try:
            handler: logging.Handler = (
                logging.StreamHandler(sys.stdout)
                if output == "stdout"
                else logging.FileHandler(output)
            )
        except OSError as error:
            raise UsageError(f"--log-outputs: {output}: {error.strerror}") from None
        handler.setFormatter(first.formatter)
        for part in first.filters:
            handler.addFilter(part)
        handlers.append(handler)
    root.handlers[:] = dict.fromkeys(handlers)


def _version() -> int:
    from etcd.server.config import SERVER_VERSION

    print(f"etcd Version: {SERVER_VERSION}")
    print("Implementation: Podwire, embedded, one member")
    return 0


def _snapshot(command: list[str], options: Options, *, skip: bool) -> int:
    match command:
        case ["snapshot", "restore", file]:
            from etcd.core.identity import derive_ids
            from etcd.server.restore import restore_snapshot

            config = options.config
            ids = derive_ids(config.peer_urls, config.cluster_token)
            print(restore_snapshot(file, config.data_dir, skip_hash_check=skip, ids=ids))
            return 0
        case _:
            words = " ".join(command)
            raise UsageError(f"etcd {words}: unknown; there is 'etcd snapshot restore FILE'")
