"""The API server's HTTP surface, as client libraries rely on it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from agents.apiserver import bootstrap
from agents.apiserver.config import MAX_BODY_BYTES
from tests.api_servers import TOKEN, api_server, kubelet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api_servers import World

PODS = "/api/v1/namespaces/default/pods"
MAPS = "/api/v1/namespaces/default/configmaps"
MERGE = {"Content-Type": "application/merge-patch+json"}
TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
INITIAL = {
    "watch": "true",
    "sendInitialEvents": "true",
    "resourceVersionMatch": "NotOlderThan",
    "allowWatchBookmarks": "true",
}


class Client:
    """A session with the cluster's token."""

    def __init__(self, world: World, session: aiohttp.ClientSession) -> None:
        self.world = world
        self.session = session

    async def json(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
        async with self.session.request(method, path, **kwargs) as answer:
            return answer.status, json.loads(await answer.read())

    async def put_map(self, name: str, **data: str) -> dict[str, Any]:
        body = {"metadata": {"name": name, "labels": dict(data)}, "data": data}
        code, made = await self.json("POST", MAPS, json=body)
        if code == 409:
            _, made = await self.json("PUT", f"{MAPS}/{name}", json=body)
        found: dict[str, Any] = made
        return found

    @contextlib.asynccontextmanager
    async def watch(self, path: str, **query: str) -> AsyncIterator[Stream]:
        async with self.session.get(path, params={"watch": "true", **query}) as answer:
            yield Stream(answer)


class Stream:
    """Events of one watch."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self) -> tuple[str, dict[str, Any]]:
        async with asyncio.timeout(30):
            event = json.loads(await self.answer.content.readline())
        return event["type"], event["object"]

    async def named(self) -> tuple[str, str]:
        kind, obj = await self.next()
        return kind, obj["metadata"]["name"]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with api_server(tmp_path) as world:
        context = ssl.create_default_context(cafile=world.pki.ca)
        async with aiohttp.ClientSession(
            world.url,
            connector=aiohttp.TCPConnector(ssl=context),
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as session:
            yield Client(world, session)


async def test_errors_are_statuses_byte_for_byte(client: Client) -> None:
    async with client.session.get(f"{PODS}/x") as answer:
        assert answer.headers["Content-Type"] == "application/json"
        assert await answer.read() == (
            b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",'
            b'"message":"pods \\"x\\" not found","reason":"NotFound",'
            b'"details":{"name":"x","kind":"pods"},"code":404}\n'
        )
    for method, path, code, reason in (
        ("GET", "/nosuch", 404, "NotFound"),
        ("GET", "/api/v1/nosuch", 404, "NotFound"),
        ("GET", "/apis/apps/v9/deployments", 404, "NotFound"),
        ("GET", f"{PODS}/a/b/c", 404, "NotFound"),
        ("PATCH", PODS, 405, "MethodNotAllowed"),
        ("POST", "/api/v1/pods", 405, "MethodNotAllowed"),
        ("GET", f"{PODS}?labelSelector=a%20in%20b", 400, "BadRequest"),
        ("GET", f"{PODS}?fieldSelector=spec.x%3D1", 400, "BadRequest"),
        ("GET", f"{PODS}?limit=x", 400, "BadRequest"),
        ("GET", f"{PODS}?continue=x", 400, "BadRequest"),
        ("GET", f"{PODS}?resourceVersion=x", 400, "BadRequest"),
    ):
        status, body = await client.json(method, path)
        assert (status, body["reason"], body["code"]) == (code, reason, code), path


async def test_bodies_are_refused_by_type_size_and_shape(client: Client) -> None:
    async def post(data: bytes, media: str = "application/json") -> tuple[int, str]:
        status, body = await client.json(
            "POST", MAPS, data=io.BytesIO(data), headers={"Content-Type": media}
        )
        return status, body["message"]

    assert (await post(b"x", "text/plain"))[0] == 415
    assert (await post(b"{"))[0] == 400
    assert (await post(b"[]"))[0] == 400
    assert (await post(b"k8s\0garbage", "application/vnd.kubernetes.protobuf"))[0] == 400
    assert (await post(b"a: [", "application/yaml"))[0] == 400
    assert (await post(b"\xff\xfe"))[0] == 400
    assert (await post(b"[" * 100_000))[0] == 400
    assert (await post(b" " * (MAX_BODY_BYTES + 1)))[0] == 413
    wrong = json.dumps({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "x"}})
    status, text = await post(wrong.encode())
    assert status == 400
    assert 'Secret in version "v1" cannot be handled as a ConfigMap' in text
    version = json.dumps({"kind": "ConfigMap", "apiVersion": "v2", "metadata": {"name": "x"}})
    assert (await post(version.encode()))[1] == (
        "the API version in the data (v2) does not match the expected API version (v1)"
    )
    status, _ = await client.json("PATCH", f"{MAPS}/x", data=b"{}")
    assert status == 415
    yaml_body = b"metadata: {name: y}\ndata: {a: b}\n"
    assert (await client.json("POST", MAPS, data=yaml_body,
            headers={"Content-Type": "application/yaml"}))[0] == 201  # fmt: skip


async def test_only_known_users_get_in(client: Client) -> None:
    url = client.world.url
    context = ssl.create_default_context(cafile=client.world.pki.ca)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as anonymous:
        async with anonymous.get(url + PODS) as answer:
            assert answer.status == 403
        async with anonymous.get(url + PODS, headers={"Authorization": "Bearer no"}) as answer:
            assert answer.status == 401
            assert json.loads(await answer.read())["message"] == "Unauthorized"
        for path in ("/healthz", "/livez", "/readyz", "/version"):
            async with anonymous.get(url + path) as answer:
                assert answer.status == 200
    context.load_cert_chain(client.world.pki.client_cert, client.world.pki.client_key)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as with_certificate,
        with_certificate.get(url + PODS) as answer,
    ):
        assert answer.status == 200


async def test_garbage_on_the_socket_ends_that_connection_only(client: Client) -> None:
    loop = asyncio.get_running_loop()
    for data in (b"\x16\x03\x01\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5000):
        raw = socket.create_connection(("127.0.0.1", client.world.port))
        raw.setblocking(False)
        await loop.sock_sendall(raw, data)
        raw.close()
    assert (await client.json("GET", PODS))[0] == 200


async def test_a_watch_resumes_where_it_was_and_follows_selectors(client: Client) -> None:
    first = await client.put_map("a", tier="x")
    version = first["metadata"]["resourceVersion"]
    async with client.watch(MAPS, resourceVersion=version, labelSelector="tier=y") as stream:
        await client.put_map("b", tier="x")
        await client.put_map("b", tier="y")
        await client.put_map("b", tier="y", more="1")
        await client.put_map("b", tier="x")
        await client.put_map("c", tier="y")
        await client.session.delete(f"{MAPS}/c")
        got = [await stream.next() for _ in range(5)]
        assert [(kind, obj["metadata"]["name"]) for kind, obj in got] == [
            ("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "b"), ("ADDED", "c"), ("DELETED", "c"),
        ]  # fmt: skip
        # One that left the selection is shown as it was before, at the revision of its leaving.
        changed, left = got[1][1], got[2][1]
        assert (left["data"], int(left["metadata"]["resourceVersion"])) == (
            changed["data"],
            int(changed["metadata"]["resourceVersion"]) + 1,
        )
    async with client.watch(MAPS, resourceVersion=version) as stream:
        assert await stream.named() == ("ADDED", "b")


async def test_watch_list_sends_what_is_there_then_a_bookmark(client: Client) -> None:
    await client.put_map("a", x="1")
    async with client.session.get(MAPS, params=INITIAL) as answer:
        stream = Stream(answer)
        assert await stream.named() == ("ADDED", "a")
        kind, obj = await stream.next()
        assert kind == "BOOKMARK"
        assert obj["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert int(obj["metadata"]["resourceVersion"]) > 0
        await client.put_map("b", x="1")
        assert await stream.named() == ("ADDED", "b")


async def test_too_old_and_too_new_versions_are_told(client: Client) -> None:
    for i in range(3):
        await client.put_map("a", n=str(i))
    async with client.watch(MAPS, resourceVersion="1", timeoutSeconds="5") as stream:
        kinds = [(await stream.next())[0] for _ in range(3)]
        assert kinds == ["ADDED", "MODIFIED", "MODIFIED"]
    bucket_limit = 1100
    for i in range(bucket_limit):
        await client.put_map("a", n=str(i))
    async with client.watch(MAPS, resourceVersion="2") as stream:
        kind, obj = await stream.next()
        assert (kind, obj["code"], obj["reason"]) == ("ERROR", 410, "Expired")
        assert obj["message"].startswith("too old resource version: 2 (")


async def test_pages_show_one_moment(client: Client) -> None:
    for name in "abcde":
        await client.put_map(name)
    _, page = await client.json("GET", MAPS, params={"limit": "2"})
    assert [i["metadata"]["name"] for i in page["items"]] == ["a", "b"]
    assert page["metadata"]["remainingItemCount"] == 3
    await client.session.delete(f"{MAPS}/c")
    token = page["metadata"]["continue"]
    _, rest = await client.json("GET", MAPS, params={"limit": "9", "continue": token})
    assert [i["metadata"]["name"] for i in rest["items"]] == ["c", "d", "e"]
    assert rest["metadata"]["resourceVersion"] == page["metadata"]["resourceVersion"]
    assert "continue" not in rest["metadata"]


async def test_forms_are_negotiated_exactly(client: Client) -> None:
    await client.put_map("a")
    _, table = await client.json("GET", MAPS, headers=TABLE)
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    assert table["rows"][0]["cells"][:2] == ["a", 0]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    partial = {"Accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}
    _, found = await client.json("GET", MAPS, headers=partial)
    assert found["kind"] == "PartialObjectMetadataList"
    assert set(found["items"][0]) == {"kind", "apiVersion", "metadata"}
    status, _ = await client.json("GET", MAPS, headers={"Accept": "text/html"})
    assert status == 406
    review = {"spec": {"resourceAttributes": {"verb": "get"}}}
    only_table = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    status, _ = await client.json(
        "GET", "/apis/authorization.k8s.io/v1", headers=only_table, json=review
    )
    assert status == 406
    for version in ("v2", "v2beta1"):
        media = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
        async with client.session.get("/apis", headers={"Accept": media}) as answer:
            assert answer.headers["Content-Type"] == media
            assert answer.headers["Vary"] == "Accept"
            tag = answer.headers["ETag"]
        again = {"Accept": media, "If-None-Match": tag}
        async with client.session.get("/apis", headers=again) as answer:
            assert answer.status == 304


async def test_updates_are_optimistic_and_status_is_separate(client: Client) -> None:
    made = await client.put_map("a", n="0")
    stale = {**made, "data": {"n": "9"}}
    await client.put_map("a", n="1")
    status, body = await client.json("PUT", f"{MAPS}/a", json=stale)
    assert status == 409
    assert body["message"] == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; please '
        "apply your changes to the latest version and try again"
    )
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    await client.json("POST", PODS, json={**pod, "status": {"phase": "Running"}})
    _, shown = await client.json("GET", f"{PODS}/p")
    assert shown["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    change = {"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Running"}}
    _, shown = await client.json("PATCH", f"{PODS}/p", data=json.dumps(change), headers=MERGE)
    assert (shown["metadata"]["labels"], shown["status"]["phase"]) == ({"a": "b"}, "Pending")
    change["spec"] = {"nodeName": "x"}
    _, shown = await client.json(
        "PATCH", f"{PODS}/p/status", data=json.dumps(change), headers=MERGE
    )
    assert shown["status"]["phase"] == "Running"
    assert "nodeName" not in shown["spec"]


async def test_binding_eviction_and_finalizers(client: Client) -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    await client.json("POST", PODS, json=pod)
    binding = {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}}
    assert (await client.json("POST", f"{PODS}/p/binding", json=binding))[0] == 201
    status, body = await client.json("POST", f"{PODS}/p/binding", json=binding)
    assert (status, body["message"]) == (
        409,
        'Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "n1"',
    )
    _, shown = await client.json("GET", f"{PODS}/p")
    assert shown["spec"]["nodeName"] == "n1"
    assert shown["status"]["conditions"][0]["type"] == "PodScheduled"
    assert (await client.json("POST", f"{PODS}/p/eviction", json={}))[0] == 201
    _, shown = await client.json("GET", f"{PODS}/p")
    assert shown["metadata"]["deletionGracePeriodSeconds"] == 30
    kept = {"metadata": {"name": "k", "finalizers": ["example.com/wait"]}}
    await client.json("POST", MAPS, json=kept)
    status, shown = await client.json("DELETE", f"{MAPS}/k")
    assert (status, "deletionTimestamp" in shown["metadata"]) == (200, True)
    free = json.dumps({"metadata": {"finalizers": None}})
    await client.json("PATCH", f"{MAPS}/k", data=free, headers=MERGE)
    assert (await client.json("GET", f"{MAPS}/k"))[0] == 404


async def test_a_namespace_ends_when_its_finalizer_goes(client: Client) -> None:
    await client.json("POST", "/api/v1/namespaces", json={"metadata": {"name": "n"}})
    _, shown = await client.json("DELETE", "/api/v1/namespaces/n")
    assert shown["status"]["phase"] == "Terminating"
    status, body = await client.json(
        "POST", "/api/v1/namespaces/n/configmaps", json={"metadata": {"name": "x"}}
    )
    assert (status, body["details"]["causes"][0]["reason"]) == (403, "NamespaceTerminating")
    shown["spec"]["finalizers"] = []
    await client.json("PUT", "/api/v1/namespaces/n/finalize", json=shown)
    assert (await client.json("GET", "/api/v1/namespaces/n"))[0] == 404
    status, body = await client.json("DELETE", "/api/v1/namespaces/default")
    assert (status, body["message"]) == (
        403, 'namespaces "default" is forbidden: this namespace may not be deleted',
    )  # fmt: skip


async def test_scale_reads_and_writes_replicas(client: Client) -> None:
    path = "/apis/apps/v1/namespaces/default/deployments"
    labels = {"app": "w"}
    body = {
        "metadata": {"name": "w"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    }
    assert (await client.json("POST", path, json=body))[0] == 201
    _, scale = await client.json("GET", f"{path}/w/scale")
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 0, "selector": "app=w"}
    scale["spec"]["replicas"] = 4
    _, scale = await client.json("PUT", f"{path}/w/scale", json=scale)
    assert scale["spec"]["replicas"] == 4
    negative = json.dumps({"spec": {"replicas": -1}})
    status, answer = await client.json("PATCH", f"{path}/w/scale", data=negative, headers=MERGE)
    assert (status, answer["message"]) == (
        422,
        'Scale.autoscaling "w" is invalid: spec.replicas: Invalid value: -1: '
        "must be greater than or equal to 0",
    )


async def test_the_kubernetes_service_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "PERIOD_S", 0.05)
    path = "/api/v1/namespaces/default/services"
    async with api_server(tmp_path) as world:
        context = ssl.create_default_context(cafile=world.pki.ca)
        async with aiohttp.ClientSession(
            world.url,
            connector=aiohttp.TCPConnector(ssl=context),
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as session:
            client = Client(world, session)
            _, first = await client.json("GET", f"{path}/kubernetes")
            await client.json("DELETE", f"{path}/kubernetes")
            query = {"fieldSelector": "metadata.name=kubernetes"}
            async with client.watch(path, **query) as stream:
                _, again = await stream.next()
            assert again["metadata"]["uid"] != first["metadata"]["uid"]
            assert again["spec"]["clusterIP"] == "10.96.0.1"
            _, ends = await client.json("GET", "/api/v1/namespaces/default/endpoints/kubernetes")
            assert ends["subsets"][0]["addresses"] == [{"ip": "172.17.4.101"}]


async def test_a_body_of_any_size_is_passed_on_to_a_node(client: Client) -> None:
    async with kubelet(client.world.pki) as (_, port):
        meta = {"name": "n", "annotations": {"podwire.dev/underlay": "127.0.0.1"}}
        await client.json("POST", "/api/v1/nodes", json={"metadata": meta})
        status = {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}}
        await client.json("PATCH", "/api/v1/nodes/n/status", json=status, headers=MERGE)
        path = "/api/v1/nodes/n/proxy/nowhere"
        async with client.session.post(path, data=io.BytesIO(bytes(2 * 1024 * 1024))) as answer:
            assert (answer.status, await answer.text()) == (404, "404: Not Found")
