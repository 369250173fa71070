"""podwire controlplane: API server, scheduler and controllers alone in this terminal."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from emulator.addr import format_ip
from emulator.cli.alone import (
    add_cluster_arguments,
    check_ip,
    plan_alone,
    run_here,
    share_directory,
)

if TYPE_CHECKING:
    import argparse

    from emulator.cluster.controlplane import ControlPlaneConfig
    from emulator.cluster.plan import ClusterPlan
    from emulator.runtime.control import Call
    from emulator.runtime.role import RoleEnv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cluster_arguments(parser)
    parser.add_argument(
        "--bind-address", metavar="IP", help="where to listen (default: where --server is)"
    )


def run(args: argparse.Namespace) -> int:
    from emulator.cluster.credentials import Credentials
    from emulator.cluster.launch import write_credentials
    from emulator.cluster.roles import controlplane_config

    bind = args.bind_address and check_ip("--bind-address", args.bind_address)
    plan = plan_alone(args)
    share_directory(plan)
    write_credentials(plan)
    config = controlplane_config(plan, Credentials.read(plan.pki))
    if bind:
        apiserver = dataclasses.replace(config.apiserver, listen_host=bind)
        config = dataclasses.replace(config, apiserver=apiserver)
    print(f"kubeconfig: {plan.kubeconfig}", flush=True)

    async def role(env: RoleEnv) -> None:
        await _serve(plan, config, env)

    return run_here(role, "controlplane")


async def _serve(plan: ClusterPlan, config: ControlPlaneConfig, env: RoleEnv) -> None:
    """The control plane and, beside it, the socket that tells of the cluster."""
    from emulator.cluster.controlplane import run_controlplane
    from emulator.runtime.control import ControlServer

    serving = False

    def ready(info: str) -> None:
        nonlocal serving
        serving = True
        env.on_ready(info)

    async def status(call: Call) -> dict[str, Any]:
        return {**status_of(plan), "ready": serving}

    control = ControlServer({"status": status}, env.log)
    try:
        env.log.info("etcd is at %s", ", ".join(plan.etcd_endpoints))
        await control.start_unix(str(plan.socket("controlplane")))
        await run_controlplane(config, dataclasses.replace(env, on_ready=ready))
    finally:
        await control.close()


def status_of(plan: ClusterPlan) -> dict[str, Any]:
    """What the control plane knows of the cluster, for ``podwire status``."""
    spec = plan.spec
    return {
        "name": "controlplane",
        "ip": format_ip(spec.control_plane_ip),
        "underlay": plan.api_host,
        "server": plan.server,
        "pid": os.getpid(),
        "network": spec.network.type,
        "pod_cidr": str(spec.network.pod_cidr),
        "service_cidr": str(spec.service_cidr),
        "etcd_endpoints": list(plan.etcd_endpoints),
    }
