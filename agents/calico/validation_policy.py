"""NetworkPolicy, GlobalNetworkPolicy, Profile: defaults and rules (pure).

Source: projectcalico/calico libcalico-go/lib/clientv3/{networkpolicy,globalnetworkpolicy}.go,
lib/validator/v3.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from agents.calico.net import Cidr
from emulator.errors import UsageError

if TYPE_CHECKING:
    from agents.calico.resources import Resource
    from agents.calico.validation_fields import Fields

ACTIONS: Final = ("Allow", "Deny", "Log", "Pass")
PROTOCOLS: Final = ("TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite")
PORT_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_WITH_PORTS: Final = ("TCP", "UDP", "SCTP", 6, 17, 132)
_WITH_ICMP: Final = ("ICMP", "ICMPv6", 1, 58)
_STORED_AS_THEY_ARE: Final = ("knp.default.", "ossg.default.", "default.")
_SIDES: Final = ("source", "destination")


def storage_name(name: str) -> str:
    """A policy's name in the datastore: its tier's, a dot, its own; Kubernetes' stay."""
    return name if name.startswith(_STORED_AS_THEY_ARE) else f"default.{name}"


def shown_name(name: str) -> str:
    """What ``storage_name`` was given."""
    return name.removeprefix("default.")


def default_policy(resource: Resource) -> None:
    """Types follow from the rules, the tier is default, selectors are canonical "all()"."""
    spec = resource["spec"]
    spec.setdefault("tier", "default")
    if not spec.get("types"):
        egress = bool(spec.get("egress"))
        ingress = bool(spec.get("ingress"))
        spec["types"] = ["Egress"] if egress and not ingress else ["Ingress"]
        if egress and ingress:
            spec["types"] = ["Ingress", "Egress"]


def check_policy(resource: Resource, fields: Fields) -> None:
    """Selectors, types, and every rule."""
    spec = resource["spec"]
    for field in ("selector", "namespaceSelector", "serviceAccountSelector"):
        fields.selector(f"{field[0].upper()}{field[1:]}", spec.get(field))
    if resource["kind"] == "NetworkPolicy" and spec.get("namespaceSelector"):
        fields.bad(
            "NetworkPolicySpec.NamespaceSelector",
            "only a GlobalNetworkPolicy selects namespaces",
            spec["namespaceSelector"],
        )
    order = spec.get("order")
    if order is not None and (isinstance(order, bool) or not isinstance(order, (int, float))):
        fields.bad("Order", "must be a number", order)
    types = fields.strings("Types", spec.get("types"))
    for each in types:
        fields.choice("Types", each, ("Ingress", "Egress"), tag="omitempty,dive,policyType")
    for each in dict.fromkeys(types):
        if types.count(each) > 1:
            fields.bad(
                f"{resource['kind']}Spec.Types", f"'{each}' type specified more than once", types
            )
    if spec.get("preDNAT") or spec.get("doNotTrack"):
        if spec.get("preDNAT") and spec.get("egress"):
            fields.bad("PolicySpec.PreDNAT", "PreDNAT PolicySpec cannot have any EgressRules", True)
        if spec.get("preDNAT") and spec.get("doNotTrack"):
            fields.bad(
                "PolicySpec.PreDNAT",
                "PreDNAT and DoNotTrack cannot both be true, for a given PolicySpec",
                True,
            )
        if not spec.get("applyOnForward"):
            fields.bad(
                "PolicySpec.ApplyOnForward",
                "ApplyOnForward must be true if either PreDNAT or DoNotTrack is true, "
                "for a given PolicySpec",
                False,
            )
    _check_rules(spec, fields)


def check_profile(resource: Resource, fields: Fields) -> None:
    """Rules and the labels a profile gives."""
    spec = resource["spec"]
    labels = spec.get("labelsToApply")
    if labels is not None and not (
        isinstance(labels, dict) and all(isinstance(each, str) for each in labels.values())
    ):
        fields.bad("LabelsToApply", "must be a map of strings", labels)
    _check_rules(spec, fields)


def _check_rules(spec: dict[str, Any], fields: Fields) -> None:
    for direction in ("ingress", "egress"):
        for rule in fields.mappings(direction.capitalize(), spec.get(direction)):
            _check_rule(rule, fields)


def _check_rule(rule: dict[str, Any], fields: Fields) -> None:
    fields.choice("Action", rule.get("action") or "?", ACTIONS, tag="action")
    fields.integer("IPVersion", rule.get("ipVersion"), 4, 6)
    for field in ("protocol", "notProtocol"):
        protocol = rule.get(field)
        if isinstance(protocol, int) and not isinstance(protocol, bool):
            fields.integer("Protocol", protocol, 1, 255)
        else:
            fields.choice("Protocol", protocol, PROTOCOLS, tag="protocol")
    with_ports = ""
    families: list[int] = []
    for side in _SIDES:
        entity = rule.get(side)
        if entity is None:
            continue
        if not isinstance(entity, dict):
            fields.bad(side.capitalize(), "must be an object", entity)
            continue
        if entity.get("ports") or entity.get("notPorts"):
            with_ports = with_ports or f"{side.capitalize()}.Ports"
        _check_entity(side.capitalize(), entity, families, fields)
    if with_ports and rule.get("protocol") not in _WITH_PORTS:
        fields.bad(
            with_ports,
            "rules that specify ports must set protocol to TCP or UDP or SCTP",
            rule.get("protocol") or "",
        )
    if len(set(families)) > 1:
        fields.bad("Source.Nets", "rule contains both IPv4 and IPv6 CIDRs", "")
    for field in ("icmp", "notICMP"):
        icmp = rule.get(field)
        if icmp is None:
            continue
        if not isinstance(icmp, dict):
            fields.bad("ICMP", "must be an object", icmp)
            continue
        if rule.get("protocol") not in _WITH_ICMP:
            fields.bad("ICMP", "rules that specify ICMP fields must set protocol to ICMP", field)
        if icmp.get("code") is not None and icmp.get("type") is None:
            fields.bad("Code", "ICMP code specified without an ICMP type", icmp["code"])
        fields.integer("Type", icmp.get("type"), 0, 254)
        fields.integer("Code", icmp.get("code"), 0, 255)


def _check_entity(side: str, entity: dict[str, Any], families: list[int], fields: Fields) -> None:
    for field in ("selector", "notSelector", "namespaceSelector"):
        fields.selector(f"{field[0].upper()}{field[1:]}", entity.get(field))
    accounts = entity.get("serviceAccounts") or {}
    if not isinstance(accounts, dict):
        fields.bad(f"{side}.ServiceAccounts", "must be an object", accounts)
    else:
        fields.strings("ServiceAccounts.Names", accounts.get("names"))
        fields.selector("ServiceAccounts.Selector", accounts.get("selector"))
    for field in ("nets", "notNets"):
        for net in fields.strings(f"{side}.{field.capitalize()}", entity.get(field)):
            try:
                families.append(Cidr.parse(net).version)
            except UsageError:
                fields.tag("Nets", "omitempty,dive,net", net)
    for field in ("ports", "notPorts"):
        ports = entity.get(field)
        if ports is None:
            continue
        if not isinstance(ports, list):
            fields.bad(f"{side}.{field.capitalize()}", "must be a list", ports)
            continue
        for port in ports:
            if parse_port(port) is None:
                fields.bad("Port", "invalid port", port)
    services = entity.get("services")
    if isinstance(services, dict) and (entity.get("selector") or entity.get("notSelector")):
        fields.bad(
            "Services field",
            "cannot specify Selector/NotSelector and Services on the same rule",
            services.get("name", ""),
        )


def parse_port(port: object) -> tuple[int, int] | str | None:
    """A port of a rule: (first, last), a port's name, or None if it is neither."""
    if isinstance(port, bool):
        return None
    if isinstance(port, int):
        return (port, port) if 0 <= port <= 0xFFFF else None
    if not isinstance(port, str) or not port:
        return None
    first, colon, last = port.partition(":")
    if first.isdigit() and (not colon or last.isdigit()):
        low, high = int(first), int(last) if colon else int(first)
        return (low, high) if low <= high <= 0xFFFF else None
    return port if PORT_NAME.fullmatch(port) else None
