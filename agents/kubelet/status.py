"""The status a pod reports (pure).

After pkg/kubelet/kubelet_pods.go generateAPIPodStatus and status/generate.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.kubelet.record import State
from emulator.kubeclient.meta import format_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.kubelet.config import KubeletConfig
    from agents.kubelet.record import ContainerRecord, PodRecord, Termination
    from agents.kubelet.spec import ContainerSpec, PodSpec

    Object = dict[str, Any]

# Conditions this kubelet writes; all others in the object belong to somebody else.
_OWN = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


def pod_phase(pod: PodSpec, record: PodRecord) -> str:
    """Pending, Running, Succeeded or Failed (getPhase)."""
    init_failed = False
    for container in pod.init_containers:
        if container.always_restarted:
            continue
        state = record.container(container.name)
        if state.ended is None or state.state is State.RUNNING:
            return "Pending"
        if state.ended.exit_code != 0:
            if pod.restart_policy != "Never":
                return "Pending"
            init_failed = True
    if init_failed:
        return "Failed"
    states = [record.container(each.name) for each in pod.containers]
    running = sum(each.state is State.RUNNING for each in states)
    stopped = [each.ended for each in states if each.state is not State.RUNNING and each.ended]
    waiting = len(states) - running - len(stopped)
    if waiting:
        return "Pending"
    if running:
        return "Running"
    if pod.restart_policy == "Always" and not record.terminating:
        return "Running"
    if all(each.exit_code == 0 for each in stopped):
        return "Succeeded"
    if pod.restart_policy == "Never" or record.terminating:
        return "Failed"
    return "Running"


def build_status(pod: PodSpec, record: PodRecord, config: KubeletConfig, now: float) -> Object:
    """Return ``status`` whole; ``now`` is Unix seconds.

    Conditions of others are kept from the object as it was read.
    """
    phase = pod_phase(pod, record)
    over = phase in ("Succeeded", "Failed")
    ip = config.node_ip if pod.host_network and record.sandbox_id else record.ip
    if over and record.terminating:
        ip = ""
    status: Object = {
        "phase": phase,
        "conditions": _conditions(pod, record, phase, config, now),
        "hostIP": config.node_ip,
        "startTime": format_time(record.start_time),
        "containerStatuses": [
            _container_status(each, record.container(each.name), config) for each in pod.containers
        ],
        "qosClass": qos_class(pod),
    }
    if config.era != "2017":
        status["hostIPs"] = [{"ip": config.node_ip}]
    if pod.init_containers:
        status["initContainerStatuses"] = [
            _init_status(each, record.container(each.name), config) for each in pod.init_containers
        ]
    if ip:
        status["podIP"] = ip
        if config.era != "2017":
            status["podIPs"] = [{"ip": ip}]
    return status


def own_status(status: Object) -> Object:
    """The parts of a stored status that only a kubelet may write, to compare two of them."""
    mine = [each for each in status.get("conditions") or () if each["type"] in _OWN]
    fields = ("phase", "podIP", "hostIP", "startTime", "containerStatuses")
    return {"conditions": mine, **{field: status.get(field) for field in fields}}


def qos_class(pod: PodSpec) -> str:
    """Guaranteed, Burstable or BestEffort, from cpu and memory alone."""
    burstable = guaranteed = False
    exact = True
    for container in pod.all_containers:
        limits = container.resources.get("limits") or {}
        requests = container.resources.get("requests") or {}
        burstable = burstable or bool(limits or requests)
        guaranteed = bool(limits)
        for name in ("cpu", "memory"):
            if name not in limits or requests.get(name, limits[name]) != limits[name]:
                exact = False
    if guaranteed and exact:
        return "Guaranteed"
    return "Burstable" if burstable else "BestEffort"


def _conditions(
    pod: PodSpec, record: PodRecord, phase: str, config: KubeletConfig, now: float
) -> list[Object]:
    not_init = [
        each.name
        for each in pod.init_containers
        if not _init_done(each.always_restarted, record.container(each.name))
    ]
    not_ready = [each.name for each in pod.containers if not record.container(each.name).ready]
    wanted: list[tuple[str, bool, str, str]] = []
    if config.era != "2017":
        alive = bool(record.sandbox_id) and not record.sandbox_gone
        wanted.append(("PodReadyToStartContainers", alive, "", ""))
    if phase == "Succeeded":
        wanted.append(("Initialized", True, "PodCompleted", ""))
    else:
        wanted.append(("Initialized", not not_init, *_init_text(not_init)))
    ready = (
        (False, "PodCompleted", "")
        if phase == "Succeeded"
        else (False, "PodFailed", "")
        if phase == "Failed"
        else (not not_ready, *_ready_text(not_ready))
    )
    wanted.append(("Ready", *ready))
    if config.era != "2017":
        wanted.append(("ContainersReady", *ready))
    wanted.append(("PodScheduled", True, "", ""))
    known = {each["type"]: each for each in (pod.obj.get("status") or {}).get("conditions") or ()}
    mine = []
    for kind, value, reason, message in wanted:
        text = "True" if value else "False"
        since = _since(record, known.get(kind), kind, text, now)
        condition: Object = {
            "type": kind,
            "status": text,
            "lastProbeTime": None,
            "lastTransitionTime": since,
        }
        if reason:
            condition |= {"reason": reason, **({"message": message} if message else {})}
        mine.append(condition)
    return mine + [dict(each) for each in known.values() if each["type"] not in _OWN]


def _since(record: PodRecord, known: Object | None, kind: str, status: str, now: float) -> str:
    """When the condition took its status: remembered here, else as the object says."""
    if known is not None and known.get("status") == status and known.get("lastTransitionTime"):
        return str(known["lastTransitionTime"])
    remembered = record.condition_times.get(kind)
    if remembered is None or remembered[0] != status:
        remembered = record.condition_times[kind] = (status, now)
    return format_time(remembered[1])


def _init_done(sidecar: bool, state: ContainerRecord) -> bool:
    if sidecar:
        return state.state is State.RUNNING
    return state.ended is not None and state.ended.exit_code == 0


def _init_text(names: Sequence[str]) -> tuple[str, str]:
    if not names:
        return "", ""
    return "ContainersNotInitialized", f"containers with incomplete status: [{' '.join(names)}]"


def _ready_text(names: Sequence[str]) -> tuple[str, str]:
    if not names:
        return "", ""
    return "ContainersNotReady", f"containers with unready status: [{' '.join(names)}]"


def _init_status(container: ContainerSpec, state: ContainerRecord, config: KubeletConfig) -> Object:
    status = _container_status(container, state, config)
    if not container.always_restarted:
        status["ready"] = state.ended is not None and state.ended.exit_code == 0
    if state.state is State.WAITING and state.ended is None and not state.container_id:
        status["state"] = {
            "waiting": {"reason": state.reason.replace("ContainerCreating", "PodInitializing")}
        }
    return status


def _container_status(
    container: ContainerSpec, state: ContainerRecord, config: KubeletConfig
) -> Object:
    status: Object = {
        "name": container.name,
        "state": _state(state, config),
        "lastState": {},
        "ready": state.ready,
        "restartCount": state.restart_count,
        "image": container.image,
        "imageID": state.image_id,
    }
    last = state.previous if state.state is not State.WAITING else state.ended or state.previous
    if last is not None:
        status["lastState"] = {"terminated": _terminated(last, config)}
    if state.container_id:
        status["containerID"] = f"{config.runtime}://{state.container_id}"
    if config.era != "2017":
        status["started"] = state.started
    return status


def _state(state: ContainerRecord, config: KubeletConfig) -> Object:
    match state.state:
        case State.RUNNING:
            return {"running": {"startedAt": format_time(state.started_at)}}
        case State.TERMINATED if state.ended is not None:
            return {"terminated": _terminated(state.ended, config)}
    waiting: Object = {"reason": state.reason}
    if state.message:
        waiting["message"] = state.message
    return {"waiting": waiting}


def _terminated(ended: Termination, config: KubeletConfig) -> Object:
    terminated: Object = {
        "exitCode": ended.exit_code,
        "reason": ended.reason,
        "startedAt": format_time(ended.started_at),
        "finishedAt": format_time(ended.finished_at),
    }
    if ended.message:
        terminated["message"] = ended.message
    if ended.container_id:
        terminated["containerID"] = f"{config.runtime}://{ended.container_id}"
    return terminated
