"""tar between two file systems, as kubectl cp uses it."""

from __future__ import annotations

import asyncio
import io
import random
import tarfile

from emulator.netstack.kernel import Kernel
from emulator.runtime.clock import real_clock
from emulator.runtime.stack import StackNetwork
from emulator.shell.context import Buffer, ShellContext
from emulator.shell.files import MemoryFiles
from emulator.shell.registry import run_command


def place(files: MemoryFiles, stdin: bytes | None = None) -> ShellContext:
    kernel = Kernel("n", clock=asyncio.get_running_loop().time, rng=random.Random(1))
    reader = None
    if stdin is not None:
        reader = asyncio.StreamReader()
        reader.feed_data(stdin)
        reader.feed_eof()
    return ShellContext(
        kernel=kernel,
        ns=kernel.root,
        network=StackNetwork(kernel.root),
        files=files,
        hostname="p",
        env={},
        stdout=Buffer(),
        stderr=Buffer(),
        clock=real_clock(),
        rng=random.Random(1),
        stdin=reader,
    )


def memory(**texts: str) -> MemoryFiles:
    files = {f"/src/{name}": (text.encode(), 1.0) for name, text in texts.items()}
    return MemoryFiles(lambda: 1.0, files=files, directories=("/src", "/dst"))


async def packed(files: MemoryFiles, *argv: str) -> tuple[int, bytes, str]:
    ctx = place(files)
    code = await run_command(ctx, ["tar", *argv])
    assert isinstance(ctx.stdout, Buffer)
    assert isinstance(ctx.stderr, Buffer)
    return code, bytes(ctx.stdout.data), ctx.stderr.text


async def test_a_directory_travels_through_a_pipe() -> None:
    source = memory(a="one", b="two")
    code, data, err = await packed(source, "cf", "-", "/src")
    assert (code, err) == (0, "tar: Removing leading `/' from member names\n")
    target = memory()
    assert await run_command(place(target, data), ["tar", "-xmf", "-", "-C", "/dst"]) == 0
    assert target.read("/dst/src/a") == b"one"
    assert target.listdir("/dst/src") == ["a", "b"]


async def test_a_missing_name_and_a_broken_archive_are_told() -> None:
    code, _, err = await packed(memory(), "cf", "-", "/nope")
    assert code == 2
    assert "tar: /nope: Cannot stat: No such file or directory\n" in err
    ctx = place(memory(), b"x" * 2000)
    assert await run_command(ctx, ["tar", "xf", "-"]) == 2
    assert isinstance(ctx.stderr, Buffer)
    assert ctx.stderr.text == "tar: This does not look like a tar archive\n"


async def test_an_archive_stays_below_its_directory() -> None:
    """As GNU tar of Debian: a name that climbs is refused, the others are taken."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as members:
        for name in ("../../etc/passwd", "/etc/group", "../../x/../y", "a/b", "/etc/hosts"):
            info = tarfile.TarInfo(name)
            info.size = 1
            members.addfile(info, io.BytesIO(b"x"))
    target = memory()
    ctx = place(target, buffer.getvalue())
    assert await run_command(ctx, ["tar", "xvf", "-", "-C", "/dst"]) == 2
    assert isinstance(ctx.stdout, Buffer)
    assert isinstance(ctx.stderr, Buffer)
    assert bytes(ctx.stdout.data) == b"/etc/group\na/b\n/etc/hosts\n"
    assert ctx.stderr.text == (
        "tar: Removing leading `../../' from member names\n"
        "tar: ../../etc/passwd: Member name contains '..'\n"
        "tar: Removing leading `/' from member names\n"
        "tar: Removing leading `../../x/../' from member names\n"
        "tar: ../../x/../y: Member name contains '..'\n"
        "tar: Exiting with failure status due to previous errors\n"
    )
    assert target.listdir("/") == ["dst", "src"]
    assert target.listdir("/dst") == ["a", "etc"]
    assert target.listdir("/dst/etc") == ["group", "hosts"]


async def test_a_name_that_climbs_is_packed_without_what_leads_there() -> None:
    source = memory(a="one")
    code, data, err = await packed(source, "cf", "-", "-C", "/dst", "../src/a", "/src/a")
    assert (code, err) == (
        0,
        "tar: Removing leading `../' from member names\n"
        "tar: Removing leading `/' from member names\n",
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as members:
        assert members.getnames() == ["src/a", "src/a"]
