"""Which commands there are, and how one is run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from emulator.errors import UsageError
from emulator.shell import system, text
from emulator.shell.archive import tar
from emulator.shell.context import END_OF_INPUT, INTERRUPT, os_error_text, seconds_of
from emulator.shell.curl import curl
from emulator.shell.devices import arp, brctl, bridge, ifconfig, route, sysctl
from emulator.shell.interpreter import EXIT_SIGINT, EXIT_SYNTAX, Interpreter, ShellExitError
from emulator.shell.ip import ip
from emulator.shell.iptables import conntrack, ipset, iptables, iptables_restore, iptables_save
from emulator.shell.parse import parse
from emulator.shell.ping import ping
from emulator.shell.sockets import nc, netstat, ss
from emulator.shell.text import input_lines
from emulator.shell.tokens import IncompleteError
from emulator.shell.traceroute import tracepath, traceroute
from emulator.shell.wget import wget

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence
    from typing import Any

    from emulator.shell.context import Command, ShellContext

EXIT_NOT_FOUND: Final = 127
EXIT_SIGPIPE: Final = 128 + 13
# A command that is not complete after so much text never will be.
MAX_COMMAND_CHARS: Final = 256 * 1024
# So much text is read anew with each line, that errors are told at once; more only with a line
# that may complete it.
SHORT_COMMAND_CHARS: Final = 4096


async def shell(ctx: ShellContext, argv: Sequence[str]) -> int:
    """sh, ash, bash: ``-c TEXT [ARGUMENTS]``, a script file, or standard input."""
    words = list(argv[1:])
    while words and words[0] in ("-e", "-x", "-i", "-l", "-ec", "-xc", "-lc", "-u", "--login"):
        if words[0].endswith("c"):
            words[0] = "-c"
            break
        words.pop(0)
    if words[:1] == ["-c"]:
        if len(words) < 2:
            ctx.err(f"{argv[0]}: -c: option requires an argument\n")
            return 2
        interpreter = Interpreter(run_command, arguments=words[2:] or [argv[0]])
        return await interpreter.run_text(ctx.subshell(), words[1])
    if words:
        try:
            script = ctx.files.read(ctx.path(words[0])).decode("utf-8", "replace")
        except OSError as error:
            ctx.err(f"{argv[0]}: can't open '{words[0]}': {os_error_text(error)}\n")
            return 2
        return await Interpreter(run_command, arguments=words).run_text(ctx.subshell(), script)
    return 0 if ctx.stdin is None else await _read_and_run(ctx.subshell(), argv[0])


async def _read_and_run(ctx: ShellContext, name: str) -> int:
    """Run standard input's commands, each as soon as its last line has come."""
    interpreter = Interpreter(run_command, arguments=[name])
    text, until, ctx.status = "", "", 0
    await _prompt(ctx)
    async for line in input_lines(replace(ctx, ask=None), (), name):
        # Ctrl-C ended the last command, not the shell that asks for the next.
        ctx.interrupt.clear()
        if line == END_OF_INPUT and ctx.ask is not None:
            break
        text, until = ("", "") if line == INTERRUPT else (f"{text}{line}\n", until)
        try:
            if until not in line and SHORT_COMMAND_CHARS < len(text) <= MAX_COMMAND_CHARS:
                await _prompt(ctx, continued=True)
                continue
            tree = parse(text.removesuffix("\n"), more=True)
        except IncompleteError as error:
            if len(text) <= MAX_COMMAND_CHARS:
                until = error.until
                await _prompt(ctx, continued=True)
                continue
            ctx.err(f"{name}: {error}\n")
            ctx.status = EXIT_SYNTAX
        except UsageError as error:
            ctx.err(f"{name}: {error}\n")
            ctx.status = EXIT_SYNTAX
        else:
            try:
                ctx.status = await interpreter.run_tree(ctx, tree)
            except ShellExitError as exit_:
                return exit_.status
            if ctx.interrupt.is_set() and ctx.ask is None and not ctx.tty:
                return EXIT_SIGINT
        text, until = "", ""
        await _prompt(ctx)
    return await interpreter.run_text(ctx, text) if text else ctx.status


async def _prompt(ctx: ShellContext, *, continued: bool = False) -> None:
    if continued:
        prompt = "> "
    elif ctx.style == "gnu":
        home = ctx.env.get("HOME", "")
        prompt = f"root@{ctx.hostname}:{'~' if ctx.cwd == home else ctx.cwd}# "
    else:
        prompt = f"{ctx.cwd} # "
    if ctx.ask is None and ctx.tty:
        ctx.out(prompt)
    await ctx.stdout.drain()
    await ctx.stderr.drain()
    # Lines that are all there at once must not keep the node's other tasks waiting.
    await asyncio.sleep(0)
    if ctx.ask is not None:
        await ctx.ask(prompt)


async def nohup(ctx: ShellContext, argv: Sequence[str]) -> int:
    """sudo, nohup, time, command, stdbuf: run what follows."""
    words = list(argv[1:])
    while words and words[0].startswith("-"):
        words.pop(0)
    return await run_command(ctx, words) if words else 0


async def timeout_command(ctx: ShellContext, argv: Sequence[str]) -> int:
    """timeout [-t] SECONDS COMMAND: 124 when the time is up (143 in busybox)."""
    words = [word for word in argv[1:] if word != "-t"]
    seconds = seconds_of(words[0].rstrip("s")) if words else None
    if seconds is None:
        ctx.err("timeout: invalid time interval\n")
        return 125
    try:
        async with asyncio.timeout(seconds):
            return await run_command(ctx, words[1:])
    except TimeoutError:
        return 143 if ctx.style == "busybox" else 124


async def which(ctx: ShellContext, argv: Sequence[str]) -> int:
    """which NAMES."""
    status = 0
    for name in argv[1:]:
        if name in COMMANDS:
            ctx.out(f"/usr/bin/{name}\n")
        else:
            status = 1
    return status


async def busybox(ctx: ShellContext, argv: Sequence[str]) -> int:
    """busybox APPLET ARGUMENTS."""
    if len(argv) < 2:
        ctx.out("BusyBox v1.36.1 (2024-06-10 07:11:47 UTC) multi-call binary.\n")
        return 0
    return await run_command(ctx, list(argv[1:]))


COMMANDS: Final[Mapping[str, Command]] = {
    "sh": shell,
    "ash": shell,
    "bash": shell,
    "busybox": busybox,
    "sudo": nohup,
    "nohup": nohup,
    "command": nohup,
    "timeout": timeout_command,
    "which": which,
    "echo": text.echo,
    "printf": text.printf,
    "cat": text.cat,
    "tee": text.tee,
    "grep": text.grep,
    "egrep": text.grep,
    "head": text.head,
    "tail": text.tail,
    "wc": text.wc,
    "sort": text.sort,
    "uniq": text.uniq,
    "xargs": system.xargs,
    "sleep": system.sleep,
    "date": system.date,
    "uname": system.uname,
    "id": system.whoami,
    "whoami": system.whoami,
    "hostname": system.hostname,
    "env": system.env,
    "printenv": system.env,
    "ls": system.ls,
    "touch": system.file_verbs,
    "mkdir": system.file_verbs,
    "rm": system.file_verbs,
    "tar": tar,
    "ps": system.ps,
    "test": system.test,
    "[": system.test,
    "seq": system.seq,
    "true": system.true,
    "false": system.false,
    "pwd": system.pwd,
    "ping": ping,
    "traceroute": traceroute,
    "tracepath": tracepath,
    "ip": ip,
    "bridge": bridge,
    "brctl": brctl,
    "ifconfig": ifconfig,
    "route": route,
    "arp": arp,
    "sysctl": sysctl,
    "iptables": iptables,
    "ipset": ipset,
    "iptables-nft": iptables,
    "iptables-legacy": iptables,
    "iptables-save": iptables_save,
    "iptables-restore": iptables_restore,
    "conntrack": conntrack,
    "ss": ss,
    "netstat": netstat,
    "nc": nc,
    "ncat": nc,
    "curl": curl,
    "wget": wget,
}


# What waits for its input or for others, and knows nothing of SIGINT: it ends.
_ENDED_BY_SIGINT: Final = frozenset(
    (
        *("cat", "tee", "grep", "egrep", "head", "tail", "wc", "sort", "uniq", "xargs", "tar"),
        *("iptables-restore", "ipset", "nc", "ncat", "curl", "wget"),
    )
)


async def _interruptible(ctx: ShellContext, work: Coroutine[Any, Any, int]) -> int:
    """Run a command until it ends or SIGINT ends it."""
    command = asyncio.create_task(work, name="shell.command")
    interrupted = asyncio.create_task(ctx.interrupt.wait(), name="shell.interrupt")
    try:
        await asyncio.wait((command, interrupted), return_when=asyncio.FIRST_COMPLETED)
        return command.result() if command.done() else EXIT_SIGINT
    finally:
        command.cancel()
        interrupted.cancel()
        await asyncio.gather(command, interrupted, return_exceptions=True)


def base_name(word: str) -> str:
    """``ip`` of ``/sbin/ip``."""
    return word.rpartition("/")[2] if word.startswith(("/", "./")) else word


def has_command(name: str) -> bool:
    """True if ``run_command`` knows this command."""
    return base_name(name) in COMMANDS


async def run_command(ctx: ShellContext, argv: Sequence[str]) -> int:
    """Run one command line of separate words; its exit status.

    An unknown command says so as the context's shell would and gives 127; a complaint about the
    arguments is the command's own.
    """
    if not argv:
        return 0
    name = base_name(argv[0])
    command = COMMANDS.get(name)
    if command is None:
        if ctx.style == "busybox":
            ctx.err(f"sh: {argv[0]}: not found\n")
        else:
            ctx.err(f"sh: 1: {argv[0]}: not found\n")
        return EXIT_NOT_FOUND
    try:
        work = command(ctx, [name, *argv[1:]])
        status = await (_interruptible(ctx, work) if name in _ENDED_BY_SIGINT else work)
        await ctx.stdout.drain()
        await ctx.stderr.drain()
    except BrokenPipeError:
        return EXIT_SIGPIPE
    except UsageError as error:
        ctx.err(f"{name}: {error}\n")
        return 1
    return status
