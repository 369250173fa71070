"""Automatic compaction: the revisions of etcd's own algorithm, on a clock of numbers."""

from __future__ import annotations

import asyncio

from etcd.client import EtcdClient
from etcd.core.compactor import Compactor, Periodic, Revision
from tests.etcd_servers import memory_etcd

HOUR_S = 3600.0


def drive(mode: Compactor, until: float, revision_at_s: float) -> list[tuple[float, int]]:
    """Run a store that gains a revision every ``revision_at_s``; return (when, compacted)."""
    done = []
    while (now := mode.get_timer()) <= until:
        found = mode.handle_timer(1 + round(now / revision_at_s), now=now)
        if found is not None:
            mode.compacted(found, now=now)
            done.append((round(now, 3), found))
    return done


def test_an_hour_is_kept_and_compacted_hourly() -> None:
    # As upstream (TestPeriodicHourly) a look more than the retention is kept; a revision a minute.
    done = drive(Periodic(HOUR_S, 1, now=0.0), 3 * HOUR_S, 60.0)
    assert done == [(3600.0, 1), (7200.0, 55), (10800.0, 115)]


def test_five_minutes_are_kept_and_compacted_every_five_minutes() -> None:
    done = drive(Periodic(300.0, 1, now=0.0), 900.0, 1.0)
    assert done == [(300.0, 1), (600.0, 271), (900.0, 571)]


def test_a_day_is_kept_and_compacted_hourly_after_it() -> None:
    done = drive(Periodic(24 * HOUR_S, 1, now=0.0), 26 * HOUR_S, 60.0)
    assert done == [(86400.0, 1), (90000.0, 55), (93600.0, 115)]


def test_a_quiet_store_is_compacted_once() -> None:
    mode = Periodic(300.0, 7, now=0.0)
    done = []
    for _ in range(50):
        now = mode.get_timer()
        found = mode.handle_timer(7, now=now)
        if found is not None:
            mode.compacted(found, now=now)
            done.append(found)
    assert done == [7]


def test_revision_mode_keeps_the_newest() -> None:
    # upstream: TestRevision, retention 10.
    done = drive(Revision(10, now=0.0), 1200.0, 300.0 / 9)
    assert done == [(600.0, 9), (900.0, 18), (1200.0, 27)]


async def test_a_server_compacts_by_itself() -> None:
    async with (
        asyncio.timeout(20),
        memory_etcd(compaction_retention=0.2) as server,
        EtcdClient([server.endpoint]) as client,
    ):
        store = server.member.engine.store
        while store.compacted < 2:
            written = (await client.put(b"k", b"v")).revision
        # What was written within the retention is still there.
        assert 2 <= store.compacted < written
