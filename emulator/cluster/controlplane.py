"""The control plane role: API server, scheduler and controllers in one process."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agents.apiserver.daemon import run_apiserver
from agents.controllers.daemon import ControllersConfig, run_controllers
from agents.scheduler.daemon import SchedulerConfig, run_scheduler
from etcd.client import EtcdClient, EtcdError, Put, version

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from agents.apiserver.config import ApiServerConfig
    from emulator.kubeclient.config import KubeConfig
    from emulator.runtime.role import RoleEnv

FLANNEL_CONFIG_KEY: Final = b"/coreos.com/network/config"
ETCD_RETRY_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class ControlPlaneConfig:
    """``network`` is flannel's configuration, written to etcd unless one is there, or None.

    With ``calico`` Calico's own controllers run beside Kubernetes'.
    """

    apiserver: ApiServerConfig
    controllers: KubeConfig
    scheduler: KubeConfig
    network: Mapping[str, object] | None
    calico: bool = False


async def run_controlplane(
    config: ControlPlaneConfig, env: RoleEnv, listener: socket.socket | None = None
) -> None:
    """Run until cancelled; ready when API server, controllers and scheduler all are.

    ``listener`` is the API server's socket, if it listens already.
    """
    serving = asyncio.Event()
    waiting = {"controllers", "scheduler"}
    if config.calico:
        waiting.add("calico-kube-controllers")

    def part_ready(name: str) -> None:
        waiting.discard(name)
        if not waiting:
            env.ready(f"https://{config.apiserver.listen_host}:{config.apiserver.listen_port}")

    def part(name: str) -> RoleEnv:
        child = env.child(name)
        return dataclasses.replace(child, on_ready=lambda _: part_ready(name))

    api_env = dataclasses.replace(env.child("apiserver"), on_ready=lambda _: serving.set())
    async with asyncio.TaskGroup() as group:
        if config.network is not None:
            group.create_task(_offer_network(config, env), name="controlplane.network")
        group.create_task(run_apiserver(config.apiserver, api_env, listener), name="apiserver")
        await serving.wait()
        group.create_task(
            run_controllers(ControllersConfig(config.controllers), part("controllers")),
            name="controllers",
        )
        group.create_task(
            run_scheduler(SchedulerConfig(config.scheduler), part("scheduler")), name="scheduler"
        )
        if config.calico:
            from agents.calico.kubecontrollers.daemon import (
                KubeControllersConfig,
                run_kubecontrollers,
            )

            api = config.apiserver
            group.create_task(
                run_kubecontrollers(
                    KubeControllersConfig(config.controllers, api.etcd_endpoints, api.etcd_access),
                    part("calico-kube-controllers"),
                ),
                name="calico-kube-controllers",
            )


async def _offer_network(config: ControlPlaneConfig, env: RoleEnv) -> None:
    """Write flannel's network configuration as an installer does: once, never over another."""
    value = json.dumps(config.network, separators=(",", ":")).encode()
    apiserver = config.apiserver
    async with EtcdClient(apiserver.etcd_endpoints, access=apiserver.etcd_access) as client:
        while True:
            try:
                await client.txn(
                    compare=[version(FLANNEL_CONFIG_KEY) == 0],
                    success=[Put(FLANNEL_CONFIG_KEY, value)],
                )
            except (EtcdError, OSError) as error:
                env.log.warning("cannot write the network configuration yet: %s", error)
                await asyncio.sleep(ETCD_RETRY_S)
            else:
                return
