"""The store against a model that keeps everything, and the log's bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd.core import wal
from etcd.core.engine import Engine
from etcd.core.errors import CorruptionError, EtcdError
from etcd.core.mvcc import KeyValue, Store
from etcd.core.pb import rpc_pb2 as pb
from etcd.core.sortedkeys import SortedKeys
from etcd.core.watch import WatchHub
from tests.run_out import run_out

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYS = st.sampled_from([b"a", b"aa", b"b", b"b\0", b"c", b"\xff"])
ENDS = st.sampled_from([b"", b"", b"b", b"c", b"\0", b"a"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.binary(max_size=2)),
        st.tuples(st.just("delete"), KEYS, ENDS),
        st.tuples(st.just("compact"), st.integers(0, 40), st.none()),
        st.tuples(st.just("compact some"), st.integers(1, 5), st.none()),
    ),
    max_size=40,
)


class Model:
    """Every revision's whole content."""

    def __init__(self) -> None:
        self.states: list[dict[bytes, KeyValue]] = [{}, {}]
        self.compacted = -1

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    def put(self, key: bytes, value: bytes) -> None:
        new = dict(self.states[-1])
        revision = self.revision + 1
        old = new.get(key)
        created, version = (old.create_revision, old.version) if old else (revision, 0)
        new[key] = KeyValue(key, value, created, revision, version + 1, 0)
        self.states.append(new)

    def delete(self, key: bytes, end: bytes) -> int:
        gone = [kv.key for kv in self.range(key, end, 0)]
        if gone:
            self.states.append({k: v for k, v in self.states[-1].items() if k not in gone})
        return len(gone)

    def range(self, key: bytes, end: bytes, revision: int) -> list[KeyValue]:
        state = self.states[revision or self.revision]
        if not end:
            return [state[key]] if key in state else []
        return [state[k] for k in sorted(state) if k >= key and (end == b"\0" or k < end)]


def _run(
    steps: Sequence[tuple[str, object, object]], *, at_once: bool = False
) -> tuple[Store, Model]:
    """``at_once``: every compaction is finished when it began."""
    store, model = Store(), Model()
    for kind, first, second in steps:
        if at_once:
            while store.compact_some(10):
                pass
        if kind == "compact some":
            assert isinstance(first, int)
            store.compact_some(first)
            continue
        if kind == "compact":
            assert isinstance(first, int)
            possible = model.compacted < first <= model.revision
            try:
                store.compact(first)
                assert possible
                model.compacted = first
            except EtcdError:
                assert not possible
            continue
        assert isinstance(first, bytes)
        assert isinstance(second, bytes)
        write = store.write()
        if kind == "put":
            write.put(first, second, 0)
            model.put(first, second)
        else:
            assert len(write.delete_range(first, second)) == model.delete(first, second)
        write.end()
    return store, model


@settings(deadline=None)
@given(STEPS, KEYS, ENDS)
def test_every_readable_revision_reads_as_it_was(
    steps: list[tuple[str, object, object]], key: bytes, end: bytes
) -> None:
    store, model = _run(steps)
    assert store.revision == model.revision
    assert len(store) == len(model.states[-1])
    for revision in range(max(1, model.compacted), model.revision + 1):
        found = store.range(key, end, revision=revision)
        assert found.kvs == model.range(key, end, revision)
        assert found.total == len(found.kvs)
        for kv in found.kvs:
            assert store.range(kv.key, revision=revision).kvs == [kv]
    assert store.range(key, end, limit=1).kvs == model.range(key, end, 0)[:1]
    assert store.range(key, end, limit=1).total == len(model.range(key, end, 0))


@settings(deadline=None)
@given(STEPS)
def test_a_compaction_in_slices_ends_where_one_at_once_does(
    steps: list[tuple[str, object, object]],
) -> None:
    store, _ = _run(steps)
    other, _ = _run(steps, at_once=True)
    for revision in range(max(store.compacted, 1), store.revision + 1):
        assert store.changes_at(revision) == other.changes_at(revision)
    assert list(store.rows()) == list(other.rows())
    assert not store.compacting
    assert (store.size, store.compacted_rows) == (other.size, other.compacted_rows)
    assert run_out(store.hash_kv(0)) == run_out(other.hash_kv(0))


@settings(deadline=None)
@given(STEPS)
def test_a_snapshot_restores_the_same_store(steps: list[tuple[str, object, object]]) -> None:
    engine = Engine(1, 2)
    engine.store, _ = _run(steps)
    again = Engine(1, 2)
    assert again.restore(engine.snapshot(5), "test") == 5
    assert list(again.store.rows()) == list(engine.store.rows())
    assert run_out(again.store.hash_kv(0)) == run_out(engine.store.hash_kv(0))
    assert again.store.size == engine.store.size
    if engine.store.compacted < engine.store.revision:
        again.store.compact(again.store.revision)
        engine.store.compact(engine.store.revision)
    assert list(again.store.rows()) == list(engine.store.rows())
    assert again.store.size == engine.store.size


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=2)), max_size=200), KEYS, ENDS)
def test_sorted_keys_are_a_sorted_set(
    steps: list[tuple[bool, bytes]], lo: bytes, hi: bytes
) -> None:
    keys, model = SortedKeys(), set()
    for add, key in steps:
        if add and key not in model:
            keys.add(key)
            model.add(key)
        elif not add and key in model:
            keys.remove(key)
            model.remove(key)
    assert list(keys) == sorted(model)
    assert keys.slice(lo, hi or None) == [
        k for k in sorted(model) if k >= lo and (not hi or k < hi)
    ]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            KEYS | st.just(b""),
            st.binary(max_size=300),
            st.sampled_from([0, 0, 7, 8]),
            st.sampled_from([(), (), ("prev_kv",), ("ignore_value",), ("ignore_lease",)]),
        ),
        max_size=20,
    )
)
def test_the_short_way_of_a_put_is_the_long_one(
    puts: list[tuple[bytes, bytes, int, tuple[str, ...]]],
) -> None:
    short, long = (Engine(11, 1 << 63, max_request_bytes=250) for _ in range(2))
    for engine in (short, long):
        engine.lease_grant(7, 60, now=0.0)
    for key, value, lease, flags in puts:
        request = pb.PutRequest(key=key, value=value, lease=lease, **dict.fromkeys(flags, True))
        answers: list[bytes | str] = []
        for call in (short.put_payload, lambda r: long.put(r).SerializeToString()):
            try:
                answers.append(call(request))
            except EtcdError as error:
                answers.append(error.message)
        assert answers[0] == answers[1]
    assert short.take_records() == long.take_records()
    assert short.take_commits() == long.take_commits()
    assert list(short.leases.get(7).keys) == list(long.leases.get(7).keys)  # type: ignore[union-attr]


@given(st.binary(max_size=9), st.binary(max_size=9), st.tuples(*[st.integers(0, 2**62)] * 4))
def test_one_change_is_recorded_like_many(
    key: bytes, value: bytes, numbers: tuple[int, int, int, int]
) -> None:
    kv = KeyValue(key, value, *numbers)
    assert wal.changes_record((kv,)) == wal.record(wal.Kind.CHANGES, wal.rows_payload([(0, kv)]))


class Collector:
    """A sink that is writable when told."""

    def __init__(self) -> None:
        self.open = True
        self.messages: list[pb.WatchResponse] = []

    def writable(self) -> bool:
        return self.open

    def send(self, payload: bytes) -> None:
        self.messages.append(pb.WatchResponse.FromString(payload))


@settings(deadline=None)
@given(
    st.lists(st.tuples(KEYS, ENDS, st.integers(0, 12), st.booleans()), min_size=1, max_size=4),
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), KEYS),
            st.tuples(st.just("delete"), KEYS),
            st.tuples(st.sampled_from(["slow", "fast", "sync", "watch"]), st.just(b"")),
        ),
        max_size=40,
    ),
)
def test_every_watcher_sees_every_event_once_in_order(
    watches: list[tuple[bytes, bytes, int, bool]], steps: list[tuple[str, bytes]]
) -> None:
    engine = Engine(1, 2)
    hub = WatchHub(engine.store, engine.header_bytes)
    sink = Collector()
    stream = hub.open(sink)
    pending = list(watches)
    started: list[tuple[bytes, bytes, int]] = []
    for kind, key in [*steps, *[("watch", b"")] * len(watches), ("fast", b"")]:
        if kind == "watch" and pending:
            lo, end, start, prev = pending.pop()
            create = pb.WatchCreateRequest(
                key=lo, range_end=end, start_revision=start, prev_kv=prev
            )
            hub.receive(stream, pb.WatchRequest(create_request=create))
            started.append((lo, end, start or engine.store.revision + 1))
        elif kind == "put":
            engine.put(pb.PutRequest(key=key))
        elif kind == "delete":
            engine.delete_range(pb.DeleteRangeRequest(key=key))
        elif kind == "sync":
            hub.sync()
        else:
            sink.open = kind == "fast"
        for revision, changes in engine.take_commits():
            hub.notify(revision, changes)
    while hub.sync():
        pass
    model = engine.store
    next_id = 0
    for lo, end, start in started:
        if end not in (b"", b"\0") and end <= lo:
            continue
        mine = [m for m in sink.messages if m.watch_id == next_id]
        next_id += 1
        got = [(e.kv.mod_revision, e.kv.key) for m in mine for e in m.events]
        want = [
            (kv.mod_revision, kv.key)
            for revision in range(max(2, start), model.revision + 1)
            for kv in model.changes_at(revision)
            if (kv.key == lo if not end else kv.key >= lo and (end == b"\0" or kv.key < end))
        ]
        assert got == want
        assert all(m.header.revision >= e.kv.mod_revision for m in mine for e in m.events)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=6), st.binary(max_size=80), st.integers(0, 400))
def test_a_log_with_any_end_gives_its_intact_beginning(
    payloads: list[bytes], tail: bytes, cut: int
) -> None:
    writer = wal.FrameWriter(3)
    head = wal.FileHeader(1, 2, 3).emit(wal.SEGMENT_MAGIC)
    data = head + b"".join(writer.frame(payload) for payload in payloads)
    cut = max(len(head), len(data) - cut)
    got = [p for _, p in wal.FrameReader(3).read(data[:cut] + tail, "test", last=True)]
    assert got == payloads[: len(got)]
    if cut == len(data):
        assert len(got) == len(payloads)


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), min_size=3, max_size=6), st.data())
def test_a_flipped_bit_before_the_last_frame_is_named(
    payloads: list[bytes], data: st.DataObject
) -> None:
    writer = wal.FrameWriter(0)
    head = wal.FileHeader(1, 2, 0).emit(wal.SEGMENT_MAGIC)
    frames = [writer.frame(payload) for payload in payloads]
    whole = bytearray(head + b"".join(frames))
    position = data.draw(st.integers(len(head), len(whole) - len(frames[-1]) - 1))
    whole[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptionError, match="the-file: damaged at offset"):
        list(wal.FrameReader(0).read(bytes(whole), "the-file", last=True))
