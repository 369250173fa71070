"""Tools about the place itself: sleep, date, hostname, env, ls, test and their like."""

from __future__ import annotations

import asyncio
import datetime
import re
import shlex
from typing import TYPE_CHECKING

from emulator.addr import format_ip
from emulator.shell.context import MAX_DIGITS, os_error_text
from emulator.shell.text import flags_of, input_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.shell.context import ShellContext

# sleep takes these suffixes in both coreutils and busybox.
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


async def sleep(ctx: ShellContext, argv: Sequence[str]) -> int:
    """sleep N[smhd]…, ``infinity`` too; ends early with 130 on an interrupt."""
    if len(argv) < 2:
        ctx.err("sleep: missing operand\n")
        return 1
    total = 0.0
    for word in argv[1:]:
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)", word)
        if match is None and word not in ("infinity", "inf"):
            ctx.err(f"sleep: invalid time interval ‘{word}’\n")
            return 1
        total += float("inf") if match is None else float(match[1]) * _UNITS[match[2]]
    await ctx.stdout.drain()
    try:
        async with asyncio.timeout(None if total == float("inf") else total):
            await ctx.interrupt.wait()
    except TimeoutError:
        return 0
    return 130


async def date(ctx: ShellContext, argv: Sequence[str]) -> int:
    """date [-u] [+FORMAT]."""
    moment = datetime.datetime.fromtimestamp(ctx.clock.time(), datetime.UTC)
    formats = [word[1:] for word in argv[1:] if word.startswith("+")]
    if formats:
        text = formats[0].replace("%s", str(int(ctx.clock.time())))
        text = text.replace("%N", f"{moment.microsecond * 1000:09d}")
        ctx.out(f"{moment.strftime(text)}\n")
    else:
        ctx.out(f"{moment:%a %b} {moment.day:2d} {moment:%H:%M:%S} UTC {moment.year}\n")
    return 0


async def uname(ctx: ShellContext, argv: Sequence[str]) -> int:
    """uname [-asnrvmo]."""
    values = {
        "s": "Linux",
        "n": ctx.hostname,
        "r": "6.1.0-podwire",
        "v": "#1 SMP PREEMPT_DYNAMIC",
        "m": "x86_64",
        "o": "GNU/Linux",
    }
    flags, _ = flags_of(argv, "asnrvmo")
    chosen = [values[key] for key in "snrvmo" if key in flags or "a" in flags]
    ctx.out(" ".join(chosen or ["Linux"]) + "\n")
    return 0


async def whoami(ctx: ShellContext, argv: Sequence[str]) -> int:
    """id, whoami: everybody is root in here."""
    ctx.out("root\n" if argv[0].endswith("whoami") else "uid=0(root) gid=0(root) groups=0(root)\n")
    return 0


async def hostname(ctx: ShellContext, argv: Sequence[str]) -> int:
    """hostname [-i|-I|-f|-s]."""
    if argv[1:2] in (["-i"], ["-I"], ("-i",), ("-I",)):
        found = [format_ip(each.ip) for each in ctx.ns.addrs() if each.dev != "lo"]
        ctx.out(" ".join(found) + ("\n" if argv[1] == "-i" else " \n"))
    elif argv[1:2] in (["-s"], ("-s",)):
        ctx.out(ctx.hostname.partition(".")[0] + "\n")
    else:
        ctx.out(ctx.hostname + "\n")
    return 0


async def env(ctx: ShellContext, argv: Sequence[str]) -> int:
    """env [NAME=VALUE]… [COMMAND], printenv [NAME]."""
    if argv[0].endswith("printenv") and len(argv) > 1:
        if argv[1] not in ctx.env:
            return 1
        ctx.out(f"{ctx.env[argv[1]]}\n")
        return 0
    words = [word for word in argv[1:] if word != "-"]
    ctx = ctx.subshell()
    while words and "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        ctx.env[name] = value
    if words:
        from emulator.shell.registry import run_command

        return await run_command(ctx, words)
    ctx.out("".join(f"{name}={value}\n" for name, value in ctx.env.items()))
    return 0


async def ps(ctx: ShellContext, argv: Sequence[str]) -> int:
    """ps [aux|-ef]: a container's first process, and this one."""
    try:
        first = ctx.files.read("/proc/1/cmdline").decode("utf-8", "replace")
    except OSError:
        first = "/sbin/init"
    table = [(1, first.replace("\0", " ").strip()), (ctx.rng.randrange(7, 100), " ".join(argv))]
    if ctx.style == "busybox":
        ctx.out("PID   USER     TIME  COMMAND\n")
        ctx.out("".join(f"{pid:5d} root      0:00 {line}\n" for pid, line in table))
        return 0
    ctx.out("    PID TTY          TIME CMD\n")
    ctx.out("".join(f"{pid:7d} ?        00:00:00 {line}\n" for pid, line in table))
    return 0


async def ls(ctx: ShellContext, argv: Sequence[str]) -> int:
    """ls [-la1] [PATHS]."""
    flags, names = flags_of(argv, "la1hdAtr")
    status = 0
    for number, name in enumerate(names or ["."]):
        path = ctx.path(name)
        if not ctx.files.exists(path):
            quoted = name if ctx.style == "busybox" else f"cannot access '{name}'"
            ctx.err(f"ls: {quoted}: No such file or directory\n")
            status = 1 if ctx.style == "busybox" else 2
            continue
        directory = ctx.files.is_dir(path) and "d" not in flags
        entries = ctx.files.listdir(path) if directory else [name]
        if directory and len(names) > 1:
            ctx.out(f"{chr(10) if number else ''}{name}:\n")
        if "l" in flags:
            base = path if directory else ctx.cwd
            ctx.out("".join(_long_line(ctx, base, entry) for entry in entries))
        else:
            ctx.out("".join(f"{entry}\n" for entry in entries))
    return status


def _long_line(ctx: ShellContext, base: str, name: str) -> str:
    path = f"{base}/{name}" if not name.startswith("/") else name
    moment = datetime.datetime.fromtimestamp(ctx.files.mtime(path), datetime.UTC)
    when = f"{moment:%b} {moment.day:2d} {moment:%H:%M}"
    if ctx.files.is_dir(path):
        return f"drwxr-xr-x    2 root     root          4096 {when} {name}\n"
    return f"-rw-r--r--    1 root     root     {len(ctx.files.read(path)):9d} {when} {name}\n"


async def file_verbs(ctx: ShellContext, argv: Sequence[str]) -> int:
    """touch, mkdir [-p], rm [-f]: one loop, the tool's own complaint."""
    tool = argv[0].rpartition("/")[2]
    flags, names = flags_of(argv, "pfrRv")
    status = 0
    for name in names:
        path = ctx.path(name)
        try:
            if tool == "touch":
                ctx.files.write(path, b"", append=True)
            elif tool == "mkdir":
                _make_dirs(ctx, path, parents="p" in flags)
            else:
                _remove(ctx, path, recursive=bool(flags & {"r", "R"}))
        except OSError as error:
            if tool == "rm" and "f" in flags and isinstance(error, FileNotFoundError):
                continue
            ctx.err(f"{tool}: {name}: {os_error_text(error)}\n")
            status = 1
    return status


def _make_dirs(ctx: ShellContext, path: str, *, parents: bool) -> None:
    if parents:
        parts = path.strip("/").split("/")
        for index in range(1, len(parts)):
            parent = "/" + "/".join(parts[:index])
            if not ctx.files.is_dir(parent):
                ctx.files.make_dir(parent)
        if ctx.files.is_dir(path):
            return
    ctx.files.make_dir(path)


def _remove(ctx: ShellContext, path: str, *, recursive: bool) -> None:
    if recursive and ctx.files.is_dir(path):
        for name in ctx.files.listdir(path):
            _remove(ctx, f"{path}/{name}", recursive=True)
        return
    ctx.files.remove(path)


async def test(ctx: ShellContext, argv: Sequence[str]) -> int:
    """test, [: -f -d -e -n -z = != -eq -ne -lt -gt -le -ge, ! before any of them."""
    words = list(argv[1:])
    if argv[0] == "[":
        if words[-1:] != ["]"]:
            ctx.err("sh: [: missing ]\n")
            return 2
        words.pop()
    negated = words[:1] == ["!"]
    if negated:
        words.pop(0)
    try:
        return int(_test(ctx, words) == negated)
    except ValueError as error:
        ctx.err(f"sh: {error}\n")
        return 2


def _test(ctx: ShellContext, words: Sequence[str]) -> bool:
    match list(words):
        case []:
            return False
        case [text]:
            return bool(text)
        case ["-n", text]:
            return bool(text)
        case ["-z", text]:
            return not text
        case ["-f" | "-r" | "-s", path]:
            return ctx.files.exists(ctx.path(path)) and not ctx.files.is_dir(ctx.path(path))
        case ["-d", path]:
            return ctx.files.is_dir(ctx.path(path))
        case ["-e", path]:
            return ctx.files.exists(ctx.path(path))
        case [left, "=" | "==", right]:
            return left == right
        case [left, "!=", right]:
            return left != right
        case [left, operator, right]:
            return _compare(left, operator, right)
    raise ValueError(f"{' '.join(words)}: unknown operand")


def _compare(left: str, operator: str, right: str) -> bool:
    try:
        one, two = int(left), int(right)
    except ValueError:
        raise ValueError(f"{left}: bad number") from None
    outcome = {
        "-eq": one == two,
        "-ne": one != two,
        "-lt": one < two,
        "-gt": one > two,
        "-le": one <= two,
        "-ge": one >= two,
    }.get(operator)
    if outcome is None:
        raise ValueError(f"{operator}: unknown operand")
    return outcome


async def seq(ctx: ShellContext, argv: Sequence[str]) -> int:
    """seq [FIRST [STEP]] LAST."""
    try:
        numbers = [int(word) for word in argv[1:] if len(word) <= MAX_DIGITS]
    except ValueError:
        numbers = []
    match numbers:
        case [last]:
            first, step = 1, 1
        case [first, last]:
            step = 1
        case [first, step, last]:
            pass
        case _:
            ctx.err("Usage: seq [FIRST [INC]] LAST\n")
            return 1
    if not step:
        return 1
    for number in range(first, last + (1 if step > 0 else -1), step):
        ctx.out(f"{number}\n")
        await ctx.stdout.drain()
    return 0


async def true(ctx: ShellContext, argv: Sequence[str]) -> int:
    """true."""
    return 0


async def false(ctx: ShellContext, argv: Sequence[str]) -> int:
    """false."""
    return 1


async def pwd(ctx: ShellContext, argv: Sequence[str]) -> int:
    """pwd."""
    ctx.out(f"{ctx.cwd}\n")
    return 0


async def xargs(ctx: ShellContext, argv: Sequence[str]) -> int:
    """xargs COMMAND: one call with all the words of the input."""
    from emulator.shell.registry import run_command

    text = " ".join([line async for line in input_lines(ctx, (), "xargs")])
    return await run_command(ctx, [*(argv[1:] or ["echo"]), *shlex.split(text)])
