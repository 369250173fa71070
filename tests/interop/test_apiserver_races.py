"""What the API server answers when two clients, or a client and etcd, are at work at once."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from agents.apiserver import watching
from agents.apiserver.cache import Cache, Entry, Event, object_key
from agents.apiserver.config import MAX_WATCH_BACKLOG
from agents.apiserver.forms import OBJECT_KINDS, Form
from agents.apiserver.negotiate import accepted
from agents.apiserver.objects import Objects
from agents.apiserver.services import ServiceAddresses
from agents.apiserver.watching import Watcher, WatchRequest
from emulator.apimachinery.lifecycle import DeleteOptions
from emulator.apimachinery.resources import Registry
from emulator.apimachinery.status import StatusError, unavailable
from emulator.runtime.rng import seeded_rng
from tests.api_servers import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agents.apiserver.store import Written

MAPS = Registry().get("", "v1", "configmaps")
KEY = object_key("configmaps", "default", "m")


class RacingStore(MemoryStore):
    """A store in which somebody else writes just before the next removal."""

    def __init__(self) -> None:
        super().__init__()
        self.overtake: Any = None

    async def remove(self, key: bytes, revision: int) -> Written:
        if self.overtake is not None:
            self.overtake, overtake = None, self.overtake
            overtake()
        return await super().remove(key, revision)


class Setup:
    """Objects over a store, with the cache that follows it."""

    def __init__(self) -> None:
        self.store = RacingStore()
        self.cache = Cache(self.store, logging.getLogger("test"))
        rng = seeded_rng(1, "races")
        self.addresses = ServiceAddresses("10.96.0.0/12", (30000, 32767), rng)
        self.objects = Objects(self.cache, self.store, self.addresses, lambda: 1.7e9, rng)


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    follower = asyncio.create_task(made.cache.run(), name="cache")
    await made.cache.loaded.wait()
    await made.objects.create(
        Registry().get("", "v1", "namespaces"), {"metadata": {"name": "default"}}, ""
    )
    yield made
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)


def with_data(value: bytes, text: str) -> bytes:
    obj = json.loads(value)
    obj["data"] = {"a": text}
    return json.dumps(obj).encode()


async def test_the_last_finalizer_goes_even_if_somebody_writes_in_between(setup: Setup) -> None:
    meta = {"name": "m", "finalizers": ["x.example/y"]}
    await setup.objects.create(MAPS, {"metadata": meta}, "default")
    await setup.objects.delete(MAPS, "default", "m", DeleteOptions())

    def write() -> None:
        setup.store._put(KEY, with_data(setup.store.data[KEY].value, "between"))

    setup.store.overtake = write

    def release(old: dict[str, Any]) -> dict[str, Any]:
        old["metadata"].pop("finalizers")
        return old

    await setup.objects.modify(MAPS, "default", "m", release)
    assert KEY not in setup.store.data


async def test_an_object_others_removed_is_not_found_and_holds_nobody_up(setup: Setup) -> None:
    """The newest revision of etcd may be of a key this server does not follow."""
    await setup.objects.create(MAPS, {"metadata": {"name": "m"}}, "default")

    def remove() -> None:
        del setup.store.data[KEY]
        setup.store.revision += 2

    setup.store.overtake = remove
    with pytest.raises(StatusError) as caught:
        await setup.objects.delete(MAPS, "default", "m", DeleteOptions())
    assert caught.value.code == 404
    async with asyncio.timeout(30):
        await setup.cache.fresh()


def entry(revision: int, **labels: str) -> Entry:
    obj = {"metadata": {"name": "m", "namespace": "default", "labels": labels}}
    return Entry("default/m", json.dumps(obj).encode(), revision)


def test_what_leaves_a_selection_is_shown_as_it_was_last_seen() -> None:
    """Cacher: the previous object under the revision of the change."""
    watcher = Watcher(lambda one: one.obj["metadata"]["labels"].get("app") == "a")
    watcher.deliver(Event(entry(5, app="a"), entry(6, app="b"), 6))
    ((kind, event),) = watcher.queue
    assert kind == "DELETED"
    shown = event.shown(kind).obj["metadata"]
    assert (shown["labels"], shown["resourceVersion"]) == ({"app": "a"}, "6")


def test_a_watcher_that_lost_an_event_is_given_no_later_ones() -> None:
    watcher = Watcher(lambda _: True)
    for revision in range(MAX_WATCH_BACKLOG + 1):
        watcher.deliver(Event(None, entry(revision), revision))
    assert watcher.lost
    watcher.queue.clear()
    watcher.deliver(Event(None, entry(99_999), 99_999))
    assert not watcher.queue


class Lines:
    """A response and the form of its lines: ``word revision``."""

    def __init__(self) -> None:
        self.words: list[tuple[str, int]] = []
        self.transport = object()

    async def write(self, data: bytes) -> None:
        words = data.split()
        self.words += [
            (kind.decode(), int(number))
            for kind, number in zip(words[::2], words[1::2], strict=True)
        ]
        await asyncio.sleep(0)

    def line(self, kind: str, event: Event) -> bytes:
        return b"%b %d\n" % (kind.encode(), event.revision)

    def bookmark(self, revision: int, annotations: dict[str, str] | None) -> bytes:
        return b"BOOKMARK %d\n" % revision


async def test_a_bookmark_never_overtakes_an_event(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time may be up in the same turn of the loop in which a change comes."""
    monkeypatch.setattr(watching, "BOOKMARK_PERIOD_S", 0.0)
    lines, loop = Lines(), asyncio.get_running_loop()
    asked = WatchRequest({"allowWatchBookmarks": "true"}, seeded_rng(1, "bookmarks"))
    asked.timeout_s = 0.2
    watcher = Watcher(lambda _: True)

    def change(revision: int, turns: int) -> None:
        if turns:
            loop.call_soon(change, revision, turns - 1)
            return
        setup.cache.revision = revision
        watcher.deliver(Event(None, entry(revision), revision))
        if revision < 1300:
            loop.call_soon(change, revision + 1, revision % 5)

    change(1001, 0)
    stream: Any = lines
    await watching._pump(stream, stream, watcher, setup.cache, asked, stream)
    order = [(revision, kind == "BOOKMARK") for kind, revision in lines.words]
    assert {kind for kind, _ in lines.words} == {"ADDED", "BOOKMARK"}
    assert order == sorted(order)


async def test_a_watch_that_fell_behind_is_told_so_and_ends(setup: Setup) -> None:
    written: list[bytes] = []

    class Stream:
        async def write(self, data: bytes) -> None:
            written.append(data)

    stream: Any = Stream()
    watcher = Watcher(lambda _: True)
    watcher.deliver(None)
    asked = WatchRequest({"timeoutSeconds": "60"}, seeded_rng(1, "lost"))
    async with asyncio.timeout(30):
        await watching._pump(stream, stream, watcher, setup.cache, asked, stream)
    (line,) = written
    told = json.loads(line)
    assert (told["type"], told["object"]["code"], told["object"]["reason"]) == (
        "ERROR",
        410,
        "Expired",
    )


async def test_a_client_that_leaves_is_soon_forgotten(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing happens that could show that nobody reads any more."""
    monkeypatch.setattr(watching, "WATCH_LIVENESS_S", 0.01)
    bucket = setup.cache.bucket(MAPS.directory)

    async def watch(request: web.Request) -> web.StreamResponse:
        form = Form(MAPS, accepted("application/json", kinds=OBJECT_KINDS), {}, lambda: 1.7e9)
        asked = WatchRequest({}, seeded_rng(1, "leaving"))
        args = (request, setup.cache, MAPS.directory, asked, form)
        return await watching.serve(*args, lambda _: True)

    app = web.Application()
    app.router.add_get("/", watch)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        async with asyncio.timeout(10):
            async with aiohttp.ClientSession() as http, http.get(url) as answer:
                assert answer.status == 200
                assert len(bucket.watchers) == 1
            while bucket.watchers:
                await asyncio.sleep(0.001)
    finally:
        await runner.cleanup()


async def test_an_address_of_a_write_that_was_cut_off_is_not_given_twice(setup: Setup) -> None:
    """The write was applied, but its answer got lost: the address had been given back."""
    services = Registry().get("", "v1", "services")
    spec = {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}
    create = setup.store.create

    async def cut_off(key: bytes, value: bytes, ttl_s: int = 0) -> Written:
        await create(key, value, ttl_s)
        raise unavailable("etcd does not answer")

    setup.store.create = cut_off  # type: ignore[method-assign]
    with pytest.raises(StatusError, match="does not answer"):
        await setup.objects.create(services, {"metadata": {"name": "a"}, "spec": spec}, "default")
    setup.store.create = create  # type: ignore[method-assign]
    await setup.cache.reach(setup.store.revision)
    stored = [entry.obj for entry in setup.objects.bucket(services).entries.values()]
    for _ in range(2):
        assert setup.addresses.adopt(stored) == []
    with pytest.raises(StatusError, match="already allocated"):
        await setup.objects.create(services, {"metadata": {"name": "b"}, "spec": spec}, "default")
