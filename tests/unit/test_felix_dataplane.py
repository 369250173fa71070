"""felix on a kernel: what it puts in, leaves alone, mends and takes away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.calico.felix.apply import Dataplane
from agents.calico.felix.compute import compute
from agents.calico.felix.model import (
    Block,
    Endpoint,
    Host,
    NodeInfo,
    Policy,
    PolicyRule,
    Pool,
    Profile,
    Side,
    State,
)
from agents.calico.felix.network import vtep_mac
from agents.calico.selector import parse_selector
from emulator.addr import Prefix, format_ip, format_mac, parse_ip
from emulator.netstack.fib import Route, RouteType
from emulator.netstack.netfilter import run_iptables_save
from emulator.netstack.packet import DropReason
from emulator.netstack.show.route import render_ip_route
from emulator.netstack.trace import TraceFilter
from emulator.wire import ipv4, udp
from tests.calico_kernels import CalicoSegment

ALLOW = (PolicyRule("Allow"),)
KUBE_PROXY = """*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
COMMIT
"""


class World:
    """Two nodes; node 0 has felix and the pods .2 (web) and .3 (client), node 1 the pod .67."""

    def __init__(self, *, mode: str = "Always", **more) -> None:
        self.net = CalicoSegment(2, tunnel=False)
        self.root = self.net.kernels[0].root
        for number in (0, 1):
            root = self.net.kernels[number].root
            root.route_del(Route(self.net.subnet(1 - number)))
        self.web, self.client = self.net.pod(0, 2), self.net.pod(0, 3)
        self.remote = self.net.pod(1, 3)
        self.planes = [Dataplane(kernel.root) for kernel in self.net.kernels]
        self.state = self.make(mode, **more)
        self.apply()

    def make(self, mode: str, **more) -> State:
        kind = {"ipip": mode} if not mode.startswith("vxlan") else {"vxlan": mode[5:]}
        endpoints = (
            self.endpoint("web", 0, 2, {"app": "web"}),
            self.endpoint("client", 0, 3, {"app": "client"}),
            self.endpoint("remote", 1, 3, {"app": "remote"}),
        )
        nodes = tuple(
            NodeInfo(
                f"kube-{n}",
                self.net.node_ip(n),
                Prefix.of(self.net.node_ip(n), 24),
                self.net.subnet(n).network if "ipip" in kind else 0,
                self.net.subnet(n).network if "vxlan" in kind else 0,
            )
            for n in (0, 1)
        )
        return State(
            "kube-0",
            Host(),
            endpoints=endpoints,
            profiles=(Profile("kns.default", ALLOW, ALLOW),),
            pools=(Pool(Prefix.parse("192.168.0.0/16"), nat_outgoing=True, **kind),),
            nodes=nodes,
            blocks=tuple(Block(self.net.subnet(n), f"kube-{n}") for n in (0, 1)),
            **more,
        )

    def endpoint(self, name: str, node: int, host: int, labels: dict[str, str]) -> Endpoint:
        return Endpoint(
            f"kube--{node}-k8s-{name}-eth0",
            "default",
            f"kube-{node}",
            f"cali{host:011d}",
            (self.net.subnet(node).host(host),),
            {**labels, "projectcalico.org/namespace": "default"},
            ("kns.default",),
            workload=name,
        )

    def apply(self, **change) -> None:
        self.state = replace(self.state, **change)
        for number, plane in enumerate(self.planes):
            plane.apply(compute(replace(self.state, node=f"kube-{number}")))

    def bird(self) -> None:
        """What BIRD adds for IP in IP."""
        for number in (0, 1):
            self.net.kernels[number].root.route_replace(
                Route(
                    self.net.subnet(1 - number),
                    gateway=self.net.node_ip(1 - number),
                    dev="tunl0",
                    onlink=True,
                    protocol="bird",
                )
            )

    def saved(self) -> str:
        return run_iptables_save(self.root.netfilter, [], epoch_s=0.0).stdout


def policy(name: str, selector: str, types: tuple[str, ...], **rules) -> Policy:
    return Policy(name, parse_selector(selector), 1000.0, types, **rules)


DENY_ALL = policy("default/knp.default.deny-all", "all()", ("Ingress", "Egress"))


def test_without_policies_everybody_talks() -> None:
    world = World()
    world.bird()
    assert world.net.ping(world.client, "192.168.0.2").ttl == 63
    assert world.net.ping(world.client, "192.168.0.67").ttl == 62
    assert world.net.ping(world.root, "192.168.0.2").ttl == 64
    assert world.net.ping(world.web, "172.17.4.201").ttl == 64


def test_the_tunnel_has_its_address_and_mtu() -> None:
    world = World()
    link = world.root.link("tunl0")
    assert (link.kind, link.mtu, link.up) == ("ipip", 1480, True)
    assert [format_ip(a.ip) for a in world.root.addrs() if a.dev == "tunl0"] == ["192.168.0.0"]
    assert Prefix(parse_ip("192.168.0.0"), 32) in [r.dst for r in world.root.routes("local")]


def test_a_policy_stops_what_it_does_not_pass_and_answers_still_come() -> None:
    world = World()
    world.apply(policies=(policy("default/knp.default.closed", "app == 'web'", ("Ingress",)),))
    assert world.net.ping(world.client, "192.168.0.2") is None
    # The closed one may ask, and is answered; its own node always reaches it.
    assert world.net.ping(world.web, "192.168.0.3") is not None
    assert world.net.ping(world.root, "192.168.0.2") is not None


def test_a_flow_under_way_is_let_on_when_a_policy_closes_its_door() -> None:
    world = World()
    sock = world.client.sockets.ping_open()
    for seq in (1, 2):
        sock.send(parse_ip("192.168.0.2"), seq, b"x", ttl=64, dont_fragment=True)
        world.net.settle()
        assert sock.receive() is not None
        world.apply(policies=(DENY_ALL,))
    assert world.net.ping(world.client, "192.168.0.2") is None


def test_egress_is_asked_of_the_sender() -> None:
    world = World()
    world.bird()
    rule = PolicyRule("Allow", destination=Side(selector=parse_selector("app == 'remote'")))
    world.apply(
        policies=(policy("default/only-remote", "app == 'client'", ("Egress",), egress=(rule,)),)
    )
    assert world.net.ping(world.client, "192.168.0.67") is not None
    assert world.net.ping(world.client, "192.168.0.2") is None


def test_a_drop_names_the_chain_the_rule_and_the_policies() -> None:
    world = World()
    world.apply(policies=(DENY_ALL,))
    buffer = world.net.kernels[0].trace_arm(TraceFilter.icmp(7, 9, token=b"T" * 16))
    sock = world.client.sockets.ping_open()
    sock.send(parse_ip("192.168.0.2"), 9, b"T" * 16, ttl=64, dont_fragment=True)
    world.net.settle()
    drop = next(step for step in buffer.take() if step.stage == "drop")
    assert drop.detail.startswith(
        "netfilter_drop: filter cali-fw-cali00000000003 rule 9 (workload default/client, egress; "
        "policies default/knp.default.deny-all): -A cali-fw-cali00000000003 "
    )
    assert "Drop if no policies passed packet" in drop.detail


def test_a_rule_that_denies_is_named_by_its_policy() -> None:
    world = World()
    deny = PolicyRule("Deny", source=Side(selector=parse_selector("app == 'client'")))
    world.apply(policies=(policy("no-clients", "app == 'web'", ("Ingress",), ingress=(deny,)),))
    buffer = world.net.kernels[0].trace_arm(TraceFilter.icmp(7, 9, token=b"T" * 16))
    sock = world.client.sockets.ping_open()
    sock.send(parse_ip("192.168.0.2"), 9, b"T" * 16, ttl=64, dont_fragment=True)
    world.net.settle()
    drop = next(step for step in buffer.take() if step.stage == "drop")
    assert "filter cali-pi-no-clients rule 1 (policy no-clients, ingress): " in drop.detail


def test_a_workload_cannot_borrow_an_address_nor_tunnel() -> None:
    world = World()
    world.client.addr_add("eth0", parse_ip("192.168.0.9"), 32)
    dst = parse_ip("192.168.0.2")
    body = udp.Udp(1, 2, b"x").emit(parse_ip("192.168.0.9"), dst)
    world.client.output(ipv4.build(parse_ip("192.168.0.9"), dst, 17, body))
    assert world.root.drops[DropReason.NETFILTER_DROP].packets == 1
    inner = ipv4.build(parse_ip("192.168.0.3"), dst, 17, body)
    world.client.output(ipv4.build(parse_ip("192.168.0.3"), parse_ip("172.17.4.202"), 4, inner))
    assert world.root.drops[DropReason.NETFILTER_DROP].packets == 2


def test_pods_leave_the_pools_with_the_nodes_address() -> None:
    world = World()
    world.net.ping(world.client, "172.17.4.202")
    (connection,) = [
        c for c in world.root.netfilter.conntrack
        if c.original.dst == parse_ip("172.17.4.202") and c.original.src == parse_ip("192.168.0.3")
    ]  # fmt: skip
    assert format_ip(connection.reply.dst) == "172.17.4.201"


def test_a_node_reaches_a_remote_service_endpoint_with_its_tunnel_address() -> None:
    world = World()
    world.bird()
    world.root.netfilter.restore(
        "*nat\n-A OUTPUT -d 10.96.0.1/32 -j DNAT --to-destination 192.168.0.67\nCOMMIT\n"
    )
    seen: list[bytes] = []
    world.net.kernels[1].capture("root", "tunl0", lambda _at, data, out: out or seen.append(data))
    assert world.net.ping(world.root, "10.96.0.1") is not None
    assert format_ip(int.from_bytes(seen[0][12:16], "big")) == "192.168.0.0"


def targets(world: World, chain: str) -> list[str]:
    lines = [line for line in world.saved().splitlines() if line.startswith(f"-A {chain} ")]
    return [line.rpartition("-j ")[2] for line in lines]


def test_kube_proxys_rules_stay_and_felixs_stand_first_and_last() -> None:
    world = World()
    world.root.netfilter.restore(KUBE_PROXY)
    mark = "MARK --set-xmark 0x10000/0x10000"
    assert targets(world, "FORWARD") == ["cali-FORWARD", "ACCEPT", mark, "KUBE-FORWARD"]
    world.apply(policies=(DENY_ALL,))
    assert targets(world, "FORWARD") == ["cali-FORWARD", "KUBE-FORWARD", "ACCEPT", mark]
    assert targets(world, "KUBE-FORWARD") == ["DROP"]
    world.root.netfilter.restore("*nat\n-I PREROUTING 1 -j KUBE-SERVICES\nCOMMIT\n")
    world.apply()
    assert targets(world, "PREROUTING")[:2] == ["cali-PREROUTING", "cali-PREROUTING"]
    assert targets(world, "PREROUTING")[-1] == "KUBE-SERVICES"


def identities(world: World) -> list[int]:
    tables = world.root.netfilter.tables.values()
    return [id(rule) for t in tables for chain in t.chains.values() for rule in chain.rules]


def test_what_somebody_broke_is_mended_and_what_is_right_is_left() -> None:
    world = World()
    before = world.saved()
    world.apply()
    rules = identities(world)
    world.apply()
    assert identities(world) == rules
    world.root.netfilter.restore("*filter\n-F FORWARD\n-F cali-FORWARD\nCOMMIT\n")
    world.root.netfilter.sets.flush("cali40all-ipam-pools")
    world.root.route_del(Route(Prefix.parse("192.168.0.2/32")))
    world.apply()
    assert world.saved() == before
    assert world.root.netfilter.sets.test("cali40all-ipam-pools", "192.168.9.9")
    assert world.net.ping(world.root, "192.168.0.2") is not None


def test_what_nobody_wants_any_more_is_taken_away() -> None:
    world = World()
    allow = PolicyRule("Allow", source=Side(selector=parse_selector("app == 'client'")))
    before = world.saved()
    sets = {each.name for each in world.root.netfilter.sets}
    world.apply(policies=(policy("p", "app == 'web'", ("Ingress",), ingress=(allow,)),))
    assert "cali-pi-p" in world.saved()
    assert {each.name for each in world.root.netfilter.sets} - sets
    world.apply(policies=())
    assert world.saved() == before
    assert {each.name for each in world.root.netfilter.sets} == sets


def test_a_workload_that_goes_takes_its_routes_and_connections() -> None:
    world = World()
    world.net.ping(world.client, "192.168.0.2")
    assert len(list(world.root.netfilter.conntrack)) > 0
    world.apply(endpoints=world.state.endpoints[:1])
    assert [r for r in world.root.routes() if r.dev == "cali00000000003"] == []
    assert all(c.original.src != parse_ip("192.168.0.3") for c in world.root.netfilter.conntrack)
    # What felix never heard of is the CNI plugin's.
    world.net.pod(0, 5)
    world.apply()
    assert [str(r.dst) for r in world.root.routes() if r.dev == "cali00000000005"] == [
        "192.168.0.5/32"
    ]


def test_a_device_that_is_not_there_yet_is_waited_for() -> None:
    world = World()
    late = (*world.state.endpoints, world.endpoint("late", 0, 7, {}))
    assert not world.planes[0].apply(compute(replace(world.state, endpoints=late)))
    world.net.pod(0, 7)
    assert world.planes[0].apply(compute(replace(world.state, endpoints=late)))
    settings = world.root.sysctl
    assert settings["net.ipv4.conf.cali00000000007.proxy_arp"] == 1
    assert settings["net.ipv4.neigh.cali00000000007.proxy_delay"] == 0


class TestVxlan:
    def test_every_block_is_routed_to_its_node(self) -> None:
        world = World(mode="vxlanAlways")
        assert world.net.ping(world.client, "192.168.0.67").ttl == 62
        text = render_ip_route(world.root.routes())
        assert "192.168.0.64/26 via 192.168.0.64 dev vxlan.calico proto 80 onlink \n" in text
        blackholes = [r for r in world.root.routes() if r.type is RouteType.BLACKHOLE]
        assert "80" in [route.protocol for route in blackholes]
        link = world.root.link("vxlan.calico")
        assert (link.vni, link.port, link.mtu) == (4096, 4789, 1450)

    def test_the_macs_are_made_of_the_nodes_names(self) -> None:
        assert format_mac(vtep_mac("kube-0")) == "66:75:ec:b5:e4:b4"
        assert format_mac(vtep_mac("kube-1")) == "66:29:4b:8e:c4:09"

    def test_within_a_subnet_cross_subnet_needs_no_tunnel(self) -> None:
        world = World(mode="vxlanCrossSubnet")
        text = render_ip_route(world.root.routes())
        assert "192.168.0.64/26 via 172.17.4.202 dev eth0 proto 80 onlink \n" in text
        assert world.net.ping(world.client, "192.168.0.67").ttl == 62

    def test_a_borrowed_address_is_routed_to_who_has_it(self) -> None:
        world = World(mode="vxlanAlways")
        mine = Block(world.net.subnet(0), "kube-0", ((parse_ip("192.168.0.40"), "kube-1"),))
        world.apply(blocks=(mine, world.state.blocks[1]))
        text = render_ip_route(world.root.routes())
        assert "192.168.0.40 via 192.168.0.64 dev vxlan.calico proto 80 onlink \n" in text

    def test_a_node_that_goes_leaves_no_entry_and_one_that_changes_new_ones(self) -> None:
        world = World(mode="vxlanAlways")

        def entries() -> list[tuple[str, str, str]]:
            root = world.root
            fdb = {e.mac: e.dst for e in root.fdb() if e.dev == "vxlan.calico"}
            return [
                (format_ip(n.ip), format_mac(n.mac), format_ip(fdb.pop(n.mac)))
                for n in root.neighs()
                if n.dev == "vxlan.calico"
            ] + [("", format_mac(mac), format_ip(dst)) for mac, dst in fdb.items()]

        mac = "66:29:4b:8e:c4:09"
        assert entries() == [("192.168.0.64", mac, "172.17.4.202")]
        here, there = world.state.nodes
        moved = replace(there, vxlan_address=parse_ip("192.168.0.70"), ip=parse_ip("172.17.4.209"))
        world.apply(nodes=(here, moved))
        assert entries() == [("192.168.0.70", mac, "172.17.4.209")]
        world.apply(nodes=(here,))
        assert entries() == []

    def test_the_tunnel_follows_its_settings(self) -> None:
        world = World(mode="vxlanAlways")
        here, there = world.state.nodes
        settings = replace(world.state.settings, vxlan_mtu=1400)
        moved = replace(here, vxlan_address=parse_ip("192.168.0.9"))
        world.apply(settings=settings, nodes=(moved, there))
        assert world.root.link("vxlan.calico").mtu == 1400
        held = [format_ip(a.ip) for a in world.root.addrs() if a.dev == "vxlan.calico"]
        assert held == ["192.168.0.9"]

    @pytest.mark.parametrize("vtep", ["own", "127.0.0.1"])
    def test_a_node_with_an_impossible_address_costs_only_itself(self, vtep: str) -> None:
        world = World(mode="vxlanAlways")
        own, far = world.net.subnet(0).network, Prefix.parse("192.168.99.0/26")
        later = Prefix.parse("192.168.101.0/26")
        address = own if vtep == "own" else parse_ip(vtep)
        odd, fine = (
            NodeInfo(
                name, parse_ip(ip), Prefix.parse("172.18.0.0/16"), 0, at, bytes((2, 0, 0, 0, 9, n))
            )
            for n, (name, ip, at) in enumerate(
                (("a-odd", "172.18.0.1", address), ("z-fine", "172.18.0.2", later.network))
            )
        )
        world.apply(
            nodes=(odd, *world.state.nodes, fine),
            blocks=(Block(far, "a-odd"), *world.state.blocks, Block(later, "z-fine")),
        )
        plane = world.planes[0]
        assert plane.refused == (
            f"route {far} dev vxlan.calico: Error: Nexthop has invalid gateway.",
        )
        assert any(route.dst == later for route in world.root.routes())
        world.apply(nodes=world.state.nodes[1:-1], blocks=world.state.blocks[1:-1])
        assert plane.refused == ()

    def test_a_pool_without_vxlan_leaves_nothing_of_it(self) -> None:
        world = World(mode="vxlanAlways")
        world.apply(pools=(Pool(Prefix.parse("192.168.0.0/16")),))
        assert "vxlan.calico" not in world.root.devices
        assert [r for r in world.root.routes() if r.protocol == "80"] == []
        assert "cali40all-vxlan-net" not in [each.name for each in world.root.netfilter.sets]

    def test_a_stranger_cannot_speak_vxlan_to_the_node(self) -> None:
        world = World(mode="vxlanAlways")
        src, dst = parse_ip("172.17.4.99"), parse_ip("172.17.4.201")
        body = udp.Udp(1, 4789, bytes(60)).emit(src, dst)
        world.root.device("eth0").receive_carrier(ipv4.build(src, dst, 17, body), 0)
        assert world.root.drops[DropReason.NETFILTER_DROP].packets == 1
