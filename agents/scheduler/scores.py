"""Which of the nodes that fit is the best for a pod; pure.

Weights as upstream's default profile where the plugin exists: spreading 2, balanced 1,
least allocated 1, taint toleration 3, node affinity 2.
Source: k8s.io/kubernetes/pkg/scheduler/framework/plugins.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from emulator.kubeclient.placement import matches_term, tolerates

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from agents.scheduler.cluster import NodeInfo, PodInfo

MAX_SCORE = 100
SPREAD_WEIGHT = 2
TAINT_WEIGHT = 3
AFFINITY_WEIGHT = 2


def best_node(pod: PodInfo, fitting: Sequence[NodeInfo], rng: random.Random) -> NodeInfo:
    """The node with the highest score; ``rng`` picks among equals (selectHost)."""
    spread = _invert([info.groups[pod.group] for info in fitting])
    taints = _invert([_preferred_taints(pod, info) for info in fitting])
    affinity = _normalise([_preferred_affinity(pod, info) for info in fitting])
    best: list[NodeInfo] = []
    highest = -1.0
    for index, info in enumerate(fitting):
        score = (
            SPREAD_WEIGHT * spread[index]
            + TAINT_WEIGHT * taints[index]
            + AFFINITY_WEIGHT * affinity[index]
            + _least_allocated(pod, info)
            + _balanced(pod, info)
        )
        if score > highest:
            best, highest = [info], score
        elif score == highest:
            best.append(info)
    return best[0] if len(best) == 1 else rng.choice(best)


def _shares(pod: PodInfo, info: NodeInfo) -> list[float]:
    """Used share of cpu and memory with the pod on the node, each at most 1."""
    shares = []
    for index, name in enumerate(("cpu", "memory")):
        capacity = info.allocatable.get(name, 0)
        if capacity:
            shares.append(min(1.0, (info.nonzero[index] + pod.nonzero[index]) / capacity))
    return shares


def _least_allocated(pod: PodInfo, info: NodeInfo) -> int:
    shares = _shares(pod, info)
    if not shares:
        return 0
    return math.floor(sum(MAX_SCORE * (1 - share) for share in shares) / len(shares))


def _balanced(pod: PodInfo, info: NodeInfo) -> int:
    shares = _shares(pod, info)
    if len(shares) < 2:
        return MAX_SCORE
    # The standard deviation of two numbers is half their distance.
    return math.floor(MAX_SCORE * (1 - abs(shares[0] - shares[1]) / 2))


def _preferred_taints(pod: PodInfo, info: NodeInfo) -> int:
    tolerations = pod.spec.get("tolerations") or ()
    taints = ((info.node or {}).get("spec") or {}).get("taints") or ()
    return sum(
        taint.get("effect") == "PreferNoSchedule"
        and not any(tolerates(toleration, taint) for toleration in tolerations)
        for taint in taints
    )


def _preferred_affinity(pod: PodInfo, info: NodeInfo) -> int:
    affinity = (pod.spec.get("affinity") or {}).get("nodeAffinity") or {}
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    node = info.node or {"metadata": {"name": info.name}}
    return sum(
        int(term.get("weight") or 0)
        for term in preferred
        if matches_term(term.get("preference") or {}, node)
    )


def _normalise(values: Sequence[int]) -> list[int]:
    highest = max(values, default=0)
    return [MAX_SCORE * value // highest if highest else 0 for value in values]


def _invert(values: Sequence[int]) -> list[int]:
    """Few is good: 100 for none, 0 for the most."""
    return [MAX_SCORE - score for score in _normalise(values)]
