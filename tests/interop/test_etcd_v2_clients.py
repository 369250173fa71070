"""Clients of the v2 API: waiting requests, etcdctl 2 and what flannel of 2017 sent."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import aiohttp
import pytest

from tests.etcd_servers import NO_REAL_ETCD, disk_etcd, memory_etcd, real_etcd, real_etcd_binary
from tests.interop.test_etcd_v2_differential import normal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ETCDCTL = shutil.which("etcdctl")
TIMEOUT_S = 15.0
needs_etcdctl = pytest.mark.skipif(ETCDCTL is None, reason="no etcdctl: install etcd-client")
needs_etcd = pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD)


class V2:
    """Raw requests to one server."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str) -> None:
        self._session = session
        self.url = f"http://{endpoint}/v2/keys"

    async def ask(self, method: str, path: str, **fields: str) -> tuple[int, str]:
        body = urlencode(fields) if method in ("PUT", "POST") else None
        params = None if body is not None else fields
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        async with self._session.request(
            method, self.url + path, params=params, data=body, headers=headers
        ) as response:
            return response.status, await response.text()

    @asynccontextmanager
    async def wait(self, path: str, **fields: str) -> AsyncIterator[asyncio.Task[list[str]]]:
        """Wait for changes; the block runs when the server has answered with headers."""
        count = int(fields.pop("events", "1"))
        async with self._session.get(
            self.url + path, params={"wait": "true", **fields}
        ) as response:
            assert response.status == 200

            async def lines() -> list[str]:
                return [(await response.content.readline()).decode() for _ in range(count)]

            task = asyncio.create_task(lines())
            try:
                yield task
            finally:
                task.cancel()


@asynccontextmanager
async def both(tmp_path: Path) -> AsyncIterator[list[V2]]:
    async with (
        real_etcd(tmp_path, "--enable-v2") as endpoint,
        memory_etcd(enable_v2=True) as server,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
    ):
        yield [V2(session, endpoint), V2(session, server.endpoint)]


# Watches, the changes they then see, in one line each: (what waits, what is done).
WAITS: tuple[tuple[str, dict[str, str], tuple[tuple[str, str, dict[str, str]], ...]], ...] = (
    ("/a", {}, (("PUT", "/a", {"value": "1"}),)),
    (
        "/a",
        {},
        (
            ("PUT", "/a/b", {"value": "1"}),
            ("PUT", "/c", {}),
            ("DELETE", "/a", {"recursive": "true"}),
        ),
    ),
    ("/a", {"recursive": "true"}, (("PUT", "/b", {}), ("PUT", "/a/b/c", {"value": "2"}))),
    ("", {"recursive": "true"}, (("PUT", "/_h/x", {}), ("PUT", "/h/_x", {}), ("PUT", "/h/x", {}))),
    ("/_h", {"recursive": "true"}, (("PUT", "/_h/x", {"value": "1"}),)),
    ("/d/e/f", {}, (("PUT", "/d/e/f", {"dir": "true"}), ("DELETE", "/d", {"recursive": "true"}))),
    (
        "/d/e",
        {"waitIndex": "6"},
        (
            ("PUT", "/d/e", {"value": "1"}),
            ("PUT", "/d/e", {"value": "2"}),
            ("PUT", "/d/e", {"value": "3"}),
        ),
    ),
    (
        "/s",
        {"stream": "true", "recursive": "true", "events": "4"},
        (
            ("PUT", "/s/1", {"value": "1"}),
            ("PUT", "/s/1", {"value": "2", "prevValue": "1"}),
            ("PUT", "/s/1", {"value": "3", "prevExist": "true", "ttl": "100"}),
            ("PUT", "/s/1", {"refresh": "true", "ttl": "90", "prevExist": "true"}),
            ("DELETE", "/s/1", {"prevValue": "3"}),
        ),
    ),
    ("/t", {"recursive": "true"}, (("PUT", "/t", {"dir": "true", "ttl": "1"}),)),
)


@needs_etcd
async def test_waiting_requests_see_what_a_real_etcd_shows(tmp_path: Path) -> None:
    async with both(tmp_path) as servers:
        for path, fields, changes in WAITS:
            answers = []
            for v2 in servers:
                await v2.ask("DELETE", "/a", recursive="true")
                async with v2.wait(path, **fields) as waiting, asyncio.timeout(TIMEOUT_S):
                    done = [await v2.ask(method, key, **form) for method, key, form in changes]
                    seen = [normal(line) for line in await waiting]
                answers.append(([(status, normal(body)) for status, body in done], seen))
            assert answers[1] == answers[0], path


@needs_etcd
async def test_an_expired_directory_is_told_to_those_who_wait_inside(tmp_path: Path) -> None:
    async def story(v2: V2) -> list[str]:
        await v2.ask("PUT", "/t", dir="true", ttl="1")
        await v2.ask("PUT", "/t/x", value="1")
        async with v2.wait("/t/x") as waiting, asyncio.timeout(TIMEOUT_S):
            told = [normal(line) for line in await waiting]
        return [*told, (await v2.ask("GET", "/t"))[1]]

    async with both(tmp_path) as servers:
        answers = await asyncio.gather(*map(story, servers))
    assert '"action":"expire"' in answers[0][0]
    assert answers[1] == answers[0]


@needs_etcd
async def test_history_reaches_back_a_thousand_events(tmp_path: Path) -> None:
    answers = []
    async with both(tmp_path) as servers:
        for v2 in servers:
            for _ in range(1002):
                await v2.ask("PUT", "/k", value="x")
            answers.append(
                [
                    await v2.ask("GET", "/k", wait="true", waitIndex=index)
                    for index in ("1", "5", "6", "7")
                ]
            )
    assert json.loads(answers[0][1][1])["errorCode"] == 401
    assert answers[1] == answers[0]


@needs_etcd
async def test_a_restart_takes_the_indexes_it_takes_in_a_real_etcd(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        answers: list[list[tuple[int, str]]] = [[], []]
        for _ in range(3):
            async with real_etcd(tmp_path / "real", "--enable-v2") as endpoint:
                v2 = V2(session, endpoint)
                answers[0] += [await v2.ask("PUT", "/a", value="1"), await v2.ask("GET", "/a")]
            async with disk_etcd(tmp_path / "ours", enable_v2=True) as server:
                v2 = V2(session, server.endpoint)
                answers[1] += [await v2.ask("PUT", "/a", value="1"), await v2.ask("GET", "/a")]
    assert answers[1] == answers[0]


# etcdctl ------------------------------------------------------------------------------------

SESSION = (
    "set /foo bar",
    "get /foo",
    "-o extended get /foo",
    "-o json get /foo",
    "get /none",
    "mk /foo again",
    "mk /new 1 --ttl 500",
    "mk --in-order /queue one",
    "mkdir /dir",
    "mkdir /dir",
    "setdir /dir2",
    "updatedir /dir --ttl 500",
    "set /dir/x 1",
    "set /dir/y/z 2",
    "set /_hidden 3",
    "ls",
    "ls /dir",
    "ls --recursive --sort /",
    "ls -p --sort /",
    "update /foo baz",
    "update /none x",
    "set /foo qux --swap-with-value baz",
    "set /foo qux --swap-with-value baz",
    "set /foo qux --swap-with-index 3",
    "rm /foo --with-value nope",
    "rm /foo",
    "rm /foo",
    "rm /dir",
    "rmdir /dir",
    "rm --recursive /dir",
    "rmdir /dir2",
    "get --quorum /new",
    "member list",
    "cluster-health",
)


async def etcdctl2(endpoint: str, *words: str) -> str:
    """Run one command of etcdctl's v2 side; return what it printed and its exit code."""
    assert ETCDCTL is not None
    process = await asyncio.create_subprocess_exec(
        ETCDCTL,
        *("--endpoints", f"http://{endpoint}", *words),
        env={**os.environ, "ETCDCTL_API": "2"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return f"{out.decode()}[{process.returncode}]"


def _plain(text: str) -> str:
    text = re.sub(r"(127\.0\.0\.1|localhost):\d+", "HOST", text)
    text = re.sub(r"\b[0-9a-f]{14,16}\b", "ID", text)
    return re.sub(r"(TTL: |ttl\":)\d+", r"\1N", normal(text))


@needs_etcdctl
@needs_etcd
async def test_an_etcdctl_session_prints_what_it_prints_with_a_real_etcd(tmp_path: Path) -> None:
    async with (
        real_etcd(tmp_path, "--enable-v2") as theirs,
        memory_etcd(enable_v2=True) as server,
    ):
        for line in SESSION:
            want, got = await asyncio.gather(
                etcdctl2(theirs, *line.split()), etcdctl2(server.endpoint, *line.split())
            )
            assert sorted(_plain(got).splitlines()) == sorted(_plain(want).splitlines()), line


@needs_etcdctl
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("watch", "--recursive", "/w"), "[set] /w/key\nvalue\n"),
        (("watch", "--after-index", "3", "/w/key"), "value\n"),
        (
            ("exec-watch", "--recursive", "/w", "--", "sh", "-c", "env | grep ETCD_WATCH_ | sort"),
            'ETCD_WATCH_ACTION=set\nETCD_WATCH_KEY=/w/key\nETCD_WATCH_MODIFIED_INDEX=4\n'
            'ETCD_WATCH_VALUE=value\n',
        ),
    ],
)  # fmt: skip
async def test_etcdctl_watches(command: tuple[str, ...], expected: str) -> None:
    assert ETCDCTL is not None
    async with memory_etcd(enable_v2=True) as server, aiohttp.ClientSession() as session:
        process = await asyncio.create_subprocess_exec(
            ETCDCTL,
            *("--endpoints", f"http://{server.endpoint}", *command),
            env={"PATH": os.environ["PATH"], "ETCDCTL_API": "2"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            assert server.member.v2 is not None
            async with asyncio.timeout(TIMEOUT_S):
                if "--after-index" not in command:
                    while not server.member.v2.store.hub.count:
                        await asyncio.sleep(0.01)
                await V2(session, server.endpoint).ask("PUT", "/w/key", value="value")
                assert process.stdout is not None
                lines = expected.count("\n")
                got = b"".join([await process.stdout.readline() for _ in range(lines)]).decode()
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()
    assert got == expected


# flannel 0.7 ---------------------------------------------------------------------------------


class FlannelRegistry:
    """The requests of flannel 0.7's subnet/registry.go through the Go v2 client."""

    PREFIX = "/coreos.com/network"

    def __init__(self, v2: V2) -> None:
        self._v2 = v2

    async def config(self) -> str:
        status, body = await self._v2.ask(
            "GET", f"{self.PREFIX}/config", quorum="true", recursive="false", sorted="false"
        )
        assert status == 200
        return str(json.loads(body)["node"]["value"])

    async def subnets(self) -> tuple[dict[str, str], int]:
        """Return subnet -> attributes and the index to watch from."""
        async with self._v2._session.get(
            f"{self._v2.url}{self.PREFIX}/subnets",
            params={"quorum": "true", "recursive": "true", "sorted": "false"},
        ) as response:
            body = await response.json()
            if response.status == 404:
                assert body["errorCode"] == 100
                return {}, int(body["index"])
            nodes = body["node"].get("nodes", [])
            leases = {node["key"].rpartition("/")[2]: node["value"] for node in nodes}
            return leases, int(response.headers["X-Etcd-Index"])

    async def create(self, subnet: str, attributes: str) -> bool:
        status, body = await self._v2.ask(
            "PUT", f"{self.PREFIX}/subnets/{subnet}", prevExist="false", value=attributes,
            ttl="86400",
        )  # fmt: skip
        if status == 412:
            assert json.loads(body)["errorCode"] == 105
            return False
        assert status == 201
        assert json.loads(body)["node"]["expiration"]
        return True

    async def renew(self, subnet: str, attributes: str) -> None:
        status, body = await self._v2.ask(
            "PUT", f"{self.PREFIX}/subnets/{subnet}", value=attributes, ttl="86400"
        )
        assert status == 200
        assert json.loads(body)["prevNode"]["value"] == attributes

    async def next_change(self, after: int) -> tuple[str, str, int]:
        status, body = await self._v2.ask(
            "GET", f"{self.PREFIX}/subnets", recursive="true", wait="true",
            waitIndex=str(after + 1),
        )  # fmt: skip
        assert status == 200
        event = json.loads(body)
        node = event["node"]
        return event["action"], node["key"].rpartition("/")[2], int(node["modifiedIndex"])


async def _flannel_story(v2: V2) -> list[object]:
    """Two nodes take subnets, renew, one goes; return what a third that watches sees."""
    await v2.ask("PUT", "/coreos.com/network/config", value='{"Network":"10.2.0.0/16"}')
    registry = FlannelRegistry(v2)
    seen: list[object] = [await registry.config()]
    leases, index = await registry.subnets()
    seen.append(leases)
    attributes = '{"PublicIP":"192.168.1.1","BackendType":"vxlan"}'
    assert await registry.create("10.2.59.0-24", attributes)
    assert not await registry.create("10.2.59.0-24", attributes)
    assert await registry.create("10.2.60.0-24", attributes)
    await registry.renew("10.2.59.0-24", attributes)
    await v2.ask("DELETE", "/coreos.com/network/subnets/10.2.60.0-24")
    for _ in range(4):
        action, subnet, index = await registry.next_change(index)
        seen.append((action, subnet, index))
    seen.append(await registry.subnets())
    return seen


@needs_etcd
async def test_flannel_of_2017_sees_what_it_saw_with_a_real_etcd(tmp_path: Path) -> None:
    async with both(tmp_path) as servers:
        want, got = [await _flannel_story(v2) for v2 in servers]
    assert got == want
    assert [entry[0] for entry in got[2:6]] == ["create", "create", "set", "delete"]  # type: ignore[index]
