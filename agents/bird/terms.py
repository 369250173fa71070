"""From a protocol's configuration to the parts of a session: its channels, intake and exporters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agents.bird.attribute_decoder import DecodeContext
from agents.bird.channel import Channel
from agents.bird.config import BgpConfig
from agents.bird.filters import Source
from agents.bird.intake import LoopChecks
from agents.bird.net import Afi
from agents.bird.outgoing import Terms

if TYPE_CHECKING:
    from agents.bird.config import ChannelConfig
    from agents.bird.connection import Connection
    from agents.bird.peer_host import PeerHost


def cluster_id(config: BgpConfig, host: PeerHost) -> int:
    """The cluster of a route reflector: configured, else the router id."""
    return config.rr_cluster_id or host.router_id


def source_address(config: BgpConfig, host: PeerHost) -> int:
    """Our end's emulated address."""
    return config.source_address or host.router_id


def ttl(config: BgpConfig) -> tuple[int, int]:
    """TTL to send with, least TTL to accept or 0 (RFC 5082)."""
    if config.ttl_security:
        return 255, 256 - (config.multihop or 1)
    return config.multihop or (64 if config.internal else 1), 0


def make_channel(config: BgpConfig, host: PeerHost, afi: Afi) -> Channel:
    """One family's place in its table."""
    settings = config.channel(afi)
    assert settings is not None
    channel = Channel(
        config.name,
        Source.BGP,
        host.tables[afi],
        host.resolvers[afi],
        settings.import_filter,
        settings.preference,
    )
    channel.external = not config.internal
    channel.neighbor = config.neighbor
    channel.med_metric = config.med_metric
    channel.path_metric = config.path_metric
    channel.prefer_older = config.prefer_older
    channel.receive_limit = settings.receive_limit
    channel.import_limit = settings.import_limit
    if config.rr_client:
        channel.cluster_id = cluster_id(config, host)
    return channel


def decode_context(config: BgpConfig, host: PeerHost, *, as4: bool) -> DecodeContext:
    """How the peer's attributes are read."""
    return DecodeContext(
        as4=as4,
        internal=config.internal,
        loopback=config.neighbor >> 24 == 127,
        own_address=source_address(config, host).to_bytes(4, "big"),
        enforce_first_as=config.peer_as if config.enforce_first_as else 0,
        default_local_pref=config.default_local_pref,
        preference=config.ipv4.preference if config.ipv4 is not None else 0,
    )


def loop_checks(config: BgpConfig, host: PeerHost) -> LoopChecks:
    """What says that a route came from us."""
    reflects = config.rr_client or config.rr_cluster_id is not None
    cluster = cluster_id(config, host) if reflects else host.router_id
    return LoopChecks(config.local_as, config.allow_local_as, host.router_id, cluster)


def export_terms(
    config: BgpConfig, host: PeerHost, afi: Afi, settings: ChannelConfig, connection: Connection
) -> Terms:
    """How our routes leave.

    Without ``next hop address`` IPv6 routes get the IPv4-mapped source address: the session has no
    other.
    """
    negotiated = connection.terms
    assert negotiated is not None
    own = source_address(config, host).to_bytes(4, "big")
    if afi is Afi.IPV6:
        own = b"\0" * 10 + b"\xff\xff" + own
    return Terms(
        internal=config.internal,
        local_as=config.local_as,
        as4=negotiated.as4,
        limit=connection.send_limit,
        next_hop=settings.next_hop_address or own,
        rr_client=config.rr_client,
        cluster_id=cluster_id(config, host),
        rs_client=config.rs_client,
        long_lived=negotiated.peer_long_lived is not None,
        graceful_shutdown=config.graceful_shutdown,
        default_local_pref=config.default_local_pref,
        single_hop_dev="" if config.multihop else host.link_to(config.neighbor),
        neighbor=b"" if config.multihop else config.neighbor.to_bytes(4, "big"),
    )


def lasting(config: BgpConfig) -> BgpConfig:
    """A configuration without what can change under a session."""
    plain = BgpConfig(name="plain", neighbor=1, peer_as=1, local_as=1)
    timers = replace(
        plain.timers, hold_s=config.timers.hold_s, keepalive_s=config.timers.keepalive_s
    )
    return replace(
        config,
        description="",
        shutdown_message="",
        disabled=False,
        timers=timers,
        ipv4=_lasting_channel(config.ipv4),
        ipv6=_lasting_channel(config.ipv6),
    )


def _lasting_channel(settings: ChannelConfig | None) -> ChannelConfig | None:
    if settings is None:
        return None
    plain = type(settings)()
    return replace(
        settings,
        import_filter=plain.import_filter,
        export_filter=plain.export_filter,
        next_hop=plain.next_hop,
        receive_limit=None,
        import_limit=None,
        export_limit=None,
        keep_filtered=False,
    )
