"""The REST client and informers against a real HTTP server that can be made to fail."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agents.apiserver.config import ApiServerConfig, UserInfo
from agents.kubelet.config import KubeletConfig
from emulator.errors import UsageError
from emulator.kubeclient import (
    ApiError,
    ApiUnreachableError,
    BackoffPolicy,
    EventRecorder,
    Informer,
    KubeConfig,
    RestClient,
)
from emulator.kubeclient.backoff import Backoff
from emulator.kubeclient.reflector import Reflector
from emulator.kubeclient.resource import DEPLOYMENTS, EVENTS, NODES, PODS, SERVICES
from emulator.runtime.clock import real_clock
from tests.kube_fakes import FakeApi
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUICK = BackoffPolicy(initial_s=0.001, max_s=0.01)


def pod(name: str, namespace: str = "default", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {},
    }


async def watch_to_the_end(client: RestClient, *, resource_version: str) -> None:
    async with client.watch(SERVICES, resource_version=resource_version) as batches:
        async for _ in batches:
            pass


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as fake:
        yield fake


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[RestClient]:
    async with RestClient(api.config, rng=random.Random(1)) as rest:
        yield rest


def test_paths_of_core_group_cluster_wide_and_sub_resources() -> None:
    assert PODS.path() == "/api/v1/pods"
    assert PODS.path("default", "a", "binding") == "/api/v1/namespaces/default/pods/a/binding"
    assert DEPLOYMENTS.path("x") == "/apis/apps/v1/namespaces/x/deployments"
    assert NODES.path("ignored", "n") == "/api/v1/nodes/n"


async def test_an_object_is_created_read_changed_and_deleted(client: RestClient) -> None:
    made = await client.create(PODS, pod("a"))
    assert made["metadata"]["uid"]
    made["spec"]["x"] = 1
    changed = await client.update(PODS, made)
    assert (await client.get(PODS, "default", "a"))["spec"] == {"x": 1}
    with pytest.raises(ApiError) as conflict:
        await client.update(PODS, made)
    assert conflict.value.is_conflict
    changed["status"] = {"phase": "Running"}
    await client.update(PODS, changed, subresource="status")
    patched = await client.patch(PODS, "default", "a", {"metadata": {"labels": {"k": "v"}}})
    assert patched["metadata"]["labels"] == {"k": "v"}
    assert patched["status"] == {"phase": "Running"}
    await client.delete(PODS, "default", "a")
    with pytest.raises(ApiError) as gone:
        await client.get(PODS, "default", "a")
    assert gone.value.is_not_found
    assert gone.value.reason == "NotFound"


async def test_a_long_list_is_read_in_pages(api: FakeApi, client: RestClient) -> None:
    for number in range(7):
        api.put(PODS, pod(f"p{number}"))
    listed = await client.list(PODS, page=3)
    assert [item["metadata"]["name"] for item in listed.items] == [f"p{n}" for n in range(7)]
    assert all(item["kind"] == "Pod" for item in listed.items)
    assert sum(1 for _, path in api.requests if "limit=3" in path) == 3


async def test_a_server_that_asks_for_patience_gets_the_request_again(
    api: FakeApi, client: RestClient
) -> None:
    api.fail_next(429, "TooManyRequests", retry_after_s=0)
    assert (await client.create(PODS, pod("a")))["metadata"]["uid"]
    assert [method for method, _ in api.requests] == ["POST", "POST"]


async def test_a_failed_write_without_retry_after_is_not_sent_twice(
    api: FakeApi, client: RestClient
) -> None:
    api.fail_next(500, "InternalError")
    with pytest.raises(ApiError) as failed:
        await client.create(PODS, pod("a"))
    assert (failed.value.status, failed.value.message) == (500, "made to fail")
    assert len(api.requests) == 1


async def test_nobody_listening_is_said_with_the_address() -> None:
    async with RestClient(KubeConfig("http://127.0.0.1:1"), rng=random.Random(1)) as client:
        with pytest.raises(ApiUnreachableError, match=r"127\.0\.0\.1:1.*GET /api/v1/pods"):
            await client.list(PODS)


async def test_informer_follows_changes_and_keeps_handlers_in_order(
    api: FakeApi, client: RestClient
) -> None:
    api.put(PODS, pod("old"))
    seen: list[tuple[str, str]] = []

    def note(event: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        obj = new or old
        assert obj is not None
        seen.append((event, obj["metadata"]["name"]))

    informer = Informer(client, PODS)
    informer.add_handler(note)
    informer.add_index("app", lambda obj: [obj["metadata"]["labels"].get("app", "")])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informer.run())
        await informer.synced.wait()
        api.put(PODS, pod("new", app="web"))
        api.put(PODS, pod("new", app="db"))
        api.remove(PODS, "default", "old")
        await until(lambda: len(seen) == 4)
        assert seen == [
            ("ADDED", "old"),
            ("ADDED", "new"),
            ("MODIFIED", "new"),
            ("DELETED", "old"),
        ]
        assert informer.lister.get("default", "old") is None
        assert informer.lister.by_index("app", "web") == []
        assert [o["metadata"]["name"] for o in informer.lister.by_index("app", "db")] == ["new"]
        assert len(informer.lister.list("default", {"app": "db"})) == 1
        assert informer.lister.list("other") == []
        task.cancel()


async def test_a_cut_watch_resumes_where_it_was_without_listing(
    api: FakeApi, client: RestClient
) -> None:
    informer = Informer(client, PODS, backoff=QUICK)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informer.run())
        await informer.synced.wait()
        for number in range(5):
            api.put(PODS, pod(f"p{number}"))
            api.cut_watches()
            await until(lambda n=number: len(informer.lister) == n + 1)  # type: ignore[misc]
        assert informer.reflector.relists == 1
        newest = api.objects(PODS)[-1]["metadata"]["resourceVersion"]
        await until(lambda: informer.reflector.resource_version == newest)
        api.cut_watches()
        resumed = f"resourceVersion={newest}&"
        await until(lambda: any("watch=" in path and resumed in path for _, path in api.requests))
        task.cancel()


async def test_a_bookmark_is_where_a_watch_goes_on(api: FakeApi, client: RestClient) -> None:
    informer = Informer(client, PODS, backoff=QUICK, field_selector="spec.nodeName=kube-0")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informer.run())
        await informer.synced.wait()
        # Nothing this watch asked for, but what it has read so far moves on.
        api.put(PODS, pod("elsewhere"))
        newest = api.objects(PODS)[-1]["metadata"]["resourceVersion"]
        await until(lambda: informer.reflector.resource_version == newest)
        assert informer.lister.list("default") == []
        task.cancel()


async def test_watches_that_end_at_once_are_not_begun_again_at_once(
    api: FakeApi, client: RestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    reflector = Reflector(client, PODS, backoff=QUICK)
    delays = []

    class EndsAtOnce:
        async def __anext__(self) -> object:
            await asyncio.sleep(0)
            raise StopAsyncIteration

        def __aiter__(self) -> EndsAtOnce:
            return self

    @contextlib.asynccontextmanager
    async def ends_at_once(*_: object, **__: object) -> AsyncIterator[EndsAtOnce]:
        yield EndsAtOnce()

    class Counted(Backoff):
        def next_delay_s(self) -> float:
            delays.append(super().next_delay_s())
            return delays[-1]

    monkeypatch.setattr(client, "watch", ends_at_once)
    monkeypatch.setattr(reflector, "_backoff", Counted(QUICK, client.rng))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(reflector.run())
        await until(lambda: len(delays) > 2)
        task.cancel()
    assert reflector.relists == 1


async def test_a_server_that_is_away_is_said_once_and_its_return_once(
    api: FakeApi, client: RestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "podwire.kubeclient")
    informer = Informer(client, PODS, backoff=QUICK)

    def said(text: str, level: int) -> int:
        return sum(text in r.getMessage() and r.levelno == level for r in caplog.records)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(informer.run())
        await informer.synced.wait()
        for outage in (1, 2):
            await api.stop()
            tries = said("trying again", logging.DEBUG)
            await until(lambda before=tries: said("trying again", logging.DEBUG) > before + 2)  # type: ignore[misc]
            assert said("trying again", logging.WARNING) == outage
            await api.start()
            await until(lambda n=outage: said("works again", logging.INFO) == n)  # type: ignore[misc]
        task.cancel()


async def test_a_compacted_watch_lists_again_and_reports_what_was_missed(
    api: FakeApi, client: RestClient
) -> None:
    api.put(PODS, pod("gone"))
    api.put(PODS, pod("reborn"))
    seen: list[tuple[str, str]] = []
    informer = Informer(client, PODS, backoff=QUICK)
    informer.add_handler(
        lambda event, old, new: seen.append((event, (new or old or {})["metadata"]["name"]))
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informer.run())
        await informer.synced.wait()
        seen.clear()
        await api.stop()
        api.remove(PODS, "default", "gone")
        api.remove(PODS, "default", "reborn")
        api.put(PODS, pod("reborn"))
        api.put(PODS, pod("new"))
        api.compact()
        await api.start()
        await until(lambda: len(seen) == 4)
        assert seen == [
            ("DELETED", "gone"),
            ("DELETED", "reborn"),
            ("ADDED", "reborn"),
            ("ADDED", "new"),
        ]
        assert informer.reflector.relists == 2
        task.cancel()


async def test_selectors_reach_the_server(api: FakeApi, client: RestClient) -> None:
    mine = pod("mine")
    mine["spec"] = {"nodeName": "node-0"}
    api.put(PODS, mine)
    api.put(PODS, pod("other"))
    informer = Informer(client, PODS, field_selector="spec.nodeName=node-0")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informer.run())
        await informer.synced.wait()
        assert [o["metadata"]["name"] for o in informer.lister.list()] == ["mine"]
        task.cancel()


async def test_the_same_event_again_raises_its_count(api: FakeApi, client: RestClient) -> None:
    recorder = EventRecorder(client, real_clock(), "kubelet", host="node-0")
    subject = api.put(PODS, pod("a"))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(recorder.run())
        for _ in range(3):
            recorder.event(subject, PODS, "Warning", "BackOff", "again")
        recorder.event(subject, PODS, "Normal", "Started", "Started container c")
        await until(lambda: sum(e["count"] for e in api.objects(EVENTS)) == 4)
        task.cancel()
    first, second = sorted(api.objects(EVENTS), key=lambda e: -e["count"])
    assert (first["reason"], first["count"], second["count"]) == ("BackOff", 3, 1)
    assert first["source"] == {"component": "kubelet", "host": "node-0"}
    assert first["involvedObject"]["uid"] == subject["metadata"]["uid"]
    name, _, nanos = first["metadata"]["name"].partition(".")
    assert name == "a"
    assert int(nanos, 16) > 0


async def test_a_watch_that_is_refused_raises_the_status(api: FakeApi, client: RestClient) -> None:
    api.compact()
    api.put(SERVICES, pod("s"))
    with pytest.raises(ApiError) as expired:
        await watch_to_the_end(client, resource_version="1")
    assert expired.value.is_expired


def test_kubeconfig_gives_server_credentials_and_namespace(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("CA")
    config = tmp_path / "config"
    key = base64.b64encode(b"KEY").decode()
    config.write_text(f"""
current-context: podwire
contexts: [{{name: podwire, context: {{cluster: c, user: u, namespace: n}}}}]
clusters:
- name: c
  cluster: {{server: "https://127.0.0.1:6443/", certificate-authority: ca.pem}}
users: [{{name: u, user: {{token: t, client-key-data: {key}}}}}]
""")
    loaded = KubeConfig.from_file(config)
    assert loaded == KubeConfig(
        "https://127.0.0.1:6443", ca_pem="CA", token="t", client_key_pem="KEY", namespace="n"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1]", "expected a mapping"),
        ("{}", "current-context is not set"),
        ("current-context: x", "contexts has no entry named 'x'"),
        (
            "{current-context: x, contexts: [{name: x, context: {cluster: c}}],"
            " clusters: [{name: c, cluster: {server: nowhere}}]}",
            "needs server: https://HOST:PORT",
        ),
    ],
)
def test_a_bad_kubeconfig_says_what_is_wrong_where(
    tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    with pytest.raises(UsageError, match=complaint) as error:
        KubeConfig.from_file(file)
    assert str(file) in str(error.value)


def test_secrets_of_a_configuration_are_never_printed() -> None:
    config = KubeConfig("https://h", token="hush-1", client_key_pem="hush-2")
    assert "hush" not in repr(config)
    kubelet = KubeletConfig("n", "10.0.0.1", "127.0.0.1", config, Path("/x"), token="hush-3")
    assert "hush" not in repr(kubelet)
    server = ApiServerConfig(
        *("127.0.0.1", 0, (), "c", "k", "ca", "10.0.0.0/24", "10.0.0.1", 6443, "hush-4", "ca"),
        tokens={"hush-5": UserInfo("u")},
    )
    assert "hush" not in repr(server)
