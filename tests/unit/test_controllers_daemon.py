"""Controllers and scheduler as one control plane over an in-memory API server."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from agents.controllers import ControllersConfig, NodeTimings, run_controllers
from agents.scheduler import SchedulerConfig, run_scheduler
from emulator.kubeclient import RestClient
from emulator.kubeclient.resource import (
    CONFIGMAPS,
    CONTROLLERREVISIONS,
    DAEMONSETS,
    DEPLOYMENTS,
    ENDPOINTS,
    ENDPOINTSLICES,
    EVENTS,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    REPLICASETS,
    SERVICEACCOUNTS,
    SERVICES,
)
from emulator.runtime.clock import Clock, real_clock
from emulator.runtime.role import RoleEnv
from tests.kube_fakes import FakeApi, FakeKubelet
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Object = dict[str, Any]


def node(name: str, **spec: Any) -> Object:
    allocatable = {"cpu": "2", "memory": "4Gi", "pods": "110"}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": spec,
        "status": {
            "allocatable": allocatable,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def deployment(name: str, replicas: int, image: str = "nginx", **spec: Any) -> Object:
    labels = {"app": name}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80}]}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": template,
            "progressDeadlineSeconds": 600,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
            },
            **spec,
        },
    }


class SkippingClock(Clock):
    """The real clock, which a test may move ahead."""

    def __init__(self) -> None:
        self._real = real_clock()
        self._skipped_s = 0.0
        super().__init__(
            lambda: self._real.monotonic() + self._skipped_s,
            self._real.time() - self._real.monotonic(),
        )

    def skip(self, seconds: float) -> None:
        """Let time pass at once."""
        self._skipped_s += seconds


class World:
    def __init__(
        self, api: FakeApi, client: RestClient, kubelet: FakeKubelet, clock: SkippingClock
    ) -> None:
        self.api, self.client, self.kubelet, self.clock = api, client, kubelet, clock

    def beat(self, *names: str) -> None:
        """Heartbeats of nodes."""
        for name in names:
            meta = {"name": name, "namespace": "kube-node-lease"}
            self.api.put(
                LEASES, {"metadata": meta, "spec": {"renewTime": self.clock.rfc3339_micro()}}
            )

    async def lose(self, lost: str) -> None:
        """Let the grace of all nodes pass, of which all but one are heard of again at once.

        Each node is looked at when its grace ends by the real clock; a change brings that forward.
        """
        self.clock.skip(NodeTimings().monitor_grace_s + 1)
        names = [obj["metadata"]["name"] for obj in self.api.objects(NODES)]
        self.beat(*(name for name in names if name != lost))
        await self.client.patch(NODES, "", lost, {"metadata": {"labels": {"looked-at": "yes"}}})

    def running(self, app: str) -> list[Object]:
        return [
            pod
            for pod in self.api.objects(PODS)
            if pod["metadata"]["labels"].get("app") == app
            and (pod.get("status") or {}).get("phase") == "Running"
        ]

    def status(self, name: str) -> Object:
        for obj in self.api.objects(DEPLOYMENTS):
            if obj["metadata"]["name"] == name:
                status: Object = obj.get("status") or {}
                return status
        return {}

    def messages(self, reason: str) -> list[str]:
        return [e["message"] for e in self.api.objects(EVENTS) if e["reason"] == reason]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = SkippingClock()
    env = RoleEnv(clock, random.Random(7))
    async with FakeApi() as api, RestClient(api.config, rng=random.Random(3)) as client:
        for number in range(3):
            api.put(NODES, node(f"node-{number}"))
        kubelet = FakeKubelet(client)
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        run_controllers(
                            ControllersConfig(
                                api.config,
                                nodes=NodeTimings(eviction_rate=100),
                                pod_gc_quarantine_s=0.1,
                                root_ca_pem="CA",
                            ),
                            env,
                        )
                    ),
                    group.create_task(run_scheduler(SchedulerConfig(api.config), env)),
                    group.create_task(kubelet.run()),
                ]
                yield World(api, client, kubelet, clock)
                for task in tasks:
                    task.cancel()


async def test_a_deployment_becomes_running_pods_one_on_each_node(world: World) -> None:
    await world.client.create(DEPLOYMENTS, deployment("web", 3))
    await until(lambda: world.status("web").get("availableReplicas") == 3, "3 available")
    nodes = Counter(pod["spec"]["nodeName"] for pod in world.running("web"))
    assert nodes == {"node-0": 1, "node-1": 1, "node-2": 1}
    (rs,) = world.api.objects(REPLICASETS)
    hash_ = rs["metadata"]["labels"]["pod-template-hash"]
    assert rs["metadata"]["name"] == f"web-{hash_}"
    assert all(p["metadata"]["name"].startswith(f"web-{hash_}-") for p in world.running("web"))
    await until(lambda: len(world.messages("Scheduled")) == 3, "3 Scheduled events")
    assert world.messages("ScalingReplicaSet") == [f"Scaled up replica set web-{hash_} from 0 to 3"]
    assert sorted(world.messages("SuccessfulCreate")) == sorted(
        f"Created pod: {p['metadata']['name']}" for p in world.running("web")
    )
    conditions = {c["type"]: c for c in world.status("web")["conditions"]}
    assert conditions["Available"]["reason"] == "MinimumReplicasAvailable"
    assert conditions["Progressing"]["message"] == (
        f'ReplicaSet "web-{hash_}" has successfully progressed.'
    )


async def test_a_new_template_rolls_out_and_the_old_set_stays_for_undo(world: World) -> None:
    await world.client.create(DEPLOYMENTS, deployment("web", 4))
    await until(lambda: world.status("web").get("availableReplicas") == 4, "4 available")
    await world.client.patch(
        DEPLOYMENTS,
        "default",
        "web",
        {"spec": deployment("web", 4, image="nginx:2")["spec"]},
    )
    await until(
        lambda: (
            {p["spec"]["containers"][0]["image"] for p in world.api.objects(PODS)} == {"nginx:2"}
            and len(world.running("web")) == 4
            and world.status("web").get("updatedReplicas") == 4
            and world.status("web").get("replicas") == 4
        ),
        "all pods new",
    )
    sizes = [rs["spec"]["replicas"] for rs in world.api.objects(REPLICASETS)]
    assert sizes == [0, 4]
    revisions = [
        rs["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
        for rs in world.api.objects(REPLICASETS)
    ]
    assert revisions == ["1", "2"]


async def test_a_service_gets_endpoints_that_follow_scaling(world: World) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}]},
    }
    await world.client.create(SERVICES, service)
    await world.client.create(DEPLOYMENTS, deployment("web", 3))

    def addresses() -> list[list[str]]:
        plain = [
            address["ip"]
            for obj in world.api.objects(ENDPOINTS)
            for subset in obj.get("subsets") or ()
            for address in subset.get("addresses") or ()
        ]
        sliced = [
            endpoint["addresses"][0]
            for obj in world.api.objects(ENDPOINTSLICES)
            for endpoint in obj["endpoints"] or ()
            if endpoint["conditions"]["ready"]
        ]
        return [sorted(plain), sorted(sliced)]

    def live() -> list[str]:
        return sorted(pod["status"]["podIP"] for pod in world.running("web"))

    await until(lambda: len(live()) == 3 and addresses() == [live()] * 2, "3 endpoints")
    await world.client.patch(DEPLOYMENTS, "default", "web", {"spec": {"replicas": 1}})
    await until(lambda: len(live()) == 1 and addresses() == [live()] * 2, "1 endpoint")
    await world.client.delete(SERVICES, "default", "web")
    await until(lambda: not world.api.objects(ENDPOINTS), "endpoints gone")


async def test_killed_pods_are_replaced_and_never_too_many_made(world: World) -> None:
    await world.client.create(DEPLOYMENTS, deployment("web", 5))
    most = 0
    rng = random.Random(5)
    for _ in range(6):
        await until(lambda: len(world.running("web")) == 5, "5 running")
        victim = rng.choice(world.running("web"))
        world.api.remove(PODS, "default", victim["metadata"]["name"])
        most = max(most, len(world.api.objects(PODS)))
    await until(lambda: len(world.running("web")) == 5, "5 running")
    assert most <= 5
    assert len(world.api.objects(PODS)) == 5


async def test_a_pod_that_fits_nowhere_says_why_and_runs_once_it_fits(world: World) -> None:
    for number in range(3):
        await world.client.patch(NODES, "", f"node-{number}", {"spec": {"unschedulable": True}})
    await world.client.create(DEPLOYMENTS, deployment("web", 1))
    await until(lambda: bool(world.messages("FailedScheduling")), "FailedScheduling")
    assert world.messages("FailedScheduling")[0] == (
        "0/3 nodes are available: 3 node(s) were unschedulable. preemption: 0/3 nodes are "
        "available: 3 Preemption is not helpful for scheduling."
    )
    await world.client.patch(NODES, "", "node-1", {"spec": {"unschedulable": None}})
    await until(lambda: len(world.running("web")) == 1, "scheduled after the backoff")
    assert world.running("web")[0]["spec"]["nodeName"] == "node-1"


async def test_a_deleted_deployment_takes_its_sets_and_pods_with_it(world: World) -> None:
    await world.client.create(DEPLOYMENTS, deployment("web", 3))
    await until(lambda: world.status("web").get("availableReplicas") == 3, "3 available")
    await world.client.delete(DEPLOYMENTS, "default", "web", propagation_policy="Background")
    await until(
        lambda: not world.api.objects(REPLICASETS) and not world.api.objects(PODS), "all gone"
    )


async def test_foreground_deletion_keeps_the_owner_until_its_pods_are_gone(world: World) -> None:
    await world.client.create(DEPLOYMENTS, deployment("web", 2))
    await until(lambda: world.status("web").get("availableReplicas") == 2, "2 available")
    await world.client.delete(DEPLOYMENTS, "default", "web", propagation_policy="Foreground")
    await until(lambda: not world.api.objects(DEPLOYMENTS), "deployment gone")
    assert not world.api.objects(REPLICASETS)
    assert not world.api.objects(PODS)


async def test_a_namespace_is_furnished_and_emptied_before_it_goes(world: World) -> None:
    namespace = {"metadata": {"name": "shop"}, "spec": {"finalizers": ["kubernetes"]}}
    await world.client.create(NAMESPACES, namespace)
    await until(lambda: len(world.api.objects(CONFIGMAPS)) == 1, "kube-root-ca.crt")
    await until(lambda: len(world.api.objects(SERVICEACCOUNTS)) == 1, "service account")
    assert world.api.objects(CONFIGMAPS)[0]["data"] == {"ca.crt": "CA"}
    shop = deployment("web", 2)
    shop["metadata"]["namespace"] = "shop"
    await world.client.create(DEPLOYMENTS, shop)
    await until(lambda: world.status("web").get("availableReplicas") == 2, "2 available")
    await world.client.delete(NAMESPACES, "", "shop")
    await until(lambda: not world.api.objects(NAMESPACES), "namespace gone")
    for resource in (DEPLOYMENTS, REPLICASETS, PODS, CONFIGMAPS, SERVICEACCOUNTS):
        assert not world.api.objects(resource)


async def test_pods_leave_a_silent_node_after_their_toleration(world: World) -> None:
    web = deployment("web", 3)
    web["spec"]["template"]["spec"]["tolerations"] = [
        {
            "key": "node.kubernetes.io/unreachable",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 1,
        }
    ]
    await world.client.create(DEPLOYMENTS, web)
    await until(lambda: world.status("web").get("availableReplicas") == 3, "3 available")
    (lost,) = [p for p in world.running("web") if p["spec"]["nodeName"] == "node-1"]
    world.kubelet.silent["node-1"] = None
    await world.lose("node-1")
    await until(
        lambda: "Node node-1 status is now: NodeNotReady" in world.messages("NodeNotReady"),
        "NodeNotReady",
    )
    await until(lambda: world.status("web").get("availableReplicas") == 2, "pod counted out")
    (gone,) = [o for o in world.api.objects(NODES) if o["metadata"]["name"] == "node-1"]
    ready = next(c for c in gone["status"]["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"], ready["message"]) == (
        "Unknown",
        "NodeStatusUnknown",
        "Kubelet stopped posting node status.",
    )
    await until(lambda: world.status("web").get("availableReplicas") == 3, "replaced elsewhere")
    name = lost["metadata"]["name"]
    await until(
        lambda: (
            world.messages("TaintManagerEviction") == [f"Marking for deletion Pod default/{name}"]
        ),
        "eviction event",
    )
    stuck = [p for p in world.api.objects(PODS) if p["metadata"]["name"] == name]
    assert stuck[0]["metadata"]["deletionTimestamp"]
    await world.client.delete(NODES, "", "node-1")
    await until(
        lambda: name not in [p["metadata"]["name"] for p in world.api.objects(PODS)],
        "pod of the removed node collected",
    )


async def test_a_kubelet_that_is_back_speaks_for_its_pods_before_its_node_is_ready(
    world: World,
) -> None:
    web = deployment("web", 3)
    web["spec"]["template"]["spec"]["tolerations"] = [{"operator": "Exists"}]
    await world.client.create(DEPLOYMENTS, web)
    await until(lambda: world.status("web").get("availableReplicas") == 3, "3 available")
    await world.lose("node-1")
    await until(lambda: world.status("web").get("availableReplicas") == 2, "pod counted out")
    world.beat("node-1")
    (pod,) = [p for p in world.running("web") if p["spec"]["nodeName"] == "node-1"]
    name = pod["metadata"]["name"]
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    await world.client.patch(PODS, "default", name, ready, subresource="status")
    await until(lambda: world.status("web").get("availableReplicas") == 3, "counted again")
    not_ready = [e for e in world.api.objects(EVENTS) if e["message"] == "Node is not ready"]
    assert [event["count"] for event in not_ready] == [1]


async def test_a_daemon_set_follows_the_nodes_and_its_template(world: World) -> None:
    ds = deployment("agent", 0)
    spec = {k: ds["spec"][k] for k in ("selector", "template")}
    spec["updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
    await world.client.create(DAEMONSETS, {**ds, "kind": "DaemonSet", "spec": spec})

    def where() -> list[str]:
        return sorted(pod["spec"]["nodeName"] for pod in world.running("agent"))

    await until(lambda: where() == ["node-0", "node-1", "node-2"], "one each")
    world.api.put(NODES, node("node-3"))
    await until(lambda: where() == ["node-0", "node-1", "node-2", "node-3"], "new node")
    changed = deployment("agent", 0, image="nginx:2")["spec"]["template"]
    await world.client.patch(DAEMONSETS, "default", "agent", {"spec": {"template": changed}})

    def images() -> list[str]:
        return [pod["spec"]["containers"][0]["image"] for pod in world.running("agent")]

    await until(lambda: images() == ["nginx:2"] * 4, "all replaced")
    revisions = [obj["revision"] for obj in world.api.objects(CONTROLLERREVISIONS)]
    assert sorted(revisions) == [1, 2]
    await until(
        lambda: world.api.objects(DAEMONSETS)[0]["status"].get("numberAvailable") == 4, "status"
    )


async def test_a_refused_pod_is_told_of_and_made_in_the_end(world: World) -> None:
    world.api.refuse(PODS, 403, "Forbidden", times=2)
    await world.client.create(DEPLOYMENTS, deployment("web", 3))
    await until(lambda: world.status("web").get("availableReplicas") == 3, "3 available")
    assert world.messages("FailedCreate") == ["Error creating: refused"]
    # Slow start: one pod is tried before the others, so two refusals cost two requests.
    posts = [p for m, p in world.api.requests if m == "POST" and p.endswith("/pods")]
    assert len(posts) == 5
    conditions = [c["type"] for c in world.status("web")["conditions"]]
    await until(
        lambda: (
            [c["type"] for c in world.status("web")["conditions"]] == ["Available", "Progressing"]
        ),
        f"ReplicaFailure taken back (was {conditions})",
    )


async def test_everything_goes_on_after_the_api_server_was_away(world: World) -> None:
    await world.client.create(DEPLOYMENTS, deployment("web", 2))
    await until(lambda: world.status("web").get("availableReplicas") == 2, "2 available")
    await world.api.stop()
    changed = deployment("web", 3)
    changed["metadata"] = dict(world.api.objects(DEPLOYMENTS)[0]["metadata"])
    changed["status"] = world.status("web")
    world.api.put(DEPLOYMENTS, changed)
    await world.api.start()
    await until(lambda: world.status("web").get("availableReplicas") == 3, "3 available")
