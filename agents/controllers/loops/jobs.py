"""Loop of Jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.controllers.actions import Delete, Emit, Patch, Plan, replacing
from agents.controllers.claims import claim, selector_of
from agents.controllers.expectations import Expectations
from agents.controllers.job import JobPlan, plan_job
from agents.controllers.loops.workloads import ORPHANS, OWNER_INDEX, by_controller
from agents.controllers.shell import PodControl
from agents.controllers.template import pod_from_template
from emulator.kubeclient.controller import Controller
from emulator.kubeclient.meta import (
    is_deleting,
    key_of,
    name_of,
    namespace_of,
    object_reference,
    uid_of,
)
from emulator.kubeclient.resource import JOBS, PODS

if TYPE_CHECKING:
    from agents.controllers.shell import Shell

    Object = dict[str, Any]

COMPONENT = "job-controller"
WORKERS = 5


class JobLoop:
    """Runs each Job's pods to completion."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._jobs = shell.informers.informer(JOBS)
        self._pods = shell.informers.informer(PODS)
        self._pods.add_index(OWNER_INDEX, by_controller)
        self._expectations = Expectations()
        self._control = PodControl(shell, JOBS, COMPONENT, self._expectations)
        self._controller = Controller("job", self._reconcile, workers=WORKERS, log=shell.env.log)
        shell.controllers.append(self._controller)
        self._jobs.add_handler(self._on_job)
        self._pods.add_handler(self._on_pod)

    def _on_job(self, event: str, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        if new is None:
            self._expectations.forget(key_of(obj))
        self._controller.queue.add(key_of(obj))

    def _on_pod(self, event: str, old: Object | None, new: Object | None) -> None:
        key = self._control.observe(event, old, new)
        if key is not None:
            self._controller.queue.add(key)

    async def _reconcile(self, key: str) -> float | None:
        job = self._jobs.lister.get_by_key(key)
        selector = selector_of(job) if job is not None else None
        if job is None or selector is None or is_deleting(job):
            return None
        settled = self._expectations.satisfied(key, self._shell.now())
        candidates = self._pods.lister.by_index(OWNER_INDEX, uid_of(job))
        candidates += self._pods.lister.by_index(OWNER_INDEX, ORPHANS + namespace_of(job))
        claims = claim(job, JOBS, selector, candidates, PODS)
        await self._shell.carry_out(Plan(claims.patches))
        plan = plan_job(job, claims.mine, self._shell.now())
        if plan.expired:
            await self._shell.do(
                Delete(JOBS, namespace_of(job), name_of(job), uid_of(job), "Background")
            )
            return None
        if settled:
            await self._manage(job, plan)
        known = job.get("status") or {}
        if plan.status != known:
            body = {"status": replacing(known, plan.status)}
            await self._shell.do(Patch(JOBS, namespace_of(job), name_of(job), body, "status"))
            if plan.event is not None:
                type_, reason, message = plan.event
                reference = object_reference(job, JOBS)
                await self._shell.do(Emit(reference, type_, reason, message, COMPONENT))
        return plan.again_s

    async def _manage(self, job: Object, plan: JobPlan) -> None:
        if plan.delete:
            await self._control.delete(job, plan.delete)
        if plan.create:
            template = job["spec"].get("template") or {}
            new = [
                pod_from_template(job, JOBS, template, self._shell.rng) for _ in range(plan.create)
            ]
            await self._control.create(job, new)


def add_jobs(shell: Shell) -> None:
    """Append the loop to the shell's controllers."""
    JobLoop(shell)
