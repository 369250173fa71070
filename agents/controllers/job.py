"""Job: pods until enough of them succeeded; a reconciler.

Source: k8s.io/kubernetes/pkg/controller/job/job_controller.go, NonIndexed jobs.  A pod counts by
its phase; what was counted once stays counted when the pod is removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agents.controllers.actions import soonest
from agents.controllers.podstate import condition_of, is_active, is_ready, phase_of
from emulator.kubeclient.meta import format_time, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Object = dict[str, Any]

DEFAULT_BACKOFF_LIMIT = 6
# Wait after the first failure, doubled by each further one (upstream's DefaultJobPodFailureBackOff
# and MaxJobPodFailureBackOff).
FAILURE_BACKOFF_S = 10.0
MAX_FAILURE_BACKOFF_S = 600.0


class JobPlan(NamedTuple):
    """What to do with a Job's pods, its new status and, if it ends now, the event."""

    create: int
    delete: tuple[Object, ...]
    status: Object
    again_s: float | None
    event: tuple[str, str, str] | None
    """(type, reason, message)"""
    expired: bool = False
    """Finished for longer than ttlSecondsAfterFinished: the Job itself goes."""


def plan_job(job: Object, pods: Sequence[Object], now: float) -> JobPlan:
    """The next step of a Job that controls ``pods``."""
    spec, known = job["spec"], job.get("status") or {}
    active = [pod for pod in pods if is_active(pod)]
    counts = {
        phase: max(int(known.get(field) or 0), sum(phase_of(pod) == phase for pod in pods))
        for phase, field in (("Succeeded", "succeeded"), ("Failed", "failed"))
    }
    if (done := _finished_at(job)) is not None:
        ttl_s = spec.get("ttlSecondsAfterFinished")
        left_s = None if ttl_s is None else done + float(ttl_s) - now
        expired = left_s is not None and left_s <= 0
        # A pod that had not shown yet when the Job ended has no business any more.
        return JobPlan(0, tuple(active), dict(known), None if expired else left_s, None, expired)
    start = known.get("startTime") or (None if spec.get("suspend") else format_time(now))
    verdict = _verdict(job, counts, active, start, now)
    status = _status(known, active, counts, start)
    if verdict is not None:
        type_, reason, message = verdict
        status.pop("active", None)
        status.pop("ready", None)
        status["conditions"] = [*(known.get("conditions") or ()), _condition(*verdict, now)]
        event = ("Warning", reason, message)
        if type_ == "Complete":
            status["completionTime"] = format_time(now)
            event = ("Normal", "Completed", "Job completed")
        return JobPlan(0, tuple(active), status, None, event)
    if spec.get("suspend"):
        return JobPlan(0, tuple(active), status, None, None)
    wanted = _wanted_active(spec, counts["Succeeded"], len(active))
    create = max(0, wanted - len(active))
    wait_s = _failure_backoff(pods, counts["Failed"], now) if create else 0.0
    deadline = spec.get("activeDeadlineSeconds")
    left = None if deadline is None else parse_time(start) + float(deadline) - now
    return JobPlan(
        0 if wait_s else create,
        tuple(active[wanted:]),
        status,
        soonest(wait_s or None, left),
        None,
    )


def _wanted_active(spec: Mapping[str, Any], succeeded: int, active: int) -> int:
    parallelism = 1 if spec.get("parallelism") is None else int(spec["parallelism"])
    completions = spec.get("completions")
    if completions is None:
        # A work queue: once one has succeeded, no more are started; those that run may end.
        return active if succeeded else parallelism
    return max(0, min(parallelism, int(completions) - succeeded))


def _verdict(
    job: Object, counts: Mapping[str, int], active: Sequence[Object], start: Any, now: float
) -> tuple[str, str, str] | None:
    """(condition type, reason, message) if the Job ends now."""
    spec = job["spec"]
    limit = spec.get("backoffLimit")
    if counts["Failed"] > (DEFAULT_BACKOFF_LIMIT if limit is None else int(limit)):
        text = "Job has reached the specified backoff limit"
        return "Failed", "BackoffLimitExceeded", text
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and start and now - parse_time(start) >= float(deadline):
        text = "Job was active longer than specified deadline"
        return "Failed", "DeadlineExceeded", text
    completions = spec.get("completions")
    if completions is None:
        complete = counts["Succeeded"] > 0 and not active
    else:
        complete = counts["Succeeded"] >= int(completions)
    if complete:
        return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
    return None


def _status(
    known: Mapping[str, Any], active: Sequence[Object], counts: Mapping[str, int], start: Any
) -> Object:
    status: Object = {}
    if known.get("conditions"):
        status["conditions"] = known["conditions"]
    if start:
        status["startTime"] = start
    numbers = {
        "active": len(active),
        "ready": sum(is_ready(pod) for pod in active),
        "succeeded": counts["Succeeded"],
        "failed": counts["Failed"],
    }
    return status | {name: number for name, number in numbers.items() if number}


def _condition(type_: str, reason: str, message: str, now: float) -> Object:
    at = format_time(now)
    return {
        "type": type_,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastProbeTime": at,
        "lastTransitionTime": at,
    }


def _finished_at(job: Object) -> float | None:
    for type_ in ("Complete", "Failed"):
        condition = condition_of(job, type_)
        if condition is not None and condition.get("status") == "True":
            return parse_time(condition.get("lastTransitionTime"))
    return None


def _failure_backoff(pods: Sequence[Object], failed: int, now: float) -> float:
    """Seconds still to wait after the last failure; 0.0 for none."""
    ended = [_ended_at(pod) for pod in pods if phase_of(pod) == "Failed"]
    if not ended:
        return 0.0
    delay = min(FAILURE_BACKOFF_S * 2.0 ** min(failed - 1, 32), MAX_FAILURE_BACKOFF_S)
    return max(0.0, max(ended) + delay - now)


def _ended_at(pod: Mapping[str, Any]) -> float:
    times = [parse_time((condition_of(pod, "Ready") or {}).get("lastTransitionTime"))]
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        ended = ((status.get("state") or {}).get("terminated") or {}).get("finishedAt")
        times.append(parse_time(ended))
    return max(times)
