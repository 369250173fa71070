"""The controller manager's shell: one client, shared informers, every loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agents.controllers.loops.daemonsets import add_daemonsets
from agents.controllers.loops.garbage import add_garbage
from agents.controllers.loops.jobs import add_jobs
from agents.controllers.loops.kinds import Kinds
from agents.controllers.loops.namespaces import add_namespaces
from agents.controllers.loops.nodes import add_nodes
from agents.controllers.loops.services import add_services
from agents.controllers.loops.workloads import add_workloads
from agents.controllers.nodelifecycle import NodeTimings
from agents.controllers.shell import Shell
from emulator.kubeclient.backoff import Backoff, BackoffPolicy
from emulator.kubeclient.discovery import deletable, discover
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.events import EventRecorder
from emulator.kubeclient.informer import SharedInformers
from emulator.kubeclient.rest import RestClient

if TYPE_CHECKING:
    from emulator.kubeclient.config import KubeConfig
    from emulator.kubeclient.resource import Resource
    from emulator.runtime.role import RoleEnv


@dataclass(frozen=True, slots=True)
class ControllersConfig:
    """Where the API server is, and the controllers' timing (upstream's flags and defaults)."""

    kubeconfig: KubeConfig
    nodes: NodeTimings = field(default_factory=NodeTimings)
    pod_gc_quarantine_s: float = 40.0
    """How long a node must be gone before its pods are removed."""
    terminated_pod_threshold: int = 12500
    root_ca_pem: str = ""
    """Published in every namespace as kube-root-ca.crt; the kubeconfig's CA if empty."""


async def run_controllers(config: ControllersConfig, env: RoleEnv) -> None:
    """Run every controller until cancelled; ready once the cluster's objects are known."""
    agent = "kube-controller-manager"
    async with RestClient(config.kubeconfig, rng=env.rng, user_agent=agent) as client:
        served = await _served(client, env)
        informers = SharedInformers(client, env.log)
        recorder = EventRecorder(client, env.clock, agent, log=env.log)
        shell = Shell(client, informers, recorder, env)
        add_workloads(shell)
        add_services(shell)
        add_daemonsets(shell)
        add_jobs(shell)
        add_nodes(
            shell,
            config.nodes,
            quarantine_s=config.pod_gc_quarantine_s,
            terminated_pod_threshold=config.terminated_pod_threshold,
        )
        add_namespaces(shell, config.root_ca_pem or config.kubeconfig.ca_pem)
        add_garbage(shell, Kinds(shell, served))
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


async def _served(client: RestClient, env: RoleEnv) -> list[Resource]:
    """What the API server serves; waits for it to come up."""
    backoff = Backoff(BackoffPolicy(), env.rng)
    while True:
        try:
            return deletable(await discover(client))
        except (ApiError, ApiUnreachableError) as error:
            env.log.info("waiting for the API server: %s", error)
            await asyncio.sleep(backoff.next_delay_s())
