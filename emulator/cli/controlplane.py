"""podwire controlplane: API server, scheduler and controllers alone in this terminal."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from emulator.cli.alone import add_cluster_arguments, plan_alone, run_here, with_server

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cluster_arguments(parser)
    parser.add_argument("--bind-address", metavar="HOST", help="where to listen, if not there:")
    parser.add_argument("--advertise-address", metavar="HOST[:PORT]", help="what clients dial")


def run(args: argparse.Namespace) -> int:
    from emulator.cluster.controlplane import run_controlplane
    from emulator.cluster.launch import write_credentials
    from emulator.cluster.roles import controlplane_config

    plan = plan_alone(args)
    if args.advertise_address:
        plan = with_server(plan, args.advertise_address)
    write_credentials(plan)
    config = controlplane_config(plan)
    if args.bind_address:
        apiserver = dataclasses.replace(config.apiserver, listen_host=args.bind_address)
        config = dataclasses.replace(config, apiserver=apiserver)
    print(f"kubeconfig: {plan.kubeconfig}", flush=True)
    return run_here(functools.partial(run_controlplane, config), "controlplane")
