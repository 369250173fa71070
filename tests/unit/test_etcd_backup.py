"""An engine's state in etcd's database file, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from emulator.errors import UsageError
from etcd.core import backup, bbolt
from etcd.core.engine import Engine
from etcd.core.errors import CorruptionError
from etcd.core.mvcc import KeyValue, kv_message
from etcd.core.pb import rpc_pb2 as pb
from etcd.server.restore import restore_snapshot
from tests.run_out import run_out

if TYPE_CHECKING:
    from pathlib import Path

MEMBER = backup.MemberRecord("default", ("http://a:2380",), ("http://a:2379",), "3.5.0")


def busy_engine() -> Engine:
    engine = Engine(11, 22)
    engine.lease_grant(-5, 60, now=0.0)
    engine.lease_grant(7, 600, now=0.0)
    for n in range(300):
        engine.put(pb.PutRequest(key=b"k%d" % (n % 50), value=b"v" * (n % 90)))
    engine.put(pb.PutRequest(key=b"leased", lease=-5))
    engine.delete_range(pb.DeleteRangeRequest(key=b"k1", range_end=b"k2"))
    engine.compact(pb.CompactionRequest(revision=engine.store.revision))
    engine.delete_range(pb.DeleteRangeRequest(key=b"k3", range_end=b"k4"))
    engine.set_alarm(33, pb.NOSPACE, active=True)
    return engine


def file_of(engine: Engine) -> bytes:
    return b"".join(run_out(backup.dump(engine, MEMBER)).pages())


def test_everything_comes_back() -> None:
    engine = busy_engine()
    again = Engine(1, 2)
    backup.load(bbolt.Database(file_of(engine), "x.db"), again, "x.db")
    store = again.store
    assert list(store.rows()) == list(engine.store.rows())
    assert (store.revision, store.compacted) == (engine.store.revision, engine.store.compacted)
    assert run_out(store.hash_kv(0)) == run_out(engine.store.hash_kv(0))
    assert [(lease.id, lease.ttl_s, lease.keys) for lease in again.leases] == [
        (7, 600, {}),
        (-5, 60, {b"leased": None}),
    ]
    assert again.alarms == engine.alarms
    assert (again.raft_term, again.raft_index) == (engine.raft_term, engine.raft_index)


def test_a_file_is_of_one_moment_though_the_engine_goes_on() -> None:
    engine = busy_engine()
    rows = list(engine.store.rows())
    layout = run_out(backup.dump(engine, MEMBER))
    pages = layout.pages()
    data = next(pages)
    engine.put(pb.PutRequest(key=b"later", value=b"x" * 5000))
    engine.compact(pb.CompactionRequest(revision=engine.store.revision))
    data += b"".join(pages)
    again = Engine(1, 2)
    backup.load(bbolt.Database(data, "x.db"), again, "x.db")
    assert list(again.store.rows()) == rows


def test_an_empty_store_stays_at_revision_1() -> None:
    again = Engine(1, 2)
    backup.load(bbolt.Database(file_of(Engine(1, 2)), "x.db"), again, "x.db")
    assert (again.store.revision, again.store.compacted) == (1, -1)


@pytest.mark.parametrize(
    "kv",
    [
        KeyValue(b"k", b"", 1, 1, 1, 0),
        KeyValue(b"k" * 127, b"v" * 128, 127, 128, 1 << 62, -1),
        KeyValue(b"k" * 16384, b"v" * 16383, 1 << 21, (1 << 28) - 1, 1, 1 << 62),
        KeyValue(b"k", b"", 0, 9, 0, 0),
    ],
)
def test_message_bytes_is_what_protobuf_says(kv: KeyValue) -> None:
    assert backup.message_bytes(kv) == len(kv_message(kv).SerializeToString())


def test_a_database_of_something_else_is_refused() -> None:
    layout = run_out(bbolt.plan([bbolt.Bucket.of(b"mine", {b"a": b"b"})]))
    with pytest.raises(CorruptionError, match="not of etcd"):
        backup.load(bbolt.Database(b"".join(layout.pages()), "x.db"), Engine(1, 2), "x.db")


def test_an_alarm_of_a_kind_nobody_knows_does_not_come_along() -> None:
    engine = busy_engine()
    engine.alarms[33, 300] = None  # type: ignore[index]
    back = Engine(1, 2)
    backup.load(bbolt.Database(file_of(engine), "x.db"), back, "x.db")
    assert list(back.alarms) == [(33, pb.NOSPACE)]


def test_restore_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    path, to = tmp_path / "x.db", str(tmp_path / "to")
    path.write_bytes(file_of(busy_engine()))
    with pytest.raises(UsageError, match="no sha256"):
        restore_snapshot(str(path), to, skip_hash_check=False)
    path.write_bytes(path.read_bytes() + bytes(32))
    with pytest.raises(UsageError, match="expected sha256 0000"):
        restore_snapshot(str(path), to, skip_hash_check=False)
    said = restore_snapshot(str(path), to, skip_hash_check=True)
    assert said.startswith("restored 29 keys at revision 304 and 2 leases from ")
    with pytest.raises(UsageError, match="not empty"):
        restore_snapshot(str(path), to, skip_hash_check=True)
    with pytest.raises(UsageError, match="No such file"):
        restore_snapshot(str(tmp_path / "no"), to + "2", skip_hash_check=False)
