"""tar between two file systems, as kubectl cp uses it."""

from __future__ import annotations

import asyncio
import random

import pytest

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


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd"])
async def test_an_archive_stays_below_the_pods_root(name: str) -> None:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as members:
        info = tarfile.TarInfo(name)
        info.size = 1
        members.addfile(info, io.BytesIO(b"x"))
    target = memory()
    await run_command(place(target, buffer.getvalue()), ["tar", "xf", "-", "-C", "/dst"])
    assert target.exists("/etc/passwd") or target.exists("/dst/etc/passwd")
