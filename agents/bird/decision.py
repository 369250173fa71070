"""Which route is best: BIRD's order (nest/rt-table.c rte_better, proto/bgp/attrs.c).

preference, resolvable next hop, not long-lived stale, LOCAL_PREF, AS_PATH length, ORIGIN, MED,
eBGP before iBGP, IGP metric, age (``prefer older``), router id (ORIGINATOR_ID), CLUSTER_LIST
length, neighbour address.  MED is compared between routes of one neighbour AS only; to be
independent of the order of arrival that is done as BIRD's ``deterministic med`` does: the best of
each neighbour AS first, then the best of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.bird.attributes import DEFAULT_LOCAL_PREF, path_first, path_length
from agents.bird.filters import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.bird.rib import Path


def _head(path: Path) -> tuple[int, int, int, int, int, int]:
    """What comes before MED."""
    attrs = path.attrs
    local_pref = attrs.local_pref
    return (
        -attrs.preference,
        0 if path.reachable else 1,
        1 if path.long_lived_stale else 0,
        -(DEFAULT_LOCAL_PREF if local_pref is None else local_pref),
        path_length(attrs.as_path) if path.channel.path_metric else 0,
        attrs.origin or 0,
    )


def _tail(path: Path) -> tuple[int, int, float, int, int, int, int]:
    """What comes after MED."""
    attrs = path.attrs
    channel = path.channel
    router_id = attrs.originator_id
    return (
        0 if channel.external else 1,
        path.igp_metric,
        path.learned_at if channel.prefer_older and channel.external else 0.0,
        channel.router_id if router_id is None else router_id,
        len(attrs.cluster_list),
        channel.neighbor,
        path.path_id,
    )


def select(paths: Sequence[Path]) -> Path:
    """The best of one network's routes (at least one)."""
    if len(paths) == 1:
        return paths[0]
    best: dict[int, tuple[tuple[object, ...], Path]] = {}
    for path in paths:
        med = path.attrs.med or 0
        # With `med metric` MED counts between all neighbours, so all are one group.
        group = -1 if path.channel.med_metric else path_first(path.attrs.as_path)
        rank = (_head(path), med, _tail(path))
        have = best.get(group)
        if have is None or rank < have[0]:
            best[group] = (rank, path)
    if len(best) == 1:
        return next(iter(best.values()))[1]
    return min((path for _, path in best.values()), key=lambda path: (_head(path), _tail(path)))


def mergeable(best: Path, other: Path) -> bool:
    """True if ``merge paths`` may put both into one forwarding entry (bgp_rte_mergable)."""
    if other is best:
        return True
    if best.channel.source is not Source.BGP or other.channel.source is not Source.BGP:
        return False
    if not (best.reachable and other.reachable):
        return False
    same_as = path_first(best.attrs.as_path) == path_first(other.attrs.as_path)
    return (
        _head(best) == _head(other)
        and (not same_as or (best.attrs.med or 0) == (other.attrs.med or 0))
        and best.channel.external == other.channel.external
        and best.igp_metric == other.igp_metric
    )
