"""Rules of any set of services: stable, self-contained, accepted by the tables."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.kubeproxy.daemon import Proxier
from agents.kubeproxy.desired import desired_ruleset
from agents.kubeproxy.model import Endpoint, Key, Profile, ServicePort
from agents.kubeproxy.ruleset import NodeConfig
from emulator.addr import Prefix
from emulator.netstack.netfilter import Netfilter
from emulator.netstack.packet import AddressType

keys = st.builds(
    Key, st.sampled_from(["default", "ns1"]), st.sampled_from("abcdef"), st.sampled_from(["", "p"])
)
addresses = st.integers(1, 250).map(lambda i: f"10.1.0.{i}")
endpoint_lists = st.lists(
    st.builds(Endpoint, addresses, st.just(80), st.booleans(), st.booleans(), st.booleans(),
              st.booleans()),
    max_size=5, unique_by=str,
)  # fmt: skip
ports = st.builds(
    ServicePort, keys, st.sampled_from(["tcp", "udp", "sctp"]),
    st.integers(1, 250).map(lambda i: f"172.30.0.{i}"), st.integers(1, 65535),
    node_port=st.sampled_from([0, 30001]),
    external_ips=st.sampled_from([(), ("192.168.9.1",)]),
    load_balancer_ips=st.sampled_from([(), ("5.6.7.8",), ("5.6.7.8", "5.6.7.9")]),
    source_ranges=st.sampled_from([(), (Prefix.parse("192.0.2.0/24"),)]),
    external_local=st.booleans(), internal_local=st.booleans(),
    affinity_s=st.sampled_from([0, 60]), health_check_node_port=st.sampled_from([0, 30500]),
)  # fmt: skip
carried_sets = st.lists(
    ports.filter(lambda port: port.protocol != "sctp"),
    max_size=4, unique_by=lambda port: (port.key, port.protocol),
)  # fmt: skip
service_sets = st.lists(ports, max_size=6, unique_by=lambda port: (port.key, port.protocol))
endpoint_maps = st.dictionaries(keys, endpoint_lists)
profiles: st.SearchStrategy[Profile] = st.sampled_from(["modern", "2017"])


def node(profile: Profile) -> NodeConfig:
    return NodeConfig("n", "192.0.2.7", Prefix.parse("10.1.0.0/16"), profile=profile)


def lines_about(text: str, key: Key, profile: Profile) -> list[str]:
    name = key.text(profile)
    return [line for line in text.splitlines() if f'"{name} ' in line or f" {name} " in line]


@given(service_sets, endpoint_maps, ports, profiles)
def test_another_service_changes_no_rule_of_the_others(
    services: list[ServicePort],
    endpoints: dict[Key, list[Endpoint]],
    extra: ServicePort,
    profile: Profile,
) -> None:
    services = [port for port in services if port.key != extra.key]
    alone = desired_ruleset(services, endpoints, node(profile)).restore_text()
    more = desired_ruleset([*services, extra], endpoints, node(profile)).restore_text()
    for port in services:
        assert lines_about(alone, port.key, profile) == lines_about(more, port.key, profile)


@given(service_sets, endpoint_maps, profiles, st.randoms())
def test_order_of_input_does_not_matter(
    services: list[ServicePort],
    endpoints: dict[Key, list[Endpoint]],
    profile: Profile,
    rng: random.Random,
) -> None:
    shuffled = rng.sample(services, len(services))
    one = desired_ruleset(services, endpoints, node(profile))
    other = desired_ruleset(shuffled, endpoints, node(profile))
    assert one.restore_text() == other.restore_text()


@given(service_sets, endpoint_maps, profiles)
def test_every_jump_has_its_chain_and_every_chain_is_reached(
    services: list[ServicePort], endpoints: dict[Key, list[Endpoint]], profile: Profile
) -> None:
    made = desired_ruleset(services, endpoints, node(profile))
    for table in (made.filter, made.nat):
        targets = {
            line.rsplit(" -j ", 1)[1].split()[0] for line in table.rules if " -j KUBE-" in line
        }
        assert targets <= set(table.chains)
    endpoint_chains = {chain for chain in made.nat.chains if chain.startswith("KUBE-SEP-")}
    jumps = " ".join(made.nat.rules)
    assert all(f"-j {chain}" in jumps for chain in endpoint_chains)


class View:
    def address_type(self, ip: int) -> AddressType:
        return AddressType.UNICAST

    def primary_address(self, dev: str, dst: int) -> int | None:
        return None

    def invalidate_flows(self) -> None:
        pass


class Namespace:
    def __init__(self) -> None:
        self.sysctl: dict[str, int] = {}
        self.netfilter = Netfilter(View(), clock=lambda: 0.0, rng=random.Random(1))


@settings(max_examples=50)
@given(st.lists(st.tuples(carried_sets, endpoint_maps), min_size=1, max_size=3), profiles)
def test_any_history_of_syncs_ends_in_the_state_of_the_last(
    history: list[tuple[list[ServicePort], dict[Key, list[Endpoint]]]], profile: Profile
) -> None:
    lived, fresh = Namespace(), Namespace()
    proxier = Proxier(lived, node(profile))
    for services, endpoints in history:
        proxier.sync(services, endpoints)
    Proxier(fresh, node(profile)).sync(*history[-1])
    assert lived.netfilter.snapshot() == fresh.netfilter.snapshot()
