"""The scheduler's picture of the cluster: nodes, and what the pods on them take; pure.

A pod is counted on its node from the moment the scheduler decides (assumed), long before the
API server's watch tells of the binding: that is what makes a burst of pods spread.
Source: k8s.io/kubernetes/pkg/scheduler/internal/cache.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.scheduler.resources import amounts, nonzero_requests, pod_requests
from agents.scheduler.topology import Rules, rules_of
from emulator.kubeclient.meta import controller_of, labels_of, name_of, namespace_of, uid_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.scheduler.resources import Amounts

    Object = dict[str, Any]

# Pods a node without an own figure takes; the kubelet's --max-pods default.
DEFAULT_MAX_PODS = 110


class HostPort(NamedTuple):
    """A port of the node a pod takes; an empty ``ip`` means every address."""

    protocol: str
    port: int
    ip: str


class PodInfo(NamedTuple):
    """What scheduling needs to know of a pod, worked out once."""

    uid: str
    namespace: str
    name: str
    spec: Mapping[str, Any]
    requests: Amounts
    nonzero: tuple[int, int]
    host_ports: tuple[HostPort, ...]
    group: str
    """The owner's uid: pods of one group are spread; the pod's own uid if it has no owner."""
    priority: int
    labels: Mapping[str, str]
    rules: Rules

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


def pod_info(pod: Mapping[str, Any]) -> PodInfo:
    """Read a pod."""
    spec = pod["spec"]
    owner = controller_of(pod)
    return PodInfo(
        uid=uid_of(pod),
        namespace=namespace_of(pod),
        name=name_of(pod),
        spec=spec,
        requests={k: v for k, v in pod_requests(spec).items() if v},
        nonzero=nonzero_requests(spec),
        host_ports=_host_ports(spec),
        group=owner["uid"] if owner is not None else uid_of(pod),
        priority=int(spec.get("priority") or 0),
        labels=labels_of(pod),
        rules=rules_of(spec, namespace_of(pod)),
    )


def _host_ports(spec: Mapping[str, Any]) -> tuple[HostPort, ...]:
    found = []
    for container in spec.get("containers") or ():
        for port in container.get("ports") or ():
            number = port.get("hostPort") or 0
            if not number and spec.get("hostNetwork"):
                number = port.get("containerPort") or 0
            if number:
                ip = port.get("hostIP") or ""
                protocol = port.get("protocol") or "TCP"
                found.append(HostPort(protocol, int(number), "" if ip == "0.0.0.0" else ip))
    return tuple(found)


class NodeInfo:
    """One node and the sums over its pods."""

    __slots__ = ("allocatable", "groups", "name", "node", "nonzero", "pods", "requested")

    def __init__(self, name: str) -> None:
        self.name = name
        self.node: Mapping[str, Any] | None = None
        """None while only pods of it are known."""
        self.allocatable: Amounts = {}
        self.pods: dict[str, PodInfo] = {}
        self.requested: Counter[str] = Counter()
        self.nonzero: tuple[int, int] = (0, 0)
        self.groups: Counter[str] = Counter()

    def set_node(self, node: Mapping[str, Any] | None) -> None:
        """Take over a node object."""
        self.node = node
        status = (node or {}).get("status") or {}
        self.allocatable = amounts(status.get("allocatable") or status.get("capacity"))
        self.allocatable.setdefault("pods", DEFAULT_MAX_PODS)

    def add(self, pod: PodInfo) -> None:
        """Count a pod."""
        self.pods[pod.uid] = pod
        self._count(pod, 1)

    def remove(self, uid: str) -> None:
        """Stop counting a pod."""
        pod = self.pods.pop(uid, None)
        if pod is not None:
            self._count(pod, -1)

    def _count(self, pod: PodInfo, sign: int) -> None:
        for name, value in pod.requests.items():
            self.requested[name] += sign * value
        self.nonzero = (
            self.nonzero[0] + sign * pod.nonzero[0],
            self.nonzero[1] + sign * pod.nonzero[1],
        )
        self.groups[pod.group] += sign
        if not self.groups[pod.group]:
            del self.groups[pod.group]


class ClusterState:
    """Nodes by name, in order of arrival, with assumed and confirmed pods."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeInfo] = {}
        # pod uid -> node name
        self._placed: dict[str, str] = {}
        self._assumed: dict[str, None] = {}
        # Placed pods with anti-affinity rules, by uid.
        self._guards: dict[str, None] = {}

    @property
    def guarded(self) -> bool:
        """Some placed pod keeps others away."""
        return bool(self._guards)

    def nodes(self) -> list[NodeInfo]:
        """Nodes that exist."""
        return [info for info in self._nodes.values() if info.node is not None]

    def set_node(self, node: Mapping[str, Any]) -> None:
        """A node was added or changed."""
        self._node(name_of(node)).set_node(node)

    def remove_node(self, name: str) -> None:
        """A node is gone; its pods are remembered in case it comes back."""
        info = self._nodes.get(name)
        if info is not None:
            info.set_node(None)
            self._drop_if_empty(info)

    def assume(self, pod: PodInfo, node: str) -> None:
        """Count a pod on a node before the binding is confirmed."""
        self._place(pod, node)
        self._assumed[pod.uid] = None

    def forget(self, uid: str) -> None:
        """The binding of an assumed pod failed."""
        if uid in self._assumed:
            self.remove_pod(uid)

    def confirm(self, pod: PodInfo, node: str) -> None:
        """The API server shows the pod on a node."""
        self._place(pod, node)
        self._assumed.pop(pod.uid, None)

    def remove_pod(self, uid: str) -> None:
        """A pod is gone or has finished."""
        node = self._placed.pop(uid, None)
        self._assumed.pop(uid, None)
        self._guards.pop(uid, None)
        if node is not None:
            self._nodes[node].remove(uid)
            self._drop_if_empty(self._nodes[node])

    def is_placed(self, uid: str) -> bool:
        """Assumed or confirmed on some node."""
        return uid in self._placed

    def _place(self, pod: PodInfo, node: str) -> None:
        if self._placed.get(pod.uid) != node:
            self.remove_pod(pod.uid)
        else:
            self._nodes[node].remove(pod.uid)
        self._placed[pod.uid] = node
        if pod.rules.away:
            self._guards[pod.uid] = None
        self._node(node).add(pod)

    def _node(self, name: str) -> NodeInfo:
        info = self._nodes.get(name)
        if info is None:
            info = self._nodes[name] = NodeInfo(name)
        return info

    def _drop_if_empty(self, info: NodeInfo) -> None:
        if info.node is None and not info.pods:
            self._nodes.pop(info.name, None)
