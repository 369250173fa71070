"""Defaults the API server writes into new and changed objects (pkg/apis/*/v1/defaults.go)."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery.objects import dig, items, set_default, sub

if TYPE_CHECKING:
    from emulator.apimachinery.objects import Obj

# DefaultTolerationSeconds admission plug-in.
EVICTION_TOLERATION_S: Final = 300
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_MODE_0644 = 420
_DEFAULT_MODES = ("configMap", "secret", "downwardAPI", "projected")


def _handler(handler: Obj) -> None:
    http = handler.get("httpGet")
    if isinstance(http, dict):
        if not http.get("path"):
            http["path"] = "/"
        if not http.get("scheme"):
            http["scheme"] = "HTTP"
    if isinstance(handler.get("grpc"), dict):
        set_default(handler["grpc"], "service", "")


def _container(container: Obj, *, host_network: bool) -> None:
    image = str(container.get("image") or "")
    if not container.get("imagePullPolicy"):
        last = image.rsplit("/", 1)[-1]
        tag = last.rpartition(":")[2] if ":" in last else ""
        latest = "@" not in last and tag in ("", "latest")
        container["imagePullPolicy"] = "Always" if latest else "IfNotPresent"
    if not container.get("terminationMessagePath"):
        container["terminationMessagePath"] = "/dev/termination-log"
    if not container.get("terminationMessagePolicy"):
        container["terminationMessagePolicy"] = "File"
    resources = sub(container, "resources")
    for name, amount in (resources.get("limits") or {}).items():
        sub(resources, "requests").setdefault(name, amount)
    for port in container.get("ports") or []:
        if not port.get("protocol"):
            port["protocol"] = "TCP"
        if host_network and not port.get("hostPort"):
            port["hostPort"] = port.get("containerPort")
    for key in _PROBES:
        probe = container.get(key)
        if isinstance(probe, dict):
            for name, value in (
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ):
                if not probe.get(name):
                    probe[name] = value
            _handler(probe)
    for hook in (container.get("lifecycle") or {}).values():
        if isinstance(hook, dict):
            _handler(hook)
    for env in container.get("env") or []:
        reference = dig(env, "valueFrom", "fieldRef")
        if isinstance(reference, dict) and not reference.get("apiVersion"):
            reference["apiVersion"] = "v1"


def pod_spec(spec: Obj) -> None:
    """Defaults of a pod's spec or a template's."""
    for key, value in (
        ("restartPolicy", "Always"),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
    ):
        if not spec.get(key):
            spec[key] = value
    set_default(spec, "terminationGracePeriodSeconds", 30)
    sub(spec, "securityContext")
    if spec.get("serviceAccountName"):
        set_default(spec, "serviceAccount", spec["serviceAccountName"])
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]
    host_network = bool(spec.get("hostNetwork"))
    for key in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(key) or []:
            _container(container, host_network=host_network)
    for volume in spec.get("volumes") or []:
        if set(volume) <= {"name"}:
            volume["emptyDir"] = {}
        for source in _DEFAULT_MODES:
            if isinstance(volume.get(source), dict):
                set_default(volume[source], "defaultMode", _MODE_0644)
        if isinstance(volume.get("hostPath"), dict):
            set_default(volume["hostPath"], "type", "")


def pod(obj: Obj) -> None:
    """Defaults of a pod, with what the default admission plug-ins add."""
    spec = sub(obj, "spec")
    pod_spec(spec)
    set_default(spec, "enableServiceLinks", True)
    if not spec.get("serviceAccountName"):
        spec["serviceAccountName"] = spec["serviceAccount"] = "default"
    set_default(spec, "priority", 0)
    set_default(spec, "preemptionPolicy", "PreemptLowerPriority")
    tolerations = spec.get("tolerations") or []
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        covered = any(
            t.get("key") in (key, None, "") and t.get("effect") in ("NoExecute", None, "")
            for t in tolerations
        )
        if not covered:
            tolerations.append(
                {
                    "key": key,
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": EVICTION_TOLERATION_S,
                }
            )
    spec["tolerations"] = tolerations


def qos_class(spec: Obj) -> str:
    """``status.qosClass`` (component-helpers qos)."""
    containers = items(spec, "containers") + items(spec, "initContainers")
    any_set = False
    guaranteed = True
    for container in containers:
        resources = container.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        any_set = any_set or bool(limits) or bool(requests)
        for name in ("cpu", "memory"):
            if name not in limits or requests.get(name, limits[name]) != limits[name]:
                guaranteed = False
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _template(obj: Obj) -> None:
    template = sub(sub(obj, "spec"), "template")
    sub(template, "metadata").setdefault("creationTimestamp", None)
    pod_spec(sub(template, "spec"))


def deployment(obj: Obj) -> None:
    """apps/v1 Deployment."""
    _template(obj)
    spec = obj["spec"]
    set_default(spec, "replicas", 1)
    strategy = sub(spec, "strategy")
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
    if strategy["type"] == "RollingUpdate":
        rolling = sub(strategy, "rollingUpdate")
        set_default(rolling, "maxUnavailable", "25%")
        set_default(rolling, "maxSurge", "25%")
    set_default(spec, "revisionHistoryLimit", 10)
    set_default(spec, "progressDeadlineSeconds", 600)


def replica_set(obj: Obj) -> None:
    """apps/v1 ReplicaSet."""
    _template(obj)
    set_default(obj["spec"], "replicas", 1)


def replication_controller(obj: Obj) -> None:
    """v1 ReplicationController: selector and labels follow the template."""
    _template(obj)
    spec = obj["spec"]
    set_default(spec, "replicas", 1)
    labels = dig(spec, "template", "metadata", "labels")
    if labels:
        if not spec.get("selector"):
            spec["selector"] = dict(labels)
        meta = sub(obj, "metadata")
        if not meta.get("labels"):
            meta["labels"] = dict(labels)


def daemon_set(obj: Obj) -> None:
    """apps/v1 DaemonSet."""
    _template(obj)
    spec = obj["spec"]
    strategy = sub(spec, "updateStrategy")
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
    if strategy["type"] == "RollingUpdate":
        rolling = sub(strategy, "rollingUpdate")
        set_default(rolling, "maxUnavailable", 1)
        set_default(rolling, "maxSurge", 0)
    set_default(spec, "revisionHistoryLimit", 10)


def stateful_set(obj: Obj) -> None:
    """apps/v1 StatefulSet."""
    _template(obj)
    spec = obj["spec"]
    set_default(spec, "replicas", 1)
    if not spec.get("podManagementPolicy"):
        spec["podManagementPolicy"] = "OrderedReady"
    strategy = sub(spec, "updateStrategy")
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
    if strategy["type"] == "RollingUpdate":
        set_default(sub(strategy, "rollingUpdate"), "partition", 0)
    set_default(spec, "revisionHistoryLimit", 10)
    retention = sub(spec, "persistentVolumeClaimRetentionPolicy")
    set_default(retention, "whenDeleted", "Retain")
    set_default(retention, "whenScaled", "Retain")


def job_spec(spec: Obj) -> None:
    """The spec of a Job or of a CronJob's template."""
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    set_default(spec, "parallelism", 1)
    set_default(spec, "backoffLimit", 6)
    set_default(spec, "completionMode", "NonIndexed")
    set_default(spec, "suspend", False)
    set_default(spec, "podReplacementPolicy", "TerminatingOrFailed")
    template = sub(spec, "template")
    sub(template, "metadata").setdefault("creationTimestamp", None)
    pod_spec(sub(template, "spec"))


def job(obj: Obj) -> None:
    """batch/v1 Job."""
    job_spec(sub(obj, "spec"))


def cron_job(obj: Obj) -> None:
    """batch/v1 CronJob."""
    spec = sub(obj, "spec")
    set_default(spec, "concurrencyPolicy", "Allow")
    set_default(spec, "suspend", False)
    set_default(spec, "successfulJobsHistoryLimit", 3)
    set_default(spec, "failedJobsHistoryLimit", 1)
    template = sub(sub(spec, "jobTemplate"), "spec")
    pod_spec(sub(sub(template, "template"), "spec"))


def service(obj: Obj) -> None:
    """v1 Service; addresses and node ports are the allocator's."""
    spec = sub(obj, "spec")
    for key, value in (("sessionAffinity", "None"), ("type", "ClusterIP")):
        if not spec.get(key):
            spec[key] = value
    kind = spec["type"]
    if spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        client = sub(sub(spec, "sessionAffinityConfig"), "clientIP")
        set_default(client, "timeoutSeconds", 10800)
    for port in spec.get("ports") or []:
        if not port.get("protocol"):
            port["protocol"] = "TCP"
        if port.get("targetPort") in (None, 0, ""):
            port["targetPort"] = port.get("port")
    if kind in ("NodePort", "LoadBalancer") and not spec.get("externalTrafficPolicy"):
        spec["externalTrafficPolicy"] = "Cluster"
    if kind != "ExternalName":
        set_default(spec, "internalTrafficPolicy", "Cluster")
        if not spec.get("ipFamilies"):
            spec["ipFamilies"] = ["IPv4"]
        set_default(spec, "ipFamilyPolicy", "SingleStack")
    if kind == "LoadBalancer":
        set_default(spec, "allocateLoadBalancerNodePorts", True)
    sub(sub(obj, "status"), "loadBalancer")


def namespace(obj: Obj) -> None:
    """v1 Namespace."""
    meta = sub(obj, "metadata")
    if meta.get("name"):
        sub(meta, "labels")["kubernetes.io/metadata.name"] = meta["name"]


def secret(obj: Obj) -> None:
    """v1 Secret: ``stringData`` is written into ``data``."""
    if not obj.get("type"):
        obj["type"] = "Opaque"
    plain = obj.pop("stringData", None)
    if isinstance(plain, dict):
        data = sub(obj, "data")
        for key, value in plain.items():
            data[key] = base64.b64encode(str(value).encode()).decode()


def endpoints(obj: Obj) -> None:
    """v1 Endpoints."""
    for subset in items(obj, "subsets"):
        for port in subset.get("ports") or []:
            if not port.get("protocol"):
                port["protocol"] = "TCP"


def endpoint_slice(obj: Obj) -> None:
    """discovery.k8s.io/v1 EndpointSlice."""
    for port in items(obj, "ports"):
        set_default(port, "name", "")
        set_default(port, "protocol", "TCP")
    if obj.get("endpoints") is None:
        obj["endpoints"] = []
    if obj.get("ports") is None:
        obj["ports"] = []


def autoscaler(obj: Obj) -> None:
    """autoscaling/v2 HorizontalPodAutoscaler."""
    spec = sub(obj, "spec")
    set_default(spec, "minReplicas", 1)
    if not spec.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        resource = {"name": "cpu", "target": target}
        spec["metrics"] = [{"type": "Resource", "resource": resource}]


def claim(obj: Obj) -> None:
    """v1 PersistentVolumeClaim."""
    set_default(sub(obj, "spec"), "volumeMode", "Filesystem")
    set_default(sub(obj, "status"), "phase", "Pending")


def volume(obj: Obj) -> None:
    """v1 PersistentVolume."""
    spec = sub(obj, "spec")
    set_default(spec, "persistentVolumeReclaimPolicy", "Retain")
    set_default(spec, "volumeMode", "Filesystem")
    set_default(sub(obj, "status"), "phase", "Pending")


def storage_class(obj: Obj) -> None:
    """storage.k8s.io/v1 StorageClass."""
    set_default(obj, "reclaimPolicy", "Delete")
    set_default(obj, "volumeBindingMode", "Immediate")


def priority_class(obj: Obj) -> None:
    """scheduling.k8s.io/v1 PriorityClass."""
    set_default(obj, "preemptionPolicy", "PreemptLowerPriority")


def definition(obj: Obj) -> None:
    """apiextensions.k8s.io/v1 CustomResourceDefinition."""
    spec = sub(obj, "spec")
    names = sub(spec, "names")
    kind = str(names.get("kind") or "")
    if not names.get("singular"):
        names["singular"] = kind.lower()
    if not names.get("listKind") and kind:
        names["listKind"] = f"{kind}List"
    set_default(spec, "conversion", {"strategy": "None"})


def network_policy(obj: Obj) -> None:
    """networking.k8s.io/v1 NetworkPolicy."""
    spec = sub(obj, "spec")
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress"] + (["Egress"] if spec.get("egress") else [])
    for rule in items(spec, "ingress") + items(spec, "egress"):
        for port in rule.get("ports") or []:
            set_default(port, "protocol", "TCP")


def role_binding(obj: Obj) -> None:
    """rbac.authorization.k8s.io/v1 RoleBinding and ClusterRoleBinding."""
    set_default(sub(obj, "roleRef"), "apiGroup", "rbac.authorization.k8s.io")
    for subject in items(obj, "subjects"):
        if subject.get("kind") in ("User", "Group"):
            set_default(subject, "apiGroup", "rbac.authorization.k8s.io")


def node(obj: Obj) -> None:
    """v1 Node."""
    sub(obj, "spec")
    sub(obj, "status")


def nothing(obj: Any) -> None:
    """Kinds without defaults."""
