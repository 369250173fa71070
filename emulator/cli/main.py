"""The ``podwire`` command: parses, imports only the verb's own file, maps errors to exit codes.

Exit codes: 0 done, 1 something failed while running, 2 bad input (one line on stderr), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import os
import sys
from typing import Final, NoReturn, Protocol, TextIO, cast

from emulator.errors import PodwireError, UsageError

# No room for what is printed or written: for the user to mend, no error of the program.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, as for every other bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see '{self.prog} --help')\n")


class Verb(Protocol):
    """What each verb's module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


# verb → its one-line help; the module of the same name is imported only when it is asked for.
VERBS: Final = {
    "up": "start a cluster",
    "down": "take a cluster down and remove what it left",
    "status": "show a cluster's processes",
    "kubeconfig": "print the path of the cluster's kubeconfig",
    "env": "print shell lines that point kubectl and etcdctl at the cluster",
    "exec": "run a command on a node",
    "shell": "type commands on a node",
    "trace": "send one probe and explain every hop it takes",
    "capture": "write an interface's packets to a pcapng file",
    "logs": "print a role's log",
    "demo": "start a cluster, show what it does, take it down",
    "calicoctl": "run calicoctl on a cluster whose network is Calico",
    "etcd": "run etcd alone in this terminal",
    "controlplane": "run the control plane alone in this terminal",
    "node": "run one node alone in this terminal",
    "version": "print the version",
}


def main(argv: list[str] | None = None) -> int:
    """Run ``podwire`` and return its exit code."""
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"podwire: {error}", file=sys.stderr)
        return 2
    except PodwireError as error:
        print(f"podwire: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away; stdout has nobody left to flush to.
        sys.stderr.close()
        return 141
    except OSError as error:
        if error.errno not in _FULL:
            raise
        # What is left in stdout's buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"podwire: {error.strerror}", file=sys.stderr)
        return 1


def _nowhere() -> TextIO:
    """What stands for an output that was closed: Python has none then."""
    return open(os.devnull, "w")


def _run(arguments: list[str]) -> int:
    # Importing makes thousands of objects and no garbage: collecting would be a tenth of a start.
    gc.disable()
    parser = _Parser(
        prog="podwire", description="Kubernetes networking, emulated: real packets, no root."
    )
    commands = parser.add_subparsers(dest="verb", metavar="VERB")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, text in VERBS.items():
        sub = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name == chosen:
            _load(name).add_arguments(sub)
    try:
        args = parser.parse_args(arguments)
    finally:
        gc.enable()
    if args.verb is None:
        parser.print_help(sys.stderr)
        return 2
    return _load(args.verb).run(args)


def _load(verb: str) -> Verb:
    return cast("Verb", importlib.import_module(f"emulator.cli.{verb.replace('-', '_')}"))


if __name__ == "__main__":
    sys.exit(main())
