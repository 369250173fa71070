"""Watch answers by themselves: the hub without a network."""

from __future__ import annotations

from etcd.core.engine import Engine
from etcd.core.lease import LeaseTable as Leases
from etcd.core.pb import kv_pb2
from etcd.core.pb import rpc_pb2 as pb
from etcd.core.watch import FRAGMENT_BYTES, WatchHub, WatchStream


class Sink:
    def __init__(self) -> None:
        self.open = True
        self.payloads: list[bytes] = []

    def writable(self) -> bool:
        return self.open

    def send(self, payload: bytes) -> None:
        self.payloads.append(payload)

    def take(self) -> list[pb.WatchResponse]:
        payloads, self.payloads = self.payloads, []
        return [pb.WatchResponse.FromString(payload) for payload in payloads]


class Bench:
    """An engine, a hub and one stream."""

    def __init__(self) -> None:
        self.engine = Engine(1, 2)
        self.hub = WatchHub(self.engine.store, self.engine.header_bytes)
        self.sink = Sink()
        self.stream: WatchStream = self.hub.open(self.sink)

    def watch(self, **create: object) -> list[pb.WatchResponse]:
        request = pb.WatchRequest(create_request=pb.WatchCreateRequest(**create))  # type: ignore[arg-type]
        self.hub.receive(self.stream, request)
        while self.hub.sync():
            pass
        return self.sink.take()

    def put(self, key: bytes, value: bytes = b"") -> list[pb.WatchResponse]:
        self.engine.put(pb.PutRequest(key=key, value=value))
        return self.release()

    def delete(self, key: bytes, end: bytes = b"") -> list[pb.WatchResponse]:
        self.engine.delete_range(pb.DeleteRangeRequest(key=key, range_end=end))
        return self.release()

    def release(self) -> list[pb.WatchResponse]:
        for revision, changes in self.engine.take_commits():
            self.hub.notify(revision, changes)
        return self.sink.take()


def test_live_events_carry_their_own_revision() -> None:
    bench = Bench()
    (created,) = bench.watch(key=b"a")
    assert (created.created, created.watch_id, created.header.revision) == (True, 0, 1)
    assert bench.put(b"b") == []
    (response,) = bench.put(b"a", b"1")
    assert response.header.revision == 3
    assert response.events[0].kv.value == b"1"
    (response,) = bench.delete(b"a")
    event = response.events[0]
    assert event.type == kv_pb2.Event.DELETE
    assert event.kv == kv_pb2.KeyValue(key=b"a", mod_revision=4)


def test_the_past_comes_in_one_response_after_created() -> None:
    bench = Bench()
    for number in range(3):
        bench.put(b"a", b"%d" % number)
    created, past = bench.watch(key=b"a", start_revision=2, watch_id=7)
    assert created.created
    assert past.watch_id == 7
    assert [event.kv.value for event in past.events] == [b"0", b"1", b"2"]
    assert past.header.revision == 4


def test_all_changes_of_one_revision_come_together() -> None:
    bench = Bench()
    bench.watch(key=b"\0", range_end=b"\0")
    bench.put(b"a")
    bench.put(b"b")
    (response,) = bench.delete(b"a", b"z")
    assert [event.kv.key for event in response.events] == [b"a", b"b"]


def test_a_watch_from_the_future_waits_for_it() -> None:
    bench = Bench()
    bench.watch(key=b"a", start_revision=4)
    assert bench.put(b"a") == []
    assert bench.put(b"a") == []
    (response,) = bench.put(b"a")
    assert response.events[0].kv.mod_revision == 4


def test_a_watch_before_the_compaction_is_cancelled() -> None:
    bench = Bench()
    for _ in range(4):
        bench.put(b"a")
    bench.engine.compact(pb.CompactionRequest(revision=4))
    created, canceled = bench.watch(key=b"a", start_revision=3)
    assert created.created
    assert (canceled.canceled, canceled.compact_revision) == (True, 4)
    assert canceled.header.revision == 0
    assert canceled.cancel_reason == ""
    _, past = bench.watch(key=b"a", start_revision=4)
    assert [event.kv.mod_revision for event in past.events] == [4, 5]


def test_a_deletion_at_the_compacted_revision_is_still_seen() -> None:
    bench = Bench()
    bench.put(b"a")
    bench.delete(b"a")
    bench.put(b"b")
    bench.engine.compact(pb.CompactionRequest(revision=3))
    _, past = bench.watch(key=b"a", start_revision=3)
    assert [event.type for event in past.events] == [kv_pb2.Event.DELETE]


def test_prev_kv_and_filters() -> None:
    bench = Bench()
    bench.put(b"a", b"1")
    bench.watch(key=b"a", prev_kv=True, filters=[pb.WatchCreateRequest.NODELETE])
    (response,) = bench.put(b"a", b"2")
    assert response.events[0].prev_kv.value == b"1"
    assert bench.delete(b"a") == []
    (response,) = bench.put(b"a", b"3")
    assert not response.events[0].HasField("prev_kv")


def test_refused_watches_are_created_and_cancelled_at_once() -> None:
    bench = Bench()
    (refusal,) = bench.watch(key=b"b", range_end=b"a")
    assert (refusal.watch_id, refusal.created, refusal.canceled) == (-1, True, True)
    assert refusal.cancel_reason == "mvcc: watcher range is empty"
    bench.watch(key=b"a", watch_id=3)
    (refusal,) = bench.watch(key=b"a", watch_id=3)
    assert refusal.cancel_reason == "mvcc: duplicate watch ID provided on the WatchStream"


def test_cancel_answers_once_and_stops_the_events() -> None:
    bench = Bench()
    bench.watch(key=b"a")
    cancel = pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=0))
    bench.hub.receive(bench.stream, cancel)
    bench.hub.receive(bench.stream, cancel)
    (canceled,) = bench.sink.take()
    assert canceled.canceled
    assert bench.put(b"a") == []


def test_progress_is_told_only_when_everything_was_delivered() -> None:
    bench = Bench()
    bench.watch(key=b"a", progress_notify=True)
    bench.put(b"b")
    ask = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
    bench.hub.receive(bench.stream, ask)
    (progress,) = bench.sink.take()
    assert (progress.watch_id, progress.header.revision) == (-1, 2)
    bench.sink.open = False
    bench.put(b"a")
    bench.hub.receive(bench.stream, ask)
    assert bench.sink.take() == []


def test_periodic_progress_skips_watchers_that_had_events() -> None:
    bench = Bench()
    bench.watch(key=b"a", progress_notify=True)
    bench.hub.progress()
    assert bench.sink.take() == []
    bench.hub.progress()
    (progress,) = bench.sink.take()
    assert (progress.watch_id, progress.header.revision, len(progress.events)) == (0, 1, 0)
    bench.put(b"a")
    bench.hub.progress()
    assert bench.sink.take() == []


def _large_revision(fragment: bool) -> list[pb.WatchResponse]:
    bench = Bench()
    bench.watch(key=b"\0", range_end=b"\0", fragment=fragment)
    write = bench.engine.store.write()
    for number in range(10):
        write.put(b"%d" % number, bytes(FRAGMENT_BYTES // 4), 0)
    bench.hub.notify(2, write.end())
    return bench.sink.take()


def test_a_large_response_is_fragmented_on_request() -> None:
    responses = _large_revision(fragment=True)
    assert [len(response.events) for response in responses] == [3, 3, 3, 1]
    assert [response.fragment for response in responses] == [True, True, True, False]


def test_a_large_response_is_sent_whole_without_that_request() -> None:
    (response,) = _large_revision(fragment=False)
    assert len(response.events) == 10
    assert not response.fragment


def test_what_a_compaction_hides_is_no_previous_value_though_its_room_is_not_back_yet() -> None:
    bench = Bench()
    bench.watch(key=b"a", prev_kv=True)
    for value in (b"1", b"2", b"3"):
        bench.put(b"a", value)
    store = bench.engine.store
    assert store.previous(b"a", 4).value == b"2"  # type: ignore[union-attr]
    store.compact(4)
    assert store.compacting
    assert store.previous(b"a", 4) is None
    assert store.previous(b"a", 5) is store.get(b"a")


def test_a_lease_whose_time_is_up_is_not_renewed_though_nobody_revoked_it_yet() -> None:
    leases = Leases()
    leases.grant(7, 10, now=0.0)
    assert leases.renew(7, now=9.9) == 10
    assert leases.remaining_s(7, now=15.0) == 4
    assert leases.renew(7, now=19.9) == 0
    assert leases.remaining_s(7, now=19.9) == -1
    assert leases.expired(now=19.9) == [7]
