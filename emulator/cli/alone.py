"""What the verbs that run one role in this terminal share: flags, plan, files, control socket.

The roles of such a cluster meet in one directory (the same ``PODWIRE_HOME`` and cluster name): the
control plane writes credentials there, nodes wait for them, and every role leaves its control
socket in ``run/``, which is all that ``podwire status`` and its like need.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from emulator.addr import parse_ip
from emulator.cli.etcd_access import access_of, add_access_arguments
from emulator.cli.running import is_port
from emulator.cli.up import read_file
from emulator.cluster.plan import cluster_directory, make_plan, preferred_block
from emulator.cluster.process import run_role
from emulator.cluster.spec import load_spec
from emulator.cluster.state import ClusterDirectory
from emulator.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from emulator.cluster.plan import ClusterPlan
    from emulator.cluster.process import Role

DEFAULT_ETCD: Final = "http://127.0.0.1:2379"


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """The cluster file and where the rest of the cluster really is."""
    parser.add_argument("file", nargs="?", metavar="cluster.yaml", help="the cluster file")
    parser.add_argument("--cluster", metavar="NAME", help="the cluster's name (default: podwire)")
    parser.add_argument(
        "--etcd-endpoints", metavar="URLS", default=DEFAULT_ETCD, help=f"default: {DEFAULT_ETCD}"
    )
    add_access_arguments(parser)
    parser.add_argument(
        "--server",
        metavar="HOST[:PORT]",
        help="where the API server really is, if not where the cluster's name puts it",
    )


def plan_alone(args: argparse.Namespace) -> ClusterPlan:
    """The plan of a cluster whose roles are started one by one; nothing is written yet."""
    spec = load_spec(
        read_file(args.file),
        name=args.cluster,
        etcd_endpoints=_endpoints(args.etcd_endpoints),
        etcd_access=access_of(args),
    )
    plan = make_plan(spec, cluster_directory(spec.name), preferred_block(spec.name))
    if args.server is not None:
        host, port = _server(args.server, plan.api_port)
        plan = dataclasses.replace(plan, api_host=host, api_port=port)
    return plan


def share_directory(plan: ClusterPlan) -> None:
    """Hold the cluster's directory together with its other roles; UsageError if ``up`` has it."""
    ClusterDirectory(plan.spec.name).join()


def _endpoints(text: str) -> tuple[str, ...]:
    """The URLs of ``--etcd-endpoints``; UsageError for what is not one."""
    found = tuple(filter(None, text.split(",")))
    for url in found:
        scheme, separator, rest = url.partition("://")
        host, _, port = rest.rstrip("/").rpartition(":")
        if not separator or scheme not in ("http", "https") or not host or not is_port(port):
            raise UsageError(f"--etcd-endpoints: {url!r} is not http(s)://HOST:PORT")
    if not found:
        raise UsageError("--etcd-endpoints: no URL given")
    return found


def _server(text: str, default_port: int) -> tuple[str, int]:
    host, colon, port = text.partition(":")
    if not host or "/" in text or (colon and not is_port(port)):
        raise UsageError(f"--server: {text!r} is not HOST or HOST:PORT")
    return host, int(port) if colon else default_port


def check_ip(flag: str, text: str) -> str:
    """Return ``text`` if it is an IPv4 address; UsageError names the flag."""
    try:
        parse_ip(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from None
    return text


def run_here(role: Role, name: str) -> int:
    """Run a role in this terminal until Ctrl-C; its log goes to stderr."""

    def failed(error: str) -> None:
        """The log has said it already."""

    return run_role(role, name=name, on_ready=lambda _: None, on_failed=failed)
