"""What of a resource nobody acts on here, in words for those who write it (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agents.calico.errors import ErroredField, ValidationError
from agents.calico.resources import name_of, namespace_of, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agents.calico.resources import Resource

_POLICIES: Final = ("NetworkPolicy", "GlobalNetworkPolicy")


def unenforced(resource: Resource) -> tuple[str, ...]:
    """One line for each thing the resource asks for in vain."""
    return tuple(_findings(resource))


def _findings(resource: Resource) -> Iterator[str]:
    kind, spec = str(resource.get("kind")), spec_of(resource)
    if kind == "HostEndpoint":
        yield (
            f"HostEndpoint {name_of(resource)}: host endpoints are not enforced, "
            "only workloads' are"
        )
    elif kind == "Tier" and name_of(resource) != "default":
        yield f"Tier {name_of(resource)}: only the tier default is known, no other is asked"
    elif kind in _POLICIES:
        namespace = namespace_of(resource)
        name = f"{namespace}/{name_of(resource)}" if namespace else name_of(resource)
        yield from _of_policy(f"{kind} {name}", spec)
    for direction, number, what in _beyond_packets(resource):
        label = f"{kind} {name_of(resource)}"
        yield f"{label}: {direction} rule {number} is left out: {what}"


def _of_policy(label: str, spec: Mapping[str, Any]) -> Iterator[str]:
    for field in ("preDNAT", "doNotTrack"):
        if spec.get(field):
            yield f"{label}: {field} policies act on host endpoints, which are not enforced"
            return
    if spec.get("applyOnForward"):
        yield (
            f"{label}: applyOnForward acts on host endpoints, which are not enforced; "
            "its rules apply to workloads"
        )
    if not of_default_tier(spec):
        yield f"{label}: only the tier default is known, not {spec['tier']}"


def of_default_tier(spec: Mapping[str, Any]) -> bool:
    """Whether a policy is of the one tier there is."""
    return spec.get("tier", "default") in (None, "", "default")


def is_asked(spec: Mapping[str, Any]) -> bool:
    """Whether a policy decides on workloads' packets."""
    return of_default_tier(spec) and not (spec.get("preDNAT") or spec.get("doNotTrack"))


def refuse_rules(resource: Resource) -> None:
    """ValidationError if a rule cannot be told by packets, for whoever writes it."""
    broken = [
        ErroredField(f"{direction.capitalize()}Rule", what, number)
        for direction, number, what in _beyond_packets(resource)
    ]
    if broken:
        raise ValidationError(*broken)


def _beyond_packets(resource: Resource) -> Iterator[tuple[str, int, str]]:
    if resource.get("kind") not in (*_POLICIES, "Profile"):
        return
    spec = spec_of(resource)
    for direction in ("ingress", "egress"):
        rules = spec.get(direction)
        for number, rule in enumerate(rules if isinstance(rules, list) else (), 1):
            if what := beyond_packets(rule):
                yield direction, number, what


def beyond_packets(rule: object) -> str:
    """Why a rule cannot be told by packets; "" for one that can.

    A rule without its test would match more than it says, so it must not be taken.
    """
    if not isinstance(rule, dict):
        return ""
    if rule.get("http"):
        return "http needs Calico's application layer policy, which is not emulated"
    for side in ("source", "destination"):
        entity = rule.get(side)
        if isinstance(entity, dict) and entity.get("services"):
            return f"{side}.services is not emulated; select the service's pods by their labels"
    return ""
