"""A node's filters: what goes to peers, what goes into the node's routing table (pure).

The bodies are BIRD's language as agents/bird takes it (``filters``); ``render`` writes the same
bodies as text.  Source: projectcalico/calico confd/etc/calico/confd/templates/{bird,bird_ipam,
bird_aggr}.cfg.template.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

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
    Not,
    Reject,
    Set,
    Source,
    SourceIn,
)
from agents.bird.net import Afi, Net
from agents.calico.net import Cidr
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.bird.filters import Condition, Statement
    from agents.calico.confd.peering import Peer
    from agents.calico.confd.plan import BgpPlan

TUNNEL: Final = "tunl0"
NEVER: Final = "Never"
KERNEL_FILTER: Final = "calico_kernel_programming"
EXPORT_FUNCTION: Final = "calico_export_to_bgp_peers"
AGGREGATION_FUNCTION: Final = "calico_aggr"
COMMUNITIES_FUNCTION: Final = "apply_communities"
# The devices of encapsulations that felix routes itself, and their block routes with them.
_OVERLAY_DEVICES: Final = ("*.cali", "*.calico")
# BIRD's limit of a symbol's length (SYM_MAX_LEN).
_MAX_NAME: Final = 64


def net(cidr: Cidr) -> Net:
    """The same network in the speaker's terms."""
    return Net(Afi.IPV4 if cidr.version == 4 else Afi.IPV6, cidr.network, cidr.length)


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


def export_filter(plan: BgpPlan, peer: Peer) -> Filter:
    """A peer's export filter: its own filters first, then everybody's."""
    internal = Const(peer.as_number == plan.as_number)
    return Filter(
        (
            *_calls(plan, peer, "export"),
            Call(EXPORT_FUNCTION, export_to_peers(plan, internal)),
            Reject(),
        )
    )


def import_filter(plan: BgpPlan, peer: Peer) -> Filter:
    """A peer's import filter: its own filters first, then everything is taken."""
    calls = _calls(plan, peer, "import")
    return Filter((*calls, Accept()), "" if calls else "ACCEPT")


def _calls(plan: BgpPlan, peer: Peer, direction: str) -> tuple[Statement, ...]:
    return tuple(
        Call(function_name(name, direction), filter_rules(plan.filters[name], direction))
        for name in peer.filters
        if name in plan.filters and plan.filters[name].get(f"{direction}V4")
    )


def function_name(name: str, direction: str) -> str:
    """The function of a BGPFilter and a direction; a long name is cut and told apart by a hash."""
    if len(name) > _MAX_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16].upper()
        name = f"{name[: _MAX_NAME - 17]}_{digest}"
    return f"bgp_{name}_{direction}FilterV4"


def filter_rules(spec: Mapping[str, Any], direction: str) -> tuple[Statement, ...]:
    """The rules of a BGPFilter in order; one that cannot be read is left out."""
    statements: list[Statement] = []
    for rule in spec.get(f"{direction}V4") or ():
        try:
            condition = _condition(rule)
        except (UsageError, ValueError):
            continue
        action: Statement = Accept() if rule.get("action") == "Accept" else Reject()
        statements.append(action if condition is None else If(condition, (action,)))
    return tuple(statements)


def _condition(rule: Mapping[str, Any]) -> Condition | None:
    conditions: list[Condition] = []
    if rule.get("cidr"):
        conditions.append(_net_condition(rule))
    if rule.get("source") == "RemotePeers":
        conditions += [Defined(Attr.SOURCE), SourceIn((Source.BGP,))]
    if rule.get("interface"):
        conditions += [Defined(Attr.IFNAME), IfnameMatches((str(rule["interface"]),))]
    if not conditions:
        return None
    return conditions[0] if len(conditions) == 1 else All(tuple(conditions))


def _net_condition(rule: Mapping[str, Any]) -> Condition:
    cidr = net(Cidr.parse(str(rule["cidr"])))
    operator = rule.get("matchOperator") or "In"
    if operator in ("Equal", "NotEqual"):
        pattern = NetPattern.exactly(cidr)
    else:
        lengths = rule.get("prefixLength") or {}
        low, high = lengths.get("min"), lengths.get("max")
        pattern = NetPattern(
            cidr,
            cidr.length if low is None else max(int(low), cidr.length),
            cidr.afi.bits if high is None else int(high),
        )
    found = NetIn((pattern,))
    return Not(found) if operator.startswith("Not") else found
