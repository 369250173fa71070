"""Loops of ReplicaSets and Deployments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.controllers.actions import Create, Patch, Plan, replacing
from agents.controllers.claims import claim, selector_of
from agents.controllers.deployment import plan_deployment
from agents.controllers.expectations import Expectations
from agents.controllers.replicaset import plan_replicas, replicas_of, replicaset_status
from agents.controllers.shell import PodControl, Shell
from agents.controllers.template import normal, pod_from_template
from emulator.kubeclient.controller import Controller
from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.meta import (
    controller_of,
    is_deleting,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from emulator.kubeclient.resource import DEPLOYMENTS, PODS, REPLICASETS

if TYPE_CHECKING:
    Object = dict[str, Any]

# Keys of one kind in work at once; upstream's --concurrent-…-syncs default.
WORKERS = 5
OWNER_INDEX = "controller"
ORPHANS = "orphans/"


def by_controller(obj: Object) -> tuple[str, ...]:
    """Index: the controller's uid, or ``orphans/<namespace>``."""
    owner = controller_of(obj)
    return (owner["uid"] if owner is not None else ORPHANS + namespace_of(obj),)


class ReplicaSetLoop:
    """Keeps each ReplicaSet's pods at the number it asks for."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._sets = shell.informers.informer(REPLICASETS)
        self._pods = shell.informers.informer(PODS)
        self._sets.add_index(OWNER_INDEX, by_controller)
        self._pods.add_index(OWNER_INDEX, by_controller)
        self._expectations = Expectations()
        self._control = PodControl(shell, REPLICASETS, "replicaset-controller", self._expectations)
        self._controller = Controller(
            "replicaset", self._reconcile, workers=WORKERS, log=shell.env.log
        )
        shell.controllers.append(self._controller)
        self._sets.add_handler(self._on_set)
        self._pods.add_handler(self._on_pod)

    def _on_set(self, event: str, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        if new is None or (old is not None and uid_of(old) != uid_of(new)):
            self._expectations.forget(key_of(obj))
        self._controller.queue.add(key_of(obj))

    def _on_pod(self, event: str, old: Object | None, new: Object | None) -> None:
        key = self._control.observe(event, old, new)
        queue = self._controller.queue
        if key is not None:
            queue.add(key)
        if old is not None and new is not None and by_controller(old) != by_controller(new):
            # Released: its former owner has one less.
            former = controller_of(old)
            if former is not None and former.get("kind") == REPLICASETS.kind:
                queue.add(f"{namespace_of(old)}/{former['name']}")
        if new is not None and controller_of(new) is None and not is_deleting(new):
            for rs in self._sets.lister.list(namespace_of(new)):
                selector = selector_of(rs)
                if selector is not None and selector.matches(labels_of(new)):
                    queue.add(key_of(rs))

    async def _reconcile(self, key: str) -> float | None:
        rs = self._sets.lister.get_by_key(key)
        if rs is None:
            self._expectations.forget(key)
            return None
        shell = self._shell
        selector = selector_of(rs)
        if selector is None:
            return None
        settled = self._expectations.satisfied(key, shell.now())
        lister = self._pods.lister
        candidates = lister.by_index(OWNER_INDEX, uid_of(rs))
        candidates += lister.by_index(OWNER_INDEX, ORPHANS + namespace_of(rs))
        claims = claim(rs, REPLICASETS, selector, candidates, PODS)
        for patch in claims.patches:
            await shell.do(patch)
        failure: ApiError | None = None
        note = ""
        if settled and not is_deleting(rs):
            try:
                await self._manage(rs, claims.mine)
            except ApiError as error:
                failure = error
                note = f"FailedCreate: {error}"
        status, again_s = replicaset_status(rs, claims.mine, note, shell.now())
        known = rs.get("status") or {}
        if status != known:
            body = {"status": replacing(known, status)}
            patch = Patch(REPLICASETS, namespace_of(rs), name_of(rs), body, "status")
            await shell.do(patch)
        if failure is not None:
            raise failure
        return again_s

    async def _manage(self, rs: Object, pods: list[Object]) -> None:
        plan = plan_replicas(replicas_of(rs), pods, self._related(rs))
        if plan.create:
            template = rs["spec"].get("template") or {}
            new = [
                pod_from_template(rs, REPLICASETS, template, self._shell.rng)
                for _ in range(plan.create)
            ]
            await self._control.create(rs, new)
        elif plan.delete:
            await self._control.delete(rs, plan.delete)

    def _related(self, rs: Object) -> list[Object]:
        """Pods of all ReplicaSets of the same owner."""
        owner = controller_of(rs)
        sets = self._sets.lister.by_index(OWNER_INDEX, owner["uid"]) if owner else [rs]
        return [pod for one in sets for pod in self._pods.lister.by_index(OWNER_INDEX, uid_of(one))]


class DeploymentLoop:
    """Moves each Deployment's ReplicaSets towards its template and size."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._deployments = shell.informers.informer(DEPLOYMENTS)
        self._sets = shell.informers.informer(REPLICASETS)
        self._pods = shell.informers.informer(PODS)
        self._sets.add_index(OWNER_INDEX, by_controller)
        self._pods.add_index(OWNER_INDEX, by_controller)
        self._controller = Controller(
            "deployment", self._reconcile, workers=WORKERS, log=shell.env.log
        )
        shell.controllers.append(self._controller)
        self._deployments.add_handler(self._on_deployment)
        self._sets.add_handler(self._on_set)
        self._pods.add_handler(self._on_pod)

    def _on_deployment(self, event: str, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        self._controller.queue.add(key_of(obj))

    def _on_set(self, event: str, old: Object | None, new: Object | None) -> None:
        for obj in (old, new):
            if obj is None:
                continue
            owner = controller_of(obj)
            if owner is None:
                self._add_matching(obj)
            elif owner.get("kind") == DEPLOYMENTS.kind:
                self._controller.queue.add(f"{namespace_of(obj)}/{owner['name']}")

    def _add_matching(self, rs: Object) -> None:
        for deployment in self._deployments.lister.list(namespace_of(rs)):
            selector = selector_of(deployment)
            if selector is not None and selector.matches(labels_of(rs)):
                self._controller.queue.add(key_of(deployment))

    def _on_pod(self, event: str, old: Object | None, new: Object | None) -> None:
        """A pod that is gone may be what a Recreate waits for."""
        owner = controller_of(old) if new is None and old is not None else None
        if owner is None or old is None or owner.get("kind") != REPLICASETS.kind:
            return
        rs = self._sets.lister.get(namespace_of(old), owner["name"])
        parent = controller_of(rs) if rs is not None else None
        if parent is not None and parent.get("kind") == DEPLOYMENTS.kind:
            self._controller.queue.add(f"{namespace_of(old)}/{parent['name']}")

    async def _reconcile(self, key: str) -> float | None:
        deployment = self._deployments.lister.get_by_key(key)
        if deployment is None:
            return None
        selector = selector_of(deployment)
        if selector is None:
            return None
        lister = self._sets.lister
        candidates = lister.by_index(OWNER_INDEX, uid_of(deployment))
        candidates += lister.by_index(OWNER_INDEX, ORPHANS + namespace_of(deployment))
        claims = claim(deployment, DEPLOYMENTS, selector, candidates, REPLICASETS)
        if claims.patches:
            # The adopted come back as events, with their new owner.
            return await self._shell.carry_out(Plan(claims.patches))
        pods = {
            uid_of(rs): self._pods.lister.by_index(OWNER_INDEX, uid_of(rs)) for rs in claims.mine
        }
        plan = plan_deployment(deployment, claims.mine, pods, self._shell.now())
        try:
            return await self._shell.carry_out(plan)
        except ApiError as error:
            if not error.is_already_exists:
                raise
            await self._resolve_collision(deployment, plan)
            return None

    async def _resolve_collision(self, deployment: Object, plan: Plan) -> None:
        """A ReplicaSet of the new name exists: ours already, or a hash collision."""
        wanted = next(a.obj for a in plan.actions if isinstance(a, Create))
        there = await self._shell.client.get(REPLICASETS, namespace_of(deployment), name_of(wanted))
        owner = controller_of(there)
        ours = owner is not None and owner.get("uid") == uid_of(deployment)
        if ours and normal(there["spec"]["template"]) == normal(deployment["spec"]["template"]):
            return
        count = int((deployment.get("status") or {}).get("collisionCount") or 0) + 1
        self._shell.env.log.info(
            "deployment %s: name %s is taken, collision %d",
            key_of(deployment),
            name_of(wanted),
            count,
        )
        body = {"status": {"collisionCount": count}}
        await self._shell.do(
            Patch(DEPLOYMENTS, namespace_of(deployment), name_of(deployment), body, "status")
        )


def add_workloads(shell: Shell) -> None:
    """Append both loops to the shell's controllers."""
    ReplicaSetLoop(shell)
    DeploymentLoop(shell)
