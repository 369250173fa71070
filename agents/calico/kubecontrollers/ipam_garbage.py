"""Which addresses and blocks nobody needs any more (pure; remembers what it has seen).

An address is suspected when its pod is gone, and given back once it has been for the grace
period, at once if its node is gone too; all addresses of a handle or none.  An empty block goes
when it was empty for the grace period and is not its node's last.  Tunnel addresses live as long
as their node.
Source: projectcalico/calico kube-controllers/pkg/controllers/node/ipam.go, design/ipam/ipam-gc.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from agents.calico.ipam.block import ReleaseOptions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from agents.calico.ipam.block import AllocationBlock, Attribute
    from agents.calico.net import Cidr, Ip

# spec.controllers.node.leakGracePeriod of KubeControllersConfiguration.
LEAK_GRACE_S: Final = 900.0
_TUNNELS: Final = (
    "ipipTunnelAddress",
    "vxlanTunnelAddress",
    "vxlanV6TunnelAddress",
    "wireguardTunnelAddress",
    "wireguardV6TunnelAddress",
)


class PodFacts(NamedTuple):
    """What the API server says of a pod; no ``ips``: none reported yet."""

    node: str
    ips: tuple[str, ...]


class PodKey(NamedTuple):
    """A pod's namespace and name."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """What to do now: addresses to release, nodes to forget, blocks to give up."""

    leaks: tuple[ReleaseOptions, ...]
    # Pods to ask the API server for once more before their addresses go.
    pods: tuple[PodKey, ...]
    # Nodes that are gone and hold nothing any more: all their blocks go.
    nodes: tuple[str, ...]
    blocks: tuple[Cidr, ...]


class _Use(NamedTuple):
    """One address in use, told apart from a later use by its sequence number."""

    ip: Ip
    handle: str
    sequence_number: int


class IpamGarbage:
    """Looks again and again; ``grace_s`` 0 switches the suspicion of pods off, as upstream."""

    def __init__(self, grace_s: float = LEAK_GRACE_S) -> None:
        self._grace_s = grace_s
        self._suspected: dict[_Use, float] = {}
        # When a block was first seen empty, at which sequence number.
        self._empty: dict[Cidr, tuple[float, int]] = {}

    def look(
        self,
        blocks: Iterable[AllocationBlock],
        pods: Mapping[PodKey, PodFacts],
        nodes: Collection[str],
        *,
        now: float,
    ) -> Garbage:
        """Decide from one look at everything; ``now`` in seconds of any clock that only grows."""
        blocks = list(blocks)
        uses = {
            _Use(ip, attribute.handle_id, number): attribute
            for block in blocks
            for ip, attribute, number in block.held()
        }
        self._suspected = {use: since for use, since in self._suspected.items() if use in uses}
        confirmed = [
            use
            for use, attribute in uses.items()
            if self._is_leak(use, attribute, pods, nodes, now)
        ]
        kept = {use.handle for use in uses if use not in confirmed and use.handle}
        leaks = [use for use in confirmed if use.handle not in kept]
        left: dict[str, int] = {}
        for use, attribute in uses.items():
            node = (attribute.secondary or {}).get("node", "")
            left[node] = left.get(node, 0) + (use not in leaks)
        gone = dict.fromkeys(block.host for block in blocks if block.host)
        keys = dict.fromkeys(key for use in leaks if (key := _pod_of(uses[use])) is not None)
        return Garbage(
            tuple(ReleaseOptions(use.ip, use.handle, use.sequence_number) for use in leaks),
            tuple(keys),
            tuple(node for node in gone if node not in nodes and not left.get(node)),
            tuple(self._empty_blocks(blocks, nodes, now)),
        )

    def _is_leak(
        self,
        use: _Use,
        attribute: Attribute,
        pods: Mapping[PodKey, PodFacts],
        nodes: Collection[str],
        now: float,
    ) -> bool:
        """True for an address that may go now; suspects are remembered."""
        known = attribute.secondary or {}
        node_is_gone = known.get("node") not in nodes
        if known.get("type") in _TUNNELS:
            return node_is_gone
        pod = _pod_of(attribute)
        if pod is None or not use.handle or "node" not in known:
            # Not of a pod, or of a time when nothing was noted: nobody can tell.
            return False
        if _is_used(use.ip, known["node"], pods.get(pod)):
            self._suspected.pop(use, None)
            return False
        if node_is_gone:
            return True
        if self._grace_s <= 0:
            return False
        since = self._suspected.setdefault(use, now)
        return now - since >= self._grace_s

    def _empty_blocks(
        self, blocks: Iterable[AllocationBlock], nodes: Collection[str], now: float
    ) -> list[Cidr]:
        """Blocks empty and untouched for the grace period, never the last of a node."""
        owned: dict[str, list[AllocationBlock]] = {}
        for block in blocks:
            if block.host in nodes:
                owned.setdefault(block.host, []).append(block)
        empty: dict[Cidr, tuple[float, int]] = {}
        due: list[Cidr] = []
        for mine in owned.values():
            left = len(mine)
            for block in mine:
                if not block.is_empty():
                    continue
                since, number = self._empty.get(block.cidr, (now, block.sequence_number))
                if number != block.sequence_number:
                    since = now
                empty[block.cidr] = (since, block.sequence_number)
                if self._grace_s > 0 and now - since >= self._grace_s and left > 1:
                    due.append(block.cidr)
                    left -= 1
        self._empty = empty
        return due


def _pod_of(attribute: Attribute) -> PodKey | None:
    known = attribute.secondary or {}
    if "pod" in known and "namespace" in known:
        return PodKey(known["namespace"], known["pod"])
    return None


def _is_used(ip: Ip, node: str, pod: PodFacts | None) -> bool:
    """True if the pod is where the address was taken and does not say it has another."""
    if pod is None or (pod.node and pod.node != node):
        return False
    return not pod.ips or str(ip) in pod.ips
