"""What a kubelet that starts anew makes of a pod's last reported status (pure).

The node's process held every sandbox: after it died no container runs any more.  Containers that
ran are taken as ended (containerd reports exit code 255, reason Unknown, after a reboot), so that
restarting them counts; containers that had ended for good stay as they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.kubelet.record import ContainerRecord, PodRecord, State, Termination
from emulator.kubeclient.meta import parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.kubelet.spec import PodSpec

EXIT_UNKNOWN = 255


def recover_record(pod: PodSpec, now: float) -> PodRecord:
    """The record to start from; ``now`` is Unix seconds."""
    status: Mapping[str, Any] = pod.obj.get("status") or {}
    record = PodRecord(pod.uid, parse_time(status.get("startTime")) or now)
    record.ip = str(status.get("podIP") or "")
    over = status.get("phase") in ("Succeeded", "Failed")
    if not over:
        record.ip = ""
    sections = list(status.get("containerStatuses") or ())
    if over:
        sections += status.get("initContainerStatuses") or ()
    for section in sections:
        if section.get("containerID"):
            _recover(record.container(section["name"]), section, now)
    return record


def _recover(state: ContainerRecord, section: Mapping[str, Any], now: float) -> None:
    state.restart_count = int(section.get("restartCount") or 0)
    state.container_id = str(section["containerID"]).partition("://")[2]
    state.image_id = str(section.get("imageID") or "")
    current: Mapping[str, Any] = section.get("state") or {}
    last: Mapping[str, Any] = (section.get("lastState") or {}).get("terminated") or {}
    ended: Mapping[str, Any] = current.get("terminated") or {}
    if not ended and "waiting" in current and last:
        ended, last = last, {}
    if ended:
        state.ended = _termination(ended)
    else:
        began = parse_time((current.get("running") or {}).get("startedAt")) or now
        state.ended = Termination(EXIT_UNKNOWN, "Unknown", "", began, now, state.container_id)
    if last:
        state.previous = _termination(last)
    state.state = State.TERMINATED
    state.reason = state.ended.reason


def _termination(section: Mapping[str, Any]) -> Termination:
    return Termination(
        int(section.get("exitCode") or 0),
        str(section.get("reason") or ""),
        str(section.get("message") or ""),
        parse_time(section.get("startedAt")),
        parse_time(section.get("finishedAt")),
        str(section.get("containerID") or "").partition("://")[2],
    )
