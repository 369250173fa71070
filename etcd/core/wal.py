"""Bytes of the write-ahead log and of snapshots.

A segment file is a segment header, then frames, then zeros (space filled ahead of use).  A frame is
what one flush wrote: a 24-byte header (magic, payload length, sequence number, checksum of the
frame before, checksum of this one) and a payload of records.  The records are effects, not
requests, so replaying them is deterministic.  A snapshot file is a sequence of frames as well, the
last of which holds an END record.

A frame that does not check out is a torn write if nothing later was written: the file ends there.
If a later intact frame follows, acknowledged data are damaged, and nothing may start on them.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from etcd.core.errors import CorruptionError
from etcd.core.mvcc import KeyValue

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SEGMENT_MAGIC = b"podwire etcd wal"
SNAPSHOT_MAGIC = b"podwire etcd snp"
FRAME_MAGIC = b"\xf5WAL"
FORMAT_VERSION = 1

_FILE = struct.Struct("<16sIQQQI")  # magic, version, cluster id, member id, first sequence, crc
_FRAME = struct.Struct("<4sIQII")  # magic, payload length, sequence, previous crc, crc
_FRAME_BODY = struct.Struct("<IQI")  # the checksummed part of the header
_RECORD = struct.Struct("<BI")
_ROW = struct.Struct("<qIqqqII")  # mod, sub, create, version, lease, key and value lengths
_RECORD_AND_ROW = struct.Struct("<BIqIqqqII")
_META = struct.Struct("<QQqqQ")
_PAIR = struct.Struct("<qq")
_U64_PAIR = struct.Struct("<QQ")
_ALARM = struct.Struct("<QBB")

FILE_HEADER_BYTES = _FILE.size
FRAME_HEADER_BYTES = _FRAME.size


class Kind(enum.IntEnum):
    """What a record is."""

    CHANGES = 1  # rows of one revision
    LEASE_GRANT = 2
    LEASE_REVOKE = 3
    COMPACT = 4
    ALARM = 5
    START = 6  # a server started: raft term, raft index
    META = 7  # first of a snapshot
    ROWS = 8  # rows of a snapshot
    END = 9  # last of a snapshot
    AUTH = 20  # users, roles, whether auth is on (etcd.core.auth)
    # The v2 store (etcd.core.v2.log).
    V2_OPERATION = 32
    V2_HEAD = 33  # of a snapshot
    V2_NODES = 34
    V2_EVENTS = 35


_KINDS = frozenset(Kind)


class FileHeader(NamedTuple):
    """The head of a segment or a snapshot; ``sequence`` is its first frame's number."""

    cluster_id: int
    member_id: int
    sequence: int

    def emit(self, magic: bytes) -> bytes:
        body = _FILE.pack(magic, FORMAT_VERSION, *self, 0)[:-4]
        return body + zlib.crc32(body).to_bytes(4, "little")

    @classmethod
    def parse(cls, data: bytes, magic: bytes, name: str) -> FileHeader:
        """Raise CorruptionError unless ``data`` begins with a whole header."""
        if len(data) < FILE_HEADER_BYTES:
            raise CorruptionError(f"{name}: shorter than its {FILE_HEADER_BYTES}-byte header")
        found, version, cluster, member, sequence, crc = _FILE.unpack_from(data)
        if found != magic or zlib.crc32(data[: FILE_HEADER_BYTES - 4]) != crc:
            raise CorruptionError(f"{name}: damaged header; restore the file from a backup")
        if version != FORMAT_VERSION:
            raise CorruptionError(f"{name}: format {version}, this program reads {FORMAT_VERSION}")
        return cls(cluster, member, sequence)


class Meta(NamedTuple):
    """A snapshot's state apart from rows, leases and alarms."""

    raft_term: int
    raft_index: int
    revision: int
    compacted: int
    sequence: int


# Records -----------------------------------------------------------------------------------


def record(kind: Kind, payload: bytes) -> bytes:
    """Return one record's bytes."""
    return _RECORD.pack(kind, len(payload)) + payload


def rows_payload(rows: Iterable[tuple[int, KeyValue]]) -> bytes:
    """Return (sub revision, version) pairs as bytes."""
    parts: list[bytes] = []
    for sub, kv in rows:
        parts.append(
            _ROW.pack(
                kv.mod_revision,
                sub,
                kv.create_revision,
                kv.version,
                kv.lease,
                len(kv.key),
                len(kv.value),
            )
        )
        parts.append(kv.key)
        parts.append(kv.value)
    return b"".join(parts)


def parse_rows(data: bytes) -> Iterator[tuple[int, KeyValue]]:
    """Yield what ``rows_payload`` was given."""
    at, end = 0, len(data)
    size, unpack = _ROW.size, _ROW.unpack_from
    while at < end:
        mod, sub, create, version, lease, key_size, value_size = unpack(data, at)
        at += size
        key = data[at : at + key_size]
        at += key_size
        yield sub, KeyValue(key, data[at : at + value_size], create, mod, version, lease)
        at += value_size


def changes_record(changes: tuple[KeyValue, ...]) -> bytes:
    """Return the record of one revision's changes."""
    if len(changes) == 1:
        # Most revisions: the same bytes as below, in one go.
        key, value, create, mod, version, lease = changes[0]
        key_size, value_size = len(key), len(value)
        size = _ROW.size + key_size + value_size
        head = _RECORD_AND_ROW.pack(
            Kind.CHANGES, size, mod, 0, create, version, lease, key_size, value_size
        )
        return head + key + value
    return record(Kind.CHANGES, rows_payload(enumerate(changes)))


def lease_grant_record(lease_id: int, ttl_s: int) -> bytes:
    return record(Kind.LEASE_GRANT, _PAIR.pack(lease_id, ttl_s))


def lease_revoke_record(lease_id: int) -> bytes:
    return record(Kind.LEASE_REVOKE, _PAIR.pack(lease_id, 0))


def compact_record(revision: int) -> bytes:
    return record(Kind.COMPACT, _PAIR.pack(revision, 0))


def alarm_record(member_id: int, alarm: int, active: bool) -> bytes:
    return record(Kind.ALARM, _ALARM.pack(member_id, alarm, active))


def start_record(raft_term: int, raft_index: int) -> bytes:
    return record(Kind.START, _U64_PAIR.pack(raft_term, raft_index))


def meta_record(meta: Meta) -> bytes:
    return record(Kind.META, _META.pack(*meta))


def end_record(frames: int) -> bytes:
    return record(Kind.END, _PAIR.pack(frames, 0))


def parse_pair(payload: bytes) -> tuple[int, int]:
    first, second = _PAIR.unpack(payload)
    return first, second


def parse_alarm(payload: bytes) -> tuple[int, int, bool]:
    member, alarm, active = _ALARM.unpack(payload)
    return member, alarm, bool(active)


def parse_meta(payload: bytes) -> Meta:
    return Meta(*_META.unpack(payload))


def parse_records(payload: bytes) -> Iterator[tuple[Kind, bytes]]:
    """Yield a frame's records; its checksum has been verified.

    Raises CorruptionError for a kind this program does not know.
    """
    at, end = 0, len(payload)
    while at < end:
        kind, size = _RECORD.unpack_from(payload, at)
        at += _RECORD.size
        if kind not in _KINDS:
            raise CorruptionError(
                f"a record of kind {kind} is not known to this version of Podwire; "
                "start the data directory with the newer one that wrote it"
            )
        yield Kind(kind), payload[at : at + size]
        at += size


# Frames ------------------------------------------------------------------------------------


class FrameWriter:
    """Numbers and chains frames."""

    __slots__ = ("crc", "sequence")

    def __init__(self, sequence: int, crc: int = 0) -> None:
        self.sequence = sequence
        self.crc = crc

    def frame(self, payload: bytes) -> bytes:
        """Return the next frame."""
        body = _FRAME_BODY.pack(len(payload), self.sequence, self.crc)
        crc = zlib.crc32(payload, zlib.crc32(body))
        data = _FRAME.pack(FRAME_MAGIC, len(payload), self.sequence, self.crc, crc) + payload
        self.sequence += 1
        self.crc = crc
        return data


def _frame_at(data: bytes, at: int) -> tuple[int, int, int, bytes] | None:
    """Return (sequence, previous crc, crc, payload) of an intact frame at an offset."""
    if at + FRAME_HEADER_BYTES > len(data):
        return None
    magic, size, sequence, previous, crc = _FRAME.unpack_from(data, at)
    start = at + FRAME_HEADER_BYTES
    if magic != FRAME_MAGIC or start + size > len(data):
        return None
    payload = data[start : start + size]
    if zlib.crc32(payload, zlib.crc32(data[at + 4 : at + 20])) != crc:
        return None
    return sequence, previous, crc, payload


class FrameReader:
    """Reads the frames of files in order, checking numbers and chain."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        # None: the chain begins with whatever the first frame says.
        self.crc: int | None = None

    def read(self, data: bytes, name: str, *, last: bool) -> Iterator[tuple[int, bytes]]:
        """Yield (end offset, payload) of each frame of a file.

        ``last``: nothing comes after this file, so a torn end is cut.  Raises CorruptionError
        where data that were once complete are damaged or missing.
        """
        at = FILE_HEADER_BYTES
        while (found := _frame_at(data, at)) is not None:
            sequence, previous, crc, payload = found
            if sequence != self.sequence or (self.crc is not None and previous != self.crc):
                raise CorruptionError(
                    f"{name}: the frame at offset {at} is number {sequence} where {self.sequence} "
                    "belongs; a file is missing or damaged, restore the directory from a backup"
                )
            self.sequence, self.crc = sequence + 1, crc
            at += FRAME_HEADER_BYTES + len(payload)
            yield at, payload
        self._check_rest(data, at, name, last=last)

    def _check_rest(self, data: bytes, at: int, name: str, *, last: bool) -> None:
        if not last:
            if data[at:].strip(b"\0"):
                raise CorruptionError(
                    f"{name}: damaged at offset {at} and later files exist; "
                    "restore the directory from a backup"
                )
            return
        probe = data.find(FRAME_MAGIC, at + 1)
        while probe >= 0:
            found = _frame_at(data, probe)
            if found is not None and found[0] > self.sequence:
                raise CorruptionError(
                    f"{name}: damaged at offset {at}, yet an intact later frame follows at "
                    f"offset {probe}; acknowledged writes would be lost, so this server does not "
                    "start: restore the directory from a backup"
                )
            probe = data.find(FRAME_MAGIC, probe + 1)
