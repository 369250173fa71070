"""Tools that read and write text: echo, cat, grep, head, sort and their like."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from emulator.shell.context import os_error_text, whole_number

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from emulator.shell.context import ShellContext


async def read_input(ctx: ShellContext, names: Sequence[str], tool: str) -> AsyncIterator[bytes]:
    """Yield the bytes of the named files, or of standard input for none and ``-``.

    A file that cannot be read is complained about; the caller sees ``ctx.status`` 1.
    """
    ctx.status = 0
    for name in names or ("-",):
        if name == "-":
            while data := await ctx.read():
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


_ESCAPE = re.compile(r"\\(0[0-7]{0,3}|x[0-9a-fA-F]{1,2}|[abcefnrtv\\])", re.ASCII)
_ESCAPED = dict(zip("abefnrtv\\", "\a\b\x1b\f\n\r\t\v\\", strict=True))


def _unescaped(text: str) -> tuple[str, bool]:
    """What bash's ``echo -e`` writes, and whether ``\\c`` ended it."""
    out, at = "", 0
    for match in _ESCAPE.finditer(text):
        code = match[1]
        out += text[at : match.start()]
        at = match.end()
        if code == "c":
            return out, True
        if code[0] in "0x":
            out += chr(int(code[1:] or "0", 16 if code[0] == "x" else 8) & 0xFF)
        else:
            out += _ESCAPED[code]
    return out + text[at:], False


async def echo(ctx: ShellContext, argv: Sequence[str]) -> int:
    """echo [-neE] WORDS: whatever is no flag is text, ``--`` too, as in bash."""
    words = list(argv[1:])
    escapes, newline = False, "\n"
    while words and re.fullmatch("-[neE]+", words[0]):
        for flag in words.pop(0)[1:]:
            if flag == "n":
                newline = ""
            else:
                escapes = flag == "e"
    text = " ".join(words)
    if escapes:
        text, ended = _unescaped(text)
        newline = "" if ended else newline
    ctx.out(text + newline)
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

        # A width of more digits would be a word of gigabytes.
        ctx.out(re.sub(r"%%|%-?[0-9]{0,4}[sd]", value, template))
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
            number = whole_number(count) or 0
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
    """head [-n N|-N] [-c N] [FILES]."""
    count, names, octets = _count(argv)
    if octets:
        await _first_octets(ctx, names, count)
    elif count:
        async for line in input_lines(ctx, names, "head"):
            ctx.out(f"{line}\n")
            count -= 1
            if not count:
                break
    return ctx.status


async def _first_octets(ctx: ShellContext, names: Sequence[str], count: int) -> None:
    """The first ``count`` octets; all but the last for a negative one."""
    ctx.status = 0
    if count < 0:
        ctx.stdout.write(b"".join([data async for data in read_input(ctx, names, "head")])[:count])
    elif count:
        async for data in read_input(ctx, names, "head"):
            ctx.stdout.write(data[:count])
            count -= len(data)
            if count <= 0:
                return


async def tail(ctx: ShellContext, argv: Sequence[str]) -> int:
    """tail [-n N|-N] [-c N] [FILES]."""
    count, names, octets = _count(argv)
    if octets:
        end = b""
        async for data in read_input(ctx, names, "tail"):
            end = (end + data)[-abs(count) :] if count else b""
        ctx.stdout.write(end)
        return ctx.status
    kept: list[str] = []
    async for line in input_lines(ctx, names, "tail"):
        kept.append(line)
        if len(kept) > count:
            kept.pop(0)
    ctx.out("".join(f"{line}\n" for line in kept))
    return ctx.status


def _count(argv: Sequence[str]) -> tuple[int, list[str], bool]:
    """How many, of which files, and whether octets rather than lines are meant."""
    count, names, octets = 10, [], False
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        if word in ("-n", "-c") and words:
            octets = word == "-c"
            word = words.pop(0)
            number = whole_number(word.lstrip("+-"))
            count = count if number is None else -number if word.startswith("-") else number
        elif re.fullmatch(r"-[nc]?[0-9]{1,18}", word):
            octets = word[1] == "c"
            count = int(word.lstrip("-nc"))
        else:
            names.append(word)
    return count, names, octets


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
