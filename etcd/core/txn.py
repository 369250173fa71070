"""Requests of the KV service against the store: checks, compares, ranges, transactions.

Sources: etcd server/api/v3rpc/key.go (checks), server/etcdserver/apply.go (application).  The order
of checks is etcd's, so that a request with two faults gets the same answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcd.core.errors import (
    COMPACTED,
    DUPLICATE_KEY,
    EMPTY_KEY,
    FUTURE_REVISION,
    INVALID_SORT,
    KEY_NOT_FOUND,
    LEASE_NOT_FOUND,
    LEASE_PROVIDED,
    TOO_MANY_OPS,
    VALUE_PROVIDED,
    EtcdError,
)
from etcd.core.mvcc import KeyValue, Store, WriteTxn, kv_message
from etcd.core.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

# etcd --max-txn-ops.
MAX_TXN_OPS = 128

_SORT_KEYS: dict[int, Callable[[KeyValue], bytes | int]] = {
    pb.RangeRequest.KEY: lambda kv: kv.key,
    pb.RangeRequest.VERSION: lambda kv: kv.version,
    pb.RangeRequest.CREATE: lambda kv: kv.create_revision,
    pb.RangeRequest.MOD: lambda kv: kv.mod_revision,
    pb.RangeRequest.VALUE: lambda kv: kv.value,
}
_MISSING = KeyValue(b"", b"", 0, 0, 0, 0)


# Checks before anything is read ------------------------------------------------------------


def check_range(request: pb.RangeRequest) -> None:
    """Raise EtcdError for a range request no store could answer."""
    if not request.key:
        raise EtcdError(*EMPTY_KEY)
    if request.sort_order not in (0, 1, 2) or request.sort_target not in _SORT_KEYS:
        raise EtcdError(*INVALID_SORT)


def check_put(request: pb.PutRequest) -> None:
    """Raise EtcdError for a contradictory put."""
    if not request.key:
        raise EtcdError(*EMPTY_KEY)
    if request.ignore_value and request.value:
        raise EtcdError(*VALUE_PROVIDED)
    if request.ignore_lease and request.lease:
        raise EtcdError(*LEASE_PROVIDED)


def check_delete(request: pb.DeleteRangeRequest) -> None:
    """Raise EtcdError for a delete without a key."""
    if not request.key:
        raise EtcdError(*EMPTY_KEY)


def check_txn(request: pb.TxnRequest, max_ops: int = MAX_TXN_OPS) -> None:
    """Raise EtcdError for too many operations, bad operations, or keys written twice."""
    _check_ops(request, max_ops)
    _check_intervals(request.success)
    _check_intervals(request.failure)


def _check_ops(request: pb.TxnRequest, budget: int) -> None:
    count = max(len(request.compare), len(request.success), len(request.failure))
    if count > budget:
        raise EtcdError(*TOO_MANY_OPS)
    for compare in request.compare:
        if not compare.key:
            raise EtcdError(*EMPTY_KEY)
    for ops in (request.success, request.failure):
        for op in ops:
            match op.WhichOneof("request"):
                case "request_range":
                    check_range(op.request_range)
                case "request_put":
                    check_put(op.request_put)
                case "request_delete_range":
                    check_delete(op.request_delete_range)
                case "request_txn":
                    _check_ops(op.request_txn, budget - count)
                case _:
                    raise EtcdError(*KEY_NOT_FOUND)


def _deletes(deletes: Iterable[tuple[bytes, bytes]], key: bytes) -> bool:
    """Whether any delete interval holds a key, as etcd's interval tree sees it.

    A range_end of one zero byte means "everything after" to the store, but it sorts before every
    key in the tree, which therefore sees an empty interval; kept, for clients see the difference.
    """
    return any(lo <= key < hi if hi else lo == key for lo, hi in deletes)


def _check_intervals(
    ops: Sequence[pb.RequestOp],
) -> tuple[set[bytes], list[tuple[bytes, bytes]]]:
    deletes = [
        (op.request_delete_range.key, op.request_delete_range.range_end)
        for op in ops
        if op.HasField("request_delete_range")
    ]
    puts: set[bytes] = set()
    for op in ops:
        if not op.HasField("request_txn"):
            continue
        then_puts, then_deletes = _check_intervals(op.request_txn.success)
        else_puts, else_deletes = _check_intervals(op.request_txn.failure)
        for key in then_puts | else_puts:
            if key in puts or _deletes(deletes, key):
                raise EtcdError(*DUPLICATE_KEY)
        puts |= then_puts | else_puts
        deletes += then_deletes + else_deletes
    for op in ops:
        if op.HasField("request_put"):
            key = op.request_put.key
            if key in puts or _deletes(deletes, key):
                raise EtcdError(*DUPLICATE_KEY)
            puts.add(key)
    return puts, deletes


# Single operations -------------------------------------------------------------------------


def range_response(store: Store, request: pb.RangeRequest, seen_revision: int) -> pb.RangeResponse:
    """Answer a checked range; ``seen_revision`` goes into the header."""
    filtered = bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )
    order, target, limit = request.sort_order, request.sort_target, request.limit
    fetch = 0 if order or filtered or limit <= 0 else limit + 1
    found = store.range(
        request.key,
        request.range_end,
        revision=request.revision,
        limit=fetch,
        count_only=request.count_only,
    )
    kvs = _filtered(found.kvs, request) if filtered else found.kvs
    if order or target:
        # etcd sorts after it cut at the limit when only a target is given; so do we.
        kvs = sorted(kvs, key=_SORT_KEYS[target], reverse=order == pb.RangeRequest.DESCEND)
    more = 0 < limit < len(kvs)
    if more:
        kvs = kvs[:limit]
    if request.keys_only:
        messages = [kv_message(kv._replace(value=b"")) for kv in kvs]
    else:
        messages = [kv_message(kv) for kv in kvs]
    header = pb.ResponseHeader(revision=seen_revision)
    return pb.RangeResponse(header=header, kvs=messages, more=more, count=found.total)


def _filtered(kvs: list[KeyValue], request: pb.RangeRequest) -> list[KeyValue]:
    min_mod, max_mod = request.min_mod_revision, request.max_mod_revision
    min_create, max_create = request.min_create_revision, request.max_create_revision
    return [
        kv
        for kv in kvs
        if (not max_mod or kv.mod_revision <= max_mod)
        and (not min_mod or kv.mod_revision >= min_mod)
        and (not max_create or kv.create_revision <= max_create)
        and (not min_create or kv.create_revision >= min_create)
    ]


def apply_put(write: WriteTxn, store: Store, request: pb.PutRequest) -> pb.PutResponse:
    """Write a checked put (the lease exists, the key exists where ignore_* needs it)."""
    value, lease = request.value, request.lease
    if request.ignore_value or request.ignore_lease:
        old = store.get(request.key)
        assert old is not None, "ignore_value and ignore_lease are checked before"
        value = old.value if request.ignore_value else value
        lease = old.lease if request.ignore_lease else lease
    previous = write.put(request.key, value, lease)
    response = pb.PutResponse(header=pb.ResponseHeader(revision=write.revision))
    if request.prev_kv and previous is not None:
        response.prev_kv.CopyFrom(kv_message(previous))
    return response


def apply_delete(write: WriteTxn, request: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
    """Delete the range; the header's revision is the one after this step."""
    old = write.delete_range(request.key, request.range_end)
    return pb.DeleteRangeResponse(
        header=pb.ResponseHeader(revision=write.seen_revision),
        deleted=len(old),
        prev_kvs=[kv_message(kv) for kv in old] if request.prev_kv else (),
    )


# Transactions ------------------------------------------------------------------------------


def is_read_only(request: pb.TxnRequest) -> bool:
    """Whether no branch, at any depth, could write."""
    for ops in (request.success, request.failure):
        for op in ops:
            if op.HasField("request_range"):
                continue
            if not op.HasField("request_txn") or not is_read_only(op.request_txn):
                return False
    return True


def _holds(store: Store, compare: pb.Compare) -> bool:
    kvs = store.range(compare.key, compare.range_end).kvs
    if not kvs:
        return compare.target != pb.Compare.VALUE and _compare_one(_MISSING, compare)
    return all(_compare_one(kv, compare) for kv in kvs)


def _compare_one(kv: KeyValue, compare: pb.Compare) -> bool:
    have: bytes | int
    want: bytes | int
    match compare.target:
        case pb.Compare.VERSION:
            have, want = kv.version, compare.version
        case pb.Compare.CREATE:
            have, want = kv.create_revision, compare.create_revision
        case pb.Compare.MOD:
            have, want = kv.mod_revision, compare.mod_revision
        case pb.Compare.VALUE:
            have, want = kv.value, compare.value
        case pb.Compare.LEASE:
            have, want = kv.lease, compare.lease
        case _:
            have = want = 0
    match compare.result:
        case pb.Compare.EQUAL:
            return have == want
        case pb.Compare.NOT_EQUAL:
            return have != want
        case pb.Compare.GREATER:
            return have > want  # type: ignore[operator]  # both of one target's type
        case pb.Compare.LESS:
            return have < want  # type: ignore[operator]  # both of one target's type
        case _:
            return True


class _Path:
    """Which branch each transaction takes, decided for all of them before the first write."""

    __slots__ = ("nested", "ops", "succeeded")

    def __init__(self, store: Store, request: pb.TxnRequest) -> None:
        self.succeeded = all(_holds(store, compare) for compare in request.compare)
        self.ops = request.success if self.succeeded else request.failure
        self.nested = [
            _Path(store, op.request_txn) if op.HasField("request_txn") else None for op in self.ops
        ]


def apply_txn(
    store: Store, leases: Container[int], write: WriteTxn, request: pb.TxnRequest
) -> pb.TxnResponse:
    """Run a checked transaction; nothing is written if it raises EtcdError.

    The caller ends ``write``.  The header's revision is the one after the transaction.
    """
    path = _Path(store, request)
    if not is_read_only(request):
        _check_path_puts(store, leases, path, [])
    _check_path_ranges(store, path)
    response = _run_path(store, write, path)
    response.header.revision = write.seen_revision
    return response


def count_ranges(response: pb.TxnResponse) -> int:
    """Count the ranges a transaction answered, at any depth."""
    count = 0
    for answer in response.responses:
        match answer.WhichOneof("response"):
            case "response_range":
                count += 1
            case "response_txn":
                count += count_ranges(answer.response_txn)
            case _:
                pass
    return count


def _check_path_puts(store: Store, leases: Container[int], path: _Path, swept: list[bytes]) -> None:
    """``swept`` holds the first keys of deletes without upper end that ran before."""
    for op, nested in zip(path.ops, path.nested, strict=True):
        if nested is not None:
            _check_path_puts(store, leases, nested, swept)
        elif op.HasField("request_delete_range"):
            if op.request_delete_range.range_end == b"\0":
                swept.append(op.request_delete_range.key)
        elif op.HasField("request_put"):
            put = op.request_put
            if put.ignore_value or put.ignore_lease:
                gone = any(put.key >= first for first in swept)
                if gone or store.get(put.key) is None:
                    raise EtcdError(*KEY_NOT_FOUND)
            if put.lease and put.lease not in leases:
                raise EtcdError(*LEASE_NOT_FOUND)


def _check_path_ranges(store: Store, path: _Path) -> None:
    for op, nested in zip(path.ops, path.nested, strict=True):
        if nested is not None:
            _check_path_ranges(store, nested)
        elif op.HasField("request_range"):
            revision = op.request_range.revision
            if revision > store.revision:
                raise EtcdError(*FUTURE_REVISION)
            if revision and revision < store.compacted:
                raise EtcdError(*COMPACTED)


def _run_path(store: Store, write: WriteTxn, path: _Path) -> pb.TxnResponse:
    response = pb.TxnResponse(header=pb.ResponseHeader(), succeeded=path.succeeded)
    for op, nested in zip(path.ops, path.nested, strict=True):
        answer = response.responses.add()
        if nested is not None:
            answer.response_txn.CopyFrom(_run_path(store, write, nested))
        elif op.HasField("request_range"):
            found = range_response(store, op.request_range, write.seen_revision)
            answer.response_range.CopyFrom(found)
        elif op.HasField("request_put"):
            answer.response_put.CopyFrom(apply_put(write, store, op.request_put))
        else:
            answer.response_delete_range.CopyFrom(apply_delete(write, op.request_delete_range))
    return response
