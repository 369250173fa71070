"""Defaults and rules of every kind of resource (pure).

``prepare`` is what the Go client does between a person's file and the datastore: defaults, then
all rules at once; every broken field is named.
Source: projectcalico/calico libcalico-go/lib/validator/v3, lib/clientv3.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any, Final

from agents.calico.errors import ErroredField, ValidationError
from agents.calico.net import Cidr
from agents.calico.resources import Resource, endpoint_name, key_of_resource
from agents.calico.validation_bgp import check_bgp_configuration, check_bgp_filter, check_bgp_peer
from agents.calico.validation_fields import Fields, parse_as
from agents.calico.validation_policy import (
    PORT_NAME,
    PROTOCOLS,
    check_policy,
    check_profile,
    default_policy,
)
from agents.calico.validation_pool import check_ip_pool, default_ip_pool
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_LABEL_FORMAT: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL_FORMAT}(\.{_LABEL_FORMAT})*")
_NAMESPACE: Final = re.compile(_LABEL_FORMAT)
_INTERFACE: Final = re.compile(r"[a-zA-Z0-9_.-]{1,15}")
_LABEL_KEY: Final = re.compile(r"([a-zA-Z0-9.-]+/)?[a-zA-Z0-9]([a-zA-Z0-9_.-]*[a-zA-Z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?)?")
_MIN_MTU, _U16 = 68, 0xFFFF
_LOG_PREFIX: Final = re.compile(r"[a-zA-Z0-9%: /_-]*")
_LOG_LEVELS: Final = ("Trace", "Debug", "Info", "Warning", "Error", "Fatal")


def prepare(resource: Resource) -> Resource:
    """Return a copy with defaults filled in; ValidationError names every broken field."""
    key_of_resource(resource)
    result = copy.deepcopy(resource)
    if not isinstance(result.get("spec"), dict):
        result["spec"] = {}
    if result["kind"] in _DEFAULTS:
        _DEFAULTS[result["kind"]](result)
    _check(result)
    _number_as(result)
    return result


def _number_as(resource: Resource) -> None:
    """AS numbers are stored as numbers, however they were written (numorstring.ASNumber)."""
    for holder in (resource["spec"], resource["spec"].get("bgp") or {}):
        for field in ("asNumber", "localASNumber"):
            if isinstance(holder.get(field), str):
                holder[field] = parse_as(holder[field])


def checked(resource: Resource) -> Resource:
    """What a reader may rely on: ``prepare`` of what is stored, copied only where it must be."""
    if resource.get("kind") in _DEFAULTS:
        return prepare(resource)
    key_of_resource(resource)
    if not isinstance(resource.get("spec"), dict):
        raise ValidationError(ErroredField("Spec", "must be an object", resource.get("spec")))
    _check(resource)
    return resource


def _check(resource: Resource) -> None:
    if resource.get("apiVersion", "projectcalico.org/v3") != "projectcalico.org/v3":
        raise ValidationError(
            ErroredField("APIVersion", "must be projectcalico.org/v3", resource["apiVersion"])
        )
    kind = resource["kind"]
    fields = Fields()
    _check_metadata(resource["metadata"], fields)
    if kind in _RULES:
        _RULES[kind](resource, fields)
    fields.finish()


def _check_metadata(metadata: dict[str, Any], fields: Fields) -> None:
    namespace = metadata.get("namespace")
    if namespace and not _NAMESPACE.fullmatch(str(namespace)):
        fields.bad("Metadata.Namespace", "must be a lowercase RFC 1123 label", namespace)
    name = str(metadata["name"])
    if not _NAME.fullmatch(name):
        fields.bad(
            "Metadata.Name",
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, "
            "'-' or '.', and must start and end with an alphanumeric character",
            name,
        )
    for each in ("labels", "annotations"):
        value = metadata.get(each)
        if value is not None and not isinstance(value, dict):
            fields.bad(f"Metadata.{each.capitalize()}", "must be a map of strings", value)
    labels = metadata.get("labels")
    for key, value in (labels if isinstance(labels, dict) else {}).items():
        if not _LABEL_KEY.fullmatch(key):
            fields.bad("Metadata.Labels", f"invalid label key {key!r}", key)
        elif not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            fields.bad("Metadata.Labels", f"invalid value of label {key}", value)


def _check_node(resource: Resource, fields: Fields) -> None:
    spec = resource["spec"]
    bgp = spec.get("bgp")
    fields.mac("VXLANTunnelMACAddr", spec.get("vxlanTunnelMACAddr"))
    if bgp is None:
        return
    if not bgp or not isinstance(bgp, dict):
        fields.bad("BGP", "Spec.BGP should not be empty", "{}")
        return
    fields.cidr("IPv4Address", bgp.get("ipv4Address"), version=4, tag="cidrv4")
    fields.cidr("IPv6Address", bgp.get("ipv6Address"), version=6, tag="cidrv6")
    fields.ip("IPv4IPIPTunnelAddr", bgp.get("ipv4IPIPTunnelAddr"), version=4)
    fields.ip("IPv4VXLANTunnelAddr", spec.get("ipv4VXLANTunnelAddr"), version=4)
    fields.ip("RouteReflectorClusterID", bgp.get("routeReflectorClusterID"), version=4)
    fields.as_number("ASNumber", bgp.get("asNumber"))


def _check_workload_endpoint(resource: Resource, fields: Fields) -> None:
    spec = resource["spec"]
    for field in ("orchestrator", "node", "endpoint"):
        if not spec.get(field):
            fields.bad(f"WorkloadEndpoint.Spec.{field.capitalize()}", "field must be set", "")
        elif not isinstance(spec[field], str):
            fields.bad(f"WorkloadEndpoint.Spec.{field.capitalize()}", "must be a text", spec[field])
    workload = spec.get("pod") or spec.get("workload") or ""
    if spec.get("orchestrator") == "cni":
        workload = spec.get("containerID", "")
    if not fields.broken:
        wanted = endpoint_name(spec["node"], spec["orchestrator"], str(workload), spec["endpoint"])
        if resource["metadata"]["name"] != wanted:
            fields.bad(
                "Name",
                f"the WorkloadEndpoint name does not match the primary identifiers assigned in the "
                f"Spec: expected name {wanted}",
                resource["metadata"]["name"],
            )
    interface = spec.get("interfaceName")
    if interface and not _INTERFACE.fullmatch(str(interface)):
        fields.tag("InterfaceName", "interface", interface)
    for profile in fields.strings("Profiles", spec.get("profiles")):
        if not _NAME.fullmatch(profile):
            fields.tag("Profiles", "name", profile)
    for port in fields.mappings("Ports", spec.get("ports")):
        _check_endpoint_port(port, fields)
    for nat in fields.mappings("IPNATs", spec.get("ipNATs")):
        for field in ("internalIP", "externalIP"):
            fields.ip(field[0].upper() + field[1:], nat.get(field) or "?")
    for network in fields.strings("IPNetworks", spec.get("ipNetworks")):
        try:
            cidr = Cidr.parse(network, strict=True)
        except UsageError:
            fields.bad("IPNetworks", "invalid CIDR", network)
            continue
        if cidr.length not in (32, 128):
            fields.bad("IPNetworks", "must be a single address", network)
    fields.mac("MAC", spec.get("mac"))


def _check_endpoint_port(port: dict[str, Any], fields: Fields) -> None:
    if not PORT_NAME.fullmatch(str(port.get("name") or "x")):
        fields.tag("Name", "portName", port["name"])
    protocol = port.get("protocol")
    if not isinstance(protocol, int):
        fields.choice("Protocol", protocol or "?", PROTOCOLS, tag="protocol")
    fields.integer("Port", port.get("port", 0), 0, 0xFFFF)


def _check_host_endpoint(resource: Resource, fields: Fields) -> None:
    spec = resource["spec"]
    interface = spec.get("interfaceName")
    if not interface and not spec.get("expectedIPs"):
        fields.bad("InterfaceName", "no interface or expected IPs have been specified", "")
    if not spec.get("node"):
        fields.bad("InterfaceName", "no node has been specified", "")
    if interface and interface != "*" and not _INTERFACE.fullmatch(str(interface)):
        fields.tag("InterfaceName", "interface", interface)
    for ip in fields.strings("ExpectedIPs", spec.get("expectedIPs")):
        fields.ip("ExpectedIPs", ip)


def _check_nets(resource: Resource, fields: Fields) -> None:
    for net in fields.strings("Nets", resource["spec"].get("nets")):
        try:
            Cidr.parse(net)
        except UsageError:
            fields.bad("Nets", "failed to validate Field: Nets because of Tag: net ", net)


def _check_ip_reservation(resource: Resource, fields: Fields) -> None:
    for net in fields.strings("ReservedCIDRs", resource["spec"].get("reservedCIDRs")):
        fields.cidr("ReservedCIDRs", net, tag="net")


def _check_ipam_configuration(resource: Resource, fields: Fields) -> None:
    spec = resource["spec"]
    blocks = spec.get("maxBlocksPerHost", 0)
    if not isinstance(blocks, int) or blocks < 0:
        fields.bad("MaxBlocksPerHost", "must be greater than or equal to 0", blocks)
    fields.boolean("StrictAffinity", spec.get("strictAffinity"))


def _check_tier(resource: Resource, fields: Fields) -> None:
    order = resource["spec"].get("order")
    if order is not None and (isinstance(order, bool) or not isinstance(order, (int, float))):
        fields.bad("TierSpec.Order", "must be a number", order)
    if "." in resource["metadata"]["name"]:
        fields.bad(
            "Metadata.Name", "tier names must not contain dots", resource["metadata"]["name"]
        )


def _check_felix_configuration(resource: Resource, fields: Fields) -> None:
    spec = resource["spec"]
    for name in ("logSeverityScreen", "logSeverityFile", "logSeveritySys"):
        fields.choice(f"{name[0].upper()}{name[1:]}", spec.get(name), _LOG_LEVELS, tag="logLevel")
    fields.choice(
        "DefaultEndpointToHostAction",
        spec.get("defaultEndpointToHostAction"),
        ("Drop", "Accept", "Return"),
        tag="omitempty,dropAcceptReturn",
    )
    fields.choice(
        "ChainInsertMode", spec.get("chainInsertMode"), ("insert", "append", "Insert", "Append")
    )
    if not _LOG_PREFIX.fullmatch(str(spec.get("logPrefix") or "")):
        fields.tag("LogPrefix", "iptablesLogPrefix", spec["logPrefix"])
    for name in ("ipipEnabled", "vxlanEnabled", "ipv6Support"):
        fields.boolean(f"{name[0].upper()}{name[1:]}", spec.get(name))
    for name, least, most in (
        # 0: felix decides; else what the kernel takes.
        ("ipipMTU", _MIN_MTU, _U16),
        ("vxlanMTU", _MIN_MTU, _U16),
        ("vxlanPort", 0, _U16),
        ("vxlanVNI", 0, 2**24 - 1),
    ):
        fields.integer(f"{name[0].upper()}{name[1:]}", spec.get(name) or None, least, most)


_DEFAULTS: Final[dict[str, Callable[[Resource], None]]] = {
    "IPPool": default_ip_pool,
    "NetworkPolicy": default_policy,
    "GlobalNetworkPolicy": default_policy,
}
_RULES: Final[dict[str, Callable[[Resource, Fields], None]]] = {
    "IPPool": check_ip_pool,
    "Node": _check_node,
    "BGPPeer": check_bgp_peer,
    "BGPConfiguration": check_bgp_configuration,
    "BGPFilter": check_bgp_filter,
    "FelixConfiguration": _check_felix_configuration,
    "WorkloadEndpoint": _check_workload_endpoint,
    "HostEndpoint": _check_host_endpoint,
    "NetworkPolicy": check_policy,
    "GlobalNetworkPolicy": check_policy,
    "Profile": check_profile,
    "NetworkSet": _check_nets,
    "GlobalNetworkSet": _check_nets,
    "IPReservation": _check_ip_reservation,
    "IPAMConfiguration": _check_ipam_configuration,
    "Tier": _check_tier,
}
