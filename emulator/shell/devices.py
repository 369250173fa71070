"""bridge, brctl, ifconfig, route, arp and sysctl: the older views of the same dumps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from emulator.addr import format_ip, format_mac, mask_of, parse_ip, parse_mac
from emulator.errors import UsageError
from emulator.netstack.fib import RouteType
from emulator.netstack.records import NeighState
from emulator.netstack.show.bridge import (
    render_brctl_show,
    render_bridge_fdb,
    render_bridge_link,
)
from emulator.netstack.show.ifconfig import render_ifconfig
from emulator.netstack.show.neigh import render_arp
from emulator.shell import busybox_ip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from emulator.netstack.netns import NetNs
    from emulator.shell.context import ShellContext

BRIDGE_USAGE = """Usage: bridge [ OPTIONS ] OBJECT { COMMAND | help }
       bridge [ -force ] -batch filename
where  OBJECT := { link | fdb | mdb | vlan | vni | monitor }
       OPTIONS := { -V[ersion] | -s[tatistics] | -d[etails] |
                    -o[neline] | -t[imestamp] | -n[etns] name |
                    -com[pressvlans] -c[olor] -p[retty] -j[son] }
"""
BRCTL_USAGE = """Usage: brctl [commands]
commands:
\taddbr     \t<bridge>\t\tadd bridge
\tdelbr     \t<bridge>\t\tdelete bridge
\taddif     \t<bridge> <device>\tadd interface to bridge
\tdelif     \t<bridge> <device>\tdelete interface from bridge
\thairpin   \t<bridge> <port> {on|off}\tturn hairpin on/off
\tshow      \t[ <bridge> ]\t\tshow a list of bridges
\tshowmacs  \t<bridge>\t\tshow a list of mac addrs
"""


async def bridge(ctx: ShellContext, argv: Sequence[str]) -> int:
    """bridge fdb [show|add|append|replace|del], bridge link."""
    words = [word for word in argv[1:] if not word.startswith("-")]
    if not words:
        ctx.err(BRIDGE_USAGE)
        return 255
    obj, verb, rest = words[0], words[1] if len(words) > 1 else "show", words[2:]
    try:
        if "fdb".startswith(obj):
            return _fdb(ctx, verb, rest)
        if "link".startswith(obj):
            ctx.out(render_bridge_link(ctx.ns.links()))
            return 0
    except UsageError as error:
        ctx.err(f"{error}\n")
        return 1 if str(error).startswith("Cannot find") else 2
    ctx.err(f'Object "{obj}" is unknown, try "bridge help".\n')
    return 255


def _fdb(ctx: ShellContext, verb: str, words: list[str]) -> int:
    dev = bridge_name = mac = dst = ""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("dev", "brport", "br", "dst") and rest:
            value = rest.pop(0)
            dev = value if word in ("dev", "brport") else dev
            bridge_name = value if word == "br" else bridge_name
            dst = value if word == "dst" else dst
        elif ":" in word:
            mac = word
    if verb in ("show", "list", "lst", "s"):
        for name in (dev, bridge_name):
            if name:
                ctx.ns.link(name)
        ctx.out(render_bridge_fdb(ctx.ns.fdb(), dev=dev, bridge=bridge_name))
        return 0
    if verb not in ("add", "append", "replace", "del", "delete"):
        ctx.err(f'Command "{verb}" is unknown, try "bridge fdb help".\n')
        return 255
    if not dev or not mac:
        ctx.err("Device and address are required arguments.\n")
        return 255
    if verb.startswith("del"):
        ctx.ns.fdb_del(dev, parse_mac(mac))
    elif verb == "add":
        ctx.ns.fdb_add(dev, parse_mac(mac), parse_ip(dst) if dst else None)
    else:
        ctx.ns.fdb_replace(dev, parse_mac(mac), parse_ip(dst) if dst else None)
    return 0


async def brctl(ctx: ShellContext, argv: Sequence[str]) -> int:
    """brctl show, showmacs, addbr, delbr, addif, delif, hairpin."""
    words = list(argv[1:])
    ns = ctx.ns
    try:
        match words:
            case ["show", *names]:
                return _brctl_show(ctx, names)
            case ["showmacs", name]:
                ns.link(name)
                ctx.out(_brctl_macs(ns, name))
            case ["addbr", name]:
                ns.link_add(name, "bridge")
            case ["delbr", name]:
                ns.link_del(name)
            case ["addif", name, *ports]:
                for port in ports:
                    ns.link_set(port, master=name)
            case ["delif", _, *ports]:
                for port in ports:
                    ns.link_set(port, master="")
            case ["hairpin", _, port, value]:
                ns.link_set(port, hairpin=value in ("on", "yes", "1"))
            case []:
                ctx.err(BRCTL_USAGE)
                return 1
            case _:
                ctx.err(f"never heard of command [{words[0]}]\n{BRCTL_USAGE}")
                return 1
    except UsageError as error:
        ctx.err(f"{error}\n")
        return 1
    return 0


def _brctl_show(ctx: ShellContext, names: Sequence[str]) -> int:
    links = ctx.ns.links()
    bridges = [link.name for link in links if link.kind == "bridge"]
    for name in names:
        if name not in bridges:
            ctx.err(f"bridge {name} does not exist!\n")
            return 1
    shown = [each for each in links if not names or each.name in names or each.master in names]
    ctx.out(render_brctl_show(shown))
    return 0


def _brctl_macs(ns: NetNs, name: str) -> str:
    ports = {link.name: number for number, link in enumerate(ns.links()) if link.master == name}
    numbers = {port: index for index, port in enumerate(sorted(ports, key=ports.__getitem__), 1)}
    lines = ["port no\tmac addr\t\tis local?\tageing timer\n"]
    lines += [
        f"{numbers[entry.dev]:3d}\t{format_mac(entry.mac)}\t"
        f"{'yes' if entry.permanent else 'no'}\t\t{entry.age_s:7.2f}\n"
        for entry in ns.fdb()
        if entry.dev in numbers and not entry.self_
    ]
    return "".join(lines)


async def ifconfig(ctx: ShellContext, argv: Sequence[str]) -> int:
    """ifconfig [-a] [DEVICE]."""
    every = "-a" in argv[1:]
    names = [word for word in argv[1:] if not word.startswith("-")]
    links = {link.name: link for link in ctx.ns.links()}
    if names and names[0] not in links:
        if ctx.style == "busybox":
            ctx.err(f"ifconfig: {names[0]}: error fetching interface information: ")
            ctx.err("Device not found\n")
        else:
            ctx.err(f"{names[0]}: error fetching interface information: Device not found\n")
        return 1
    shown = [
        link for link in links.values() if link.name in names or (not names and (every or link.up))
    ]
    if ctx.style != "busybox":
        ctx.out(render_ifconfig(shown, ctx.ns.addrs(), everything=True))
        return 0
    for link in shown:
        held = next((each for each in ctx.ns.addrs() if each.dev == link.name), None)
        ctx.out(busybox_ip.render_ifconfig(link, held))
    return 0


async def route(ctx: ShellContext, argv: Sequence[str]) -> int:
    """route [-n]."""
    lines = [
        "Kernel IP routing table\n",
        "Destination     Gateway         Genmask         Flags Metric Ref    Use Iface\n",
    ]
    for each in ctx.ns.routes():
        flags = "U" if each.type is RouteType.UNICAST else "!"
        flags += "G" if each.gateway is not None else ""
        flags += "H" if each.dst.length == 32 else ""
        gateway = format_ip(each.gateway or 0)
        mask = format_ip(mask_of(each.dst.length))
        lines.append(
            f"{format_ip(each.dst.network):<15} {gateway:<15} {mask:<15} {flags:<5} "
            f"{each.metric:<6d} {0:<2d} {0:>7d} {each.dev or '*'}\n"
        )
    ctx.out("".join(lines))
    return 0


async def arp(ctx: ShellContext, argv: Sequence[str]) -> int:
    """arp [-n] [-a]."""
    entries = ctx.ns.neighs()
    if "-a" in argv[1:]:
        for entry in entries:
            mac = format_mac(entry.mac) if entry.mac else "<incomplete>"
            flag = " PERM" if entry.state is NeighState.PERMANENT else ""
            ctx.out(f"? ({format_ip(entry.ip)}) at {mac} [ether]{flag} on {entry.dev}\n")
        return 0
    ctx.out(render_arp(entries) if entries else "")
    return 0


async def sysctl(ctx: ShellContext, argv: Sequence[str]) -> int:
    """sysctl [-n] [-a] [-w] NAME[=VALUE]."""
    words = [word for word in argv[1:] if not word.startswith("-")]
    table, devices = ctx.ns.sysctl, ctx.ns.devices
    if "-a" in argv[1:]:
        words = table.names(devices)
    status = 0
    for word in words:
        name, equals, value = word.partition("=")
        name = _dotted(name.strip())
        if table.read(name, devices) is None:
            ctx.err(f"sysctl: cannot stat /proc/sys/{_slashed(name)}: No such file or directory\n")
            status = 255
            continue
        if equals:
            number = _setting(value)
            if number is None:
                ctx.err(f'sysctl: setting key "{name}": Invalid argument\n')
                status = 255
                continue
            table[name] = number
        found = table.read(name, devices)
        ctx.out(f"{found}\n" if "-n" in argv[1:] else f"{name} = {found}\n")
    return status


def _setting(text: str) -> int | None:
    """A decimal number of 32 bits as the kernel takes it for a setting."""
    match = re.fullmatch(r"\s*(-?[0-9]{1,10})\s*", text)
    value = int(match[1]) if match is not None else 1 << 31
    return value if -(1 << 31) <= value < 1 << 31 else None


def _dotted(name: str) -> str:
    """A setting's name with dots; one with slashes keeps the dots of a device (eth0.100)."""
    return name if "/" not in name else name.replace("/", ".")


def _slashed(name: str) -> str:
    """The path below /proc/sys: a device's own dots stay."""
    parts = name.split(".")
    if parts[:2] == ["net", "ipv4"] and len(parts) > 5:
        return "/".join((*parts[:3], ".".join(parts[3:-1]), parts[-1]))
    return "/".join(parts)


class ProcSys(Mapping[str, Callable[[], bytes]]):
    """/proc/sys as files that follow a namespace: what ``cat`` and ``ls`` see."""

    def __init__(self, ns: NetNs) -> None:
        self._ns = ns

    def __getitem__(self, path: str) -> Callable[[], bytes]:
        name = path.removeprefix("/proc/sys/")
        value = self._ns.sysctl.read(_dotted(name), self._ns.devices)
        if value is None or name == path:
            raise KeyError(path)
        return lambda: f"{value}\n".encode()

    def __iter__(self) -> Iterator[str]:
        names = self._ns.sysctl.names(self._ns.devices)
        return iter([f"/proc/sys/{_slashed(name)}" for name in names])

    def __len__(self) -> int:
        return len(self._ns.sysctl.names(self._ns.devices))

    def write(self, path: str, data: bytes) -> bool:
        """Take a new value, a decimal number; False for anything else."""
        text = data.decode("ascii", "replace").strip()
        if not text:
            # A shell truncates a file before it writes to it.
            return True
        number = _setting(text)
        if number is None:
            return False
        self._ns.sysctl[_dotted(path.removeprefix("/proc/sys/"))] = number
        return True
