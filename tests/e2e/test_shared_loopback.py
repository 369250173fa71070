"""A host with one loopback address: nodes share it and are told apart by their ports."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import Podwire

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


def test_nodes_that_share_127_0_0_1_reach_each_others_pods(home: Path) -> None:
    podwire = Podwire(home, f"s{os.getpid()}")
    podwire.env["PODWIRE_UNDERLAY"] = "shared"
    podwire.podwire("up", "--nodes", "2", "--detach")
    try:
        nodes = podwire.status()["nodes"]
        assert {node["underlay"] for node in nodes} == {"127.0.0.1"}
        podwire.env["KUBECONFIG"] = podwire.podwire("kubeconfig").out.strip()
        podwire.kubectl("create", "deployment", "web", "--image=nginx", "--replicas=2")
        podwire.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
        pods = podwire.get("pods")["items"]
        assert {pod["spec"]["nodeName"] for pod in pods} == {"node-0", "node-1"}
        for pod in pods:
            ip = pod["status"]["podIP"]
            page = podwire.node("node-0", "curl", "-s", "-m", "5", f"http://{ip}").out
            assert "Welcome to nginx" in page
    finally:
        podwire.podwire("down")
