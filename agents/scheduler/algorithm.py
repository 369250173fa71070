"""One scheduling decision: filter, then score; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agents.scheduler.filters import fit_error, reasons_against
from agents.scheduler.scores import best_node
from agents.scheduler.topology import topology_for

if TYPE_CHECKING:
    import random

    from agents.scheduler.cluster import ClusterState, PodInfo


class Decision(NamedTuple):
    """A node's name, or why there is none (the FailedScheduling event's text)."""

    node: str
    message: str = ""


def schedule(pod: PodInfo, cluster: ClusterState, rng: random.Random) -> Decision:
    """Choose a node for ``pod`` among those of ``cluster``; changes nothing."""
    nodes = cluster.nodes()
    topology = topology_for(pod, nodes, guarded=cluster.guarded)
    fitting = []
    reasons = []
    for info in nodes:
        against = reasons_against(pod, info)
        if topology is not None and not against and (reason := topology.reason_against(info)):
            against = [reason]
        if against:
            reasons.append(against)
        else:
            fitting.append(info)
    if not fitting:
        return Decision("", fit_error(len(nodes), reasons))
    return Decision(best_node(pod, fitting, rng).name)
