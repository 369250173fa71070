"""What aetcd sees of a server: ``python -m tests.aetcd_stories host:port`` prints it as JSON.

A program of its own because aetcd brings etcd's protobuf messages under the names ours have, and a
process can register a name once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aetcd

TIMEOUT_S = 20.0
Seen = list[Any]


def _kv(result: Any) -> tuple[Any, ...] | None:
    # None: no such key; aetcd also builds nested transactions that say nothing.
    return result and (
        result.key,
        result.value,
        result.create_revision,
        result.mod_revision,
        result.version,
        bool(result.lease),
    )


def _client(endpoint: str) -> Any:
    host, port = endpoint.split(":")
    return aetcd.Client(host=host, port=int(port), timeout=TIMEOUT_S)


async def _refusal(call: Any) -> str:
    try:
        await call
    except aetcd.exceptions.ClientError as error:
        return f"{type(error).__name__} {error}"
    return "no error"


async def _revision(client: Any) -> int:
    return int((await client.put(b"/revision", b"")).header.revision)


async def keys_and_values(client: Any) -> Seen:
    seen: Seen = []
    for number in range(5):
        put = await client.put(b"/k/%d" % number, b"%d" % (9 - number))
        seen.append(put.header.revision)
    seen.append((await client.put(b"/k/1", b"again", prev_kv=True)).prev_kv.value)
    seen.append(_kv(await client.get(b"/k/1")))
    seen.append(await client.get(b"/nothing"))
    found = await client.get_prefix(b"/k/", sort_order="descend", sort_target="value")
    seen += [_kv(kv) for kv in found]
    seen += [_kv(kv) for kv in await client.get_range(b"/k/1", b"/k/3")]
    seen.append(len(list(await client.get_all(keys_only=True))))
    seen.append(await client.replace(b"/k/2", b"7", b"new"))
    seen.append(await client.replace(b"/k/2", b"7", b"newer"))
    seen.append((await client.delete(b"/k/1", prev_kv=True)).prev_kv.value)
    seen.append((await client.delete_prefix(b"/k/")).deleted)
    revision = await _revision(client)
    await client.compact(revision)
    seen.append(await _refusal(client.compact(revision)))
    seen.append(await _refusal(client.put(b"", b"x")))
    return seen


async def transactions(client: Any) -> Seen:
    seen: Seen = []
    ops = client.transactions
    for value in (b"1", b"2"):
        done, answers = await client.transaction(
            compare=[ops.version(b"k") == 0, ops.create(b"other") == 0],
            success=[ops.put(b"k", value), ops.put(b"other", b"y")],
            failure=[ops.get(b"k"), ops.delete(b"other")],
        )
        seen.append((done, len(answers)))
    for compare in (
        ops.value(b"k") == b"1",
        ops.value(b"k") > b"0",
        ops.version(b"k") < 2,
        ops.create(b"k") > 1,
        ops.mod(b"k") != 2,
        ops.create(b"missing") == 0,
    ):
        seen.append((await client.transaction([compare], [], []))[0])
    nested = ops.txn(
        compare=[ops.version(b"k") > 0],
        success=[ops.put(b"nested", b"yes"), ops.get(b"k")],
        failure=[],
    )
    done, answers = await client.transaction([], [nested], [])
    seen.append((done, len(answers)))
    seen.append(_kv(await client.get(b"nested")))
    return seen


async def leases(client: Any) -> Seen:
    seen: Seen = []
    lease = await client.lease(60, lease_id=77)
    await client.put(b"a", b"1", lease=lease)
    await client.put(b"b", b"1", lease=lease)
    info = await client.get_lease_info(77)
    seen.append((info.ID, info.grantedTTL, info.TTL > 50, sorted(info.keys)))
    refreshed = await lease.refresh()
    seen.append((refreshed.ID, refreshed.TTL))
    seen.append(await lease.remaining_ttl() > 50)
    await lease.revoke()
    seen.append(await client.get(b"a"))
    gone = await client.get_lease_info(77)
    seen.append((gone.TTL, gone.grantedTTL))
    seen.append(await _refusal(client.revoke_lease(77)))
    return seen


async def watches(client: Any) -> Seen:
    seen: Seen = []

    async def follow(watch: Any, count: int) -> None:
        async for event in watch:
            seen.append((str(event.kind), _kv(event.kv), event.prev_kv and event.prev_kv.value))
            count -= 1
            if not count:
                await watch.cancel()

    start = await _revision(client)
    await client.put(b"w/1", b"before")
    await client.put(b"w/1", b"now", prev_kv=True)
    # From the past, then live.
    watch = await client.watch_prefix(b"w/", start_revision=start, prev_kv=True)
    following = asyncio.create_task(follow(watch, 4), name="follow")
    await client.put(b"w/2", b"x")
    await client.delete(b"w/1")
    await following
    deletes = aetcd.rtypes.EventKind.DELETE
    watch = await client.watch(b"w/2", start_revision=start, kind=deletes)
    following = asyncio.create_task(follow(watch, 1), name="follow")
    await client.put(b"w/2", b"y")
    await client.delete(b"w/2")
    await following
    once = client.watch_once(b"w/3", timeout=5, start_revision=start)
    waiting = asyncio.create_task(once, name="once")
    await client.put(b"w/3", b"z")
    seen.append(_kv((await waiting).kv))
    seen.append(await _refusal(client.watch_once(b"never", timeout=0.05)))
    revision = await _revision(client)
    await client.compact(revision)
    try:
        await follow(await client.watch(b"w/1", start_revision=start), 1)
    except aetcd.exceptions.RevisionCompactedError as error:
        seen.append(error.compacted_revision == revision)
    return seen


async def locks(client: Any) -> Seen:
    seen: Seen = []
    first, second = client.lock(b"lock", ttl=30), client.lock(b"lock", ttl=30)
    seen.append(await first.acquire())
    seen.append(await first.is_acquired())
    seen.append(await second.acquire(timeout=0))
    waiting = asyncio.create_task(second.acquire(timeout=10), name="acquire")
    await first.refresh()
    seen.append(await first.release())
    seen.append(await waiting)
    seen.append((await first.is_acquired(), await second.is_acquired()))
    async with client.lock(b"another", ttl=30) as held:
        seen.append(await held.is_acquired())
    return seen


async def status_and_members(client: Any) -> Seen:
    status = await client.status()
    seen: Seen = [status.leader is not None]
    seen.append([member.name async for member in client.members()])
    seen.append([alarm async for alarm in client.list_alarms()])
    await client.defragment()
    return seen


STORIES = (keys_and_values, transactions, leases, watches, locks, status_and_members)


async def main(endpoint: str) -> None:
    told: dict[str, Seen] = {}
    for story in STORIES:
        async with _client(endpoint) as client:
            told[story.__name__] = await asyncio.wait_for(story(client), TIMEOUT_S)
    print(json.dumps(told, default=repr))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
