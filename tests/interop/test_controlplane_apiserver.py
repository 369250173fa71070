"""Controllers and scheduler against the API server itself, driven by a client and by kubectl."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from agents.controllers import ControllersConfig, NodeTimings, run_controllers
from agents.scheduler import SchedulerConfig, run_scheduler
from emulator.kubeclient import KubeConfig, RestClient
from emulator.kubeclient.resource import (
    CONFIGMAPS,
    CONTROLLERREVISIONS,
    DAEMONSETS,
    DEFINITIONS,
    DEPLOYMENTS,
    ENDPOINTS,
    ENDPOINTSLICES,
    EVENTS,
    JOBS,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    REPLICASETS,
    SERVICEACCOUNTS,
    SERVICES,
    Resource,
)
from emulator.runtime.clock import Clock, real_clock
from emulator.runtime.role import RoleEnv
from tests.api_servers import TOKEN, api_server
from tests.kube_fakes import FakeKubelet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.api_servers import World as ApiServer

Object = dict[str, Any]
NODE_NAMES = ("node-0", "node-1", "node-2")
READY = {"type": "Ready", "status": "True", "reason": "KubeletReady"}


async def until(condition: Callable[[], Awaitable[bool]], what: str, within_s: float = 10) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not await condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what}") from None


class World:
    """A control plane with three nodes whose kubelet only pretends."""

    def __init__(self, server: ApiServer, client: RestClient, kubelet: FakeKubelet) -> None:
        self.server, self.client, self.kubelet = server, client, kubelet
        self.skipped_s = 0.0
        real = real_clock()
        self.clock = Clock(
            lambda: real.monotonic() + self.skipped_s, real.time() - real.monotonic()
        )

    async def all(self, resource: Resource, namespace: str = "default") -> list[Object]:
        return (await self.client.list(resource, namespace)).items

    async def available(self, name: str, count: int, namespace: str = "default") -> bool:
        obj = await self.client.get(DEPLOYMENTS, namespace, name)
        status = obj.get("status") or {}
        return bool(
            status.get("availableReplicas", 0) == count
            and status.get("replicas", 0) == count
            and status.get("updatedReplicas", 0) == count
            and status.get("observedGeneration") == obj["metadata"]["generation"]
        )

    async def events(self, reason: str) -> list[str]:
        return [e["message"] for e in await self.all(EVENTS, "") if e["reason"] == reason]

    async def register(self) -> None:
        """The nodes, ready and with their leases."""
        for name in NODE_NAMES:
            labels = {"kubernetes.io/hostname": name}
            await self.client.create(NODES, {"metadata": {"name": name, "labels": labels}})
            allocatable = {"cpu": "2", "memory": "4Gi", "pods": "110"}
            await self.post(name, allocatable=allocatable, conditions=[READY])
            meta = {"name": name, "namespace": "kube-node-lease"}
            lease = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": meta}
            await self.client.create(LEASES, lease)

    async def post(self, name: str, **status: Any) -> None:
        """What a kubelet says of its node."""
        await self.client.patch(NODES, "", name, {"status": status}, subresource="status")

    async def beat(self, *names: str) -> None:
        """Heartbeats of nodes."""
        for name in names:
            renew = {"spec": {"renewTime": self.clock.rfc3339_micro()}}
            await self.client.patch(LEASES, "kube-node-lease", name, renew)

    async def lose(self, lost: str) -> None:
        """Let the grace of all nodes pass, of which all but one are heard of again at once.

        Each node is looked at when its grace ends by the real clock; a change brings that forward.
        """
        self.kubelet.silent[lost] = None
        self.skipped_s += NodeTimings().monitor_grace_s + 1
        await self.beat(*(name for name in NODE_NAMES if name != lost))
        await self.client.patch(NODES, "", lost, {"metadata": {"labels": {"looked-at": "yes"}}})


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with api_server(tmp_path) as server:
        ca_pem = (tmp_path / "ca.crt").read_text()
        config = KubeConfig(server.url, ca_pem=ca_pem, token=TOKEN)
        async with RestClient(config, rng=random.Random(3)) as client:
            world = World(server, client, FakeKubelet(client))
            env = RoleEnv(world.clock, random.Random(7))
            controllers = ControllersConfig(
                config,
                nodes=NodeTimings(eviction_rate=100),
                pod_gc_quarantine_s=0.1,
            )
            with contextlib.suppress(asyncio.CancelledError):
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(run_controllers(controllers, env)),
                        group.create_task(run_scheduler(SchedulerConfig(config), env)),
                        group.create_task(world.kubelet.run()),
                    ]
                    await world.register()
                    yield world
                    for task in tasks:
                        task.cancel()


def deployment(name: str, replicas: int, namespace: str = "default", **pod_spec: Any) -> Object:
    labels = {"app": name}
    container = {"name": "c", "image": "nginx", "ports": [{"containerPort": 80, "name": "http"}]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container], **pod_spec}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


async def test_deployment_service_scale_and_delete(world: World) -> None:
    await world.client.create(DEPLOYMENTS, deployment("web", 3))
    ports = [{"port": 80, "targetPort": "http"}]
    service = {"metadata": {"name": "web", "namespace": "default"}}
    await world.client.create(
        SERVICES, {**service, "spec": {"selector": {"app": "web"}, "ports": ports}}
    )
    await until(lambda: world.available("web", 3), "3 available")
    pods = await world.all(PODS)
    assert Counter(p["spec"]["nodeName"] for p in pods) == dict.fromkeys(NODE_NAMES, 1)

    async def endpoints() -> bool:
        addresses = sorted(p["status"]["podIP"] for p in await world.all(PODS))
        plain = await world.client.get(ENDPOINTS, "default", "web")
        found = [a["ip"] for s in plain.get("subsets") or () for a in s.get("addresses") or ()]
        slices = await world.client.list(
            ENDPOINTSLICES, "default", label_selector="kubernetes.io/service-name=web"
        )
        sliced = [e["addresses"][0] for s in slices.items for e in s["endpoints"]]
        return sorted(found) == addresses == sorted(sliced) and len(slices.items) == 1

    await until(endpoints, "endpoints of both kinds")
    await world.client.patch(DEPLOYMENTS, "default", "web", {"spec": {"replicas": 5}}, "merge")
    await until(lambda: world.available("web", 5), "5 available")
    await until(endpoints, "endpoints follow")
    await world.client.delete(DEPLOYMENTS, "default", "web", propagation_policy="Background")

    async def gone() -> bool:
        return not await world.all(PODS) and not await world.all(REPLICASETS)

    await until(gone, "sets and pods collected")
    await until(endpoints, "no endpoints")
    await world.client.delete(SERVICES, "default", "web")

    async def no_slices() -> bool:
        slices = await world.all(ENDPOINTSLICES)
        return [s["metadata"]["name"] for s in slices] == ["kubernetes"]

    await until(no_slices, "slices collected")
    names = [e["metadata"]["name"] for e in await world.all(ENDPOINTS)]
    assert names == ["kubernetes"]


async def test_foreground_and_orphan_deletion(world: World) -> None:
    await world.client.create(DEPLOYMENTS, deployment("web", 2))
    await world.client.create(DEPLOYMENTS, deployment("kept", 1))
    await until(lambda: world.available("web", 2), "2 available")
    await until(lambda: world.available("kept", 1), "1 available")
    await world.client.delete(DEPLOYMENTS, "default", "web", propagation_policy="Foreground")
    await world.client.delete(DEPLOYMENTS, "default", "kept", propagation_policy="Orphan")

    async def settled() -> bool:
        return not await world.all(DEPLOYMENTS) and len(await world.all(REPLICASETS)) == 1

    await until(settled, "both gone, one set kept")
    (rs,) = await world.all(REPLICASETS)
    assert rs["metadata"]["name"].startswith("kept-")
    assert not rs["metadata"].get("ownerReferences")
    assert len(await world.all(PODS)) == 1
    await world.client.create(DEPLOYMENTS, deployment("kept", 1))
    await until(lambda: world.available("kept", 1), "adopted")
    assert [r["metadata"]["uid"] for r in await world.all(REPLICASETS)] == [rs["metadata"]["uid"]]


async def test_namespace_life(world: World) -> None:
    await world.client.create(NAMESPACES, {"metadata": {"name": "shop"}})

    async def furnished() -> bool:
        maps = await world.all(CONFIGMAPS, "shop")
        return bool(maps and await world.all(SERVICEACCOUNTS, "shop"))

    await until(furnished, "service account and CA")
    await world.client.create(DEPLOYMENTS, deployment("web", 2, "shop"))
    await until(lambda: world.available("web", 2, "shop"), "2 available")
    await world.client.delete(NAMESPACES, "", "shop")

    async def gone() -> bool:
        return "shop" not in [n["metadata"]["name"] for n in await world.all(NAMESPACES, "")]

    await until(gone, "namespace gone")
    assert not await world.all(PODS, "shop")


async def test_silent_node(world: World) -> None:
    toleration = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    tolerations = [{**toleration, "key": "node.kubernetes.io/unreachable"}]
    await world.client.create(DEPLOYMENTS, deployment("web", 3, tolerations=tolerations))
    await until(lambda: world.available("web", 3), "3 available")
    await world.lose("node-1")

    async def lost() -> bool:
        node = await world.client.get(NODES, "", "node-1")
        taints = [(t["key"], t["effect"]) for t in node["spec"].get("taints") or ()]
        return {t[1] for t in taints} == {"NoSchedule", "NoExecute"}

    await until(lost, "tainted")
    await until(lambda: world.available("web", 3), "replaced elsewhere")

    async def leaving() -> bool:
        there = [p for p in await world.all(PODS) if p["spec"].get("nodeName") == "node-1"]
        return [bool(p["metadata"].get("deletionTimestamp")) for p in there] == [True]

    await until(leaving, "old pod Terminating")
    assert "Node node-1 status is now: NodeNotReady" in await world.events("NodeNotReady")
    del world.kubelet.silent["node-1"]

    async def back() -> bool:
        await world.beat("node-1")
        await world.post("node-1", conditions=[READY])
        return not (await world.client.get(NODES, "", "node-1"))["spec"].get("taints")

    await until(back, "taints removed")


async def test_daemon_set(world: World) -> None:
    made = deployment("agent", 0)
    made |= {"kind": "DaemonSet"}
    del made["spec"]["replicas"]
    await world.client.create(DAEMONSETS, made)

    async def everywhere(image: str = "nginx") -> bool:
        pods = await world.all(PODS)
        there = sorted(
            p["spec"]["nodeName"]
            for p in pods
            if p["spec"].get("nodeName") and p["spec"]["containers"][0]["image"] == image
        )
        return there == [*NODE_NAMES] and len(pods) == 3

    await until(everywhere, "one each")
    image = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "n:2"}]
    await world.client.patch(DAEMONSETS, "default", "agent", image, "json")
    await until(lambda: everywhere("n:2"), "rolled")
    assert sorted(r["revision"] for r in await world.all(CONTROLLERREVISIONS)) == [1, 2]


async def test_job(world: World) -> None:
    container = {"name": "c", "image": "busybox"}
    template = {"spec": {"containers": [container], "restartPolicy": "Never"}}
    made = {"metadata": {"name": "pi", "namespace": "default"}, "spec": {"template": template}}
    await world.client.create(JOBS, made)

    async def succeed() -> bool:
        for pod in await world.all(PODS):
            done = {"status": {"phase": "Succeeded"}}
            name = pod["metadata"]["name"]
            if pod.get("status", {}).get("phase") == "Running":
                await world.client.patch(PODS, "default", name, done, subresource="status")
        job = await world.client.get(JOBS, "default", "pi")
        types = [c["type"] for c in (job.get("status") or {}).get("conditions") or ()]
        return "Complete" in types

    await until(succeed, "complete")
    assert len(await world.all(PODS)) == 1
    await world.client.delete(JOBS, "default", "pi", propagation_policy="Background")

    async def gone() -> bool:
        return not await world.all(PODS)

    await until(gone, "pods collected")


async def test_kubectl_rolls_out_and_back(world: World) -> None:
    server = world.server
    if not server.kubectl_path:
        pytest.skip("no kubectl on this machine")
    await server.ok("create", "deployment", "web", "--image=nginx:1", "--replicas=3")
    out = await server.ok("rollout", "status", "deployment/web", "--timeout=10s")
    assert out.endswith('deployment "web" successfully rolled out\n')
    await server.ok("set", "image", "deployment/web", "nginx=nginx:2")
    await server.ok("rollout", "status", "deployment/web", "--timeout=10s")
    await server.ok("rollout", "undo", "deployment/web")
    await server.ok("rollout", "status", "deployment/web", "--timeout=10s")
    images = {p["spec"]["containers"][0]["image"] for p in await world.all(PODS)}
    assert images == {"nginx:1"}
    history = await server.ok("rollout", "history", "deployment/web")
    assert [line.split()[0] for line in history.splitlines()[2:] if line] == ["2", "3"]
    described = await server.ok("describe", "deployment", "web")
    assert "NewReplicaSet:   web-" in described
    assert "ScalingReplicaSet" in described


WIDGETS = Resource("x.example", "v1", "widgets", "Widget", True)
GADGETS = Resource("x.example", "v1", "gadgets", "Gadget", False)


def definition(resource: Resource) -> Object:
    schema = {"openAPIV3Schema": {"type": "object"}}
    version = {"name": resource.version, "served": True, "storage": True, "schema": schema}
    names = {"plural": resource.plural, "kind": resource.kind}
    scope = "Namespaced" if resource.namespaced else "Cluster"
    meta = {"name": resource.qualified}
    spec = {"group": resource.group, "scope": scope, "names": names, "versions": [version]}
    return {"metadata": meta, "spec": spec}


async def test_kinds_defined_later_are_collected_too(world: World) -> None:
    """Owners and dependents of kinds that were not there when the controllers started."""
    client = world.client

    async def make(resource: Resource, name: str, *owners: tuple[Resource, Object]) -> Object:
        references = [
            {
                "apiVersion": of.api_version,
                "kind": of.kind,
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
            }
            for of, owner in owners
        ]
        meta = {"name": name, "namespace": "default" if resource.namespaced else ""}
        return await client.create(resource, {"metadata": meta | {"ownerReferences": references}})

    async def names(resource: Resource) -> list[str]:
        namespace = "default" if resource.namespaced else ""
        return [obj["metadata"]["name"] for obj in await world.all(resource, namespace)]

    async def started() -> bool:
        return await names(CONFIGMAPS) == ["kube-root-ca.crt"]

    await until(started, "the controllers run")
    for resource in (WIDGETS, GADGETS):
        await client.create(DEFINITIONS, definition(resource))
    owner = await make(WIDGETS, "owner")
    staying = await make(WIDGETS, "staying")
    await make(CONFIGMAPS, "of-widget", (WIDGETS, owner))
    await make(WIDGETS, "of-both", (WIDGETS, owner), (WIDGETS, staying))
    plain = await make(CONFIGMAPS, "plain")
    await make(WIDGETS, "of-plain", (CONFIGMAPS, plain))
    # Nothing outside a namespace can belong to something inside one: left alone for ever.
    await make(GADGETS, "of-plain", (CONFIGMAPS, plain))
    await client.delete(WIDGETS, "default", "owner")
    await client.delete(CONFIGMAPS, "default", "plain")

    async def collected() -> bool:
        left = await client.get(WIDGETS, "default", "of-both")
        return (
            sorted(await names(WIDGETS)) == ["of-both", "staying"]
            and await names(CONFIGMAPS) == ["kube-root-ca.crt"]
            and [o["name"] for o in left["metadata"]["ownerReferences"]] == ["staying"]
        )

    await until(collected, "dependents of later kinds collected")
    assert await names(GADGETS) == ["of-plain"]

    await client.create(NAMESPACES, {"metadata": {"name": "n"}})
    await client.create(WIDGETS, {"metadata": {"name": "w", "namespace": "n"}})
    await client.delete(NAMESPACES, "", "n")

    async def emptied() -> bool:
        spaces = [obj["metadata"]["name"] for obj in await world.all(NAMESPACES, "")]
        return "n" not in spaces and not await world.all(WIDGETS, "n")

    await until(emptied, "a namespace takes its custom resources with it")
    await client.delete(DEFINITIONS, "", WIDGETS.qualified)

    async def followed() -> bool:
        return not [name for name in map(str, asyncio.all_tasks()) if "informers.widgets" in name]

    await until(followed, "nobody watches a kind that is gone")
