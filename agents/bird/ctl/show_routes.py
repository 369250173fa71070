"""Routes as ``show route`` prints them (pure).

Source: BIRD 1.6 and 2.0 nest/rt-show.c, nest/rt-attr.c, proto/bgp/attrs.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.bird.attributes import (
    AS_SEQUENCE,
    community_pairs,
    format_path,
    large_triples,
    segments,
)
from agents.bird.config import Dest
from agents.bird.ctl.communities import format_extended
from agents.bird.ctl.reply import ATTRIBUTE, ROUTE, ROUTE_DETAIL, Dialect, Line
from agents.bird.filters import Source
from agents.bird.net import format_address
from emulator.addr import format_ip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agents.bird.attributes import Attrs
    from agents.bird.ctl.times import Times
    from agents.bird.snapshot import RouteInfo

_DESTS: Final = {
    Dest.BLACKHOLE: "blackhole",
    Dest.UNREACHABLE: "unreachable",
    Dest.PROHIBIT: "prohibited",
}
_TYPES: Final = {
    Source.BGP: "BGP",
    Source.STATIC: "static",
    Source.DEVICE: "device",
    Source.INHERIT: "inherit",
}
_ORIGINS: Final = ("IGP", "EGP", "Incomplete")
# linux/rtnetlink.h: numbers of the kernel's routing protocols.
_PROTOCOLS: Final = {"redirect": 1, "kernel": 2, "boot": 3, "static": 4, "bird": 12}


def show_route(
    route: RouteInfo, times: Times, *, first: bool, detail: bool, kernel_source: str = ""
) -> Iterator[Line]:
    """One route; ``first`` of its network's, with ``detail`` its attributes."""
    if times.dialect is Dialect.BIRD1:
        yield from _route1(route, times, first)
    else:
        yield from _route2(route, times, first)
    if detail:
        yield Line(ROUTE_DETAIL, f"\tType: {_type(route, times.dialect)}")
        for text in _attributes(route, kernel_source):
            yield Line(ATTRIBUTE, f"\t{text}")


def _mark(route: RouteInfo, times: Times) -> str:
    """``[protocol time from X]``, the best route's star, preference and metrics."""
    gateway = route.ways[0].gateway if len(route.ways) == 1 else b""
    source = ""
    if route.from_ and route.from_.to_bytes(4, "big") != gateway:
        source = f" from {format_ip(route.from_)}"
    best = " *" if route.selected else ""
    when = times.short(route.learned_at)
    return f"[{route.protocol} {when}{source}]{best}{_info(route, times.dialect)}"


def _info(route: RouteInfo, dialect: Dialect) -> str:
    attrs = route.attrs
    if route.source is not Source.BGP:
        return f" ({attrs.preference})"
    metric = ""
    if dialect is Dialect.BIRD1:
        if not route.reachable:
            metric = "/-"
        else:
            metric = "/?" if route.metric is None else f"/{route.metric}"
    elif route.reachable and route.metric != 0:
        metric = "/?" if route.metric is None else f"/{route.metric}"
    stale = "s" if route.stale else ""
    last = origin_as(attrs.as_path)
    origin = "ie?"[min(attrs.origin or 0, 2)]
    return f" ({attrs.preference}{stale}{metric}) [{f'AS{last}' if last else ''}{origin}]"


def origin_as(path: bytes) -> int:
    """The last AS of a path's last sequence, 0 if there is none."""
    last = 0
    for kind, asns in segments(path):
        last = asns[-1] if kind == AS_SEQUENCE and asns else 0
    return last


def _way(gateway: bytes, dev: str) -> str:
    return f"via {format_address(gateway)} on {dev}" if gateway else f"dev {dev}"


def _route1(route: RouteInfo, times: Times, first: bool) -> Iterator[Line]:
    if route.dest is not Dest.UNICAST:
        via = _DESTS[route.dest]
    elif len(route.ways) > 1:
        via = "multipath"
    else:
        via = _way(*route.ways[0])
    net = str(route.net) if first else ""
    yield Line(ROUTE, f"{net:<18} {via} {_mark(route, times)}")
    if len(route.ways) > 1:
        for way in route.ways:
            yield Line(ROUTE, f"\t{_way(*way)} weight 1")


def _route2(route: RouteInfo, times: Times, first: bool) -> Iterator[Line]:
    dest = _DESTS.get(route.dest, "unicast")
    net = str(route.net) if first else ""
    yield Line(ROUTE, f"{net:<20} {dest} {_mark(route, times)}")
    weight = " weight 1" if len(route.ways) > 1 else ""
    for way in route.ways:
        yield Line(ROUTE, f"\t{_way(*way)}{weight}")


def _type(route: RouteInfo, dialect: Dialect) -> str:
    kind = _TYPES[route.source]
    if dialect is Dialect.BIRD2:
        return f"{kind} univ"
    if (
        route.source is Source.STATIC
        and route.dest is Dest.UNICAST
        and not any(way.gateway for way in route.ways)
    ):
        kind = "static-device"
    return f"{kind} unicast univ"


def _attributes(route: RouteInfo, kernel_source: str) -> Iterator[str]:
    attrs = route.attrs
    if route.source is Source.INHERIT:
        yield f"Kernel.source: {_PROTOCOLS.get(kernel_source, kernel_source or 0)}"
        yield f"Kernel.metric: {attrs.krt_metric or 0}"
    if route.source is Source.BGP:
        yield from _bgp_attributes(attrs)
    if attrs.krt_tunnel is not None:
        yield f"Kernel.tunnel: {attrs.krt_tunnel}"


def _bgp_attributes(attrs: Attrs) -> Iterator[str]:
    yield f"BGP.origin: {_ORIGINS[min(attrs.origin or 0, 2)]}"
    yield f"BGP.as_path: {format_path(attrs.as_path)}"
    if attrs.next_hop:
        yield f"BGP.next_hop: {_next_hops(attrs.next_hop)}"
    if attrs.med is not None:
        yield f"BGP.med: {attrs.med}"
    if attrs.local_pref is not None:
        yield f"BGP.local_pref: {attrs.local_pref}"
    if attrs.atomic_aggregate:
        yield "BGP.atomic_aggr: "
    if attrs.aggregator:
        asn = int.from_bytes(attrs.aggregator[:4], "big")
        yield f"BGP.aggregator: {format_address(attrs.aggregator[4:8])} AS{asn}"
    if attrs.communities:
        pairs = (f"({a},{b})" for a, b in community_pairs(attrs.communities))
        yield f"BGP.community: {' '.join(pairs)}"
    if attrs.originator_id is not None:
        yield f"BGP.originator_id: {format_ip(attrs.originator_id)}"
    if attrs.cluster_list:
        clusters = attrs.cluster_list
        ids = (format_address(clusters[at : at + 4]) for at in range(0, len(clusters), 4))
        yield f"BGP.cluster_list: {' '.join(ids)}"
    if attrs.ext_communities:
        octets = attrs.ext_communities
        values = (format_extended(octets[at : at + 8]) for at in range(0, len(octets), 8))
        yield f"BGP.ext_community: {' '.join(values)}"
    if attrs.large_communities:
        triples = (f"({a}, {b}, {c})" for a, b, c in large_triples(attrs.large_communities))
        yield f"BGP.large_community: {' '.join(triples)}"
    for _, kind, value in attrs.unknown:
        yield f"BGP.{kind:02x} [t]: {value.hex(' ')}"


def _next_hops(octets: bytes) -> str:
    """The global next hop, and after it the link-local one of RFC 2545."""
    if len(octets) == 32:
        return f"{format_address(octets[:16])} {format_address(octets[16:])}"
    return format_address(octets)
