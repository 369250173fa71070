"""The controller manager's shell: one client, shared informers, every loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agents.controllers.loops.services import add_services
from agents.controllers.loops.workloads import add_workloads
from agents.controllers.shell import Shell
from emulator.kubeclient.events import EventRecorder
from emulator.kubeclient.informer import SharedInformers
from emulator.kubeclient.rest import RestClient

if TYPE_CHECKING:
    from emulator.kubeclient.config import KubeConfig
    from emulator.runtime.role import RoleEnv


@dataclass(frozen=True, slots=True)
class ControllersConfig:
    """Where the API server is, and the controllers' timing (upstream's flags and defaults)."""

    kubeconfig: KubeConfig


async def run_controllers(config: ControllersConfig, env: RoleEnv) -> None:
    """Run every controller until cancelled; ready once the cluster's objects are known."""
    agent = "kube-controller-manager"
    async with RestClient(config.kubeconfig, rng=env.rng, user_agent=agent) as client:
        informers = SharedInformers(client, env.log)
        recorder = EventRecorder(client, env.clock, agent, log=env.log)
        shell = Shell(client, informers, recorder, env)
        add_workloads(shell)
        add_services(shell)
        async with asyncio.TaskGroup() as group:
            group.create_task(informers.run(), name="controllers.informers")
            group.create_task(recorder.run(), name="controllers.events")
            # No controller acts on half a picture: a pod not yet listed is not a pod missing.
            await informers.wait_synced()
            for hook in shell.after_sync:
                hook()
            for controller in shell.controllers:
                group.create_task(controller.run(), name=f"controllers.{controller.name}")
            env.ready("controllers")
