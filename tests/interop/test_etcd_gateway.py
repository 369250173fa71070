"""The JSON gateway, answer by answer beside the real etcd's."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.etcd_servers import NO_DISTRO, distro_binary, memory_etcd, real_etcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Method, path and body of a request a line, made one after another.  Changes of unknown members
# are not among them: the real one at times never answers those.
CASES = (Path(__file__).parent / "gateway_cases.txt").read_text().splitlines()
ANSWER_TIMEOUT_S = 10.0
needs_distro = pytest.mark.skipif(distro_binary("etcd") is None, reason=NO_DISTRO)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _normal(text: str) -> str:
    """Without what differs between any two servers, and the version."""
    ids = "cluster_id|member_id|raft_term|leader|raftIndex|raftTerm|raftAppliedIndex|dbSize"
    text = re.sub(rf'"({ids}|dbSizeInUse|ID)":"\d+"', r'"\1":"N"', text)
    text = re.sub(r'"hash":\d+', '"hash":N', text)
    text = re.sub(r"3\.5\.(1|21)\b", "3.5.x", text)
    # How old a lease is depends on how fast the test runs.
    text = re.sub(r'"TTL":"(99|98|97)"', '"TTL":"left"', text)
    return re.sub(r"(127\.0\.0\.1|localhost):\d+", "HOST", text)


async def _answers(endpoint: str) -> list[tuple[str, int, str, dict[str, str]]]:
    answers = []
    timeout = aiohttp.ClientTimeout(ANSWER_TIMEOUT_S)
    async with aiohttp.ClientSession(f"http://{endpoint}", timeout=timeout) as session:
        for case in CASES:
            method, path, *body = case.split(" ", 2)
            data = body[0].encode() if body else None
            headers = {"Content-Type": "application/json"}
            try:
                async with session.request(
                    method, path, data=data, headers=headers, allow_redirects=False
                ) as response:
                    text = await response.text()
            except TimeoutError:
                pytest.fail(f"no answer to {case}")
            kept = {
                name: value
                for name, value in response.headers.items()
                if name not in ("Date", "Server", "Content-Length")
            }
            answers.append((case, response.status, _normal(text), kept))
    return answers


@needs_distro
async def test_every_answer_is_the_real_etcds(tmp_path: Path) -> None:
    async with real_etcd(tmp_path, binary=distro_binary("etcd")) as endpoint:
        expected = await _answers(endpoint)
    async with memory_etcd() as server:
        got = await _answers(server.endpoint)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == theirs


class Client:
    """Posts JSON; streams give a line at a time."""

    def __init__(self, endpoint: str) -> None:
        self._session = aiohttp.ClientSession(f"http://{endpoint}")

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def post(self, path: str, body: object) -> dict[str, Any]:
        async with (
            asyncio.timeout(ANSWER_TIMEOUT_S),
            self._session.post(path, data=io.BytesIO(json.dumps(body).encode())) as response,
        ):
            answer: dict[str, Any] = json.loads(await response.read())
            return answer

    async def get(self, path: str) -> tuple[int, str]:
        async with asyncio.timeout(ANSWER_TIMEOUT_S), self._session.get(path) as response:
            return response.status, await response.text()

    async def lines(self, path: str, body: str) -> AsyncIterator[dict[str, Any]]:
        async with self._session.post(path, data=body) as response:
            assert response.headers["Content-Type"] == "application/json"
            while True:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    line = await response.content.readline()
                if not line:
                    return
                yield json.loads(line)


def _without_ids(message: Any) -> Any:
    if isinstance(message, dict):
        dropped = ("cluster_id", "member_id", "raft_term")
        return {name: _without_ids(value) for name, value in message.items() if name not in dropped}
    return [_without_ids(item) for item in message] if isinstance(message, list) else message


async def _streams(endpoint: str) -> list[Any]:
    """Watch, keepalive and observe; return what came."""
    seen: list[Any] = []
    async with Client(endpoint) as client:
        watch = client.lines(
            "/v3/watch", json.dumps({"create_request": {"key": b64("w"), "prev_kv": True}})
        )
        seen.append(await anext(watch))
        for value in ("1", "2"):
            await client.post("/v3/kv/put", {"key": b64("w"), "value": b64(value)})
            seen.append(await anext(watch))
        await client.post("/v3/kv/deleterange", {"key": b64("w")})
        seen.append(await anext(watch))
        await watch.aclose()
        several = '{"create_request":{"key":"YQ=="}} {"create_request":{"key":"Yg=="}}{"cancel_'
        watch = client.lines("/v3/watch", several + 'request":{"watch_id":"1"}} garbage')
        seen += [await anext(watch) for _ in range(3)]
        await client.post("/v3/kv/put", {"key": b64("a")})
        seen.append(await anext(watch))
        await watch.aclose()
        await client.post("/v3/lease/grant", {"ID": 71, "TTL": 300})
        body = '{"ID":71}\n{"ID":"72"}\n{"ID":71}'
        seen.append([line async for line in client.lines("/v3/lease/keepalive", body)])
        observe = client.lines("/v3/election/observe", json.dumps({"name": b64("el")}))
        first = asyncio.ensure_future(anext(observe))
        campaign = {"name": b64("el"), "lease": 71, "value": b64("one")}
        seen.append(await client.post("/v3/election/campaign", campaign))
        seen.append(await first)
        leader = {"leader": seen[-2]["leader"], "value": b64("two")}
        seen.append(await client.post("/v3/election/proclaim", leader))
        seen.append(await anext(observe))
        await client.post("/v3/lease/grant", {"ID": 73, "TTL": 300})
        second = asyncio.ensure_future(
            client.post(
                "/v3/election/campaign", {"name": b64("el"), "lease": 73, "value": b64("three")}
            )
        )
        await _until_keys(client, "el/", 2)
        seen.append(await client.post("/v3/election/resign", {"leader": leader["leader"]}))
        seen.append((await second)["leader"])
        seen.append(await anext(observe))
        seen.append(await client.post("/v3/election/leader", {"name": b64("el")}))
        await observe.aclose()
    return [_without_ids(message) for message in seen]


async def _until_keys(client: Client, prefix: str, count: int) -> None:
    """Wait until so many keys have a prefix."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    body = {"key": b64(prefix), "range_end": b64(end), "count_only": True}
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        while int((await client.post("/v3/kv/range", body)).get("count", 0)) != count:
            await asyncio.sleep(0.01)


@needs_distro
async def test_streams_give_the_real_etcds_lines(tmp_path: Path) -> None:
    async with real_etcd(tmp_path, binary=distro_binary("etcd")) as endpoint:
        expected = await _streams(endpoint)
    async with memory_etcd() as server:
        got = await _streams(server.endpoint)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == theirs


async def test_a_second_locker_waits_for_the_first_ones_lease() -> None:
    async with memory_etcd() as server, Client(server.endpoint) as client:
        for lease in (11, 12):
            await client.post("/v3/lease/grant", {"ID": lease, "TTL": 300})
        first = await client.post("/v3/lock/lock", {"name": b64("l"), "lease": 11})
        assert first["key"] == b64("l/b")
        waiting = asyncio.ensure_future(
            client.post("/v3/lock/lock", {"name": b64("l"), "lease": 12})
        )
        await _until_keys(client, "l/", 2)
        assert not waiting.done()
        await client.post("/v3/lease/revoke", {"ID": 11})
        assert (await waiting)["key"] == b64("l/c")
        await client.post("/v3/lock/unlock", {"key": b64("l/c")})
        await _until_keys(client, "l/", 0)


async def test_a_locker_that_leaves_takes_its_key_away() -> None:
    async with memory_etcd() as server, Client(server.endpoint) as client:
        await client.post("/v3/lock/lock", {"name": b64("l")})
        waiting = asyncio.ensure_future(client.post("/v3/lock/lock", {"name": b64("l")}))
        await _until_keys(client, "l/", 2)
        waiting.cancel()
        await _until_keys(client, "l/", 1)


async def test_a_waiting_locker_whose_lease_ended_is_told_so() -> None:
    async with memory_etcd() as server, Client(server.endpoint) as client:
        for lease in (11, 12):
            await client.post("/v3/lease/grant", {"ID": lease, "TTL": 300})
        await client.post("/v3/lock/lock", {"name": b64("l"), "lease": 11})
        waiting = asyncio.ensure_future(
            client.post("/v3/lock/lock", {"name": b64("l"), "lease": 12})
        )
        await _until_keys(client, "l/", 2)
        await client.post("/v3/lease/revoke", {"ID": 12})
        await client.post("/v3/lease/revoke", {"ID": 11})
        assert (await waiting)["error"] == "mutex: session is expired"


async def test_a_snapshot_comes_in_lines() -> None:
    async with memory_etcd() as server, Client(server.endpoint) as client:
        await client.post("/v3/kv/put", {"key": b64("k"), "value": b64("v" * 99_999)})
        data, left = b"", 0
        async for line in client.lines("/v3/maintenance/snapshot", ""):
            data += base64.b64decode(line["result"]["blob"])
            left = int(line["result"].get("remaining_bytes", 0))
        assert left == 0
        assert len(data) % 4096 == 32


async def test_a_body_larger_than_any_request_is_refused() -> None:
    async with memory_etcd() as server, Client(server.endpoint) as client:
        body = {"key": b64("k"), "value": b64("v" * 2_500_000)}
        answer = await client.post("/v3/kv/put", body)
        assert answer["code"] == 8
        assert "larger than max (2500008 vs. 2097152)" in answer["error"]
        huge = {"key": "x" * 17 * 1024 * 1024}
        assert "16777216 bytes" in (await client.post("/v3/kv/put", huge))["error"]


async def test_livez_and_readyz() -> None:
    async with memory_etcd() as server, Client(server.endpoint) as client:
        assert await client.get("/livez") == (200, "ok\n")
        assert await client.get("/livez?verbose") == (200, "[+]serializable_read ok\nok\n")
        assert await client.get("/readyz/data_corruption") == (200, "ok\n")
        alarm = {"action": "ACTIVATE", "memberID": 1, "alarm": "CORRUPT"}
        await client.post("/v3/maintenance/alarm", alarm)
        status, text = await client.get("/readyz")
        assert status == 503
        assert text.startswith("[-]data_corruption failed: alarm activated: CORRUPT\n")
        assert await client.get("/readyz?exclude=data_corruption") == (200, "ok\n")
        assert (await client.get("/health"))[0] == 503
        _, variables = await client.get("/debug/vars")
        assert json.loads(variables)["raft.status"]["raftState"] == "StateLeader"
