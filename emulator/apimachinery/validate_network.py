"""Validation of NetworkPolicies (pkg/apis/networking/validation/validation.go)."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery import fielderrors as fe
from emulator.apimachinery.names import port_name, port_number
from emulator.apimachinery.objects import items
from emulator.apimachinery.validate_workloads import selector_object

if TYPE_CHECKING:
    from emulator.apimachinery.fielderrors import FieldError
    from emulator.apimachinery.objects import Obj

PROTOCOLS: Final = ("SCTP", "TCP", "UDP")
POLICY_TYPES: Final = ("Egress", "Ingress")
_BAD_CIDR: Final = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"


def network_policy(obj: Obj) -> list[FieldError]:
    """A NetworkPolicy after defaulting."""
    spec = obj.get("spec") or {}
    out = selector_object(spec.get("podSelector") or {}, "spec.podSelector")
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(items(spec, direction)):
            where = f"spec.{direction}[{i}]"
            for j, port in enumerate(items(rule, "ports")):
                out += _port(port, f"{where}.ports[{j}]")
            for j, peer in enumerate(items(rule, peers)):
                out += _peer(peer, f"{where}.{peers}[{j}]")
    types = items(spec, "policyTypes")
    if len(types) > 2:
        out.append(
            fe.invalid("spec.policyTypes", types, "may not specify more than two policyTypes")
        )
        return out
    out += [
        fe.not_supported("spec.policyTypes", each, POLICY_TYPES)
        for each in types
        if each not in POLICY_TYPES
    ]
    return out


def _port(port: Obj, where: str) -> list[FieldError]:
    out: list[FieldError] = []
    if port.get("protocol") is not None and port["protocol"] not in PROTOCOLS:
        out.append(fe.not_supported(f"{where}.protocol", port["protocol"], PROTOCOLS))
    number, end = port.get("port"), port.get("endPort")
    if isinstance(number, str):
        if end is not None:
            reason = "may not be specified when `port` is non-numeric"
            out.append(fe.invalid(f"{where}.endPort", end, reason))
        out += [fe.invalid(f"{where}.port", number, text) for text in port_name(number)]
    elif number is not None:
        out += [fe.invalid(f"{where}.port", number, text) for text in port_number(number)]
        if end is not None:
            if end < number:
                reason = "must be greater than or equal to `port`"
                out.append(fe.invalid(f"{where}.endPort", number, reason))
            out += [fe.invalid(f"{where}.endPort", end, text) for text in port_number(end)]
    elif end is not None:
        reason = "may not be specified when `port` is not specified"
        out.append(fe.invalid(f"{where}.endPort", end, reason))
    return out


def _peer(peer: Obj, where: str) -> list[FieldError]:
    out: list[FieldError] = []
    given = [
        name
        for name in ("podSelector", "namespaceSelector", "ipBlock")
        if peer.get(name) is not None
    ]
    for name in given:
        if name == "ipBlock":
            out += _block(peer["ipBlock"], f"{where}.ipBlock")
        else:
            out += selector_object(peer[name], f"{where}.{name}")
    if not given:
        out.append(fe.required(where, "must specify a peer"))
    elif len(given) > 1 and "ipBlock" in given:
        out.append(fe.forbidden(where, "may not specify both ipBlock and another peer"))
    return out


def _network(text: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    # Python alone takes a netmask for a length, and a zone.
    if not isinstance(text, str) or "%" in text or not text.partition("/")[2].isdigit():
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _block(block: Obj, where: str) -> list[FieldError]:
    cidr = block.get("cidr") or ""
    if not cidr:
        return [fe.required(f"{where}.cidr")]
    network = _network(cidr)
    if network is None:
        return [fe.invalid(f"{where}.cidr", cidr, _BAD_CIDR)]
    out: list[FieldError] = []
    for i, text in enumerate(items(block, "except")):
        path = f"{where}.except[{i}]"
        inner = _network(text)
        if inner is None:
            out.append(fe.invalid(path, text, _BAD_CIDR))
        elif (
            inner.version != network.version
            or inner.network_address not in network
            or inner.prefixlen <= network.prefixlen
        ):
            out.append(fe.invalid(path, text, "must be a strict subset of `cidr`"))
    return out
