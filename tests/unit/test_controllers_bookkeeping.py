"""What controllers remember between two passes, and what they say about a pass that failed."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from agents.controllers.expectations import EXPECTATION_TIMEOUT_S, Expectations
from agents.controllers.garbage import Item, OwnerGraph, item_of
from agents.controllers.job import plan_job
from emulator.kubeclient.controller import Controller
from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.resource import CONFIGMAPS

if TYPE_CHECKING:
    import pytest


def test_expectations_that_were_given_up_do_not_count_any_more() -> None:
    expectations = Expectations()
    expectations.expect_creations("ns/rs", 3, now=0.0)
    later = EXPECTATION_TIMEOUT_S + 1
    assert expectations.satisfied("ns/rs", later)
    expectations.expect_creations("ns/rs", 1, now=later)
    assert not expectations.satisfied("ns/rs", later)
    expectations.creation_seen("ns/rs")
    assert expectations.satisfied("ns/rs", later)


def test_an_owner_that_waits_is_looked_at_when_a_reference_to_it_is_dropped() -> None:
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": "o"}

    def made(uid: str, **meta: Any) -> Item:
        metadata = {"name": uid, "namespace": "n", "uid": uid, **meta}
        return item_of({"metadata": metadata}, CONFIGMAPS)

    graph = OwnerGraph()
    graph.put(made("o", deletionTimestamp="now", finalizers=["foregroundDeletion"]))
    assert graph.put(made("d", ownerReferences=[reference])) == ["d"]
    assert graph.put(made("d")) == ["o"]
    assert graph.dependents("o") == []


def test_pods_that_show_after_their_job_has_failed_are_deleted_too() -> None:
    condition = {"type": "Failed", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}
    job: dict[str, Any] = {
        "metadata": {"name": "j", "namespace": "n"},
        "spec": {},
        "status": {"conditions": [condition], "failed": 1},
    }
    late = {"metadata": {"name": "late"}, "spec": {}, "status": {"phase": "Running"}}
    plan = plan_job(job, [late], 1.8e9)
    assert (plan.delete, plan.create, plan.status) == ((late,), 0, job["status"])


async def test_conflicts_that_a_slow_watch_explains_are_no_warnings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until the watch shows a write, its writer works with what it replaced."""
    caplog.set_level(logging.DEBUG)
    tries = 0
    done = asyncio.Event()

    async def reconcile(key: str) -> None:
        nonlocal tries
        tries += 1
        if tries < 8:
            raise ApiError(409, "Conflict", "the object has been modified")
        done.set()

    controller = Controller("deployment", reconcile, log=logging.getLogger("test"))
    controller.queue.add("n/d")
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        running = group.create_task(controller.run())
        await done.wait()
        running.cancel()
    levels = [record.levelno for record in caplog.records if record.name == "test"]
    assert levels == [logging.DEBUG] * 7
