"""A node's filters: what goes to peers, what goes into the node's routing table (pure).

The bodies are BIRD's language as agents/bird takes it (``filters``); ``render`` writes the same
bodies as text.  Source: projectcalico/calico confd/etc/calico/confd/templates/{bird,bird_ipam,
bird_aggr}.cfg.template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.bird.filters import (
    Accept,
    AddCommunity,
    All,
    Attr,
    Call,
    CommunityKind,
    Const,
    Defined,
    Filter,
    If,
    IfnameMatches,
    NetIn,
    NetPattern,
    NextHopIn,
    Reject,
    Set,
)
from agents.calico.confd.route_filters import filter_rules, function_name, net

if TYPE_CHECKING:
    from agents.bird.filters import Condition, Statement
    from agents.calico.confd.peering import Peer
    from agents.calico.confd.plan import BgpPlan
    from agents.calico.net import Cidr

TUNNEL: Final = "tunl0"
NEVER: Final = "Never"
KERNEL_FILTER: Final = "calico_kernel_programming"
EXPORT_FUNCTION: Final = "calico_export_to_bgp_peers"
AGGREGATION_FUNCTION: Final = "calico_aggr"
COMMUNITIES_FUNCTION: Final = "apply_communities"
# The devices of encapsulations that felix routes itself, and their block routes with them.
_OVERLAY_DEVICES: Final = ("*.cali", "*.calico")


def inside(cidr: Cidr) -> NetIn:
    """``net ~ C``."""
    return NetIn((NetPattern.inside(net(cidr)),))


def exactly(cidr: Cidr) -> NetIn:
    """``net = C``."""
    return NetIn((NetPattern.exactly(net(cidr)),))


def communities(plan: BgpPlan) -> tuple[Statement, ...]:
    """Mark routes of the configured prefixes."""
    return tuple(
        If(
            inside(each.cidr),
            tuple(
                AddCommunity(
                    CommunityKind.STANDARD if len(value) == 2 else CommunityKind.LARGE, value
                )
                for value in each.values
            ),
        )
        for each in plan.communities
    )


def aggregation(plan: BgpPlan) -> tuple[Statement, ...]:
    """A node's own block leaves whole, its addresses never one by one."""
    statements: list[Statement] = []
    for block in plan.blocks:
        statements.append(If(exactly(block), (Accept(),)))
        if block.length < 32:
            statements.append(If(inside(block), (Reject(),)))
    return tuple(statements)


def export_to_peers(plan: BgpPlan, internal: Condition) -> tuple[Statement, ...]:
    """What peers may learn: own blocks, service addresses, and borrowed addresses of the pools."""
    statements: list[Statement] = [
        If(inside(pool.cidr), (Reject(),)) for pool in plan.pools if pool.disable_export
    ]
    statements.append(If(All((internal, IfnameMatches(_OVERLAY_DEVICES))), (Reject(),)))
    statements.append(Call(COMMUNITIES_FUNCTION, communities(plan)))
    statements.append(Call(AGGREGATION_FUNCTION, aggregation(plan)))
    statements += [If(inside(cidr), (Accept(),)) for cidr in plan.service_ranges]
    statements += [If(inside(pool.cidr), (Accept(),)) for pool in plan.pools]
    return tuple(statements)


def kernel_export(plan: BgpPlan) -> tuple[Statement, ...]:
    """What becomes a route of the node, and which of it through the tunnel."""
    statements: list[Statement] = [If(inside(cidr), (Reject(),)) for cidr in plan.service_ranges]
    for pool in plan.pools:
        body: tuple[Statement, ...]
        if pool.vxlan_mode != NEVER:
            body = (Reject(),)
        elif pool.ipip_mode == "CrossSubnet":
            near = All((Defined(Attr.NEXT_HOP), NextHopIn((net(plan.node.network),))))
            body = (
                If(near, (Set(Attr.KRT_TUNNEL, ""),), (Set(Attr.KRT_TUNNEL, TUNNEL),)),
                Accept(),
            )
        else:
            tunnel = "" if pool.ipip_mode == NEVER else TUNNEL
            body = (Set(Attr.KRT_TUNNEL, tunnel), Accept())
        statements.append(If(inside(pool.cidr), body))
    return (*statements, Accept())


def kernel_filter(plan: BgpPlan) -> Filter:
    """``calico_kernel_programming``."""
    return Filter(kernel_export(plan), KERNEL_FILTER)


def is_internal(plan: BgpPlan, peer: Peer) -> Const:
    """What Calico's functions are told of a peer: whether it is of the node's own AS."""
    return Const(peer.as_number == plan.as_number)


def export_filter(plan: BgpPlan, peer: Peer) -> Filter:
    """A peer's export filter: its own filters first, then everybody's."""
    return Filter(
        (
            *_calls(plan, peer, "export"),
            Call(EXPORT_FUNCTION, export_to_peers(plan, is_internal(plan, peer))),
            Reject(),
        )
    )


def import_filter(plan: BgpPlan, peer: Peer) -> Filter:
    """A peer's import filter: its own filters first, then everything is taken."""
    calls = _calls(plan, peer, "import")
    return Filter((*calls, Accept()), "" if calls else "ACCEPT")


def filters_of(plan: BgpPlan, peer: Peer, direction: str) -> tuple[str, ...]:
    """The names of a peer's BGPFilters with rules of a direction."""
    return tuple(name for name in peer.filters if plan.filters.get(name, {}).get(f"{direction}V4"))


def _calls(plan: BgpPlan, peer: Peer, direction: str) -> tuple[Statement, ...]:
    internal = is_internal(plan, peer)
    return tuple(
        Call(function_name(name, direction), filter_rules(plan.filters[name], direction, internal))
        for name in filters_of(plan, peer, direction)
    )
