"""Policies as packets meet them, against a plain reading of the policy language.

Random policies are written as the datastore holds them, read, computed and put into an emulated
kernel; random packets then cross it.  The judge knows neither chains nor sets nor marks: it reads
the resources themselves.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.calico.kubecontrollers.conversion import network_policy
from agents.calico.resources import new_resource
from tests.calico_policy_world import (
    NAMESPACES,
    NODE,
    PODS,
    PORTS,
    Object,
    World,
    address_of,
    labels_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

WORLD: list[World] = []


def world() -> World:
    if not WORLD:
        WORLD.append(World())
    return WORLD[0]


# The judge -----------------------------------------------------------------------------------

# A selector's text and what it means, said twice.
SELECTORS: dict[str, Callable[[dict[str, str]], bool]] = {
    "all()": lambda labels: True,
    "app == 'web'": lambda labels: labels.get("app") == "web",
    "app != 'web'": lambda labels: labels.get("app") != "web",
    "app in { 'api', 'none' }": lambda labels: labels.get("app") in ("api", "none"),
    "has(tier)": lambda labels: "tier" in labels,
    "! has(tier)": lambda labels: "tier" not in labels,
    "tier starts with 'ba' || app == 'web'": lambda labels: (
        labels.get("tier", "").startswith("ba") or labels.get("app") == "web"
    ),
}
SPACES: dict[str, Callable[[dict[str, str]], bool]] = {
    "all()": lambda labels: True,
    "team == 'a'": lambda labels: labels.get("team") == "a",
    "has(gold)": lambda labels: "gold" in labels,
    "projectcalico.org/name == 'bank'": lambda labels: labels is NAMESPACES["bank"],
}


def in_nets(address: str, nets: list[str]) -> bool:
    ip = ipaddress.ip_address(address)
    return any(ip in ipaddress.ip_network(net) for net in nets)


def selected(entity: Object, end: str, namespace: str) -> bool:
    text, spaces = entity.get("selector"), entity.get("namespaceSelector")
    if not text and not spaces:
        return True
    if end == "host":
        return False
    home = PODS[end][0]
    if spaces:
        if not SPACES[spaces](NAMESPACES[home]):
            return False
    elif namespace and home != namespace:
        return False
    return not text or SELECTORS[text](labels_of(end))


def has_port(port: object, end: str, entity: Object, proto: str, number: int, space: str) -> bool:
    if isinstance(port, int):
        return port == number
    low, _, high = str(port).partition(":")
    if low.isdigit():
        return int(low) <= number <= int(high or low)
    if end == "host":
        return False
    return PODS[end][3].get((str(port), proto)) == number


def fits(rule: Object, src: str, dst: str, proto: str, number: int, namespace: str) -> bool:
    if rule.get("protocol") not in (None, proto) or rule.get("notProtocol") == proto:
        return False
    if rule.get("icmp") and rule["icmp"]["type"] != 8:
        return False
    for side, end in (("source", src), ("destination", dst)):
        entity = rule.get(side) or {}
        address = NODE if end == "host" else address_of(end)
        if not selected(entity, end, namespace):
            return False
        negated = entity.get("notSelector")
        if negated and end != "host" and SELECTORS[negated](labels_of(end)):
            return False
        if entity.get("nets") and not in_nets(address, entity["nets"]):
            return False
        if entity.get("notNets") and in_nets(address, entity["notNets"]):
            return False
        if side == "destination":
            ports, closed = entity.get("ports"), entity.get("notPorts")
            if ports and not any(
                has_port(each, end, entity, proto, number, namespace) for each in ports
            ):
                return False
            if closed and any(
                has_port(each, end, entity, proto, number, namespace) for each in closed
            ):
                return False
    return True


def side_allows(
    policies: list[Object], end: str, direction: str, flow: tuple[str, str, str, int]
) -> bool:
    """What one end's policies of one direction say."""
    home = PODS[end][0]
    chosen = []
    for policy in policies:
        spec, namespace = policy["spec"], policy["metadata"].get("namespace", "")
        if direction not in spec["types"] or (namespace and namespace != home):
            continue
        spaces = spec.get("namespaceSelector")
        if spaces and not SPACES[spaces](NAMESPACES[home]):
            continue
        if SELECTORS[spec["selector"]](labels_of(end)):
            order = spec.get("order")
            name = f"{namespace}/{policy['metadata']['name']}".lstrip("/")
            chosen.append((float("inf") if order is None else order, name, policy))
    if not chosen:
        return True
    for _, _, policy in sorted(chosen, key=lambda each: each[:2]):
        namespace = policy["metadata"].get("namespace", "")
        for rule in policy["spec"].get(direction.lower()) or ():
            if fits(rule, *flow, namespace):
                if rule["action"] in ("Allow", "Pass"):
                    return True
                if rule["action"] == "Deny":
                    return False
    return False


def judged(policies: list[Object], src: str, dst: str, proto: str, port: int) -> bool:
    if src == "host" or src == dst:
        return True
    flow = (src, dst, proto, port)
    if not side_allows(policies, src, "Egress", flow):
        return False
    return dst == "host" or side_allows(policies, dst, "Ingress", flow)


# What is tried ---------------------------------------------------------------------------------

NETS = ["192.168.0.2/32", "192.168.0.0/30", "192.168.0.4/31", "172.17.0.0/16", "10.0.0.0/8"]
nets = st.lists(st.sampled_from(NETS), min_size=1, max_size=3, unique=True)
lists_of_nets = st.lists(st.sampled_from(NETS), min_size=2, max_size=3, unique=True)


@st.composite
def entities(draw, proto: str | None, *, destination: bool) -> Object:
    entity: Object = {}
    if draw(st.booleans()):
        entity["selector"] = draw(st.sampled_from(list(SELECTORS)))
    if draw(st.integers(0, 3)) == 0:
        entity["namespaceSelector"] = draw(st.sampled_from(list(SPACES)))
    if draw(st.integers(0, 4)) == 0:
        entity["notSelector"] = draw(st.sampled_from(list(SELECTORS)))
    for field in ("nets", "notNets"):
        if draw(st.integers(0, 1 if field == "nets" else 2)) == 0:
            entity[field] = draw(nets)
    if destination and proto in ("TCP", "UDP"):
        choice = st.one_of(st.sampled_from(PORTS), st.sampled_from(["50:90", "http", "dns"]))
        ports = draw(st.lists(choice, max_size=3, unique=True))
        if ports and draw(st.booleans()):
            entity["ports"] = ports
        elif draw(st.integers(0, 3)) == 0:
            entity["notPorts"] = draw(st.lists(st.sampled_from(PORTS), min_size=1, max_size=2))
    return entity


@st.composite
def rules(draw) -> Object:
    proto = draw(st.sampled_from([None, "TCP", "UDP", "ICMP"]))
    rule: Object = {"action": draw(st.sampled_from(["Allow", "Allow", "Deny", "Pass", "Log"]))}
    if proto:
        rule["protocol"] = proto
    elif draw(st.integers(0, 3)) == 0:
        rule["notProtocol"] = draw(st.sampled_from(["TCP", "UDP"]))
    if proto == "ICMP" and draw(st.booleans()):
        rule["icmp"] = {"type": draw(st.sampled_from([8, 0]))}
    if draw(st.booleans()):
        # Lists at both ends, which one iptables rule cannot hold.
        rule["source"] = {"nets": draw(lists_of_nets)}
        rule["destination"] = {"nets": draw(lists_of_nets)}
        if proto in ("TCP", "UDP"):
            rule["destination"]["ports"] = ["http", *draw(st.sampled_from([(53,), (80, 443)]))]
        return rule
    rule["source"] = draw(entities(proto, destination=False))
    rule["destination"] = draw(entities(proto, destination=True))
    return rule


@st.composite
def policies(draw, number: int) -> Object:
    spec: Object = {
        "selector": draw(st.sampled_from(list(SELECTORS))),
        "types": draw(st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]])),
    }
    order = draw(st.sampled_from([None, 10, 20.5, 20.5]))
    if order is not None:
        spec["order"] = order
    for direction in spec["types"]:
        spec[direction.lower()] = draw(st.lists(rules(), max_size=3))
    name = f"default.p{number}"
    if draw(st.booleans()):
        namespace = draw(st.sampled_from(list(NAMESPACES)))
        return new_resource("NetworkPolicy", name, spec, namespace=namespace)
    if draw(st.integers(0, 2)) == 0:
        spec["namespaceSelector"] = draw(st.sampled_from(list(SPACES)))
    return new_resource("GlobalNetworkPolicy", name, spec)


packets = st.tuples(
    st.sampled_from([*PODS, *PODS, "host"]),
    st.sampled_from([*PODS, *PODS, "host"]),
    st.sampled_from(["TCP", "UDP", "ICMP"]),
    st.sampled_from(PORTS),
)
sets_of_policies = st.integers(0, 4).flatmap(
    lambda count: st.tuples(*(policies(number) for number in range(count)))
)


@settings(max_examples=150, deadline=None)
@given(sets_of_policies, st.lists(packets, min_size=4, max_size=16))
def test_packets_pass_exactly_where_the_policies_say(written, flows) -> None:
    here = world()
    here.install(list(written))
    for flow in flows:
        if flow[0] == flow[1]:
            continue
        assert here.passes(*flow) is judged(list(written), *flow), flow


# Kubernetes' own policies ----------------------------------------------------------------------

pod_selectors = st.sampled_from(
    [
        {},
        {"matchLabels": {"app": "api"}},
        {"matchExpressions": [{"key": "tier", "operator": "Exists"}]},
        {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]},
    ]
)
space_selectors = st.sampled_from([{}, {"matchLabels": {"team": "b"}}])


def label_match(selector: Object, labels: dict[str, str]) -> bool:
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    for each in selector.get("matchExpressions") or ():
        value = labels.get(each["key"])
        if each["operator"] == "Exists" and value is None:
            return False
        if each["operator"] == "NotIn" and value in each["values"]:
            return False
    return True


@st.composite
def peers(draw) -> Object:
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return {"podSelector": draw(pod_selectors)}
    if kind == 1:
        return {"namespaceSelector": draw(space_selectors)}
    if kind == 2:
        return {"namespaceSelector": draw(space_selectors), "podSelector": draw(pod_selectors)}
    block: Object = {"cidr": draw(st.sampled_from(["192.168.0.0/29", "172.17.0.0/16"]))}
    if draw(st.booleans()) and block["cidr"].startswith("192"):
        block["except"] = draw(
            st.lists(st.sampled_from(["192.168.0.2/32", "192.168.0.4/31"]), min_size=1, unique=True)
        )
    return {"ipBlock": block}


@st.composite
def k8s_ports(draw) -> Object:
    protocol = draw(st.sampled_from(["TCP", "UDP"]))
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return {"protocol": protocol}
    if kind == 1:
        return {"protocol": protocol, "port": draw(st.sampled_from(["http", "dns"]))}
    if kind == 2:
        return {"protocol": protocol, "port": 50, "endPort": 90}
    return {"protocol": protocol, "port": draw(st.sampled_from(PORTS))}


@st.composite
def k8s_policies(draw, number: int) -> Object:
    spec: Object = {"podSelector": draw(pod_selectors)}
    for direction, side in (("ingress", "from"), ("egress", "to")):
        if draw(st.booleans()):
            spec[direction] = [
                {
                    **({side: draw(st.lists(peers(), max_size=2))} if draw(st.booleans()) else {}),
                    **(
                        {"ports": draw(st.lists(k8s_ports(), max_size=3))}
                        if draw(st.booleans())
                        else {}
                    ),
                }
                for _ in range(draw(st.integers(0, 2)))
            ]
    if draw(st.booleans()):
        spec["policyTypes"] = draw(st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]))  # fmt: skip # noqa: E501
    namespace = draw(st.sampled_from(list(NAMESPACES)))
    return {"metadata": {"name": f"p{number}", "namespace": namespace}, "spec": spec}


def k8s_peer(peer: Object, end: str, namespace: str) -> bool:
    if "ipBlock" in peer:
        address = NODE if end == "host" else address_of(end)
        block = peer["ipBlock"]
        return in_nets(address, [block["cidr"]]) and not in_nets(address, block.get("except") or [])
    if end == "host":
        return False
    home = PODS[end][0]
    if "namespaceSelector" in peer:
        if not label_match(peer["namespaceSelector"], NAMESPACES[home]):
            return False
    elif home != namespace:
        return False
    return label_match(peer.get("podSelector") or {}, labels_of(end))


def k8s_port(port: Object, end: str, proto: str, number: int) -> bool:
    if port["protocol"] != proto:
        return False
    wanted = port.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return end != "host" and PODS[end][3].get((wanted, proto)) == number
    return wanted <= number <= port.get("endPort", wanted)


def k8s_side(written: list[Object], end: str, kind: str, flow: tuple[str, str, str, int]) -> bool:
    src, dst, proto, number = flow
    peers_of, far = ("from", src) if kind == "Ingress" else ("to", dst)
    chosen = False
    for policy in written:
        spec, namespace = policy["spec"], policy["metadata"]["namespace"]
        types = spec.get("policyTypes") or (
            ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
        )
        if kind not in types or PODS[end][0] != namespace:
            continue
        if not label_match(spec["podSelector"], labels_of(end)):
            continue
        chosen = True
        for rule in spec.get(kind.lower()) or ():
            who, what = rule.get(peers_of), rule.get("ports")
            if who and not any(k8s_peer(each, far, namespace) for each in who):
                continue
            if not what or any(k8s_port(each, dst, proto, number) for each in what):
                return True
    return not chosen


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 3).flatmap(lambda n: st.tuples(*(k8s_policies(number) for number in range(n)))),
    st.lists(packets, min_size=4, max_size=16),
)
def test_kubernetes_policies_are_the_union_of_what_they_allow(written, flows) -> None:
    here = world()
    here.install([network_policy(policy) for policy in written])
    for flow in flows:
        src, dst = flow[:2]
        if src == dst:
            continue
        expected = src == "host" or (
            k8s_side(list(written), src, "Egress", flow)
            and (dst == "host" or k8s_side(list(written), dst, "Ingress", flow))
        )
        assert here.passes(*flow) is expected, flow
