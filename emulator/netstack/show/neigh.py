"""``ip neigh`` as iproute2 prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import format_ip, format_mac
from emulator.netstack.records import NeighState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.netstack.records import NeighInfo


_HIDDEN: Final = (NeighState.NOARP, NeighState.NONE)
# Not NUD_VALID: an address known once counts no more.
_UNKNOWN: Final = (NeighState.INCOMPLETE, NeighState.FAILED)


def render_ip_neigh(neighs: Iterable[NeighInfo], *, dev: str = "") -> str:
    """``ip neigh [show [dev DEV]]`` without NOARP and NONE; a device filter is not repeated."""
    lines = []
    for neigh in neighs:
        if neigh.state in _HIDDEN or (dev and neigh.dev != dev):
            continue
        text = f"{format_ip(neigh.ip)} "
        if not dev:
            text += f"dev {neigh.dev} "
        if neigh.mac is not None:
            text += f"lladdr {format_mac(neigh.mac)} "
        lines.append(f"{text}{neigh.state} \n")
    return "".join(lines)


def render_arp(neighs: Iterable[NeighInfo]) -> str:
    """``arp -n`` of net-tools, which reads what /proc/net/arp has."""
    rows = ["Address                  HWtype  HWaddress           Flags Mask            Iface\n"]
    for neigh in neighs:
        if neigh.state in _HIDDEN:
            continue
        if neigh.mac is None or neigh.state in _UNKNOWN:
            hardware = f"{'':8}{'(incomplete)':<20}{'':22}"
        else:
            flags = "CM" if neigh.state is NeighState.PERMANENT else "C"
            hardware = f"{'ether':<8}{format_mac(neigh.mac):<20}{flags:<22}"
        rows.append(f"{format_ip(neigh.ip):<25}{hardware}{neigh.dev}\n")
    return "".join(rows)
