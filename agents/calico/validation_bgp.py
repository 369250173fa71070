"""BGPPeer, BGPConfiguration, BGPFilter: rules (pure).

Source: projectcalico/calico libcalico-go/lib/validator/v3, api/pkg/apis/projectcalico/v3.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from agents.calico.net import Ip
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
