"""The Node object this kubelet keeps up to date, and its lease (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from emulator.kubeclient.meta import format_micro_time, format_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.kubelet.config import KubeletConfig

    Object = dict[str, Any]

UNDERLAY_ANNOTATION: Final = "podwire.dev/underlay"
LEASE_NAMESPACE: Final = "kube-node-lease"
LEASE_DURATION_S: Final = 40
NETWORK_NOT_READY: Final = (
    "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
    "message:Network plugin returns error: {}"
)


def node_labels(name: str, more: Mapping[str, str], era: str = "modern") -> dict[str, str]:
    """The labels a kubelet sets at registration; ``more`` are those of its own node."""
    labels = {"kubernetes.io/hostname": name}
    if era == "2017":
        labels |= {"beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux"}
    else:
        labels = {
            "beta.kubernetes.io/arch": "amd64",
            "beta.kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            **labels,
            "kubernetes.io/os": "linux",
        }
    return {**labels, **more}


def new_node(config: KubeletConfig, status: Object) -> Object:
    """The Node as it is registered."""
    spec: Object = {}
    if config.taints:
        spec["taints"] = [dict(taint) for taint in config.taints]
    if config.unschedulable:
        spec["unschedulable"] = True
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": config.node_name,
            "labels": node_labels(config.node_name, config.labels, config.era),
            "annotations": {
                UNDERLAY_ANNOTATION: config.underlay_host,
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": spec,
        "status": status,
    }


def node_status(
    config: KubeletConfig,
    *,
    not_ready: str | None,
    known: Mapping[str, Any] | None,
    boot_id: str,
    now: float,
    port: int,
) -> Object:
    """``status`` of the node; ``not_ready`` is the network's complaint, None when it is fine.

    ``known`` is the object as last read: unchanged conditions keep their transition times and
    conditions of others are kept whole.  ``now`` is Unix seconds, ``boot_id`` this kernel's.
    """
    resources = {
        "cpu": str(config.cpus),
        "ephemeral-storage": "20Gi",
        "hugepages-2Mi": "0",
        "memory": f"{config.memory_mib * 1024}Ki",
        "pods": str(config.max_pods),
    }
    machine = boot_id.replace("-", "")
    return {
        "capacity": resources,
        "allocatable": dict(resources),
        "conditions": _conditions(config, not_ready, known, now),
        "addresses": [
            {"type": "InternalIP", "address": config.node_ip},
            {"type": "Hostname", "address": config.node_name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": {
            "machineID": machine,
            "systemUUID": boot_id,
            "bootID": boot_id,
            "kernelVersion": "6.1.0-podwire",
            "osImage": "Podwire emulated Linux",
            "containerRuntimeVersion": config.runtime_version,
            "kubeletVersion": config.kubelet_version,
            "kubeProxyVersion": config.kubelet_version,
            "operatingSystem": "linux",
            "architecture": "amd64",
        },
    }


def _wanted(config: KubeletConfig, not_ready: str | None) -> list[tuple[str, str, str, str]]:
    """(type, status, reason, message) of this kubelet's conditions."""
    wanted = [
        (
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        (
            "PIDPressure",
            "False",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]
    if not_ready is not None:
        wanted[-1] = ("Ready", "False", "KubeletNotReady", NETWORK_NOT_READY.format(not_ready))
    else:
        wanted.insert(0, ("NetworkUnavailable", "False", *config.network_up))
    return wanted


def conditions_differ(
    config: KubeletConfig, known: Mapping[str, Any] | None, not_ready: str | None
) -> bool:
    """Whether the Node as last seen says other than this kubelet about its own conditions."""
    if known is None:
        return True
    conditions = (known.get("status") or {}).get("conditions") or ()
    said = {each["type"]: (each.get("status"), each.get("reason")) for each in conditions}
    return any(
        said.get(kind) != (status, reason) for kind, status, reason, _ in _wanted(config, not_ready)
    )


def _conditions(
    config: KubeletConfig, not_ready: str | None, known: Mapping[str, Any] | None, now: float
) -> list[Object]:
    wanted = _wanted(config, not_ready)
    before = {
        each["type"]: each for each in ((known or {}).get("status") or {}).get("conditions") or ()
    }
    mine = [kind for kind, *_ in wanted]
    stamp = format_time(now)
    conditions = []
    for kind, status, reason, message in wanted:
        old = before.get(kind)
        since = stamp
        if old is not None and old.get("status") == status:
            since = old.get("lastTransitionTime") or stamp
        conditions.append(
            {
                "type": kind,
                "status": status,
                "lastHeartbeatTime": stamp,
                "lastTransitionTime": since,
                "reason": reason,
                "message": message,
            }
        )
    return conditions + [dict(each) for kind, each in before.items() if kind not in mine]


def node_lease(config: KubeletConfig, node_uid: str, now: float) -> Object:
    """The Lease whose renewTime is the node's heartbeat."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": config.node_name,
            "namespace": LEASE_NAMESPACE,
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "name": config.node_name,
                    "uid": node_uid,
                }
            ],
        },
        "spec": {
            "holderIdentity": config.node_name,
            "leaseDurationSeconds": LEASE_DURATION_S,
            "renewTime": format_micro_time(now),
        },
    }
