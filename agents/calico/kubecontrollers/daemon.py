"""calico-kube-controllers: one for a cluster, beside Kubernetes' own controllers; shell."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agents.calico.client import ResourceClient
from agents.calico.datastore import EtcdDatastore
from agents.calico.ipam.ipam import Ipam
from agents.calico.kubecontrollers.node import InformerView, NodeController
from agents.calico.kubecontrollers.policy import PolicyController
from emulator.kubeclient.informer import SharedInformers
from emulator.kubeclient.rest import RestClient
from etcd.client import EtcdClient
from etcd.core.access import NO_ACCESS, EtcdAccess

if TYPE_CHECKING:
    from emulator.kubeclient.config import KubeConfig
    from emulator.runtime.role import RoleEnv

# Requests under way at once: its first lists.
MAX_REQUESTS: Final = 4


@dataclass(frozen=True, slots=True)
class KubeControllersConfig:
    """How it reaches Kubernetes and the datastore."""

    kubeconfig: KubeConfig
    etcd_endpoints: tuple[str, ...]
    etcd_access: EtcdAccess = NO_ACCESS


async def run_kubecontrollers(config: KubeControllersConfig, env: RoleEnv) -> None:
    """Run until cancelled; ready once the datastore mirrors Kubernetes."""
    async with (
        EtcdClient(config.etcd_endpoints, access=config.etcd_access, rng=env.rng) as etcd,
        RestClient(
            config.kubeconfig,
            rng=env.rng,
            user_agent="calico-kube-controllers",
            max_inflight=MAX_REQUESTS,
        ) as client,
    ):
        datastore = EtcdDatastore(etcd)
        resources = ResourceClient(datastore, env.clock, env.rng)
        informers = SharedInformers(client, env.log)
        policies = PolicyController(
            resources,
            datastore,
            informers,
            env.log,
            on_synced=lambda: env.ready("Kubernetes is mirrored into Calico's datastore"),
        )
        nodes = NodeController(
            InformerView(informers, client),
            Ipam(datastore, env.clock),
            resources,
            env.clock,
            env.log,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(informers.run(), name="kube-controllers.informers")
            group.create_task(policies.run(), name="kube-controllers.policies")
            await informers.wait_synced()
            group.create_task(nodes.run(), name="kube-controllers.nodes")
