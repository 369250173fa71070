"""Calico's addresses in a running cluster: pools, wishes of pods, small pools, leaks."""

from __future__ import annotations

import os
import re
import signal
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from tests.e2e.calico import Calico, calico, cluster_file, crd, pod
from tests.e2e.harness import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

NO_PROBLEM = "Check complete; found 0 problems."


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Calico]:
    podwire = calico(home, "ad")
    podwire.up(text=cluster_file("abc"))
    try:
        yield podwire
    finally:
        podwire.podwire("down")


def events_of(cluster: Calico, name: str) -> str:
    """What a pod's events say about its sandbox."""
    return cluster.kubectl(
        *("get", "events", "--field-selector", f"involvedObject.name={name}"),
        *("-o", "jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}"),
    ).out


def until_event(cluster: Calico, name: str, text: str) -> None:
    wait_for(f"{name} says {text!r}", lambda: text in events_of(cluster, name), 30.0)


def until_ready_at_once(cluster: Calico, name: str) -> None:
    """Have a pod's failed sandbox tried again before its back-off of 10 s and more is over."""
    cluster.kubectl("annotate", "pod", name, "tried=again")
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=30s")


def until_clean(cluster: Calico, within_s: float = 30.0) -> None:
    """``ipam check`` finds nothing; it sees what is under way, too."""
    said = ""

    def clean() -> bool:
        nonlocal said
        said = cluster.calicoctl("ipam", "check", check=False).out
        return NO_PROBLEM in said

    try:
        wait_for("ipam check finds nothing", clean, within_s)
    except BaseException:
        print(said)
        raise


def pool(name: str, cidr: str, **spec: object) -> dict[str, object]:
    return crd("IPPool", name, {"cidr": cidr, "ipipMode": "Always", "natOutgoing": True, **spec})


def delete_all(cluster: Calico) -> None:
    cluster.kubectl("delete", "pods", "--all", "--now")


def test_pools_choose_nodes_and_pods_choose_pools_and_addresses(cluster: Calico) -> None:
    cluster.kubectl("label", "node", "b", "rack=2")
    cluster.apply(
        pool("rack-2", "172.20.0.0/24", blockSize=28, nodeSelector="rack == '2'"),
        pool("chosen", "172.21.0.0/24", blockSize=28, nodeSelector="!all()"),
    )
    cluster.pool(nodeSelector="rack != '2'")
    wait_for(
        "the label has reached Calico",
        lambda: "rack" in cluster.calicoctl("get", "node", "b", "-o", "yaml").out,
    )
    wishes = {"cni.projectcalico.org/ipv4pools": '["chosen"]'}
    exactly = {"cni.projectcalico.org/ipAddrs": '["192.168.200.7"]'}
    made = cluster.pods(
        pod("on-a", "a"),
        pod("on-b", "b"),
        pod("wished", "a", annotations=wishes),
        pod("exact", "c", annotations=exactly),
        pod("asks", "c", "nicolaka/netshoot"),
    )
    assert ip_address(made["on-a"]) in ip_network("192.168.0.0/16")
    assert ip_address(made["on-b"]) in ip_network("172.20.0.0/24")
    assert ip_address(made["wished"]) in ip_network("172.21.0.0/24")
    assert made["exact"] == "192.168.200.7"
    for name in ("on-a", "on-b", "wished", "exact"):
        wait_for(f"{name} is reached", lambda name=name: cluster.gets("asks", made[name]))
    # The same address cannot be had twice, and the pod says so.
    cluster.apply(pod("again", "a", annotations=exactly))
    until_event(cluster, "again", "FailedCreatePodSandBox")
    until_event(cluster, "again", "192.168.200.7")
    cluster.kubectl("delete", "pod", "exact", "again", "--now")
    made |= cluster.pods(pod("exact", "a", annotations=exactly))
    # One address of another node's block, or of none: a route of its own, as narrow as it is.
    wait_for("it is reached where it is now", lambda: cluster.gets("asks", made["exact"]))
    delete_all(cluster)
    until_clean(cluster)


def test_an_exhausted_pool_lends_between_nodes_until_nothing_is_left(cluster: Calico) -> None:
    small = {"cni.projectcalico.org/ipv4pools": '["small"]'}
    # Two blocks of four for three nodes.
    cluster.apply(pool("small", "172.22.0.0/29", blockSize=30))
    first = cluster.pods(*(pod(f"a{n}", "a", annotations=small) for n in range(4)))
    second = cluster.pods(pod("b0", "b", annotations=small))
    borrowed = cluster.pods(
        pod("c0", "c", annotations=small), pod("asks", "a", "nicolaka/netshoot")
    )
    address = borrowed["c0"]
    owner = ip_network("172.22.0.4/30" if ip_address(second["b0"]) in ip_network("172.22.0.4/30")
                       else "172.22.0.0/30")  # fmt: skip
    assert ip_address(address) in owner, "c borrows of b's block"
    wait_for("the borrower is reached", lambda: cluster.gets("asks", address))
    # The lender itself must not take the address for one of its own that nobody has.
    cluster.until_routed("b", f"{address} via 10.10.80.13 dev tunl0 proto bird onlink")
    assert cluster.node_gets("b", address)
    shown = cluster.calicoctl("ipam", "show", "--show-borrowed").out
    assert re.search(rf"\| {re.escape(address)} +\| c +\| {re.escape(str(owner))}", shown), shown
    rest = cluster.pods(pod("b1", "b", annotations=small), pod("b2", "b", annotations=small))
    cluster.apply(pod("none", "c", annotations=small))
    until_event(
        cluster, "none", "Assigned 0 out of 1 requested IPv4 addresses; No IPs available in pools"
    )
    held = [*first.values(), *second.values(), address, *rest.values()]
    assert len({*held}) == 8
    # One that goes makes room for the one that waits.
    cluster.kubectl("delete", "pod", "a0", "--now")
    until_ready_at_once(cluster, "none")
    assert cluster.get("pod", "none")["status"]["podIP"] == first["a0"]
    delete_all(cluster)
    until_clean(cluster)


def test_strict_affinity_and_a_limit_of_blocks_refuse_with_calico_s_words(cluster: Calico) -> None:
    cluster.apply(pool("strict", "172.23.0.0/28", blockSize=30))
    strict = {"cni.projectcalico.org/ipv4pools": '["strict"]'}
    # A limit needs strict affinity; it counts the blocks of the pools a pod may have.
    cluster.calicoctl("ipam", "configure", "--strictaffinity=true", "--max-blocks-per-host=1")
    names = [f"s{number}" for number in range(4)]
    cluster.pods(*(pod(name, "a", annotations=strict) for name in names))
    cluster.apply(pod("fifth", "a", annotations=strict))
    until_event(
        cluster,
        "fifth",
        "cannot allocate new block due to per host block limit",
    )
    cluster.calicoctl("ipam", "configure", "--strictaffinity=false", "--max-blocks-per-host=0")
    until_ready_at_once(cluster, "fifth")
    delete_all(cluster)
    until_clean(cluster)


def test_no_address_is_lost_or_had_twice_when_processes_and_nodes_die(cluster: Calico) -> None:
    document = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "churn"},
        "spec": {
            "replicas": 24,
            "selector": {"matchLabels": {"app": "churn"}},
            "template": {
                "metadata": {"labels": {"app": "churn"}},
                "spec": pod("x", "", "busybox")["spec"],
            },
        },
    }
    cluster.apply(document)
    os.kill(cluster.pid("b"), signal.SIGKILL)
    os.kill(cluster.pid("etcd"), signal.SIGKILL)
    cluster.kubectl("scale", "deployment/churn", "--replicas=6", check=False)
    wait_for("etcd is back", lambda: cluster.status()["etcd"]["ready"])
    wait_for(
        "the API answers",
        lambda: (
            cluster.kubectl("scale", "deployment/churn", "--replicas=20", check=False).code == 0
        ),
    )
    cluster.kubectl("rollout", "status", "deployment/churn", "--timeout=60s")
    # A pod that is going keeps the address in its status after it gave it back.
    found = [
        item for item in cluster.get("pods")["items"] if "deletionTimestamp" not in item["metadata"]
    ]
    assert len({item["status"]["podIP"] for item in found}) == len(found) == 20
    until_clean(cluster)
    # A node that is deleted gives everything back, and has its own again once it starts anew.
    cluster.kubectl("delete", "node", "c")
    wait_for("Calico has deleted it", lambda: "\nc " not in cluster.calicoctl("get", "nodes").out)
    os.kill(cluster.pid("c"), signal.SIGKILL)
    cluster.kubectl("delete", "deployment", "churn")
    wait_for("all pods are gone", lambda: not cluster.get("pods")["items"], 30.0)
    made = cluster.pods(pod("far", "c"), pod("asks", "a", "nicolaka/netshoot"))
    wait_for("c's pod is reached", lambda: cluster.gets("asks", made["far"]))
    wait_for(
        "c has a tunnel", lambda: "inet " in cluster.node("c", "ip", "addr", "show", "tunl0").out
    )
    until_clean(cluster)
