"""Which resources an API server of Podwire serves, and the registry that holds them.

Discovery, routes, OpenAPI and tables are all made from these records, so a new kind (or a
CustomResourceDefinition) is one more record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from emulator.apimachinery.status import no_such_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.apimachinery.columns import Printer

ALL_VERBS: Final = (
    "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
)  # fmt: skip
CREATE_ONLY: Final = ("create",)
READ_WRITE: Final = ("get", "patch", "update")


class Subresource(NamedTuple):
    """``pods/log``: its own kind and group-version where they differ from the parent's."""

    name: str
    kind: str
    verbs: tuple[str, ...]
    group: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class ResourceType:
    """One resource of one group and version."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[Subresource, ...] = ()
    schema: str = ""
    storage: str = ""
    printer: Printer | None = None
    singular_name: str = ""
    storage_version: str = ""

    @property
    def singular(self) -> str:
        """``deployment``."""
        return self.singular_name or self.kind.lower()

    @property
    def group_version(self) -> str:
        """``apps/v1``, ``v1`` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def directory(self) -> str:
        """The name below ``/registry/`` in etcd; a few are older than their resource's name.

        With a slash in front it is a whole key: the resource is kept where others keep it too, with
        ``storage_version`` as its apiVersion.
        """
        return self.storage or self.plural

    @property
    def stored(self) -> bool:
        """False for reviews, which are answered and forgotten."""
        return "get" in self.verbs

    def subresource(self, name: str) -> Subresource | None:
        """The subresource of that name, None if there is none."""
        return next((s for s in self.subresources if s.name == name), None)


def _status(kind: str) -> Subresource:
    return Subresource("status", kind, READ_WRITE)


def _proxy(kind: str) -> Subresource:
    return Subresource(
        "proxy", f"{kind}ProxyOptions", ("create", "delete", "get", "patch", "update")
    )


_SCALE: Final = Subresource("scale", "Scale", READ_WRITE, "autoscaling", "v1")


def _core(kind: str, plural: str, *short: str, **more: Any) -> ResourceType:
    return _in("", "core", "v1", kind, plural, *short, **more)


def _in(
    group: str, pack: str, version: str, kind: str, plural: str, *short: str, **more: Any
) -> ResourceType:
    schema = f"{pack}.{version}.{kind}"
    return ResourceType(group, version, kind, plural, short_names=short, schema=schema, **more)


_ALL: Final = ("all",)

BUILTIN: Final[tuple[ResourceType, ...]] = (
    _core("ConfigMap", "configmaps", "cm"),
    _core("Endpoints", "endpoints", "ep", storage="services/endpoints"),
    _core("Event", "events", "ev"),
    _core("LimitRange", "limitranges", "limits"),
    _core(
        "Namespace", "namespaces", "ns", namespaced=False,
        verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
        subresources=(Subresource("finalize", "Namespace", ("update",)), _status("Namespace")),
    ),
    _core(
        "Node", "nodes", "no", namespaced=False, storage="minions",
        subresources=(_proxy("Node"), _status("Node")),
    ),
    _core("PersistentVolumeClaim", "persistentvolumeclaims", "pvc",
          subresources=(_status("PersistentVolumeClaim"),)),
    _core("PersistentVolume", "persistentvolumes", "pv", namespaced=False,
          subresources=(_status("PersistentVolume"),)),
    _core(
        "Pod", "pods", "po", categories=_ALL,
        subresources=(
            Subresource("attach", "PodAttachOptions", ("create", "get")),
            Subresource("binding", "Binding", CREATE_ONLY),
            Subresource("eviction", "Eviction", CREATE_ONLY, "policy", "v1"),
            Subresource("exec", "PodExecOptions", ("create", "get")),
            Subresource("log", "Pod", ("get",)),
            Subresource("portforward", "PodPortForwardOptions", ("create", "get")),
            _proxy("Pod"),
            _status("Pod"),
        ),
    ),
    _core("PodTemplate", "podtemplates"),
    _core(
        "ReplicationController", "replicationcontrollers", "rc", categories=_ALL,
        storage="controllers",
        subresources=(_SCALE, _status("ReplicationController")),
    ),
    _core("ResourceQuota", "resourcequotas", "quota", subresources=(_status("ResourceQuota"),)),
    _core("Secret", "secrets"),
    _core(
        "ServiceAccount", "serviceaccounts", "sa",
        subresources=(
            Subresource("token", "TokenRequest", CREATE_ONLY, "authentication.k8s.io", "v1"),
        ),
    ),
    _core(
        "Service", "services", "svc", categories=_ALL, storage="services/specs",
        subresources=(_proxy("Service"), _status("Service")),
    ),
    _in("apps", "apps", "v1", "ControllerRevision", "controllerrevisions"),
    _in("apps", "apps", "v1", "DaemonSet", "daemonsets", "ds", categories=_ALL,
        subresources=(_status("DaemonSet"),)),
    _in("apps", "apps", "v1", "Deployment", "deployments", "deploy", categories=_ALL,
        subresources=(_SCALE, _status("Deployment"))),
    _in("apps", "apps", "v1", "ReplicaSet", "replicasets", "rs", categories=_ALL,
        subresources=(_SCALE, _status("ReplicaSet"))),
    _in("apps", "apps", "v1", "StatefulSet", "statefulsets", "sts", categories=_ALL,
        subresources=(_SCALE, _status("StatefulSet"))),
    _in("events.k8s.io", "events", "v1", "Event", "events", "ev"),
    _in("authentication.k8s.io", "authentication", "v1", "SelfSubjectReview", "selfsubjectreviews",
        namespaced=False, verbs=CREATE_ONLY),
    _in("authorization.k8s.io", "authorization", "v1", "SelfSubjectAccessReview",
        "selfsubjectaccessreviews", namespaced=False, verbs=CREATE_ONLY),
    _in("authorization.k8s.io", "authorization", "v1", "SelfSubjectRulesReview",
        "selfsubjectrulesreviews", namespaced=False, verbs=CREATE_ONLY),
    _in("autoscaling", "autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers",
        "hpa", categories=_ALL, subresources=(_status("HorizontalPodAutoscaler"),)),
    _in("autoscaling", "autoscaling", "v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers",
        "hpa", categories=_ALL, subresources=(_status("HorizontalPodAutoscaler"),)),
    _in("batch", "batch", "v1", "CronJob", "cronjobs", "cj", categories=_ALL,
        subresources=(_status("CronJob"),)),
    _in("batch", "batch", "v1", "Job", "jobs", categories=_ALL, subresources=(_status("Job"),)),
    _in("networking.k8s.io", "networking", "v1", "IngressClass", "ingressclasses",
        namespaced=False),
    _in("networking.k8s.io", "networking", "v1", "Ingress", "ingresses", "ing", storage="ingress",
        subresources=(_status("Ingress"),)),
    _in("networking.k8s.io", "networking", "v1", "NetworkPolicy", "networkpolicies", "netpol"),
    _in("policy", "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", "pdb",
        subresources=(_status("PodDisruptionBudget"),)),
    _in("rbac.authorization.k8s.io", "rbac", "v1", "ClusterRoleBinding", "clusterrolebindings",
        namespaced=False),
    _in("rbac.authorization.k8s.io", "rbac", "v1", "ClusterRole", "clusterroles",
        namespaced=False),
    _in("rbac.authorization.k8s.io", "rbac", "v1", "RoleBinding", "rolebindings"),
    _in("rbac.authorization.k8s.io", "rbac", "v1", "Role", "roles"),
    _in("storage.k8s.io", "storage", "v1", "StorageClass", "storageclasses", "sc",
        namespaced=False),
    _in("apiextensions.k8s.io", "apiextensions", "v1", "CustomResourceDefinition",
        "customresourcedefinitions", "crd", "crds", namespaced=False,
        categories=("api-extensions",), subresources=(_status("CustomResourceDefinition"),)),
    _in("scheduling.k8s.io", "scheduling", "v1", "PriorityClass", "priorityclasses", "pc",
        namespaced=False),
    _in("coordination.k8s.io", "coordination", "v1", "Lease", "leases"),
    _in("discovery.k8s.io", "discovery", "v1", "EndpointSlice", "endpointslices"),
)  # fmt: skip


class Registry:
    """The served resources in discovery order; changes at run time are allowed."""

    def __init__(self, types: Iterable[ResourceType] = BUILTIN) -> None:
        self._types: dict[tuple[str, str, str], ResourceType] = {}
        self.generation = 0
        for resource in types:
            self.add(resource)

    def add(self, resource: ResourceType) -> None:
        """Serve a resource; replaces one of the same group, version and plural."""
        self._types[resource.group, resource.version, resource.plural] = resource
        self.generation += 1

    def remove(self, resource: ResourceType) -> None:
        """Stop serving a resource; an unknown one is ignored."""
        self._types.pop((resource.group, resource.version, resource.plural), None)
        self.generation += 1

    def find(self, group: str, version: str, plural: str) -> ResourceType | None:
        """The resource of a path, None if it is not served."""
        return self._types.get((group, version, plural))

    def get(self, group: str, version: str, plural: str) -> ResourceType:
        """The resource of a path; StatusError 404 if it is not served."""
        found = self.find(group, version, plural)
        if found is None:
            raise no_such_path()
        return found

    def all(self) -> tuple[ResourceType, ...]:
        """Every resource, in discovery order."""
        return tuple(self._types.values())

    def groups(self) -> dict[str, list[str]]:
        """Group → its versions, in discovery order; the core group is ""."""
        out: dict[str, list[str]] = {}
        for group, version, _ in self._types:
            versions = out.setdefault(group, [])
            if version not in versions:
                versions.append(version)
        return out

    def resources(self, group: str, version: str) -> list[ResourceType]:
        """The resources of one group and version."""
        return [r for (g, v, _), r in self._types.items() if (g, v) == (group, version)]
