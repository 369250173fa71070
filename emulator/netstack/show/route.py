"""``ip route`` as iproute2 prints it: today's spacing, or that of 2017 with its double blanks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from emulator.addr import format_ip
from emulator.netstack.fib import RouteType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.netstack.fib import NextHop, Route
    from emulator.netstack.netns import NetNs

    Style = Literal["modern", "2017"]


def render_ip_route(
    routes: Iterable[Route],
    *,
    style: Style = "modern",
    dev: str = "",
    proto: str = "",
    show_table: bool = False,
) -> str:
    """Render routes; ``dev`` and ``proto`` are filters, and a filtered field is not repeated."""
    lines = [
        _line(route, style, bool(dev), bool(proto), show_table)
        for route in routes
        if (not dev or route.dev == dev) and (not proto or route.protocol == proto)
    ]
    return "".join(line + "\n" for line in lines)


def _line(route: Route, style: Style, hide_dev: bool, hide_proto: bool, show_table: bool) -> str:
    """One route: a line, and one more for each way of several."""
    # Until 2018 these fields brought a blank of their own in front.
    pad = " " if style == "2017" else ""
    text = "" if route.type is RouteType.UNICAST else f"{route.type} "
    text += _destination(route) + " "
    if route.gateway is not None:
        text += f"via {format_ip(route.gateway)} "
    if route.dev and not hide_dev:
        text += f"dev {route.dev} "
    if show_table and route.table != "main":
        text += f"{pad}table {route.table} "
    if route.protocol != "boot" and not hide_proto:
        text += f"{pad}proto {route.protocol} "
    scope = route.effective_scope
    if scope != "global":
        text += f"{pad}scope {scope} "
    if route.src is not None:
        text += f"{pad}src {format_ip(route.src)} "
    if route.metric:
        text += f"{pad}metric {route.metric} "
    if route.onlink:
        text += "onlink "
    # Kernels of the old style's age (3.10) do not tell.
    if route.linkdown and style == "modern":
        text += "linkdown "
    if route.mtu:
        text += f" mtu {route.mtu}" if style == "2017" else f"mtu {route.mtu} "
    return text + "".join(_way(hop, style) for hop in route.nexthops)


def _way(hop: NextHop, style: Style) -> str:
    flags = [
        name
        for name, is_set in (("dead", hop.dead), ("onlink", hop.onlink), ("linkdown", hop.linkdown))
        if is_set
    ]
    tail = [f"dev {hop.dev}", f"weight {hop.weight}", *flags]
    if style == "2017":
        via = f" via {format_ip(hop.gateway)} " if hop.gateway is not None else ""
        return f"\n\tnexthop{via} {' '.join(tail)}"
    via = f"via {format_ip(hop.gateway)} " if hop.gateway is not None else ""
    return f"\n\tnexthop {via}{' '.join(tail)} "


def _destination(route: Route) -> str:
    if route.dst.length == 0:
        return "default"
    if route.dst.length == 32:
        return format_ip(route.dst.network)
    return str(route.dst)


# What ``ip route get`` says where a route refuses: the errno of the route's type.
_REFUSALS = {
    RouteType.BLACKHOLE: "RTNETLINK answers: Invalid argument",
    RouteType.UNREACHABLE: "RTNETLINK answers: No route to host",
    RouteType.PROHIBIT: "RTNETLINK answers: Permission denied",
}


def render_route_get(
    ns: NetNs, dst: int, *, src: int | None = None, oif: str = "", style: Style = "modern"
) -> tuple[str, str]:
    """``ip route get DST [from SRC] [oif DEV]``: (output, error), one of them empty."""
    if src is not None and not ns.is_local(src):
        return "", "RTNETLINK answers: Network is unreachable"
    route = ns.route_output(dst, oif)
    if route is None:
        return "", "RTNETLINK answers: Network is unreachable"
    if route.type in _REFUSALS:
        return "", _REFUSALS[route.type]
    pad = " " if style == "2017" else ""
    text = "" if route.type is RouteType.UNICAST else f"{route.type} "
    text += f"{format_ip(dst)} "
    if src is not None:
        text += f"from {format_ip(src)} "
    if route.gateway is not None:
        text += f"via {format_ip(route.gateway)} "
    text += f"dev {'lo' if route.type is RouteType.LOCAL else route.dev} "
    if src is None:
        chosen = ns.preferred_source(route, dst)
        if chosen is not None:
            text += f"{pad}src {format_ip(chosen)} "
    if style == "modern":
        text += "uid 0 "
    cache = "    cache "
    if route.type is RouteType.LOCAL:
        cache += "<local> "
    elif route.type is RouteType.BROADCAST:
        cache += "<local,brd> "
    mtu = ns.path_mtu(dst)
    if mtu is not None:
        cache += f"expires {ns.icmp.path_mtu_expires_s(dst)}sec mtu {mtu} "
    elif route.mtu:
        cache += f"mtu {route.mtu} "
    return f"{text}\n{cache}\n", ""
