"""What the client takes and gives: results, transaction parts, events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from etcd.core.mvcc import KeyValue
from etcd.core.pb import kv_pb2
from etcd.core.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

SortOrder = Literal["none", "ascend", "descend"]
SortTarget = Literal["key", "version", "create", "mod", "value"]


def prefix_end(prefix: bytes) -> bytes:
    """Return the range_end that makes a range of all keys with a prefix."""
    for at in range(len(prefix) - 1, -1, -1):
        if prefix[at] < 0xFF:
            return prefix[:at] + bytes((prefix[at] + 1,))
    return b"\0"


def bounds(key: bytes, prefix: bool, range_end: bytes | None) -> tuple[bytes, bytes]:
    """Return (key, range_end) of a request; the empty prefix means all keys."""
    if not prefix:
        return key, range_end or b""
    return key or b"\0", prefix_end(key)


# Results -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RangeResult:
    """``count`` is all matches, ``more`` whether the limit cut, ``revision`` the store's."""

    kvs: tuple[KeyValue, ...]
    count: int
    more: bool
    revision: int


@dataclass(frozen=True, slots=True)
class PutResult:
    revision: int
    prev_kv: KeyValue | None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    deleted: int
    prev_kvs: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class TxnResult:
    """``responses`` answer the operations of the branch that ran, in order."""

    succeeded: bool
    responses: tuple[RangeResult | PutResult | DeleteResult | TxnResult, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    id: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """``ttl_s`` is -1 for a lease that does not exist."""

    id: int
    ttl_s: int
    granted_ttl_s: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    version: str
    db_size: int
    leader: int
    member_id: int
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """A change; a DELETE's ``kv`` has only key and mod_revision."""

    kind: Literal["PUT", "DELETE"]
    kv: KeyValue
    prev_kv: KeyValue | None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Events in order; ``revision`` has been delivered completely.  No events: progress."""

    events: tuple[Event, ...]
    revision: int


# Transactions --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Get:
    key: bytes
    prefix: bool = False
    range_end: bytes | None = None
    limit: int = 0
    revision: int = 0
    keys_only: bool = False
    count_only: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    key: bytes
    value: bytes
    lease: int = 0
    prev_kv: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    key: bytes
    prefix: bool = False
    range_end: bytes | None = None
    prev_kv: bool = False


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction, also inside another one."""

    compare: Sequence[Compare] = ()
    success: Sequence[Op] = ()
    failure: Sequence[Op] = ()


Op = Get | Put | Delete | Txn


@dataclass(frozen=True, slots=True)
class Compare:
    """A finished comparison; made by ``version(key) == 0`` and the like."""

    message: pb.Compare


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """The left side of a comparison; ``==``, ``!=``, ``<`` and ``>`` give a ``Compare``."""

    target: pb.Compare.CompareTarget.ValueType
    key: bytes
    range_end: bytes = b""

    def _compare(self, result: pb.Compare.CompareResult.ValueType, want: object) -> Compare:
        message = pb.Compare(
            result=result, target=self.target, key=self.key, range_end=self.range_end
        )
        if self.target == pb.Compare.VALUE:
            if not isinstance(want, bytes):
                raise TypeError("a value is compared with bytes")
            message.value = want
        elif not isinstance(want, int):
            raise TypeError("revisions, versions and leases are compared with an int")
        elif self.target == pb.Compare.VERSION:
            message.version = want
        elif self.target == pb.Compare.CREATE:
            message.create_revision = want
        elif self.target == pb.Compare.MOD:
            message.mod_revision = want
        else:
            message.lease = want
        return Compare(message)

    def __eq__(self, want: object) -> Compare:  # type: ignore[override]  # builds a comparison
        return self._compare(pb.Compare.EQUAL, want)

    def __ne__(self, want: object) -> Compare:  # type: ignore[override]  # builds a comparison
        return self._compare(pb.Compare.NOT_EQUAL, want)

    def __lt__(self, want: bytes | int) -> Compare:
        return self._compare(pb.Compare.LESS, want)

    def __gt__(self, want: bytes | int) -> Compare:
        return self._compare(pb.Compare.GREATER, want)

    __hash__ = None  # type: ignore[assignment]  # equality builds a comparison


def version(key: bytes, range_end: bytes = b"") -> Operand:
    """The number of writes since the key was created; 0: it does not exist."""
    return Operand(pb.Compare.VERSION, key, range_end)


def mod_revision(key: bytes, range_end: bytes = b"") -> Operand:
    """The revision of the key's last change; 0: it does not exist."""
    return Operand(pb.Compare.MOD, key, range_end)


def create_revision(key: bytes, range_end: bytes = b"") -> Operand:
    """The revision that created the key; 0: it does not exist."""
    return Operand(pb.Compare.CREATE, key, range_end)


def value(key: bytes, range_end: bytes = b"") -> Operand:
    """The key's value; no comparison with a missing key holds."""
    return Operand(pb.Compare.VALUE, key, range_end)


def lease_of(key: bytes, range_end: bytes = b"") -> Operand:
    """The key's lease; 0: none."""
    return Operand(pb.Compare.LEASE, key, range_end)


# Messages --------------------------------------------------------------------------------------


def txn_message(txn: Txn) -> pb.TxnRequest:
    """Return a transaction's request."""
    return pb.TxnRequest(
        compare=[compare.message for compare in txn.compare],
        success=[_op_message(op) for op in txn.success],
        failure=[_op_message(op) for op in txn.failure],
    )


def _op_message(op: Op) -> pb.RequestOp:
    match op:
        case Get():
            key, end = bounds(op.key, op.prefix, op.range_end)
            return pb.RequestOp(
                request_range=pb.RangeRequest(
                    key=key,
                    range_end=end,
                    limit=op.limit,
                    revision=op.revision,
                    keys_only=op.keys_only,
                    count_only=op.count_only,
                )
            )
        case Put():
            return pb.RequestOp(
                request_put=pb.PutRequest(
                    key=op.key, value=op.value, lease=op.lease, prev_kv=op.prev_kv
                )
            )
        case Delete():
            key, end = bounds(op.key, op.prefix, op.range_end)
            return pb.RequestOp(
                request_delete_range=pb.DeleteRangeRequest(
                    key=key, range_end=end, prev_kv=op.prev_kv
                )
            )
        case Txn():
            return pb.RequestOp(request_txn=txn_message(op))


def kv_from(message: kv_pb2.KeyValue) -> KeyValue:
    """Return a response's KeyValue as ours."""
    return KeyValue(
        message.key,
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


def range_result(message: pb.RangeResponse) -> RangeResult:
    kvs = tuple(kv_from(kv) for kv in message.kvs)
    return RangeResult(kvs, message.count, message.more, message.header.revision)


def put_result(message: pb.PutResponse) -> PutResult:
    prev = kv_from(message.prev_kv) if message.HasField("prev_kv") else None
    return PutResult(message.header.revision, prev)


def delete_result(message: pb.DeleteRangeResponse) -> DeleteResult:
    prev = tuple(kv_from(kv) for kv in message.prev_kvs)
    return DeleteResult(message.deleted, prev, message.header.revision)


def txn_result(message: pb.TxnResponse) -> TxnResult:
    responses: list[RangeResult | PutResult | DeleteResult | TxnResult] = []
    for op in message.responses:
        match op.WhichOneof("response"):
            case "response_range":
                responses.append(range_result(op.response_range))
            case "response_put":
                responses.append(put_result(op.response_put))
            case "response_delete_range":
                responses.append(delete_result(op.response_delete_range))
            case _:
                responses.append(txn_result(op.response_txn))
    return TxnResult(message.succeeded, tuple(responses), message.header.revision)


def event_from(message: kv_pb2.Event) -> Event:
    prev = kv_from(message.prev_kv) if message.HasField("prev_kv") else None
    kind: Literal["PUT", "DELETE"] = "PUT" if message.type == kv_pb2.Event.PUT else "DELETE"
    return Event(kind, kv_from(message.kv), prev)
