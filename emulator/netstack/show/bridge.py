"""``bridge fdb``, ``bridge link`` and ``brctl show``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.addr import format_ip, format_mac
from emulator.netstack.show.link import flags_of, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from emulator.netstack.records import FdbInfo, LinkInfo


def render_bridge_fdb(entries: Iterable[FdbInfo], *, dev: str = "", bridge: str = "") -> str:
    """``bridge fdb [show [dev DEV] [br BRIDGE]]``; a device filter is not repeated."""
    lines = []
    for entry in entries:
        if (dev and entry.dev != dev) or (bridge and entry.master != bridge):
            continue
        text = f"{format_mac(entry.mac)} "
        if not dev:
            text += f"dev {entry.dev} "
        if entry.dst is not None:
            text += f"dst {format_ip(entry.dst)} "
        if entry.self_:
            text += "self "
        if entry.master:
            text += f"master {entry.master} "
        if entry.permanent:
            text += "permanent"
        lines.append(text + "\n")
    return "".join(lines)


def render_bridge_link(links: Iterable[LinkInfo]) -> str:
    """``bridge link``: the ports of every bridge."""
    return "".join(
        f"{link.index}: {name_of(link)}: <{','.join(flags_of(link))}> mtu {link.mtu} "
        f"master {link.master} state {'forwarding' if link.running else 'disabled'} "
        "priority 32 cost 2 \n"
        for link in links
        if link.master
    )


def render_brctl_show(links: Sequence[LinkInfo]) -> str:
    """``brctl show``: bridges by name, their ports by name."""
    lines = ["bridge name\tbridge id\t\tSTP enabled\tinterfaces\n"]
    for bridge in sorted((each for each in links if each.kind == "bridge"), key=lambda b: b.name):
        ports = sorted(each.name for each in links if each.master == bridge.name)
        head = f"{bridge.name}\t\t8000.{bridge.mac.hex()}\tno\t\t"
        lines.append(head + (ports[0] if ports else "") + "\n")
        lines += [f"\t\t\t\t\t\t\t{port}\n" for port in ports[1:]]
    return "".join(lines)
