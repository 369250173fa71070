"""Small tools of every image: echo, cat, grep, head, sleep, date, ls and their like."""

from __future__ import annotations

import asyncio
import datetime
import re
import shlex
from typing import TYPE_CHECKING

from emulator.shell.context import os_error_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from emulator.shell.context import ShellContext

READ_BYTES = 65536
# sleep takes these suffixes in both coreutils and busybox.
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


async def read_input(ctx: ShellContext, names: Sequence[str], tool: str) -> AsyncIterator[bytes]:
    """Yield the bytes of the named files, or of standard input for none and ``-``.

    A file that cannot be read is complained about; the caller sees ``ctx.status`` 1.
    """
    ctx.status = 0
    for name in names or ("-",):
        if name == "-":
            while ctx.stdin is not None and (data := await ctx.stdin.read(READ_BYTES)):
                yield data
            continue
        try:
            yield ctx.files.read(ctx.path(name))
        except OSError as error:
            quoted = f"can't open '{name}'" if ctx.style == "busybox" and tool == "cat" else name
            ctx.err(f"{tool}: {quoted}: {os_error_text(error)}\n")
            ctx.status = 1


async def input_lines(ctx: ShellContext, names: Sequence[str], tool: str) -> AsyncIterator[str]:
    """Yield the lines of the input without their ends, as they arrive."""
    rest = b""
    async for data in read_input(ctx, names, tool):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def flags_of(argv: Sequence[str], letters: str) -> tuple[set[str], list[str]]:
    """Split leading single-letter flags from operands; unknown words are operands."""
    flags: set[str] = set()
    words = list(argv[1:])
    while words and re.fullmatch(f"-[{re.escape(letters)}]+", words[0]):
        flags |= set(words.pop(0)[1:])
    if words[:1] == ["--"]:
        words.pop(0)
    return flags, words


async def echo(ctx: ShellContext, argv: Sequence[str]) -> int:
    """echo [-n] [-e] WORDS."""
    flags, words = flags_of(argv, "neE")
    text = " ".join(words)
    if "e" in flags:
        text = text.replace("\\n", "\n").replace("\\t", "\t").replace("\\\\", "\\")
    ctx.out(text + ("" if "n" in flags else "\n"))
    return 0


async def printf(ctx: ShellContext, argv: Sequence[str]) -> int:
    """printf FORMAT [WORDS]: %s, %d, %% and the usual escapes."""
    if len(argv) < 2:
        ctx.err("printf: usage: printf format [arguments]\n")
        return 2
    template = argv[1].replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
    words = list(argv[2:])
    while True:
        used = len(words)

        def value(match: re.Match[str]) -> str:
            if match[0] == "%%":
                return "%"
            word = words.pop(0) if words else ""
            if match[0].endswith("d"):
                return match[0].replace("d", "s") % (word or "0")
            return match[0] % word

        ctx.out(re.sub(r"%%|%-?[0-9]*[sd]", value, template))
        if not words or len(words) == used:
            return 0


async def cat(ctx: ShellContext, argv: Sequence[str]) -> int:
    """cat [FILES]."""
    _, names = flags_of(argv, "uAnv")
    async for data in read_input(ctx, names, "cat"):
        ctx.stdout.write(data)
        await ctx.stdout.drain()
    return ctx.status


async def tee(ctx: ShellContext, argv: Sequence[str]) -> int:
    """tee [-a] FILE."""
    flags, names = flags_of(argv, "ai")
    try:
        for name in names:
            ctx.files.write(ctx.path(name), b"", append="a" in flags)
        async for data in read_input(ctx, (), "tee"):
            ctx.stdout.write(data)
            await ctx.stdout.drain()
            for name in names:
                ctx.files.write(ctx.path(name), data, append=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        ctx.err(f"tee: {error.filename}: {os_error_text(error)}\n")
        return 1
    return 0


async def grep(ctx: ShellContext, argv: Sequence[str]) -> int:
    """grep [-ivcnqoEFw] [-A N] [-B N] PATTERN [FILES]; exit 1 where nothing matches."""
    flags: set[str] = set()
    patterns: list[str] = []
    operands: list[str] = []
    after = before = 0
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        if (match := re.fullmatch(r"-([ABC])(\d*)", word)) and (match[2] or words):
            count = match[2] or words.pop(0)
            number = int(count) if count.isdigit() else 0
            after = number if match[1] in "AC" else after
            before = number if match[1] in "BC" else before
        elif word == "-e" and words:
            patterns.append(words.pop(0))
        elif word in ("--color", "--color=auto", "--line-buffered"):
            continue
        elif re.fullmatch(r"-[ivcnqoEFwhHsr]+", word):
            flags |= set(word[1:])
        else:
            operands.append(word)
    if not patterns:
        if not operands:
            ctx.err("Usage: grep [OPTION]... PATTERNS [FILE]...\n")
            return 2
        patterns.append(operands.pop(0))
    try:
        wanted = re.compile(
            "|".join(f"(?:{_pattern(each, flags)})" for each in patterns),
            re.IGNORECASE if "i" in flags else 0,
        )
    except re.error as error:
        ctx.err(f"grep: {error}\n")
        return 2
    matched = 0
    context: list[str] = []
    trailing = 0
    number = 0
    async for line in input_lines(ctx, operands, "grep"):
        number += 1
        found = wanted.search(line)
        prefix = f"{number}:" if "n" in flags else ""
        if bool(found) != ("v" in flags):
            matched += 1
            if "q" in flags:
                return 0
            if "c" not in flags:
                shown = "".join(f"{each}\n" for each in context)
                if found is not None and "o" in flags:
                    ctx.out("".join(f"{prefix}{each[0]}\n" for each in wanted.finditer(line)))
                else:
                    ctx.out(f"{shown}{prefix}{line}\n")
                await ctx.stdout.drain()
            context.clear()
            trailing = after
        elif trailing:
            trailing -= 1
            ctx.out(f"{line}\n")
        elif before:
            context = [*context[-before + 1 :], line] if before > 1 else [line]
    if "c" in flags:
        ctx.out(f"{matched}\n")
    if ctx.status:
        return 2
    return 0 if matched else 1


def _pattern(text: str, flags: set[str]) -> str:
    """A POSIX pattern as Python's: fixed, extended, or basic where ``\\|`` is alternation."""
    if "F" in flags:
        text = re.escape(text)
    elif "E" not in flags:
        text = re.sub(r"\\([|(){}+?])|([|(){}+?])", lambda m: m[1] if m[1] else "\\" + m[2], text)
    return rf"\b(?:{text})\b" if "w" in flags else text


async def head(ctx: ShellContext, argv: Sequence[str]) -> int:
    """head [-n N|-N] [FILES]."""
    count, names = _line_count(argv)
    if count:
        async for line in input_lines(ctx, names, "head"):
            ctx.out(f"{line}\n")
            count -= 1
            if not count:
                break
    return ctx.status


async def tail(ctx: ShellContext, argv: Sequence[str]) -> int:
    """tail [-n N|-N] [FILES]."""
    count, names = _line_count(argv)
    kept: list[str] = []
    async for line in input_lines(ctx, names, "tail"):
        kept.append(line)
        if len(kept) > count:
            kept.pop(0)
    ctx.out("".join(f"{line}\n" for line in kept))
    return ctx.status


def _line_count(argv: Sequence[str]) -> tuple[int, list[str]]:
    count, names = 10, []
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        if word in ("-n", "-c") and words:
            word = words.pop(0)
            count = int(word) if word.lstrip("+-").isdigit() else count
        elif re.fullmatch(r"-n?\d+", word):
            count = int(word.lstrip("-n"))
        else:
            names.append(word)
    return count, names


async def wc(ctx: ShellContext, argv: Sequence[str]) -> int:
    """wc [-lwc] [FILES]."""
    flags, names = flags_of(argv, "lwcm")
    lines = words = size = 0
    last_in_word = False
    async for data in read_input(ctx, names, "wc"):
        size += len(data)
        lines += data.count(b"\n")
        found = data.split()
        words += len(found) - (last_in_word and bool(found) and not data[:1].isspace())
        last_in_word = bool(data) and not data[-1:].isspace()
    table = {"l": lines, "w": words, "c": size, "m": size}
    wanted = [table[flag] for flag in "lwcm" if flag in flags] or [lines, words, size]
    text = str(wanted[0]) if len(wanted) == 1 else "".join(f"{value:8d}" for value in wanted)
    ctx.out(f"{text}{' ' + names[0] if len(names) == 1 else ''}\n")
    return ctx.status


async def sort(ctx: ShellContext, argv: Sequence[str]) -> int:
    """sort [-rnu] [FILES]."""
    flags, names = flags_of(argv, "rnu")
    lines = [line async for line in input_lines(ctx, names, "sort")]
    if "u" in flags:
        lines = list(dict.fromkeys(lines))

    def numeric(line: str) -> tuple[float, str]:
        match = re.match(r"\s*(-?\d+(?:\.\d+)?)", line)
        return (float(match[1]) if match else 0.0, line)

    if "n" in flags:
        lines.sort(key=numeric, reverse="r" in flags)
    else:
        lines.sort(reverse="r" in flags)
    ctx.out("".join(f"{line}\n" for line in lines))
    return ctx.status


async def uniq(ctx: ShellContext, argv: Sequence[str]) -> int:
    """uniq [-c] [FILE]."""
    flags, names = flags_of(argv, "c")
    previous: str | None = None
    count = 0

    def show() -> None:
        if previous is not None:
            ctx.out(f"{count:7d} {previous}\n" if "c" in flags else f"{previous}\n")

    async for line in input_lines(ctx, names, "uniq"):
        if line == previous:
            count += 1
            continue
        show()
        previous, count = line, 1
    show()
    return ctx.status


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
        from emulator.addr import format_ip

        found = [format_ip(each.ip) for each in ctx.ns.addrs() if each.dev != "lo"]
        ctx.out(" ".join(found) + ("\n" if argv[1] == "-i" else " \n"))
    elif argv[1:2] in (["-s"], ("-s",)):
        ctx.out(ctx.hostname.partition(".")[0] + "\n")
    else:
        ctx.out(ctx.hostname + "\n")
    return 0


async def env(ctx: ShellContext, argv: Sequence[str]) -> int:
    """env, printenv [NAME]."""
    if argv[0].endswith("printenv") and len(argv) > 1:
        if argv[1] not in ctx.env:
            return 1
        ctx.out(f"{ctx.env[argv[1]]}\n")
        return 0
    ctx.out("".join(f"{name}={value}\n" for name, value in ctx.env.items()))
    return 0


async def ls(ctx: ShellContext, argv: Sequence[str]) -> int:
    """ls [-la1] [PATHS]."""
    flags, names = flags_of(argv, "la1hdAtr")
    status = 0
    for name in names or ["."]:
        path = ctx.path(name)
        if not ctx.files.exists(path):
            quoted = name if ctx.style == "busybox" else f"cannot access '{name}'"
            ctx.err(f"ls: {quoted}: No such file or directory\n")
            status = 1 if ctx.style == "busybox" else 2
            continue
        directory = ctx.files.is_dir(path) and "d" not in flags
        entries = ctx.files.listdir(path) if directory else [name]
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
        numbers = [int(word) for word in argv[1:]]
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
