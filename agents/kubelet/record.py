"""What the kubelet knows of the pods it runs, and the backoffs of a container (pure)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

# kubelet.go: MaxContainerBackOff and its start; image pulls use the same numbers.
BACKOFF_START_S = 10.0
BACKOFF_MAX_S = 300.0
# The volume manager's own backoff (pkg/util/goroutinemap/exponentialbackoff).
MOUNT_BACKOFF_START_S = 0.5
MOUNT_BACKOFF_MAX_S = 122.0
# pod_workers.go: when a sync failed the next comes after backOffPeriod, or, while only the network
# is not ready, after backOffOnTransientErrorPeriod; each is longer by up to
# workerBackOffPeriodJitterFactor.
SYNC_BACKOFF_S = 10.0
TRANSIENT_BACKOFF_S = 1.0
SYNC_JITTER = 0.5
# After a pull failed the next look at the pod finds it backing off; the real kubelet's next look
# comes with its sync loop.
PULL_BACKOFF_SHOWN_AFTER_S = 1.0


# Reasons a container waits for that end a sync with an error.
_SYNC_ERRORS = ("CreateContainerConfigError", "ErrImageNeverPull", "InvalidImageName")


class State(enum.Enum):
    """``state`` of a container status."""

    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"


class Termination(NamedTuple):
    """How a container ended; times are Unix seconds."""

    exit_code: int
    reason: str
    message: str
    started_at: float
    finished_at: float
    container_id: str


@dataclass(slots=True)
class ContainerRecord:
    """One container of a running pod.

    ``next_try_at`` is when it may start again; ``ready`` and ``started`` follow its probes.
    """

    name: str
    state: State = State.WAITING
    reason: str = "ContainerCreating"
    message: str = ""
    container_id: str = ""
    image_id: str = ""
    started_at: float = 0.0
    restart_count: int = 0
    ended: Termination | None = None
    previous: Termination | None = None
    ready: bool = False
    started: bool = False
    next_try_at: float = 0.0
    backoff_s: float = 0.0
    pull_backoff_s: float = 0.0
    backoff_shown_at: float = 0.0

    def run(self, container_id: str, image_id: str, now: float) -> None:
        """The program has been started."""
        if self.ended is not None:
            self.restart_count += 1
            self.previous, self.ended = self.ended, None
        self.state = State.RUNNING
        self.reason = self.message = ""
        self.container_id, self.image_id = container_id, image_id
        self.started_at = now
        self.ready = self.started = False
        self.pull_backoff_s = 0.0

    def end(self, exit_code: int, reason: str, message: str, now: float) -> None:
        """The program has ended; the next start waits longer each time it fails again soon."""
        self.ended = Termination(
            exit_code, reason, message, self.started_at or now, now, self.container_id
        )
        self.state = State.TERMINATED
        self.reason, self.message = reason, message
        self.ready = self.started = False
        if now - self.started_at > 2 * BACKOFF_MAX_S:
            self.backoff_s = 0.0
        # The first restart is immediate, the second waits 10 s (client-go's flowcontrol.Backoff).
        self.next_try_at = now + self.backoff_s
        self.backoff_s = min(max(self.backoff_s * 2, BACKOFF_START_S), BACKOFF_MAX_S)

    def wait(self, reason: str, message: str = "") -> None:
        """The container is not running and this is why."""
        self.state = State.WAITING
        self.reason, self.message = reason, message
        self.ready = self.started = False

    def sync_failed(self, reason: str, message: str, now: float, share: float) -> None:
        """Something outside the container keeps it from starting; ``share`` as in ``PodRecord``."""
        self.wait(reason, message)
        self.next_try_at = now + _sync_backoff_s(share)

    def pull_failed(self, message: str, now: float) -> None:
        """The image could not be had; the next pull waits longer each time."""
        self.wait("ErrImagePull", message)
        self.pull_backoff_s = min(max(self.pull_backoff_s * 2, BACKOFF_START_S), BACKOFF_MAX_S)
        self.next_try_at = now + self.pull_backoff_s
        self.backoff_shown_at = now + PULL_BACKOFF_SHOWN_AFTER_S


@dataclass(slots=True)
class PodRecord:
    """One pod as it runs here.

    ``ip`` is empty until the sandbox is wired and stays when ``sandbox_gone`` is set;
    ``sync_try_at`` is when its sandbox may be made or taken away again, ``mount_try_at`` when its
    volumes may be filled again.
    """

    uid: str
    start_time: float
    sandbox_id: str = ""
    ip: str = ""
    containers: dict[str, ContainerRecord] = field(default_factory=dict)
    terminating: bool = False
    sandbox_gone: bool = False
    condition_times: dict[str, tuple[str, float]] = field(default_factory=dict)
    sync_try_at: float = 0.0
    mount_try_at: float = 0.0
    mount_backoff_s: float = 0.0

    def sync_failed(self, now: float, share: float, *, transient: bool = False) -> None:
        """Something outside the pod failed; ``share`` (0 to 1) of the jitter is added."""
        self.sync_try_at = now + _sync_backoff_s(share, transient=transient)

    def try_again(self) -> None:
        """Somebody changed the pod: what failed is tried at once, but for pulls and crashes."""
        self.sync_try_at = 0.0
        for each in self.containers.values():
            if each.reason in _SYNC_ERRORS:
                each.next_try_at = 0.0

    def mount_failed(self, now: float) -> None:
        """A volume could not be filled; the next try waits longer each time."""
        doubled = max(self.mount_backoff_s * 2, MOUNT_BACKOFF_START_S)
        self.mount_backoff_s = min(doubled, MOUNT_BACKOFF_MAX_S)
        self.mount_try_at = now + self.mount_backoff_s

    def container(self, name: str) -> ContainerRecord:
        """The record of a container, made at the first call."""
        if name not in self.containers:
            self.containers[name] = ContainerRecord(name)
        return self.containers[name]


def _sync_backoff_s(share: float, *, transient: bool = False) -> float:
    base_s = TRANSIENT_BACKOFF_S if transient else SYNC_BACKOFF_S
    return base_s * (1 + SYNC_JITTER * share)
