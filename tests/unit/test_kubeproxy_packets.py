"""Packets through the rules kube-proxy really applies: one question, one outcome.

The table has the form of upstream's packet tracer: where a packet from an address to a
destination ends (an endpoint, REJECT, DROP, or untouched) and if it will be masqueraded.
"""

from __future__ import annotations

import random

import pytest

from agents.kubeproxy.daemon import Proxier
from agents.kubeproxy.model import Endpoint, Key, ServicePort
from agents.kubeproxy.ruleset import NodeConfig, NodePort
from emulator.addr import Prefix, format_ip, parse_ip
from emulator.netstack.netfilter import ERA_2017, Netfilter, run_iptables
from emulator.netstack.packet import UDP, AddressType, DropReason, Hook, Packet
from emulator.wire import ipv4
from emulator.wire.tcp import SYN, Tcp
from emulator.wire.udp import Udp

NODE_IP, CLIENT, POD, LOCAL_POD, REMOTE_POD = (
    "192.168.0.2", "203.0.113.2", "10.0.0.7", "10.180.0.5", "10.180.0.4",
)  # fmt: skip
NODE = NodeConfig("node-a", NODE_IP, Prefix.parse("10.0.0.0/8"))


class View:
    """A node with one address."""

    def address_type(self, ip: int) -> AddressType:
        return AddressType.LOCAL if ip == parse_ip(NODE_IP) else AddressType.UNICAST

    def primary_address(self, dev: str, dst: int) -> int | None:
        return parse_ip(NODE_IP)

    def invalidate_flows(self) -> None:
        pass


class Namespace:
    """The root namespace, as far as kube-proxy sees it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sysctl: dict[str, int] = {}
        self.netfilter = Netfilter(View(), clock=lambda: self.now, rng=random.Random(5))


class Node:
    """A node with kube-proxy's rules; ``send`` asks where a new connection goes."""

    def __init__(self, *services: ServicePort, endpoints: dict[Key, list[Endpoint]],
                 config: NodeConfig = NODE) -> None:  # fmt: skip
        self.namespace = Namespace()
        self.netfilter = self.namespace.netfilter
        self.proxier = Proxier(self.namespace, config)
        self.services = list(services)
        self.endpoints = endpoints
        self.node_ports = self.sync()
        self._port = 1024

    def sync(self) -> tuple[NodePort, ...]:
        return self.proxier.sync(self.services, self.endpoints)

    def send(self, source: str, destination: str, dport: int, proto: str = "tcp") -> str:
        """Return ``ip:port`` (with `` masq``), REJECT or DROP of a new connection."""
        self._port += 1
        src, dst = parse_ip(source), parse_ip(destination)
        segment = (
            Tcp(self._port, dport, 1, 0, SYN, 64240).emit(src, dst)
            if proto == "tcp"
            else Udp(self._port, dport, b"?").emit(src, dst)
        )
        number = 6 if proto == "tcp" else UDP
        packet = Packet(ipv4.build(src, dst, number, segment), in_dev="eth0")
        local = source == NODE_IP
        first = Hook.OUTPUT if local else Hook.PREROUTING
        drop = self.netfilter.hook(first, packet, "" if local else "eth0", "")
        if drop is None and not local:
            to_node = packet.dst == parse_ip(NODE_IP)
            drop = self.netfilter.hook(
                Hook.INPUT if to_node else Hook.FORWARD, packet, "eth0", "" if to_node else "eth1"
            )
        if drop is not None:
            return "REJECT" if drop.reason is DropReason.NETFILTER_REJECT else "DROP"
        masq = " masq" if packet.mark & 0x4000 else ""
        if packet.dst != parse_ip(NODE_IP):
            self.netfilter.hook(Hook.POSTROUTING, packet, "", "eth1")
        return f"{format_ip(packet.dst)}:{packet.dport}{masq}"


KEY = Key("ns", "svc", "p80")
BOTH = {KEY: [Endpoint(REMOTE_POD, 8080), Endpoint(LOCAL_POD, 8080, is_local=True)]}
ONE = {KEY: [Endpoint(REMOTE_POD, 8080)]}
LOCAL = f"{LOCAL_POD}:8080"
REMOTE = f"{REMOTE_POD}:8080"
BALANCED = ServicePort(
    KEY, "tcp", "172.30.0.41", 80, node_port=30080, external_ips=("192.168.99.1",),
    load_balancer_ips=("5.6.7.8",),
)  # fmt: skip
EXTERNAL_LOCAL = ServicePort(
    KEY, "tcp", "172.30.0.41", 80, node_port=30080, load_balancer_ips=("5.6.7.8",),
    external_local=True,
)  # fmt: skip
GUARDED = ServicePort(
    KEY, "tcp", "172.30.0.41", 80, load_balancer_ips=("5.6.7.8",),
    source_ranges=(Prefix.parse("203.0.113.0/25"),),
)  # fmt: skip
INTERNAL_LOCAL = ServicePort(KEY, "tcp", "172.30.0.41", 80, internal_local=True)


@pytest.mark.parametrize(
    ("service", "endpoints", "source", "destination", "port", "outcome"),
    [
        (BALANCED, ONE, POD, "172.30.0.41", 80, REMOTE),
        (BALANCED, ONE, CLIENT, "172.30.0.41", 80, f"{REMOTE} masq"),
        (BALANCED, ONE, REMOTE_POD, "172.30.0.41", 80, f"{REMOTE} masq"),
        (BALANCED, ONE, CLIENT, NODE_IP, 30080, f"{REMOTE} masq"),
        (BALANCED, ONE, CLIENT, "192.168.99.1", 80, f"{REMOTE} masq"),
        (BALANCED, ONE, CLIENT, "5.6.7.8", 80, f"{REMOTE} masq"),
        (BALANCED, ONE, CLIENT, "172.30.0.41", 81, "172.30.0.41:81"),
        (BALANCED, {}, POD, "172.30.0.41", 80, "REJECT"),
        (BALANCED, {}, CLIENT, NODE_IP, 30080, "REJECT"),
        (BALANCED, {}, CLIENT, "5.6.7.8", 80, "REJECT"),
        (BALANCED, {}, NODE_IP, "172.30.0.41", 80, "REJECT"),
        (EXTERNAL_LOCAL, BOTH, CLIENT, NODE_IP, 30080, LOCAL),
        (EXTERNAL_LOCAL, BOTH, CLIENT, "5.6.7.8", 80, LOCAL),
        (EXTERNAL_LOCAL, ONE, CLIENT, NODE_IP, 30080, "DROP"),
        (EXTERNAL_LOCAL, ONE, POD, "5.6.7.8", 80, REMOTE),
        (EXTERNAL_LOCAL, ONE, NODE_IP, "5.6.7.8", 80, f"{REMOTE} masq"),
        (GUARDED, ONE, CLIENT, "5.6.7.8", 80, f"{REMOTE} masq"),
        (GUARDED, ONE, "203.0.113.130", "5.6.7.8", 80, "DROP"),
        (INTERNAL_LOCAL, BOTH, POD, "172.30.0.41", 80, LOCAL),
        (INTERNAL_LOCAL, ONE, POD, "172.30.0.41", 80, "DROP"),
    ],
)  # fmt: skip
def test_where_packets_go(
    service: ServicePort, endpoints: dict[Key, list[Endpoint]], source: str, destination: str,
    port: int, outcome: str,
) -> None:  # fmt: skip
    assert Node(service, endpoints=endpoints).send(source, destination, port) == outcome


def test_connections_spread_evenly_over_endpoints() -> None:
    endpoints = {KEY: [Endpoint(f"10.180.0.{i}", 80) for i in range(1, 8)]}
    node = Node(BALANCED, endpoints=endpoints)
    counts: dict[str, int] = {}
    for _ in range(3500):
        where = node.send(POD, "172.30.0.41", 80)
        counts[where] = counts.get(where, 0) + 1
    # Chi squared with 6 degrees of freedom is below 22.5 in 999 of 1000 fair runs.
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 22.5


def test_client_affinity_lasts_for_its_timeout() -> None:
    sticky = ServicePort(KEY, "tcp", "172.30.0.41", 80, affinity_s=60)
    endpoints = {KEY: [Endpoint(f"10.180.0.{i}", 80) for i in range(1, 20)]}
    node = Node(sticky, endpoints=endpoints)
    first = node.send(POD, "172.30.0.41", 80)
    assert {node.send(POD, "172.30.0.41", 80) for _ in range(10)} == {first}
    seen = set()
    for _ in range(10):
        node.namespace.now += 61
        seen.add(node.send(POD, "172.30.0.41", 80))
    assert len(seen) > 1


def test_the_same_sync_twice_changes_nothing() -> None:
    node = Node(BALANCED, endpoints=BOTH)
    before = node.netfilter.snapshot()
    nat = node.netfilter.tables["nat"]
    chains = dict(nat.chains)
    assert node.sync() == (NodePort("tcp", 30080),)
    assert node.netfilter.snapshot() == before
    assert all(nat.chains[name] is chain for name, chain in chains.items())


def test_vanished_services_take_their_chains_along() -> None:
    node = Node(BALANCED, endpoints=BOTH)
    node.services, node.endpoints = [], {}
    assert node.sync() == ()
    assert not [name for name in node.netfilter.tables["nat"].chains if "KUBE-S" in name[:6]
                and name != "KUBE-SERVICES"]  # fmt: skip
    assert node.send(POD, "172.30.0.41", 80) == "172.30.0.41:80"


@pytest.mark.parametrize(
    "vandal",
    [("-t", "nat", "-F"), ("-t", "nat", "-F", "KUBE-SERVICES"),
     ("-t", "nat", "-D", "PREROUTING", "1"), ("-F", "FORWARD")],
)  # fmt: skip
def test_rules_somebody_removed_come_back(vandal: tuple[str, ...]) -> None:
    node = Node(BALANCED, endpoints=ONE)
    before = node.netfilter.snapshot()
    assert run_iptables(node.netfilter, list(vandal)).exit_code == 0
    assert node.netfilter.snapshot() != before
    node.sync()
    assert node.send(CLIENT, NODE_IP, 30080) == f"{REMOTE} masq"


def test_udp_clients_of_a_gone_endpoint_are_balanced_anew() -> None:
    dns = ServicePort(KEY, "udp", "172.30.0.10", 53)
    node = Node(dns, endpoints={KEY: [Endpoint("10.180.0.1", 53)]})
    assert node.send(POD, "172.30.0.10", 53, "udp") == "10.180.0.1:53"
    assert len(node.netfilter.conntrack) == 1
    node.endpoints = {KEY: [Endpoint("10.180.0.2", 53)]}
    node.sync()
    assert len(node.netfilter.conntrack) == 0


def test_the_2017_profile_reaches_the_same_endpoints() -> None:
    config = NodeConfig("node-a", NODE_IP, Prefix.parse("10.0.0.0/8"), profile="2017")
    node = Node(BALANCED, endpoints=ONE, config=config)
    assert node.send(POD, "172.30.0.41", 80) == REMOTE
    assert node.send(CLIENT, "172.30.0.41", 80) == f"{REMOTE} masq"
    assert node.send(CLIENT, NODE_IP, 30080) == f"{REMOTE} masq"
    empty = Node(BALANCED, endpoints={}, config=config)
    assert empty.send(NODE_IP, "172.30.0.41", 80) == "REJECT"


TUTORIAL = """\
KUBE-MARK-MASQ  all  --  10.2.59.13           0.0.0.0/0            /* default/frontend: */
DNAT       tcp  --  0.0.0.0/0            0.0.0.0/0            /* default/frontend: */ tcp \
to:10.2.59.13:80
KUBE-MARK-MASQ  tcp  -- !10.2.0.0/16          10.3.0.252           /* default/frontend: \
cluster IP */ tcp dpt:80
KUBE-SVC-GYQQTB6TY565JPRW  tcp  --  0.0.0.0/0            10.3.0.252           \
/* default/frontend: cluster IP */ tcp dpt:80
KUBE-MARK-MASQ  tcp  --  0.0.0.0/0            172.17.4.101         /* default/frontend: \
external IP */ tcp dpt:80
KUBE-SVC-GYQQTB6TY565JPRW  tcp  --  0.0.0.0/0            172.17.4.101         \
/* default/frontend: external IP */ tcp dpt:80 PHYSDEV match ! --physdev-is-in ADDRTYPE match \
src-type !LOCAL
KUBE-SVC-GYQQTB6TY565JPRW  tcp  --  0.0.0.0/0            172.17.4.101         \
/* default/frontend: external IP */ tcp dpt:80 ADDRTYPE match dst-type LOCAL
KUBE-SEP-ACK5ZHRIFEXLTW3H  all  --  0.0.0.0/0            0.0.0.0/0            \
/* default/frontend: */
"""


def test_the_2017_tutorials_chains_are_listed_as_it_shows_them() -> None:
    key = Key("default", "frontend", "")
    frontend = ServicePort(key, "tcp", "10.3.0.252", 80, external_ips=("172.17.4.101",))
    config = NodeConfig("172.17.4.201", "172.17.4.201", Prefix.parse("10.2.0.0/16"), profile="2017")
    node = Node(frontend, endpoints={key: [Endpoint("10.2.59.13", 80)]}, config=config)
    listed = run_iptables(node.netfilter, ["-t", "nat", "-nL"], style=ERA_2017).stdout
    lines = [line.rstrip() for line in listed.splitlines() if "frontend" in line]
    assert lines == TUTORIAL.splitlines()
