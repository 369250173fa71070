"""Calico's resources as CustomResourceDefinitions, for ``kubectl get ippools`` (pure).

The API server keeps the objects where Calico keeps its own (``resources.ROOT``), so kubectl and
calicoctl change the same thing.  Source: projectcalico/calico
libcalico-go/config/crd/crd.projectcalico.org_*.yaml.
"""

from __future__ import annotations

from typing import Any, Final

from agents.calico.resources import KINDS

GROUP: Final = "crd.projectcalico.org"
VERSION: Final = "v1"
# The rest has a Kubernetes object of its own: Node, Pod (WorkloadEndpoint), Namespace (Profile).
SERVED: Final = (
    "BGPConfiguration",
    "BGPFilter",
    "BGPPeer",
    "ClusterInformation",
    "FelixConfiguration",
    "GlobalNetworkPolicy",
    "GlobalNetworkSet",
    "HostEndpoint",
    "IPPool",
    "IPReservation",
    "KubeControllersConfiguration",
    "NetworkPolicy",
    "NetworkSet",
    "Tier",
)


def definition(name: str) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    kind = KINDS[name]
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": kind.plural,
                "singular": name.lower(),
            },
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": schema,
                            },
                        }
                    },
                }
            ],
        },
    }


def definitions() -> tuple[dict[str, Any], ...]:
    """All of them, in the order of their names."""
    return tuple(definition(name) for name in SERVED)
