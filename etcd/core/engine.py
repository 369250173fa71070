"""One etcd server's state machine: requests in, responses and log records out.  No IO, no clock.

Every call that changes something appends log records to ``take_records()`` and commits to
``take_commits()``; whoever drives the engine makes the records durable, then releases the responses
and tells the watch hub of the commits.  ``replay`` applies the records again after a restart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcd.core import txn, wal
from etcd.core.auth import AuthStore
from etcd.core.counts import OperationCounts
from etcd.core.errors import (
    CORRUPT,
    EMPTY_KEY,
    KEY_NOT_FOUND,
    LEASE_NOT_FOUND,
    NO_SPACE,
    REQUEST_TOO_LARGE,
    TOO_MANY_REQUESTS,
    CorruptionError,
    EtcdError,
)
from etcd.core.lease import LeaseTable
from etcd.core.mvcc import Store
from etcd.core.pb import rpc_pb2 as pb
from etcd.core.protowire import varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from google.protobuf.message import Message

    from etcd.core.mvcc import Changes, KeyValue, Rows
    from etcd.core.v2.durable import DurableV2
    from etcd.core.wal import Kind

# etcd --max-request-bytes.
MAX_REQUEST_BYTES = 1536 * 1024
# What etcd's log adds to a request before it measures: InternalRaftRequest's header and lengths.
RAFT_OVERHEAD_BYTES = 18
# etcd has no limit; a lease takes half a kilobyte, and a million is far beyond its own advice.
MAX_LEASES = 1_000_000
# More than a put's tags, lengths and lease take beside its key and value.
PUT_OVERHEAD_BYTES = 82
# What may be wrong with a member.
ALARMS = (pb.NOSPACE, pb.CORRUPT)
# Rows a snapshot frame holds: some hundred kilobytes, written between two loop ticks.
SNAPSHOT_ROWS_PER_FRAME = 2000


class Engine:
    """Store, leases and alarms of the one member of a cluster."""

    def __init__(
        self,
        cluster_id: int,
        member_id: int,
        *,
        quota_bytes: int = 0,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        max_txn_ops: int = txn.MAX_TXN_OPS,
    ) -> None:
        """``quota_bytes``: size of keys and values above which writes are refused; 0: none."""
        self.cluster_id = cluster_id
        self.member_id = member_id
        self.store = Store()
        self.leases = LeaseTable()
        self.auth = AuthStore(lambda change: self._log(wal.record(wal.Kind.AUTH, change)))
        # (member id, AlarmType) -> None, in the order they were raised.
        self.alarms: dict[tuple[int, pb.AlarmType.ValueType], None] = {}
        # The v2 keys, if they were ever enabled.
        self.v2: DurableV2 | None = None
        self.raft_term = 1
        self.raft_index = 3
        self._quota_bytes = quota_bytes
        self._max_request_bytes = max_request_bytes
        self._max_txn_ops = max_txn_ops
        self.counts = OperationCounts()
        self._records: list[bytes] = []
        self._commits: list[tuple[int, Changes]] = []
        # (raft term, a header's bytes before the revision, those after it).
        self._header_parts: tuple[int, bytes, bytes] | None = None

    # What the driver takes ------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether records wait to be made durable."""
        return bool(self._records)

    @property
    def pending_records(self) -> int:
        """How many records wait to be made durable."""
        return len(self._records)

    def take_records(self) -> list[bytes]:
        """Return and forget the pending log records."""
        records, self._records = self._records, []
        return records

    def take_commits(self) -> list[tuple[int, Changes]]:
        """Return and forget the pending commits, in revision order."""
        commits, self._commits = self._commits, []
        return commits

    # Headers -------------------------------------------------------------------------------

    def header(self, revision: int | None = None) -> pb.ResponseHeader:
        """Return a response header with the current (or a given) revision."""
        return pb.ResponseHeader(
            cluster_id=self.cluster_id,
            member_id=self.member_id,
            revision=self.store.revision if revision is None else revision,
            raft_term=self.raft_term,
        )

    def header_bytes(self, revision: int) -> bytes:
        """Return ``header(revision)`` serialized."""
        known = self._header_parts
        if known is None or known[0] != self.raft_term:
            before = pb.ResponseHeader(cluster_id=self.cluster_id, member_id=self.member_id)
            after = pb.ResponseHeader(raft_term=self.raft_term)
            known = self.raft_term, before.SerializeToString(), after.SerializeToString()
            self._header_parts = known
        if revision <= 0:
            return self.header(revision).SerializeToString()
        return known[1] + b"\x18" + varint(revision) + known[2]

    def _fill(self, header: pb.ResponseHeader) -> None:
        header.cluster_id = self.cluster_id
        header.member_id = self.member_id
        header.raft_term = self.raft_term

    # KV ------------------------------------------------------------------------------------

    def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """KV.Range."""
        txn.check_range(request)
        response = txn.range_response(self.store, request, self.store.revision)
        self.counts.ranges += 1
        self._fill(response.header)
        return response

    def put(self, request: pb.PutRequest) -> pb.PutResponse:
        """KV.Put."""
        txn.check_put(request)
        self._check_size(request)
        self._check_space()
        if request.lease and request.lease not in self.leases:
            raise EtcdError(*LEASE_NOT_FOUND)
        if (request.ignore_value or request.ignore_lease) and self.store.get(request.key) is None:
            raise EtcdError(*KEY_NOT_FOUND)
        write = self.store.write()
        response = txn.apply_put(write, self.store, request)
        self._commit(write.end())
        self.counts.puts += 1
        self.counts.put_bytes += len(request.key) + len(request.value)
        self._fill(response.header)
        return response

    def put_payload(self, request: pb.PutRequest) -> bytes:
        """``put`` with a serialized response: half the time for the commonest of writes."""
        if request.prev_kv or request.ignore_value or request.ignore_lease:
            return self.put(request).SerializeToString()
        key, value, lease = request.key, request.value, request.lease
        if not key:
            raise EtcdError(*EMPTY_KEY)
        if len(key) + len(value) + PUT_OVERHEAD_BYTES > self._max_request_bytes:
            self._check_size(request)
        if self._troubled:
            self._check_space()
        if lease and lease not in self.leases:
            raise EtcdError(*LEASE_NOT_FOUND)
        write = self.store.write()
        write.put(key, value, lease)
        self._commit(write.end())
        counts = self.counts
        counts.puts += 1
        counts.put_bytes += len(key) + len(value)
        header = self.header_bytes(write.revision)
        return b"\x0a" + bytes((len(header),)) + header

    def delete_range(self, request: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
        """KV.DeleteRange."""
        txn.check_delete(request)
        self._check_size(request)
        self._check_corrupt()
        write = self.store.write()
        response = txn.apply_delete(write, request)
        self._commit(write.end())
        self.counts.deletes += response.deleted
        self._fill(response.header)
        return response

    def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """KV.Txn."""
        txn.check_txn(request, self._max_txn_ops)
        if not txn.is_read_only(request):
            self._check_size(request)
            self._check_corrupt()
            if self._troubled and _puts(request):
                self._check_space()
        write = self.store.write()
        response = txn.apply_txn(self.store, self.leases, write, request)
        changes = write.end()
        self._commit(changes)
        self._count_txn(changes, txn.count_ranges(response))
        self._fill(response.header)
        return response

    def _count_txn(self, changes: Changes, ranges: int) -> None:
        counts = self.counts
        counts.ranges += ranges
        for kv in changes:
            if kv.version:
                counts.puts += 1
                counts.put_bytes += len(kv.key) + len(kv.value)
            else:
                counts.deletes += 1
        if len(changes) + ranges > 1:
            counts.txns += 1

    def compact(self, request: pb.CompactionRequest) -> pb.CompactionResponse:
        """KV.Compact."""
        self._check_corrupt()
        self.store.compact(request.revision)
        self._log(wal.compact_record(request.revision))
        return pb.CompactionResponse(header=self.header())

    def _check_size(self, request: Message) -> None:
        if request.ByteSize() + RAFT_OVERHEAD_BYTES > self._max_request_bytes:
            raise EtcdError(*REQUEST_TOO_LARGE)

    @property
    def _troubled(self) -> bool:
        """Whether a put could be refused for the state the server is in."""
        return bool(self.alarms) or 0 < self._quota_bytes < self.store.size

    def _check_corrupt(self) -> None:
        """Raise EtcdError if anybody's data are known to be damaged: then only reads go on."""
        if self.alarms and any(alarm == pb.CORRUPT for _, alarm in self.alarms):
            raise EtcdError(*CORRUPT)

    def _check_space(self) -> None:
        self._check_corrupt()
        if self.alarms and (self.member_id, pb.NOSPACE) in self.alarms:
            raise EtcdError(*NO_SPACE)
        if self._quota_bytes and self.store.size > self._quota_bytes:
            self.set_alarm(self.member_id, pb.NOSPACE, active=True)
            raise EtcdError(*NO_SPACE)

    def _log(self, record: bytes) -> None:
        self._records.append(record)
        self.raft_index += 1

    def _commit(self, changes: Changes) -> None:
        if not changes:
            return
        self._attach(changes)
        self._log(wal.changes_record(changes))
        self._commits.append((self.store.revision, changes))

    def _attach(self, changes: Changes) -> None:
        for kv in changes:
            self.leases.attach(kv.key, kv.lease)

    # Leases --------------------------------------------------------------------------------

    def lease_grant(self, lease_id: int, ttl_s: int, *, now: float) -> pb.LeaseGrantResponse:
        """Lease.LeaseGrant of a chosen id and TTL (``leases.choose``)."""
        self._check_space()
        if len(self.leases) >= MAX_LEASES:
            raise EtcdError(*TOO_MANY_REQUESTS)
        self.leases.grant(lease_id, ttl_s, now=now)
        self._log(wal.lease_grant_record(lease_id, ttl_s))
        self.counts.leases_granted += 1
        self.counts.lease_ttls.observe(ttl_s)
        return pb.LeaseGrantResponse(header=self.header(), ID=lease_id, TTL=ttl_s)

    def lease_revoke(self, lease_id: int) -> pb.LeaseRevokeResponse:
        """Lease.LeaseRevoke, also for an expired lease: its keys go in one revision."""
        self._check_corrupt()
        keys = self.leases.revoke(lease_id)
        self.counts.leases_revoked += 1
        self.counts.deletes += len(keys)
        write = self.store.write()
        for key in keys:
            write.delete_range(key, b"")
        self._log(wal.lease_revoke_record(lease_id))
        self._commit(write.end())
        return pb.LeaseRevokeResponse(header=self.header())

    def lease_keep_alive(self, lease_id: int, *, now: float) -> pb.LeaseKeepAliveResponse:
        """One LeaseKeepAlive request; TTL 0 tells that the lease is gone."""
        ttl_s = self.leases.renew(lease_id, now=now)
        self.counts.leases_renewed += ttl_s > 0
        return pb.LeaseKeepAliveResponse(header=self.header(), ID=lease_id, TTL=ttl_s)

    def lease_time_to_live(
        self, request: pb.LeaseTimeToLiveRequest, *, now: float
    ) -> pb.LeaseTimeToLiveResponse:
        """Lease.LeaseTimeToLive; TTL -1 for an unknown lease."""
        left = self.leases.remaining_s(request.ID, now=now)
        response = pb.LeaseTimeToLiveResponse(header=self.header(), ID=request.ID, TTL=left)
        lease = self.leases.get(request.ID)
        if left >= 0 and lease is not None:
            response.grantedTTL = lease.ttl_s
            if request.keys:
                response.keys.extend(sorted(lease.keys))
        return response

    def lease_leases(self) -> pb.LeaseLeasesResponse:
        """Lease.LeaseLeases, the soonest to expire first as etcd lists them."""
        ordered = sorted(self.leases, key=lambda lease: lease.expires_at)
        statuses = [pb.LeaseStatus(ID=lease.id) for lease in ordered]
        return pb.LeaseLeasesResponse(header=self.header(), leases=statuses)

    def expire(self, *, now: float) -> int:
        """Revoke the leases whose time is over; return how many."""
        if any(alarm == pb.CORRUPT for _, alarm in self.alarms):
            return 0
        expired = self.leases.expired(now=now)
        for lease_id in expired:
            self.lease_revoke(lease_id)
        self.counts.leases_expired += len(expired)
        return len(expired)

    # Alarms --------------------------------------------------------------------------------

    def set_alarm(self, member_id: int, alarm: pb.AlarmType.ValueType, *, active: bool) -> bool:
        """Raise or clear an alarm; whether that changed anything.

        A kind of alarm that is none is never raised, although etcd would: nothing could clear it
        that does not know its number.
        """
        if alarm not in ALARMS:
            return False
        key = (member_id, alarm)
        if (key in self.alarms) == active:
            return False
        if active:
            self.alarms[key] = None
        else:
            del self.alarms[key]
        self._log(wal.alarm_record(member_id, alarm, active))
        return True

    # The v2 store ---------------------------------------------------------------------------

    def enable_v2(self) -> DurableV2:
        """Return the v2 store, an empty one if there was none."""
        if self.v2 is None:
            # Most servers never need it, and their start should not wait for it.
            from etcd.core.v2.durable import DurableV2

            self.v2 = DurableV2(self._log, lambda: (self.member_id, pb.NOSPACE) in self.alarms)
        return self.v2

    # Recovery ------------------------------------------------------------------------------

    def start(self, *, now: float) -> None:
        """Begin a term: leases get their full time again, the raft term moves on."""
        self.raft_term += 1
        self._log(wal.start_record(self.raft_term, self.raft_index))
        self.leases.renew_all(now=now)

    def replay(self, payload: bytes) -> None:
        """Apply one log frame's records."""
        for kind, data in wal.parse_records(payload):
            self._replay_record(kind, data)
            self.raft_index += 1

    def _replay_record(self, kind: Kind, data: bytes) -> None:
        match kind:
            case wal.Kind.CHANGES:
                changes = tuple(kv for _, kv in wal.parse_rows(data))
                self.store.apply(changes[0].mod_revision, changes)
                self._attach(changes)
            case wal.Kind.LEASE_GRANT:
                lease_id, ttl_s = wal.parse_pair(data)
                self.leases.grant(lease_id, ttl_s, now=0.0)
            case wal.Kind.LEASE_REVOKE:
                self.leases.revoke(wal.parse_pair(data)[0])
            case wal.Kind.COMPACT:
                self.store.compact(wal.parse_pair(data)[0])
            case wal.Kind.ALARM:
                member_id, number, active = wal.parse_alarm(data)
                for alarm in ALARMS:
                    if alarm == number and active:
                        self.alarms[member_id, alarm] = None
                    elif alarm == number:
                        self.alarms.pop((member_id, alarm), None)
            case wal.Kind.AUTH:
                self.auth.replay(data)
            case wal.Kind.START:
                self.raft_term, logged = wal.parse_pair(data)
                self.raft_index = max(self.raft_index, logged)
            case wal.Kind.V2_OPERATION:
                self.enable_v2().replay(kind, data)
            case _:
                raise AssertionError(f"{kind.name} record in the log")

    # Snapshots -----------------------------------------------------------------------------

    def snapshot(self, sequence: int) -> Iterator[bytes]:
        """Yield frame payloads of the state as of this call; the log continues at ``sequence``.

        The state may change while the payloads are taken: everything mutable is copied first.
        """
        store = self.store
        meta = wal.Meta(self.raft_term, self.raft_index, store.revision, store.compacted, sequence)
        head = wal.meta_record(meta)
        head += b"".join(wal.lease_grant_record(lease.id, lease.ttl_s) for lease in self.leases)
        head += b"".join(wal.alarm_record(member, alarm, True) for member, alarm in self.alarms)
        head += wal.record(wal.Kind.AUTH, self.auth.record())
        v2 = self.v2.snapshot() if self.v2 is not None else []
        return _snapshot_payloads(head, v2, store.rows())

    def restore(self, payloads: Iterable[bytes], name: str) -> int:
        """Fill an empty engine from a snapshot; return the log sequence to go on with.

        Raises CorruptionError when the snapshot has no end.
        """
        source = iter(payloads)
        head = list(wal.parse_records(next(source, b"")))
        if not head or head[0][0] != wal.Kind.META:
            raise CorruptionError(f"{name}: the snapshot is empty; restore it from a backup")
        meta = wal.parse_meta(head[0][1])
        rows = _SnapshotRows(source, self)
        self.store.restore(meta.revision, meta.compacted, rows)
        if not rows.complete:
            raise CorruptionError(f"{name}: the snapshot has no end; restore it from a backup")
        for kind, data in head[1:]:
            self._replay_record(kind, data)
        for kv in self.store.live():
            if kv.lease:
                self.leases.attach(kv.key, kv.lease)
        self.raft_term, self.raft_index = meta.raft_term, meta.raft_index
        return meta.sequence


def _puts(request: pb.TxnRequest) -> bool:
    """Whether any branch could put."""
    return any(
        op.HasField("request_put") or (op.HasField("request_txn") and _puts(op.request_txn))
        for ops in (request.success, request.failure)
        for op in ops
    )


def _snapshot_payloads(head: bytes, v2: list[bytes], rows: Rows) -> Iterator[bytes]:
    yield head
    yield from v2
    frames = 2 + len(v2)
    batch: list[tuple[int, KeyValue]] = []
    for _, sub, kv in rows:
        batch.append((sub, kv))
        if len(batch) == SNAPSHOT_ROWS_PER_FRAME:
            yield wal.record(wal.Kind.ROWS, wal.rows_payload(batch))
            frames += 1
            batch = []
    if batch:
        yield wal.record(wal.Kind.ROWS, wal.rows_payload(batch))
        frames += 1
    yield wal.end_record(frames)


class _SnapshotRows:
    """The rows of a snapshot's payloads; ``complete`` once its END was met."""

    def __init__(self, payloads: Iterator[bytes], engine: Engine) -> None:
        self._payloads = payloads
        self._engine = engine
        self.complete = False

    def __iter__(self) -> Iterator[tuple[int, int, KeyValue]]:
        for payload in self._payloads:
            for kind, data in wal.parse_records(payload):
                if kind == wal.Kind.END:
                    self.complete = True
                elif kind >= wal.Kind.V2_OPERATION:
                    self._engine.enable_v2().replay(kind, data)
                else:
                    for sub, kv in wal.parse_rows(data):
                        yield kv.mod_revision, sub, kv
