"""The arithmetic of rolling updates; pure.

Source: k8s.io/kubernetes/pkg/controller/deployment/util/deployment_util.go and rolling.go.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Size(NamedTuple):
    """One ReplicaSet to the arithmetic: asked for, available, and its ``max-replicas`` mark."""

    replicas: int
    available: int
    max_replicas: int = 0


def scaled_value(value: Any, total: int, *, round_up: bool) -> int:
    """An int-or-percent against a total; 0 for what is neither."""
    if isinstance(value, str) and value.endswith("%"):
        try:
            share = int(value[:-1]) * total
        except ValueError:
            return 0
        return math.ceil(share / 100) if round_up else share // 100
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        return 0


def fenceposts(deployment: Mapping[str, Any], replicas: int) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods; never both zero (ResolveFenceposts)."""
    strategy = deployment["spec"].get("strategy") or {}
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return 0, 0
    rolling = strategy.get("rollingUpdate") or {}
    surge = scaled_value(rolling.get("maxSurge", "25%"), replicas, round_up=True)
    unavailable = scaled_value(rolling.get("maxUnavailable", "25%"), replicas, round_up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, replicas)


def new_size(wanted: int, surge: int, new: int, total: int) -> int:
    """What the new ReplicaSet may grow to now (NewRSNewReplicas); it shrinks to ``wanted``."""
    if new >= wanted:
        return wanted
    return new + max(0, min(wanted + surge - total, wanted - new))


def shrink_old(wanted: int, unavailable: int, new: Size, old: Sequence[Size]) -> tuple[int, ...]:
    """New sizes of the old ReplicaSets, oldest first (reconcileOldReplicaSets).

    Never leaves fewer than ``wanted - unavailable`` pods available: unhealthy old pods go first,
    then healthy ones as far as others stand in.
    """
    sizes = [rs.replicas for rs in old]
    min_available = wanted - unavailable
    total = new.replicas + sum(sizes)
    room = total - min_available - max(0, new.replicas - new.available)
    if not sum(sizes) or room <= 0:
        return tuple(sizes)
    for index, rs in enumerate(old):
        unhealthy = min(room, max(0, sizes[index] - rs.available))
        sizes[index] -= unhealthy
        room -= unhealthy
    # A status not yet refreshed after a shrink counts pods that are going: spec bounds it.
    available = min(new.available, new.replicas)
    available += sum(min(rs.available, size) for rs, size in zip(old, sizes, strict=True))
    spare = available - min_available
    for index in range(len(sizes)):
        step = max(0, min(sizes[index], spare))
        sizes[index] -= step
        spare -= step
    return tuple(sizes)


def proportional(
    wanted: int, surge: int, status_replicas: int, sizes: Sequence[Size]
) -> tuple[int, ...]:
    """New sizes when a rollout in flight is scaled; ``sizes`` in upstream's order (see below).

    The caller sorts larger first (newer first when growing, older first when shrinking); rounding
    leftovers go to the first that can take them.
    """
    allowed = wanted + surge if wanted > 0 else 0
    to_add = allowed - sum(rs.replicas for rs in sizes)
    added = 0
    result = []
    for rs in sizes:
        if to_add:
            share = _fraction(rs, wanted, surge, status_replicas)
            rest = to_add - added
            step = min(share, rest) if to_add > 0 else max(share, rest)
            # A share never works against the direction of the scaling.
            step = max(0, step) if to_add > 0 else min(0, step)
        else:
            step = 0
        added += step
        result.append(rs.replicas + step)
    left = to_add - added
    for index, size in enumerate(result):
        # Growth goes to the first whole; a shrink goes on where the first has nothing to give.
        result[index] = max(0, size + left)
        left -= result[index] - size
    return tuple(result)


def _fraction(rs: Size, wanted: int, surge: int, status_replicas: int) -> int:
    if wanted == 0:
        return -rs.replicas
    annotated = rs.max_replicas or status_replicas
    if not annotated:
        return 0
    return math.floor(rs.replicas * (wanted + surge) / annotated + 0.5) - rs.replicas
