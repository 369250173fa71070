"""Whom a node peers with: the mesh, BGPPeers, and the way back to route reflectors (pure).

Source: projectcalico/calico confd/pkg/backends/calico/client.go updatePeersV1 and the bird.cfg
template.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from agents.calico.net import Ip
from agents.calico.selector import parse_selector
from agents.calico.validation_bgp import split_peer
from agents.calico.validation_fields import parse_as
from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.calico.confd.state import BgpNode, State

# Peers of a mesh that are remembered; larger meshes than this use route reflectors.
MAX_MESH: Final = 1024
MESH: Final = "Mesh"
GLOBAL: Final = "Global"
NODE: Final = "Node"
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a password is kept: a Secret's name and the key in it."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Peer:
    """One session of a node.

    ``kind`` is MESH, GLOBAL (of every node) or NODE (of this one); ``port`` None is the default.
    ``ttl_hops`` None leaves TTL security off.
    """

    kind: str
    ip: int
    as_number: int
    port: int | None = None
    is_calico_node: bool = False
    passive: bool = False
    use_source: bool = True
    cluster_id: str = ""
    filters: tuple[str, ...] = ()
    password: Secret | None = None
    restart_s: int | None = None
    keepalive_s: int | None = None
    next_hop: str = "Auto"
    local_as: int | None = None
    allow_local_as: int = 0
    ttl_hops: int | None = None
    reachable_by: int | None = None
    automatic: bool = False

    @property
    def name(self) -> str:
        """The protocol's name, by which people and calicoctl know it."""
        base = f"{self.kind}_{format_ip(self.ip).replace('.', '_')}"
        # A node has one session in the mesh, whatever port it listens at.
        return base if self.port is None or self.kind == MESH else f"{base}_port_{self.port}"


def peers_of(state: State, own: BgpNode) -> tuple[tuple[Peer, ...], tuple[str, ...]]:
    """The sessions of a node, mesh first, and why some BGPPeers make none."""
    problems: list[str] = []
    explicit: dict[tuple[int, int | None], Peer] = {}
    # Peers of every node come first: they win over a node's own with the same address.
    ordered = sorted(state.peers, key=lambda item: (_is_specific(item[1]), item[0]))
    for name, spec in ordered:
        try:
            found = _of_peer(state, own, spec)
        except (UsageError, ValueError) as error:
            problems.append(f"BGPPeer {name}: {error}")
            continue
        for peer in found:
            explicit.setdefault((peer.ip, peer.port), peer)
    mesh = () if not state.mesh_enabled or own.cluster_id else _mesh(state, own)
    return (*mesh, *sorted(explicit.values(), key=lambda peer: peer.name)), tuple(problems)


def _mesh(state: State, own: BgpNode) -> tuple[Peer, ...]:
    password = secret_of(state.config.get("nodeMeshPassword"))
    restart = seconds(state.config.get("nodeMeshMaxRestartTime"))
    default_as = state.as_number
    return tuple(
        _mesh_peer(
            own.ip,
            node.ip,
            default_as if node.as_number is None else node.as_number,
            state.port_of(node),
            password,
            restart,
        )
        for node in state.nodes
        if node.name != own.name and not node.cluster_id and node.ip != own.ip
    )


# A mesh is planned anew with every node that comes, and what it was is most of it.
@functools.lru_cache(maxsize=MAX_MESH)
def _mesh_peer(
    own: int,
    ip: int,
    as_number: int,
    port: int | None,
    password: Secret | None,
    restart: int | None,
) -> Peer:
    return Peer(
        MESH,
        ip,
        as_number,
        port=port,
        is_calico_node=True,
        passive=_is_passive(own, ip),
        password=password,
        restart_s=restart,
    )


def _is_passive(own: int, peer: int) -> bool:
    """Of two nodes the one whose address is the larger text connects; the other listens."""
    return format_ip(peer) > format_ip(own)


def _is_specific(spec: Mapping[str, Any]) -> bool:
    return bool(spec.get("node") or spec.get("nodeSelector"))


def _selects(spec: Mapping[str, Any], node: BgpNode) -> bool:
    """Whether a BGPPeer is a node's."""
    if spec.get("node"):
        return bool(spec["node"] == node.name)
    if spec.get("nodeSelector"):
        return parse_selector(spec["nodeSelector"]).matches(node.labels)
    return True


def _of_peer(state: State, own: BgpNode, spec: Mapping[str, Any]) -> list[Peer]:
    """The sessions one BGPPeer means for this node, in both directions."""
    kind = NODE if _is_specific(spec) else GLOBAL
    selector = spec.get("peerSelector")
    chosen = [] if not selector else _matching(state, selector)
    peers: list[Peer] = []
    if _selects(spec, own):
        if selector:
            peers += [_to_node(state, own, node, spec, kind) for node in chosen]
        else:
            peers += _to_address(state, own, spec, kind)
    peers += _way_back(state, own, spec, chosen)
    return [peer for peer in peers if peer.ip != own.ip]


def _matching(state: State, selector: str) -> list[BgpNode]:
    parsed = parse_selector(selector)
    return [node for node in state.nodes if parsed.matches(node.labels)]


def _way_back(
    state: State, own: BgpNode, spec: Mapping[str, Any], chosen: list[BgpNode]
) -> list[Peer]:
    """Sessions to nodes whose BGPPeer names this node: both ends must be configured."""
    if spec.get("reversePeering") == "Manual":
        return []
    if spec.get("peerSelector"):
        if all(node.name != own.name for node in chosen):
            return []
    else:
        ip, _ = split_peer(str(spec.get("peerIP") or ""))
        if ip != Ip(4, own.ip):
            return []
    return [
        replace(_to_node(state, own, node, spec, NODE), automatic=True)
        for node in state.nodes
        if node.name != own.name and _selects(spec, node)
    ]


def _to_node(state: State, own: BgpNode, node: BgpNode, spec: Mapping[str, Any], kind: str) -> Peer:
    peer = Peer(
        kind,
        node.ip,
        state.as_of(node),
        port=state.port_of(node),
        is_calico_node=True,
        passive=kind == GLOBAL and _is_passive(own.ip, node.ip),
        cluster_id=node.cluster_id,
    )
    return _with_options(peer, spec)


def _to_address(state: State, own: BgpNode, spec: Mapping[str, Any], kind: str) -> list[Peer]:
    ip, port = split_peer(str(spec.get("peerIP") or ""))
    if ip.version != 4:
        raise UsageError(f"peerIP: {ip} is left out: nodes speak BGP with IPv4 addresses")
    node = next((node for node in state.nodes if node.ip == ip.value), None)
    as_number = parse_as(spec.get("asNumber"))
    if as_number is None and node is not None:
        as_number = state.as_of(node)
    if not as_number:
        raise UsageError(f"asNumber: the AS of {ip} is not known; give it")
    peer = Peer(
        kind,
        ip.value,
        as_number,
        port=port or (None if node is None else state.port_of(node)),
        is_calico_node=node is not None,
        passive=kind == GLOBAL and node is not None and _is_passive(own.ip, ip.value),
        cluster_id="" if node is None else node.cluster_id,
    )
    return [_with_options(peer, spec)]


def _with_options(peer: Peer, spec: Mapping[str, Any]) -> Peer:
    next_hop = spec.get("nextHopMode") or ("Keep" if spec.get("keepOriginalNextHop") else "Auto")
    reachable = spec.get("reachableBy")
    return replace(
        peer,
        use_source=spec.get("sourceAddress") != "None",
        filters=tuple(spec.get("filters") or ()),
        password=secret_of(spec.get("password")),
        restart_s=seconds(spec.get("maxRestartTime")),
        keepalive_s=seconds(spec.get("keepaliveTime")),
        next_hop=str(next_hop),
        local_as=parse_as(spec.get("localASNumber")) or None,
        allow_local_as=int(spec.get("numAllowedLocalASNumbers") or 0),
        ttl_hops=int(spec["ttlSecurity"]) if spec.get("ttlSecurity") else None,
        reachable_by=parse_ip(reachable) if reachable else None,
    )


def secret_of(value: Any) -> Secret | None:
    """A ``{"secretKeyRef": {"name", "key"}}``."""
    reference = value.get("secretKeyRef") if isinstance(value, dict) else None
    if not isinstance(reference, dict):
        return None
    return Secret(str(reference.get("name", "")), str(reference.get("key", "")))


def seconds(value: Any) -> int | None:
    """A Go duration in whole seconds, None for none; UsageError for what is not one."""
    if not value:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)", str(value))
    if not parts or "".join(number + unit for number, unit in parts) != str(value):
        raise UsageError(f"{value!r} is not a duration such as 120s")
    return int(sum(float(number) * _UNITS[unit] for number, unit in parts))
