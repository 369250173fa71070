"""iptables, its save and restore, ipset and conntrack: the pure tools on this namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.netstack.netfilter.conntrack_command import run_conntrack
from emulator.netstack.netfilter.ipset_command import run_ipset
from emulator.netstack.netfilter.iptables import (
    run_iptables,
    run_iptables_restore,
    run_iptables_save,
)
from emulator.netstack.netfilter.listing import ERA_2017, MODERN
from emulator.shell.context import os_error_text
from emulator.shell.text import read_input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.netstack.netfilter.listing import Style
    from emulator.netstack.netfilter.result import CommandResult
    from emulator.shell.context import ShellContext


def _style(ctx: ShellContext) -> Style:
    return MODERN if ctx.era == "modern" else ERA_2017


def _answer(ctx: ShellContext, result: CommandResult) -> int:
    ctx.out(result.stdout)
    ctx.err(result.stderr)
    return result.exit_code


async def iptables(ctx: ShellContext, argv: Sequence[str]) -> int:
    """iptables and its aliases."""
    return _answer(ctx, run_iptables(ctx.ns.netfilter, argv[1:], style=_style(ctx)))


async def iptables_save(ctx: ShellContext, argv: Sequence[str]) -> int:
    """iptables-save."""
    now = ctx.clock.time()
    return _answer(
        ctx, run_iptables_save(ctx.ns.netfilter, argv[1:], style=_style(ctx), epoch_s=now)
    )


async def iptables_restore(ctx: ShellContext, argv: Sequence[str]) -> int:
    """iptables-restore: rules from standard input, or from a file named last."""
    words = list(argv[1:])
    if words and not words[-1].startswith("-") and words[-1].startswith("/"):
        path = words.pop()
        try:
            data = ctx.files.read(ctx.path(path))
        except OSError as error:
            ctx.err(f"Can't open {path}: {os_error_text(error)}\n")
            return 1
    else:
        data = b"".join([part async for part in read_input(ctx, (), "iptables-restore")])
    text = data.decode("utf-8", "replace")
    return _answer(ctx, run_iptables_restore(ctx.ns.netfilter, words, text, style=_style(ctx)))


async def conntrack(ctx: ShellContext, argv: Sequence[str]) -> int:
    """conntrack -L, -D, -F, -C."""
    return _answer(ctx, run_conntrack(ctx.ns.netfilter, argv[1:]))


async def ipset(ctx: ShellContext, argv: Sequence[str]) -> int:
    """ipset: restore reads standard input, or the file after -file."""
    words, text = list(argv[1:]), ""
    path = ""
    for option in ("-file", "-f", "--file"):
        if option in words[:-1]:
            at = words.index(option)
            path = words[at + 1]
            del words[at : at + 2]
    if "restore" in words or "-R" in words:
        try:
            data = (
                ctx.files.read(ctx.path(path))
                if path
                else b"".join([part async for part in read_input(ctx, (), "ipset")])
            )
        except OSError as error:
            ctx.err(f"ipset v7.17: Cannot open {path}: {os_error_text(error)}\n")
            return 1
        text = data.decode("utf-8", "replace")
    return _answer(ctx, run_ipset(ctx.ns.netfilter.sets, words, text))
