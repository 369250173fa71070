"""Custom resources and odd objects must not harm what else the API server serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.api_servers import TOKEN, api_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/x.example/v1/namespaces/default/widgets"


def definition(plural: str, group: str, kind: str, **spec: Any) -> dict[str, Any]:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    names = {"plural": plural, "kind": kind, "singular": kind.lower()}
    return {
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group, "scope": "Namespaced", "names": names, "versions": [version], **spec,
        },
    }  # fmt: skip


class Api:
    """JSON in, (status, JSON) out."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        media: str = "application/json",
        accept: str = "application/json",
    ) -> tuple[int, Any]:
        headers = {"Content-Type": media, "Accept": accept}
        async with self._session.request(method, path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with (
        api_server(tmp_path) as world,
        aiohttp.ClientSession(
            world.url,
            connector=aiohttp.TCPConnector(ssl=False),
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as session,
    ):
        yield Api(session)


async def test_a_definition_cannot_take_a_built_in_kinds_place(api: Api) -> None:
    assert (await api("POST", CRDS, definition("deployments", "apps", "Deployment")))[0] == 201
    bad = {"metadata": {"name": "d"}, "spec": {"replicas": "many"}}
    assert (await api("POST", "/apis/apps/v1/namespaces/default/deployments", bad))[0] == 400
    assert (await api("DELETE", f"{CRDS}/deployments.apps"))[0] == 200
    assert (await api("GET", "/apis/apps/v1/deployments"))[0] == 200


@pytest.mark.parametrize(
    "meta",
    [
        {"labels": ["a"]},
        {"labels": {"a": 1}},
        {"annotations": ["a"]},
        {"ownerReferences": ["a"]},
        {"ownerReferences": "abc"},
        {"finalizers": "abc"},
        {"name": 5},
    ],
)
async def test_a_custom_resources_metadata_is_checked_as_any_others(
    api: Api, meta: dict[str, Any]
) -> None:
    assert (await api("POST", CRDS, definition("widgets", "x.example", "Widget")))[0] == 201
    code, said = await api("POST", WIDGETS, {"metadata": {"name": "w", **meta}})
    assert (code, said["reason"]) == (400, "BadRequest"), said
    assert "cannot unmarshal" in said["message"]
    assert (await api("GET", f"{WIDGETS}?labelSelector=a%3Db"))[0] == 200


async def test_custom_resources_with_finalizers_keep_their_definition(api: Api) -> None:
    """The definition waits, terminating, until the last of its objects is gone."""
    await api("POST", CRDS, definition("widgets", "x.example", "Widget"))
    await api("POST", WIDGETS, {"metadata": {"name": "w", "finalizers": ["x.example/y"]}})
    await api("DELETE", f"{CRDS}/widgets.x.example")
    code, left = await api("GET", f"{WIDGETS}/w")
    assert (code, bool(left["metadata"].get("deletionTimestamp"))) == (200, True)
    code, _ = await api("POST", WIDGETS, {"metadata": {"name": "other"}})
    assert code in (403, 405)
    patch = {"metadata": {"finalizers": None}}
    code, _ = await api("PATCH", f"{WIDGETS}/w", patch, "application/merge-patch+json")
    assert code == 200
    assert (await api("GET", WIDGETS))[0] == 404
    assert (await api("GET", f"{CRDS}/widgets.x.example"))[0] == 404


async def test_a_printer_column_that_finds_no_list_shows_nothing(api: Api) -> None:
    made = definition("widgets", "x.example", "Widget")
    path = '.spec.parts[?(@.type=="Big")].name'
    made["spec"]["versions"][0]["additionalPrinterColumns"] = [
        {"name": "Big", "type": "string", "jsonPath": path}
    ]
    await api("POST", CRDS, made)
    for name, parts in (("a", 5), ("b", [{"type": "Big", "name": "x"}])):
        await api("POST", WIDGETS, {"metadata": {"name": name}, "spec": {"parts": parts}})
    code, table = await api("GET", WIDGETS, accept="application/json;as=Table;v=v1;g=meta.k8s.io")
    assert code == 200
    assert [row["cells"] for row in table["rows"]] == [["a", None], ["b", "x"]]
