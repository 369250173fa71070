"""Stock kubectl against the API server alone: create, list, expose, scale, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api_servers import KUBECTLS, api_server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not KUBECTLS, reason="no kubectl on this machine"),
]


async def test_deployment_is_created_exposed_scaled_and_deleted(tmp_path: Path) -> None:
    async with api_server(tmp_path) as world:
        assert "Server Version: v1.32.5" in await world.ok("version")
        created = await world.ok("create", "deployment", "web", "--image=nginx", "--replicas=2")
        assert created == "deployment.apps/web created\n"
        await world.ok("expose", "deployment", "web", "--port=80", "--type=NodePort")
        await world.ok("scale", "deployment", "web", "--replicas=5")
        table = await world.ok("get", "deployment", "web", "-o", "wide")
        assert (
            table.split()
            == (
                "NAME READY UP-TO-DATE AVAILABLE AGE CONTAINERS IMAGES SELECTOR "
                f"web 0/5 0 0 {table.split()[12]} nginx nginx app=web"
            ).split()
        )
        everything = await world.ok("get", "all")
        assert "service/kubernetes" in everything
        assert "deployment.apps/web" in everything
        assert await world.ok("delete", "deployment", "web") == 'deployment.apps "web" deleted\n'
