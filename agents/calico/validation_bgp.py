"""BGPPeer, BGPConfiguration, BGPFilter: rules (pure).

Source: projectcalico/calico libcalico-go/lib/validator/v3, api/pkg/apis/projectcalico/v3.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from agents.calico.net import Ip
from agents.calico.validation_fields import parse_as
from emulator.errors import UsageError

if TYPE_CHECKING:
    from agents.calico.resources import Resource
    from agents.calico.validation_fields import Fields

_IP_PORT_V4: Final = re.compile(r"(\d+\.\d+\.\d+\.\d+):(\d+)")
_IP_PORT_V6: Final = re.compile(r"\[([0-9a-fA-F:.]+)\]:(\d+)")
_COMMUNITY: Final = re.compile(r"(\d+):(\d+)(?::(\d+))?")
_DURATION: Final = re.compile(r"(\d+(\.\d+)?(h|ms|us|µs|ns|m|s))+")
_INTERFACE: Final = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")
_LOG_LEVELS: Final = ("Trace", "Debug", "Info", "Warning", "Error", "Fatal")
_OPERATORS: Final = ("Equal", "In", "NotEqual", "NotIn")
_OPERATIONS: Final = ("addCommunity", "prependASPath", "setPriority")
# bgpfilter.go's MaxItems and Maximum.
_MAX_OPERATIONS: Final = 10
_MAX_PRIORITY: Final = 2**31 - 2
_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF


def split_peer(text: str) -> tuple[Ip, int]:
    """A BGPPeer's ``peerIP``: address and port (0: the default); raises UsageError."""
    for form in (_IP_PORT_V4, _IP_PORT_V6):
        match = form.fullmatch(text)
        if match:
            port = int(match.group(2))
            if not 0 < port <= _U16:
                raise UsageError(f"invalid port in peerIP {text}")
            return Ip.parse(match.group(1)), port
    return Ip.parse(text), 0


def check_bgp_peer(resource: Resource, fields: Fields) -> None:
    """Node or nodeSelector, peerIP or peerSelector."""
    spec = resource["spec"]
    peer_ip = spec.get("peerIP") or ""
    if spec.get("node") and spec.get("nodeSelector"):
        fields.bad("Node", "Node field must be empty when NodeSelector is specified", spec["node"])
    if peer_ip and spec.get("peerSelector"):
        fields.bad("PeerIP", "PeerIP field must be empty when PeerSelector is specified", peer_ip)
    if spec.get("asNumber") and spec.get("peerSelector"):
        fields.bad(
            "ASNumber",
            "ASNumber field must be empty when PeerSelector is specified",
            spec["asNumber"],
        )
    if not peer_ip and not spec.get("peerSelector"):
        fields.bad("PeerIP", "PeerIP or PeerSelector must be specified", "")
    if peer_ip:
        try:
            split_peer(str(peer_ip))
        except UsageError:
            fields.tag("PeerIP", "omitempty,IP:port", peer_ip)
    fields.selector("NodeSelector", spec.get("nodeSelector"))
    fields.selector("PeerSelector", spec.get("peerSelector"))
    fields.as_number("ASNumber", spec.get("asNumber"))
    fields.as_number("LocalASNumber", spec.get("localASNumber"))
    fields.choice(
        "SourceAddress",
        spec.get("sourceAddress"),
        ("UseNodeIP", "None"),
        tag="omitempty,sourceAddress",
    )
    fields.choice("NextHopMode", spec.get("nextHopMode"), ("Auto", "Self", "Keep"))
    fields.boolean("KeepOriginalNextHop", spec.get("keepOriginalNextHop"))
    fields.integer("NumAllowedLocalASNumbers", spec.get("numAllowedLocalASNumbers"), 0, _U32)
    fields.integer("TTLSecurity", spec.get("ttlSecurity"), 0, 255)
    _duration("MaxRestartTime", spec.get("maxRestartTime"), fields)
    _duration("KeepaliveTime", spec.get("keepaliveTime"), fields)
    fields.ip("ReachableBy", spec.get("reachableBy"))
    fields.strings("Filters", spec.get("filters"))


def check_bgp_configuration(resource: Resource, fields: Fields) -> None:
    """Global defaults only in "default", a node's own in "node.<name>"."""
    spec = resource["spec"]
    name = resource["metadata"]["name"]
    if name != "default":
        for field in ("nodeToNodeMeshEnabled", "asNumber"):
            if spec.get(field) is not None:
                fields.bad(
                    f"BGPConfiguration.Spec.{field[0].upper()}{field[1:]}",
                    "Cannot set " + field + " on a non default BGP Configuration.",
                    spec[field],
                )
    fields.choice(
        "LogSeverityScreen", spec.get("logSeverityScreen"), _LOG_LEVELS, tag="omitempty,logLevel"
    )
    fields.boolean("NodeToNodeMeshEnabled", spec.get("nodeToNodeMeshEnabled"))
    fields.as_number("ASNumber", spec.get("asNumber"))
    fields.integer("ListenPort", spec.get("listenPort"), 1, _U16)
    for field in ("serviceClusterIPs", "serviceExternalIPs", "serviceLoadBalancerIPs"):
        for each in fields.mappings(field, spec.get(field)):
            fields.cidr(f"{field[0].upper()}{field[1:]}", each.get("cidr"))
    known: list[str] = []
    for community in fields.mappings("Communities", spec.get("communities")):
        known.append(str(community.get("name", "")))
        if not isinstance(community.get("name", ""), str):
            fields.bad("Communities[].Name", "must be a text", community["name"])
        _community("Communities[].Value", community.get("value"), fields)
    for advertisement in fields.mappings("PrefixAdvertisements", spec.get("prefixAdvertisements")):
        fields.cidr("PrefixAdvertisements[].CIDR", advertisement.get("cidr"))
        for value in fields.strings("Communities", advertisement.get("communities")):
            if value not in known:
                _community("PrefixAdvertisements[].Communities", value, fields)
    _duration("NodeMeshMaxRestartTime", spec.get("nodeMeshMaxRestartTime"), fields)
    if spec.get("nodeMeshPassword") and spec.get("nodeToNodeMeshEnabled") is False:
        fields.bad(
            "Spec.NodeMeshPassword",
            "spec.NodeMeshPassword cannot be set if spec.NodeToNodeMesh is disabled",
            "",
        )
    fields.choice("BindMode", spec.get("bindMode"), ("None", "NodeIP"))
    for pattern in fields.strings("IgnoredInterfaces", spec.get("ignoredInterfaces")):
        if not _INTERFACE.fullmatch(pattern):
            fields.tag("IgnoredInterfaces", "ignoredInterface", pattern)


def check_bgp_filter(resource: Resource, fields: Fields) -> None:
    """Rules of both families and directions."""
    spec = resource["spec"]
    for field, version in (("exportV4", 4), ("importV4", 4), ("exportV6", 6), ("importV6", 6)):
        for rule in fields.mappings(field, spec.get(field)):
            _check_filter_rule(rule, version, fields)


def _check_filter_rule(rule: dict[str, Any], version: int, fields: Fields) -> None:
    cidr, operator = rule.get("cidr"), rule.get("matchOperator")
    fields.choice("Action", rule.get("action") or "?", ("Accept", "Reject"), tag="filterAction")
    fields.choice("MatchOperator", operator, _OPERATORS, tag="omitempty,matchOperator")
    if bool(cidr) != bool(operator):
        fields.bad(
            "CIDR" if cidr else "MatchOperator",
            "CIDR and MatchOperator must both be set or both be empty",
            cidr or operator,
        )
    if rule.get("prefixLength") is not None and not cidr:
        fields.bad("PrefixLength", "PrefixLength must be empty when CIDR is empty", "")
    length = rule.get("prefixLength") or {}
    if not isinstance(length, dict):
        fields.bad("PrefixLength", "must be an object", length)
        return
    for end in ("min", "max"):
        fields.integer(f"PrefixLength.{end}", length.get(end), 0, 32 if version == 4 else 128)
    fields.cidr("CIDR", cidr, version=version, tag=f"omitempty,netv{version}")
    fields.choice("Source", rule.get("source"), ("RemotePeers",))
    interface = rule.get("interface")
    if interface and not _INTERFACE.fullmatch(str(interface)):
        fields.tag("Interface", "omitempty,bgpFilterInterface", interface)
    fields.choice("PeerType", rule.get("peerType"), ("eBGP", "iBGP"))
    if rule.get("communities") is not None:
        _one_community("Communities.Values", rule["communities"], "values", fields)
    _as_numbers("ASPathPrefix", rule.get("asPathPrefix"), fields)
    fields.integer("Priority", rule.get("priority"), 1, _MAX_PRIORITY)
    operations = fields.mappings("Operations", rule.get("operations"))
    if operations and rule.get("action") != "Accept":
        fields.bad("Operations", "operations may only be used with action Accept", operations)
    if len(operations) > _MAX_OPERATIONS:
        fields.bad("Operations", f"must have at most {_MAX_OPERATIONS} items", len(operations))
    for operation in operations:
        _check_operation(operation, fields)


def _check_operation(operation: dict[str, Any], fields: Fields) -> None:
    said = [name for name in _OPERATIONS if operation.get(name) is not None]
    if len(said) != 1:
        fields.bad("Operations[]", "exactly one operation must be set", operation)
        return
    (name,) = said
    field, value = f"Operations[].{name[0].upper()}{name[1:]}", operation[name]
    if not isinstance(value, dict):
        fields.bad(field, "must be an object", value)
    elif name == "addCommunity":
        _community(f"{field}.Value", value.get("value"), fields)
    elif name == "setPriority":
        priority = value.get("value")
        fields.integer(f"{field}.Value", 0 if priority is None else priority, 1, _MAX_PRIORITY)
    elif not value.get("prefix") or not isinstance(value["prefix"], list):
        fields.bad(f"{field}.Prefix", "must have at least 1 item", value)
    else:
        _as_numbers(f"{field}.Prefix", value["prefix"], fields)
        if len(value["prefix"]) > _MAX_OPERATIONS:
            fields.bad(f"{field}.Prefix", f"must have at most {_MAX_OPERATIONS} items", value)


def _one_community(name: str, value: object, key: str, fields: Fields) -> None:
    """A match by communities takes one of them."""
    values = value.get(key) if isinstance(value, dict) else None
    if not isinstance(values, list) or len(values) != 1:
        fields.bad(name, "must have exactly 1 item", value)
        return
    _community(name, values[0], fields)


def _as_numbers(name: str, value: object, fields: Fields) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        fields.bad(name, "must be a list of AS numbers", value)
        return
    for number in value:
        if parse_as(number) is None:
            fields.bad(name, f"'{number}' is not a valid AS number", number)


def _community(name: str, value: object, fields: Fields) -> None:
    match = _COMMUNITY.fullmatch(str(value))
    if match is None:
        fields.bad(name, "invalid community value or format used.", value)
        return
    most = _U32 if match.group(3) is not None else _U16
    if any(int(part) > most for part in match.groups() if part is not None):
        fields.bad(name, f"invalid community value, expected {most.bit_length()} bit value", value)


def _duration(name: str, value: object, fields: Fields) -> None:
    if value is not None and not _DURATION.fullmatch(str(value)):
        fields.bad(name, "must be a duration like 120s", value)
