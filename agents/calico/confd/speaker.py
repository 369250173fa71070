"""A node's configuration as agents/bird takes it (pure)."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agents.bird.config import (
    BGP_PORT,
    CALICO_TIMERS,
    DEFAULT_ECMP_LIMIT,
    AddPaths,
    BfdConfig,
    BgpConfig,
    ChannelConfig,
    DeviceConfig,
    DirectConfig,
    GracefulRestart,
    KernelConfig,
    NextHopRule,
    SpeakerConfig,
    StaticConfig,
    StaticRoute,
)
from agents.calico.confd.policy import export_filter, import_filter, kernel_filter
from agents.calico.confd.route_filters import net
from agents.calico.net import Cidr
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.bird.config import Timers
    from agents.bird.filters import Filter
    from agents.calico.confd.peering import Peer, Secret
    from agents.calico.confd.plan import BgpPlan

SCAN_S: Final = 2.0
LOOPBACK: Final = 127
DESCRIPTION: Final = "Connection to BGP peer"
# Interfaces whose addresses are nobody's routes: pods' and IPVS's.
NOT_DIRECT: Final = ("-cali*", "-kube-ipvs*", "*")


class SpeakerConfigs:
    """Makes configurations one after the other; a session that stays as it was is made once.

    In a cluster of n nodes every node makes n sessions anew each time one of n nodes changes.
    """

    def __init__(self, timers: Timers = CALICO_TIMERS, recovery_wait_s: float = 240.0) -> None:
        self._timers = timers
        self._recovery_wait_s = recovery_wait_s
        self._common: object = None
        self._sessions: dict[Peer, BgpConfig] = {}
        self._filters: dict[tuple[tuple[str, ...], bool], tuple[Filter, Filter]] = {}
        # Why sessions of the last configuration were left out.
        self.problems: tuple[str, ...] = ()

    def make(self, plan: BgpPlan, passwords: Mapping[Secret, str] | None = None) -> SpeakerConfig:
        """``speaker_config`` of a plan; what the speaker would refuse is left out, alone."""
        known = passwords or {}
        # What sessions are made of beside their peer; the peers themselves are keys.
        common = (replace(plan, peers=(), problems=()), known)
        if common != self._common:
            self._common = common
            self._sessions, self._filters = {}, {}
        sessions: dict[Peer, BgpConfig] = {}
        problems = []
        for peer in plan.peers:
            try:
                sessions[peer] = self._sessions.get(peer) or self._session(plan, peer, known)
            except UsageError as error:
                problems.append(f"BGP peer {peer.name} is left out: {error}")
        self._sessions, self.problems = sessions, tuple(problems)
        return _whole(plan, tuple(self._sessions.values()), self._recovery_wait_s)

    def _session(self, plan: BgpPlan, peer: Peer, passwords: Mapping[Secret, str]) -> BgpConfig:
        key = (peer.filters, peer.as_number == plan.as_number)
        filters = self._filters.get(key)
        if filters is None:
            filters = self._filters[key] = (import_filter(plan, peer), export_filter(plan, peer))
        return _session(plan, peer, passwords, self._timers, filters)


def speaker_config(
    plan: BgpPlan, *, passwords: Mapping[Secret, str] | None = None
) -> SpeakerConfig:
    """The whole daemon of a node; a session whose password is not known yet is disabled."""
    return SpeakerConfigs().make(plan, passwords)


def _whole(plan: BgpPlan, sessions: tuple[BgpConfig, ...], recovery_wait_s: float) -> SpeakerConfig:
    static = tuple(StaticRoute(net(cidr)) for cidr in static_blackholes(plan))
    reachable = tuple(
        StaticRoute(net(Cidr(4, peer.ip, 32)), via=peer.reachable_by.to_bytes(4, "big"))
        for peer in plan.peers
        if peer.reachable_by is not None
    )
    return SpeakerConfig(
        router_id=plan.router_id,
        bgp=sessions,
        static=(StaticConfig((*static, *reachable)),),
        kernel=KernelConfig(
            learn=True,
            persist=True,
            scan_s=SCAN_S,
            merge_paths=DEFAULT_ECMP_LIMIT,
            graceful_restart=True,
            export_filter=kernel_filter(plan),
        ),
        direct=DirectConfig(interfaces=direct_interfaces(plan)),
        device=DeviceConfig(scan_s=SCAN_S),
        bfd=None if plan.bfd is None else BfdConfig(),
        listen_port=plan.listen_port,
        recovery_wait_s=recovery_wait_s,
        hostname=plan.node.name,
    )


def static_blackholes(plan: BgpPlan) -> tuple[Cidr, ...]:
    """Own blocks and service ranges; a block of one address would hide its pod."""
    blocks = tuple(block for block in plan.blocks if block.length < 32)
    return tuple(dict.fromkeys((*blocks, *plan.service_routes)))


def direct_interfaces(plan: BgpPlan) -> tuple[str, ...]:
    """Patterns of ``protocol direct``, the first match decides."""
    return (*(f"-{pattern}" for pattern in plan.ignored_interfaces), *NOT_DIRECT)


def cluster_id(text: str) -> int:
    """A route reflector's cluster id, written as an address; UsageError for anything else."""
    try:
        return int(ipaddress.IPv4Address(text))
    except ValueError:
        raise UsageError(f"routeReflectorClusterID: {text!r} is not an IPv4 address") from None


def _neighbor_port(peer: Peer) -> int | None:
    """BGP's own port is wherever the neighbour is said to listen; loopback is dialled as it is."""
    return None if peer.port == BGP_PORT and peer.ip >> 24 != LOOPBACK else peer.port


def _session(
    plan: BgpPlan,
    peer: Peer,
    passwords: Mapping[Secret, str],
    timers: Timers,
    filters: tuple[Filter, Filter],
) -> BgpConfig:
    reflects = plan.is_reflector_for(peer)
    external = peer.as_number != plan.as_number
    rule = {"Self": NextHopRule.SELF, "Keep": NextHopRule.KEEP}.get(peer.next_hop, NextHopRule.AUTO)
    if rule is NextHopRule.KEEP and not external:
        rule = NextHopRule.AUTO
    if peer.keepalive_s is not None:
        timers = replace(timers, keepalive_s=peer.keepalive_s)
    return BgpConfig(
        name=peer.name,
        neighbor=peer.ip,
        peer_as=peer.as_number,
        local_as=plan.as_number if peer.local_as is None else peer.local_as,
        source_address=plan.node.ip if peer.use_source else 0,
        neighbor_port=_neighbor_port(peer),
        description=DESCRIPTION,
        passive=peer.passive,
        multihop=64 if peer.ttl_hops is None else peer.ttl_hops,
        ttl_security=peer.ttl_hops is not None,
        password="" if peer.password is None else passwords.get(peer.password, ""),
        rr_client=reflects,
        rr_cluster_id=cluster_id(plan.node.cluster_id) if reflects else None,
        allow_local_as=peer.allow_local_as,
        timers=timers,
        ipv4=ChannelConfig(
            import_filter=filters[0],
            export_filter=filters[1],
            add_paths=AddPaths.ON,
            next_hop=rule,
        ),
        graceful_restart=GracefulRestart.ON,
        graceful_restart_time_s=120 if peer.restart_s is None else peer.restart_s,
        disabled=peer.password is not None and peer.password not in passwords,
        # As with BIRD, which refuses it for a multihop peer without a source address.
        bfd=plan.bfd if peer.use_source else None,
    )
