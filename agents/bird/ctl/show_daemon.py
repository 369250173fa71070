"""``show status``, interfaces, memory, static, symbols and bfd sessions (pure).

Source: BIRD 1.6 and 2.0 nest/cmds.c, nest/iface.c, proto/static/static.c, proto/bfd/bfd.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agents.bird.config import Dest
from agents.bird.ctl.reply import (
    ADDRESS,
    BFD,
    FLAGS,
    INTERFACE,
    INTERFACE_HEADER,
    INTERFACE_SUMMARY,
    MEMORY,
    RECOVERY,
    RUNNING,
    STATIC,
    SYMBOL,
    UPTIME,
    VERSION,
    Dialect,
    Line,
    final,
)
from agents.bird.net import format_address
from emulator.addr import format_ip

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agents.bird.config import StaticRoute
    from agents.bird.ctl.times import Times
    from agents.bird.kernel import Interface, InterfaceAddress
    from agents.bird.snapshot import StatusInfo

_DESTS: Final = {
    Dest.BLACKHOLE: "blackhole",
    Dest.UNREACHABLE: "unreachable",
    Dest.PROHIBIT: "prohibited",
}
_UNITS: Final = (" ", "k", "M", "G")


class MemoryUse(NamedTuple):
    """Octets of one part: what is in use, and what is held beside."""

    name: str
    effective: int
    overhead: int = 0


class BfdRow(NamedTuple):
    """One BFD session; ``interface`` is "" for multihop, times are seconds."""

    neighbor: str
    interface: str
    state: str
    since: float
    interval_s: float
    timeout_s: float


def show_status(status: StatusInfo, version: str, times: Times) -> Iterator[Line]:
    """The daemon."""
    yield Line(VERSION, f"BIRD {version}")
    yield Line(UPTIME, f"Router ID is {format_ip(status.router_id)}")
    if times.dialect is Dialect.BIRD2:
        yield Line(UPTIME, f"Hostname is {status.hostname}")
    yield Line(UPTIME, f"Current server time is {times.long(times.now)}")
    yield Line(UPTIME, f"Last reboot on {times.long(status.started_at)}")
    yield Line(UPTIME, f"Last reconfiguration on {times.long(status.configured_at)}")
    if status.recovering is not None:
        waiting, left_s, of_s = status.recovering
        yield Line(RECOVERY, "Graceful restart recovery in progress")
        awaited = "channels" if times.dialect is Dialect.BIRD2 else "protocols"
        yield Line(RECOVERY, f"  Waiting for {waiting} {awaited} to recover")
        yield Line(RECOVERY, f"  Wait timer is {times.left(left_s)}/{of_s:g}")
    word = "Shutdown in progress" if status.is_stopping else "Daemon is up and running"
    yield final(RUNNING, word)


def show_interfaces(interfaces: Iterable[Interface], dialect: Dialect) -> Iterator[Line]:
    """Each interface with flags and addresses."""
    for link in interfaces:
        yield Line(INTERFACE, f"{link.name} {_state(link, dialect)} (index={link.index})")
        yield Line(FLAGS, f"\t{' '.join(_flags(link))} MTU={link.mtu}")
        shown = _families(link.addresses, dialect)
        for at, address in enumerate(shown):
            yield Line(ADDRESS, f"\t{_address(address, dialect, first=_is_first(shown, at))}")


def show_interfaces_summary(interfaces: Iterable[Interface], dialect: Dialect) -> Iterator[Line]:
    """A table of the interfaces."""
    if dialect is Dialect.BIRD1:
        yield Line(INTERFACE_HEADER, "interface state address")
    else:
        yield Line(INTERFACE_HEADER, "Interface  State  IPv4 address       IPv6 address")
    for link in interfaces:
        state = _state(link, dialect)
        first = {
            size: next((a for a in link.addresses if len(a.address) == size), None)
            for size in (4, 16)
        }
        texts = {
            size: f"{format_address(a.address)}/{a.length}" if a is not None else ""
            for size, a in first.items()
        }
        if dialect is Dialect.BIRD1:
            yield Line(INTERFACE_SUMMARY, f"{link.name:<9} {state:<5} {texts[4]}")
        else:
            row = f"{link.name:<10} {state:<6} {texts[4]:<18} {texts[16]}"
            yield Line(INTERFACE_SUMMARY, row)


def _state(link: Interface, dialect: Dialect) -> str:
    if link.up and link.running:
        return "up"
    return "DOWN" if dialect is Dialect.BIRD1 else "down"


def _flags(link: Interface) -> Iterator[str]:
    yield "MultiAccess"
    if link.broadcast and not link.loopback:
        yield "Broadcast"
    if link.multicast and not link.loopback:
        yield "Multicast"
    yield "AdminUp" if link.up else "AdminDown"
    yield "LinkUp" if link.up and link.running else "LinkDown"
    if link.loopback:
        yield "Loopback"
        yield "Ignored"


def _families(addresses: Sequence[InterfaceAddress], dialect: Dialect) -> list[InterfaceAddress]:
    """BIRD 1 is one daemon a family, ours is the one for IPv4."""
    return [a for a in addresses if dialect is Dialect.BIRD2 or len(a.address) == 4]


def _is_first(addresses: Sequence[InterfaceAddress], at: int) -> bool:
    size = len(addresses[at].address)
    return all(len(a.address) != size for a in addresses[:at])


def _address(address: InterfaceAddress, dialect: Dialect, *, first: bool) -> str:
    words = ("Primary", "Secondary") if dialect is Dialect.BIRD1 else ("Preferred", "Secondary")
    scope = "univ" if address.scope == "global" else address.scope
    text = f"{format_address(address.address)}/{address.length}"
    return f"{text} ({words[0] if first else words[1]}, scope {scope})"


def show_memory(parts: Sequence[MemoryUse], dialect: Dialect) -> Iterator[Line]:
    """What is held in memory, as an estimate."""
    yield Line(MEMORY, "BIRD memory usage")
    if dialect is Dialect.BIRD2:
        yield Line(MEMORY, f"{'':<17} {'Effective':>9}   {'Overhead':>9}")
    for part in parts:
        name = f"{part.name}:"
        if dialect is Dialect.BIRD1:
            yield Line(MEMORY, f"{name:<17} {_size1(part.effective + part.overhead)}")
        else:
            yield Line(MEMORY, f"{name:<17} {_size2(part.effective)}   {_size2(part.overhead)}")


def _size1(octets: int) -> str:
    step = 0
    while octets >= 10000 and step < 3:
        octets = (octets + 512) // 1024
        step += 1
    return f"{octets:4d} {_UNITS[step]}B"


def _size2(octets: int) -> str:
    value = float(octets)
    step = 0
    while value >= 10000 and step < 3:
        value /= 1024
        step += 1
    return f"{value:6.1f} {_UNITS[step]}B"


def show_static(routes: Iterable[tuple[StaticRoute, bool]], dialect: Dialect) -> Iterator[Line]:
    """The routes of a static protocol, and whether each is dormant (its way is not there)."""
    for route, dormant in routes:
        if route.dest is not Dest.UNICAST:
            between = " " if dialect is Dialect.BIRD1 else "\t"
            yield Line(STATIC, f"{route.net}{between}{_DESTS[route.dest]}")
            continue
        way = f"via {format_address(route.via)}" if route.via else f"dev {route.dev}"
        way += " (dormant)" if dormant else ""
        if dialect is Dialect.BIRD1:
            yield Line(STATIC, f"{route.net} {way}")
        else:
            yield Line(STATIC, str(route.net))
            yield Line(STATIC, f"\t{way}")


def show_symbols(names: Iterable[tuple[str, str]]) -> Iterator[Line]:
    """Names and what they are."""
    for name, kind in names:
        yield Line(SYMBOL, f"{name:<8}\t{kind}")


def show_bfd(rows: Sequence[BfdRow], name: str, times: Times) -> Iterator[Line]:
    """The sessions of the BFD protocol of this name."""
    yield Line(BFD, f"{name}:")
    heading = ("IP address", "Interface", "State", "Since", "Interval", "Timeout")
    wide = 10 if times.dialect is Dialect.BIRD1 else 12
    yield Line(BFD, "{:<25} {:<10} {:<10} {:<{wide}}  {}  {}".format(*heading, wide=wide))
    for row in rows:
        since = times.short(row.since)
        yield Line(
            BFD,
            f"{row.neighbor:<25} {row.interface or '---':<10} {row.state:<10} "
            f"{since:<{wide}}  {row.interval_s:7.3f}  {row.timeout_s:7.3f}",
        )
