"""Loop of DaemonSets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.controllers.actions import Emit, Patch, Plan, replacing
from agents.controllers.claims import claim, selector_of
from agents.controllers.daemonset import (
    daemon_hash,
    daemon_pod,
    daemonset_status,
    plan_daemons,
    revision_actions,
)
from agents.controllers.expectations import Expectations
from agents.controllers.loops.workloads import ORPHANS, OWNER_INDEX, by_controller
from agents.controllers.shell import PodControl
from emulator.kubeclient.controller import Controller
from emulator.kubeclient.meta import (
    controller_of,
    is_deleting,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    object_reference,
    uid_of,
)
from emulator.kubeclient.resource import CONTROLLERREVISIONS, DAEMONSETS, NODES, PODS

if TYPE_CHECKING:
    from agents.controllers.shell import Shell

    Object = dict[str, Any]

COMPONENT = "daemonset-controller"
WORKERS = 2


class DaemonSetLoop:
    """Keeps one pod of each DaemonSet on every node that can have it."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        informers = shell.informers
        self._sets = informers.informer(DAEMONSETS)
        self._nodes = informers.informer(NODES)
        self._pods = informers.informer(PODS)
        self._revisions = informers.informer(CONTROLLERREVISIONS)
        self._pods.add_index(OWNER_INDEX, by_controller)
        self._revisions.add_index(OWNER_INDEX, by_controller)
        self._expectations = Expectations()
        self._control = PodControl(shell, DAEMONSETS, COMPONENT, self._expectations)
        self._controller = Controller(
            "daemonset", self._reconcile, workers=WORKERS, log=shell.env.log
        )
        shell.controllers.append(self._controller)
        self._sets.add_handler(self._on_set)
        self._nodes.add_handler(self._on_node)
        self._pods.add_handler(self._on_pod)
        self._revisions.add_handler(self._on_revision)

    def _on_set(self, event: str, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        if new is None:
            self._expectations.forget(key_of(obj))
        self._controller.queue.add(key_of(obj))

    def _on_node(self, event: str, old: Object | None, new: Object | None) -> None:
        if old is not None and new is not None and _placing_part(old) == _placing_part(new):
            return
        for ds in self._sets.lister.list():
            self._controller.queue.add(key_of(ds))

    def _on_pod(self, event: str, old: Object | None, new: Object | None) -> None:
        key = self._control.observe(event, old, new)
        if key is not None:
            self._controller.queue.add(key)
        if new is not None and controller_of(new) is None and not is_deleting(new):
            for ds in self._sets.lister.list(namespace_of(new)):
                selector = selector_of(ds)
                if selector is not None and selector.matches(labels_of(new)):
                    self._controller.queue.add(key_of(ds))

    def _on_revision(self, event: str, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        owner = controller_of(obj) if obj is not None else None
        if obj is not None and owner is not None and owner.get("kind") == DAEMONSETS.kind:
            self._controller.queue.add(f"{namespace_of(obj)}/{owner['name']}")

    async def _reconcile(self, key: str) -> float | None:
        ds = self._sets.lister.get_by_key(key)
        selector = selector_of(ds) if ds else None
        if ds is None or selector is None:
            return None
        shell, now = self._shell, self._shell.now()
        settled = self._expectations.satisfied(key, now)
        candidates = self._pods.lister.by_index(OWNER_INDEX, uid_of(ds))
        candidates += self._pods.lister.by_index(OWNER_INDEX, ORPHANS + namespace_of(ds))
        claims = claim(ds, DAEMONSETS, selector, candidates, PODS)
        await shell.carry_out(Plan(claims.patches))
        hash_ = daemon_hash(ds)
        nodes = self._nodes.lister.list()
        if settled and not is_deleting(ds):
            revisions = self._revisions.lister.by_index(OWNER_INDEX, uid_of(ds))
            for action in revision_actions(ds, revisions, claims.mine, hash_):
                await shell.do(action)
            await self._manage(ds, nodes, claims.mine, hash_, now)
        status, again_s = daemonset_status(ds, nodes, claims.mine, hash_, now)
        known = ds.get("status") or {}
        if {**known, **status} != known or status.keys() != known.keys() - {"collisionCount"}:
            if "collisionCount" in known:
                status["collisionCount"] = known["collisionCount"]
            body = {"status": replacing(known, status)}
            await shell.do(Patch(DAEMONSETS, namespace_of(ds), name_of(ds), body, "status"))
        return again_s

    async def _manage(
        self, ds: Object, nodes: list[Object], pods: list[Object], hash_: str, now: float
    ) -> None:
        plan = plan_daemons(ds, nodes, pods, hash_, now)
        for pod in plan.failed:
            where = pod["spec"].get("nodeName", "")
            text = f"Found failed daemon pod {key_of(pod)} on node {where}, will try to kill it"
            reference = object_reference(ds, DAEMONSETS)
            await self._shell.do(Emit(reference, "Warning", "FailedDaemonPod", text, COMPONENT))
        if plan.delete:
            await self._control.delete(ds, plan.delete)
        if plan.create_on:
            new = [daemon_pod(ds, node, hash_, self._shell.rng) for node in plan.create_on]
            await self._control.create(ds, new)


def _placing_part(node: Object) -> tuple[Any, ...]:
    """What of a node decides whether a daemon pod may be there."""
    spec = node.get("spec") or {}
    return labels_of(node), spec.get("taints"), spec.get("unschedulable")


def add_daemonsets(shell: Shell) -> None:
    """Append the loop to the shell's controllers."""
    DaemonSetLoop(shell)
