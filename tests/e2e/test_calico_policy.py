"""NetworkPolicy and GlobalNetworkPolicy on real packets: both directions, nodes, services, NAT."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.calico import WELCOME, Calico, Conversation, calico, cluster_file, crd, pod
from tests.e2e.harness import wait_for
from tests.e2e.taps import captures, decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

NETSHOOT = "nicolaka/netshoot"
GATEWAY = "10.10.64.1"


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Calico]:
    podwire = calico(home, "po")
    podwire.up(text=cluster_file("ac"))
    try:
        yield podwire
    finally:
        podwire.podwire("down")


@pytest.fixture(scope="module")
def pods(cluster: Calico) -> dict[str, str]:
    """Servers on both nodes; those who ask are on a, one in another namespace."""
    team = {"apiVersion": "v1", "kind": "Namespace"}
    cluster.apply({**team, "metadata": {"name": "ops", "labels": {"team": "ops"}}})
    web = {"app": "web"}
    made = cluster.pods(
        pod("web-a", "a", labels=web),
        pod("web-c", "c", labels=web),
        pod("friend", "a", NETSHOOT, labels={"run": "friend"}),
        pod("foe", "a", NETSHOOT, labels={"run": "foe"}),
    )
    made |= cluster.pods(pod("admin", "a", NETSHOOT, namespace="ops"), namespace="ops")
    for name in ("web-a", "web-c"):
        wait_for(f"{name} is reached", lambda name=name: cluster.gets("foe", made[name]))
    return made


@pytest.fixture
def policies(cluster: Calico) -> Iterator[None]:
    """Whatever a test forbids is allowed again after it."""
    yield
    cluster.kubectl("delete", "networkpolicies", "--all")
    cluster.kubectl("delete", "globalnetworkpolicies.crd.projectcalico.org", "--all")


def policy(name: str, **spec: Any) -> dict[str, Any]:
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return {**kind, "metadata": {"name": name}, "spec": {"podSelector": {}, **spec}}


def until(cluster: Calico, who: str, url: str, reached: bool, namespace: str = "default") -> None:
    wait_for(
        f"{who} {'reaches' if reached else 'is kept from'} {url}",
        lambda: (cluster.gets if reached else cluster.refused)(who, url, namespace=namespace),
    )


@pytest.mark.usefixtures("policies")
def test_default_deny_closes_and_each_allowance_opens_one_door(
    cluster: Calico, pods: dict[str, str]
) -> None:
    cluster.apply(policy("deny", policyTypes=["Ingress"]))
    servers = (pods["web-a"], pods["web-c"])
    for address in servers:
        until(cluster, "friend", address, False)
    # A node reaches its own pods, as the kubelet must, but no others.
    assert cluster.node_gets("a", pods["web-a"])
    assert cluster.node_gets("c", pods["web-c"])
    assert not cluster.node_gets("a", pods["web-c"])
    trace = cluster.podwire("trace", "friend", f"{pods['web-c']}:80", check=False)
    assert "default/knp.default.deny" in trace.out
    assert "last seen on c: netfilter_drop" in trace.out
    friends = [{"podSelector": {"matchLabels": {"run": "friend"}}}]
    only_web = {"matchLabels": {"app": "web"}}
    cluster.apply(
        policy(
            "friends", podSelector=only_web, ingress=[{"from": friends, "ports": [{"port": 80}]}]
        )
    )
    for address in servers:
        until(cluster, "friend", address, True)
        assert cluster.refused("foe", address)
    # Port 80 only: the very same pod is refused what it was not given.
    ping = ("exec", "friend", "--", "ping", "-c", "1", "-W", "1", pods["web-a"])
    assert "100% packet loss" in cluster.kubectl(*ping, check=False).out
    assert cluster.refused("admin", pods["web-c"], namespace="ops")
    ops = [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]
    cluster.apply(policy("ops", podSelector=only_web, ingress=[{"from": ops}]))
    for address in servers:
        until(cluster, "admin", address, True, "ops")
    # The namespace's label counts as it is now.
    cluster.kubectl("label", "namespace", "ops", "team-")
    until(cluster, "admin", pods["web-c"], False, "ops")
    cluster.kubectl("label", "namespace", "ops", "team=ops")
    until(cluster, "admin", pods["web-c"], True, "ops")


@pytest.mark.usefixtures("policies")
def test_an_ip_block_lets_the_outside_in_through_a_node_port_but_for_its_exceptions(
    cluster: Calico, pods: dict[str, str]
) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}
    spec = {"selector": {"app": "web"}, "type": "NodePort", "ports": [{"port": 80}]}
    cluster.apply({**service, "spec": spec})
    found = cluster.get("service", "web")["spec"]
    port, cluster_ip = found["ports"][0]["nodePort"], found["clusterIP"]
    url = f"http://{cluster.underlay('a')}:{port}/"

    def served() -> int:
        """How many of four requests from this host are answered: both pods are tried."""
        with ThreadPoolExecutor(4) as threads:
            asked = [
                threads.submit(cluster.run, ["curl", "-s", "-m", "1", url], check=False)
                for _ in range(4)
            ]
        return sum(WELCOME in each.result().out for each in asked)

    wait_for("the NodePort is served", lambda: served() == 4)
    wait_for("the ClusterIP is served", lambda: cluster.gets("friend", cluster_ip))

    def block(*exceptions: str) -> dict[str, Any]:
        peer = {"ipBlock": {"cidr": "10.10.64.0/20", "except": list(exceptions)}}
        return policy("outside", policyTypes=["Ingress"], ingress=[{"from": [peer]}])

    cluster.apply(block(f"{GATEWAY}/32"))
    wait_for("nobody of this host is let in", lambda: served() == 0)
    until(cluster, "friend", cluster_ip, False)
    cluster.apply(block("10.10.65.0/24"))
    # On the way to node c the request is the tunnel's: policies there see its address.
    tunnel = re.findall(r"inet ([\d.]+/32)", cluster.node("a", "ip", "addr", "show", "tunl0").out)
    wait_for("the pod of this node is served", lambda: served() > 0)
    whole = block()
    whole["spec"]["ingress"][0]["from"].append({"ipBlock": {"cidr": tunnel[0]}})
    cluster.apply(whole)
    wait_for("both pods are served", lambda: served() == 4)
    friends = {"podSelector": {"matchLabels": {"run": "friend"}}}
    cluster.apply(policy("friends", ingress=[{"from": [friends]}]))
    # Behind a ClusterIP a pod is known by its own address.
    for _ in range(3):
        until(cluster, "friend", cluster_ip, True)
    assert cluster.refused("foe", cluster_ip)


@pytest.mark.usefixtures("policies")
def test_egress_is_closed_at_the_sender_and_established_connections_go_on(
    cluster: Calico, pods: dict[str, str]
) -> None:
    talk = Conversation(cluster, "foe", pods["web-c"])
    try:
        talk.until_answered("before the policy")
        allowed = [{"to": [{"ipBlock": {"cidr": f"{pods['web-a']}/32"}}]}]
        foe = {"matchLabels": {"run": "foe"}}
        cluster.apply(policy("stay", podSelector=foe, policyTypes=["Egress"], egress=allowed))
        until(cluster, "foe", pods["web-c"], False)
        assert cluster.gets("foe", pods["web-a"])
        assert cluster.gets("friend", pods["web-c"])
        trace = cluster.podwire("trace", "foe", f"{pods['web-c']}:80", check=False)
        assert "last seen on a: netfilter_drop" in trace.out
        assert "workload default/foe, egress; policies default/knp.default.stay" in trace.out
        talk.until_answered("to a connection older than the policy")
    finally:
        talk.close()


@pytest.mark.usefixtures("policies")
def test_a_global_policy_of_calicoctl_decides_by_order_before_kubernetes_policies(
    cluster: Calico, pods: dict[str, str]
) -> None:
    rule = {"action": "Deny", "source": {"selector": "run == 'foe'"}}
    deny = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "no-foes"},
        "spec": {
            "order": 10,
            "selector": "app == 'web'",
            "types": ["Ingress"],
            "ingress": [rule, {"action": "Pass"}],
        },
    }
    said = cluster.calicoctl("apply", "-f", "-", stdin=json.dumps(deny)).out
    assert said == "Successfully applied 1 'GlobalNetworkPolicy' resource(s)\n"
    cluster.apply(policy("all", ingress=[{}]))
    for name in ("web-a", "web-c"):
        until(cluster, "foe", pods[name], False)
        assert cluster.gets("friend", pods[name])
        trace = cluster.podwire("trace", "foe", f"{pods[name]}:80", check=False).out
        assert "filter cali-pi-default.no-foes rule 1 (policy default.no-foes, ingress)" in trace
    listed = cluster.calicoctl("get", "gnp", "-o", "wide").out.split("\n")
    assert listed[1].split()[0].endswith("no-foes")
    # What calicoctl calls no-foes is stored as a policy of the tier default, which kubectl shows.
    shown = cluster.get("globalnetworkpolicies.crd.projectcalico.org", "default.no-foes")
    assert rule.items() <= shown["spec"]["ingress"][0].items()
    # The other way round: allowed by kubectl's change before anybody denies.
    first = crd(
        "GlobalNetworkPolicy",
        "default.first",
        {"order": 1, "selector": "app == 'web'", "ingress": [{"action": "Allow"}]},
    )
    cluster.apply(first)
    until(cluster, "foe", pods["web-c"], True)
    cluster.calicoctl("delete", "gnp", "first")
    until(cluster, "foe", pods["web-c"], False)
    cluster.calicoctl("delete", "gnp", "no-foes")
    until(cluster, "foe", pods["web-c"], True)


def test_pods_leave_the_cluster_by_their_node_s_address_if_the_pool_says_so(
    cluster: Calico, pods: dict[str, str], tmp_path: Path
) -> None:
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is not installed")

    def sources(name: str) -> set[str]:
        """Whom the wire shows asking the gateway."""
        with captures(cluster, {name: ("a", "eth0")}, tmp_path):
            ping = ("exec", "friend", "--", "ping", "-c", "2", "-i", "0.2", "-W", "1", GATEWAY)
            cluster.kubectl(*ping, check=False)
        seen = decoded(cluster, tmp_path / f"{name}.pcapng")
        return set(re.findall(rf"IP (\S+) > {re.escape(GATEWAY)}: ICMP echo request", seen))

    assert sources("nat") == {"10.10.64.11"}
    cluster.pool(natOutgoing=False)
    wait_for(
        "felix knows",
        lambda: pods["friend"] in sources("plain"),
    )
    cluster.pool(natOutgoing=True)
    wait_for("felix knows", lambda: sources("again") == {"10.10.64.11"})


def test_a_pod_cannot_speak_in_another_s_name(cluster: Calico, pods: dict[str, str]) -> None:
    foe = ("exec", "foe", "--")
    cluster.kubectl(*foe, "ip", "addr", "add", f"{pods['friend']}/32", "dev", "eth0")
    ping = [*foe, "ping", "-c", "1", "-W", "1"]
    assert "100% packet loss" in (
        cluster.kubectl(*ping, "-I", pods["friend"], pods["web-c"], check=False).out
    )
    assert "1 packets received" in cluster.kubectl(*ping, "-I", pods["foe"], pods["web-c"]).out
    raw = cluster.node("a", "iptables", "-t", "raw", "-nvL", "cali-PREROUTING").out
    dropped = next(line for line in raw.splitlines() if " DROP " in line and "rpfilter" in line)
    assert int(dropped.split()[0]) >= 1
    cluster.kubectl(*foe, "ip", "addr", "del", f"{pods['friend']}/32", "dev", "eth0")


def v3(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """A resource as calicoctl takes it."""
    version = "projectcalico.org/v3"
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, **metadata},
        "spec": spec,
    }


@pytest.fixture
def resources(cluster: Calico) -> Iterator[Callable[..., None]]:
    """``calicoctl apply`` of resources that are deleted after the test."""
    made: list[dict[str, Any]] = []

    def apply(*objects: dict[str, Any]) -> None:
        documents = "\n---\n".join(json.dumps(each) for each in objects)
        cluster.calicoctl("apply", "-f", "-", stdin=documents)
        made.extend(objects)

    yield apply
    documents = "\n---\n".join(json.dumps(each) for each in reversed(made))
    cluster.calicoctl("delete", "-f", "-", "--skip-not-exists", stdin=documents)


def test_network_sets_stand_for_addresses_where_their_namespace_reaches(
    cluster: Calico, pods: dict[str, str], resources: Callable[..., None]
) -> None:
    nets, labels = [f"{pods['friend']}/32"], {"who": "known"}
    source = {"action": "Allow", "source": {"selector": "who == 'known'"}}
    web = {"selector": "app == 'web'", "ingress": [source]}
    resources(
        v3("NetworkSet", "known", {"nets": nets}, namespace="ops", labels=labels),
        v3("NetworkPolicy", "known", web, namespace="default"),
    )
    # A set of another namespace is nobody to a policy of this one.
    until(cluster, "friend", pods["web-c"], False)
    assert cluster.refused("foe", pods["web-a"])
    resources(v3("GlobalNetworkSet", "known", {"nets": nets}, labels=labels))
    assert cluster.refused("friend", pods["web-c"])
    resources(v3("NetworkSet", "known", {"nets": nets}, namespace="default", labels=labels))
    until(cluster, "friend", pods["web-c"], True)
    assert cluster.refused("foe", pods["web-c"])
    cluster.calicoctl("delete", "np", "known")
    everywhere = {**source["source"], "namespaceSelector": "global()"}
    resources(
        v3("GlobalNetworkPolicy", "known", {**web, "ingress": [{**source, "source": everywhere}]})
    )
    until(cluster, "friend", pods["web-a"], True)
    assert cluster.refused("foe", pods["web-a"])
    # The set's networks count as they are now; the namespaced sets are none of global().
    resources(v3("GlobalNetworkSet", "known", {"nets": [f"{pods['foe']}/32"]}, labels=labels))
    until(cluster, "foe", pods["web-a"], True)
    until(cluster, "friend", pods["web-a"], False)


def test_icmp_and_accounts_are_told_apart(
    cluster: Calico, pods: dict[str, str], resources: Callable[..., None]
) -> None:
    def pings(who: str) -> bool:
        ping = ("exec", who, "--", "ping", "-c", "1", "-W", "1", pods["web-c"])
        return "1 packets received" in cluster.kubectl(*ping, check=False).out

    def allow(**rule: Any) -> None:
        spec = {"selector": "app == 'web'", "ingress": [{"action": "Allow", **rule}]}
        resources(v3("GlobalNetworkPolicy", "some", spec))

    allow(protocol="ICMP", icmp={"type": 8, "code": 0})
    until(cluster, "friend", pods["web-c"], False)
    assert pings("friend")
    allow(protocol="ICMP", notICMP={"type": 8})
    wait_for("no echo", lambda: not pings("friend"))
    allow(protocol=1)
    wait_for("any ICMP", lambda: pings("friend"))
    allow(notProtocol="ICMP")
    until(cluster, "friend", pods["web-c"], True)
    assert not pings("friend")
    account = {"serviceAccounts": {"names": ["default"]}, "namespaceSelector": "team == 'ops'"}
    allow(source=account)
    until(cluster, "friend", pods["web-c"], False)
    until(cluster, "admin", pods["web-c"], True, "ops")
    account["serviceAccounts"] = {"names": ["another"]}
    allow(source=account)
    until(cluster, "admin", pods["web-c"], False, "ops")


@pytest.mark.usefixtures("policies")
def test_a_pod_s_way_to_itself_is_asked_only_where_it_leaves_the_pod(
    cluster: Calico, pods: dict[str, str]
) -> None:
    alone = cluster.pods(pod("alone", "a", labels={"run": "alone"}))["alone"]
    spec = {"selector": {"run": "alone"}, "type": "NodePort", "ports": [{"port": 80}]}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alone"}, "spec": spec}
    )
    found = cluster.get("service", "alone")["spec"]
    ways = (
        found["clusterIP"],
        f"10.10.64.11:{found['ports'][0]['nodePort']}",
        f"10.10.80.13:{found['ports'][0]['nodePort']}",
    )
    for way in ways:
        until(cluster, "alone", way, True)
    cluster.apply(policy("alone", podSelector={"matchLabels": {"run": "alone"}}))
    # Through its service it comes back as anybody from outside, without one it never leaves.
    for way in ways:
        until(cluster, "alone", way, False)
    assert cluster.gets("alone", alone)
    assert cluster.node_gets("a", alone), "a node reaches its own pods"
    assert not cluster.node_gets("c", found["clusterIP"])
    cluster.kubectl("delete", "pod/alone", "service/alone", "--now")
