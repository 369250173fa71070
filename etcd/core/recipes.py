"""Locks and elections as etcd serves them: v3lockpb.Lock and v3electionpb.Election.

A recipe is a generator that thinks and asks: it yields requests of KV and Lease (and gets their
responses), a ``Watch`` or ``MORE`` (and gets a WatchResponse), or an ``Emit`` for the responses of
a stream, and returns its response.  When its client is gone while it waits, ``GoneError`` is thrown
in, so that it can take its key away.

Sources: etcd server/etcdserver/api/{v3lock/lock,v3election/election}.go,
client/v3/concurrency/{session,mutex,election,key}.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from etcd.core.errors import Code, EtcdError
from etcd.core.pb import kv_pb2
from etcd.core.pb import rpc_pb2 as pb
from etcd.core.pb import v3election_pb2 as election
from etcd.core.pb import v3lock_pb2 as lock

if TYPE_CHECKING:
    from collections.abc import Generator

    from google.protobuf.message import Message

    Effect: TypeAlias = "Message | Watch | More | Emit"
    # What comes back depends on the effect: a response message, a WatchResponse, or nothing.
    Recipe: TypeAlias = Generator[Effect, Any, Message]

# TTL of the lease a caller without one gets (concurrency/session.go defaultSessionTTL).
SESSION_TTL_S = 60


class Watch(NamedTuple):
    """Begin to watch, in place of any watch before; the answer is the first batch of events."""

    request: pb.WatchCreateRequest


class More(NamedTuple):
    """The next batch of the watch begun last."""


class Emit(NamedTuple):
    """Send a stream's response."""

    response: Message


class GoneError(Exception):
    """The client left."""


MORE: Final = More()


def _failed(text: str) -> EtcdError:
    return EtcdError(Code.UNKNOWN, text)


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all that begin with ``prefix`` (which ends in a slash)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _top_created(prefix: bytes, order: pb.RangeRequest.SortOrder.ValueType) -> pb.RangeRequest:
    return pb.RangeRequest(
        key=prefix,
        range_end=prefix_end(prefix),
        limit=1,
        sort_order=order,
        sort_target=pb.RangeRequest.CREATE,
    )


def _created_at(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(
        key=key, target=pb.Compare.CREATE, result=pb.Compare.EQUAL, create_revision=revision
    )


def _session(lease_id: int) -> Generator[Effect, Any, int]:
    """Return the caller's lease, or a new one that nobody keeps alive."""
    if lease_id:
        return lease_id
    granted = yield pb.LeaseGrantRequest(TTL=SESSION_TTL_S)
    assert isinstance(granted, pb.LeaseGrantResponse)
    return granted.ID


def _wait_for_deletion(prefix: bytes, upto: int) -> Generator[Effect, Any, None]:
    """Wait until no key of the prefix created at or before a revision is left."""
    request = _top_created(prefix, pb.RangeRequest.DESCEND)
    request.max_create_revision = upto
    while True:
        found = yield request
        if not found.kvs:
            return
        deletions = pb.WatchCreateRequest(
            key=found.kvs[0].key, start_revision=found.header.revision
        )
        batch = yield Watch(deletions)
        while not any(event.type == kv_pb2.Event.DELETE for event in batch.events):
            if batch.canceled:
                raise _failed(batch.cancel_reason or "lost watcher waiting for delete")
            batch = yield MORE


# Lock --------------------------------------------------------------------------------------


def lock_lock(request: lock.LockRequest) -> Recipe:
    """Lock.Lock: answer when no older key of the name is left."""
    lease = yield from _session(request.lease)
    prefix = request.name + b"/"
    key = prefix + b"%x" % lease
    get = pb.RequestOp(request_range=pb.RangeRequest(key=key))
    owner = pb.RequestOp(request_range=_top_created(prefix, pb.RangeRequest.ASCEND))
    put = pb.RequestOp(request_put=pb.PutRequest(key=key, lease=lease))
    taken = yield pb.TxnRequest(
        compare=[_created_at(key, 0)], success=[put, owner], failure=[get, owner]
    )
    mine = taken.header.revision
    if not taken.succeeded:
        mine = taken.responses[0].response_range.kvs[0].create_revision
    owners = taken.responses[1].response_range.kvs
    if not owners or owners[0].create_revision == mine:
        return lock.LockResponse(header=taken.header, key=key)
    try:
        yield from _wait_for_deletion(prefix, mine - 1)
    except (GoneError, EtcdError):
        yield pb.DeleteRangeRequest(key=key)
        raise
    found = yield pb.RangeRequest(key=key)
    if not found.kvs:
        raise _failed("mutex: session is expired")
    return lock.LockResponse(header=found.header, key=key)


def lock_unlock(request: lock.UnlockRequest) -> Recipe:
    """Lock.Unlock."""
    deleted = yield pb.DeleteRangeRequest(key=request.key)
    return lock.UnlockResponse(header=deleted.header)


# Election ----------------------------------------------------------------------------------


def _proclaim(key: bytes, revision: int, lease: int, value: bytes) -> Generator[Effect, Any, Any]:
    put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))
    done = yield pb.TxnRequest(compare=[_created_at(key, revision)], success=[put])
    if not done.succeeded:
        raise _failed("election: not leader")
    return done.header


def _resign(key: bytes, revision: int) -> Generator[Effect, Any, Any]:
    delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
    done = yield pb.TxnRequest(compare=[_created_at(key, revision)], success=[delete])
    return done.header


def campaign(request: election.CampaignRequest) -> Recipe:
    """Election.Campaign: answer when the candidate leads."""
    lease = yield from _session(request.lease)
    prefix = request.name + b"/"
    key = prefix + b"%x" % lease
    put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=request.value, lease=lease))
    get = pb.RequestOp(request_range=pb.RangeRequest(key=key))
    stood = yield pb.TxnRequest(compare=[_created_at(key, 0)], success=[put], failure=[get])
    revision = stood.header.revision
    if not stood.succeeded:
        kv = stood.responses[0].response_range.kvs[0]
        revision = kv.create_revision
        if kv.value != request.value:
            try:
                yield from _proclaim(key, revision, lease, request.value)
            except EtcdError:
                yield from _resign(key, revision)
                raise
    try:
        yield from _wait_for_deletion(prefix, revision - 1)
    except GoneError:
        yield from _resign(key, revision)
        raise
    leader = election.LeaderKey(name=request.name, key=key, rev=revision, lease=lease)
    return election.CampaignResponse(header=stood.header, leader=leader)


def _leader_key(request: election.ProclaimRequest | election.ResignRequest) -> election.LeaderKey:
    if not request.HasField("leader"):
        raise _failed('"leader" field must be provided')
    return request.leader


def proclaim(request: election.ProclaimRequest) -> Recipe:
    """Election.Proclaim: the leader's new value."""
    leader = _leader_key(request)
    lease = yield from _session(leader.lease)
    header = yield from _proclaim(leader.key, leader.rev, lease, request.value)
    return election.ProclaimResponse(header=header)


def resign(request: election.ResignRequest) -> Recipe:
    """Election.Resign: nothing happens if another leads by now."""
    leader = _leader_key(request)
    yield from _session(leader.lease)
    header = yield from _resign(leader.key, leader.rev)
    return election.ResignResponse(header=header)


def leader(request: election.LeaderRequest) -> Recipe:
    """Election.Leader."""
    found = yield _top_created(request.name + b"/", pb.RangeRequest.ASCEND)
    if not found.kvs:
        raise _failed("election: no leader")
    return election.LeaderResponse(header=found.header, kv=found.kvs[0])


def observe(request: election.LeaderRequest) -> Recipe:
    """Election.Observe: every leader and every value one proclaims, from now on; never ends."""
    prefix = request.name + b"/"
    while True:
        found = yield _top_created(prefix, pb.RangeRequest.ASCEND)
        header = pb.ResponseHeader()
        header.CopyFrom(found.header)
        if found.kvs:
            kv = found.kvs[0]
        else:
            kv = yield from _first_put(prefix, header)
        yield Emit(election.LeaderResponse(header=header, kv=kv))
        batch = yield Watch(pb.WatchCreateRequest(key=kv.key, start_revision=header.revision + 1))
        while (yield from _emit_until_deleted(_alive(batch))):
            batch = yield MORE


def _alive(batch: pb.WatchResponse) -> pb.WatchResponse:
    if batch.canceled:
        raise _failed("election: observe closed early")
    return batch


def _first_put(prefix: bytes, header: pb.ResponseHeader) -> Generator[Effect, Any, Any]:
    """Wait for a candidate; ``header`` gets its revision."""
    batch = yield Watch(
        pb.WatchCreateRequest(
            key=prefix, range_end=prefix_end(prefix), start_revision=header.revision
        )
    )
    while True:
        for event in _alive(batch).events:
            if event.type == kv_pb2.Event.PUT:
                header.revision = event.kv.mod_revision
                return event.kv
        batch = yield MORE


def _emit_until_deleted(batch: pb.WatchResponse) -> Generator[Effect, Any, bool]:
    for event in batch.events:
        if event.type == kv_pb2.Event.DELETE:
            return False
        header = pb.ResponseHeader()
        header.CopyFrom(batch.header)
        header.revision = event.kv.mod_revision
        yield Emit(election.LeaderResponse(header=header, kv=event.kv))
    return True
