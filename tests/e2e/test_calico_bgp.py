"""Peerings, reflectors, AS numbers, filters, passwords and services in BGP, on real sessions."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests import bgp_peers
from tests.e2e.calico import ADDRESS, Calico, ask_bird, calico, cluster_file, crd, pod
from tests.e2e.harness import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

NODES = "abcd"
ROUTER_IP = "10.10.64.99"
ROUTER = """
log stderr all;
router id {ip};
protocol device {{ scan time 60; }}
protocol static outside {{ ipv4; route 10.200.0.0/16 blackhole; route 10.201.0.0/16 blackhole; }}
protocol static nodes {{ ipv4; route 10.10.64.0/19 via "lo"; }}
protocol kernel {{ ipv4 {{ import none; export none; }}; merge paths on; }}
template bgp node {{
  local {host} port 1790 as 65001;
  multihop;
  strict bind on;
  {password}
  ipv4 {{ import all; export where proto = "outside"; next hop address {ip}; }};
}}
"""


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Calico]:
    podwire = calico(home, "bg")
    podwire.up(text=cluster_file(NODES, ipipMode="CrossSubnet"))
    try:
        yield podwire
    finally:
        podwire.podwire("down")


@pytest.fixture(scope="module")
def pods(cluster: Calico) -> dict[str, str]:
    """nginx on a and d, and who asks on a."""
    web = {"app": "web"}
    return cluster.pods(
        pod("web-a", "a", labels=web), pod("web-d", "d", labels=web), pod("asks", "a", "busybox:1")
    )


def sessions(cluster: Calico, node: str) -> dict[str, str]:
    """Names of BGP sessions and what they say."""
    return {name: info for name, (_, _, info) in cluster.protocols(node).items()}


def until_sessions(cluster: Calico, node: str, *names: str) -> None:
    wanted = dict.fromkeys(names, "Established")
    wait_for(
        f"{node} has sessions {sorted(wanted)}", lambda: sessions(cluster, node) == wanted, 30.0
    )


def mesh(node: str, *others: str) -> tuple[str, ...]:
    return tuple(f"Mesh_{ADDRESS[o].replace('.', '_')}" for o in others if o != node)


def peers(*others: str) -> tuple[str, ...]:
    return tuple(f"Node_{ADDRESS[o].replace('.', '_')}" for o in others)


def set_bgp(cluster: Calico, node: str, **fields: object) -> None:
    """Change a Calico Node's ``spec.bgp`` as people do; None removes a field."""
    patch = json.dumps({"spec": {"bgp": fields}})
    cluster.calicoctl("patch", "node", node, "-t", "merge", "-p", patch)


def configure(cluster: Calico, **spec: object) -> None:
    cluster.apply(crd("BGPConfiguration", "default", {"asNumber": 64512, **spec}))


def has_all_blocks(cluster: Calico, node: str) -> bool:
    """One route to each of the other nodes' blocks."""
    lines = [line for line in cluster.routes(node) if "via" in line and "proto bird" in line]
    return sum(line.split()[0].endswith("/26") for line in lines) == len(NODES) - 1


def test_the_mesh_gives_way_to_two_reflectors_and_comes_back(cluster: Calico) -> None:
    for node in NODES:
        until_sessions(cluster, node, *mesh(node, *NODES))
    since = cluster.protocols("a")[mesh("a", "d")[0]]
    for node in "bc":
        set_bgp(cluster, node, routeReflectorClusterID="244.0.0.1")
        cluster.kubectl("label", "node", node, "route-reflector=true")
    to_reflectors = {"nodeSelector": "all()", "peerSelector": "route-reflector == 'true'"}
    cluster.apply(crd("BGPPeer", "reflectors", to_reflectors))
    # Reflectors leave the mesh; what is left of it is not touched.
    until_sessions(cluster, "a", *peers("b", "c"), *mesh("a", "d"))
    assert cluster.protocols("a")[mesh("a", "d")[0]] == since
    configure(cluster, nodeToNodeMeshEnabled=False)
    for node in "ad":
        until_sessions(cluster, node, *peers("b", "c"))
    for node in "bc":
        until_sessions(cluster, node, *peers(*(n for n in NODES if n != node)))
    for node in NODES:
        wait_for(f"{node} has all blocks", lambda node=node: has_all_blocks(cluster, node))
    # Of a and d, not of the other reflector.
    wait_for(
        "the file says so",
        lambda: (
            cluster.node("b", "cat", "/etc/calico/confd/config/bird.cfg").out.count(
                "rr cluster id 244.0.0.1;"
            )
            == 2
        ),
    )
    status = cluster.calicoctl("node", "status").out
    assert re.search(rf"{re.escape(ADDRESS['b'])} +\| node specific +\| up ", status), status
    # And back.
    configure(cluster, nodeToNodeMeshEnabled=True)
    for node in "bc":
        set_bgp(cluster, node, routeReflectorClusterID=None)
        cluster.kubectl("label", "node", node, "route-reflector-")
    cluster.kubectl("delete", "bgppeers.crd.projectcalico.org", "reflectors")
    for node in NODES:
        until_sessions(cluster, node, *mesh(node, *NODES))
        wait_for(f"{node} has all blocks", lambda node=node: has_all_blocks(cluster, node))


def test_every_node_may_listen_at_another_port(cluster: Calico) -> None:
    def established(node: str, at: str) -> bool:
        named = sessions(cluster, node)
        files = cluster.node(node, "cat", "/etc/calico/confd/config/bird.cfg").out
        all_up = named == dict.fromkeys(mesh(node, *NODES), "Established")
        return all_up and f"neighbor {ADDRESS['b']} {at}as" in files

    configure(cluster, listenPort=1179)
    cluster.apply(crd("BGPConfiguration", "node.b", {"listenPort": 1279}))
    for node in "ad":
        wait_for(f"{node} peers", lambda node=node: established(node, "port 1279 "), 30.0)
        wait_for(f"{node} has all blocks", lambda node=node: has_all_blocks(cluster, node))
    cluster.kubectl("delete", "bgpconfigurations.crd.projectcalico.org", "node.b")
    configure(cluster)
    wait_for("the old ports are in use", lambda: established("a", ""), 30.0)
    until_sessions(cluster, "a", *mesh("a", *NODES))


class Router:
    """A real BIRD 2 above the cluster."""

    def __init__(self, cluster: Calico, folder: Path, host: str) -> None:
        self.cluster = cluster
        self._folder = folder
        self._host = host
        program, client = bgp_peers.bird2(), bgp_peers.bird2_client()
        if program is None or client is None:
            pytest.skip(bgp_peers.NO_BIRD2)
        self._client = client
        self._program = program

    def process(self, password: str = "") -> Any:
        secret = f'password "{password}";' if password else ""
        text = ROUTER.format(ip=ROUTER_IP, host=self._host, password=secret)
        for node in self.cluster.status()["nodes"]:
            text += (
                f"protocol bgp {node['name']} from node "
                f"{{ neighbor {node['underlay']} port 1790 as 64512; }}\n"
            )
        (self._folder / "bird.conf").write_text(text)
        arguments = ["-f", "-c", "bird.conf", "-s", "bird.ctl", "-P", "bird.pid"]
        arguments = [
            str(self._folder / each) if each.startswith("bird.") else each for each in arguments
        ]
        entry = {
            "name": "router",
            "ip": ROUTER_IP,
            "mac": "02:00:00:00:00:99",
            "underlay": self._host,
            "vxlan_port": 8472,
            "carrier_port": 8473,
            "bgp_port": 1790,
        }
        self.cluster.etcdctl("put", f"/podwire/underlay/{ROUTER_IP}", json.dumps(entry))
        return bgp_peers.process(self._program, arguments, self._folder / "bird.log")

    def show(self, *words: str) -> str:
        return self._client.run("-s", str(self._folder / "bird.ctl"), "show", *words)

    def established(self) -> int:
        return self.show("protocols").count("Established")

    def has(self, prefix: str) -> set[str]:
        """The nodes a prefix is learned from."""
        shown = self.show("route", "for", prefix, "all")
        return {name for name in NODES if f"[{name} " in shown} if f"{prefix} " in shown else set()


@pytest.fixture(scope="module")
def router(cluster: Calico, tmp_path_factory: pytest.TempPathFactory) -> Router:
    host = f"127.0.112.{1 + os.getpid() % 250}"
    return Router(cluster, tmp_path_factory.mktemp("router"), host)


def outside(cluster: Calico, node: str, prefix: str) -> bool:
    return any(line.startswith(f"{prefix} via") for line in cluster.routes(node))


@pytest.mark.usefixtures("pods")
def test_a_router_learns_services_and_what_filters_and_pools_let_out(
    cluster: Calico, router: Router
) -> None:
    service = {"apiVersion": "v1", "kind": "Service"}
    ports = {"selector": {"app": "web"}, "ports": [{"port": 80}]}
    local = {**ports, "type": "NodePort", "externalTrafficPolicy": "Local"}
    cluster.apply(
        {**service, "metadata": {"name": "local"}, "spec": local},
        {**service, "metadata": {"name": "anywhere"}, "spec": {**ports, "type": "NodePort"}},
    )
    # With a mesh every node would tell the router what it heard from the others.
    configure(cluster, nodeToNodeMeshEnabled=False, serviceClusterIPs=[{"cidr": "10.96.0.0/12"}])
    block = cluster.block("d")
    with router.process():
        cluster.apply(crd("BGPPeer", "router", {"peerIP": ROUTER_IP, "asNumber": 65001}))
        wait_for("all nodes peer", lambda: router.established() == len(NODES), 30.0)
        wait_for("the services' range", lambda: router.has("10.96.0.0/12") == set(NODES))
        address = cluster.get("service", "local")["spec"]["clusterIP"]
        wait_for("the nodes with endpoints", lambda: router.has(f"{address}/32") == {"a", "d"})
        other = cluster.get("service", "anywhere")["spec"]["clusterIP"]
        assert router.has(f"{other}/32") == set()
        wait_for("d's block", lambda: router.has(block) == {"d"})
        # The same service by several ways: what a router balances over.
        shown = router.show("route", "for", f"{address}/32", "all")
        assert {f"BGP.next_hop: {ADDRESS[node]}" in shown for node in "ad"} == {True}
        since = {name: entry[1] for name, entry in cluster.protocols("a").items()}
        wait_for("the outside", lambda: outside(cluster, "a", "10.200.0.0/16"))
        # An endpoint that goes takes its node's announcement with it.
        cluster.kubectl("delete", "pod", "web-d", "--now")
        wait_for("d has no endpoint", lambda: router.has(f"{address}/32") == {"a"})
        cluster.pods(pod("web-d", "d", labels={"app": "web"}))
        wait_for("d has one again", lambda: router.has(f"{address}/32") == {"a", "d"})
        # What is let in and out.
        import_rule = {"action": "Reject", "matchOperator": "In", "cidr": "10.200.0.0/16"}
        export_rule = {"action": "Reject", "matchOperator": "Equal", "cidr": block}
        rules = {"importV4": [import_rule], "exportV4": [export_rule]}
        cluster.apply(
            crd("BGPFilter", "careful", rules),
            crd(
                "BGPPeer",
                "router",
                {"peerIP": ROUTER_IP, "asNumber": 65001, "filters": ["careful"]},
            ),
        )
        wait_for("10.200 is not let in", lambda: not outside(cluster, "a", "10.200.0.0/16"))
        assert outside(cluster, "a", "10.201.0.0/16")
        wait_for("d's block is not let out", lambda: router.has(block) == set())
        cluster.apply(crd("BGPPeer", "router", {"peerIP": ROUTER_IP, "asNumber": 65001}))
        wait_for("d's block is told again", lambda: router.has(block) == {"d"})
        cluster.pool(disableBGPExport=True)
        wait_for("no block is let out", lambda: router.has(block) == set())
        assert router.has("10.96.0.0/12") == set(NODES)
        cluster.pool(disableBGPExport=False)
        wait_for("blocks are told again", lambda: router.has(block) == {"d"})
        # None of this cost the session.
        now = {name: entry[1] for name, entry in cluster.protocols("a").items()}
        assert {name: now.get(name) for name in since} == since
    wait_for("what it told is gone", lambda: not outside(cluster, "a", "10.201.0.0/16"), 30.0)
    cluster.kubectl("delete", "bgppeers.crd.projectcalico.org", "router")
    cluster.kubectl("delete", "services", "local", "anywhere")
    configure(cluster)
    until_sessions(cluster, "a", *mesh("a", *NODES))


def test_a_password_of_a_secret_lets_in_only_who_knows_it(cluster: Calico, router: Router) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bgp"}}
    cluster.apply({**secret, "metadata": {"name": "bgp", "namespace": "kube-system"},
                   "stringData": {"router": "s3cret"}})  # fmt: skip
    reference = {"secretKeyRef": {"name": "bgp", "key": "router"}}
    spec = {"peerIP": ROUTER_IP, "asNumber": 65001, "password": reference}
    meshed = mesh("a", *NODES)
    since = {name: cluster.protocols("a")[name][1] for name in meshed}
    cluster.apply(crd("BGPPeer", "router", spec))
    name = f"Global_{ROUTER_IP.replace('.', '_')}"
    wait_for("a knows the peer", lambda: name in sessions(cluster, "a"))
    with router.process("s3cret"):
        wait_for("all nodes peer", lambda: router.established() == len(NODES), 30.0)
        cluster.apply({**secret, "metadata": {"name": "bgp", "namespace": "kube-system"},
                       "stringData": {"router": "another"}})  # fmt: skip
        wait_for("nobody knows the password now", lambda: router.established() == 0, 30.0)
        cluster.apply({**secret, "metadata": {"name": "bgp", "namespace": "kube-system"},
                       "stringData": {"router": "s3cret"}})  # fmt: skip
        wait_for("all know it again", lambda: router.established() == len(NODES), 60.0)
    assert {name: cluster.protocols("a")[name][1] for name in meshed} == since
    cluster.kubectl("delete", "bgppeers.crd.projectcalico.org", "router")


def test_nodes_each_of_an_as_of_their_own_speak_ebgp(cluster: Calico, pods: dict[str, str]) -> None:
    to_b = mesh("a", "b")[0]
    for number, node in enumerate(NODES, 65001):
        set_bgp(cluster, node, asNumber=number)
    paths = {each["name"]: each["bird_ctl"] for each in cluster.status()["nodes"]}

    def says(peer: str) -> str:
        return "".join(ask_bird(paths["a"], f"show protocols all {mesh('a', peer)[0]}"))

    def settled() -> bool:
        said = [says(peer) for peer in "bcd"]
        numbers = enumerate(said, 65002)
        return all(
            f"Neighbor AS:      {number}" in text and "BGP state:          Established" in text
            for number, text in numbers
        )

    wait_for("all are of other ASes", settled, 30.0)
    assert "external multihop" in says("d")
    wait_for("a has all blocks", lambda: has_all_blocks(cluster, "a"))
    shown = "".join(ask_bird(paths["a"], f"show route all protocol {mesh('a', 'd')[0]}"))
    assert "BGP.as_path: 65004" in shown
    address = cluster.get("pod", "web-d")["status"]["podIP"]
    wait_for("d answers", lambda: cluster.gets("asks", address))
    # A session between two whose numbers stay is not touched by others' changes.
    untouched = cluster.protocols("a")[to_b]
    set_bgp(cluster, "d", asNumber=None)
    wait_for("d is of the cluster's AS", lambda: "Neighbor AS:      64512" in says("d"))
    assert cluster.protocols("a")[to_b] == untouched
