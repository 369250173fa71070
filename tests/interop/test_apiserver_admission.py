"""What the default admission plug-ins add to a pod."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.api_servers import TOKEN, api_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CORE = "/api/v1/namespaces/default"
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with (
        api_server(tmp_path) as world,
        aiohttp.ClientSession(
            world.url,
            connector=aiohttp.TCPConnector(ssl=False),
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as made,
    ):
        yield made


async def made(session: aiohttp.ClientSession, name: str, **spec: Any) -> dict[str, Any]:
    spec.setdefault("containers", [{"name": "c", "image": "nginx"}])
    body = {"metadata": {"name": name}, "spec": spec}
    async with session.post(f"{CORE}/pods", json=body) as answer:
        assert answer.status == 201
        found: dict[str, Any] = (await answer.json())["spec"]
        return found


async def test_containers_get_their_accounts_token(session: aiohttp.ClientSession) -> None:
    own = {"name": "own", "emptyDir": {}}
    containers = [
        {"name": "a", "image": "nginx"},
        {
            "name": "b",
            "image": "nginx",
            "volumeMounts": [{"name": "own", "mountPath": TOKEN_PATH}],
        },
    ]
    init = [{"name": "i", "image": "busybox"}]
    spec = await made(session, "p", containers=containers, initContainers=init, volumes=[own])
    volume = spec["volumes"][1]
    assert re.fullmatch(r"kube-api-access-[bcdfghjklmnpqrstvwxz2456789]{5}", volume["name"])
    kinds = [next(iter(source)) for source in volume["projected"]["sources"]]
    assert kinds == ["serviceAccountToken", "configMap", "downwardAPI"]
    mount = {"name": volume["name"], "readOnly": True, "mountPath": TOKEN_PATH}
    assert spec["initContainers"][0]["volumeMounts"] == [mount]
    assert spec["containers"][0]["volumeMounts"] == [mount]
    assert [m["name"] for m in spec["containers"][1]["volumeMounts"]] == ["own"]


async def test_pod_and_account_may_do_without(session: aiohttp.ClientSession) -> None:
    assert "volumes" not in await made(session, "p", automountServiceAccountToken=False)
    account = {"metadata": {"name": "shy"}, "automountServiceAccountToken": False}
    async with session.post(f"{CORE}/serviceaccounts", json=account) as answer:
        assert answer.status == 201
    assert "volumes" not in await made(session, "q", serviceAccountName="shy")
    spec = await made(session, "r", serviceAccountName="shy", automountServiceAccountToken=True)
    assert len(spec["volumes"]) == 1
