"""Names to addresses as a command's resolver does: literal, /etc/hosts, then the network's own."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from emulator.shell.context import ShellContext


class ResolveError(Exception):
    """The name has no address."""


def parse_hosts(text: str) -> dict[str, str]:
    """Read /etc/hosts: name → first IPv4 address."""
    table: dict[str, str] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if ":" in address:
            continue
        for name in names:
            table.setdefault(name.lower(), address)
    return table


async def resolve(ctx: ShellContext, host: str) -> str:
    """Return the address of ``host`` as text; ResolveError when it has none."""
    try:
        return format_ip(parse_ip(host))
    except UsageError:
        pass
    try:
        table = parse_hosts(ctx.files.read("/etc/hosts").decode("utf-8", "replace"))
    except OSError:
        table = {}
    if host.lower() in table:
        return table[host.lower()]
    try:
        return (await ctx.network.getaddrinfo(host))[0]
    except (socket.gaierror, OSError):
        raise ResolveError(host) from None
