"""The kinds the agents speak of, as the API server's paths name them."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import quote


class Resource(NamedTuple):
    """One kind: where it lives and what it is called."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """``v1`` or ``apps/v1``, as objects carry it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """``pods`` or ``deployments.apps``, as error texts name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of a collection, an object or a subresource.

        An empty ``namespace`` of a namespaced kind is the collection over all namespaces.
        """
        parts = ["/api", self.version] if not self.group else ["/apis", self.group, self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


PODS: Final = Resource("", "v1", "pods", "Pod", True)
SERVICES: Final = Resource("", "v1", "services", "Service", True)
ENDPOINTS: Final = Resource("", "v1", "endpoints", "Endpoints", True)
NODES: Final = Resource("", "v1", "nodes", "Node", False)
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", False)
EVENTS: Final = Resource("", "v1", "events", "Event", True)
CONFIGMAPS: Final = Resource("", "v1", "configmaps", "ConfigMap", True)
SECRETS: Final = Resource("", "v1", "secrets", "Secret", True)
SERVICEACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount", True)
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment", True)
REPLICASETS: Final = Resource("apps", "v1", "replicasets", "ReplicaSet", True)
DAEMONSETS: Final = Resource("apps", "v1", "daemonsets", "DaemonSet", True)
CONTROLLERREVISIONS: Final = Resource(
    "apps", "v1", "controllerrevisions", "ControllerRevision", True
)
JOBS: Final = Resource("batch", "v1", "jobs", "Job", True)
ENDPOINTSLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", True)
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease", True)
DEFINITIONS: Final = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False
)
NETWORKPOLICIES: Final = Resource(
    "networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True
)
