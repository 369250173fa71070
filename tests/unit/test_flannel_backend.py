"""What flannel wants in the kernel and how it gets there."""

from __future__ import annotations

import pytest

from agents.flannel import backend
from agents.flannel.backend import (
    ExternalInterface,
    NetworkState,
    RouteVia,
    backend_mtu,
    desired_state,
    reconcile,
)
from agents.flannel.config import BackendConfig
from agents.flannel.lease import Lease, LeaseAttrs, format_vxlan_data
from agents.flannel.rules import forward_rules, masquerade_rules
from emulator.addr import Prefix, parse_ip, parse_mac
from emulator.errors import UsageError

IFACE = ExternalInterface("eth0", parse_ip("172.17.4.201"), Prefix.parse("172.17.4.0/24"), 1500)
OWN = Prefix.parse("10.2.59.0/24")
MAC = parse_mac("1e:5a:00:00:00:01")
VXLAN = BackendConfig(type="vxlan")
NOTHING = NetworkState(None, (), {}, {}, {})


def lease(subnet: str, ip: str, mac: bytes = MAC, kind: str = "vxlan") -> Lease:
    attrs = LeaseAttrs(parse_ip(ip), kind, format_vxlan_data(1, mac))
    return Lease(Prefix.parse(subnet), attrs, 1)


def test_vxlan_wants_neighbour_fdb_and_onlink_route_for_each_node() -> None:
    state, ignored = desired_state(VXLAN, IFACE, OWN, [lease("10.2.3.0/24", "172.17.4.101")])
    assert ignored == ()
    assert state.link is not None
    assert (state.link.name, state.link.mtu, state.link.port) == ("flannel.1", 1450, 8472)
    assert state.addresses == (Prefix.parse("10.2.59.0/32"),)
    assert state.neighs == {parse_ip("10.2.3.0"): MAC}
    assert state.fdb == {MAC: parse_ip("172.17.4.101")}
    via = RouteVia(parse_ip("10.2.3.0"), "flannel.1", True)
    assert state.routes == {Prefix.parse("10.2.3.0/24"): via}


def test_direct_routing_needs_no_tunnel_on_the_same_segment() -> None:
    direct = BackendConfig(type="vxlan", direct_routing=True)
    near, far = lease("10.2.3.0/24", "172.17.4.101"), lease("10.2.4.0/24", "172.18.0.1")
    state, _ = desired_state(direct, IFACE, OWN, [near, far])
    assert state.routes[near.subnet] == RouteVia(parse_ip("172.17.4.101"), "eth0", False)
    assert state.routes[far.subnet].dev == "flannel.1"
    assert list(state.neighs) == [parse_ip("10.2.4.0")]


def test_host_gw_routes_through_the_node_itself() -> None:
    gateway = BackendConfig(type="host-gw")
    others = [lease("10.2.3.0/24", "172.17.4.101", kind="host-gw"), lease("10.2.4.0/24", "1.1.1.1")]
    state, ignored = desired_state(gateway, IFACE, OWN, others)
    assert state.link is None
    assert state.routes == {
        Prefix.parse("10.2.3.0/24"): RouteVia(parse_ip("172.17.4.101"), "eth0", False)
    }
    assert ignored == ("Ignoring non-host-gw subnet: type=vxlan",)
    assert backend_mtu(gateway, IFACE) == 1500


def test_leases_of_other_backends_and_garbage_are_ignored_aloud() -> None:
    broken = Lease(Prefix.parse("10.2.5.0/24"), LeaseAttrs(1, "vxlan", "{}"), 1)
    _, ignored = desired_state(
        VXLAN, IFACE, OWN, [lease("10.2.4.0/24", "1.1.1.1", kind=""), broken]
    )
    assert ignored[0] == "ignoring non-vxlan v4Subnet(10.2.4.0/24) v6Subnet(::/0): type="
    assert ignored[1].startswith("error decoding subnet lease JSON of 10.2.5.0/24")


def test_unsupported_backend_says_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"unsupported backend 'udp'.*vxlan, host-gw"):
        backend_mtu(BackendConfig(), IFACE)


def test_reconcile_does_nothing_twice() -> None:
    state, _ = desired_state(VXLAN, IFACE, OWN, [lease("10.2.3.0/24", "172.17.4.101")])
    first = [type(action) for action in reconcile(state, NOTHING)]
    assert first == [
        backend.LinkAdd, backend.AddrAdd, backend.NeighReplace, backend.FdbReplace,
        backend.RouteReplace,
    ]  # fmt: skip
    assert reconcile(state, state) == []


def test_new_vtep_mac_replaces_neighbour_and_fdb() -> None:
    old, _ = desired_state(VXLAN, IFACE, OWN, [lease("10.2.3.0/24", "172.17.4.101")])
    mac = parse_mac("1e:5a:00:00:00:02")
    new, _ = desired_state(VXLAN, IFACE, OWN, [lease("10.2.3.0/24", "172.17.4.101", mac)])
    assert reconcile(new, old) == [
        backend.FdbDel("flannel.1", MAC),
        backend.NeighReplace("flannel.1", parse_ip("10.2.3.0"), mac),
        backend.FdbReplace("flannel.1", mac, parse_ip("172.17.4.101")),
    ]


def test_removed_node_leaves_nothing_behind() -> None:
    old, _ = desired_state(VXLAN, IFACE, OWN, [lease("10.2.3.0/24", "172.17.4.101")])
    new, _ = desired_state(VXLAN, IFACE, OWN, [])
    assert [type(action) for action in reconcile(new, old)] == [
        backend.RouteDel, backend.NeighDel, backend.FdbDel
    ]  # fmt: skip


def test_device_of_another_shape_is_made_anew_with_all_that_hangs_on_it() -> None:
    state, _ = desired_state(VXLAN, IFACE, OWN, [lease("10.2.3.0/24", "172.17.4.101")])
    assert state.link is not None
    other = NetworkState(
        state.link._replace(mtu=1400), state.addresses, state.neighs, state.fdb, state.routes
    )
    kinds = [type(action) for action in reconcile(state, other)]
    assert kinds[:2] == [backend.LinkDel, backend.LinkAdd]
    assert kinds[-1] is backend.RouteReplace


def test_masquerade_rules_are_those_of_flannel() -> None:
    made = masquerade_rules(Prefix.parse("10.2.0.0/16"), OWN)
    text = made.restore_text(made.jumps)
    assert text.splitlines() == [
        "*nat",
        ":FLANNEL-POSTRTG - [0:0]",
        "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000"
        ' -m comment --comment "flanneld masq" -j RETURN',
        "-A FLANNEL-POSTRTG -s 10.2.59.0/24 -d 10.2.0.0/16"
        ' -m comment --comment "flanneld masq" -j RETURN',
        "-A FLANNEL-POSTRTG -s 10.2.0.0/16 -d 10.2.59.0/24"
        ' -m comment --comment "flanneld masq" -j RETURN',
        "-A FLANNEL-POSTRTG ! -s 10.2.0.0/16 -d 10.2.59.0/24"
        ' -m comment --comment "flanneld masq" -j RETURN',
        "-A FLANNEL-POSTRTG -s 10.2.0.0/16 ! -d 224.0.0.0/4"
        ' -m comment --comment "flanneld masq" -j MASQUERADE --random-fully',
        "-A FLANNEL-POSTRTG ! -s 10.2.0.0/16 -d 10.2.0.0/16"
        ' -m comment --comment "flanneld masq" -j MASQUERADE --random-fully',
        '-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
        "COMMIT",
    ]
    jump = '-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG'
    assert made.missing_jumps(lambda table, chain: ["-j OTHER", jump]) == ()
    assert made.missing_jumps(lambda table, chain: []) == (("POSTROUTING", jump),)
    assert forward_rules(Prefix.parse("10.2.0.0/16")).jumps[0][0] == "FORWARD"


def test_a_lease_outside_the_network_takes_no_route_away() -> None:
    network = Prefix.parse("10.2.0.0/16")
    subnets = ("0.0.0.0/0", "172.17.4.0/24", "10.2.0.0/16", "10.0.0.0/8", "10.2.9.0/24")
    leases = [
        lease(subnet, f"172.17.4.{last}", bytes((2, 0, 0, 0, 0, last)))
        for last, subnet in enumerate(subnets, 1)
    ]
    state, ignored = desired_state(VXLAN, IFACE, OWN, leases, network)
    assert list(state.routes) == [Prefix.parse("10.2.9.0/24")]
    assert ignored == tuple(
        f"ignoring subnet {subnet}: it is no part of 10.2.0.0/16" for subnet in subnets[:-1]
    )
