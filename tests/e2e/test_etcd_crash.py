"""SIGKILL at random moments: nothing acknowledged, read or told by a watch is taken back.

``PODWIRE_CRASH_KILLS=400 pytest tests/e2e/test_etcd_crash.py --timeout 600`` is the long form;
PODWIRE_SEED repeats the moments of a run (not what the machine does in between).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from typing import TYPE_CHECKING

import pytest

from etcd.client import Code, CompactedError, EtcdClient, EtcdError, Get, Put
from tests.etcd_servers import ForkedEtcd, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from etcd.client import Event

pytestmark = pytest.mark.e2e
KILLS = int(os.environ.get("PODWIRE_CRASH_KILLS", "25"))
WRITERS = 3
# So small that most lives of the server take a snapshot, and some die in the middle of one.
SNAPSHOT_BYTES = 20_000
DEADLINE_S = 20.0
LEASE_TTL_S = 3600
# Compactions leave this much history for the watchers that start in the past.
HISTORY = 300


class History:
    """What the server said to anybody."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        # Acknowledged writes: what the event of (revision, key) must say.
        self.acknowledged: dict[tuple[int, bytes], bytes] = {}
        # The newest version of each key any read showed.
        self.read: dict[bytes, tuple[int, bytes]] = {}
        self.revision = 1
        self.events: dict[int, list[Event]] = {}
        self.told = 1
        self.leases: dict[int, bytes] = {}
        self.revoked: dict[int, bytes] = {}
        self.compacted = 0
        self.reads = self.rereads = 0

    def saw(self, revision: int, sent_at: int) -> None:
        """An answer came whose request was sent when ``sent_at`` was known."""
        assert revision >= sent_at, f"revision went back from {sent_at} to {revision}"
        self.revision = max(self.revision, revision)


async def _write(client: EtcdClient, writer: int, history: History) -> None:
    number = 0
    while True:
        number += 1
        key, value = b"w%d/%d" % (writer, number % 50), b"%d" % number
        sent_at = history.revision
        with contextlib.suppress(EtcdError):
            revision = (await client.put(key, value)).revision
            history.saw(revision, sent_at)
            history.acknowledged[revision, key] = value


async def _write_pairs(client: EtcdClient, history: History) -> None:
    number = 0
    while True:
        number += 1
        value, sent_at = b"%d" % number, history.revision
        with contextlib.suppress(EtcdError):
            done = await client.txn(success=[Put(b"pair/a", value), Put(b"pair/b", value)])
            history.saw(done.revision, sent_at)
            for key in (b"pair/a", b"pair/b"):
                history.acknowledged[done.revision, key] = value


async def _lease(client: EtcdClient, history: History) -> None:
    """Grant, attach, revoke half of them; an unanswered call says nothing about its lease."""
    while True:
        with contextlib.suppress(EtcdError):
            lease = (await client.lease_grant(LEASE_TTL_S)).id
            key = b"leased/%d" % lease
            revision = (await client.put(key, b"x", lease=lease)).revision
            history.acknowledged[revision, key] = b"x"
            history.leases[lease] = key
            if history.rng.random() < 0.5:
                del history.leases[lease]
                await client.lease_revoke(lease)
                history.revoked[lease] = key
        await asyncio.sleep(0.002)


async def _read(client: EtcdClient, history: History) -> None:
    while True:
        sent_at = history.revision
        with contextlib.suppress(EtcdError):
            found = await client.txn(success=[Get(b"pair/", prefix=True), Get(b"w0/", prefix=True)])
            history.saw(found.revision, sent_at)
            pair, others = found.responses
            assert len({kv.value for kv in pair.kvs}) <= 1, "half a transaction"
            for kv in (*pair.kvs, *others.kvs):
                assert kv.mod_revision >= history.read.get(kv.key, (0, b""))[0]
                history.read[kv.key] = kv.mod_revision, kv.value
            history.reads += 1
        await asyncio.sleep(0.001)


async def _compact(client: EtcdClient, history: History) -> None:
    while True:
        await asyncio.sleep(0.05)
        # Never what the followers still need: those are tested by the one watch that is never late.
        if history.told > history.compacted + 2 * HISTORY:
            with contextlib.suppress(EtcdError):
                history.compacted = history.told - HISTORY
                await client.compact(history.compacted)


async def _follow(client: EtcdClient, history: History) -> None:
    """One watch over all lives of the server."""
    async with client.watch(b"", prefix=True, start_revision=1) as batches:
        async for batch in batches:
            for event in batch.events:
                revision = event.kv.mod_revision
                assert revision >= history.told, "an event out of order or told twice"
                if revision > history.told:
                    assert revision == history.told + 1, (
                        f"nothing between {history.told}, {revision}"
                    )
                    history.events[revision] = []
                    history.told = revision
                history.events[revision].append(event)


async def _reread(client: EtcdClient, history: History) -> None:
    """Watches from the past, each compared with what the first watch was told."""
    while True:
        await asyncio.sleep(0.01)
        start = history.rng.randint(max(2, history.compacted), max(2, history.told))
        upto = history.told
        if start > upto:
            continue
        got: dict[int, list[Event]] = {}
        try:
            async with client.watch(b"", prefix=True, start_revision=start) as batches:
                async for batch in batches:
                    for event in batch.events:
                        got.setdefault(event.kv.mod_revision, []).append(event)
                    if batch.revision >= upto:
                        break
        except CompactedError:
            assert start < history.compacted
            continue
        want = {rev: history.events[rev] for rev in range(start, upto + 1)}
        got = {rev: events for rev, events in got.items() if rev <= upto}
        # Of the revision compacted at, only what survives is told.
        for revision in [rev for rev in want if rev <= history.compacted]:
            del want[revision]
            got.pop(revision, None)
        assert got == want
        history.rereads += 1


async def test_kill_nine_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    seed = int(os.environ.get("PODWIRE_SEED") or random.randrange(2**32))
    print(f"replay with PODWIRE_SEED={seed}")
    rng = random.Random(seed)
    history = History(random.Random(seed))
    port = free_port()
    async with (
        EtcdClient([f"127.0.0.1:{port}"], timeout_s=5) as client,
        EtcdClient([f"127.0.0.1:{port}"], timeout_s=5) as other,
        ForkedEtcd(tmp_path, port, SNAPSHOT_BYTES) as server,
        asyncio.TaskGroup() as group,
    ):
        writers = [
            group.create_task(work)
            for work in (
                *(_write(client, n, history) for n in range(WRITERS)),
                _write_pairs(client, history),
                _lease(client, history),
                _read(other, history),
                _compact(other, history),
                _reread(other, history),
            )
        ]
        follower = group.create_task(_follow(other, history))
        for number in range(KILLS):
            await server.start()
            # Most lives get to answer; some end while they recover.
            before = history.revision
            if number == 0 or rng.random() < 0.85:
                async with asyncio.timeout(DEADLINE_S):
                    while history.revision == before:
                        assert server.alive, "the server ended by itself"
                        await asyncio.sleep(0.001)
            await asyncio.sleep(rng.random() * 0.08)
            assert server.alive, "the server ended by itself"
            server.kill()
        for task in writers:
            task.cancel()
        await asyncio.wait(writers)
        await server.start()
        await _check(client, history)
        follower.cancel()
    print(
        f"{KILLS} kills, revision {history.revision}, {len(history.acknowledged)} acknowledged, "
        f"{history.reads} reads, {history.rereads} watches from the past, "
        f"{len(history.leases)} leases, {len(history.revoked)} revoked"
    )
    assert history.reads
    assert history.rereads
    assert history.leases
    assert history.revoked


async def _check(client: EtcdClient, history: History) -> None:
    found = await client.get(b"", prefix=True)
    assert found.revision >= history.revision
    async with asyncio.timeout(DEADLINE_S):
        while history.told < found.revision:
            await asyncio.sleep(0.01)
    for (revision, key), value in history.acknowledged.items():
        told = [event.kv for event in history.events[revision]]
        assert (key, value) in [(kv.key, kv.value) for kv in told]
    for key, (revision, value) in history.read.items():
        assert value in [event.kv.value for event in history.events[revision]], key
    # What is stored is what the events add up to.
    state = {}
    for revision in sorted(history.events):
        for event in history.events[revision]:
            state[event.kv.key] = event.kv if event.kind == "PUT" else None
    assert {kv.key: kv for kv in found.kvs} == {k: kv for k, kv in state.items() if kv is not None}
    for lease, key in history.leases.items():
        status = await client.lease_time_to_live(lease, keys=True)
        # A revocation that was cut off may have been applied: then its key is gone as well.
        if status.ttl_s < 0:
            assert state[key] is None
        else:
            assert status.keys == (key,)
    for lease, key in history.revoked.items():
        with pytest.raises(EtcdError) as gone:
            await client.lease_keep_alive_once(lease)
        assert gone.value.code == Code.NOT_FOUND
        assert state[key] is None
