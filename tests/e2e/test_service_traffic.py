"""kube-proxy's rules by the traffic they let through: who answers, and whom the server saw."""

from __future__ import annotations

import collections
import ipaddress
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import wait_for

if TYPE_CHECKING:
    from tests.e2e.harness import Podwire

pytestmark = pytest.mark.e2e

HTTP, UDP, LOCAL, LONELY = 31080, 31081, 31082, 31084
PORTS = """
    - {name: http, port: 80, targetPort: 8080%s}
    - {name: udp, protocol: UDP, port: 81, targetPort: 8081%s}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  selector: {app: %s}
  %s
  ports: %s
---
"""
MANIFESTS = (
    """
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 3
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers:
      - name: server
        image: registry.k8s.io/e2e-test-images/agnhost:2.47
        args: [netexec, --http-port=8080, --udp-port=8081]
---
"""
    + SERVICE % ("spread", "echo", "", PORTS % ("", ""))
    + SERVICE % ("sticky", "echo", "sessionAffinity: ClientIP", PORTS % ("", ""))
    + SERVICE
    % ("open", "echo", "type: NodePort", PORTS % (f", nodePort: {HTTP}", f", nodePort: {UDP}"))
    + SERVICE
    % (
        "local",
        "echo",
        "type: NodePort\n  externalTrafficPolicy: Local",
        PORTS % (f", nodePort: {LOCAL}", ""),
    )
    + SERVICE % ("lonely", "nobody", "type: NodePort", PORTS % (f", nodePort: {LONELY}", ""))
)


@pytest.fixture(scope="module")
def pods(cluster: Podwire) -> dict[str, dict[str, Any]]:
    """The three servers by their node's name; all services have their rules on every node."""
    cluster.kubectl("apply", "-f", "-", stdin=MANIFESTS)
    cluster.kubectl("rollout", "status", "deployment/echo", "--timeout=30s")
    found = {pod["spec"]["nodeName"]: pod for pod in cluster.get("pods", "-l", "app=echo")["items"]}
    for node in cluster.status()["nodes"]:
        wait_for(
            f"all rules on {node['name']}", lambda name=node["name"]: rules(cluster, name) == 24
        )
    return found


def rules(cluster: Podwire, node: str) -> int:
    """How many endpoints kube-proxy balances to there: 4 services, 2 ports, 3 pods."""
    lines = cluster.node(node, "iptables-save", "-t", "nat").out.splitlines()
    return sum("-j DNAT" in line and "default/kubernetes" not in line for line in lines)


def cluster_ip(cluster: Podwire, service: str) -> str:
    return str(cluster.get("service", service)["spec"]["clusterIP"])


def underlay(cluster: Podwire, node: str) -> str:
    return str(next(n["underlay"] for n in cluster.status()["nodes"] if n["name"] == node))


def often(url: str, times: int) -> str:
    """A script for a node's or pod's shell: one line for each answer."""
    return f"for i in $(seq {times}); do curl -s -m 2 {url}; echo; done"


def names(out: str) -> collections.Counter[str]:
    return collections.Counter(out.split())


def host_curl(cluster: Podwire, url: str) -> str:
    return cluster.run(["curl", "-sS", "-m", "3", url]).out


def test_a_cluster_ip_spreads_over_all_endpoints(
    cluster: Podwire, pods: dict[str, dict[str, Any]]
) -> None:
    url = f"http://{cluster_ip(cluster, 'spread')}/hostname"
    seen = names(cluster.node("node-0", "sh", "-c", often(url, 60)).out)
    assert set(seen) == {pod["metadata"]["name"] for pod in pods.values()}
    assert sum(seen.values()) == 60
    # 20 each on average; below 6 or above 38 happens once in a million runs.
    assert all(6 <= count <= 38 for count in seen.values()), seen


def test_client_ip_affinity_stays_with_one_endpoint(
    cluster: Podwire, pods: dict[str, dict[str, Any]]
) -> None:
    url = f"http://{cluster_ip(cluster, 'sticky')}/hostname"
    pod = pods["node-1"]["metadata"]["name"]
    seen = names(cluster.kubectl("exec", pod, "--", "sh", "-c", often(url, 12)).out)
    assert list(seen.values()) == [12]


def test_a_pod_reaches_itself_through_its_service(
    cluster: Podwire, pods: dict[str, dict[str, Any]]
) -> None:
    pod = pods["node-0"]
    ip = cluster_ip(cluster, "spread")
    script = "for i in $(seq 40); do curl -s http://{0}/{1}; echo; done"
    name = pod["metadata"]["name"]
    seen = names(cluster.kubectl("exec", name, "--", "sh", "-c", script.format(ip, "hostname")).out)
    assert seen[name] > 0
    clients = {
        line.rsplit(":", 1)[0]
        for line in cluster.kubectl(
            "exec", name, "--", "sh", "-c", script.format(ip, "clientip")
        ).out.split()
    }
    # To itself it comes from the bridge's address: its own would never leave the pod again.
    own = ipaddress.ip_address(pod["status"]["podIP"])
    bridge = ipaddress.ip_network(f"{own}/24", strict=False)[1]
    assert clients == {str(own), str(bridge)}


def test_udp_passes_by_cluster_ip_and_by_node_port(
    cluster: Podwire, pods: dict[str, dict[str, Any]]
) -> None:
    expected = {pod["metadata"]["name"] for pod in pods.values()}
    ip = cluster_ip(cluster, "spread")
    ask = f"printf hostname | nc -u -w 0.2 {ip} 81"
    assert cluster.node("node-1", "sh", "-c", ask).out in expected
    for node in ("node-0", "node-1", "node-2"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(3)
            client.connect((underlay(cluster, node), UDP))
            answers = []
            for _ in range(3):
                client.send(b"hostname")
                answers.append(client.recv(100).decode())
        # One client's datagrams are one connection to conntrack.
        assert len(set(answers)) == 1
        assert answers[0] in expected


def test_a_service_without_endpoints_is_refused_everywhere(
    cluster: Podwire, pods: dict[str, dict[str, Any]]
) -> None:
    url = f"http://{cluster_ip(cluster, 'lonely')}"
    refused = cluster.node("node-0", "curl", "-sS", "-m", "3", url, check=False)
    assert refused.code == 7
    pod = pods["node-1"]["metadata"]["name"]
    refused = cluster.kubectl("exec", pod, "--", "curl", "-sS", "-m", "3", url, check=False)
    assert refused.code == 7
    url = f"http://172.17.4.203:{LONELY}"
    assert cluster.node("node-0", "curl", "-sS", "-m", "3", url, check=False).code == 7
    url = f"http://{underlay(cluster, 'node-0')}:{LONELY}"
    assert cluster.run(["curl", "-sS", "-m", "3", url], check=False).code == 7


def test_a_node_port_answers_nodes_pods_and_the_host_from_any_node(
    cluster: Podwire, pods: dict[str, dict[str, Any]]
) -> None:
    url = f"http://172.17.4.202:{HTTP}/hostname"
    expected = {pod["metadata"]["name"] for pod in pods.values()}
    assert set(names(cluster.node("node-0", "sh", "-c", often(url, 12)).out)) <= expected
    pod = pods["node-2"]["metadata"]["name"]
    seen = names(cluster.kubectl("exec", pod, "--", "sh", "-c", often(url, 12)).out)
    assert sum(seen.values()) == 12
    assert set(seen) <= expected
    # The node on the way masquerades, or the answer would take another way back.
    url = f"http://{underlay(cluster, 'node-0')}:{HTTP}/clientip"
    client = host_curl(cluster, url).rsplit(":", 1)[0]
    own = ipaddress.ip_network(f"{pods['node-0']['status']['podIP']}/24", strict=False)
    assert ipaddress.ip_address(client) in (own[0], own[1])


def test_external_traffic_policy_local_keeps_the_client_and_the_node(
    cluster: Podwire, pods: dict[str, dict[str, Any]]
) -> None:
    for node, pod in pods.items():
        base = f"http://{underlay(cluster, node)}:{LOCAL}"
        assert host_curl(cluster, f"{base}/hostname") == pod["metadata"]["name"]
        # The host's place in the emulated network is the gateway's.
        assert host_curl(cluster, f"{base}/clientip").rsplit(":", 1)[0] == "172.17.4.1"
    seen = cluster.node("node-0", "curl", "-s", f"http://172.17.4.202:{LOCAL}/clientip").out
    assert seen.rsplit(":", 1)[0] == "172.17.4.201"


def test_a_real_iptables_restore_accepts_a_nodes_rules(
    cluster: Podwire, pods: dict[str, dict[str, Any]]
) -> None:
    saved = cluster.node("node-1", "iptables-save").out
    assert len(re.findall(r"^:KUBE-SEP-", saved, re.MULTILINE)) >= 24
    restore = shutil.which("iptables-legacy-restore") or shutil.which("iptables-restore")
    if restore is None or shutil.which("unshare") is None:
        pytest.skip("iptables-restore or unshare is not installed")
    with tempfile.NamedTemporaryFile("w", suffix=".rules") as file:
        file.write(saved)
        file.flush()
        command = ["unshare", "-n", restore, "--test", str(Path(file.name))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if "unshare failed" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(f"no network namespace of one's own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
