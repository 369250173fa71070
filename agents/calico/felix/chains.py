"""The chains of the raw, mangle, nat and filter tables; pure.

A packet between two workloads of a node passes cali-fw-… of the sender, then cali-tw-… of the
receiver: conntrack, policies in order, profiles, drop.  Source: felix/rules/{static,endpoints,
dispatch,nat}.go of Calico 3.20 to 3.28.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agents.calico.felix import names
from agents.calico.felix.model import INTERFACE_PREFIX, IPIP_DEVICE, VXLAN_DEVICE
from agents.calico.felix.policy_rules import SetsWanted, render_rules
from agents.calico.felix.rules import (
    ACCEPT,
    ACCEPT_MARK,
    ALL_MARKS,
    DROP,
    PASS_MARK,
    RETURN,
    SCRATCH_0,
    Chain,
    Rule,
    clear_mark,
    goto,
    jump,
    mark_clear,
    mark_set,
    set_mark,
)
from emulator.addr import format_ip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agents.calico.felix.model import Endpoint, Policy, Profile, State

WORKLOADS = f"{INTERFACE_PREFIX}+"
_ACCEPTED = Rule(mark_set(ACCEPT_MARK), ACCEPT)
_HOST_POLICY = "Host endpoint policy accepted packet."
_UNKNOWN = Rule("", DROP, "Unknown interface")


class TableRules(NamedTuple):
    """One table: felix's own chains, and its rules in built-in ones.

    ``inserts`` stand first (or last, as the settings say) and ``appends`` last in theirs.
    """

    chains: tuple[Chain, ...]
    inserts: tuple[Chain, ...]
    appends: tuple[Chain, ...] = ()


def _hook(chain: str, target: str) -> Chain:
    return Chain(chain, (Rule(action=jump(target)),))


def _masquerade(state: State) -> str:
    return "--jump MASQUERADE" + (" --random-fully" if state.settings.random_fully else "")


# Filter --------------------------------------------------------------------------------------


def _forward() -> Chain:
    return Chain(
        names.FORWARD,
        (
            # The accept bit speaks for chains of the tables before.
            Rule(action=clear_mark(ALL_MARKS & ~ACCEPT_MARK)),
            Rule(mark_clear(ACCEPT_MARK), jump(names.FROM_HEP_FORWARD)),
            Rule(f"--in-interface {WORKLOADS}", jump(names.FROM_WORKLOAD)),
            Rule(f"--out-interface {WORKLOADS}", jump(names.TO_WORKLOAD)),
            Rule(action=jump(names.TO_HEP_FORWARD)),
            Rule(action=jump(names.CIDR_BLOCK)),
        ),
    )


def _input(state: State) -> Chain:
    rules: list[Rule] = []
    if state.ipip_enabled:
        hosts = names.set_name("all-hosts-net")
        rules += [
            Rule(
                f"-p 4 -m set --match-set {hosts} src -m addrtype --dst-type LOCAL",
                ACCEPT,
                "Allow IPIP packets from Calico hosts",
            ),
            Rule("-p 4", DROP, "Drop IPIP packets from non-Calico hosts"),
        ]
    if state.vxlan_enabled:
        port, hosts = state.settings.vxlan_port, names.set_name("all-vxlan-net")
        ours = f"-p 17 -m multiport --destination-ports {port}"
        rules += [
            Rule(
                f"{ours} -m set --match-set {hosts} src -m addrtype --dst-type LOCAL",
                ACCEPT,
                "Allow IPv4 VXLAN packets from allowed hosts",
            ),
            Rule(
                f"{ours} -m addrtype --dst-type LOCAL",
                DROP,
                "Drop IPv4 VXLAN packets from non-allowed hosts",
            ),
        ]
    return Chain(
        names.INPUT,
        (
            *rules,
            Rule(f"--in-interface {WORKLOADS}", goto(names.WORKLOAD_TO_HOST)),
            _ACCEPTED,
            Rule(action=clear_mark(ALL_MARKS)),
            Rule(action=jump(names.FROM_HOST)),
            Rule(mark_set(ACCEPT_MARK), ACCEPT, _HOST_POLICY),
        ),
    )


def _output(state: State) -> Chain:
    rules = [
        _ACCEPTED,
        # From a node to its own workloads no policy is asked: kubelet must reach them.
        Rule(f"--out-interface {WORKLOADS}", RETURN),
    ]
    if state.ipip_enabled:
        hosts = names.set_name("all-hosts-net")
        rules.append(
            Rule(
                f"-p 4 -m set --match-set {hosts} dst -m addrtype --src-type LOCAL",
                ACCEPT,
                "Allow IPIP packets to other Calico hosts",
            )
        )
    if state.vxlan_enabled:
        hosts = names.set_name("all-vxlan-net")
        rules.append(
            Rule(
                f"-p 17 -m multiport --destination-ports {state.settings.vxlan_port} "
                f"-m addrtype --src-type LOCAL -m set --match-set {hosts} dst",
                ACCEPT,
                "Allow IPv4 VXLAN packets to other allowed hosts",
            )
        )
    return Chain(
        names.OUTPUT,
        (
            *rules,
            Rule(action=clear_mark(ALL_MARKS)),
            # After destination NAT the device is not known yet; mangle POSTROUTING asks then.
            Rule("-m conntrack ! --ctstate DNAT", jump(names.TO_HOST)),
            Rule(mark_set(ACCEPT_MARK), ACCEPT, _HOST_POLICY),
        ),
    )


def _workload_to_host(state: State) -> Chain:
    action = f"--jump {state.settings.endpoint_to_host}"
    return Chain(
        names.WORKLOAD_TO_HOST,
        (
            Rule(action=jump(names.FROM_WORKLOAD)),
            Rule(action=action, comment="Configured DefaultEndpointToHostAction"),
        ),
    )


def filter_table(state: State, sets: SetsWanted) -> TableRules:
    """Policies, profiles, workloads, and the way to them."""
    locals_ = state.local_endpoints()
    applied = {each.interface: policies_of(state, each) for each in locals_}
    used = [
        policy
        for policy in state.policies
        if any(policy in both for each in applied.values() for both in each)
    ]
    profile_names = dict.fromkeys(name for each in locals_ for name in each.profiles)
    by_name = {profile.name: profile for profile in state.profiles}
    chains = [_forward(), _input(state), _workload_to_host(state), _output(state)]
    chains += [
        Chain(name)
        for name in (
            *(names.FROM_HEP_FORWARD, names.TO_HEP_FORWARD, names.FROM_HOST, names.TO_HOST),
            names.CIDR_BLOCK,
        )
    ]
    for policy in used:
        chains += _policy_chains(policy, sets, state.settings.log_prefix)
    for name in profile_names:
        chains += _profile_chains(name, by_name.get(name), sets, state.settings.log_prefix)
    for endpoint in locals_:
        ingress, egress = applied[endpoint.interface]
        chains.append(_endpoint_chain(state, endpoint, ingress, inbound=True))
        chains.append(_endpoint_chain(state, endpoint, egress, inbound=False))
    interfaces = [each.interface for each in locals_]
    chains += dispatch(
        names.FROM_WORKLOAD, interfaces, lambda dev: f"--in-interface {dev}", names.FROM_ENDPOINT
    )
    chains += dispatch(
        names.TO_WORKLOAD, interfaces, lambda dev: f"--out-interface {dev}", names.TO_ENDPOINT
    )
    return TableRules(
        tuple(chains),
        (
            _hook("INPUT", names.INPUT),
            _hook("FORWARD", names.FORWARD),
            _hook("OUTPUT", names.OUTPUT),
        ),
        (
            Chain(
                "FORWARD",
                (
                    Rule(mark_set(ACCEPT_MARK), ACCEPT, "Policy explicitly accepted packet."),
                    # Tells mangle POSTROUTING that the packet was forwarded.
                    Rule(action=set_mark(ACCEPT_MARK)),
                ),
            ),
        ),
    )


def policies_of(state: State, endpoint: Endpoint) -> tuple[list[Policy], list[Policy]]:
    """The policies that select an endpoint, inbound and outbound, in the order they are asked."""
    chosen = [policy for policy in state.policies if policy.selector.matches(endpoint.labels)]
    return (
        [policy for policy in chosen if "Ingress" in policy.types],
        [policy for policy in chosen if "Egress" in policy.types],
    )


def _policy_chains(policy: Policy, sets: SetsWanted, log_prefix: str) -> list[Chain]:
    return [
        Chain(
            names.limited(names.POLICY_IN, policy.name),
            render_rules(policy.ingress, sets, log_prefix),
        ),
        Chain(
            names.limited(names.POLICY_OUT, policy.name),
            render_rules(policy.egress, sets, log_prefix),
        ),
    ]


def _profile_chains(
    name: str, profile: Profile | None, sets: SetsWanted, log_prefix: str
) -> list[Chain]:
    """A profile nobody has made yet is empty: who relies on it is dropped."""
    ingress = profile.ingress if profile is not None else ()
    egress = profile.egress if profile is not None else ()
    return [
        Chain(names.limited(names.PROFILE_IN, name), render_rules(ingress, sets, log_prefix)),
        Chain(names.limited(names.PROFILE_OUT, name), render_rules(egress, sets, log_prefix)),
    ]


def _endpoint_chain(
    state: State, endpoint: Endpoint, policies: Sequence[Policy], *, inbound: bool
) -> Chain:
    prefix = names.TO_ENDPOINT if inbound else names.FROM_ENDPOINT
    policy_prefix = names.POLICY_IN if inbound else names.POLICY_OUT
    profile_prefix = names.PROFILE_IN if inbound else names.PROFILE_OUT
    rules = [
        Rule("-m conntrack --ctstate RELATED,ESTABLISHED", ACCEPT),
        Rule("-m conntrack --ctstate INVALID", DROP),
        Rule(action=clear_mark(ACCEPT_MARK)),
    ]
    if not inbound:
        # A tunnel made by a workload would carry packets past its policies.
        rules += [
            Rule(
                f"-p 17 -m multiport --destination-ports {state.settings.vxlan_port}",
                DROP,
                "Drop VXLAN encapped packets originating in workloads",
            ),
            Rule("-p 4", DROP, "Drop IPinIP encapped packets originating in workloads"),
        ]
    if policies:
        rules.append(Rule(action=clear_mark(PASS_MARK), comment="Start of policies"))
        for policy in policies:
            rules += [
                Rule(mark_clear(PASS_MARK), jump(names.limited(policy_prefix, policy.name))),
                Rule(mark_set(ACCEPT_MARK), RETURN, "Return if policy accepted"),
            ]
        rules.append(Rule(mark_clear(PASS_MARK), DROP, "Drop if no policies passed packet"))
    for profile in endpoint.profiles:
        rules += [
            Rule(action=jump(names.limited(profile_prefix, profile))),
            Rule(mark_set(ACCEPT_MARK), RETURN, "Return if profile accepted"),
        ]
    rules.append(Rule("", DROP, "Drop if no profiles matched"))
    return Chain(names.limited(prefix, endpoint.interface), tuple(rules))


def dispatch(
    root: str, interfaces: Sequence[str], match: Callable[[str], str], prefix: str
) -> list[Chain]:
    """From a device to its endpoint's chain, by a tree one character deep."""
    ordered = sorted(dict.fromkeys(interfaces))
    common = _common_start(ordered)
    groups: dict[str, list[str]] = {}
    for name in ordered:
        groups.setdefault(name[: len(common) + 1], []).append(name)
    chains: list[Chain] = []
    rules: list[Rule] = []
    for start, members in groups.items():
        if len(members) == 1:
            name = members[0]
            rules.append(Rule(match(name), goto(names.limited(prefix, name))))
            continue
        child = f"{root}-{start[len(common) :]}"
        # A goto does not come back: the child ends as the root would.
        rules.append(Rule(match(f"{start}+"), goto(child)))
        chains.append(
            Chain(
                child,
                (
                    *(Rule(match(each), goto(names.limited(prefix, each))) for each in members),
                    _UNKNOWN,
                ),
            )
        )
    return [*chains, Chain(root, (*rules, _UNKNOWN))]


def _common_start(ordered: Sequence[str]) -> str:
    """What sorted names begin with, all of them."""
    if not ordered:
        return ""
    first, last = ordered[0], ordered[-1]
    size = 0
    while size < min(len(first), len(last)) and first[size] == last[size]:
        size += 1
    return first[:size]


# The other tables ----------------------------------------------------------------------------


def nat_table(state: State) -> TableRules:
    """Pods that leave the pools take a node's address; floating IPs; tunnels' source addresses."""
    masquerade = _masquerade(state)
    outgoing: tuple[Rule, ...] = ()
    if any(pool.nat_outgoing for pool in state.pools):
        ours, every = names.set_name("masq-ipam-pools"), names.set_name("all-ipam-pools")
        match = f"-m set --match-set {ours} src -m set ! --match-set {every} dst"
        outgoing = (Rule(match, masquerade),)
    nats = sorted({pair for each in state.local_endpoints() for pair in each.nats})
    dnat = tuple(
        Rule(
            f"--destination {format_ip(external)}/32",
            f"--jump DNAT --to-destination {format_ip(internal)}",
        )
        for external, internal in nats
    )
    own = {internal: external for external, internal in reversed(nats)}
    snat = tuple(
        Rule(
            f"--destination {format_ip(internal)}/32 --source {format_ip(internal)}/32",
            f"--jump SNAT --to-source {format_ip(own[internal])}"
            + (" --random-fully" if state.settings.random_fully else ""),
        )
        for internal in sorted(own)
    )
    post = [Rule(action=jump(names.FIP_SNAT)), Rule(action=jump(names.NAT_OUTGOING))]
    me = state.this_node()
    tunnels = []
    if state.ipip_enabled and me is not None and me.ipip_address:
        tunnels.append(IPIP_DEVICE)
    if state.vxlan_enabled and me is not None and me.vxlan_address:
        tunnels.append(VXLAN_DEVICE)
    # What leaves by a tunnel with another of this node's addresses (a service was translated
    # after the source was chosen) takes the tunnel's: answers must come back through it.
    post += [
        Rule(
            f"--out-interface {tunnel} -m addrtype ! --src-type LOCAL --limit-iface-out "
            "-m addrtype --src-type LOCAL",
            masquerade,
        )
        for tunnel in tunnels
    ]
    to_dnat = (Rule(action=jump(names.FIP_DNAT)),)
    return TableRules(
        (
            Chain(names.PREROUTING, to_dnat),
            Chain(names.POSTROUTING, tuple(post)),
            Chain(names.OUTPUT, to_dnat),
            Chain(names.NAT_OUTGOING, outgoing),
            Chain(names.FIP_DNAT, dnat),
            Chain(names.FIP_SNAT, snat),
        ),
        (
            _hook("PREROUTING", names.PREROUTING),
            _hook("POSTROUTING", names.POSTROUTING),
            _hook("OUTPUT", names.OUTPUT),
        ),
    )


def raw_table() -> TableRules:
    """Workloads send from their own addresses only; nothing else is decided before conntrack."""
    return TableRules(
        (
            Chain(
                names.PREROUTING,
                (
                    Rule(action=clear_mark(ALL_MARKS)),
                    Rule(f"--in-interface {WORKLOADS}", set_mark(SCRATCH_0)),
                    Rule(f"{mark_set(SCRATCH_0)} -m rpfilter --invert --validmark", DROP),
                    Rule(mark_clear(SCRATCH_0), jump(names.FROM_HOST)),
                    _ACCEPTED,
                ),
            ),
            Chain(
                names.OUTPUT,
                (Rule(action=clear_mark(ALL_MARKS)), Rule(action=jump(names.TO_HOST)), _ACCEPTED),
            ),
            Chain(names.FROM_HOST),
            Chain(names.TO_HOST),
        ),
        (_hook("PREROUTING", names.PREROUTING), _hook("OUTPUT", names.OUTPUT)),
    )


def mangle_table() -> TableRules:
    """Where host endpoints' policies before DNAT would be asked; there are none."""
    return TableRules(
        (
            Chain(
                names.PREROUTING,
                (
                    Rule("-m conntrack --ctstate RELATED,ESTABLISHED", ACCEPT),
                    _ACCEPTED,
                    Rule(action=jump(names.FROM_HOST)),
                    Rule(mark_set(ACCEPT_MARK), ACCEPT, _HOST_POLICY),
                ),
            ),
            Chain(
                names.POSTROUTING,
                (
                    Rule(mark_set(ACCEPT_MARK), RETURN),
                    Rule(action=clear_mark(ALL_MARKS)),
                    Rule("-m conntrack --ctstate DNAT", jump(names.TO_HOST)),
                    Rule(mark_set(ACCEPT_MARK), RETURN, _HOST_POLICY),
                ),
            ),
            Chain(names.FROM_HOST),
            Chain(names.TO_HOST),
        ),
        (_hook("PREROUTING", names.PREROUTING), _hook("POSTROUTING", names.POSTROUTING)),
    )


# What the chains are about -------------------------------------------------------------------


def chain_notes(state: State) -> dict[str, str]:
    """For traces, by table and chain: which policy, profile or workload a chain speaks for."""
    notes: dict[str, str] = {}
    for policy in state.policies:
        notes[names.limited(names.POLICY_IN, policy.name)] = f"policy {policy.name}, ingress"
        notes[names.limited(names.POLICY_OUT, policy.name)] = f"policy {policy.name}, egress"
    for profile in state.profiles:
        notes[names.limited(names.PROFILE_IN, profile.name)] = f"profile {profile.name}, ingress"
        notes[names.limited(names.PROFILE_OUT, profile.name)] = f"profile {profile.name}, egress"
    for each in state.local_endpoints():
        both = policies_of(state, each)
        who = f"workload {each.namespace}/{each.workload}"
        for prefix, word, policies in (
            (names.TO_ENDPOINT, "ingress", both[0]),
            (names.FROM_ENDPOINT, "egress", both[1]),
        ):
            note = f"{who}, {word}"
            if policies:
                note += f"; policies {', '.join(policy.name for policy in policies)}"
            notes[names.limited(prefix, each.interface)] = note
    by_table = {f"filter {chain}": note for chain, note in notes.items()}
    by_table[f"raw {names.PREROUTING}"] = "a workload sends from its own address only"
    return by_table
