"""Leases: keys and values of every era, who gets which subnet, what changes in a view."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from agents.flannel.config import parse_network_config
from agents.flannel.gotime import format_duration
from agents.flannel.lease import (
    Lease,
    LeaseAttrs,
    format_key,
    format_value,
    format_vxlan_data,
    parse_key,
    parse_value,
    parse_vxlan_data,
)
from agents.flannel.leaser import Create, Reuse, SubnetLeaser
from agents.flannel.subnetenv import SubnetEnv, docker_options, parse_previous_subnet
from agents.flannel.view import ChangeKind, LeaseView
from emulator.addr import Prefix, parse_ip, parse_mac
from emulator.errors import ExhaustedError, WireError

MAC = parse_mac("c6:d2:32:6f:8f:44")
CONFIG = parse_network_config(b'{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}')
OWN = parse_ip("172.17.4.201")


def lease(subnet: str, ip: str = "172.17.4.1", data: str = "", number: int = 7) -> Lease:
    attrs = LeaseAttrs(parse_ip(ip), "vxlan", data)
    return Lease(Prefix.parse(subnet), attrs, number, 1, 100.0 if number else None)


def leaser(previous: str = "", seed: int = 1) -> SubnetLeaser:
    prefix = Prefix.parse(previous) if previous else None
    return SubnetLeaser(CONFIG, OWN, previous=prefix, rng=random.Random(seed))


@pytest.mark.parametrize("text", ["10.12.13.0-24", "10.12.13.0-24&fd00:12:13::-56"])
def test_keys_round_trip(text: str) -> None:
    key = parse_key(text)
    assert key is not None
    assert format_key(key.subnet, key.ipv6) == text


@pytest.mark.parametrize(
    "text",
    [
        "10", "10.12.13.0", "10.12.13-24", "10.12.13.300-24", "10.12.13.0-24hi", "&2001::-56",
        "10.12.13.0-24&:12:13:-56", "10.12.13.0-24&20011::-56", "10.12.13.0-24&2001-56",
        "10.12.13.0-24&2001::", "10.12.13.0-24&2001::-56hi", "10.12.13.0-33", "",
    ],
)  # fmt: skip
def test_keys_that_are_not_leases_are_skipped(text: str) -> None:
    assert parse_key(text) is None


def test_written_values_have_flannels_exact_bytes() -> None:
    attrs = LeaseAttrs(parse_ip("192.168.64.3"), "vxlan", format_vxlan_data(1, MAC))
    assert format_value(attrs) == (
        b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
    )
    old = LeaseAttrs(parse_ip("192.168.64.3"), "vxlan", format_vxlan_data(1, MAC, "2017"))
    assert format_value(old, "2017") == (
        b'{"PublicIP":"192.168.64.3","BackendType":"vxlan",'
        b'"BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}}'
    )
    assert format_value(LeaseAttrs(parse_ip("1.2.3.4")), "2017") == b'{"PublicIP":"1.2.3.4"}'


@pytest.mark.parametrize(
    ("value", "vni"),
    [
        (b'{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":'
         b'"c6:d2:32:6f:8f:44"}}', 0),
        (b'{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,'
         b'"VtepMAC":"c6:d2:32:6f:8f:44"}}', 1),
    ],
)  # fmt: skip
def test_values_of_every_era_are_read(value: bytes, vni: int) -> None:
    attrs = parse_value(value)
    assert attrs.public_ip == parse_ip("1.2.3.4")
    assert parse_vxlan_data(attrs.backend_data) == (vni, MAC)


@pytest.mark.parametrize(
    "value",
    [
        b"", b"{}", b"[1]", b'{"PublicIP":7}', b'{"PublicIP":"x"}', b"\xff\xfe",
        b"/coreos.com/network/subnets/10.2.3.0-24\n{}", b'{"PublicIP":"1.2.3.4","BackendType":5}',
        b"[" * 10000,
    ],
)  # fmt: skip
def test_unreadable_values_are_wire_errors(value: bytes) -> None:
    with pytest.raises(WireError):
        parse_value(value)


def test_own_lease_is_reused() -> None:
    decision = leaser().propose([lease("10.3.9.0/24"), lease("10.3.5.0/24", "172.17.4.201")])
    assert decision.action == Reuse(lease("10.3.5.0/24", "172.17.4.201"))
    assert decision.notes == (
        "Found lease (ip: 10.3.5.0/24 ipv6: ::/0) for current IP (172.17.4.201), reusing",
    )


def test_own_lease_outside_the_config_is_deleted_and_replaced() -> None:
    foreign = lease("10.4.5.0/24", "172.17.4.201")
    decision = leaser().propose([foreign])
    assert decision.delete == (foreign,)
    assert isinstance(decision.action, Create)
    assert CONFIG.is_compatible(decision.action.subnet)


def test_previous_subnet_is_taken_if_free_and_compatible() -> None:
    assert leaser("10.3.6.0/24").propose([]).action == Create(Prefix.parse("10.3.6.0/24"))
    taken = leaser("10.3.6.0/24").propose([lease("10.3.6.0/24")]).action
    assert taken != Create(Prefix.parse("10.3.6.0/24"))
    outside = leaser("10.4.1.0/24").propose([])
    assert "is not compatible with the Etcd network config, ignoring" in outside.notes[0]


def test_a_previous_subnet_that_overlaps_another_node_s_is_not_taken() -> None:
    previous = Create(Prefix.parse("10.3.6.0/24"))
    for other in ("10.3.6.128/25", "10.3.4.0/22"):
        assert leaser("10.3.6.0/24").propose([lease(other)]).action != previous
    assert leaser("10.3.6.0/24").propose([lease("10.3.7.0/24")]).action == previous


def test_an_own_lease_of_both_families_is_none_of_this_network() -> None:
    dual = replace(lease("10.3.5.0/24", "172.17.4.201"), ipv6="fd00:1::/64")
    decision = leaser().propose([dual])
    assert decision.delete == (dual,)
    assert isinstance(decision.action, Create)


def test_allocation_skips_what_overlaps_and_looks_at_no_more_than_100() -> None:
    held = [lease("10.3.0.0/17"), lease("10.3.128.0/24")]
    picked = {leaser(seed=seed).propose(held).action for seed in range(400)}
    lowest, highest = Prefix.parse("10.3.129.0/24"), Prefix.parse("10.3.228.0/24")
    subnets = sorted(action.subnet for action in picked if isinstance(action, Create))
    assert subnets[0] >= lowest
    assert subnets[-1] <= highest
    assert len(subnets) > 80


def test_full_network_is_exhausted() -> None:
    with pytest.raises(
        ExhaustedError,
        match=r"^out of subnets: every /24 from 10\.3\.1\.0 to 10\.3\.255\.0 is held",
    ):
        leaser().propose([lease("10.3.0.0/16")])


def test_view_never_reports_the_own_lease_nor_renewals() -> None:
    view = LeaseView(Prefix.parse("10.3.5.0/24"))
    other = lease("10.3.6.0/24")
    assert [c.kind for c in view.reset([lease("10.3.5.0/24"), other])] == [ChangeKind.ADDED]
    assert view.put(replace(other, etcd_lease=9, mod_revision=5)) == []
    assert view.put(lease("10.3.5.0/24")) == []
    assert view.remove(Prefix.parse("10.3.5.0/24")) == []
    assert view.reset([lease("10.3.5.0/24"), other]) == []


def test_resync_sees_changed_attributes_and_vanished_leases() -> None:
    view = LeaseView(Prefix.parse("10.3.5.0/24"))
    view.reset([lease("10.3.6.0/24"), lease("10.3.7.0/24")])
    changes = view.reset([lease("10.3.7.0/24", data="{}"), lease("10.3.8.0/24")])
    assert [(change.kind.value, str(change.lease.subnet)) for change in changes] == [
        ("removed", "10.3.6.0/24"),
        ("changed", "10.3.7.0/24"),
        ("added", "10.3.8.0/24"),
    ]


def test_subnet_env_text_and_reading_it_back() -> None:
    env = SubnetEnv(Prefix.parse("10.2.0.0/16"), Prefix.parse("10.2.59.0/24"), 1450, True)
    assert env.text() == (
        "FLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.59.1/24\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    assert parse_previous_subnet(env.text()) == Prefix.parse("10.2.59.0/24")
    assert parse_previous_subnet("FLANNEL_SUBNET=nonsense\n") is None
    assert parse_previous_subnet("") is None


def test_docker_options_of_the_tutorial() -> None:
    env = SubnetEnv(Prefix.parse("10.2.0.0/16"), Prefix.parse("10.2.59.0/24"), 1450, True)
    assert docker_options(env, combined=False) == (
        'DOCKER_OPT_BIP="--bip=10.2.59.1/24"\nDOCKER_OPT_IPMASQ="--ip-masq=false"\n'
        'DOCKER_OPT_MTU="--mtu=1450"\n'
    )
    assert docker_options(env, individual=False, key="X") == (
        'X=" --bip=10.2.59.1/24 --ip-masq=false --mtu=1450"\n'
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (82799.94, "22h59m59.9s"), (3600, "1h0m0s"), (60, "1m0s"), (0.25, "250ms"), (1.5, "1.5s"),
        (0, "0s"), (-5, "-5s"),
    ],
)  # fmt: skip
def test_durations_are_printed_as_go_prints_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
