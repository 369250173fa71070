"""The v2 store's corners: times, depth, slow watchers, restarts, a full disk's refusal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import aiohttp
import pytest

from etcd.core.v2 import render
from etcd.core.v2.errors import V2Error
from etcd.core.v2.form import int64
from etcd.core.v2.hub import HISTORY_EVENTS, WATCHER_EVENTS
from etcd.core.v2.paths import clean
from etcd.core.v2.request import Change, parse
from etcd.core.v2.store import SECOND_NS, Op, Operation, V2Store
from tests.etcd_servers import disk_etcd

if TYPE_CHECKING:
    from pathlib import Path

    from etcd.core.v2.hub import Event

NOW_NS = 1_700_000_000 * SECOND_NS


class Listener:
    def __init__(self) -> None:
        self.events = 0
        self.cleared = False

    def on_event(self) -> None:
        self.events += 1

    def on_cleared(self) -> None:
        self.cleared = True


def run(store: V2Store, method: str, path: str, form: str = "", now_ns: int = NOW_NS) -> Event:
    asked = parse(method, path, [form.encode()], now_ns=now_ns)
    assert isinstance(asked, Change)
    event = store.apply(asked.operation)
    assert event is not None
    store.hub.tell(store.take_notices())
    return event


def test_a_ttl_beyond_64_bits_wraps_as_in_go() -> None:
    store = V2Store()
    assert int64(1 << 63) == -(1 << 63)
    # 99999999999 s overflow into the time before 2000, where a set never expires ...
    assert run(store, "PUT", "/a", "ttl=99999999999").node.expiration_ns == 0
    # ... but an update takes it literally and the key is gone at the next look.
    assert run(store, "PUT", "/a", "ttl=99999999999&prevExist=true").node.ttl_s < 0
    store.apply(Operation(Op.EXPIRE, NOW_NS))
    with pytest.raises(V2Error, match="Key not found"):
        store.get("/a")


def test_ttl_is_rounded_up_and_disappears_with_an_update_without_one() -> None:
    store = V2Store()
    assert run(store, "PUT", "/a", "ttl=5").node.ttl_s == 5
    later = NOW_NS + SECOND_NS // 2
    node = store.get("/a").extern(later)
    assert (node.ttl_s, node.expiration_ns) == (5, NOW_NS + 5 * SECOND_NS)
    assert run(store, "PUT", "/a", "value=x&prevExist=true", later).node.ttl_s == 0
    assert store.next_expiration_ns() is None


def test_times_are_written_as_go_writes_them() -> None:
    assert render.rfc3339_nano(0) == "1970-01-01T00:00:00Z"
    assert render.rfc3339_nano(NOW_NS + 120_000_000) == "2023-11-14T22:13:20.12Z"
    assert render.rfc3339_nano(951_782_400 * SECOND_NS + 1) == "2000-02-29T00:00:00.000000001Z"


def test_a_very_deep_tree_is_listed_and_removed() -> None:
    store = V2Store()
    run(store, "PUT", "/d" * 3000, "value=x")
    text = render.get_json(store.root, recursive=True, in_order=True, now_ns=NOW_NS)
    assert text.count('"dir":true') == 3000
    run(store, "DELETE", "/d", "recursive=true")
    assert store.root.children == {}


def test_a_stream_that_does_not_read_is_ended() -> None:
    store = V2Store()
    listener = Listener()
    store.watch(listener, "/", recursive=True, stream=True, since=0)
    for _ in range(WATCHER_EVENTS + 1):
        run(store, "PUT", "/a")
    assert (listener.events, listener.cleared, store.hub.count) == (WATCHER_EVENTS, True, 0)


def test_history_is_bounded_and_says_what_it_lost() -> None:
    store = V2Store()
    for _ in range(HISTORY_EVENTS + 5):
        run(store, "PUT", "/a")
    with pytest.raises(V2Error, match=r"cleared \[6/5\]") as caught:
        store.watch(Listener(), "/a", recursive=False, stream=False, since=5)
    assert (caught.value.code, caught.value.status) == (401, 400)
    listener = Listener()
    store.watch(listener, "/a", recursive=False, stream=False, since=6)
    assert listener.events == 1


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", "/"), ("a", "/a"), ("/a//b/./c/", "/a/b/c"), ("/a/../..", "/"), ("/..a", "/..a")],
)  # fmt: skip
def test_paths_are_cleaned(path: str, expected: str) -> None:
    assert clean(path) == expected


async def test_keys_survive_a_restart_with_their_ttl_and_history(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        async with disk_etcd(tmp_path, enable_v2=True) as server:
            url = f"http://{server.endpoint}/v2/keys"
            await (await session.put(f"{url}/a?value=1&ttl=500")).read()
            await (await session.put(f"{url}/a?value=2&ttl=500")).read()
            before = await (await session.get(f"{url}/a")).json()
        async with disk_etcd(tmp_path, enable_v2=True) as server:
            url = f"http://{server.endpoint}/v2/keys"
            after = await (await session.get(f"{url}/a")).json()
            assert after["node"]["expiration"] == before["node"]["expiration"]
            assert after["node"]["modifiedIndex"] == before["node"]["modifiedIndex"]
            old = await (await session.get(f"{url}/a?wait=true&waitIndex=4")).text()
            assert json.loads(old)["node"]["value"] == "1"


async def test_v2_keys_are_kept_by_a_server_that_does_not_serve_them(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        async with disk_etcd(tmp_path, enable_v2=True) as server:
            await (await session.put(f"http://{server.endpoint}/v2/keys/a?value=1")).read()
        async with disk_etcd(tmp_path, snapshot_bytes=1) as server:
            assert (await session.get(f"http://{server.endpoint}/v2/keys/a")).status == 404
        async with disk_etcd(tmp_path, enable_v2=True) as server:
            answer = await (await session.get(f"http://{server.endpoint}/v2/keys/a")).json()
            assert answer["node"]["value"] == "1"
