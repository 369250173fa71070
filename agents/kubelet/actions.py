"""What to do about one pod now: (desired, observed) → actions (pure reconciler).

After kuberuntime's computePodActions: init containers one after the other, then all the others
together; a container that ended is started again as the restart policy and its backoff say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from agents.kubelet.record import State

if TYPE_CHECKING:
    from agents.kubelet.record import ContainerRecord, PodRecord
    from agents.kubelet.spec import ContainerSpec, PodSpec


class BackOff(NamedTuple):
    """A container that may not start yet: what its status and its event say."""

    name: str
    reason: str
    message: str
    event: str


@dataclass(frozen=True, slots=True)
class PodActions:
    """What the worker does next.

    ``wake_at`` is when to look again (loop seconds), None when only an event can change anything.
    ``finished`` means nothing will ever run again: the sandbox can go.
    """

    create_sandbox: bool = False
    start: tuple[str, ...] = ()
    back_off: tuple[BackOff, ...] = ()
    wake_at: float | None = None
    finished: bool = False


def compute_actions(pod: PodSpec, record: PodRecord, now: float) -> PodActions:
    """Return the actions for a pod that is not being deleted; ``now`` is on the records' clock."""
    todo = _wanted(pod, record)
    if todo is None:
        return PodActions(finished=True)
    if not record.sandbox_id:
        return PodActions(create_sandbox=bool(todo))
    start: list[str] = []
    back_off: list[BackOff] = []
    wakes: list[float] = []
    for container in todo:
        state = record.container(container.name)
        if state.next_try_at <= now:
            start.append(container.name)
            continue
        wakes.append(state.next_try_at)
        if state.reason == "ErrImagePull" and now < state.backoff_shown_at:
            wakes.append(state.backoff_shown_at)
            continue
        if (shown := _back_off(pod, container, state)) is not None:
            back_off.append(shown)
    return PodActions(
        start=tuple(start), back_off=tuple(back_off), wake_at=min(wakes, default=None)
    )


def _wanted(pod: PodSpec, record: PodRecord) -> tuple[ContainerSpec, ...] | None:
    """The containers that should run but do not; None when the pod is over."""
    sidecars: list[ContainerSpec] = []
    for container in pod.init_containers:
        state = record.container(container.name)
        if container.always_restarted:
            if state.state is not State.RUNNING:
                sidecars.append(container)
            if state.state is not State.RUNNING and not state.restart_count:
                return tuple(sidecars)
            continue
        if _succeeded(state):
            continue
        if state.state is State.RUNNING:
            return tuple(sidecars)
        if state.ended is not None and pod.restart_policy == "Never":
            return None
        return (*sidecars, container)
    wanted = [each for each in pod.containers if _should_start(pod, record.container(each.name))]
    running = any(record.container(each.name).state is State.RUNNING for each in pod.containers)
    if not wanted and not running:
        return None
    return (*sidecars, *wanted)


def _succeeded(state: ContainerRecord) -> bool:
    return state.ended is not None and state.ended.exit_code == 0


def _should_start(pod: PodSpec, state: ContainerRecord) -> bool:
    if state.state is State.RUNNING:
        return False
    if state.ended is None:
        return True
    match pod.restart_policy:
        case "Always":
            return True
        case "OnFailure":
            return state.ended.exit_code != 0
    return False


def _back_off(pod: PodSpec, container: ContainerSpec, state: ContainerRecord) -> BackOff | None:
    if state.reason in ("ErrImagePull", "ImagePullBackOff"):
        text = f'Back-off pulling image "{container.image}"'
        cause = state.message.removeprefix(f"{text}: ErrImagePull: ")
        return BackOff(container.name, "ImagePullBackOff", f"{text}: ErrImagePull: {cause}", text)
    if state.ended is None:
        return None
    delay = _backoff_now(state)
    return BackOff(
        container.name,
        "CrashLoopBackOff",
        f"back-off {_go_duration(delay)} restarting failed container={container.name} "
        f"pod={pod.full_name}",
        f"Back-off restarting failed container {container.name} in pod {pod.full_name}",
    )


def _backoff_now(state: ContainerRecord) -> float:
    return state.next_try_at - state.ended.finished_at if state.ended is not None else 0.0


def _go_duration(seconds: float) -> str:
    """``10s``, ``1m20s``, ``5m0s``: time.Duration's text for whole seconds."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
