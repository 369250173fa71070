"""The main job, as a newcomer does it: kubectl, curl, ping, etcdctl against real processes."""

from __future__ import annotations

import functools
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import wait_for

if TYPE_CHECKING:
    from tests.e2e.harness import Podwire

pytestmark = pytest.mark.e2e

WELCOME = "<title>Welcome to nginx!</title>"


@pytest.fixture(scope="module")
def web(cluster: Podwire) -> list[dict[str, Any]]:
    """Three nginx pods, one a node, behind a NodePort service called web."""
    cluster.kubectl("create", "deployment", "web", "--image=nginx:1.7.9", "--replicas=3")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    cluster.kubectl("expose", "deployment", "web", "--port=80", "--type=NodePort")
    pods: list[dict[str, Any]] = cluster.get("pods", "-l", "app=web")["items"]
    return sorted(pods, key=lambda pod: pod["spec"]["nodeName"])


def service(cluster: Podwire) -> tuple[str, int]:
    found = cluster.get("service", "web")
    return found["spec"]["clusterIP"], found["spec"]["ports"][0]["nodePort"]


def test_every_node_is_ready_with_its_emulated_address(cluster: Podwire) -> None:
    nodes = cluster.get("nodes")["items"]
    assert [node["metadata"]["name"] for node in nodes] == ["node-0", "node-1", "node-2"]
    for node in nodes:
        conditions = {c["type"]: c["status"] for c in node["status"]["conditions"]}
        assert conditions["Ready"] == "True"
    addresses = [
        a["address"]
        for node in nodes
        for a in node["status"]["addresses"]
        if a["type"] == "InternalIP"
    ]
    assert addresses == ["172.17.4.201", "172.17.4.202", "172.17.4.203"]


def test_replicas_are_spread_one_a_node(web: list[dict[str, Any]]) -> None:
    assert [pod["spec"]["nodeName"] for pod in web] == ["node-0", "node-1", "node-2"]
    assert all(pod["status"]["phase"] == "Running" for pod in web)


def test_the_host_reaches_pods_through_every_nodes_port(
    cluster: Podwire, web: list[dict[str, Any]]
) -> None:
    _, port = service(cluster)
    for node in cluster.status()["nodes"]:
        url = f"http://{node['underlay']}:{port}"
        wait_for(f"{url} answers", functools.partial(host_gets_page, cluster, url))


def host_gets_page(cluster: Podwire, url: str) -> bool:
    return WELCOME in cluster.run(["curl", "-sS", "-m", "5", url], check=False).out


def test_a_node_reaches_pods_and_the_service(cluster: Podwire, web: list[dict[str, Any]]) -> None:
    for pod in web:
        page = cluster.node("node-0", "curl", "-s", f"http://{pod['status']['podIP']}").out
        assert WELCOME in page
    cluster_ip, _ = service(cluster)
    wait_for(
        "the ClusterIP answers",
        lambda: (
            WELCOME in cluster.node("node-0", "curl", "-s", "-m", "2", cluster_ip, check=False).out
        ),
    )


def test_a_pod_reaches_another_pod_and_is_seen_with_its_own_address(
    cluster: Podwire, web: list[dict[str, Any]]
) -> None:
    client, server = web[0], web[2]
    url = f"http://{server['status']['podIP']}/from-a-pod"
    cluster.kubectl("exec", client["metadata"]["name"], "--", "curl", "-s", url)
    log = cluster.kubectl("logs", server["metadata"]["name"]).out
    (line,) = [line for line in log.splitlines() if '" 404 ' in line]
    assert line.startswith(client["status"]["podIP"] + " ")


def test_ping_a_remote_pod_passes_one_router(cluster: Podwire, web: list[dict[str, Any]]) -> None:
    out = cluster.node("node-0", "ping", "-c", "2", "-i", "0.1", web[1]["status"]["podIP"]).out
    assert out.count("ttl=63") == 2
    assert "2 packets transmitted, 2 received, 0% packet loss" in out


def test_a_cluster_ip_does_not_answer_ping(cluster: Podwire, web: list[dict[str, Any]]) -> None:
    cluster_ip, _ = service(cluster)
    done = cluster.node("node-0", "ping", "-c", "1", "-W", "1", cluster_ip, check=False)
    assert done.code == 1
    assert "100% packet loss" in done.out


def test_routes_neighbours_and_fdb_agree_with_the_leases_in_etcd(cluster: Podwire) -> None:
    if shutil.which("etcdctl") is None:
        pytest.skip("etcdctl is not installed")
    endpoints = ",".join(cluster.status()["etcd"]["endpoints"])
    out = cluster.run(
        [
            *("env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={endpoints}"),
            *("get", "--prefix", "/coreos.com/network/subnets/"),
        ]
    ).out.split("\n")
    leases = {
        key.rsplit("/", 1)[1].replace("-", "/"): json.loads(value)
        for key, value in zip(out[::2], out[1::2], strict=False)
        if value
    }
    assert len(leases) == 3
    for node in cluster.status()["nodes"]:
        routes = cluster.node(node["name"], "ip", "route").out
        fdb = cluster.node(node["name"], "bridge", "fdb", "show", "dev", "flannel.1").out
        neighbours = cluster.node(node["name"], "ip", "neigh", "show", "dev", "flannel.1").out
        for subnet, lease in leases.items():
            gateway = subnet.split("/")[0]
            if lease["PublicIP"] == node["ip"]:
                assert f"{subnet} via" not in routes
                continue
            mac = lease["BackendData"]["VtepMAC"]
            assert f"{subnet} via {gateway} dev flannel.1 onlink" in routes
            assert f"{mac} dst {lease['PublicIP']} self permanent" in fdb
            assert f"{gateway} lladdr {mac} PERMANENT" in neighbours


def test_the_chains_count_the_packets_that_passed(
    cluster: Podwire, web: list[dict[str, Any]]
) -> None:
    cluster_ip, _ = service(cluster)
    wait_for(
        "the ClusterIP answers",
        lambda: (
            WELCOME in cluster.node("node-1", "curl", "-s", "-m", "2", cluster_ip, check=False).out
        ),
    )
    before = dnat_packets(cluster, "node-1")
    for _ in range(5):
        cluster.node("node-1", "curl", "-s", cluster_ip)
    assert dnat_packets(cluster, "node-1") == before + 5


def dnat_packets(cluster: Podwire, node: str) -> int:
    out = cluster.node(node, "iptables", "-t", "nat", "-nvL").out
    lines = [line for line in out.splitlines() if " DNAT " in line and "default/web" in line]
    assert len(lines) == 3
    return sum(int(line.split()[0]) for line in lines)


def test_scaling_moves_the_endpoints(cluster: Podwire, web: list[dict[str, Any]]) -> None:
    cluster.kubectl("create", "deployment", "tiny", "--image=nginx")
    cluster.kubectl("expose", "deployment", "tiny", "--port=80")
    cluster.kubectl("scale", "deployment", "tiny", "--replicas=4")
    cluster.kubectl("rollout", "status", "deployment/tiny", "--timeout=30s")

    def endpoints() -> int:
        subsets = cluster.get("endpoints", "tiny").get("subsets") or [{}]
        return len(subsets[0].get("addresses", ()))

    wait_for("4 endpoints", lambda: endpoints() == 4)
    cluster.kubectl("scale", "deployment", "tiny", "--replicas=1")
    wait_for("1 endpoint", lambda: endpoints() == 1)
    cluster.kubectl("delete", "deployment,service", "tiny")
    wait_for("no pods of tiny", lambda: not cluster.get("pods", "-l", "app=tiny")["items"])


def test_trace_explains_a_service_connection(cluster: Podwire, web: list[dict[str, Any]]) -> None:
    cluster_ip, _ = service(cluster)
    out = cluster.podwire("trace", "node-0", f"{cluster_ip}:80").out
    assert re.search(r"KUBE-SERVICES", out)
    assert re.search(r"KUBE-SEP-[A-Z2-7]{16}", out)
    assert re.search(r"DNAT|dnat", out)
