"""tar, as ``kubectl cp`` needs it: archives from and to standard streams."""

from __future__ import annotations

import errno
import io
import os
import posixpath
import tarfile
from typing import TYPE_CHECKING

from emulator.errors import UsageError
from emulator.shell.context import os_error_text
from emulator.shell.files import MEMORY_FILES_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from emulator.shell.context import ShellContext

# An archive is held whole while it is read: as much as a pod's files may hold, and the headers.
MAX_ARCHIVE_BYTES = 2 * MEMORY_FILES_LIMIT_BYTES
_FLAGS = "cxtfCvmpo"

FAILED = "tar: Exiting with failure status due to previous errors\n"


async def tar(ctx: ShellContext, argv: Sequence[str]) -> int:
    """tar c|x|t [v] [f FILE|-] [-C DIRECTORY] [NAMES]; -m, -p and -o change nothing here."""
    flags, values, names = _options(argv)
    verbs = [verb for verb in "cxt" if verb in flags]
    if len(verbs) != 1:
        raise UsageError("need exactly one of -c, -x and -t")
    base = ctx.path(values.get("C", "."))
    archive = values.get("f", "-")
    if verbs[0] == "c":
        if not names:
            raise UsageError("cowardly refusing to create an empty archive")
        return await _create(ctx, base, archive, names, verbose="v" in flags)
    data = await _input(ctx, archive)
    try:
        # Not compressed, as tar reads a pipe without -z: little of that may hold gigabytes.
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as members:
            return _read(ctx, base, members, names, extract=verbs[0] == "x", flags=flags)
    except (tarfile.TarError, ValueError):
        ctx.err("tar: This does not look like a tar archive\n")
        return 2


def _options(argv: Sequence[str]) -> tuple[set[str], dict[str, str], list[str]]:
    """Flags, values of -f and -C, operands; the first word may lack its dash."""
    flags: set[str] = set()
    values: dict[str, str] = {}
    names: list[str] = []
    words = list(argv[1:])
    if words and not words[0].startswith("-"):
        words[0] = "-" + words[0]
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            names.append(word)
            continue
        for letter in word[1:]:
            if letter not in _FLAGS:
                raise UsageError(f"invalid option -- '{letter}'")
            flags.add(letter)
            if letter in "fC":
                if not words:
                    raise UsageError(f"option requires an argument -- '{letter}'")
                values[letter] = words.pop(0)
    return flags, values, names


async def _input(ctx: ShellContext, archive: str) -> bytes:
    if archive != "-":
        try:
            return ctx.files.read(ctx.path(archive))
        except OSError as error:
            raise UsageError(f"{archive}: Cannot open: {os_error_text(error)}") from None
    data = bytearray()
    while piece := await ctx.read():
        data += piece
        if len(data) > MAX_ARCHIVE_BYTES:
            raise UsageError(f"archive larger than {MAX_ARCHIVE_BYTES} bytes")
    return bytes(data)


async def _create(
    ctx: ShellContext, base: str, archive: str, names: Sequence[str], *, verbose: bool
) -> int:
    buffer, status = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as members:
        said: dict[str, None] = {}
        for name in names:
            member_name = _below(ctx, name, said)
            path = posixpath.normpath(posixpath.join(base, name))
            if not ctx.files.exists(path):
                ctx.err(f"tar: {name}: Cannot stat: No such file or directory\n")
                status = 2
                continue
            for found, member in _walk(ctx, path, member_name.strip("/") or "."):
                info = tarfile.TarInfo(member)
                info.mtime = int(ctx.files.mtime(found))
                info.uname = info.gname = "root"
                data = b""
                if ctx.files.is_dir(found):
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                else:
                    data, info.mode = ctx.files.read(found), 0o644
                    info.size = len(data)
                members.addfile(info, io.BytesIO(data))
                if verbose:
                    ctx.err(f"{member}\n")
    if status:
        ctx.err(FAILED)
    if archive == "-":
        # A reader stops at the archive's end and would not hear what comes after.
        await ctx.stderr.drain()
        ctx.stdout.write(buffer.getvalue())
        await ctx.stdout.drain()
        return status
    try:
        ctx.files.write(ctx.path(archive), buffer.getvalue())
    except OSError as error:
        raise UsageError(f"{archive}: Cannot open: {os_error_text(error)}") from None
    return status


def _walk(ctx: ShellContext, path: str, member: str) -> Iterator[tuple[str, str]]:
    """(path, name in the archive) of a file, or of a directory and all below it."""
    yield path, member
    if ctx.files.is_dir(path):
        for name in ctx.files.listdir(path):
            yield from _walk(ctx, posixpath.join(path, name), f"{member}/{name}")


def _read(
    ctx: ShellContext,
    base: str,
    members: tarfile.TarFile,
    names: Sequence[str],
    *,
    extract: bool,
    flags: set[str],
) -> int:
    wanted, status = [name.strip("/") for name in names], 0
    said: dict[str, None] = {}
    for info in members:
        name = info.name.strip("/")
        if wanted and not any(name == each or name.startswith(f"{each}/") for each in wanted):
            continue
        if not extract:
            ctx.out(f"{info.name}{'/' if info.isdir() else ''}\n")
            continue
        name = _below(ctx, info.name, said).strip("/")
        if ".." in info.name.split("/"):
            ctx.err(f"tar: {info.name}: Member name contains '..'\n")
            status = 2
            continue
        if "v" in flags:
            ctx.out(f"{info.name}{'/' if info.isdir() else ''}\n")
        path = posixpath.normpath(posixpath.join(base, name))
        try:
            _make_dirs(ctx, path if info.isdir() else posixpath.dirname(path))
            if info.isfile():
                # A sparse member may claim any size.
                if info.size > MEMORY_FILES_LIMIT_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                content = members.extractfile(info)
                ctx.files.write(path, content.read() if content is not None else b"")
        except OSError as error:
            ctx.err(f"tar: {name}: Cannot open: {os_error_text(error)}\n")
            status = 2
    if status:
        ctx.err(FAILED)
    return status


def _below(ctx: ShellContext, name: str, said: dict[str, None]) -> str:
    """A name without what leads out of the directory (GNU tar's safer_name_suffix), said once."""
    parts = name.split("/")
    start = max((at + 1 for at, part in enumerate(parts) if part == ".."), default=0)
    while start < len(parts) and not parts[start]:
        start += 1
    rest = "/".join(parts[start:])
    prefix = name.removesuffix(rest) if rest else name
    if prefix and prefix not in said:
        said[prefix] = None
        ctx.err(f"tar: Removing leading `{prefix}' from member names\n")
    return rest


def _make_dirs(ctx: ShellContext, path: str) -> None:
    if path in ("/", ".", "") or ctx.files.is_dir(path):
        return
    _make_dirs(ctx, posixpath.dirname(path))
    ctx.files.make_dir(path)
