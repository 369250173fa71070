"""SIGKILL at random moments: no acknowledged write is lost, no watch event lost or doubled."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

import pytest

from etcd.client import EtcdClient, EtcdError
from tests.etcd_servers import free_port, process_etcd

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e
KILLS = int(os.environ.get("PODWIRE_CRASH_KILLS", "12"))
WRITERS = 4
# So small that most lives of the server take a snapshot, and some die in the middle of one.
SNAPSHOT_BYTES = 20_000
WATCH_TIMEOUT_S = 20.0


class History:
    """What was acknowledged, and what the watch told."""

    def __init__(self) -> None:
        self.acknowledged: dict[bytes, tuple[int, int]] = {}
        self.revision = 0
        self.seen: list[int] = []

    @property
    def seen_revision(self) -> int:
        return self.seen[-1] if self.seen else 1


async def _write(client: EtcdClient, writer: int, history: History) -> None:
    number = 0
    while True:
        number += 1
        key = b"w%d/%d" % (writer, number % 50)
        try:
            if number % 200 == 0:
                await client.compact(history.seen_revision)
            result = await client.put(key, b"%d" % number)
        except EtcdError:
            continue
        assert result.revision > history.acknowledged.get(key, (0, 0))[0]
        history.acknowledged[key] = result.revision, number
        history.revision = max(history.revision, result.revision)


async def _watch(client: EtcdClient, history: History) -> None:
    async with client.watch(b"w", prefix=True, start_revision=1) as batches:
        async for batch in batches:
            for event in batch.events:
                history.seen.append(event.kv.mod_revision)


async def test_kill_nine_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    seed = int(os.environ.get("PODWIRE_SEED") or random.randrange(2**32))
    print(f"replay with PODWIRE_SEED={seed}")
    rng = random.Random(seed)
    port = free_port()
    history = History()
    async with EtcdClient([f"127.0.0.1:{port}"], timeout_s=5) as client:
        tasks = [asyncio.create_task(_write(client, n, history)) for n in range(WRITERS)]
        tasks.append(asyncio.create_task(_watch(client, history)))
        try:
            for _ in range(KILLS):
                async with process_etcd(tmp_path, port=port, snapshot_bytes=SNAPSHOT_BYTES):
                    before = history.revision
                    while history.revision == before:
                        await asyncio.sleep(0.001)
                    await asyncio.sleep(rng.random() * 0.1)
            for task in tasks[:-1]:
                task.cancel()
            await asyncio.gather(*tasks[:-1], return_exceptions=True)
            async with process_etcd(tmp_path, port=port, snapshot_bytes=SNAPSHOT_BYTES):
                await _check(client, history)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _check(client: EtcdClient, history: History) -> None:
    found = await client.get(b"w", prefix=True)
    assert found.revision >= history.revision
    stored = {kv.key: kv for kv in found.kvs}
    for key, (revision, number) in history.acknowledged.items():
        assert stored[key].mod_revision >= revision
        assert int(stored[key].value) >= number
    async with asyncio.timeout(WATCH_TIMEOUT_S):
        while history.seen_revision < found.revision:
            await asyncio.sleep(0.01)
    # Every write is its own revision, from 2 on: each seen exactly once, in order.
    assert history.seen == list(range(2, found.revision + 1))
