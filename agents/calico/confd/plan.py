"""One node's whole BGP configuration, before it is written in any language (pure)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agents.calico.confd.peering import Peer, peers_of
from agents.calico.confd.services import announced
from agents.calico.confd.state import DEFAULT_PORT
from agents.calico.net import Cidr
from emulator.addr import parse_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agents.bird.config import BfdOptions
    from agents.calico.confd.services import Service
    from agents.calico.confd.state import BgpNode, BgpPool, State

# ROUTER_ID of calico-node: the node's address, or this word.
ROUTER_ID_HASH: Final = "hash"


@dataclass(frozen=True, slots=True)
class Communities:
    """What routes inside ``cidr`` are marked with: pairs, or triples of large communities."""

    cidr: Cidr
    values: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class BgpPlan:
    """What ``speaker_config`` and ``render`` both tell: two languages, one content."""

    node: BgpNode
    router_id: int
    as_number: int
    listen_port: int
    bind_to_node: bool
    ignored_interfaces: tuple[str, ...]
    mesh_enabled: bool
    peers: tuple[Peer, ...]
    filters: Mapping[str, Mapping[str, Any]]
    blocks: tuple[Cidr, ...]
    service_routes: tuple[Cidr, ...]
    service_ranges: tuple[Cidr, ...]
    pools: tuple[BgpPool, ...]
    communities: tuple[Communities, ...]
    log_level: str
    problems: tuple[str, ...]
    # With every peer we have a source address for; None for none.
    bfd: BfdOptions | None = None

    def is_reflector_for(self, peer: Peer) -> bool:
        """True if the peer is this node's route reflector client."""
        return (
            bool(self.node.cluster_id)
            and peer.as_number == self.as_number
            and peer.cluster_id != self.node.cluster_id
        )


def make_plan(
    state: State,
    node_name: str,
    services: Sequence[Service] = (),
    *,
    router_id: str = "",
    bfd: BfdOptions | None = None,
) -> BgpPlan | None:
    """Decide a node's configuration; None for a node without an IPv4 address.

    ``router_id`` is calico-node's CALICO_ROUTER_ID: an address, "hash", or "" for the node's own.
    Raises UsageError for any other text.
    """
    own = state.node(node_name)
    if own is None:
        return None
    # A node's own resource wins, field by field.
    config = {**state.config, **state.node_configs.get(node_name, {})}
    peers, problems = peers_of(state, own)
    missing = [
        f"BGPFilter {name} of peer {peer.name} does not exist: it filters nothing"
        for peer in peers
        for name in peer.filters
        if name not in state.filters
    ]
    services_out = announced(config, services, node_name, own.labels)
    used = dict.fromkeys(name for peer in peers for name in peer.filters if name in state.filters)
    return BgpPlan(
        node=own,
        router_id=_router_id(own, router_id),
        as_number=state.as_of(own),
        listen_port=state.port_of(own) or DEFAULT_PORT,
        bind_to_node=config.get("bindMode") == "NodeIP",
        ignored_interfaces=tuple(config.get("ignoredInterfaces") or ()),
        mesh_enabled=state.mesh_enabled,
        peers=peers,
        filters={name: state.filters[name] for name in sorted(used)},
        blocks=state.blocks.get(node_name, ()),
        service_routes=services_out.routes,
        service_ranges=services_out.ranges,
        pools=state.pools,
        communities=_communities(config),
        log_level=str(config.get("logSeverityScreen") or "Info"),
        problems=(*state.problems, *problems, *missing),
        bfd=bfd,
    )


def _router_id(own: BgpNode, wanted: str) -> int:
    if not wanted:
        return own.ip
    if wanted != ROUTER_ID_HASH:
        try:
            return parse_ip(wanted)
        except UsageError as error:
            raise UsageError(f"router id: {error} (or 'hash')") from None
    # An address made of the name, outside the classes that are no host's.
    octets = bytearray(hashlib.sha256(own.name.encode()).digest()[:4])
    if octets[0] > 223:
        octets[0] -= 32
    return int.from_bytes(octets, "big")


def _communities(config: Mapping[str, Any]) -> tuple[Communities, ...]:
    """prefixAdvertisements; a community is a name of ``communities`` or a value itself."""
    named = {each.get("name"): each.get("value") for each in config.get("communities") or ()}
    found = []
    for advertisement in config.get("prefixAdvertisements") or ():
        try:
            cidr = Cidr.parse(str(advertisement.get("cidr")))
        except UsageError:
            continue
        values = []
        for value in advertisement.get("communities") or ():
            parts = str(named.get(value, value)).split(":")
            if len(parts) in (2, 3) and all(part.isdigit() for part in parts):
                values.append(tuple(int(part) for part in parts))
        if values and cidr.version == 4:
            found.append(Communities(cidr, tuple(values)))
    return tuple(found)
