"""aetcd (gRPC) and etcd3gw (the JSON gateway) do the same on ours as on a real etcd.

Each story runs on a server and returns what the client saw; both servers must have shown it the
same.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.etcd_servers import NO_REAL_ETCD, memory_etcd, real_etcd, real_etcd_binary

etcd3gw = pytest.importorskip("etcd3gw", reason="etcd3gw is not installed")

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD),
    pytest.mark.skipif(importlib.util.find_spec("aetcd") is None, reason="aetcd is not installed"),
]
TIMEOUT_S = 20.0

Seen = list[Any]


async def same(story: Callable[[str], Awaitable[Seen]], tmp_path: Path) -> Seen:
    """Run a story on both servers; return what was seen."""
    async with asyncio.timeout(2 * TIMEOUT_S), real_etcd(tmp_path) as endpoint:
        theirs = await story(endpoint)
        async with memory_etcd() as server:
            ours = await story(server.endpoint)
    assert ours == theirs
    assert ours
    return ours


# aetcd -------------------------------------------------------------------------------------

AETCD_STORIES = (
    "keys_and_values",
    "transactions",
    "leases",
    "watches",
    "locks",
    "status_and_members",
)


async def _told(endpoint: str) -> dict[str, Seen]:
    """Run all of aetcd's stories in a process of their own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.aetcd_stories", endpoint),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    told: dict[str, Seen] = json.loads(out)
    return told


@pytest.fixture(scope="module")
def aetcd_told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Seen], ...]:
    """What aetcd saw of the real etcd and of ours."""

    async def both() -> tuple[dict[str, Seen], ...]:
        path = tmp_path_factory.mktemp("etcd")
        async with (
            asyncio.timeout(4 * TIMEOUT_S),
            real_etcd(path) as endpoint,
            memory_etcd() as server,
        ):
            return tuple(await asyncio.gather(_told(endpoint), _told(server.endpoint)))

    return asyncio.run(both())


@pytest.mark.parametrize("story", AETCD_STORIES)
def test_aetcd_sees_the_same(aetcd_told: tuple[dict[str, Seen], ...], story: str) -> None:
    theirs, ours = aetcd_told
    assert ours[story] == theirs[story]
    assert ours[story]


def test_aetcd_has_a_story_for_each_service(aetcd_told: tuple[dict[str, Seen], ...]) -> None:
    theirs, _ = aetcd_told
    assert tuple(theirs) == AETCD_STORIES
    assert theirs["locks"] == [True, True, False, True, True, [False, True], True]


# etcd3gw -----------------------------------------------------------------------------------


def _gateway(endpoint: str) -> Any:
    host, port = endpoint.split(":")
    # Found out from /version, as its users have it.
    return etcd3gw.client(host=host, port=int(port), timeout=TIMEOUT_S)


async def same_sync(story: Callable[[Any], Seen], tmp_path: Path) -> Seen:
    """As ``same``, for a client that blocks: it gets a thread."""

    async def in_thread(endpoint: str) -> Seen:
        def run() -> Seen:
            client = _gateway(endpoint)
            try:
                return story(client)
            finally:
                client.session.close()

        return await asyncio.to_thread(run)

    return await same(in_thread, tmp_path)


def _plain(kv: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kv.items() if key != "lease"}


async def test_etcd3gw_keys_and_values(tmp_path: Path) -> None:
    def story(client: Any) -> Seen:
        seen: Seen = [client.put(f"/k/{number}", f"v{9 - number}") for number in range(4)]
        seen.append(client.get("/k/1"))
        seen += [(v, _plain(kv)) for v, kv in client.get("/k/1", metadata=True)]
        seen.append(client.get("/nothing"))
        found = client.get_prefix("/k/", sort_order="descend", sort_target="value")
        seen += [(v, _plain(kv)) for v, kv in found]
        seen.append(len(client.get_all()))
        seen.append(client.create("/k/1", "no"))
        seen.append(client.create("/k/new", "yes"))
        seen.append(client.replace("/k/1", "v8", "w"))
        seen.append(client.replace("/k/1", "v8", "w"))
        seen.append(client.delete("/k/1"))
        seen.append(client.delete("/k/1"))
        seen.append(client.delete_prefix("/k/"))
        seen.append(client.get_all())
        seen.append([member["name"] for member in client.members()])
        seen.append(sorted(client.status()))
        return seen

    seen = await same_sync(story, tmp_path)
    assert [b"v8"] in seen


async def test_etcd3gw_transactions_and_errors(tmp_path: Path) -> None:
    def story(client: Any) -> Seen:
        key, value = etcd3gw.utils._encode("k"), etcd3gw.utils._encode("v")
        txn = {
            "compare": [{"key": key, "result": "EQUAL", "target": "VERSION", "version": 0}],
            "success": [{"request_put": {"key": key, "value": value}}],
            "failure": [{"request_range": {"key": key}}, {"request_delete_range": {"key": key}}],
        }
        seen: Seen = []
        for _ in range(3):
            answer = client.transaction(txn)
            answer.pop("header")
            for response in answer["responses"]:
                for inner in response.values():
                    inner.get("header", {}).pop("raft_term", None)
            seen.append(answer)
        with pytest.raises(etcd3gw.exceptions.Etcd3Exception) as refused:
            client.put("", "x")
        seen.append(str(refused.value))
        return seen

    await same_sync(story, tmp_path)


async def test_etcd3gw_leases_and_locks(tmp_path: Path) -> None:
    def story(client: Any) -> Seen:
        lease = client.lease(ttl=100)
        client.put("a", "1", lease=lease)
        client.put("b", "1", lease=lease)
        seen: Seen = [sorted(lease.keys()), 90 < lease.ttl() <= 100, lease.refresh()]
        seen += [lease.revoke(), client.get("a"), lease.ttl()]
        lock = client.lock("mine", ttl=60)
        other = client.lock("mine", ttl=60)
        seen += [lock.acquire(), lock.is_acquired(), other.acquire(), other.is_acquired()]
        seen += [lock.refresh(), lock.release(), other.acquire(), lock.release(), other.release()]
        with client.lock("with", ttl=60) as held:
            seen.append(held.is_acquired())
        return seen

    seen = await same_sync(story, tmp_path)
    assert [b"a", b"b"] in seen


async def test_etcd3gw_watches(tmp_path: Path) -> None:
    def story(client: Any) -> Seen:
        client.put("w/0", "before")
        events, cancel = client.watch_prefix("w/", start_revision=2, prev_kv=True)
        writer = threading.Thread(
            target=lambda: (client.put("w/1", "x"), client.put("w/0", "y"), client.delete("w/1"))
        )
        writer.start()
        seen: Seen = []
        for event in events:
            seen.append((event.get("type"), _plain(event["kv"]), "prev_kv" in event))
            if len(seen) == 4:
                break
        writer.join()
        cancel()
        with contextlib.suppress(etcd3gw.exceptions.WatchTimedOut):
            client.watch_once("never", timeout=0.1)
            seen.append("an event out of nowhere")
        return seen

    assert len(await same_sync(story, tmp_path)) == 4
