"""Debian's etcdctl against ours; where a real etcd is at hand, its output is the expected one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.etcd_servers import (
    NO_REAL_ETCD,
    memory_etcd,
    process_etcd,
    real_etcd,
    real_etcd_binary,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ETCDCTL = shutil.which("etcdctl")
pytestmark = pytest.mark.skipif(ETCDCTL is None, reason="etcdctl is not installed (etcd-client)")
COMMAND_TIMEOUT_S = 10.0

TXN = """\
value("foo") = "bar"
version("nothing") = "0"

put foo changed
get foo
del fo --prefix

put never never

"""

# Each: arguments, standard input.  LEASE is replaced by the id the first grant printed.
SESSION: tuple[tuple[str, str], ...] = (
    ("put foo bar", ""),
    ("put foo2 value --prev-kv", ""),
    ("put foo2 other --prev-kv", ""),
    ("get foo", ""),
    ("get fo --prefix --keys-only", ""),
    ("get fo --prefix --limit=1 -w fields", ""),
    ("get '' --from-key --order=DESCEND --sort-by=MODIFY", ""),
    ("get foo foo3 --print-value-only", ""),
    ("get foo2 --rev=3", ""),
    ("get foo2 --rev=99", ""),
    ("get missing", ""),
    ("get foo --count-only -w fields --prefix", ""),
    ("txn", TXN),
    ("get '' --prefix", ""),
    ("put a 1", ""),
    ("put b 2", ""),
    ("del a c --prev-kv", ""),
    ("del missing", ""),
    ("lease grant 600", ""),
    ("put leased x --lease=LEASE", ""),
    ("get leased -w fields", ""),
    ("put x y --lease=1234", ""),
    ("put leased --ignore-value --lease=LEASE", ""),
    ("put absent --ignore-value", ""),
    ("lease keep-alive LEASE --once", ""),
    ("lease list", ""),
    ("lease revoke LEASE", ""),
    ("lease revoke LEASE", ""),
    ("lease timetolive LEASE", ""),
    ("get leased", ""),
    ("compaction 5", ""),
    ("compaction 5", ""),
    ("get foo --rev=2", ""),
    ("defrag", ""),
    ("alarm list", ""),
    ("put k v -w json", ""),
    ("move-leader 1", ""),
)


async def etcdctl(endpoint: str, arguments: str, stdin: str = "") -> str:
    """Run one command; return what it printed (both streams) and its exit code."""
    assert ETCDCTL is not None
    words = [word.strip("'") for word in arguments.split(" ")]
    process = await asyncio.create_subprocess_exec(
        ETCDCTL,
        f"--endpoints={endpoint}",
        *words,
        env={**os.environ, "ETCDCTL_API": "3"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return f"{out.decode()}{err.decode()}[{process.returncode}]"


def _normal(text: str) -> str:
    """Without ids, ports, times and log lines."""
    text = re.sub(r'"(ClusterID|MemberID|RaftTerm)" : \d+', r'"\1" : N', text)
    text = re.sub(r'"(cluster_id|member_id|raft_term)":\d+', r'"\1":N', text)
    text = re.sub(r"\b[0-9a-f]{15,16}\b", "ID", text)
    text = re.sub(r'"Lease" : [1-9]\d+', '"Lease" : N', text)
    text = re.sub(r"127\.0\.0\.1:\d+", "HOST", text)
    text = re.sub(r"remaining\(\d+s\)", "remaining(Ns)", text)
    return "\n".join(line for line in text.splitlines() if not line.startswith('{"level"'))


async def _run_session(endpoint: str) -> list[tuple[str, str]]:
    answers = []
    lease = ""
    for arguments, stdin in SESSION:
        text = await etcdctl(endpoint, arguments.replace("LEASE", lease), stdin)
        if arguments.startswith("lease grant"):
            lease = text.split()[1]
        answers.append((arguments, _normal(text)))
    return answers


@pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD)
async def test_a_whole_session_prints_what_it_prints_with_a_real_etcd(tmp_path: Path) -> None:
    async with real_etcd(tmp_path) as endpoint:
        expected = await _run_session(endpoint)
    async with memory_etcd() as server:
        got = await _run_session(server.endpoint)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == theirs


async def test_put_get_and_delete_without_a_real_etcd_to_compare_with() -> None:
    async with memory_etcd() as server:
        assert await etcdctl(server.endpoint, "put foo bar") == "OK\n[0]"
        assert await etcdctl(server.endpoint, "get foo") == "foo\nbar\n[0]"
        assert await etcdctl(server.endpoint, "del foo") == "1\n[0]"
        assert "is healthy" in await etcdctl(server.endpoint, "endpoint health")
        status = await etcdctl(server.endpoint, "endpoint status")
        assert "3.5.21" in status
        assert "started, default" in await etcdctl(server.endpoint, "member list")


@contextlib.asynccontextmanager
async def _running(endpoint: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    assert ETCDCTL is not None
    process = await asyncio.create_subprocess_exec(
        ETCDCTL,
        f"--endpoints={endpoint}",
        *arguments,
        env={**os.environ, "ETCDCTL_API": "3"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _lines(process: asyncio.subprocess.Process, count: int) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(COMMAND_TIMEOUT_S):
        return [(await process.stdout.readline()).decode().rstrip("\n") for _ in range(count)]


async def test_watch_shows_history_and_news_and_survives_a_restart(tmp_path: Path) -> None:
    async with process_etcd(tmp_path) as (process, endpoint):
        port = int(endpoint.rpartition(":")[2])
        await etcdctl(endpoint, "put a 1")
        async with _running(endpoint, "watch", "--prefix", "", "--rev=1", "--prev-kv") as watch:
            assert await _lines(watch, 3) == ["PUT", "a", "1"]
            await etcdctl(endpoint, "put a 2")
            assert await _lines(watch, 5) == ["PUT", "a", "1", "a", "2"]
            process.terminate()
            await process.wait()
            async with process_etcd(tmp_path, port=port) as (_, endpoint_again):
                assert endpoint_again == endpoint
                await etcdctl(endpoint, "del a")
                assert await _lines(watch, 5) == ["DELETE", "a", "2", "a", ""]


async def test_lock_is_held_by_one_and_handed_on() -> None:
    async with memory_etcd() as server, _running(server.endpoint, "lock", "mutex") as first:
        (key,) = await _lines(first, 1)
        assert key.startswith("mutex/")
        async with _running(server.endpoint, "lock", "mutex") as second:
            waiting = asyncio.create_task(_lines(second, 1))
            await asyncio.sleep(0)
            first.terminate()
            assert (await waiting)[0].startswith("mutex/")


async def test_elect_proclaims_a_leader() -> None:
    async with (
        memory_etcd() as server,
        _running(server.endpoint, "elect", "top", "me") as candidate,
    ):
        key, value = await _lines(candidate, 2)
        assert key.startswith("top/")
        assert value == "me"
