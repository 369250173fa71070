"""Tables of pods and the kinds that make pods (pkg/printers/internalversion/printers.go, v1.32)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery.columns import (
    AGE,
    CONTAINERS,
    IMAGES,
    NAME,
    SELECTOR,
    Column,
    Printer,
    age_of,
    containers_and_images,
    none_if_empty,
    number,
    wide,
)
from emulator.apimachinery.labels import format_label_selector, format_labels
from emulator.apimachinery.objects import dig, items, name_of
from emulator.apimachinery.printers_core import duration_between
from emulator.apimachinery.times import age, human_duration, parse_rfc3339

if TYPE_CHECKING:
    from emulator.apimachinery.objects import Obj


_MAX_METRICS: Final = 2
_OF_RESOURCES: Final = ("resource", "containerResource")
_METRIC_FIELDS: Final = {
    "Resource": "resource",
    "ContainerResource": "containerResource",
    "Pods": "pods",
    "Object": "object",
    "External": "external",
}


def _condition(obj: Obj, kind: str) -> bool:
    return any(
        c.get("type") == kind and c.get("status") == "True"
        for c in items(obj, "status", "conditions")
    )


def _terminated_words(state: Obj) -> str:
    if state.get("reason"):
        return str(state["reason"])
    if state.get("signal"):
        return f"Signal:{state['signal']}"
    return f"ExitCode:{state.get('exitCode', 0)}"


class _PodState:
    """The STATUS, READY and RESTARTS of a pod, container by container."""

    __slots__ = ("_of_sidecars", "last_restart", "ready", "reason", "restarts")

    def __init__(self, obj: Obj) -> None:
        status = obj.get("status") or {}
        self.reason = str(status.get("reason") or status.get("phase") or "")
        self.restarts = 0
        self.ready = 0
        self.last_restart: float | None = None
        # What sidecars alone count: (restarts, when the last one was).
        self._of_sidecars: tuple[int, float | None] = (0, None)
        for condition in status.get("conditions") or []:
            if (condition.get("type"), condition.get("reason")) == (
                "PodScheduled",
                "SchedulingGated",
            ):
                self.reason = "SchedulingGated"
        initializing = self._init_containers(obj, status)
        if not initializing or _condition(obj, "Initialized"):
            self._containers(obj, status)
        if dig(obj, "metadata", "deletionTimestamp"):
            if status.get("reason") == "NodeLost":
                self.reason = "Unknown"
            elif status.get("phase") not in ("Succeeded", "Failed"):
                self.reason = "Terminating"

    def _count(self, container: Obj, *, sidecar: bool = False) -> None:
        restarts = container.get("restartCount") or 0
        self.restarts += restarts
        finished = parse_rfc3339(dig(container, "lastState", "terminated", "finishedAt"))
        if finished is not None:
            self.last_restart = max(finished, self.last_restart or finished)
        if sidecar:
            known, last = self._of_sidecars
            if finished is not None:
                last = max(finished, last or finished)
            self._of_sidecars = (known + restarts, last)

    def _init_containers(self, obj: Obj, status: Obj) -> bool:
        sidecars = {
            c.get("name")
            for c in items(obj, "spec", "initContainers")
            if c.get("restartPolicy") == "Always"
        }
        total = len(items(obj, "spec", "initContainers"))
        for i, container in enumerate(status.get("initContainerStatuses") or []):
            sidecar = container.get("name") in sidecars
            self._count(container, sidecar=sidecar)
            terminated = dig(container, "state", "terminated")
            waiting = dig(container, "state", "waiting") or {}
            if terminated is not None and terminated.get("exitCode") == 0:
                continue
            if sidecar and container.get("started"):
                self.ready += bool(container.get("ready"))
                continue
            if terminated is not None:
                self.reason = "Init:" + _terminated_words(terminated)
            elif waiting.get("reason") and waiting["reason"] != "PodInitializing":
                self.reason = f"Init:{waiting['reason']}"
            else:
                self.reason = f"Init:{i}/{total}"
            return True
        return False

    def _containers(self, obj: Obj, status: Obj) -> None:
        # Restarts of what initialized the pod count no more, those of what runs beside it do.
        self.restarts, self.last_restart = self._of_sidecars
        running = False
        for container in reversed(status.get("containerStatuses") or []):
            self._count(container)
            state = container.get("state") or {}
            waiting, terminated = state.get("waiting") or {}, state.get("terminated")
            if waiting.get("reason"):
                self.reason = str(waiting["reason"])
            elif terminated is not None:
                self.reason = _terminated_words(terminated)
            elif container.get("ready") and state.get("running") is not None:
                running = True
                self.ready += 1
        if self.reason == "Completed" and running:
            self.reason = "Running" if _condition(obj, "Ready") else "NotReady"


def _pod(obj: Obj, now: float) -> list[Any]:
    state = _PodState(obj)
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    sidecars = [c for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"]
    total = len(spec.get("containers") or []) + len(sidecars)
    restarts = str(state.restarts)
    if state.restarts and state.last_restart is not None:
        restarts += f" ({human_duration(now - state.last_restart)} ago)"
    ips = [i.get("ip") for i in status.get("podIPs") or []]
    gates = spec.get("readinessGates") or []
    gate_text = "<none>"
    if gates:
        passed = sum(_condition(obj, str(g.get("conditionType"))) for g in gates)
        gate_text = f"{passed}/{len(gates)}"
    return [
        name_of(obj),
        f"{state.ready}/{total}",
        state.reason,
        restarts,
        age_of(obj, now),
        none_if_empty(ips[0] if ips else status.get("podIP")),
        none_if_empty(spec.get("nodeName")),
        none_if_empty(status.get("nominatedNodeName")),
        gate_text,
    ]


def _number(obj: Obj, *path: str) -> int:
    value = dig(obj, *path)
    return value if isinstance(value, int) else 0


def _deployment(obj: Obj, now: float) -> list[Any]:
    return [
        name_of(obj),
        f"{_number(obj, 'status', 'readyReplicas')}/{_number(obj, 'spec', 'replicas')}",
        _number(obj, "status", "updatedReplicas"),
        _number(obj, "status", "availableReplicas"),
        age_of(obj, now),
        *containers_and_images(obj),
        format_label_selector(dig(obj, "spec", "selector")),
    ]


def _replica_set(obj: Obj, now: float) -> list[Any]:
    return [
        *_replica_counts(obj, now),
        *containers_and_images(obj),
        format_label_selector(dig(obj, "spec", "selector")),
    ]


def _replication_controller(obj: Obj, now: float) -> list[Any]:
    return [
        *_replica_counts(obj, now),
        *containers_and_images(obj),
        format_labels(dig(obj, "spec", "selector")),
    ]


def _replica_counts(obj: Obj, now: float) -> list[Any]:
    return [
        name_of(obj),
        _number(obj, "spec", "replicas"),
        _number(obj, "status", "replicas"),
        _number(obj, "status", "readyReplicas"),
        age_of(obj, now),
    ]


def _daemon_set(obj: Obj, now: float) -> list[Any]:
    return [
        name_of(obj),
        _number(obj, "status", "desiredNumberScheduled"),
        _number(obj, "status", "currentNumberScheduled"),
        _number(obj, "status", "numberReady"),
        _number(obj, "status", "updatedNumberScheduled"),
        _number(obj, "status", "numberAvailable"),
        format_labels(dig(obj, "spec", "template", "spec", "nodeSelector")),
        age_of(obj, now),
        *containers_and_images(obj),
        format_label_selector(dig(obj, "spec", "selector")),
    ]


def _stateful_set(obj: Obj, now: float) -> list[Any]:
    return [
        name_of(obj),
        f"{_number(obj, 'status', 'readyReplicas')}/{_number(obj, 'spec', 'replicas')}",
        age_of(obj, now),
        *containers_and_images(obj),
    ]


def _job(obj: Obj, now: float) -> list[Any]:
    done, wanted = _number(obj, "status", "succeeded"), dig(obj, "spec", "completions")
    if wanted is None:
        parallel = _number(obj, "spec", "parallelism")
        completions = f"{done}/1 of {parallel}" if parallel > 1 else f"{done}/1"
    else:
        completions = f"{done}/{wanted}"
    if _condition(obj, "Complete"):
        status = "Complete"
    elif _condition(obj, "Failed"):
        status = "Failed"
    elif dig(obj, "metadata", "deletionTimestamp"):
        status = "Terminating"
    elif _condition(obj, "Suspended"):
        status = "Suspended"
    elif _condition(obj, "FailureTarget"):
        status = "FailureTarget"
    elif _condition(obj, "SuccessCriteriaMet"):
        status = "SuccessCriteriaMet"
    else:
        status = "Running"
    times = obj.get("status") or {}
    return [
        name_of(obj),
        status,
        completions,
        duration_between(times.get("startTime"), times.get("completionTime"), now),
        age_of(obj, now),
        *containers_and_images(obj),
        format_label_selector(dig(obj, "spec", "selector")),
    ]


def _cron_job(obj: Obj, now: float) -> list[Any]:
    spec = obj.get("spec") or {}
    last = dig(obj, "status", "lastScheduleTime")
    template = {"spec": dig(spec, "jobTemplate", "spec") or {}}
    return [
        name_of(obj),
        spec.get("schedule", ""),
        spec.get("timeZone") or "<none>",
        "True" if spec.get("suspend") else "False",
        len(items(obj, "status", "active")),
        age(last, now) if last else "<none>",
        age_of(obj, now),
        *containers_and_images(template),
        format_label_selector(dig(spec, "jobTemplate", "spec", "selector")),
    ]


def _metric(metric: Obj, current: Obj) -> str:
    """One metric of an autoscaler: what is and what should be (formatHPAMetrics)."""
    field = _METRIC_FIELDS.get(str(metric.get("type")))
    if field is None:
        return "<unknown type>"
    target = dig(metric, field, "target") or {}
    now = dig(current, field, "current") or {}
    name = f"{dig(metric, field, 'name')}: " if field in _OF_RESOURCES else ""
    if target.get("averageValue") is not None:
        average = "" if field in (*_OF_RESOURCES, "pods") else " (avg)"
        return f"{name}{now.get('averageValue', '<unknown>')}/{target['averageValue']}{average}"
    if not name:
        return f"{now.get('value', '<unknown>')}/{target.get('value', '<unknown>')}"
    shares = (now.get("averageUtilization"), target.get("averageUtilization"))
    is_, wanted = (None if share is None else f"{share}%" for share in shares)
    return f"{name}{is_ or '<unknown>'}/{wanted or '<auto>'}"


def _autoscaler(obj: Obj, now: float) -> list[Any]:
    spec = obj.get("spec") or {}
    target = spec.get("scaleTargetRef") or {}
    current = items(obj, "status", "currentMetrics")
    metrics = [
        _metric(metric, current[number] if number < len(current) else {})
        for number, metric in enumerate(items(obj, "spec", "metrics"))
    ]
    more = f" + {len(metrics) - _MAX_METRICS} more..." if len(metrics) > _MAX_METRICS else ""
    least = spec.get("minReplicas")
    return [
        name_of(obj),
        f"{target.get('kind', '')}/{target.get('name', '')}",
        ", ".join(metrics[:_MAX_METRICS]) + more or "<none>",
        "<unset>" if least is None else str(least),
        spec.get("maxReplicas", 0),
        _number(obj, "status", "currentReplicas"),
        age_of(obj, now),
    ]


def _controller_revision(obj: Obj, now: float) -> list[Any]:
    owner = "<none>"
    for reference in items(obj, "metadata", "ownerReferences"):
        if reference.get("controller"):
            group = str(reference.get("apiVersion", "")).rpartition("/")[0]
            kind = str(reference.get("kind", "")).lower()
            owner = (
                f"{kind}.{group}/{reference.get('name')}"
                if group
                else f"{kind}/{reference.get('name')}"
            )
    return [name_of(obj), owner, obj.get("revision", 0), age_of(obj, now)]


def _pod_template(obj: Obj, now: float) -> list[Any]:
    holder = {"spec": {"template": obj.get("template") or {}}}
    labels = format_labels(dig(obj, "template", "metadata", "labels"))
    return [name_of(obj), *containers_and_images(holder), labels]


_REPLICA_COLUMNS: Final = (
    NAME,
    number("Desired", "Replicas is the number of desired pods."),
    number("Current", "Replicas is the most recently observed number of pods."),
    number("Ready", "The number of pods targeted by this set with a Ready Condition."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
)

PRINTERS: Final[dict[tuple[str, str], Printer]] = {
    ("", "pods"): Printer(
        (
            NAME,
            Column("Ready", "The aggregate readiness state of this pod for accepting traffic."),
            Column("Status", "The aggregate status of the containers in this pod."),
            Column("Restarts", "The number of times the containers have been restarted."),
            AGE,
            wide("IP", "podIP address allocated to the pod."),
            wide("Node", "NodeName indicates in which node this pod is scheduled."),
            wide("Nominated Node", "nominatedNodeName is set when this pod preempts others."),
            wide("Readiness Gates", "Conditions that must be true for the pod to be ready."),
        ),
        _pod,
    ),
    ("", "podtemplates"): Printer(
        (
            NAME,
            Column("Containers", "Names of each container in the template."),
            Column("Images", "Images referenced by each container in the template."),
            Column("Pod Labels", "The labels for the pod template."),
        ),
        _pod_template,
    ),
    ("apps", "deployments"): Printer(
        (
            NAME,
            Column("Ready", "Number of the pod with ready state"),
            Column("Up-to-date", "Number of pods with the desired template spec."),
            Column("Available", "Number of available pods (ready for at least minReadySeconds)."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ),
        _deployment,
    ),
    ("apps", "replicasets"): Printer(_REPLICA_COLUMNS, _replica_set),
    ("", "replicationcontrollers"): Printer(_REPLICA_COLUMNS, _replication_controller),
    ("apps", "daemonsets"): Printer(
        (
            NAME,
            number("Desired", "The number of nodes that should be running the daemon pod."),
            number("Current", "The number of nodes that are running at least 1 daemon pod."),
            number("Ready", "Nodes that should be running the pod and have it ready."),
            number("Up-to-date", "The number of nodes running the updated daemon pod."),
            number("Available", "Nodes that have the daemon pod available."),
            Column("Node Selector", "Selector which must match a node's labels."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ),
        _daemon_set,
    ),
    ("apps", "statefulsets"): Printer(
        (NAME, Column("Ready", "Number of the pod with ready state"), AGE, CONTAINERS, IMAGES),
        _stateful_set,
    ),
    ("apps", "controllerrevisions"): Printer(
        (
            NAME,
            Column("Controller", "Controller of the object"),
            number("Revision", "Revision indicates the revision of the state."),
            AGE,
        ),
        _controller_revision,
    ),
    ("batch", "jobs"): Printer(
        (
            NAME,
            Column("Status", "Status of the job."),
            Column("Completions", "The desired number of successfully finished pods."),
            Column("Duration", "Time required to complete the job."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ),
        _job,
    ),
    ("batch", "cronjobs"): Printer(
        (
            NAME,
            Column("Schedule", "The schedule in Cron format."),
            Column("Timezone", "The time zone name for the given schedule."),
            Column("Suspend", "Whether subsequent executions are suspended."),
            number("Active", "Currently running jobs."),
            Column("Last Schedule", "When was the last time the job was scheduled."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ),
        _cron_job,
    ),
    ("autoscaling", "horizontalpodautoscalers"): Printer(
        (
            NAME,
            Column("Reference", "The object whose replicas are scaled."),
            Column("Targets", "The metrics used to calculate the desired replica count."),
            Column("MinPods", "The lower limit of replicas."),
            number("MaxPods", "The upper limit of replicas."),
            number("Replicas", "The current number of replicas."),
            AGE,
        ),
        _autoscaler,
    ),
}
