"""A Job runs pods until enough succeeded, or too many failed."""

from __future__ import annotations

from typing import Any

from agents.controllers.job import JobPlan, plan_job
from emulator.kubeclient.meta import format_time

Object = dict[str, Any]
NOW = 1_700_000_000.0


def job(**spec: Any) -> Object:
    return {"metadata": {"name": "pi"}, "spec": {"parallelism": 1, "completions": 1, **spec}}


def pod(phase: str, ended_s_ago: float = 0) -> Object:
    ended = {"state": {"terminated": {"finishedAt": format_time(NOW - ended_s_ago)}}}
    status: Object = {"phase": phase}
    if phase in ("Succeeded", "Failed"):
        status["containerStatuses"] = [ended]
    return {"metadata": {"name": "p"}, "spec": {}, "status": status}


def conditions(plan: JobPlan) -> list[tuple[str, str]]:
    return [(c["type"], c["reason"]) for c in plan.status.get("conditions") or ()]


def test_as_many_run_at_once_as_are_still_needed() -> None:
    spec = {"parallelism": 3, "completions": 5}
    assert plan_job(job(**spec), [], NOW).create == 3
    done = [pod("Succeeded")] * 4
    assert plan_job(job(**spec), done, NOW).create == 1
    assert len(plan_job(job(**spec), [*done, pod("Running"), pod("Running")], NOW).delete) == 1


def test_enough_successes_complete_it_once() -> None:
    plan = plan_job(job(), [pod("Succeeded")], NOW)
    assert conditions(plan) == [("Complete", "CompletionsReached")]
    assert plan.event == ("Normal", "Completed", "Job completed")
    finished = job(ttlSecondsAfterFinished=10)
    finished["status"] = plan.status
    assert plan_job(finished, [], NOW + 4) == JobPlan(0, (), plan.status, 6.0, None)
    assert plan_job(finished, [], NOW + 10).expired


def test_failures_wait_longer_each_time_and_end_it_at_the_limit() -> None:
    assert plan_job(job(), [pod("Failed", 3)], NOW).again_s == 7
    assert plan_job(job(), [pod("Failed", 10)], NOW).create == 1
    assert plan_job(job(), [pod("Failed", 30), pod("Failed", 5)], NOW).again_s == 15
    over = plan_job(job(backoffLimit=1), [pod("Failed"), pod("Failed"), pod("Running")], NOW)
    assert conditions(over) == [("Failed", "BackoffLimitExceeded")]
    assert len(over.delete) == 1
    assert over.event is not None
    assert over.event[0] == "Warning"


def test_a_deadline_ends_it() -> None:
    late = job(activeDeadlineSeconds=5)
    late["status"] = {"startTime": format_time(NOW - 4), "active": 1}
    assert plan_job(late, [pod("Running")], NOW).again_s == 1
    assert conditions(plan_job(late, [pod("Running")], NOW + 1)) == [("Failed", "DeadlineExceeded")]


def test_a_removed_pod_stays_counted_and_a_suspended_job_runs_nothing() -> None:
    counted = job(completions=2)
    counted["status"] = {"succeeded": 1, "startTime": format_time(NOW)}
    assert plan_job(counted, [], NOW).status["succeeded"] == 1
    suspended = plan_job(job(suspend=True), [pod("Running")], NOW)
    assert (suspended.create, len(suspended.delete)) == (0, 1)


def test_a_work_queue_ends_when_one_succeeded_and_all_are_done() -> None:
    queue = job(parallelism=3, completions=None)
    assert plan_job(queue, [], NOW).create == 3
    running = plan_job(queue, [pod("Succeeded"), pod("Running")], NOW)
    assert (running.create, running.delete, conditions(running)) == (0, (), [])
    done = plan_job(queue, [pod("Succeeded"), pod("Failed")], NOW)
    assert conditions(done) == [("Complete", "CompletionsReached")]


def test_the_wait_after_failures_has_a_bound() -> None:
    failed = [pod("Failed", 1)] * 40
    assert plan_job(job(backoffLimit=100), failed, NOW).again_s == 599
