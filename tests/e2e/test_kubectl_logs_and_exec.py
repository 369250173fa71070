"""Stock kubectl logs and exec through the API server to a kubelet, over WebSocket and SPDY."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.api_servers import KUBECTLS, api_server, kubelet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api_servers import World

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not KUBECTLS, reason="no kubectl on this machine"),
]
# 1.28 speaks SPDY only; the others begin with WebSocket.
CLIENTS = [name for name in ("path", "bundled", "1.28") if name in KUBECTLS]

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web"},
    "spec": {"nodeName": "node-0", "containers": [{"name": "c", "image": "nginx"}]},
}


async def _with_running_pod(world: World, port: int) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node-0", "annotations": {"podwire.dev/underlay": "127.0.0.1"}},
    }
    await world.ok("create", "-f", "-", stdin=json.dumps(node))
    endpoint = {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}}
    await world.ok("patch", "node", "node-0", "--subresource=status", "-p", json.dumps(endpoint))
    await world.ok("create", "-f", "-", stdin=json.dumps(POD))
    status = {"status": {"phase": "Running"}}
    await world.ok("patch", "pod", "web", "--subresource=status", "-p", json.dumps(status))


@pytest.mark.parametrize("client", CLIENTS)
async def test_exec_carries_output_input_and_exit_code(tmp_path: Path, client: str) -> None:
    async with api_server(tmp_path) as world, kubelet(world.pki) as (_, port):
        await _with_running_pod(world, port)
        world.kubectl_path = KUBECTLS[client]
        result = await world.kubectl("exec", "web", "--", "echo", "hello world")
        assert (result.code, result.out) == (0, "echo hello world\n")
        assert "to stderr" in result.err
        assert (await world.kubectl("exec", "web", "--", "exit", "7")).code == 7
        result = await world.kubectl("exec", "-i", "web", "--", "cat", stdin="typed\n")
        assert (result.code, result.out) == (0, "cat\nTYPED\n")


async def test_logs_pass_options_on_and_name_the_container(tmp_path: Path) -> None:
    async with api_server(tmp_path) as world, kubelet(world.pki) as (node, port):
        await _with_running_pod(world, port)
        assert await world.ok("logs", "web", "--tail=5", "--timestamps") == "one\ntwo\n"
        assert node.queries[0].startswith("/containerLogs/default/web/c?")
        assert "tailLines=5" in node.queries[0]
        assert "timestamps=true" in node.queries[0]
        err = await world.fails("logs", "web", "-c", "x")
        assert err == "error: container x is not valid for pod web\n"


async def test_a_silent_kubelet_gives_an_error_not_a_hang(tmp_path: Path) -> None:
    async with api_server(tmp_path) as world:
        await _with_running_pod(world, 1)
        assert 'Get "https://127.0.0.1:1/containerLogs/default/web/c"' in await world.fails(
            "logs", "web"
        )
        assert "error dialing backend" in await world.fails("exec", "web", "--", "ls")
