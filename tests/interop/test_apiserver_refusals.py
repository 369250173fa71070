"""What the real API server refuses, and must not be let in here either."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from agents.apiserver.lists import ListPages
from emulator.runtime.rng import seeded_rng
from tests.api_servers import TOKEN, World, api_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CORE = "/api/v1/namespaces/default"
MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with api_server(tmp_path) as made:
        yield made


@pytest.fixture
async def session(world: World) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        world.url,
        connector=aiohttp.TCPConnector(ssl=False),
        headers={"Authorization": f"Bearer {TOKEN}"},
    ) as made:
        yield made


async def ask(
    session: aiohttp.ClientSession, method: str, path: str, body: Any = None, **more: Any
) -> tuple[int, Any]:
    async with session.request(method, path, json=body, **more) as answer:
        return answer.status, json.loads(await answer.read())


def pod(volumes: list[dict[str, Any]]) -> dict[str, Any]:
    container = {"name": "c", "image": "nginx"}
    return {"metadata": {"name": "p"}, "spec": {"containers": [container], "volumes": volumes}}


@pytest.mark.parametrize(
    ("source", "field", "message"),
    [
        (
            {"configMap": {"name": "m", "items": [{"key": "a", "path": "../../etc/hosts"}]}},
            "configMap.items[0].path",
            "must not contain '..'",
        ),
        (
            {"secret": {"secretName": "m", "items": [{"key": "a", "path": "/etc/hosts"}]}},
            "secret.items[0].path",
            "must be a relative path",
        ),
        (
            {"projected": {"sources": [{"serviceAccountToken": {"path": "a/../../b"}}]}},
            "projected.sources[0].serviceAccountToken.path",
            "must not contain '..'",
        ),
        (
            {
                "downwardAPI": {
                    "items": [{"path": "..x", "fieldRef": {"fieldPath": "metadata.name"}}]
                }
            },
            "downwardAPI.items[0].path",
            "must not start with '..'",
        ),
        ({"hostPath": {"path": "/var/../etc"}}, "hostPath.path", "must not contain '..'"),
    ],
)
async def test_volume_paths_stay_inside_their_volume(
    session: aiohttp.ClientSession, source: dict[str, Any], field: str, message: str
) -> None:
    code, said = await ask(session, "POST", f"{CORE}/pods", pod([{"name": "v", **source}]))
    assert code == 422, said
    causes = {cause["field"]: cause["message"] for cause in said["details"]["causes"]}
    assert message in causes[f"spec.volumes[0].{field}"]


async def test_keys_of_config_maps_are_no_way_up(session: aiohttp.ClientSession) -> None:
    for key in (".", "..", "..a"):
        body = {"metadata": {"name": "m"}, "data": {key: "x"}}
        code, said = await ask(session, "POST", f"{CORE}/configmaps", body)
        assert (code, said["reason"]) == (422, "Invalid"), key


async def test_a_secret_that_is_not_base64_is_refused(session: aiohttp.ClientSession) -> None:
    body = {"metadata": {"name": "s"}, "data": {"a": "b"}}
    code, said = await ask(session, "POST", f"{CORE}/secrets", body)
    assert code == 400
    assert "illegal base64 data at input byte" in said["message"]


@pytest.mark.parametrize("amount", ["1e999999999", "1e-999999999", "9" * 5000])
async def test_an_absurd_quantity_costs_nothing(
    session: aiohttp.ClientSession, amount: str
) -> None:
    body = pod([])
    body["spec"]["containers"][0]["resources"] = {"requests": {"cpu": amount}}
    timeout = aiohttp.ClientTimeout(total=5)
    code, said = await ask(session, "POST", f"{CORE}/pods", body, timeout=timeout)
    assert code in (201, 422), said


async def test_strangers_are_told_by_name_what_they_may_not(world: World) -> None:
    """--anonymous-auth is on: who shows nothing is system:anonymous, who shows rubbish nobody."""
    async with aiohttp.ClientSession(
        world.url, connector=aiohttp.TCPConnector(ssl=False)
    ) as stranger:
        for path, text in (
            ("/api", 'forbidden: User "system:anonymous" cannot get path "/api"'),
            ("/versions", 'forbidden: User "system:anonymous" cannot get path "/versions"'),
            (
                f"{CORE}/pods",
                'pods is forbidden: User "system:anonymous" cannot list resource "pods" in API '
                'group "" in the namespace "default"',
            ),
            (
                "/apis/apps/v1/deployments?watch=true",
                'deployments.apps is forbidden: User "system:anonymous" cannot watch resource '
                '"deployments" in API group "apps" at the cluster scope',
            ),
            (
                "/api/v1/nodes/n",
                'nodes "n" is forbidden: User "system:anonymous" cannot get resource "nodes" in '
                'API group "" at the cluster scope',
            ),
            (
                f"{CORE}/pods/p/log",
                'pods "p" is forbidden: User "system:anonymous" cannot get resource "pods/log" in '
                'API group "" in the namespace "default"',
            ),
        ):
            code, said = await ask(stranger, "GET", path)
            assert (code, said["reason"], said["message"]) == (403, "Forbidden", text)
        wrong = {"Authorization": "Bearer no"}
        assert (await ask(stranger, "GET", f"{CORE}/pods", headers=wrong))[0] == 401
        for path in ("/version", "/version/", "/healthz", "/readyz?verbose"):
            async with stranger.get(path) as answer:
                assert answer.status == 200


async def test_an_object_that_goes_gets_no_new_finalizers(session: aiohttp.ClientSession) -> None:
    path = f"{CORE}/configmaps"
    await ask(session, "POST", path, {"metadata": {"name": "m", "finalizers": ["a.example/b"]}})
    await ask(session, "DELETE", f"{path}/m")
    body = {"metadata": {"finalizers": ["a.example/b", "c.example/d"]}}
    code, said = await ask(session, "PATCH", f"{path}/m", body, headers=MERGE)
    assert code == 422
    assert "no new finalizers can be added if the object is being deleted" in said["message"]


async def test_an_update_names_its_own_namespace(session: aiohttp.ClientSession) -> None:
    path = f"{CORE}/configmaps"
    await ask(session, "POST", path, {"metadata": {"name": "m"}})
    moved = {"metadata": {"name": "m", "namespace": "kube-system"}}
    code, said = await ask(session, "PUT", f"{path}/m", moved)
    assert code == 400
    assert said["message"] == (
        "the namespace of the provided object does not match the namespace sent on the request"
    )


async def test_delete_options_of_the_query_are_checked_too(session: aiohttp.ClientSession) -> None:
    path = f"{CORE}/configmaps"
    await ask(session, "POST", path, {"metadata": {"name": "m"}})
    code, said = await ask(session, "DELETE", f"{path}/m?propagationPolicy=Sideways")
    assert (code, said["reason"]) == (422, "Invalid")
    assert (await ask(session, "GET", f"{path}/m"))[0] == 200


async def test_a_continue_token_is_good_for_its_own_list_only(
    session: aiohttp.ClientSession,
) -> None:
    for name in "abc":
        await ask(session, "POST", f"{CORE}/configmaps", {"metadata": {"name": name}})
    _, page = await ask(session, "GET", f"{CORE}/configmaps?limit=1")
    token = page["metadata"]["continue"]
    code, said = await ask(session, "GET", f"{CORE}/secrets?limit=1&continue={token}")
    assert (code, said["reason"]) == (400, "BadRequest")
    code, rest = await ask(session, "GET", f"{CORE}/configmaps?continue={token}")
    assert [item["metadata"]["name"] for item in rest["items"]] == ["b", "c"]


def test_tokens_of_a_server_before_a_restart_mean_nothing_to_the_next() -> None:
    first, second = (ListPages(seeded_rng(seed, "pages")) for seed in (1, 2))
    tokens = [pages._keep(7, "list", []) for pages in (first, second)]
    assert tokens[0] != tokens[1]
