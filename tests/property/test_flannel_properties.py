"""Leases under any interleaving, and codecs for any value."""

from __future__ import annotations

import contextlib
import random

from hypothesis import given
from hypothesis import strategies as st

from agents.flannel.backend import ExternalInterface, NetworkState, desired_state, reconcile
from agents.flannel.config import BackendConfig, parse_network_config
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
from agents.flannel.leaser import Create, Decision, SubnetLeaser
from agents.flannel.view import ChangeKind, LeaseView
from emulator.addr import IP_MAX, Prefix, parse_ip
from emulator.errors import ExhaustedError, WireError

CONFIG = parse_network_config(b'{"Network":"10.3.0.0/27","SubnetLen":30}')
NODES = 6

ips = st.integers(0, IP_MAX)
macs = st.binary(min_size=6, max_size=6)
prefixes = st.builds(Prefix.of, ips, st.integers(0, 32))
attributes = st.builds(
    lambda ip, vni, mac: LeaseAttrs(ip, "vxlan", format_vxlan_data(vni, mac)),
    ips, st.integers(0, 2**24 - 1), macs,
)  # fmt: skip
subnets = st.integers(1, 40).map(lambda i: Prefix(parse_ip("10.2.0.0") + (i << 8), 24))
leases = st.builds(lambda subnet, attrs: Lease(subnet, attrs, 1), subnets, attributes)


@given(prefixes)
def test_every_key_is_read_back(subnet: Prefix) -> None:
    key = parse_key(format_key(subnet))
    assert key is not None
    assert key.subnet == subnet


@given(attributes)
def test_every_value_is_read_back(attrs: LeaseAttrs) -> None:
    assert parse_value(format_value(attrs)) == attrs
    assert parse_value(format_value(attrs, "2017")) == attrs
    parse_vxlan_data(attrs.backend_data)


@given(st.binary(max_size=200))
def test_garbage_values_raise_nothing_but_wire_errors(data: bytes) -> None:
    for parse in (parse_value, lambda value: parse_vxlan_data(value.decode("latin1"))):
        with contextlib.suppress(WireError):
            parse(data)


@given(st.lists(st.tuples(st.integers(0, NODES - 1), st.booleans()), max_size=60), st.integers())
def test_no_interleaving_of_nodes_gives_a_subnet_to_two(
    steps: list[tuple[int, bool]], seed: int
) -> None:
    """Each step a node either looks (and decides on what it saw) or acts on its old decision."""
    rng = random.Random(seed)
    store: dict[Prefix, Lease] = {}
    revision = 0
    held: dict[int, Prefix] = {}
    nodes = [SubnetLeaser(CONFIG, node + 1, previous=None, rng=rng) for node in range(NODES)]
    decided: dict[int, Decision] = {}
    for node, looks in steps:
        if looks:
            try:
                decided[node] = nodes[node].propose(list(store.values()))
            except ExhaustedError:
                assert len(store) == 7
            continue
        decision = decided.pop(node, None)
        if decision is None:
            continue
        revision += 1
        if isinstance(decision.action, Create):
            subnet = decision.action.subnet
            won = subnet not in store
        else:
            seen = decision.action.lease
            subnet = seen.subnet
            won = subnet in store and store[subnet].mod_revision == seen.mod_revision
        if won:
            store[subnet] = Lease(subnet, LeaseAttrs(node + 1), 1, revision)
            held[node] = subnet
    assert len(set(held.values())) == len(held)
    assert {subnet: node + 1 for node, subnet in held.items()} == {
        subnet: lease.attrs.public_ip for subnet, lease in store.items()
    }


@given(st.lists(leases, unique_by=lambda lease: lease.subnet),
       st.lists(leases, unique_by=lambda lease: lease.subnet))  # fmt: skip
def test_changes_replayed_make_the_new_view(before: list[Lease], after: list[Lease]) -> None:
    own = Prefix.parse("10.2.1.0/24")
    view = LeaseView(own)
    view.reset(before)
    mirror = {lease.subnet: lease for lease in view.leases()}
    for change in view.reset(after):
        if change.kind is ChangeKind.REMOVED:
            del mirror[change.lease.subnet]
        else:
            mirror[change.lease.subnet] = change.lease
    assert tuple(mirror[subnet].attrs for subnet in sorted(mirror)) == tuple(
        lease.attrs for lease in view.leases()
    )
    assert own not in mirror


@given(st.lists(leases, unique_by=lambda lease: lease.subnet),
       st.lists(leases, unique_by=lambda lease: lease.subnet), st.booleans())  # fmt: skip
def test_reconcile_reaches_the_desired_state_from_any_other(
    before: list[Lease], after: list[Lease], direct: bool
) -> None:
    backend = BackendConfig(type="vxlan", direct_routing=direct)
    iface = ExternalInterface("eth0", 1, Prefix.parse("0.0.0.0/1"), 1500)
    own = Prefix.parse("10.2.200.0/24")
    observed = desired_state(backend, iface, own, before).state
    wanted = desired_state(backend, iface, own, after).state
    neighs, fdb, routes = dict(observed.neighs), dict(observed.fdb), dict(observed.routes)
    for action in reconcile(wanted, observed):
        match type(action).__name__, tuple(action):
            case "NeighReplace", (_, ip, mac):
                neighs[ip] = mac
            case "NeighDel", (_, ip):
                del neighs[ip]
            case "FdbReplace", (_, mac, dst):
                fdb[mac] = dst
            case "FdbDel", (_, mac):
                del fdb[mac]
            case "RouteReplace", (prefix, route):
                routes[prefix] = route
            case "RouteDel", (prefix, _):
                del routes[prefix]
    reached = NetworkState(observed.link, observed.addresses, neighs, fdb, routes)
    assert reached == wanted
