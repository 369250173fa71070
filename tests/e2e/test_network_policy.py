"""A NetworkPolicy typed with kubectl decides on the packets of real processes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import Podwire, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-friends}
spec:
  podSelector: {matchLabels: {run: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {run: friend}}}]
    ports: [{protocol: TCP, port: 80}]
"""


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Podwire]:
    """Two nodes of a Calico network; a web server and two who ask it."""
    if shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        pytest.skip("kubectl is not installed")
    podwire = Podwire(home, f"p{os.getpid()}")
    podwire.podwire("up", "--network", "calico", "--nodes", "2", "--detach")
    podwire.env["KUBECONFIG"] = podwire.podwire("kubeconfig").out.strip()
    try:
        podwire.kubectl("run", "web", "--image=nginx")
        for name in ("friend", "foe"):
            podwire.kubectl(
                "run", name, "--image=busybox", "--restart=Never", "--", "sleep", "3600"
            )
        podwire.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=30s")
        yield podwire
    finally:
        podwire.podwire("down")


def asks(cluster: Podwire, who: str, address: str) -> bool:
    """Whether a pod gets the page."""
    done = cluster.kubectl(
        *("exec", who, "--", "wget", "-q", "-T", "1", "-O", "-", f"http://{address}/"), check=False
    )
    return "Welcome to nginx!" in done.out


def test_a_policy_lets_in_whom_it_names_and_the_trace_names_it(cluster: Podwire) -> None:
    web = cluster.get("pod", "web")
    address, node = web["status"]["podIP"], web["spec"]["nodeName"]
    # A pod is Ready before the other node has heard of its block.
    wait_for("everybody is let in", lambda: asks(cluster, "friend", address))
    wait_for("everybody is let in", lambda: asks(cluster, "foe", address))
    cluster.kubectl("apply", "-f", "-", stdin=POLICY)
    wait_for("the policy is in force", lambda: not asks(cluster, "foe", address))
    assert asks(cluster, "friend", address)
    # A node reaches its own pods whatever policies say: the kubelet must.
    assert cluster.node(node, "curl", "-s", "-o", "/dev/null", f"http://{address}/").code == 0
    trace = cluster.podwire("trace", "foe", f"{address}:80", check=False)
    assert "default/knp.default.only-friends" in trace.out
    assert "Drop if no policies passed packet" in trace.out
    # Labels count as they are now.
    cluster.kubectl("label", "pod", "foe", "run=friend", "--overwrite")
    wait_for("the new label is known", lambda: asks(cluster, "foe", address))
    cluster.kubectl("label", "pod", "foe", "run=foe", "--overwrite")
    wait_for("the old label is back", lambda: not asks(cluster, "foe", address))
    cluster.kubectl("delete", "networkpolicy", "only-friends")
    wait_for("the policy is gone", lambda: asks(cluster, "foe", address))
