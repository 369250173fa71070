"""``ifconfig`` of net-tools 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import format_ip, format_mac, mask_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from emulator.netstack.records import AddrInfo, LinkInfo

# Flag bits of linux/if.h in the order ifconfig names them.
_FLAGS: Final = (
    *((0x1, "UP"), (0x2, "BROADCAST"), (0x8, "LOOPBACK"), (0x10, "POINTOPOINT")),
    *((0x40, "RUNNING"), (0x80, "NOARP"), (0x1000, "MULTICAST")),
)
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_TYPES: Final = {
    "lo": ("loop", "Local Loopback"),
    "ipip": ("tunnel", "IPIP Tunnel"),
}


def _bits(link: LinkInfo) -> int:
    bits = 0
    if link.kind == "lo":
        bits |= 0x8
    elif link.kind != "ipip":
        bits |= 0x2
        if link.kind != "dummy":
            bits |= 0x1000
    if link.noarp and link.kind != "lo":
        bits |= 0x80
    if link.up:
        bits |= 0x1
        if link.running:
            bits |= 0x40
    return bits


def _human(octets: int) -> str:
    """Bytes as ifconfig shortens them, cut and not rounded: 28.9 MiB."""
    power = 0
    while power < len(_UNITS) - 1 and octets > 1024 ** (power + 1):
        power += 1
    tenths = octets * 10 // 1024**power
    return f"{tenths // 10}.{tenths % 10} {_UNITS[power]}"


def render_ifconfig(
    links: Iterable[LinkInfo], addrs: Sequence[AddrInfo], *, everything: bool = False
) -> str:
    """``ifconfig [-a]``: devices by name, those that are down only with ``everything``.

    ifconfig knows one address a device; further ones are left out, as it leaves out those without
    a label of their own.
    """
    return "".join(
        render_ifconfig_one(link, addrs)
        for link in sorted(links, key=lambda each: each.name)
        if link.up or everything
    )


def render_ifconfig_one(link: LinkInfo, addrs: Sequence[AddrInfo]) -> str:
    """``ifconfig DEV``."""
    bits = _bits(link)
    names = ",".join(name for bit, name in _FLAGS if bits & bit)
    lines = [f"{link.name}: flags={bits}<{names}>  mtu {link.mtu}"]
    mine = [addr for addr in addrs if addr.dev == link.name]
    if mine:
        addr = mine[0]
        text = f"        inet {format_ip(addr.ip)}  netmask {format_ip(mask_of(addr.length))}"
        if bits & 0x2:
            text += f"  broadcast {format_ip(addr.broadcast or 0)}"
        lines.append(text)
    word, title = _TYPES.get(link.kind, ("ether", "Ethernet"))
    hardware = f"ether {format_mac(link.mac)}" if word == "ether" else word
    lines.append(f"        {hardware}  txqueuelen {link.txqlen}  ({title})")
    for name, packets, octets, dropped, tail in (
        ("RX", link.rx_packets, link.rx_bytes, link.rx_dropped, "  overruns 0  frame 0"),
        ("TX", link.tx_packets, link.tx_bytes, link.tx_dropped, " overruns 0  carrier 0"),
    ):
        lines.append(f"        {name} packets {packets}  bytes {octets} ({_human(octets)})")
        extra = "  collisions 0" if name == "TX" else ""
        lines.append(f"        {name} errors 0  dropped {dropped}{tail}{extra}")
    return "\n".join(lines) + "\n\n"
