"""A watch goes on where it was, whatever a server says; each answer here is scripted."""

from __future__ import annotations

import random

import pytest

from etcd.client import Code, EtcdError
from etcd.client.watch import Watch
from etcd.core.pb import kv_pb2
from etcd.core.pb import rpc_pb2 as pb

NO_LEADER = EtcdError(Code.UNAVAILABLE, "etcdserver: no leader")


def created(revision: int) -> pb.WatchResponse:
    return pb.WatchResponse(header=pb.ResponseHeader(revision=revision), created=True)


def progress(revision: int) -> pb.WatchResponse:
    return pb.WatchResponse(header=pb.ResponseHeader(revision=revision))


def put(revision: int) -> pb.WatchResponse:
    event = kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"k", mod_revision=revision))
    return pb.WatchResponse(header=pb.ResponseHeader(revision=revision), events=[event])


class Stream:
    """What one server says, in order; an error ends it."""

    token = ()

    def __init__(self, *answers: pb.WatchResponse | EtcdError) -> None:
        self.connection = object()
        self._answers = list(answers)
        self.asked: list[pb.WatchRequest] = []
        self.cancelled = False

    def send(self, message: bytes) -> None:
        self.asked.append(pb.WatchRequest.FromString(message))

    async def receive(self) -> bytes | None:
        answer = self._answers.pop(0)
        if isinstance(answer, EtcdError):
            raise answer
        return answer.SerializeToString()

    def cancel(self) -> None:
        self.cancelled = True


class Channel:
    """Streams in the order they are opened."""

    def __init__(self, *streams: Stream) -> None:
        self.rng = random.Random(1)
        self._streams = list(streams)
        self.suspected: list[tuple[object, str]] = []

    async def open(self, path: str, *, leader: bool) -> Stream:
        assert (path, leader) == ("/etcdserverpb.Watch/Watch", True)
        return self._streams.pop(0)

    def suspect(self, connection: object, error: EtcdError) -> None:
        self.suspected.append((connection, error.message))

    def renews(self, used: object, text: str) -> bool:
        return False


def watch(*streams: Stream) -> tuple[Watch, Channel]:
    channel = Channel(*streams)
    return Watch(channel, pb.WatchCreateRequest(key=b"k")), channel  # type: ignore[arg-type]


async def test_a_new_stream_goes_on_after_what_was_delivered() -> None:
    first = Stream(created(10), put(11), progress(15), NO_LEADER)
    second = Stream(created(20), put(16))
    batches, channel = watch(first, second)
    async with batches:
        assert batches.revision == 10
        assert [(await anext(batches)).revision for _ in range(3)] == [11, 15, 16]
    asked = [stream.asked[0].create_request.start_revision for stream in (first, second)]
    assert asked == [0, 16]
    # The server that lost its cluster is told of, so that later calls go elsewhere.
    assert channel.suspected == [(first.connection, NO_LEADER.message)]
    assert first.cancelled
    assert second.cancelled


async def test_a_watch_nothing_was_delivered_of_goes_on_from_where_it_began() -> None:
    first, second = Stream(created(10), NO_LEADER), Stream(created(20), put(12))
    batches, _ = watch(first, second)
    async with batches:
        assert (await anext(batches)).revision == 12
    assert second.asked[0].create_request.start_revision == 11


async def test_progress_of_a_server_that_lags_takes_nothing_back() -> None:
    stream = Stream(created(10), put(14), progress(12), put(15))
    batches, _ = watch(stream)
    async with batches:
        assert [(await anext(batches)).revision for _ in range(2)] == [14, 15]


async def test_a_watch_that_is_refused_ends_with_the_servers_reason() -> None:
    refused = pb.WatchResponse(canceled=True, cancel_reason="etcdserver: permission denied")
    batches, _ = watch(Stream(created(10), refused))
    async with batches:
        with pytest.raises(EtcdError, match="permission denied") as raised:
            await anext(batches)
    assert raised.value.code is Code.PERMISSION_DENIED


async def test_an_error_that_no_other_stream_mends_is_raised() -> None:
    batches, _ = watch(Stream(created(10), EtcdError(Code.INVALID_ARGUMENT, "no")))
    async with batches:
        with pytest.raises(EtcdError, match="no"):
            await anext(batches)
