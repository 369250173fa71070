"""Lock and Election: the recipes of the core, run against this member."""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING, Any

from etcd.core import recipes
from etcd.core.errors import Code, EtcdError
from etcd.core.pb import rpc_pb2 as pb
from etcd.core.pb import v3election_pb2 as election
from etcd.core.pb import v3lock_pb2 as lock
from etcd.server.services import decode, grant_lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from etcd.core.watch import WatchStream
    from etcd.server.member import Member
    from etcd.server.streams import Reply, StreamCall


class RecipeCall:
    """One call of Lock or Election (``streams.StreamCall``)."""

    def __init__(
        self,
        path: str,
        request: type[Message],
        recipe: Callable[[Any], recipes.Recipe],
        member: Member,
        reply: Reply,
    ) -> None:
        self._path = path
        self._request = request
        self._recipe = recipe
        self._member = member
        self._reply = reply
        self._run: recipes.Recipe | None = None
        # While the recipe waits for events; batches that came before it asked for more.
        self._waiting = False
        self._batches: deque[pb.WatchResponse] = deque()
        self._watch: _Events | None = None

    def on_message(self, data: bytes) -> None:
        if self._run is not None:
            return
        request = decode(self._request, data)
        try:
            self._reply.admit(self._path, request)
        except EtcdError as error:
            raise _without_code(error) from None
        self._run = self._recipe(request)
        self._resume(None)

    def on_half_close(self) -> None:
        """The request has been taken; the answer is still to come."""

    def on_gone(self) -> None:
        self._end_watch()
        run, self._run = self._run, None
        if run is not None and self._waiting:
            self._waiting = False
            try:
                self._ask(run, run.throw(recipes.GoneError()))
                self._member.schedule_flush()
            except (recipes.GoneError, EtcdError, StopIteration):
                # The key of a client that left was never there, or went with its lease.
                pass

    def _ask(self, run: recipes.Recipe, effect: recipes.Effect) -> None:
        """Run the parting requests of a recipe whose client is gone."""
        while not isinstance(effect, recipes.Watch | recipes.More | recipes.Emit):
            effect = run.send(self._answer(effect))

    def _resume(self, answer: object) -> None:
        """Let the recipe go on until it waits or ends."""
        run = self._run
        assert run is not None, "a recipe that runs was begun"
        try:
            while True:
                match run.send(answer):
                    case recipes.Emit(response):
                        self._reply.send_durable(response.SerializeToString())
                        answer = None
                    case recipes.Watch(request):
                        self._begin_watch(request)
                        if self._wait():
                            return
                        answer = self._batches.popleft()
                    case recipes.More():
                        if self._wait():
                            return
                        answer = self._batches.popleft()
                    case request:
                        answer = self._answer(request)
        except StopIteration as end:
            self._run = None
            self._end_watch()
            self._reply.answer(end.value.SerializeToString())
        except EtcdError as error:
            self._run = None
            self._end_watch()
            self._reply.finish(_without_code(error))

    def _wait(self) -> bool:
        self._waiting = not self._batches
        return self._waiting

    def _answer(self, request: Message) -> Message:
        member = self._member
        match request:
            case pb.RangeRequest():
                return member.engine.range(request)
            case pb.TxnRequest():
                return member.engine.txn(request)
            case pb.DeleteRangeRequest():
                return member.engine.delete_range(request)
            case pb.LeaseGrantRequest():
                return grant_lease(member, request)
            case _:
                raise AssertionError(f"no recipe asks for {type(request).__name__}")

    # Watching ------------------------------------------------------------------------------

    def _begin_watch(self, request: pb.WatchCreateRequest) -> None:
        self._end_watch()
        self._watch = _Events(self._member, self._reply, request, self._on_batch)
        self._member.schedule_sync()

    def _end_watch(self) -> None:
        self._batches.clear()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _on_batch(self, batch: pb.WatchResponse) -> None:
        self._batches.append(batch)
        if self._waiting:
            self._waiting = False
            self._resume(self._batches.popleft())


def _without_code(error: EtcdError) -> EtcdError:
    """Return an error as etcd's own client, between these services and the store, passes it on."""
    return EtcdError(Code.UNKNOWN, error.message)


class _Events:
    """A watch of our own (``watch.Sink``); its batches arrive in a later tick of the loop."""

    def __init__(
        self,
        member: Member,
        reply: Reply,
        request: pb.WatchCreateRequest,
        on_batch: Callable[[pb.WatchResponse], None],
    ) -> None:
        self._member = member
        self._reply = reply
        self._on_batch = on_batch
        self._stream: WatchStream | None = member.hub.open(self)
        member.hub.receive(self._stream, pb.WatchRequest(create_request=request))

    def writable(self) -> bool:
        return self._reply.writable()

    def send(self, payload: bytes) -> None:
        batch = pb.WatchResponse.FromString(payload)
        if batch.events or batch.canceled:
            # Not now: the hub goes through its watchers while it sends.
            self._member.loop.call_soon(self._deliver, batch)

    def _deliver(self, batch: pb.WatchResponse) -> None:
        if self._stream is not None:
            self._on_batch(batch)

    def close(self) -> None:
        if self._stream is not None:
            self._member.hub.close(self._stream)
            self._stream = None


_LOCK, _ELECTION = "/v3lockpb.Lock/", "/v3electionpb.Election/"
_RECIPES: tuple[tuple[str, type[Message], Callable[[Any], recipes.Recipe]], ...] = (
    (_LOCK + "Lock", lock.LockRequest, recipes.lock_lock),
    (_LOCK + "Unlock", lock.UnlockRequest, recipes.lock_unlock),
    (_ELECTION + "Campaign", election.CampaignRequest, recipes.campaign),
    (_ELECTION + "Proclaim", election.ProclaimRequest, recipes.proclaim),
    (_ELECTION + "Leader", election.LeaderRequest, recipes.leader),
    (_ELECTION + "Observe", election.LeaderRequest, recipes.observe),
    (_ELECTION + "Resign", election.ResignRequest, recipes.resign),
)
RECIPE_CALLS: dict[str, Callable[[Member, Reply], StreamCall]] = {
    path: functools.partial(RecipeCall, path, request, recipe) for path, request, recipe in _RECIPES
}
