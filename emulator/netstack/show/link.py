"""``ip link`` and ``ip addr`` as iproute2 prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import format_ip, format_mac

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.netstack.records import AddrInfo, LinkInfo
    from emulator.netstack.show.route import Style

_BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
_NO_MAC: Final = "00:00:00:00:00:00"
# Column widths of ``ip -s link`` before a number is wider (ipaddress.c, print_stats64).
_COLUMNS: Final = (len("*X errors:"), 7, 6, 7, 7, 7, 10)


def flags_of(link: LinkInfo) -> list[str]:
    """The flags between angle brackets, in iproute2's order."""
    flags: list[str] = []
    if link.up and not link.running:
        flags.append("NO-CARRIER")
    if link.kind == "lo":
        flags.append("LOOPBACK")
    elif link.kind != "ipip":
        flags.append("BROADCAST")
        if link.kind != "dummy":
            flags.append("MULTICAST")
    if link.noarp and link.kind != "lo":
        flags.append("NOARP")
    if link.up:
        flags.append("UP")
    if link.up and link.running:
        flags.append("LOWER_UP")
    if link.link_name and link.link_down:
        flags.append("M-DOWN")
    return flags


def name_of(link: LinkInfo) -> str:
    """The name with its other end: eth0@if18, v0@v1, tunl0@NONE."""
    if link.link_netnsid >= 0:
        return f"{link.name}@if{link.link_index}"
    if link.link_name:
        return f"{link.name}@{link.link_name}"
    if link.kind == "ipip":
        return f"{link.name}@NONE"
    return link.name


def _address_line(link: LinkInfo, style: Style) -> str:
    if link.kind == "lo":
        return f"    link/loopback {_NO_MAC} brd {_NO_MAC}"
    if link.kind == "ipip":
        return f"    link/ipip {format_ip(link.local)} brd {format_ip(link.remote)}"
    text = f"    link/ether {format_mac(link.mac)} brd {_BROADCAST}"
    if link.link_netnsid >= 0 and style == "modern":
        text += f" link-netnsid {link.link_netnsid}"
    return text


def _head(link: LinkInfo, *, mode: bool) -> str:
    text = f"{link.index}: {name_of(link)}: <{','.join(flags_of(link))}> mtu {link.mtu} "
    text += f"qdisc {link.qdisc} "
    if link.master:
        text += f"master {link.master} "
    text += f"state {link.operstate} "
    if mode:
        text += "mode DEFAULT "
    text += "group default "
    if link.txqlen:
        text += f"qlen {link.txqlen}"
    return text


def _details(link: LinkInfo) -> str:
    """What ``-d`` adds of the device's kind."""
    if link.kind == "vxlan":
        text = f"    vxlan id {link.vni} "
        if link.local:
            text += f"local {format_ip(link.local)} "
        if link.dev:
            text += f"dev {link.dev} "
        text += f"srcport {link.srcport[0]} {link.srcport[1]} dstport {link.port} "
        if not link.learning:
            text += "nolearning "
        return text + f"ttl auto ageing {link.ageing_s} udpcsum noudp6zerocsumtx noudp6zerocsumrx "
    if link.kind == "ipip":
        # tunl0, the fallback device, says nothing of what it carries.
        carries = "ipip" if link.local or link.remote else "any"
        return f"    ipip {carries} {_ends(link)} nopmtudisc "
    if link.kind in ("veth", "bridge", "dummy"):
        return f"    {link.kind} "
    return ""


def _ends(link: LinkInfo) -> str:
    remote = format_ip(link.remote) if link.remote else "any"
    local = format_ip(link.local) if link.local else "any"
    return f"remote {remote} local {local} ttl {link.ttl or 'inherit'}"


def render_ip_tunnel(links: Iterable[LinkInfo], *, style: Style = "modern") -> str:
    """``ip tunnel show``; until 2016 the fallback device was ``ip/ip`` as the others."""
    lines = []
    for link in links:
        if link.kind == "ipip":
            fallback = not link.local and not link.remote and style == "modern"
            mode = "any/ip" if fallback else "ip/ip"
            lines.append(f"{link.name}: {mode} {_ends(link)} nopmtudisc\n")
    return "".join(lines)


def _statistics(link: LinkInfo) -> list[str]:
    rx = (link.rx_bytes, link.rx_packets, 0, link.rx_dropped, 0, 0)
    tx = (link.tx_bytes, link.tx_packets, 0, link.tx_dropped, 0, 0)
    widths = [
        max(width, len(str(a)), len(str(b)))
        for width, a, b in zip(_COLUMNS, (*rx, 0), (*tx, 0), strict=True)
    ]
    lines = []
    for title, names, values in (
        ("RX", ("bytes", "packets", "errors", "dropped", "missed", "mcast"), rx),
        ("TX", ("bytes", "packets", "errors", "dropped", "carrier", "collsns"), tx),
    ):
        first = f"    {title}: {names[0]:>{widths[0] - 4}}"
        rest = "".join(f" {name:>{w}}" for name, w in zip(names[1:], widths[1:], strict=False))
        lines.append(f"{first}{rest} {'':{widths[6]}}")
        row = " ".join(f"{value:>{w}}" for value, w in zip(values, widths, strict=False))
        lines.append(f"    {row} ")
    return lines


def render_ip_link(
    links: Iterable[LinkInfo],
    *,
    style: Style = "modern",
    statistics: bool = False,
    details: bool = False,
    oneline: bool = False,
) -> str:
    """``ip link [show]``, with ``-s``, ``-d`` and ``-o``."""
    out = []
    for link in links:
        lines = [_head(link, mode=True), _address_line(link, style)]
        if details and (extra := _details(link)):
            lines[1] += " promiscuity 0 "
            lines.append(extra)
        if statistics:
            lines += _statistics(link)
        out.append(_joined(lines, oneline))
    return "".join(out)


def _joined(lines: list[str], oneline: bool) -> str:
    return "\\".join(lines) + "\n" if oneline else "\n".join(lines) + "\n"


def _inet(addr: AddrInfo) -> str:
    text = f"inet {format_ip(addr.ip)}/{addr.length} "
    if addr.broadcast is not None:
        text += f"brd {format_ip(addr.broadcast)} "
    text += f"scope {addr.scope} "
    if addr.secondary:
        text += "secondary "
    return text + addr.dev


_LIFETIME: Final = "       valid_lft forever preferred_lft forever"


def render_ip_addr(
    links: Iterable[LinkInfo],
    addrs: Iterable[AddrInfo],
    *,
    style: Style = "modern",
    statistics: bool = False,
    inet_only: bool = False,
) -> str:
    """``ip addr [show]``; with ``inet_only`` as ``ip -4 addr``: no devices without an address."""
    by_dev: dict[str, list[AddrInfo]] = {}
    for addr in addrs:
        by_dev.setdefault(addr.dev, []).append(addr)
    out = []
    for link in links:
        held = by_dev.get(link.name, [])
        if inet_only and not held:
            continue
        lines = [_head(link, mode=False)]
        if not inet_only:
            lines.append(_address_line(link, style))
        for addr in held:
            lines += [f"    {_inet(addr)}", _LIFETIME]
        if statistics:
            lines += _statistics(link)
        out.append("\n".join(lines) + "\n")
    return "".join(out)


def render_ip_addr_oneline(addrs: Iterable[AddrInfo]) -> str:
    """``ip -o -4 addr``."""
    return "".join(f"{a.index}: {a.dev}    {_inet(a)}\\{_LIFETIME}\n" for a in addrs)


def render_ip_link_brief(links: Iterable[LinkInfo]) -> str:
    """``ip -br link``."""
    return "".join(
        f"{name_of(link):<16} {link.operstate:<14} "
        f"{format_mac(link.mac) if link.kind != 'ipip' else format_ip(link.local)} "
        f"<{','.join(flags_of(link))}> \n"
        for link in links
    )


def render_ip_addr_brief(links: Iterable[LinkInfo], addrs: Iterable[AddrInfo]) -> str:
    """``ip -br addr``."""
    held = list(addrs)
    lines = []
    for link in links:
        mine = "".join(f"{format_ip(a.ip)}/{a.length} " for a in held if a.dev == link.name)
        lines.append(f"{name_of(link):<16} {link.operstate:<14} {mine}\n")
    return "".join(lines)
