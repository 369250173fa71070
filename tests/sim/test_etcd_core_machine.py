"""Random lives of the whole etcd core on a clock of its own; hypothesis shrinks what fails.

No loop, no sockets: engine, leases and watch hub as the server drives them, against a model that
remembers every event.  Days pass in no time; readers stop reading and come back; compactions race
with both.
"""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from etcd.core.engine import Engine
from etcd.core.errors import EtcdError
from etcd.core.lease import EXPIRY_INTERVAL_S
from etcd.core.pb import rpc_pb2 as pb
from etcd.core.watch import WatchHub

KEYS = st.sampled_from([b"a", b"aa", b"b", b"c"])
ENDS = st.sampled_from([b"", b"b", b"\0"])
DAY_S = 86_400
TTLS = st.sampled_from([2, 60, DAY_S, 5 * DAY_S])


class ModelEvent(NamedTuple):
    revision: int
    key: bytes
    is_put: bool


class Reader:
    """A stream's client: what it was sent; it takes nothing while ``slow``."""

    def __init__(self) -> None:
        self.slow = False
        self.said: list[pb.WatchResponse] = []

    def writable(self) -> bool:
        return not self.slow

    def send(self, payload: bytes) -> None:
        self.said.append(pb.WatchResponse.FromString(payload))


class Wanted(NamedTuple):
    """A watch the machine asked for."""

    reader: Reader
    watch_id: int
    key: bytes
    end: bytes
    start: int

    def holds(self, key: bytes) -> bool:
        if not self.end:
            return key == self.key
        return key >= self.key and (self.end == b"\0" or key < self.end)

    def said(self) -> list[pb.WatchResponse]:
        return [response for response in self.reader.said if response.watch_id == self.watch_id]


class EtcdLife(RuleBasedStateMachine):
    """One server over a random life."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.engine = Engine(1, 2)
        self.hub = WatchHub(self.engine.store, self.engine.header_bytes)
        self.history: list[ModelEvent] = []
        self.present: dict[bytes, int] = {}  # key -> its lease
        self.leases: dict[int, tuple[int, float]] = {}  # id -> (ttl, expires at)
        self.wanted: list[Wanted] = []
        self.compacted = -1

    @initialize()
    def begin(self) -> None:
        self.streams = [(reader, self.hub.open(reader)) for reader in (Reader(), Reader())]

    # What clients do ---------------------------------------------------------------------

    def _commit(self) -> None:
        for revision, changes in self.engine.take_commits():
            self.history += [ModelEvent(revision, kv.key, kv.version > 0) for kv in changes]
            self.hub.notify(revision, changes)
        self.engine.take_records()

    @rule(key=KEYS, number=st.integers(0, 3))
    def put(self, key: bytes, number: int) -> None:
        lease = number if number in self.leases else 0
        self.engine.put_payload(pb.PutRequest(key=key, lease=lease))
        self.present[key] = lease
        self._commit()

    @rule(key=KEYS, end=ENDS)
    def delete(self, key: bytes, end: bytes) -> None:
        self.engine.delete_range(pb.DeleteRangeRequest(key=key, range_end=end))
        gone = Wanted(Reader(), 0, key, end, 0)
        self.present = {k: lease for k, lease in self.present.items() if not gone.holds(k)}
        self._commit()

    @rule(number=st.integers(1, 3), ttl=TTLS)
    def grant(self, number: int, ttl: int) -> None:
        if number not in self.leases:
            self.engine.lease_grant(number, ttl, now=self.now)
            self.leases[number] = ttl, self.now + ttl
            self._commit()

    @rule(number=st.integers(1, 3))
    def keep_alive(self, number: int) -> None:
        ttl = self.engine.lease_keep_alive(number, now=self.now).TTL
        known = self.leases.get(number)
        assert ttl == (known[0] if known else 0)
        if known:
            self.leases[number] = ttl, self.now + ttl

    @rule(number=st.integers(1, 3))
    def revoke(self, number: int) -> None:
        if number in self.leases:
            self.engine.lease_revoke(number)
            self._forget(number)
            self._commit()

    def _forget(self, number: int) -> None:
        del self.leases[number]
        self.present = {k: lease for k, lease in self.present.items() if lease != number}

    @rule(share=st.floats(0, 1))
    def compact(self, share: float) -> None:
        revision = int(share * self.engine.store.revision)
        try:
            self.engine.compact(pb.CompactionRequest(revision=revision))
        except EtcdError:
            assert revision <= self.compacted
            return
        assert revision > self.compacted
        self.compacted = revision
        self._commit()

    @rule(which=st.integers(0, 1), key=KEYS, end=ENDS, back=st.integers(-3, 12), now=st.booleans())
    def watch(self, which: int, key: bytes, end: bytes, back: int, now: bool) -> None:
        reader, stream = self.streams[which]
        start = 0 if now else max(1, self.engine.store.revision - back)
        create = pb.WatchCreateRequest(key=key, range_end=end, start_revision=start)
        self.hub.receive(stream, pb.WatchRequest(create_request=create))
        created = reader.said[-1]
        assert created.created
        if end and end != b"\0" and end <= key:
            assert created.canceled
            return
        self.wanted.append(
            Wanted(reader, created.watch_id, key, end, start or self.hub.revision + 1)
        )

    # What time and the network do --------------------------------------------------------

    @rule(seconds=st.sampled_from([0.4, 1.0, 59.0, 3600.0, 1.5 * DAY_S, 4.0 * DAY_S]))
    def time_passes(self, seconds: float) -> None:
        """The server looks when the next lease is due and twice a second while some are."""
        until = self.now + seconds
        while True:
            due = self.engine.leases.get_timer()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            for number, (_, expires_at) in list(self.leases.items()):
                if expires_at <= self.now:
                    self._forget(number)
            self.engine.expire(now=self.now)
            self._commit()
            self.now = min(until, self.now + EXPIRY_INTERVAL_S)
        self.now = until

    @rule(which=st.integers(0, 1), slow=st.booleans())
    def reading_changes(self, which: int, slow: bool) -> None:
        self.streams[which][0].slow = slow

    @rule()
    def lagging_watches_are_fed(self) -> None:
        self.hub.sync()

    @rule()
    def progress_is_told(self) -> None:
        self.hub.progress()
        self._commit()

    # What must hold ----------------------------------------------------------------------

    @invariant()
    def the_store_is_the_models(self) -> None:
        assert {kv.key: kv.lease for kv in self.engine.store.live()} == self.present
        assert sorted(lease.id for lease in self.engine.leases) == sorted(self.leases)

    @invariant()
    def no_watch_is_told_anything_wrong(self) -> None:
        for wanted in self.wanted:
            self._check(wanted, whole=False)

    def _check(self, wanted: Wanted, *, whole: bool) -> None:
        said = wanted.said()
        told = [
            ModelEvent(event.kv.mod_revision, event.kv.key, event.type == event.PUT)
            for response in said
            for event in response.events
        ]
        due = [
            event
            for event in self.history
            if event.revision >= wanted.start and wanted.holds(event.key)
        ]
        if said[-1].canceled:
            # Cancelled only because what it needed next is gone.
            last = told[-1].revision if told else wanted.start - 1
            assert said[-1].compact_revision > last
            assert told == due[: len(told)]
        elif wanted.start <= self.compacted:
            # Of what was compacted before it was read, only what survived is told.
            assert [e for e in told if e.revision > self.compacted] == [
                e for e in due if e.revision > self.compacted
            ][: sum(e.revision > self.compacted for e in told)]
        else:
            assert told == (due if whole else due[: len(told)])

    def teardown(self) -> None:
        if not hasattr(self, "streams"):
            return
        for reader, _ in self.streams:
            reader.slow = False
        while self.hub.sync():
            pass
        for wanted in self.wanted:
            self._check(wanted, whole=True)


EtcdLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestEtcdLife = EtcdLife.TestCase
