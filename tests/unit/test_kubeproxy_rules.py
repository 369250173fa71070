"""kube-proxy's desired rules: chain names, the complete text, and what each policy does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.kubeproxy import names
from agents.kubeproxy.conntrack import UdpFlow, UdpServices
from agents.kubeproxy.desired import desired_ruleset
from agents.kubeproxy.model import read_service, read_slices
from agents.kubeproxy.ruleset import NodeConfig, Ruleset, missing_jumps
from emulator.addr import Prefix

GOLDEN = Path(__file__).parent / "golden"
NODE = NodeConfig("node-a", "192.168.0.2", Prefix.parse("10.0.0.0/8"), random_fully=False)
NODE_2017 = NodeConfig("172.17.4.101", "172.17.4.101", Prefix.parse("10.2.0.0/16"), profile="2017")


def service(name: str, cluster_ip: str, *, kind: str = "ClusterIP", port: int = 80,
            node_port: int = 0, port_name: str = "p80", protocol: str = "TCP",
            load_balancer: str = "", **spec: Any) -> dict[str, Any]:  # fmt: skip
    namespace, _, short = name.partition("/")
    ports = [{"name": port_name, "port": port, "protocol": protocol, "nodePort": node_port}]
    status = {"loadBalancer": {"ingress": [{"ip": load_balancer}]}} if load_balancer else {}
    return {
        "metadata": {"namespace": namespace, "name": short},
        "spec": {"type": kind, "clusterIP": cluster_ip, "ports": ports, **spec},
        "status": status,
    }


def endpoint_slice(name: str, *endpoints: dict[str, Any] | str, port: int = 80,
                   port_name: str = "p80", protocol: str = "TCP") -> dict[str, Any]:  # fmt: skip
    namespace, _, short = name.partition("/")
    return {
        "metadata": {
            "namespace": namespace,
            "name": f"{short}-1",
            "labels": {"kubernetes.io/service-name": short},
        },
        "addressType": "IPv4",
        "ports": [{"name": port_name, "port": port, "protocol": protocol}],
        "endpoints": [
            {"addresses": [entry]} if isinstance(entry, str) else entry for entry in endpoints
        ],
    }


def rules(
    services: list[dict[str, Any]], slices: list[dict[str, Any]], node: NodeConfig = NODE
) -> Ruleset:
    ports = [port for entry in services for port in read_service(entry)]
    return desired_ruleset(ports, read_slices(slices, node.node_name), node)


def by_chain(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith("-A"):
            found.setdefault(f"{table} {line.split()[1]}", []).append(line)
    return found


SIX_SERVICES = [
    service("ns1/svc1", "172.30.0.41"),
    service("ns2/svc2", "172.30.0.42", kind="LoadBalancer", node_port=3001,
            load_balancer="1.2.3.4", externalIPs=["192.168.99.22"],
            externalTrafficPolicy="Local", healthCheckNodePort=30000),
    service("ns3/svc3", "172.30.0.43", kind="NodePort", node_port=3003),
    service("ns4/svc4", "172.30.0.44", kind="NodePort", externalIPs=["192.168.99.33"]),
    service("ns5/svc5", "172.30.0.45", kind="LoadBalancer", node_port=3002,
            load_balancer="5.6.7.8", healthCheckNodePort=30000, sessionAffinity="ClientIP",
            loadBalancerSourceRanges=[" 203.0.113.0/25"],
            sessionAffinityConfig={"clientIP": {"timeoutSeconds": 10800}}),
    service("ns6/svc6", "172.30.0.46"),
]  # fmt: skip
SIX_SLICES = [
    endpoint_slice("ns1/svc1", "10.180.0.1"),
    endpoint_slice("ns2/svc2", "10.180.0.2"),
    endpoint_slice("ns3/svc3", "10.180.0.3"),
    endpoint_slice("ns4/svc4", "10.180.0.4", {"addresses": ["10.180.0.5"], "nodeName": "node-a"}),
    endpoint_slice("ns5/svc5", "10.180.0.3"),
]


@pytest.mark.parametrize(
    ("name", "protocol", "expected"),
    [
        ("default/frontend:", "tcp", "GYQQTB6TY565JPRW"),
        ("default/kubernetes:https", "tcp", "NPX46M4PTMTKRN6Y"),
        ("kube-system/kube-dns:dns", "udp", "TCOU7JCQXEZGVUNU"),
        ("kube-system/kube-dns:dns-tcp", "tcp", "ERIFXISQEP7F7OF4"),
        ("kube-system/kube-dns:metrics", "tcp", "JD5MR3NA4I4DYORP"),
        ("default/redis-master:", "tcp", "7GF4BJM3Z6CMNVML"),
        ("default/redis-slave:", "tcp", "AGR3D4D4FQNH4O33"),
        ("default/frontend", "tcp", "ENODL3HWJ5BZY56Q"),
        ("default/cluster-demo", "tcp", "LJ6XWTWCWZB3Z3DV"),
        ("default/nodeport-demo", "tcp", "EOUKHRK34G6NTKU5"),
        ("default/webui", "tcp", "MA5FYXOEED7B4SUA"),
        ("default/redis", "tcp", "OKJCEJEOAS2LLIDR"),
        ("default/rng", "tcp", "36EPZSLMON6KLILK"),
        ("default/hasher", "tcp", "WYQ7CYUNCUQQCPNL"),
        ("default/cluster-demo:", "tcp", "SHNAL4JSIXDUOVWB"),
        ("default/nodeport-demo:", "tcp", "3O335LYKVNPIJBVQ"),
        ("default/webui:", "tcp", "QM4WUAV2UFOSMY2D"),
        ("default/redis:", "tcp", "SCFPZ36VFLUNBB47"),
        ("default/rng:", "tcp", "N74FTXNFUAQERCAF"),
        ("default/hasher:", "tcp", "XIQ2TZN7G5J4QQPA"),
    ],
)
def test_chain_names_carry_the_hashes_of_real_clusters(
    name: str, protocol: str, expected: str
) -> None:
    assert names.service_chain("SVC", name, protocol) == f"KUBE-SVC-{expected}"


def test_endpoint_chain_of_the_2017_tutorial() -> None:
    chain = names.endpoint_chain("default/frontend:", "tcp", "10.2.59.13:80")
    assert chain == "KUBE-SEP-ACK5ZHRIFEXLTW3H"


def test_six_services_give_the_complete_modern_text() -> None:
    text = rules(SIX_SERVICES, SIX_SLICES).restore_text()
    assert text == (GOLDEN / "kubeproxy_six_services.rules").read_text()


def test_masquerade_takes_random_ports_where_iptables_knows_how() -> None:
    text = desired_ruleset([], {}, NodeConfig("node-a", "192.168.0.2")).restore_text()
    assert 'requiring SNAT" -j MASQUERADE --random-fully\n' in text


def test_the_order_of_input_does_not_matter() -> None:
    backwards = rules(SIX_SERVICES[::-1], SIX_SLICES[::-1]).restore_text()
    assert backwards == rules(SIX_SERVICES, SIX_SLICES).restore_text()


def test_probabilities_divide_equally_in_both_profiles() -> None:
    slices = [endpoint_slice("a/b", *(f"10.0.0.{i}" for i in range(1, 6)))]
    modern = rules([service("a/b", "172.30.0.1")], slices).restore_text()
    old = rules([service("a/b", "172.30.0.1")], slices, NODE_2017).restore_text()

    def chances(text: str) -> list[str]:
        return [
            line.split("--probability ")[1].split()[0]
            for line in text.splitlines()
            if "--probability" in line
        ]

    assert chances(modern) == ["0.2000000000", "0.2500000000", "0.3333333333", "0.5000000000"]
    assert chances(old) == ["0.20000", "0.25000", "0.33333", "0.50000"]


def test_endpoints_are_ordered_as_text() -> None:
    slices = [endpoint_slice("a/b", "10.0.0.9", "10.0.0.10")]
    text = rules([service("a/b", "172.30.0.1")], slices).restore_text()
    assert text.index("a/b:p80 -> 10.0.0.10:80") < text.index("a/b:p80 -> 10.0.0.9:80")


def test_unnamed_port_has_a_colon_only_in_2017() -> None:
    unnamed = [service("a/b", "172.30.0.1", port_name="")]
    slices = [endpoint_slice("a/b", "10.0.0.9", port_name="")]
    assert '"a/b cluster IP"' in rules(unnamed, slices).restore_text()
    assert '"a/b: cluster IP"' in rules(unnamed, slices, NODE_2017).restore_text()


def test_service_without_endpoints_is_rejected_on_every_address() -> None:
    entry = service("a/b", "172.30.0.1", kind="LoadBalancer", node_port=30001,
                    load_balancer="1.2.3.4", externalIPs=["192.168.99.1"])  # fmt: skip
    made = rules([entry], [])
    chains = by_chain(made.restore_text())
    assert len(chains["*filter KUBE-SERVICES"]) == 1
    external = chains["*filter KUBE-EXTERNAL-SERVICES"]
    assert len(external) == 3
    assert all(line.endswith("-j REJECT") for line in external)
    assert not any(chain.startswith("KUBE-SVC-") for chain in made.nat.chains)
    assert made.node_ports == ()
    served = rules([entry], [endpoint_slice("a/b", "10.0.0.4")])
    assert [tuple(port) for port in served.node_ports] == [("tcp", 30001)]


def test_internal_local_policy_uses_only_this_nodes_endpoints() -> None:
    entry = service("a/b", "172.30.0.1", internalTrafficPolicy="Local")
    here = {"addresses": ["10.0.0.5"], "nodeName": "node-a"}
    text = rules([entry], [endpoint_slice("a/b", "10.0.0.4", here)]).restore_text()
    assert "KUBE-SVL-" in text
    assert "10.0.0.4" not in text
    elsewhere = rules([entry], [endpoint_slice("a/b", "10.0.0.4")]).restore_text()
    assert '-A KUBE-SERVICES -m comment --comment "a/b:p80 has no local endpoints"' in elsewhere
    assert "DNAT --to" not in elsewhere


def test_terminating_endpoints_serve_only_when_nobody_is_ready() -> None:
    leaving = {
        "addresses": ["10.0.0.7"],
        "conditions": {"ready": False, "serving": True, "terminating": True},
    }
    both = rules([service("a/b", "172.30.0.1")], [endpoint_slice("a/b", "10.0.0.4", leaving)])
    assert "10.0.0.7" not in both.restore_text()
    alone = rules([service("a/b", "172.30.0.1")], [endpoint_slice("a/b", leaving)])
    assert "--to-destination 10.0.0.7:80" in alone.restore_text()
    assert "has no endpoints" not in alone.restore_text()


def test_zone_hints_count_only_when_every_endpoint_has_one() -> None:
    node = NodeConfig("node-a", "192.168.0.2", Prefix.parse("10.0.0.0/8"), zone="z1")
    one = {"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "z1"}]}}
    two = {"addresses": ["10.0.0.2"], "hints": {"forZones": [{"name": "z2"}]}}
    entry = [service("a/b", "172.30.0.1")]
    near = rules(entry, [endpoint_slice("a/b", one, two)], node).restore_text()
    assert "10.0.0.1:80" in near
    assert "10.0.0.2:80" not in near
    partly = rules(entry, [endpoint_slice("a/b", one, two, "10.0.0.3")], node).restore_text()
    assert "10.0.0.2:80" in partly


def test_headless_external_name_and_foreign_services_are_left_alone() -> None:
    foreign = service("a/d", "172.30.0.4")
    foreign["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "other"}
    entries = [service("a/b", "None"), service("a/c", "", kind="ExternalName"), foreign]
    assert [port for entry in entries for port in read_service(entry)] == []


def test_large_clusters_leave_endpoint_comments_out() -> None:
    many = [f"10.1.{i // 250}.{i % 250 + 1}" for i in range(1001)]
    text = rules([service("a/b", "172.30.0.1")], [endpoint_slice("a/b", *many)]).restore_text()
    assert "a/b:p80 -> " not in text
    assert '"a/b:p80 cluster IP"' in text


def test_chains_of_vanished_services_are_flushed_and_deleted() -> None:
    existing = ("PREROUTING", "KUBE-SVC-OLD", "MINE", "KUBE-SERVICES")
    text = rules(SIX_SERVICES, SIX_SLICES).restore_text(existing)
    assert ":KUBE-SVC-OLD - [0:0]" in text
    assert "-X KUBE-SVC-OLD" in text
    assert "MINE" not in text


def test_missing_jumps_are_put_first_and_present_ones_left() -> None:
    made = rules([], [])
    portals = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    present = {("nat", "OUTPUT"): [portals]}
    missing = missing_jumps(made.jumps, lambda table, chain: present.get((table, chain), []))
    assert ("nat", "OUTPUT") not in [(jump.table, jump.source) for jump in missing]
    text = made.restore_text(missing_jumps=missing)
    assert f"-I PREROUTING {portals}" in text
    assert f"-I OUTPUT {portals}" not in text.split("*nat")[1]


def test_seed_service_in_the_2017_profile() -> None:
    entry = service("default/frontend", "10.3.0.252", port_name="")
    slices = [endpoint_slice("default/frontend", "10.2.59.13", port_name="")]
    chains = by_chain(rules([entry], slices, NODE_2017).restore_text())
    text = '-m comment --comment "default/frontend: cluster IP" -m tcp -p tcp -d 10.3.0.252/32'
    assert chains["*nat KUBE-SERVICES"][:2] == [
        f"-A KUBE-SERVICES {text} --dport 80 ! -s 10.2.0.0/16 -j KUBE-MARK-MASQ",
        f"-A KUBE-SERVICES {text} --dport 80 -j KUBE-SVC-GYQQTB6TY565JPRW",
    ]
    assert chains["*nat KUBE-SEP-ACK5ZHRIFEXLTW3H"] == [
        "-A KUBE-SEP-ACK5ZHRIFEXLTW3H -m comment --comment default/frontend:"
        " -s 10.2.59.13/32 -j KUBE-MARK-MASQ",
        "-A KUBE-SEP-ACK5ZHRIFEXLTW3H -m comment --comment default/frontend:"
        " -m tcp -p tcp -j DNAT --to-destination 10.2.59.13:80",
    ]


def test_stale_udp_entries_are_those_that_lead_to_no_serving_endpoint() -> None:
    entry = service("a/dns", "172.30.0.10", port=53, port_name="dns", protocol="UDP",
                    kind="NodePort", node_port=30053)  # fmt: skip
    slices = [endpoint_slice("a/dns", "10.0.0.2", port=53, port_name="dns", protocol="UDP")]
    known = UdpServices(read_service(entry), read_slices(slices, "node-a"))
    assert known.is_stale(UdpFlow("172.30.0.10", 53, "172.30.0.10"))
    assert known.is_stale(UdpFlow("192.168.0.2", 30053, "10.0.0.9"))
    assert not known.is_stale(UdpFlow("172.30.0.10", 53, "10.0.0.2"))
    assert not known.is_stale(UdpFlow("8.8.8.8", 53, "8.8.8.8"))
    assert not UdpServices(read_service(entry), {}).is_stale(UdpFlow("172.30.0.10", 53, "x"))
