"""From what felix knows to what the kernel must hold; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agents.calico.felix.chains import (
    TableRules,
    chain_notes,
    filter_table,
    mangle_table,
    nat_table,
    raw_table,
)
from agents.calico.felix.names import set_name
from agents.calico.felix.network import Network, network_of
from agents.calico.felix.policy_rules import SetsWanted
from emulator.addr import format_ip

if TYPE_CHECKING:
    from agents.calico.felix.model import State
    from agents.calico.selector import Selector


class WantedSet(NamedTuple):
    """One IP set: its kind and, sorted, its members."""

    kind: str
    members: tuple[str, ...]


class Desired(NamedTuple):
    """Everything the kernel must hold for felix.

    ``notes`` say what a chain is about; ``refused`` name what the datastore asks for in vain.
    """

    tables: dict[str, TableRules]
    sets: dict[str, WantedSet]
    network: Network
    notes: dict[str, str]
    refused: tuple[str, ...] = ()


def compute(state: State) -> Desired:
    """Decide everything anew; equal states give equal answers."""
    wanted = SetsWanted()
    tables = {
        "raw": raw_table(),
        "mangle": mangle_table(),
        "nat": nat_table(state),
        "filter": filter_table(state, wanted),
    }
    return Desired(
        tables, _sets(state, wanted), network_of(state), chain_notes(state), state.refused
    )


def _sets(state: State, wanted: SetsWanted) -> dict[str, WantedSet]:
    """The sets by name: felix's fixed ones, then those rules look into."""
    hosts = tuple(format_ip(ip) for ip in sorted({node.ip for node in state.nodes}))
    pools = sorted(state.pools, key=lambda pool: pool.cidr)
    sets = {
        "all-ipam-pools": WantedSet("hash:net", tuple(str(pool.cidr) for pool in pools)),
        "masq-ipam-pools": WantedSet(
            "hash:net", tuple(str(pool.cidr) for pool in pools if pool.nat_outgoing)
        ),
        "this-host": WantedSet(
            "hash:ip", tuple(format_ip(ip) for ip in sorted(set(state.host.addresses)))
        ),
    }
    if state.ipip_enabled:
        sets["all-hosts-net"] = WantedSet("hash:net", hosts)
    if state.vxlan_enabled:
        sets["all-vxlan-net"] = WantedSet("hash:net", hosts)
    named = {set_name(name): each for name, each in sets.items()}
    for name in sorted(wanted.selectors):
        named[name] = WantedSet("hash:net", _selected(state, wanted.selectors[name]))
    for name in sorted(wanted.ports):
        named[name] = WantedSet("hash:ip,port", _ports(state, *wanted.ports[name]))
    return named


def _selected(state: State, selector: Selector) -> tuple[str, ...]:
    """The addresses of selected endpoints and the networks of selected sets, sorted."""
    addresses = {
        ip
        for endpoint in state.endpoints
        if selector.matches(endpoint.labels)
        for ip in endpoint.addresses
    }
    nets: set[str] = set()
    for each in state.network_sets:
        if selector.matches(each.labels):
            for net in each.nets:
                # A hash:net set takes no /0; its two halves are the same.
                nets |= {"0.0.0.0/1", "128.0.0.0/1"} if net.endswith("/0") else {net}
    return (*(format_ip(ip) for ip in sorted(addresses)), *sorted(nets))


def _ports(state: State, selector: Selector, protocol: str, port: str) -> tuple[str, ...]:
    found = {
        (ip, named.port)
        for endpoint in state.endpoints
        if selector.matches(endpoint.labels)
        for named in endpoint.ports
        if (named.name, named.protocol) == (port, protocol)
        for ip in endpoint.addresses
    }
    return tuple(f"{format_ip(ip)},{protocol}:{number}" for ip, number in sorted(found))
