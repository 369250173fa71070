"""What can be seen of a speaker: frozen records, for bird.ctl, calicoctl, status and tests.

Times are monotonic seconds of the speaker's clock.  Nothing here changes anything; routes of a big
table are made one by one, so ask for as few as you need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agents.bird.fsm import State
from agents.bird.net import Afi, Net
from agents.bird.peer_host import Life

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agents.bird.attributes import Attrs
    from agents.bird.capabilities import Capabilities
    from agents.bird.channel import Channel, Stats
    from agents.bird.config import Dest
    from agents.bird.filters import Source
    from agents.bird.peer import Peer
    from agents.bird.rib import NextHop, Path
    from agents.bird.speaker import Speaker


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A protocol in one table; ``exported`` is None for protocols that export nothing."""

    afi: Afi
    state: str
    preference: int
    import_filter: str
    export_filter: str
    imported: int
    filtered: int
    exported: int | None
    preferred: int
    stats: Stats
    next_hop: bytes = b""
    restart_active: bool = False
    restart_left_s: float | None = None


@dataclass(frozen=True, slots=True)
class BgpInfo:
    """A BGP protocol's session, or what it waits for; None where there is nothing.

    Timers are (seconds left, configured or negotiated value).
    """

    state: str
    neighbor: int
    neighbor_port: int | None
    neighbor_as: int
    local_as: int
    local_id: int
    neighbor_id: int | None
    internal: bool
    multihop: bool
    rr_client: bool
    rs_client: bool
    passive: bool
    source_address: int
    local_capabilities: Capabilities | None
    neighbor_capabilities: Capabilities | None
    as4: bool
    extended_messages: bool
    add_path_rx: tuple[Afi, ...]
    add_path_tx: tuple[Afi, ...]
    hold_timer: tuple[float, float] | None
    keepalive_timer: tuple[float, float] | None
    connect_delay: tuple[float, float] | None
    error_wait: tuple[float, float] | None
    restart_timer: float | None
    last_error: tuple[str, str]
    established_at: float | None
    outgoing: bool | None


@dataclass(frozen=True, slots=True)
class ProtocolInfo:
    """One protocol instance.

    ``proto`` is BIRD's name of the kind (BGP Static Kernel Direct Device BFD), ``state`` down,
    start, up, wait (a feed held back by our restart) or flush; ``info`` the last column of ``show
    protocols``.
    """

    name: str
    proto: str
    state: str
    since: float
    info: str = ""
    description: str = ""
    enabled: bool = True
    channels: tuple[ChannelInfo, ...] = ()
    bgp: BgpInfo | None = None


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """One route of a network.

    ``from_`` is the neighbour it came from (0 if not BGP), ``metric`` the IGP metric (None
    unknown), ``selected`` whether it is the network's best.
    """

    net: Net
    protocol: str
    source: Source
    learned_at: float
    selected: bool
    dest: Dest
    ways: tuple[NextHop, ...]
    attrs: Attrs
    from_: int
    external: bool
    reachable: bool
    metric: int | None
    stale: bool
    path_id: int


@dataclass(frozen=True, slots=True)
class StatusInfo:
    """``show status``; ``recovering`` is (protocols waited for, seconds left, of seconds)."""

    router_id: int
    started_at: float
    configured_at: float
    recovering: tuple[int, float, float] | None
    hostname: str
    is_stopping: bool


def status(speaker: Speaker, *, now: float) -> StatusInfo:
    """The daemon's own state."""
    recovering = None
    if speaker.recovery_until is not None:
        left = max(0.0, speaker.recovery_until - now)
        recovering = (len(speaker.waiting_for()), left, speaker.config.recovery_wait_s)
    return StatusInfo(
        speaker.router_id,
        speaker.started_at,
        speaker.configured_at,
        recovering,
        speaker.config.hostname,
        speaker.is_stopping,
    )


def protocols(speaker: Speaker, *, now: float) -> tuple[ProtocolInfo, ...]:
    """All protocols in the order of the configuration: static, kernel, device, direct, BFD, BGP."""
    found = []
    for static in speaker.local.statics.values():
        state = _up(static.config.disabled)
        channels = tuple(
            _channel(channel, state, static.config.preference)
            for channel in static.channels.values()
            if channel.received or channel.afi is Afi.IPV4
        )
        since = speaker.local.since.get(static.config.name, speaker.started_at)
        found.append(ProtocolInfo(static.config.name, "Static", state, since, channels=channels))
    kernel = speaker.local.kernel
    if kernel is not None:
        state = _up(kernel.config.disabled)
        info = _channel(kernel.channel, state, kernel.config.preference)
        channel = ChannelInfo(
            info.afi,
            state,
            info.preference,
            info.import_filter,
            kernel.config.export_filter.label,
            info.imported,
            info.filtered,
            len(kernel.installed),
            info.preferred,
            info.stats,
        )
        since = speaker.local.since.get(kernel.config.name, speaker.started_at)
        found.append(ProtocolInfo(kernel.config.name, "Kernel", state, since, channels=(channel,)))
    device = speaker.config.device
    since = speaker.local.since.get(device.name, speaker.started_at)
    found.append(ProtocolInfo(device.name, "Device", _up(device.disabled), since))
    direct = speaker.local.direct
    if direct is not None:
        state = _up(direct.config.disabled)
        channels = tuple(
            _channel(channel, state, direct.config.preference)
            for channel in direct.channels.values()
            if channel.received or channel.afi is Afi.IPV4
        )
        since = speaker.local.since.get(direct.config.name, speaker.started_at)
        found.append(ProtocolInfo(direct.config.name, "Direct", state, since, channels=channels))
    bfd = speaker.config.bfd
    if bfd is not None:
        since = speaker.local.since[bfd.name]
        found.append(ProtocolInfo(bfd.name, "BFD", _up(bfd.disabled), since))
    found.extend(_bgp(speaker, peer, now) for peer in speaker.peers.values())
    return tuple(found)


def _up(disabled: bool) -> str:
    return "down" if disabled else "up"


def _channel(channel: Channel, state: str, preference: int) -> ChannelInfo:
    return ChannelInfo(
        channel.afi,
        state,
        preference,
        channel.import_filter.label,
        "REJECT",
        channel.routes,
        max(0, len(channel.received) - channel.routes),
        0,
        channel.preferred,
        channel.stats,
    )


def peer_state(peer: Peer) -> str:
    """The state as BIRD says it: a passive protocol that waits is Passive, a stopped one Down."""
    if peer.life is Life.DOWN:
        return "Down"
    state = peer.state
    if (
        state is State.IDLE
        and peer.config.passive
        and peer.penalty.until is None
        and peer.life is Life.START
    ):
        return "Passive"
    return str(state)


def _left(at: float | None, now: float) -> float:
    return 0.0 if at is None else max(0.0, at - now)


def _bgp(speaker: Speaker, peer: Peer, now: float) -> ProtocolInfo:
    config = peer.config
    words = "".join(peer.last_error)
    state = peer_state(peer)
    info = words if peer.life is Life.DOWN else f"{state:<14}{words}"
    session, timers = peer.session, config.timers
    terms = session.terms if session is not None else None
    opened = session.peer_open if session is not None else None
    connecting = next(
        (c for c in (peer.connections.outgoing, peer.connections.incoming) if c is not None), None
    )
    hold = keepalive = delay = None
    if session is not None and terms is not None and terms.hold_s:
        hold = (_left(session.timers.hold_at, now), float(terms.hold_s))
        keepalive = (_left(session.timers.keepalive_at, now), float(terms.keepalive_s))
    if session is None and connecting is not None and connecting.timers.delay_at is not None:
        delay = (_left(connecting.timers.delay_at, now), timers.connect_delay_s)
    life = "wait" if peer.life is Life.UP and speaker.recovering else str(peer.life)
    channels = []
    for afi, channel in peer.exchange.channels.items():
        channel_config = config.channel(afi)
        assert channel_config is not None
        exporter = peer.exchange.exporters.get(afi)
        if exporter is not None:
            exporter.count_skipped()
        plain = _channel(channel, str(peer.life), channel_config.preference)
        restart_left = (
            None
            if peer.exchange.neighbor_restart.until is None
            else _left(peer.exchange.neighbor_restart.until, now)
        )
        channels.append(
            ChannelInfo(
                afi,
                str(peer.life),
                channel_config.preference,
                plain.import_filter,
                channel_config.export_filter.label,
                plain.imported,
                plain.filtered,
                len(exporter.sent) if exporter is not None else 0,
                plain.preferred,
                plain.stats,
                exporter.terms.next_hop if exporter is not None else b"",
                restart_active=bool(channel.stale),
                restart_left_s=restart_left,
            )
        )
    bgp = BgpInfo(
        state=state,
        neighbor=config.neighbor,
        neighbor_port=config.neighbor_port,
        neighbor_as=config.peer_as,
        local_as=config.local_as,
        local_id=speaker.router_id,
        neighbor_id=opened.router_id if opened is not None else None,
        internal=config.internal,
        multihop=config.multihop > 0,
        rr_client=config.rr_client,
        rs_client=config.rs_client,
        passive=config.passive,
        source_address=peer.source_address,
        local_capabilities=(
            session.local_open.capabilities
            if session is not None and session.local_open is not None
            else None
        ),
        neighbor_capabilities=opened.capabilities if opened is not None else None,
        as4=terms is not None and terms.as4,
        extended_messages=terms is not None and terms.extended_message,
        add_path_rx=terms.add_path_rx if terms is not None else (),
        add_path_tx=terms.add_path_tx if terms is not None else (),
        hold_timer=hold,
        keepalive_timer=keepalive,
        connect_delay=delay,
        error_wait=(
            (_left(peer.penalty.until, now), peer.penalty.delay_s)
            if peer.penalty.until is not None
            else None
        ),
        restart_timer=_left(peer.exchange.neighbor_restart.until, now)
        if peer.exchange.neighbor_restart.until is not None
        else None,
        last_error=peer.last_error,
        established_at=peer.connections.established_at if session is not None else None,
        outgoing=session.outgoing if session is not None else None,
    )
    return ProtocolInfo(
        config.name,
        "BGP",
        life,
        peer.since,
        info.rstrip() if not words and peer.life is Life.DOWN else info,
        config.description,
        peer.enabled,
        tuple(channels),
        bgp,
    )


def route_info(net: Net, path: Path, *, selected: bool) -> RouteInfo:
    """One route as a record."""
    channel = path.channel
    return RouteInfo(
        net=net,
        protocol=channel.name,
        source=channel.source,
        learned_at=path.learned_at,
        selected=selected,
        dest=path.dest,
        ways=path.ways,
        attrs=path.attrs,
        from_=channel.neighbor,
        external=channel.external,
        reachable=path.reachable,
        metric=path.igp_metric if path.igp_metric < 0x80000000 else None,
        stale=path.stale,
        path_id=path.path_id,
    )


def routes(speaker: Speaker, afi: Afi = Afi.IPV4) -> Iterator[RouteInfo]:
    """All routes of a table, by network, the best of each first."""
    table = speaker.tables[afi]
    for net, key in sorted((Net.from_key(afi, key), key) for key in table.routes):
        for index, path in enumerate(table.paths(key)):
            yield route_info(net, path, selected=index == 0)


def routes_of(speaker: Speaker, net: Net) -> tuple[RouteInfo, ...]:
    """The routes of exactly one network."""
    paths = speaker.tables[net.afi].paths(net.key)
    return tuple(route_info(net, path, selected=i == 0) for i, path in enumerate(paths))


def exported(speaker: Speaker, name: str, afi: Afi = Afi.IPV4) -> tuple[tuple[Net, Attrs], ...]:
    """What a BGP protocol was told (Adj-RIB-Out); KeyError for an unknown name."""
    exporter = speaker.peers[name].exchange.exporters.get(afi)
    if exporter is None:
        return ()
    skip = 4 if exporter.wants_all_paths else 0
    found = [(Net.from_key(afi, key[skip:]), attrs) for key, attrs in exporter.sent.items()]
    return tuple(sorted(found, key=lambda item: item[0]))
