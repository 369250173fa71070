"""Random etcd requests, and what of the answers two servers must agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcd.core.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    import random

    from google.protobuf.message import Message

KEYS = (b"a", b"b", b"b\0", b"ba", b"bb", b"c", b"\xff", b"\xff\xff", b"\0", b"d/1")
ENDS = (b"", b"", b"", b"c", b"bb", b"\0", b"a", b"\xff\xff", b"e")
LEASES = (0, 0, 0, 7, 8, 9)


class Generator:
    """Draws requests; knows roughly which revision the store is at."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.revision = 1

    def any_revision(self) -> int:
        return self.rng.choice((0, 0, 0, -3, self.rng.randint(0, self.revision + 2)))

    def range(self) -> pb.RangeRequest:
        rng = self.rng
        request = pb.RangeRequest(
            key=rng.choice((*KEYS, b"")) if rng.random() < 0.1 else rng.choice(KEYS),
            range_end=rng.choice(ENDS),
            limit=rng.choice((0, 0, 0, 1, 2, 3, -1)),
            revision=self.any_revision(),
            keys_only=rng.random() < 0.1,
            count_only=rng.random() < 0.1,
            serializable=rng.random() < 0.3,
        )
        if rng.random() < 0.4:
            request.sort_order = rng.choice((0, 1, 2))
            request.sort_target = rng.choice((0, 1, 2, 3, 4))
        if rng.random() < 0.2:
            field = rng.choice(("min_mod", "max_mod", "min_create", "max_create"))
            setattr(request, f"{field}_revision", rng.randint(0, self.revision + 1))
        return request

    def put(self) -> pb.PutRequest:
        rng = self.rng
        return pb.PutRequest(
            key=b"" if rng.random() < 0.02 else rng.choice(KEYS),
            value=rng.choice((b"", b"x", b"yy", b"%d" % rng.randint(0, 99))),
            lease=rng.choice(LEASES),
            prev_kv=rng.random() < 0.3,
            ignore_value=rng.random() < 0.08,
            ignore_lease=rng.random() < 0.08,
        )

    def delete(self) -> pb.DeleteRangeRequest:
        rng = self.rng
        return pb.DeleteRangeRequest(
            key=b"" if rng.random() < 0.02 else rng.choice(KEYS),
            range_end=rng.choice(ENDS),
            prev_kv=rng.random() < 0.3,
        )

    def compare(self) -> pb.Compare:
        rng = self.rng
        compare = pb.Compare(
            result=rng.choice((0, 1, 2, 3)),
            key=rng.choice(KEYS),
            range_end=rng.choice(ENDS) if rng.random() < 0.3 else b"",
        )
        match rng.randrange(5):
            case 0:
                compare.target, compare.version = pb.Compare.VERSION, rng.randint(0, 3)
            case 1:
                compare.target = pb.Compare.CREATE
                compare.create_revision = rng.randint(0, self.revision)
            case 2:
                compare.target = pb.Compare.MOD
                compare.mod_revision = rng.randint(0, self.revision)
            case 3:
                compare.target, compare.value = pb.Compare.VALUE, rng.choice((b"", b"x", b"yy"))
            case _:
                compare.target, compare.lease = pb.Compare.LEASE, rng.choice(LEASES)
        return compare

    def op(self, depth: int) -> pb.RequestOp:
        roll = self.rng.random()
        if roll < 0.35:
            return pb.RequestOp(request_range=self.range())
        if roll < 0.7:
            return pb.RequestOp(request_put=self.put())
        if roll < 0.9 or depth == 0:
            return pb.RequestOp(request_delete_range=self.delete())
        return pb.RequestOp(request_txn=self.txn(depth - 1))

    def txn(self, depth: int = 2) -> pb.TxnRequest:
        rng = self.rng
        request = pb.TxnRequest(
            compare=[self.compare() for _ in range(rng.randrange(3))],
            success=[self.op(depth) for _ in range(rng.randrange(4))],
            failure=[self.op(depth) for _ in range(rng.randrange(4))],
        )
        # A real etcd up to 3.5 crashes on a put(ignore_*) behind a delete to "\0".
        return request if not _sweeps(request) else _without_ignore(request)

    def large_txn(self) -> pb.TxnRequest:
        """At the limit of 128 operations, or over it, flat or nested."""
        ranges = [pb.RequestOp(request_range=pb.RangeRequest(key=b"a"))]
        inner = pb.TxnRequest(success=ranges * self.rng.choice((0, 27, 28, 29)))
        ops = [*ranges * self.rng.choice((99, 127, 128)), pb.RequestOp(request_txn=inner)]
        return pb.TxnRequest(success=ops)

    def watch(self) -> pb.WatchCreateRequest:
        """A watch from a random revision, seldom a little in the future."""
        rng = self.rng
        start = rng.choice((0, rng.randint(1, self.revision), self.revision + rng.randint(0, 3)))
        return pb.WatchCreateRequest(
            key=rng.choice((*KEYS, b"", b"\0", b"\0")),
            range_end=rng.choice((b"", b"\0", b"\0", b"c", b"a")),
            start_revision=start,
            prev_kv=rng.random() < 0.5,
            filters=rng.choice(((), (), (0,), (1,), (0, 1))),
            fragment=rng.random() < 0.5,
            progress_notify=rng.random() < 0.3,
            watch_id=rng.choice((0, 0, 0, 0, 3, 5)),
        )

    def next(self) -> tuple[str, Message, type[Message]]:
        kv, lease = "/etcdserverpb.KV/", "/etcdserverpb.Lease/"
        roll = self.rng.random()
        if roll < 0.3:
            return kv + "Range", self.range(), pb.RangeResponse
        if roll < 0.6:
            return kv + "Put", self.put(), pb.PutResponse
        if roll < 0.7:
            return kv + "DeleteRange", self.delete(), pb.DeleteRangeResponse
        if roll < 0.93:
            return kv + "Txn", self.txn(), pb.TxnResponse
        if roll < 0.938:
            revision = max(0, self.revision - self.rng.randrange(30))
            return kv + "Compact", pb.CompactionRequest(revision=revision), pb.CompactionResponse
        if roll < 0.953:
            return kv + "Txn", self.large_txn(), pb.TxnResponse
        number = self.rng.choice(LEASES[3:])
        if roll < 0.97:
            grant = pb.LeaseGrantRequest(ID=number, TTL=self.rng.choice((500, 500, 10**10)))
            return lease + "LeaseGrant", grant, pb.LeaseGrantResponse
        if roll < 0.98:
            return lease + "LeaseRevoke", pb.LeaseRevokeRequest(ID=number), pb.LeaseRevokeResponse
        if roll < 0.985:
            return lease + "LeaseLeases", pb.LeaseLeasesRequest(), pb.LeaseLeasesResponse
        ttl = pb.LeaseTimeToLiveRequest(ID=number, keys=True)
        return lease + "LeaseTimeToLive", ttl, pb.LeaseTimeToLiveResponse


def _sweeps(request: pb.TxnRequest) -> bool:
    return any(
        (op.HasField("request_delete_range") and op.request_delete_range.range_end == b"\0")
        or (op.HasField("request_txn") and _sweeps(op.request_txn))
        for ops in (request.success, request.failure)
        for op in ops
    )


def _without_ignore(request: pb.TxnRequest) -> pb.TxnRequest:
    for ops in (request.success, request.failure):
        for op in ops:
            if op.HasField("request_put"):
                op.request_put.ignore_value = op.request_put.ignore_lease = False
            elif op.HasField("request_txn"):
                _without_ignore(op.request_txn)
    return request


def normal(message: Message) -> str:
    """A response without what differs between clusters, ties of a sort in one order."""
    copy = type(message).FromString(message.SerializeToString())
    strip(copy)
    return str(copy)


def strip(message: Message) -> None:
    for field, value in list(message.ListFields()):
        if isinstance(value, pb.ResponseHeader):
            value.cluster_id = value.member_id = value.raft_term = 0
        elif field.name == "TTL":
            message.ClearField("TTL")
        elif field.name == "keys":
            # A real etcd lists a lease's keys in no order.
            value.sort()
        elif field.name == "leases":
            # By expiry, which differs by what the calls took.
            value.sort(key=lambda lease: lease.ID)
        elif field.name == "responses":
            for op in value:
                strip(getattr(op, op.WhichOneof("response")))


def _tied(request: Message) -> bool:
    """Whether equal sort keys may come (and be cut) in any order."""
    return isinstance(request, pb.RangeRequest) and request.sort_target != pb.RangeRequest.KEY


def has_tied(request: Message) -> bool:
    if isinstance(request, pb.TxnRequest):
        return any(
            has_tied(getattr(op, op.WhichOneof("request")))
            for ops in (request.success, request.failure)
            for op in ops
        )
    return _tied(request)
