"""The data directory: what is acknowledged is found again, what is damaged is named."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from typing import TYPE_CHECKING

import pytest

from emulator.errors import UsageError
from etcd.client import EtcdClient, EtcdError
from etcd.core.engine import Engine
from etcd.core.errors import CorruptionError
from etcd.core.pb import rpc_pb2 as pb
from etcd.server import storage as storage_module
from etcd.server.storage import NoSpaceError, Storage, StorageError
from tests.etcd_servers import disk_etcd
from tests.run_out import run_out

if TYPE_CHECKING:
    from pathlib import Path


def _open(path: Path) -> tuple[Storage, Engine]:
    storage = Storage(str(path), sync=False)
    engine = Engine(11, 22)
    try:
        storage.load(engine)
    except BaseException:
        storage.close()
        raise
    return storage, engine


def _put(storage: Storage, engine: Engine, key: bytes, value: bytes, lease: int = 0) -> None:
    engine.put(pb.PutRequest(key=key, value=value, lease=lease))
    storage.append(engine.take_records())


def _wal(path: Path) -> Path:
    return max((path / "wal").iterdir())


def _state(engine: Engine) -> tuple[object, ...]:
    leases = sorted((lease.id, lease.ttl_s, tuple(lease.keys)) for lease in engine.leases)
    store = engine.store
    return list(store.rows()), store.revision, store.compacted, leases, list(engine.alarms)


def _fill(storage: Storage, engine: Engine) -> None:
    engine.lease_grant(7, 60, now=0.0)
    for number in range(20):
        _put(storage, engine, b"k%d" % (number % 7), b"v%d" % number, lease=7 if number % 3 else 0)
    engine.delete_range(pb.DeleteRangeRequest(key=b"k1", range_end=b"k4"))
    engine.compact(pb.CompactionRequest(revision=9))
    engine.lease_grant(8, 60, now=0.0)
    engine.lease_revoke(8)
    # Of another member: it refuses nothing here.
    engine.set_alarm(33, pb.NOSPACE, active=True)
    storage.append(engine.take_records())


def test_everything_written_is_there_after_a_restart(tmp_path: Path) -> None:
    storage, engine = _open(tmp_path)
    _fill(storage, engine)
    storage.close()
    again, engine_again = _open(tmp_path)
    assert _state(engine_again) == _state(engine)
    assert again.identity() == (11, 22)
    again.close()


def test_a_snapshot_replaces_the_log_and_keeps_the_history(tmp_path: Path) -> None:
    storage, engine = _open(tmp_path)
    _fill(storage, engine)
    for _ in storage.write_snapshot(engine.snapshot(storage.sequence)):
        # The state moves on while the snapshot is being written.
        _put(storage, engine, b"later", b"x")
    assert len(list((tmp_path / "wal").iterdir())) == 1
    storage.close()
    again, engine_again = _open(tmp_path)
    assert _state(engine_again) == _state(engine)
    assert run_out(engine_again.store.hash_kv(0)) == run_out(engine.store.hash_kv(0))
    again.close()


def test_a_snapshot_cut_short_is_ignored(tmp_path: Path) -> None:
    storage, engine = _open(tmp_path)
    _fill(storage, engine)
    slices = storage.write_snapshot(engine.snapshot(storage.sequence))
    next(slices)
    next(slices)
    _put(storage, engine, b"later", b"x")
    slices.close()
    storage.close()
    again, engine_again = _open(tmp_path)
    assert _state(engine_again) == _state(engine)
    assert list((tmp_path / "snap").iterdir()) == []
    again.close()


def test_a_torn_end_is_cut_wherever_it_was_torn(tmp_path: Path) -> None:
    storage, engine = _open(tmp_path)
    _put(storage, engine, b"a", b"1")
    keep = storage._offset
    _put(storage, engine, b"b", b"2")
    end = storage._offset
    storage.close()
    path = _wal(tmp_path)
    whole = path.read_bytes()
    for cut in range(keep, end):
        path.write_bytes(whole[:cut] + bytes(1024))
        again, engine_again = _open(tmp_path)
        assert [kv.key for kv in engine_again.store.live()] == [b"a"]
        _put(again, engine_again, b"c", b"3")
        again.close()
        again, engine_again = _open(tmp_path)
        assert [kv.key for kv in engine_again.store.live()] == [b"a", b"c"]
        again.close()


def test_a_damaged_middle_refuses_to_start_and_says_where(tmp_path: Path) -> None:
    storage, engine = _open(tmp_path)
    at = storage._offset
    _put(storage, engine, b"a", b"1")
    _put(storage, engine, b"b", b"2")
    storage.close()
    path = _wal(tmp_path)
    data = bytearray(path.read_bytes())
    data[at + 30] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=rf"{path.name}: damaged at offset {at},"):
        _open(tmp_path)


def test_a_damaged_snapshot_refuses_to_start(tmp_path: Path) -> None:
    storage, engine = _open(tmp_path)
    _fill(storage, engine)
    for _ in storage.write_snapshot(engine.snapshot(storage.sequence)):
        pass
    storage.close()
    (path,) = (tmp_path / "snap").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"\.snap: damaged at offset"):
        _open(tmp_path)


def test_a_missing_log_file_refuses_to_start(tmp_path: Path) -> None:
    storage, engine = _open(tmp_path)
    _fill(storage, engine)
    for _ in storage.write_snapshot(engine.snapshot(storage.sequence)):
        pass
    storage.close()
    _wal(tmp_path).unlink()
    with pytest.raises(CorruptionError, match="log after the snapshot is missing"):
        _open(tmp_path)


def test_a_record_of_a_newer_version_refuses_to_start_and_says_so(tmp_path: Path) -> None:
    storage, engine = _open(tmp_path)
    _put(storage, engine, b"a", b"1")
    storage.append([b"\x63\x01\0\0\0x"])
    storage.close()
    with pytest.raises(CorruptionError, match="kind 99 is not known"):
        _open(tmp_path)


def test_two_servers_cannot_share_a_directory(tmp_path: Path) -> None:
    storage, _ = _open(tmp_path)
    with pytest.raises(UsageError, match="in use by another etcd"):
        Storage(str(tmp_path), sync=False)
    storage.close()


def test_a_real_etcds_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "member").mkdir()
    with pytest.raises(UsageError, match="real etcd's data"):
        Storage(str(tmp_path), sync=False)


def test_a_failed_sync_is_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path), sync=True)
    engine = Engine(11, 22)
    storage.load(engine)

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(StorageError, match="fsync failed: Input/output error"):
        _put(storage, engine, b"a", b"1")
    storage.close()


def _limit_disk(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    real = storage_module._write_all

    def write(fd: int, data: bytes, at: int) -> None:
        if at + len(data) > limit:
            real(fd, data[: max(0, limit - at)], at)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, data, at)

    monkeypatch.setattr(storage_module, "_write_all", write)


def test_a_full_disk_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, engine = _open(tmp_path)
    _put(storage, engine, b"a", b"1")
    _limit_disk(monkeypatch, 700_000)
    with pytest.raises(NoSpaceError):
        _put(storage, engine, b"big", bytes(900_000))
    monkeypatch.undo()
    # Once there is room the log goes on where it was.
    engine.take_records()
    engine.set_alarm(33, pb.NOSPACE, active=True)
    storage.append(engine.take_records())
    storage.close()
    again, engine_again = _open(tmp_path)
    assert [kv.key for kv in engine_again.store.live()] == [b"a"]
    assert list(engine_again.alarms) == [(33, pb.NOSPACE)]
    again.close()


def test_what_a_full_disk_left_half_written_is_taken_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it holds: here copies of later frames of a log."""
    for name in ("log", "copy"):
        (tmp_path / name).mkdir()
    other, engine = _open(tmp_path / "copy")
    for number in range(9):
        _put(other, engine, b"k%d" % number, b"v")
    other.close()
    frames = _wal(tmp_path / "copy").read_bytes()[:4000]
    storage, engine = _open(tmp_path / "log")
    _put(storage, engine, b"a", b"1")
    real, is_full = storage_module._write_all, True

    def write_half(fd: int, data: bytes, at: int) -> None:
        nonlocal is_full
        if is_full:
            is_full = False
            real(fd, data[: len(data) // 2], at)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, data, at)

    monkeypatch.setattr(storage_module, "_write_all", write_half)
    with pytest.raises(NoSpaceError):
        _put(storage, engine, b"big", frames + bytes(9000))
    storage.close()
    again, engine_again = _open(tmp_path / "log")
    assert [kv.key for kv in engine_again.store.live()] == [b"a"]
    again.close()


def test_a_snapshot_the_disk_has_no_room_for_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, engine = _open(tmp_path)
    _fill(storage, engine)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    _limit_disk(monkeypatch, 20_000)
    for _ in range(2):
        with pytest.raises(NoSpaceError):
            run_out(storage.write_snapshot(engine.snapshot(storage.sequence)))
        _put(storage, engine, b"more", b"")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    storage.close()


async def test_a_full_disk_raises_the_alarm_and_keeps_reads_and_acknowledged_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged = [b"k0"]

    async def fill(client: EtcdClient) -> None:
        for number in range(1, 100):
            await client.put(b"k%d" % number, bytes(100_000))
            acknowledged.append(b"k%d" % number)

    async with (
        disk_etcd(tmp_path, durability="none") as server,
        EtcdClient([server.endpoint]) as client,
    ):
        await client.put(b"k0", b"x")
        _limit_disk(monkeypatch, 2_000_000)
        with pytest.raises(EtcdError, match="database space exceeded"):
            await fill(client)
        found = await client.get(b"k", prefix=True, keys_only=True)
        assert sorted(kv.key for kv in found.kvs) == sorted(acknowledged)
        with pytest.raises(EtcdError, match="database space exceeded"):
            await client.put(b"again", b"x")
    monkeypatch.undo()
    async with (
        disk_etcd(tmp_path, durability="none") as server,
        EtcdClient([server.endpoint]) as client,
    ):
        found = await client.get(b"k", prefix=True, keys_only=True)
        assert sorted(kv.key for kv in found.kvs) == sorted(acknowledged)
        server.member.engine.set_alarm(server.member.engine.member_id, pb.NOSPACE, active=False)
        await client.put(b"again", b"x")


async def test_a_failed_sync_stops_the_server_and_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        disk_etcd(tmp_path) as server,
        EtcdClient([server.endpoint], timeout_s=0.5) as client,
    ):
        await client.put(b"a", b"1")

        def broken(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(EtcdError):
            await client.put(b"b", b"2")
        with pytest.raises(EtcdError):
            await client.get(b"b")
        with pytest.raises(StorageError, match="fsync failed"):
            await server.failed()
    monkeypatch.undo()
    async with disk_etcd(tmp_path) as server, EtcdClient([server.endpoint]) as client:
        assert (await client.get(b"a")).kvs[0].value == b"1"


def _disk_bytes() -> int:
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes"))


def test_a_sync_of_a_small_write_writes_little_to_the_disk(tmp_path: Path) -> None:
    """Zeros filled ahead in one large write made every sync write megabytes."""
    storage = Storage(str(tmp_path), sync=True)
    engine = Engine(11, 22)
    storage.load(engine)
    _put(storage, engine, b"a", b"first")
    before = _disk_bytes()
    for number in range(50):
        _put(storage, engine, b"a", b"%d" % number)
    assert _disk_bytes() - before < 50 * 64 * 1024
    storage.close()


# A server whose files may not grow beyond argv[2] bytes; prints its endpoint.
LIMITED = """
import asyncio, random, resource, sys
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from etcd.server import EtcdConfig, run_etcd

limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
env = RoleEnv(real_clock(), random.Random(1), on_ready=lambda info: print(info, flush=True))
asyncio.run(run_etcd(EtcdConfig(data_dir=sys.argv[1], listen_port=0), env))
"""


async def test_a_limit_of_the_kernels_raises_the_alarm_and_keeps_reads_alive(
    tmp_path: Path,
) -> None:
    """A real write that the kernel refuses (EFBIG), of a real process, with fsync."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LIMITED, str(tmp_path), "3000000"),
        stdout=asyncio.subprocess.PIPE,
    )
    acknowledged = []

    async def fill(client: EtcdClient) -> None:
        for number in range(100):
            await client.put(b"k%02d" % number, bytes(100_000))
            acknowledged.append(b"k%02d" % number)

    try:
        assert process.stdout is not None
        endpoint = (await process.stdout.readline()).decode().strip().rpartition("/")[2]
        async with EtcdClient([endpoint]) as client:
            with pytest.raises(EtcdError, match="database space exceeded"):
                await fill(client)
            for _ in range(2):
                with pytest.raises(EtcdError, match="database space exceeded"):
                    await client.put(b"again", b"x")
            found = await client.get(b"k", prefix=True, keys_only=True)
            assert [kv.key for kv in found.kvs] == acknowledged
        assert process.returncode is None
    finally:
        process.kill()
        await process.communicate()
    assert len(acknowledged) >= 5
    async with disk_etcd(tmp_path) as server, EtcdClient([server.endpoint]) as client:
        found = await client.get(b"k", prefix=True, keys_only=True)
        assert [kv.key for kv in found.kvs] == acknowledged
        server.member.engine.set_alarm(server.member.engine.member_id, pb.NOSPACE, active=False)
        await client.put(b"again", b"x")
