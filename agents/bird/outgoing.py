"""How a route leaves to a peer: whether it may, and with which attributes.

Source: BIRD's proto/bgp/attrs.c (bgp_preexport, bgp_update_attrs), RFC 4271 §5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agents.bird.attributes import (
    DEFAULT_LOCAL_PREF,
    GRACEFUL_SHUTDOWN,
    LLGR_STALE,
    NO_ADVERTISE,
    NO_EXPORT,
    NO_EXPORT_SUBCONFED,
    Attrs,
    has_community,
    path_prepend,
)
from agents.bird.config import Dest, NextHopRule
from agents.bird.filter_eval import FRESH_MED, FRESH_NEXT_HOP
from agents.bird.filters import Source

if TYPE_CHECKING:
    from agents.bird.channel import Channel
    from agents.bird.config import ChannelConfig
    from agents.bird.filter_eval import Leaf
    from agents.bird.rib import Path


class Terms(NamedTuple):
    """What of a session decides how routes leave; ``next_hop`` is the own address."""

    internal: bool
    local_as: int
    as4: bool
    limit: int
    next_hop: bytes
    rr_client: bool = False
    cluster_id: int = 0
    rs_client: bool = False
    long_lived: bool = False
    graceful_shutdown: bool = False
    default_local_pref: int = DEFAULT_LOCAL_PREF
    # The link to a neighbour without ``multihop``, and its address there: other neighbours' terms
    # are often equal, and what leaves to one of them leaves to all.
    single_hop_dev: str = ""
    neighbor: bytes = b""


def may_export(path: Path, peer: Channel, terms: Terms) -> bool:
    """bgp_preexport: split horizon, iBGP rules, well-known communities."""
    source = path.channel
    if source is peer:
        return False
    if (
        source.source is Source.BGP
        and terms.internal
        and not source.external
        and not terms.rr_client
        and not source.cluster_id
    ):
        return False
    communities = path.attrs.communities
    if communities:
        if has_community(communities, NO_ADVERTISE):
            return False
        if not terms.internal and (
            has_community(communities, NO_EXPORT) or has_community(communities, NO_EXPORT_SUBCONFED)
        ):
            return False
        if not terms.long_lived and has_community(communities, LLGR_STALE):
            return False
    return True


def outgoing(leaf: Leaf, path: Path, terms: Terms, config: ChannelConfig) -> Attrs:
    """The attributes with which a route leaves (bgp_update_attrs)."""
    attrs = leaf.attrs
    source = path.channel
    med, local_pref, as_path = attrs.med, attrs.local_pref, attrs.as_path
    originator, clusters, extended = (
        attrs.originator_id,
        attrs.cluster_list,
        attrs.ext_communities,
    )
    if terms.internal:
        if local_pref is None:
            local_pref = terms.default_local_pref
        if source.source is Source.BGP and not source.external:
            if originator is None:
                originator = source.router_id
            cluster = terms.cluster_id if terms.rr_client else source.cluster_id
            clusters = cluster.to_bytes(4, "big") + clusters
    else:
        local_pref, originator, clusters = None, None, b""
        if not terms.rs_client:
            as_path = path_prepend(as_path, terms.local_as)
            if not leaf.fresh & FRESH_MED:
                med = None
        extended = _transitive(extended)
    communities = attrs.communities
    if terms.graceful_shutdown and not has_community(communities, GRACEFUL_SHUTDOWN):
        communities += GRACEFUL_SHUTDOWN.to_bytes(4, "big")
    return Attrs(
        attrs.origin or 0,
        as_path,
        _next_hop(leaf, path, terms, config),
        med,
        local_pref,
        attrs.atomic_aggregate,
        attrs.aggregator,
        communities,
        originator,
        clusters,
        extended,
        attrs.large_communities,
        attrs.unknown,
        preference=0,
    )


def _transitive(extended: bytes) -> bytes:
    """Extended communities that may cross an AS border (RFC 4360 §2)."""
    parts = [extended[at : at + 8] for at in range(0, len(extended), 8)]
    return b"".join(part for part in parts if not part[0] & 0x40)


def _next_hop(leaf: Leaf, path: Path, terms: Terms, config: ChannelConfig) -> bytes:
    """NEXT_HOP by RFC 4271 §5.1.3 with BIRD's choices (bgp_use_next_hop, bgp_use_gateway)."""
    have = leaf.attrs.next_hop
    same_size = len(have) in ((4,) if len(terms.next_hop) == 4 else (16, 32))
    if config.next_hop is not NextHopRule.SELF:
        if have and same_size:
            if (
                config.next_hop is NextHopRule.KEEP
                or leaf.fresh & FRESH_NEXT_HOP
                or terms.internal
                or terms.rs_client
            ):
                return have
            if path.ways and _is_third_party(have, path.ways[0].dev, terms):
                return have
        elif path.dest is Dest.UNICAST and len(path.ways) == 1 and path.hop is None:
            way = path.ways[0]
            if way.gateway and (terms.internal or _is_third_party(way.gateway, way.dev, terms)):
                return way.gateway
    return terms.next_hop


def _is_third_party(hop: bytes, dev: str, terms: Terms) -> bool:
    """True for somebody else on the neighbour's own link, whom it can reach without us."""
    return dev == terms.single_hop_dev != "" and hop != terms.neighbor
