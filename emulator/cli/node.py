"""podwire node: one node alone in this terminal or container."""

from __future__ import annotations

import datetime
import functools
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from emulator.addr import parse_ip
from emulator.cli.alone import add_cluster_arguments, plan_alone, run_here
from emulator.cluster.spec import NodeSpec
from emulator.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from emulator.cluster.plan import ClusterPlan, NodePlan

POLL_S: Final = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cluster_arguments(parser)
    parser.add_argument("--name", required=True, help="the node's name")
    parser.add_argument("--ip", help="its emulated address, if the cluster file does not say")
    parser.add_argument("--underlay", metavar="HOST", help="its real address")
    parser.add_argument(
        "--wait", type=float, default=60.0, metavar="S", help="for the control plane's credentials"
    )


def run(args: argparse.Namespace) -> int:
    from agents.node.daemon import run_node
    from emulator.cluster.pki import Authority
    from emulator.cluster.roles import node_config

    plan = plan_alone(args)
    node = place(plan, args)
    wait_for_credentials(plan, args.wait)
    authority = Authority(plan.pki, datetime.datetime.now(datetime.UTC))
    # Its own certificate: the control plane could not know this node's address.
    pair = authority.issue(f"kubelet-{node.spec.name}", "system:node", names=[node.host])
    config = replace(node_config(plan, node), kubelet_cert=pair.cert, kubelet_key=pair.key)
    return run_here(functools.partial(run_node, config), node.spec.name)


def place(plan: ClusterPlan, args: argparse.Namespace) -> NodePlan:
    """Where the node of that name is; UsageError unless file and options tell."""
    planned = next((node for node in plan.nodes if node.spec.name == args.name), None)
    if planned is None and not args.ip:
        names = ", ".join(node.spec.name for node in plan.nodes)
        raise UsageError(f"--name: no node {args.name!r} in the cluster file ({names}); give --ip")
    node = planned or plan.nodes[0]
    if args.ip:
        ip = parse_ip(args.ip)
        if ip not in plan.spec.node_network:
            raise UsageError(f"--ip: {args.ip} is not in nodeNetwork {plan.spec.node_network}")
        node = replace(node, spec=NodeSpec(args.name, ip))
    if args.underlay:
        node = replace(node, host=args.underlay)
    elif planned is None:
        raise UsageError(f"--underlay: node {args.name!r} needs a real address of its own")
    return node


def wait_for_credentials(plan: ClusterPlan, within_s: float) -> None:
    """Wait until the control plane has written its files; UsageError after ``within_s``."""
    deadline = time.monotonic() + within_s
    while not plan.kubeconfig.exists():
        if time.monotonic() > deadline:
            raise UsageError(
                f"{plan.kubeconfig}: not there after {within_s:.0f} s; is the control plane "
                "running with the same PODWIRE_HOME and cluster name?"
            )
        time.sleep(POLL_S)
