"""What ``ip`` prints: renderers over the kernel's dumps (pure).

Layouts follow iproute2 6.1; ``era`` "2017" and "2018" give the double blanks of routes of that
time, ``busybox`` that of its own ip.  IPv6 lines are absent: there is no IPv6 here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import Prefix, format_ip, format_mac
from emulator.netstack.fib import RouteType
from emulator.netstack.records import NeighState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.netstack.fib import Route
    from emulator.netstack.netns import NetNs
    from emulator.netstack.records import AddrInfo, LinkInfo

_LFT: Final = "       valid_lft forever preferred_lft forever\n"
# Kinds whose operational state the kernel does not track.
_STATELESS: Final = ("lo", "dummy", "vxlan", "ipip")
_POINT_TO_POINT: Final = ("ipip",)


def link_flags(link: LinkInfo) -> list[str]:
    """IFF_* names in iproute2's order."""
    flags = []
    if link.up and not link.running:
        flags.append("NO-CARRIER")
    if link.kind == "lo":
        flags.append("LOOPBACK")
    elif link.kind in _POINT_TO_POINT:
        flags.append("NOARP")
    else:
        flags += ["BROADCAST", "MULTICAST"]
        if link.noarp:
            flags.append("NOARP")
    if link.up:
        flags.append("UP")
        if link.running:
            flags.append("LOWER_UP")
    return flags


def link_state(link: LinkInfo) -> str:
    """``state`` of a link: UP, DOWN, UNKNOWN, LOWERLAYERDOWN."""
    if not link.up:
        return "DOWN"
    if link.kind in _STATELESS:
        return "UNKNOWN"
    if link.running:
        return "UP"
    return "LOWERLAYERDOWN" if link.kind == "veth" else "DOWN"


def _qdisc(link: LinkInfo) -> str:
    if not link.up:
        return "noop"
    return "fq_codel" if link.kind == "underlay" else "noqueue"


def _name(link: LinkInfo) -> str:
    if link.link_name:
        return f"{link.name}@{link.link_name}"
    if link.link_index:
        return f"{link.name}@if{link.link_index}"
    return f"{link.name}@NONE" if link.kind == "ipip" else link.name


def _first_line(link: LinkInfo, *, mode: bool, busybox: bool) -> str:
    parts = [f"{link.index}: {_name(link)}: <{','.join(link_flags(link))}> mtu {link.mtu}"]
    parts.append(f"qdisc {_qdisc(link)}")
    if link.master:
        parts.append(f"master {link.master}")
    if not busybox:
        parts.append(f"state {link_state(link)}")
        if mode:
            parts.append("mode DEFAULT")
        parts.append("group default")
    if link.txqlen:
        parts.append(f"qlen {link.txqlen}")
    return " ".join(parts) + ("\n" if link.txqlen or busybox else " \n")


def _second_line(link: LinkInfo, *, busybox: bool) -> str:
    if link.kind == "ipip":
        return f"    link/ipip {format_ip(link.local)} brd {format_ip(link.remote)}"
    if link.kind == "lo":
        return "    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00"
    text = f"    link/ether {format_mac(link.mac)} brd ff:ff:ff:ff:ff:ff"
    if link.link_netnsid >= 0 and not busybox:
        text += f" link-netnsid {link.link_netnsid}"
    return text


def _details(link: LinkInfo) -> str:
    text = " promiscuity 0  allmulti 0 minmtu 68 maxmtu 65535 "
    if link.kind == "vxlan":
        learning = "" if link.learning else "nolearning "
        dev = f"dev {link.dev} " if link.dev else ""
        text += (
            f"\n    vxlan id {link.vni} local {format_ip(link.local)} {dev}"
            f"srcport {link.srcport[0]} {link.srcport[1]} dstport {link.port} {learning}"
            f"ttl auto ageing {link.ageing_s} udpcsum noudp6zerocsumtx noudp6zerocsumrx "
        )
    elif link.kind == "bridge":
        bridge_id = format_mac(link.mac)
        text += (
            "\n    bridge forward_delay 1500 hello_time 200 max_age 2000 ageing_time "
            f"{link.ageing_s * 100} stp_state 0 priority 32768 vlan_filtering 0 "
            f"bridge_id 8000.{bridge_id} designated_root 8000.{bridge_id} "
        )
    elif link.kind in ("veth", "dummy"):
        text += f"\n    {link.kind} "
    return text + (
        "addrgenmode eui64 numtxqueues 1 numrxqueues 1 gso_max_size 65536 gso_max_segs 65535 "
    )


def _statistics(link: LinkInfo) -> str:
    lines = []
    for way, row, tail in (
        ("RX", (link.rx_bytes, link.rx_packets, link.rx_dropped), ("missed", "mcast")),
        ("TX", (link.tx_bytes, link.tx_packets, link.tx_dropped), ("carrier", "collsns")),
    ):
        octets, packets, dropped = row
        wide = max(6, len(str(octets)))
        count = max(7, len(str(packets)))
        lines.append(
            f"    {way}: {'bytes':>{wide}} {'packets':>{count}} errors dropped {tail[0]:>7} "
            f"{tail[1]:>7}           \n"
            f"        {octets:>{wide}} {packets:>{count}} {0:>6} {dropped:>7} {0:>7} {0:>7} \n"
        )
    return "".join(lines)


def _one(text: str, oneline: bool) -> str:
    if not oneline:
        return text
    return text.rstrip("\n").replace("\n", "\\") + "\n"


def show_links(
    ns: NetNs,
    *,
    dev: str = "",
    kind: str = "",
    master: str = "",
    brief: bool = False,
    statistics: bool = False,
    details: bool = False,
    oneline: bool = False,
    busybox: bool = False,
) -> str:
    """``ip link show``."""
    lines = []
    for link in ns.links():
        if (dev and link.name != dev) or (kind and link.kind != kind):
            continue
        if master and link.master != master:
            continue
        if brief:
            flags = ",".join(link_flags(link))
            mac = format_mac(link.mac)
            lines.append(f"{_name(link):<16} {link_state(link):<14} {mac} <{flags}> \n")
            continue
        text = _first_line(link, mode=not busybox, busybox=busybox)
        text += _second_line(link, busybox=busybox)
        text += _details(link) + "\n" if details else "\n"
        if statistics:
            text += _statistics(link)
        lines.append(_one(text, oneline))
    return "".join(lines)


def show_addresses(
    ns: NetNs,
    *,
    dev: str = "",
    family: str = "",
    brief: bool = False,
    statistics: bool = False,
    oneline: bool = False,
    busybox: bool = False,
) -> str:
    """``ip address show``; ``family`` "inet" leaves the link lines out, "inet6" shows nothing."""
    if family == "inet6":
        return ""
    by_dev: dict[str, list[AddrInfo]] = {}
    for address in ns.addrs():
        by_dev.setdefault(address.dev, []).append(address)
    lines = []
    for link in ns.links():
        held = by_dev.get(link.name, [])
        if (dev and link.name != dev) or (family == "inet" and not held):
            continue
        if brief:
            text = "".join(f"{format_ip(each.ip)}/{each.length} " for each in held)
            lines.append(f"{_name(link):<16} {link_state(link):<14} {text}\n")
        elif oneline:
            lines += [
                f"{link.index}: {link.name}    {_inet(each).strip()}\\{_LFT}" for each in held
            ]
        else:
            text = _first_line(link, mode=False, busybox=busybox)
            if family != "inet":
                text += _second_line(link, busybox=busybox) + "\n"
            text += "".join(f"{_inet(each)}\n{_LFT}" for each in held)
            lines.append(text + (_statistics(link) if statistics else ""))
    return "".join(lines)


def _inet(address: AddrInfo) -> str:
    text = f"    inet {format_ip(address.ip)}/{address.length} "
    if address.broadcast is not None:
        text += f"brd {format_ip(address.broadcast)} "
    secondary = "secondary " if address.secondary else ""
    return f"{text}scope {address.scope} {secondary}{address.dev}"


def format_prefix(prefix: Prefix) -> str:
    """``default``, an address alone for a /32, else the prefix."""
    if prefix.length == 0:
        return "default"
    return format_ip(prefix.network) if prefix.length == 32 else str(prefix)


def show_routes(
    routes: Iterable[Route],
    *,
    era: str = "modern",
    busybox: bool = False,
    table: str = "",
    hide_dev: bool = False,
) -> str:
    """``ip route show``; ``table`` names the table of a dump of all."""
    # Up to iproute2 4.16 each attribute after the device brought its own leading blank.
    gap = "" if era == "modern" else " "
    lines = []
    for route in routes:
        text = "" if route.type is RouteType.UNICAST else f"{route.type} "
        text += f"{format_prefix(route.dst)} "
        if route.gateway is not None:
            text += f"via {format_ip(route.gateway)} "
        if route.dev and not hide_dev:
            text += f"dev {route.dev} "
        if table and table != "main":
            text += f"{gap}table {table} "
        if route.protocol != "boot" and not busybox:
            text += f"{gap}proto {route.protocol} "
        if route.effective_scope != "global" and route.type not in (
            *(RouteType.BLACKHOLE, RouteType.UNREACHABLE, RouteType.PROHIBIT),
        ):
            text += f"{'' if busybox else gap}scope {route.effective_scope} "
        if route.src is not None:
            text += f"{' ' if busybox else gap}src {format_ip(route.src)} "
        if route.metric:
            text += f"{gap}metric {route.metric} "
        if route.onlink:
            text += "onlink "
        if route.linkdown:
            text += "linkdown "
        if route.mtu:
            text += f"{gap}mtu {route.mtu} "
        lines.append(text + "\n")
    return "".join(lines)


def show_neighbours(
    ns: NetNs, *, dev: str = "", to: str = "", nud: str = "", era: str = "modern"
) -> str:
    """``ip neigh show``; NOARP entries only when asked for."""
    prefix = Prefix.parse(to, strict=False) if to else None
    lines = []
    for entry in ns.neighs():
        if (dev and entry.dev != dev) or (prefix is not None and entry.ip not in prefix):
            continue
        if nud and nud != "all" and entry.state.lower() != nud.lower():
            continue
        if not nud and entry.state in (NeighState.NOARP, NeighState.NONE):
            continue
        text = f"{format_ip(entry.ip)} "
        if not dev:
            text += f"dev {entry.dev} "
        if entry.mac is not None:
            text += f"lladdr {format_mac(entry.mac)} "
        lines.append(f"{text}{entry.state}{' ' if era == 'modern' else ''}\n")
    return "".join(lines)
