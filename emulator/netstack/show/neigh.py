"""``ip neigh`` as iproute2 prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.addr import format_ip, format_mac
from emulator.netstack.records import NeighState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.netstack.records import NeighInfo


def render_ip_neigh(neighs: Iterable[NeighInfo], *, dev: str = "") -> str:
    """``ip neigh [show [dev DEV]]`` without NOARP and NONE; a device filter is not repeated."""
    lines = []
    for neigh in neighs:
        if neigh.state in (NeighState.NOARP, NeighState.NONE) or (dev and neigh.dev != dev):
            continue
        text = f"{format_ip(neigh.ip)} "
        if not dev:
            text += f"dev {neigh.dev} "
        if neigh.mac is not None:
            text += f"lladdr {format_mac(neigh.mac)} "
        lines.append(f"{text}{neigh.state} \n")
    return "".join(lines)


def render_arp(neighs: Iterable[NeighInfo]) -> str:
    """``arp -n`` of net-tools."""
    rows = ["Address                  HWtype  HWaddress           Flags Mask            Iface\n"]
    for neigh in neighs:
        if neigh.mac is None:
            hardware = f"{'':8}{'(incomplete)':<20}{'':22}"
        else:
            flags = "CM" if neigh.state is NeighState.PERMANENT else "C"
            hardware = f"{'ether':<8}{format_mac(neigh.mac):<20}{flags:<22}"
        rows.append(f"{format_ip(neigh.ip):<25}{hardware}{neigh.dev}\n")
    return "".join(rows)
