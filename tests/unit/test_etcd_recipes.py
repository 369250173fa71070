"""Lock and election, driven against an engine without a server."""

from __future__ import annotations

from typing import Any

import pytest

from etcd.core import recipes
from etcd.core.engine import Engine
from etcd.core.errors import EtcdError
from etcd.core.pb import kv_pb2
from etcd.core.pb import rpc_pb2 as pb
from etcd.core.pb import v3election_pb2 as election
from etcd.core.pb import v3lock_pb2 as lock


class Caller:
    """Runs one recipe as far as it goes; ``waiting`` is what it watches, ``emitted`` its stream."""

    def __init__(self, engine: Engine, recipe: recipes.Recipe) -> None:
        self._engine = engine
        self._recipe = recipe
        self.waiting: bytes | None = None
        self.emitted: list[Any] = []
        self.answer: Any = None
        self._go(None)

    def _go(self, answer: object) -> None:
        try:
            while True:
                match self._recipe.send(answer):
                    case recipes.Watch(request):
                        self.waiting = request.key
                        return
                    case recipes.More():
                        return
                    case recipes.Emit(response):
                        self.emitted.append(response)
                        answer = None
                    case request:
                        answer = self.ask(request)
        except StopIteration as end:
            self.answer = end.value

    def ask(self, request: Any) -> Any:
        match request:
            case pb.RangeRequest():
                return self._engine.range(request)
            case pb.TxnRequest():
                return self._engine.txn(request)
            case pb.DeleteRangeRequest():
                return self._engine.delete_range(request)
            case _:
                return self._engine.lease_grant(99, request.TTL, now=0.0)

    def event(self, kind: kv_pb2.Event.EventType.ValueType, **kv: Any) -> None:
        event = kv_pb2.Event(type=kind, kv=kv_pb2.KeyValue(**kv))
        self._go(pb.WatchResponse(events=[event]))

    def leave(self) -> None:
        with pytest.raises(recipes.GoneError):
            self.ask_on(self._recipe.throw(recipes.GoneError()))

    def ask_on(self, request: Any) -> None:
        while True:
            request = self._recipe.send(self.ask(request))


@pytest.fixture
def engine() -> Engine:
    engine = Engine(1, 2)
    for lease in (1, 2, 3):
        engine.lease_grant(lease, 60, now=0.0)
    return engine


def keys(engine: Engine) -> list[bytes]:
    found = engine.store.range(b"\0", b"\0").kvs
    return [kv.key for kv in found]


def locker(engine: Engine, lease: int) -> Caller:
    return Caller(engine, recipes.lock_lock(lock.LockRequest(name=b"n", lease=lease)))


def test_lockers_are_served_in_the_order_they_came(engine: Engine) -> None:
    first, second, third = (locker(engine, lease) for lease in (1, 3, 2))
    assert first.answer.key == b"n/1"
    # Each waits for the one before it, not for the owner.
    assert (second.waiting, third.waiting) == (b"n/1", b"n/3")
    engine.lease_revoke(1)
    second.event(kv_pb2.Event.DELETE, key=b"n/1")
    assert second.answer.key == b"n/3"
    assert third.answer is None


def test_one_that_leaves_hands_its_place_on(engine: Engine) -> None:
    _, second, third = (locker(engine, lease) for lease in (1, 2, 3))
    second.leave()
    assert keys(engine) == [b"n/1", b"n/3"]
    third.event(kv_pb2.Event.DELETE, key=b"n/2")
    assert third.waiting == b"n/1"


def test_an_overwritten_key_is_still_held(engine: Engine) -> None:
    _, second = (locker(engine, lease) for lease in (1, 2))
    engine.put(pb.PutRequest(key=b"n/1", value=b"x"))
    second.event(kv_pb2.Event.PUT, key=b"n/1")
    assert second.answer is None


def test_a_caller_without_a_lease_gets_one_of_a_minute(engine: Engine) -> None:
    assert locker(engine, 0).answer.key == b"n/63"
    lease = engine.leases.get(99)
    assert lease is not None
    assert lease.ttl_s == 60


def test_the_same_lease_locks_twice(engine: Engine) -> None:
    assert locker(engine, 1).answer == locker(engine, 1).answer


def campaign(engine: Engine, lease: int, value: bytes) -> Caller:
    request = election.CampaignRequest(name=b"e", lease=lease, value=value)
    return Caller(engine, recipes.campaign(request))


def test_a_candidate_who_stands_again_proclaims_the_new_value(engine: Engine) -> None:
    first = campaign(engine, 1, b"a").answer
    again = campaign(engine, 1, b"b").answer
    assert again.leader == first.leader
    asked = Caller(engine, recipes.leader(election.LeaderRequest(name=b"e")))
    assert asked.answer.kv.value == b"b"


def test_a_candidate_who_leaves_resigns(engine: Engine) -> None:
    campaign(engine, 1, b"a")
    campaign(engine, 2, b"b").leave()
    assert keys(engine) == [b"e/1"]


def test_who_leads_no_more_cannot_proclaim(engine: Engine) -> None:
    leader = campaign(engine, 1, b"a").answer.leader
    engine.lease_revoke(1)
    with pytest.raises(EtcdError, match="election: not leader"):
        Caller(engine, recipes.proclaim(election.ProclaimRequest(leader=leader, value=b"x")))


def test_an_observer_waits_for_the_first_leader_and_follows(engine: Engine) -> None:
    observer = Caller(engine, recipes.observe(election.LeaderRequest(name=b"e")))
    assert observer.waiting == b"e/"
    campaign(engine, 1, b"a")
    observer.event(kv_pb2.Event.PUT, key=b"e/1", value=b"a", mod_revision=2)
    assert (observer.emitted[0].kv.value, observer.waiting) == (b"a", b"e/1")
    observer.event(kv_pb2.Event.PUT, key=b"e/1", value=b"b", mod_revision=3)
    assert (observer.emitted[1].kv.value, observer.emitted[1].header.revision) == (b"b", 3)
    campaign(engine, 2, b"c")
    engine.lease_revoke(1)
    observer.event(kv_pb2.Event.DELETE, key=b"e/1", mod_revision=5)
    assert (observer.emitted[2].kv.value, observer.waiting) == (b"c", b"e/2")
