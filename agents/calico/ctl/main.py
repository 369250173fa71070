"""calicoctl's command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from agents.calico.client import ResourceClient
from agents.calico.ctl import node_status
from agents.calico.ctl.commands import OUTPUTS, Commands
from agents.calico.ctl.ipam import IpamCommands
from emulator.errors import PodwireError, UsageError

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from agents.calico.ctl.commands import Console
    from agents.calico.datastore import Datastore
    from emulator.runtime.clock import Clock

VERSION: Final = "v3.28.0"


@dataclass(frozen=True, slots=True)
class Environment:
    """What calicoctl works with.

    ``ask_bird`` sends one line to the node's BIRD and returns the answer's lines without their end;
    it raises OSError where BIRD does not answer.
    """

    datastore: Datastore
    clock: Clock
    rng: random.Random
    console: Console
    ask_bird: Callable[[str], Awaitable[list[str]]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} (see '{self.prog} --help')")


def make_parser() -> _Parser:
    """The parser of the whole command line."""
    top = _Parser(prog="calicoctl", description="Calico's resources, BGP status and IPAM")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    where = _Parser(add_help=False)
    where.add_argument("-n", "--namespace", default="", help="of namespaced resources")
    of_file = _Parser(add_help=False)
    of_file.add_argument("-f", "--filename", metavar="FILE", help="YAML or JSON; '-' is stdin")

    get = verbs.add_parser("get", parents=[where, of_file], help="show resources")
    get.add_argument("kind", nargs="?", metavar="KIND")
    get.add_argument("names", nargs="*", metavar="NAME")
    get.add_argument("-o", "--output", default="ps", help=f"one of: {', '.join(OUTPUTS)}")
    get.add_argument("-A", "-a", "--all-namespaces", action="store_true")
    get.add_argument("--export", action="store_true", help="leave out what is of one cluster")
    create = verbs.add_parser("create", parents=[where, of_file], help="make resources")
    create.add_argument("--skip-exists", action="store_true")
    verbs.add_parser("apply", parents=[where, of_file], help="make or replace resources")
    verbs.add_parser("replace", parents=[where, of_file], help="replace resources")
    delete = verbs.add_parser("delete", parents=[where, of_file], help="delete resources")
    delete.add_argument("kind", nargs="?", metavar="KIND")
    delete.add_argument("names", nargs="*", metavar="NAME")
    delete.add_argument("-s", "--skip-not-exists", action="store_true")
    patch = verbs.add_parser("patch", parents=[where], help="change fields of a resource")
    patch.add_argument("kind", metavar="KIND")
    patch.add_argument("name", metavar="NAME")
    patch.add_argument("-p", "--patch", required=True, help="JSON")
    patch.add_argument("-t", "--type", default="strategic", choices=("strategic", "merge", "json"))
    label = verbs.add_parser("label", parents=[where], help="set or remove a label")
    label.add_argument("kind", metavar="KIND")
    label.add_argument("name", metavar="NAME")
    label.add_argument("label", metavar="KEY[=VALUE]")
    label.add_argument("--overwrite", action="store_true")
    label.add_argument("--remove", action="store_true")

    node = verbs.add_parser("node", help="of one node").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    node.add_parser("status", help="the node's BGP peers")
    _add_ipam(verbs)
    _add_datastore(verbs)
    verbs.add_parser("version", help="versions of client and cluster")
    return top


def _add_ipam(verbs: argparse._SubParsersAction[_Parser]) -> None:
    ipam = verbs.add_parser("ipam", help="IP addresses").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    show = ipam.add_parser("show", help="how full pools are, or who holds an address")
    show.add_argument("--ip", metavar="IP", help="report whether this address is in use")
    show.add_argument("--show-blocks", action="store_true", help="each block below its pool")
    show.add_argument("--show-borrowed", action="store_true", help="addresses of others' blocks")
    show.add_argument("--show-configuration", action="store_true", help="the cluster's settings")
    check = ipam.add_parser("check", help="compare IPAM with what is in use")
    check.add_argument("-o", "--output", metavar="FILE", help="write a report for 'release'")
    check.add_argument("--show-all-ips", action="store_true")
    check.add_argument("--show-problem-ips", action="store_true")
    release = ipam.add_parser("release", help="free addresses")
    release.add_argument("--ip", metavar="IP")
    release.add_argument("--from-report", metavar="REPORT", action="append", default=[])
    release.add_argument("--force", action="store_true", help="though the data store is not locked")
    configure = ipam.add_parser("configure", help="change the cluster's settings")
    configure.add_argument("--strictaffinity", metavar="true/false")
    configure.add_argument("--max-blocks-per-host", metavar="NUMBER")


def _add_datastore(verbs: argparse._SubParsersAction[_Parser]) -> None:
    migrate = (
        verbs.add_parser("datastore", help="the whole data store")
        .add_subparsers(dest="part", required=True, metavar="PART")
        .add_parser("migrate", help="keep others from changing it")
        .add_subparsers(dest="action", required=True, metavar="ACTION")
    )
    migrate.add_parser("lock", help="let no pod be made or removed")
    migrate.add_parser("unlock", help="let pods be made and removed again")


async def run_calicoctl(argv: Sequence[str], env: Environment) -> int:
    """Run one command; returns its exit code.  Errors are told on ``err``, as calicoctl does."""
    try:
        args = make_parser().parse_args(list(argv))
        return await _run(args, env)
    except PodwireError as error:
        env.console.err(f"{error}\n")
        return 1


async def _run(args: argparse.Namespace, env: Environment) -> int:
    client = ResourceClient(env.datastore, env.clock, env.rng)
    if args.verb == "node":
        return await _node_status(env)
    if args.verb == "ipam":
        ipam = IpamCommands(env, client, VERSION)
        action: Callable[[argparse.Namespace], Awaitable[int]] = getattr(ipam, args.action)
        return await action(args)
    if args.verb == "datastore":
        return await _set_ready(client, env, ready=args.action == "unlock")
    if args.verb == "version":
        return await _version(client, env)
    verb: Callable[[argparse.Namespace], Awaitable[int]] = getattr(
        Commands(client, env.console), args.verb
    )
    return await verb(args)


async def _node_status(env: Environment) -> int:
    try:
        lines = await env.ask_bird(node_status.QUESTION)
    except OSError:
        env.console.out(node_status.render(None))
        return 0
    env.console.out(node_status.render(node_status.peers_of(lines)))
    return 0


async def _set_ready(client: ResourceClient, env: Environment, *, ready: bool) -> int:
    """The CNI plugins ask for ``datastoreReady`` before they do anything."""
    cluster = await client.get("ClusterInformation", "default")
    cluster["spec"]["datastoreReady"] = ready
    await client.update(cluster)
    env.console.out(f"Datastore {'unlocked' if ready else 'locked'}.\n")
    return 0


async def _version(client: ResourceClient, env: Environment) -> int:
    env.console.out(f"Client Version:    {VERSION}\n")
    cluster = (await client.get("ClusterInformation", "default"))["spec"]
    env.console.out(f"Cluster Version:   {cluster.get('calicoVersion', '')}\n")
    env.console.out(f"Cluster Type:      {cluster.get('clusterType', '')}\n")
    return 0
