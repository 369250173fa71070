"""podwire node: one node alone in this terminal or container."""

from __future__ import annotations

import asyncio
import datetime
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from emulator.addr import format_ip, parse_ip
from emulator.cli.alone import (
    add_cluster_arguments,
    check_ip,
    plan_alone,
    run_here,
    share_directory,
)
from emulator.cluster.spec import NodeSpec, check_node_name
from emulator.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from emulator.cluster.plan import ClusterPlan, NodePlan
    from emulator.runtime.role import RoleEnv

POLL_S: Final = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cluster_arguments(parser)
    parser.add_argument("--name", required=True, help="the node's name")
    parser.add_argument("--ip", help="its emulated address, if the cluster file does not say")
    parser.add_argument("--underlay", metavar="IP", help="its real address")
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="S",
        help="how long to wait for the control plane's credentials (default: 60)",
    )


def run(args: argparse.Namespace) -> int:
    check_node_name(args.name, "--name")
    if not args.wait >= 0:
        raise UsageError(f"--wait: {args.wait:g} is not a number of seconds")
    plan = plan_alone(args)
    node = place(plan, args)
    share_directory(plan)

    async def role(env: RoleEnv) -> None:
        await _join(plan, node, args.wait, env)

    return run_here(role, node.spec.name)


def place(plan: ClusterPlan, args: argparse.Namespace) -> NodePlan:
    """Where the node of that name is; UsageError unless file and options tell."""
    planned = next((node for node in plan.nodes if node.spec.name == args.name), None)
    if planned is None and not args.ip:
        names = ", ".join(node.spec.name for node in plan.nodes)
        raise UsageError(f"--name: no node {args.name!r} in the cluster file ({names}); give --ip")
    node = planned or plan.nodes[0]
    if args.ip:
        node = replace(node, spec=_spec(plan, node.spec, args))
    if args.underlay:
        node = replace(node, host=check_ip("--underlay", args.underlay))
    elif planned is None:
        raise UsageError(f"--underlay: node {args.name!r} needs a real address of its own")
    return node


def _spec(plan: ClusterPlan, like: NodeSpec, args: argparse.Namespace) -> NodeSpec:
    """The node at ``--ip``: in the subnet of the node ``like``, else in the cluster's own."""
    ip = parse_ip(check_ip("--ip", args.ip))
    spec = plan.spec
    if ip not in spec.node_network:
        raise UsageError(f"--ip: {args.ip} is not in nodeNetwork {spec.node_network}")
    taken = {spec.gateway: "the gateway's", spec.control_plane_ip: "the control plane's"}
    taken |= {other.ip: f"node {other.name}'s" for other in spec.nodes if other.name != args.name}
    if ip in taken:
        raise UsageError(f"--ip: {format_ip(ip)} is {taken[ip]} address")
    if ip in like.network:
        return NodeSpec(args.name, ip, like.network, like.gateway)
    return NodeSpec(args.name, ip, spec.node_network, spec.gateway)


async def _join(plan: ClusterPlan, node: NodePlan, wait_s: float, env: RoleEnv) -> None:
    """Run the node as soon as the control plane has written who is who."""
    from agents.node.daemon import run_node
    from emulator.cluster.authority import Authority
    from emulator.cluster.credentials import Credentials
    from emulator.cluster.roles import node_config

    await _credentials(plan, wait_s, env)
    authority = Authority(plan.pki, datetime.datetime.now(datetime.UTC))
    # Its own certificate: the control plane could not know this node's address.
    pair = authority.issue(f"kubelet-{node.spec.name}", "system:node", names=[node.host])
    config = node_config(plan, node, Credentials.read(plan.pki))
    config = replace(config, kubelet_cert=pair.cert, kubelet_key=pair.key)
    await run_node(config, env)


async def _credentials(plan: ClusterPlan, within_s: float, env: RoleEnv) -> None:
    """Wait for the file the control plane writes last; UsageError after ``within_s``."""
    deadline = time.monotonic() + within_s
    if not plan.kubeconfig.exists():
        env.log.info("waiting for the control plane to write %s", plan.kubeconfig)
    while not plan.kubeconfig.exists():
        if time.monotonic() >= deadline:
            raise UsageError(
                f"{plan.kubeconfig}: not there after {within_s:g} s; is the control plane "
                "running with the same PODWIRE_HOME and cluster name?"
            )
        await asyncio.sleep(POLL_S)
