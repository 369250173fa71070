"""What the verbs that run one role in this terminal share: the cluster's plan, and its files."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from emulator.cli.up import read_file
from emulator.cluster.plan import make_plan, preferred_block
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


def plan_alone(args: argparse.Namespace) -> ClusterPlan:
    """The plan of a cluster whose roles were started one by one; its directories exist after."""
    spec = load_spec(
        read_file(args.file),
        name=args.cluster,
        etcd_endpoints=tuple(filter(None, args.etcd_endpoints.split(","))),
    )
    directory = ClusterDirectory(spec.name)
    directory.join()
    return make_plan(spec, directory.path, preferred_block(spec.name))


def with_server(plan: ClusterPlan, address: str) -> ClusterPlan:
    """The plan with the API server at ``host[:port]``."""
    host, _, port = address.partition(":")
    if port and not port.isdigit():
        raise UsageError(f"{address!r} is not HOST or HOST:PORT")
    return dataclasses.replace(plan, api_host=host, api_port=int(port or plan.api_port))


def run_here(role: Role, name: str) -> int:
    """Run a role in this terminal until Ctrl-C; its log goes to stderr."""

    def failed(error: str) -> None:
        """The log has said it already."""

    return run_role(role, name=name, on_ready=lambda _: None, on_failed=failed)
