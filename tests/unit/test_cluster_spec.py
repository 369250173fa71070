"""The cluster file: defaults, overrides, and one clear line for everything wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.addr import Prefix, format_ip, parse_ip
from emulator.cluster.networks import flannel_config
from emulator.cluster.plan import make_plan
from emulator.cluster.presets import PRESETS, preset_text
from emulator.cluster.spec import load_spec
from emulator.errors import UsageError
from etcd.core.access import EtcdAccess


def test_an_empty_file_is_three_flannel_nodes_of_the_tutorial() -> None:
    spec = load_spec(None)
    assert spec.name == "podwire"
    assert [(node.name, node.ip) for node in spec.nodes] == [
        ("node-0", parse_ip("172.17.4.201")),
        ("node-1", parse_ip("172.17.4.202")),
        ("node-2", parse_ip("172.17.4.203")),
    ]
    assert spec.network.pod_cidr == Prefix.parse("10.2.0.0/16")
    assert flannel_config(spec.network) == {
        "Network": "10.2.0.0/16",
        "SubnetLen": 24,
        "Backend": {"Type": "vxlan"},
    }


def test_nodes_can_be_named_and_addressed() -> None:
    spec = load_spec(
        """
        nodeNetwork: {cidr: 10.10.64.0/19, gateway: 10.10.64.1}
        nodes:
        - {name: kube-0, ip: 10.10.68.222}
        - {name: kube-1, ip: 10.10.95.205}
        """
    )
    assert [node.name for node in spec.nodes] == ["kube-0", "kube-1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: 0", "nodes: a cluster needs at least 1 node"),
        ("nodes: 5000", "nodes: 5000 is more than the 1000"),
        ("nodes: true", "nodes: expected a number or a list, found a truth value"),
        (
            "network: cilium",
            r"network: 'cilium' is not a network Podwire knows \(flannel, calico\)",
        ),
        ("network: {podCIDR: 10.2.0.0/30}", "podCIDR: 10.2.0.0/30 is too small"),
        ("network: {podCIDR: 10.2.0.0/24}\nnodes: 300", "has 3 subnets of /26, too few for 300"),
        ("network: {podCIDR: 10.2.0.1/16}", r"did you mean 10\.2\.0\.0/16"),
        ("network: {subnetLen: 17}", "at least four subnets"),
        ("network: {backend: wireguard}", "'wireguard' is not a flannel backend"),
        ("network: {podCIDR: 172.17.0.0/16}", "overlaps nodeNetwork.cidr"),
        ("nodez: 3", r"nodez: unknown field \(known: .*nodes"),
        ("nodes: [{name: a, adress: 1.2.3.4}]", r"nodes\[0\].adress: unknown field"),
        ("nodes: [etcd]", r"nodes\[0\].name: 'etcd' is the name of another process"),
        ("name: a\x07", "not YAML: unacceptable character #x0007"),
        ("etcd: {endpoints: 5}", "etcd.endpoints: expected a list of URLs, found 5"),
        ("etcd: {endpoints: [5]}", "etcd.endpoints: 5 is not an endpoint"),
        ("etcd: {endpoints: [e1]}", "etcd.endpoints: 'e1' is not an endpoint"),
        ("nodes: [a, a]", "'a' is already the name of node number 1"),
        ("nodes: [{name: A}]", "'A' is not a node name"),
        ("nodes: [{ip: 172.17.4.1}]", "172.17.4.1 is already nodeNetwork.gateway"),
        ("nodes: [{ip: 10.9.9.9}]", "is not in nodeNetwork"),
        ("nodes: [{ip: 172.17.4.9/33}]", r"nodes\[0\].ip: /33 is not a length"),
        ("nodes: [{ip: 172.17.4.9/24, gateway: 172.17.5.1}]", "172.17.5.1 is not in 172.17.4.0/24"),
        ("nodes: [{labels: {a: 1}}]", r"nodes\[0\].labels: expected a mapping of text to text"),
        ("nodes: [{taints: [{key: a, effect: Never}]}]", "'Never' is not one of NoSchedule"),
        ("nodes: [{taints: [{value: a}]}]", r"nodes\[0\].taints\[0\].key: a taint needs a key"),
        ("dockerBridge: 10.2.0.1/16", "network.podCIDR: 10.2.0.0/16 overlaps dockerBridge"),
        ("name: UP", "'UP' is not a cluster name"),
        ("kind: Pod", "kind: 'Pod' is not supported"),
        ("nodePortRange: 80-90", "must lie within 1024-65535"),
        ("nodes: [", "cluster file is not YAML at line 1"),
        ("- a", "cluster file: expected a mapping, found a list"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_spec(text)
    assert "\n" not in str(caught.value)


def test_the_command_line_wins_over_the_file() -> None:
    spec = load_spec("nodes: 2\nname: a", name="b", nodes=5, pod_cidr="10.9.0.0/16")
    assert (spec.name, len(spec.nodes), str(spec.network.pod_cidr)) == ("b", 5, "10.9.0.0/16")


def test_every_node_of_a_large_cluster_has_its_own_usable_loopback_address(tmp_path: Path) -> None:
    spec = load_spec("nodes: 800\nnetwork: {podCIDR: 10.64.0.0/12}")
    plan = make_plan(spec, Path("/tmp/podwire"), 77)
    hosts = [node.host for node in plan.nodes]
    assert len(set(hosts)) == 800
    assert hosts[:2] == ["127.77.1.1", "127.77.1.2"]
    assert not [host for host in hosts if host.endswith((".0", ".255"))]


def test_nodes_share_one_address_where_only_one_is_routable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PODWIRE_UNDERLAY", "shared")
    plan = make_plan(load_spec("nodes: 3"), Path("/tmp/podwire"), 77)
    places = [(plan.etcd_host, plan.etcd_port), (plan.api_host, plan.api_port)]
    for node in plan.nodes:
        places += [(node.host, p) for p in (node.vxlan_port, node.carrier_port, node.kubelet_port)]
    assert {host for host, _ in places} == {"127.0.0.1"}
    assert len(set(places)) == len(places)


def test_a_directory_too_deep_for_a_socket_says_so() -> None:
    with pytest.raises(UsageError, match="set PODWIRE_HOME to a shorter directory"):
        make_plan(load_spec(None), Path("/" + "d" * 120), 77)


def test_nodes_of_two_subnets_each_have_their_own_way_out() -> None:
    spec = load_spec(
        """
        nodeNetwork: {cidr: 10.10.64.0/19, gateway: 10.10.64.1}
        dockerBridge: 172.17.0.1/16
        nodes:
        - {name: kube-0, ip: 10.10.68.222/20, labels: {role: ""}, taints: [{key: master}]}
        - {name: kube-1, ip: 10.10.95.205/20}
        """
    )
    assert [(str(node.network), format_ip(node.gateway)) for node in spec.nodes] == [
        ("10.10.64.0/20", "10.10.64.1"),
        ("10.10.80.0/20", "10.10.80.1"),
    ]
    assert spec.nodes[0].labels == {"role": ""}
    assert spec.nodes[0].taints == ({"key": "master", "effect": "NoSchedule"},)
    assert spec.docker_bridge is not None


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_cluster_file(name: str) -> None:
    assert load_spec(preset_text(name)).network.type == name


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'cilium' is not a preset \(flannel, calico\)"):
        preset_text("cilium")


def test_a_user_and_tls_files_go_with_an_etcd_of_one_s_own() -> None:
    text = "etcd: {endpoints: ['https://e:2379'], user: 'a:b', cacert: ca, cert: c, key: k}"
    assert load_spec(text).etcd_access == EtcdAccess("a", "b", "ca", "c", "k")
    flags = EtcdAccess("x", "y")
    assert load_spec(text, etcd_access=flags).etcd_access == flags
    for wrong, problem in (
        ("etcd: {user: 'a:b'}", "our own etcd lets everybody in"),
        ("etcd: {endpoints: ['http://e:1'], cert: c}", "etcd.cert and etcd.key: give both or none"),
        ("etcd: {endpoints: ['http://e:1'], user: a}", "etcd.user: no password for 'a'"),
    ):
        with pytest.raises(UsageError, match=problem):
            load_spec(wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network: {type: calico, podCIDR: 192.168.0.0/28}", "/28 is too small; a pool holds"),
        ("network: {type: calico, ipipMode: Sometimes}", "'Sometimes' is not one of Always"),
        ("network: {type: calico, ipipMode: Always, vxlanMode: Always}", "not both"),
        ("network: {type: calico, asNumber: 0}", "asNumber: 0 must be from 1"),
        ("network: {type: calico, natOutgoing: 1}", "expected true or false"),
        ("network: {type: calico, bfd: {interval: 1s}}", "bfd.interval: '1s' is not from 10ms"),
        ("network: {type: calico, bfd: {interval: 5ms}}", "is not from 10ms to 60000ms"),
        ("network: {type: calico, bfd: {multiplier: 0}}", "bfd.multiplier: 0 must be from 1"),
        ("network: {type: calico, bfd: {hops: 3}}", "network.bfd.hops: unknown field"),
        ("network: {type: calico, bmp: here}", "'here' is not HOST:PORT of a BMP collector"),
        ("network: {type: calico, mrtMessages: 1}", "expected true or false"),
        ("network: {type: calico, birdDialect: 3}", "birdDialect: 3 must be from 1"),
        ("network: {type: calico, backend: vxlan}", "network.backend: unknown field"),
        ("network: {type: calico, podCIDR: 192.168.0.0/25}\nnodes: 3", "2 blocks of /26, too few"),
    ],
)
def test_a_calico_network_that_cannot_be_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_spec(text)
    assert "\n" not in str(caught.value)


def test_a_calico_network_has_the_pool_calico_node_makes() -> None:
    spec = load_spec("network: calico")
    assert str(spec.network.pod_cidr) == "192.168.0.0/16"
    assert spec.network.calico is not None
    assert (spec.network.calico.ipip_mode, spec.network.calico.block_size) == ("Always", 26)
    assert flannel_config(spec.network) is None


def test_a_calico_network_is_watched_as_the_file_says() -> None:
    calico = load_spec("network: calico").network.calico
    assert calico is not None
    assert (calico.bfd, calico.bmp, calico.mrt_messages) == (None, None, False)
    assert calico.bird_dialect == 1
    text = 'network: {type: calico, bfd: {interval: 50ms}, bmp: "10.0.0.1:5", mrtMessages: true}'
    calico = load_spec(text).network.calico
    assert calico is not None
    assert calico.bfd == (0.05, 3, False)
    assert calico.bmp == ("10.0.0.1", 5)
    assert calico.mrt_messages


def test_calico_is_refused_where_nodes_share_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODWIRE_UNDERLAY", "shared")
    with pytest.raises(UsageError, match="calico needs a loopback address for every node"):
        make_plan(load_spec("network: calico"), Path("/tmp/podwire"), 77)
