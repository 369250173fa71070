"""The same random operations against a real etcd and ours must give the same answers.

A failure prints its seed; PODWIRE_SEED replays one, PODWIRE_DIFF_OPS changes the number of
operations.  A real etcd's clock cannot be scaled, so leases of the random run live longer than it,
and expiry is compared on its own with the shortest leases there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from etcd.client import EtcdClient, EtcdError
from etcd.core.pb import rpc_pb2 as pb
from tests.etcd_requests import Generator, has_tied, normal, strip
from tests.etcd_servers import NO_REAL_ETCD, memory_etcd, real_etcd, real_etcd_binary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from google.protobuf.message import Message

    from etcd.client.transport import ClientStream
    from etcd.server import EtcdServer

pytestmark = pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD)

OPERATIONS = int(os.environ.get("PODWIRE_DIFF_OPS", "4000"))
DEADLINE_S = 10.0
# Watchers that live at the same time, and how many operations pass between two of them.
MAX_WATCHERS = 25
WATCH_EVERY = 15
# Events of all watchers end with this key.
LAST = b"\xff\xff\xff-last"


class Both:
    """Clients of a real etcd and of ours."""

    def __init__(
        self, endpoint: str, theirs: EtcdClient, ours: EtcdClient, server: EtcdServer
    ) -> None:
        self.endpoint = endpoint
        self.theirs = theirs
        self.ours = ours
        self.server = server

    async def call(
        self, path: str, request: Message, response: type[Message]
    ) -> tuple[tuple[str, Any], tuple[str, Any]]:
        """Return (text, answer) of the real one and of ours."""
        theirs, ours = await asyncio.gather(
            _call(self.theirs, path, request, response), _call(self.ours, path, request, response)
        )
        return theirs, ours

    async def all_fed(self) -> None:
        """Wait until the real etcd has fed every watch from the past (it does every 100 ms)."""
        async with asyncio.timeout(DEADLINE_S):
            while await self._lagging_watches():
                await asyncio.sleep(0.01)

    async def _lagging_watches(self) -> int:
        host, port = self.endpoint.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = await reader.read()
        writer.close()
        return int(re.findall(rb"\netcd_debugging_mvcc_slow_watcher_total (\d+)", text)[0])

    async def same(self, path: str, request: Message, response: type[Message], what: str) -> Any:
        """Make a call that must be answered alike; return the answer."""
        (want, _), (got, answer) = await self.call(path, request, response)
        assert got == want, what
        return answer

    async def same_hash(self, what: str, revision: int = 0) -> None:
        """HashKV agrees, at the latest when the real etcd finished compacting behind our back."""
        want = await self.ours.hash_kv(revision)
        try:
            async with asyncio.timeout(DEADLINE_S):
                while await self.theirs.hash_kv(revision) != want:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            theirs = await self.theirs.hash_kv(revision)
            pytest.fail(f"HashKV at {revision} differs: ours {want}, theirs {theirs}\n{what}")


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    async with (
        real_etcd(tmp_path) as endpoint,
        memory_etcd() as server,
        EtcdClient([endpoint]) as theirs,
        EtcdClient([server.endpoint]) as ours,
    ):
        yield Both(endpoint, theirs, ours, server)


@pytest.fixture
def seed() -> int:
    number = int(os.environ.get("PODWIRE_SEED") or random.randrange(2**32))
    print(f"replay with PODWIRE_SEED={number}")
    return number


async def _call(
    client: EtcdClient, path: str, request: Message, response: type[Message]
) -> tuple[str, Any]:
    try:
        answer = await client._channel.call(path, request, response, read=False)
    except EtcdError as error:
        return f"{error.code.name} {error.message}", None
    return normal(answer), answer


class Watches:
    """One watch stream of a server, with whatever it has said."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._stream: ClientStream
        self._task: asyncio.Task[None]
        # In order, by watch id: created, canceled and so on as text, events as (revision, text).
        self.said: dict[int, list[str]] = {}
        self.created = 0
        self.ended: set[int] = set()
        self.last: dict[int, int] = {}

    async def open(self) -> None:
        self._stream = await self._client._channel.open("/etcdserverpb.Watch/Watch")
        self._task = asyncio.create_task(self._listen(), name="watch")

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._stream.cancel()

    def send(self, **request: Any) -> None:
        self._stream.send(pb.WatchRequest(**request).SerializeToString())

    async def _listen(self) -> None:
        while (data := await self._stream.receive()) is not None:
            self._take(pb.WatchResponse.FromString(data))

    def _take(self, response: pb.WatchResponse) -> None:
        number = response.watch_id
        said = self.said.setdefault(number, [])
        revision = response.header.revision
        assert not response.events or revision >= response.events[-1].kv.mod_revision
        if response.events:
            first = response.events[0].kv.mod_revision
            assert first > self.last.get(number, 0), "a revision in two responses"
            self.last[number] = response.events[-1].kv.mod_revision
        said += [str(event) for event in response.events]
        strip(response)
        response.ClearField("header")
        response.ClearField("events")
        if response.created or response.canceled:
            said.append(str(response))
            self.created += response.created
            if response.canceled:
                self.ended.add(number)
                self.last.pop(number, None)
            else:
                # An id may be used again once its watch was cancelled.
                self.ended.discard(number)

    async def until(self, condition: Any, what: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition(self):
                    if self._task.done():
                        self._task.result()
                    await asyncio.sleep(0.001)
        except TimeoutError:
            pytest.fail(f"a watch did not say what it should\n{what}")


class WatchPair:
    """The same watches on both servers."""

    def __init__(self, both: Both, generator: Generator) -> None:
        self.generator = generator
        self.sides = Watches(both.theirs), Watches(both.ours)
        self._requests = 0

    async def open(self) -> None:
        for side in self.sides:
            await side.open()

    async def step(self, what: str) -> None:
        """Create a watch, or cancel one; wait until both servers have done so."""
        rng = self.generator.rng
        theirs, ours = self.sides
        live = sorted(
            number
            for number, said in ours.said.items()
            if number >= 0
            and number not in ours.ended
            # A real etcd feeds watches from the past every 100 ms: not before it has.
            and len(said) == len(theirs.said[number])
        )
        if live and (len(live) >= MAX_WATCHERS or rng.random() < 0.3):
            number = rng.choice(live)
            for side in self.sides:
                side.send(cancel_request=pb.WatchCancelRequest(watch_id=number))
                await side.until(lambda side: number in side.ended, f"cancel {number}\n{what}")
            return
        self._requests += 1
        request = self.generator.watch()
        for side in self.sides:
            side.send(create_request=request)
        for side in self.sides:
            await side.until(lambda side: side.created == self._requests, f"{request}\n{what}")

    async def compare(self, both: Both, what: str) -> None:
        """Let each watcher that can see it see a last event, then compare all they said."""
        for client in (both.theirs, both.ours):
            await client.put(LAST, b"x")
            await client.delete(LAST)
        theirs, ours = self.sides
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                while any(
                    len(ours.said.get(number, ())) != len(theirs.said.get(number, ()))
                    for number in theirs.said | ours.said
                ):
                    await asyncio.sleep(0.002)
        for number in sorted(theirs.said.keys() | ours.said.keys()):
            assert ours.said.get(number) == theirs.said.get(number), f"watch {number}\n{what}"
        for side in self.sides:
            await side.close()


async def test_random_operations_answer_as_a_real_etcd(both: Both, seed: int) -> None:
    generator = Generator(random.Random(seed))
    watches = WatchPair(both, generator)
    await watches.open()
    store = both.server.member.engine.store
    for number in range(OPERATIONS):
        path, request, response = generator.next()
        if isinstance(request, pb.CompactionRequest):
            if any(not kv.version for kv in store.changes_at(request.revision)):
                # 3.4.23 forgets a deletion exactly at the compacted revision; newer ones keep it.
                continue
            await both.all_fed()
        what = f"operation {number} {path}\n{request}\nseed {seed}"
        (want, _), (got, answer) = await both.call(path, request, response)
        if not has_tied(request):
            assert got == want, what
        elif getattr(request, "limit", 1) == 0:
            # Equal sort keys come (and are cut) in any order.
            assert sorted(got.splitlines()) == sorted(want.splitlines()), what
        if answer is not None:
            generator.revision = max(generator.revision, answer.header.revision)
        if number % WATCH_EVERY == 0:
            await watches.step(what)
        if number % 100 == 99:
            await both.same_hash(what)
            if store.compacted < store.revision:
                past = generator.rng.randint(max(store.compacted + 1, 1), store.revision)
                await both.same_hash(what, past)
    await watches.compare(both, f"seed {seed}")
    assert any(len(said) > 2 for said in watches.sides[1].said.values())


async def test_large_revisions_are_sent_in_the_same_fragments(both: Both) -> None:
    watches = Watches(both.theirs), Watches(both.ours)
    sizes: list[list[tuple[int, bool]]] = [[], []]
    for client in (both.theirs, both.ours):
        for number in range(6):
            await client.put(b"big%d" % number, bytes([number]) * 700_000)
        await client.delete(b"big", prefix=True)
    for side, found in zip(watches, sizes, strict=True):
        stream = await side._client._channel.open("/etcdserverpb.Watch/Watch")
        create = pb.WatchCreateRequest(
            key=b"big0", range_end=b"big6", start_revision=8, prev_kv=True, fragment=True
        )
        stream.send(pb.WatchRequest(create_request=create).SerializeToString())
        while sum(count for count, _ in found) < 6:
            response = pb.WatchResponse.FromString(await stream.receive() or b"")
            if not response.created:
                found.append((len(response.events), response.fragment))
        stream.cancel()
    assert sizes[1] == sizes[0]
    assert len(sizes[0]) > 1


async def test_watches_that_need_compacted_revisions_are_cancelled_alike(both: Both) -> None:
    for client in (both.theirs, both.ours):
        for number in range(10):
            await client.put(b"k", b"%d" % number)
        await client.compact(6)
    theirs, ours = Watches(both.theirs), Watches(both.ours)
    for side in (theirs, ours):
        await side.open()
        for start in (1, 5, 6, 7, -3):
            side.send(create_request=pb.WatchCreateRequest(key=b"k", start_revision=start))
        await side.until(lambda side: side.created == 5 and len(side.ended) == 3, "compacted")
        await side.until(lambda side: len(side.said[3]) == 6, "events after the compaction")
        # The id of a cancelled watch is taken until the client cancels it, too.
        for number in (1, 1, 2):
            if number == 2:
                side.send(cancel_request=pb.WatchCancelRequest(watch_id=1))
            side.send(create_request=pb.WatchCreateRequest(key=b"k", watch_id=1))
        await side.until(lambda side: side.created == 8, "created again")
        assert len(side.said[-1]) == 2
    assert ours.said == theirs.said
    for side in (theirs, ours):
        await side.close()


async def test_leases_expire_alike(both: Both) -> None:
    """Three lifetimes, the one in the middle kept; real seconds, for both at once."""
    for number, ttl in ((1, 2), (2, 2), (3, 3)):
        for client in (both.theirs, both.ours):
            assert (await client.lease_grant(ttl, number)).ttl_s == ttl
            for key in (b"z", b"a"):
                await client.put(b"%s%d" % (key, number), b"x", lease=number)
    # Detached before its lease ends: it stays.
    for client in (both.theirs, both.ours):
        await client.put(b"a1", b"free")

    async def expiries(client: EtcdClient) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = []
        revisions = set()
        async with (
            asyncio.timeout(DEADLINE_S),
            client.watch(b"", prefix=True) as batches,
            client.keep_alive(2),
        ):
            while len(found) < 3:
                batch = await anext(batches)
                found += [(event.kind, event.kv.key) for event in batch.events]
                revisions.add(batch.revision)
        assert len(revisions) == 2, "a lease takes its keys along in one revision"
        return found

    want, got = await asyncio.gather(expiries(both.theirs), expiries(both.ours))
    assert got == want == [("DELETE", b"z1"), ("DELETE", b"a3"), ("DELETE", b"z3")]
    for number in (1, 2, 3):
        request = pb.LeaseTimeToLiveRequest(ID=number, keys=True)
        path = "/etcdserverpb.Lease/LeaseTimeToLive"
        answer = await both.same(path, request, pb.LeaseTimeToLiveResponse, f"lease {number}")
        assert (answer.TTL >= 0) == (number == 2)
    await both.same_hash("after the expiries")
