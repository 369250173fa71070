"""An engine's state as the buckets of etcd's database file, and back.

This is what ``etcdctl snapshot save`` fetches: the real etcd's tools read it, and a real etcd
starts from it with the same keys, revisions, leases and hashes.

Sources: etcd server/mvcc/{kvstore,revision}.go, server/lease/leasepb/lease.proto,
server/etcdserver/{cindex,api/membership}, server/auth/store.go.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from etcd.core import bbolt
from etcd.core.auth import Role, User
from etcd.core.engine import ALARMS
from etcd.core.errors import CorruptionError
from etcd.core.mvcc import KeyValue, kv_message
from etcd.core.pb import kv_pb2
from etcd.core.pb import rpc_pb2 as pb
from etcd.core.protowire import varint

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from etcd.core.engine import Engine
    from etcd.core.mvcc import Rows

# Every bucket a real etcd makes when it starts; it expects them all.
BUCKETS = (
    *(b"alarm", b"auth", b"authRoles", b"authUsers", b"cluster", b"key", b"lease"),
    *(b"members", b"members_removed", b"meta"),
)
SHA256_BYTES = 32
_REVISION = struct.Struct(">QcQ")  # main revision, '_', sub revision


class MemberRecord(NamedTuple):
    """What the file says about the member it came from."""

    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    cluster_version: str


def _revision_key(main: int, sub: int, kv: KeyValue | None = None) -> bytes:
    """Return a revision as a key; a tombstone's is marked with a ``t``."""
    key = _REVISION.pack(main, b"_", sub)
    return key if kv is None or kv.version else key + b"t"


def _varint_bytes(value: int) -> int:
    """Return the length of a protobuf varint field with its one-byte tag, 0 for the default."""
    if value > 0:
        return 1 + (value.bit_length() + 6) // 7
    return 11 if value else 0


def message_bytes(kv: KeyValue) -> int:
    """Return the length of ``kv_message(kv)`` serialized."""
    key = len(kv.key)
    size = 1 + (key.bit_length() + 6) // 7 + key if key else 0
    if not kv.version:
        return size
    value = len(kv.value)
    if value:
        size += 1 + (value.bit_length() + 6) // 7 + value
    size += _varint_bytes(kv.create_revision) + _varint_bytes(kv.mod_revision)
    return size + _varint_bytes(kv.version) + _varint_bytes(kv.lease)


def _rows_bucket(rows: Rows) -> bbolt.Bucket:
    def sizes() -> Iterator[tuple[bytes, int]]:
        for main, sub, kv in rows:
            yield _revision_key(main, sub, kv), message_bytes(kv)

    def pairs() -> Iterator[tuple[bytes, bytes]]:
        for main, sub, kv in rows:
            yield _revision_key(main, sub, kv), kv_message(kv).SerializeToString()

    return bbolt.Bucket(b"key", sizes, pairs)


def _u64(value: int) -> bytes:
    return (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")


def dump(engine: Engine, member: MemberRecord) -> Generator[None, None, bbolt.Layout]:
    """Plan the database file of the state as of this call; resume until it returns the layout."""
    store = engine.store
    content: dict[bytes, dict[bytes, bytes]] = {name: {} for name in BUCKETS}
    meta = content[b"meta"]
    meta[b"consistent_index"] = _u64(engine.raft_index)
    meta[b"term"] = _u64(engine.raft_term)
    meta[b"confState"] = _json({"voters": [engine.member_id], "auto_leave": False})
    if store.compacted >= 0:
        meta[b"finishedCompactRev"] = meta[b"scheduledCompactRev"] = _revision_key(
            store.compacted, 0
        )
    # leasepb.Lease: ID = 1, TTL = 2.
    content[b"lease"] = {
        _u64(lease.id): b"\x08" + varint(lease.id) + b"\x10" + varint(lease.ttl_s)
        for lease in engine.leases
    }
    for member_id, alarm in engine.alarms:
        content[b"alarm"][pb.AlarmMember(memberID=member_id, alarm=alarm).SerializeToString()] = b""
    record: dict[str, object] = {"id": engine.member_id, "peerURLs": list(member.peer_urls)}
    record |= {"name": member.name, "clientURLs": list(member.client_urls)}
    content[b"members"][b"%x" % engine.member_id] = _json(record)
    content[b"cluster"][b"clusterVersion"] = member.cluster_version.encode()
    auth = engine.auth
    content[b"auth"] = {
        b"authEnabled": bytes([auth.enabled]),
        b"authRevision": _u64(auth.revision),
    }
    content[b"authUsers"] = _by_name(auth.users())
    content[b"authRoles"] = _by_name(auth.roles())
    rows = store.rows()
    del content[b"key"]
    buckets = [bbolt.Bucket.of(name, pairs) for name, pairs in content.items()]
    return bbolt.plan([*buckets, _rows_bucket(rows)])


def _by_name(entries: Sequence[User | Role]) -> dict[bytes, bytes]:
    return {entry.name.encode(): entry.message().SerializeToString() for entry in entries}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def load(database: bbolt.Database, engine: Engine, name: str) -> None:
    """Fill an empty engine from a database file; CorruptionError when it does not make sense."""
    if b"key" not in set(database):
        raise CorruptionError(f"{name}: a bbolt file, but not of etcd: it has no bucket 'key'")
    meta = dict(database.bucket(b"meta"))
    compacted = -1
    # A compaction that was only scheduled is finished here, as etcd does when it starts.
    for key in (b"finishedCompactRev", b"scheduledCompactRev"):
        if key in meta:
            compacted = max(compacted, _parse_revision(meta[key], name)[0])
    rows = _Rows(database, name, compacted)
    # As etcd's: without rows after it, the store's revision is that of the compaction.
    engine.store.restore(max(compacted, 1), compacted, rows)
    engine.store.revision = max(engine.store.revision, rows.last)
    for key, value in database.bucket(b"lease"):
        lease_id, ttl_s = _parse_lease(value, name)
        if key != _u64(lease_id):
            raise CorruptionError(f"{name}: lease {key.hex()} is stored under another id")
        engine.leases.grant(lease_id, ttl_s, now=0.0)
    for kv in engine.store.live():
        if kv.lease:
            engine.leases.attach(kv.key, kv.lease)
    for key, _ in database.bucket(b"alarm"):
        alarm = pb.AlarmMember.FromString(key)
        if alarm.alarm in ALARMS:
            engine.alarms[alarm.memberID, alarm.alarm] = None
    auth = dict(database.bucket(b"auth"))
    try:
        engine.auth.restore(
            enabled=auth.get(b"authEnabled") == b"\1",
            revision=int.from_bytes(auth.get(b"authRevision", b"\1"), "big"),
            users=[User.parse(data) for _, data in database.bucket(b"authUsers")],
            roles=[Role.parse(data) for _, data in database.bucket(b"authRoles")],
        )
    except (DecodeError, UnicodeDecodeError):
        raise CorruptionError(f"{name}: a user or role cannot be read") from None
    engine.raft_term = max(engine.raft_term, int.from_bytes(meta.get(b"term", b"")[:8], "big"))
    index = int.from_bytes(meta.get(b"consistent_index", b"")[:8], "big")
    engine.raft_index = max(engine.raft_index, index)


def _parse_revision(key: bytes, name: str) -> tuple[int, int]:
    if len(key) not in (_REVISION.size, _REVISION.size + 1):
        raise CorruptionError(f"{name}: {key!r} is no revision")
    main, _, sub = _REVISION.unpack_from(key)
    return main, sub


class _Rows:
    """The rows of the bucket ``key``, without what the compaction would still remove."""

    def __init__(self, database: bbolt.Database, name: str, compacted: int) -> None:
        self._database = database
        self._name = name
        self._compacted = compacted
        self.last = 1

    def __iter__(self) -> Iterator[tuple[int, int, KeyValue]]:
        newest: dict[bytes, tuple[int, int]] = {}
        for key, value in self._database.bucket(b"key"):
            main, sub, kv = self._parse(key, value)
            if main > self._compacted:
                break
            newest[kv.key] = (main, sub)
        for key, value in self._database.bucket(b"key"):
            main, sub, kv = self._parse(key, value)
            self.last = main
            kept = newest.get(kv.key) == (main, sub) and (kv.version or main == self._compacted)
            if main > self._compacted or kept:
                yield main, sub, kv

    def _parse(self, key: bytes, value: bytes) -> tuple[int, int, KeyValue]:
        main, sub = _parse_revision(key, self._name)
        try:
            message = kv_pb2.KeyValue.FromString(value)
        except DecodeError:
            raise CorruptionError(
                f"{self._name}: revision {main} sub {sub} holds no key-value message"
            ) from None
        if len(key) > _REVISION.size:
            return main, sub, KeyValue(message.key, b"", 0, main, 0, 0)
        return (
            main,
            sub,
            KeyValue(
                *(message.key, message.value, message.create_revision),
                *(message.mod_revision, message.version, message.lease),
            ),
        )


def _parse_lease(data: bytes, name: str) -> tuple[int, int]:
    """Return (id, TTL in seconds) of a leasepb.Lease."""
    fields = {1: 0, 2: 0}
    at = 0
    try:
        while at < len(data):
            tag, at = _pull_varint(data, at)
            fields[tag >> 3], at = _pull_varint(data, at)
    except IndexError:
        raise CorruptionError(f"{name}: a lease is cut off") from None
    return _signed(fields[1]), _signed(fields[2])


def _pull_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
