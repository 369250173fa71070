"""What busybox's own ``ip`` and ``ifconfig`` print: terser than the tools of a node (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.addr import format_ip, format_mac, mask_of
from emulator.netstack.fib import RouteType
from emulator.netstack.show.link import flags_of, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.netstack.fib import Route
    from emulator.netstack.records import AddrInfo, LinkInfo

# The flag words of busybox's ifconfig in its order; LOWER_UP shows there as RUNNING.
_FLAGS = ("UP", "BROADCAST", "LOOPBACK", "RUNNING", "NOARP", "MULTICAST")


def render_links(links: Iterable[LinkInfo], addrs: Iterable[AddrInfo] | None = None) -> str:
    """``ip link``, or with ``addrs`` ``ip addr``."""
    held = list(addrs) if addrs is not None else None
    lines = []
    for link in links:
        master = f"master {link.master} " if link.master else ""
        lines.append(
            f"{link.index}: {name_of(link)}: <{','.join(flags_of(link))}> mtu {link.mtu} "
            f"qdisc {link.qdisc} {master}"
            + (f"qlen {link.txqlen}\n" if link.txqlen else "\n")
            + _hardware(link)
        )
        for each in held or ():
            if each.dev == link.name:
                broadcast = "" if each.broadcast is None else f"brd {format_ip(each.broadcast)} "
                lines.append(
                    f"    inet {format_ip(each.ip)}/{each.length} {broadcast}"
                    f"scope {each.scope} {each.dev}\n"
                    "       valid_lft forever preferred_lft forever\n"
                )
    return "".join(lines)


def _hardware(link: LinkInfo) -> str:
    if link.kind == "lo":
        return "    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00\n"
    if link.kind == "ipip":
        return f"    link/ipip {format_ip(link.local)} brd {format_ip(link.remote)}\n"
    return f"    link/ether {format_mac(link.mac)} brd ff:ff:ff:ff:ff:ff\n"


def render_routes(routes: Iterable[Route]) -> str:
    """``ip route``."""
    lines = []
    for route in routes:
        text = "" if route.type is RouteType.UNICAST else f"{route.type} "
        length = route.dst.length
        network = format_ip(route.dst.network)
        text += "default " if not length else f"{network}{'' if length == 32 else f'/{length}'} "
        if route.gateway is not None:
            text += f"via {format_ip(route.gateway)} "
        if route.dev:
            text += f"dev {route.dev} "
        if route.effective_scope != "global":
            text += f"scope {route.effective_scope} "
        if route.src is not None:
            text += f" src {format_ip(route.src)} "
        if route.metric:
            text += f" metric {route.metric} "
        if route.onlink:
            text += "onlink "
        lines.append(text + "\n")
    return "".join(lines)


def render_ifconfig(link: LinkInfo, address: AddrInfo | None) -> str:
    """One device of ``ifconfig``."""
    loop = link.kind == "lo"
    mac = format_mac(link.mac).upper()
    encap = "Local Loopback  " if loop else f"Ethernet  HWaddr {mac}  "
    lines = [f"{link.name:<9} Link encap:{encap}"]
    if address is not None:
        text = f"          inet addr:{format_ip(address.ip)}  "
        if not loop:
            text += f"Bcast:{format_ip(address.broadcast or 0)}  "
        lines.append(f"{text}Mask:{format_ip(mask_of(address.length))}")
    names = {"RUNNING" if flag == "LOWER_UP" else flag for flag in flags_of(link)}
    flags = " ".join(flag for flag in _FLAGS if flag in names)
    lines += [
        f"          {flags}  MTU:{link.mtu}  Metric:1",
        f"          RX packets:{link.rx_packets} errors:0 dropped:{link.rx_dropped} "
        "overruns:0 frame:0",
        f"          TX packets:{link.tx_packets} errors:0 dropped:{link.tx_dropped} "
        "overruns:0 carrier:0",
        f"          collisions:0 txqueuelen:{link.txqlen} ",
        f"          RX bytes:{link.rx_bytes} ({_human(link.rx_bytes)})  "
        f"TX bytes:{link.tx_bytes} ({_human(link.tx_bytes)})",
        "",
    ]
    return "\n".join(lines) + "\n"


def _human(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
