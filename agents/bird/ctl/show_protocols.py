"""``show protocols [all]`` (pure).  Source: BIRD 1.6 and 2.0 nest/proto.c, proto/bgp/bgp.c."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.bird.channel import Stats
from agents.bird.config import BGP_PORT
from agents.bird.ctl.reply import (
    PROTOCOL,
    PROTOCOL_DETAIL,
    PROTOCOL_HEADER,
    Dialect,
    Line,
)
from agents.bird.net import Afi, format_address
from emulator.addr import format_ip

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agents.bird.capabilities import Capabilities
    from agents.bird.config import BgpConfig, Limit
    from agents.bird.ctl.times import Times
    from agents.bird.snapshot import BgpInfo, ChannelInfo, ProtocolInfo

# Protocols with one table for good; the others' channels have theirs.
_ONE_TABLE: Final = ("Static", "Kernel")
# What BIRD 1 shows as preference of protocols that have no routes.
_PREFERENCES: Final = {"Device": 240, "BFD": 0}
_NO_STATS: Final = Stats()
_FAMILIES: Final = {1: "ipv4", 2: "ipv6"}
_STATES: Final = {"down": "DOWN", "start": "START", "up": "UP", "wait": "UP", "flush": "FLUSHING"}


def table_name(afi: Afi, dialect: Dialect) -> str:
    """The master table of a family; BIRD 1 has one daemon a family."""
    if dialect is Dialect.BIRD1:
        return "master"
    return "master4" if afi is Afi.IPV4 else "master6"


def show_protocols(
    protocols: Iterable[ProtocolInfo],
    configs: Mapping[str, BgpConfig],
    times: Times,
    *,
    detail: bool,
) -> Iterator[Line]:
    """The table, with ``detail`` what is known of each; ``configs`` are the BGP protocols'."""
    dialect = times.dialect
    if dialect is Dialect.BIRD1:
        heading = _row1("name", "proto", "table", "state", "since", "info")
    else:
        heading = _row2("Name", "Proto", "Table", "State", "Since", "Info")
    yield Line(PROTOCOL_HEADER, heading)
    for info in protocols:
        since = times.short(info.since)
        if dialect is Dialect.BIRD1:
            row = _row1(info.name, info.proto, "master", info.state, since, info.info)
        else:
            table = table_name(Afi.IPV4, dialect) if info.proto in _ONE_TABLE else "---"
            state = "up" if info.state == "wait" else info.state
            row = _row2(info.name, info.proto, table, state, since, info.info)
        yield Line(PROTOCOL, row)
        if detail:
            config = configs.get(info.name)
            if dialect is Dialect.BIRD1:
                lines = _detail1(info, config, times)
            else:
                lines = _detail2(info, config, times)
            for text in lines:
                yield Line(PROTOCOL_DETAIL, text)
            yield Line(PROTOCOL_DETAIL, "")


def _row1(name: str, proto: str, table: str, state: str, since: str, info: str) -> str:
    return f"{name:<8} {proto:<8} {table:<8} {state:<5}  {since:<10}  {info}"


def _row2(name: str, proto: str, table: str, state: str, since: str, info: str) -> str:
    return f"{name:<10} {proto:<10} {table:<10} {state:<6} {since:<12}  {info}"


def _limits(
    config: BgpConfig | None, channel: ChannelInfo, indent: str, width: int
) -> Iterator[str]:
    found = config.channel(channel.afi) if config is not None else None
    if found is None:
        return
    named: tuple[tuple[str, Limit | None], ...] = (
        ("Receive limit:", found.receive_limit),
        ("Import limit:", found.import_limit),
        ("Export limit:", found.export_limit),
    )
    for name, limit in named:
        if limit is not None:
            yield f"{indent}{name:<{width}}{limit.count}"
            yield f"{indent}  {'Action:':<{width - 2}}{limit.action}"


def _routes(config: BgpConfig | None, channel: ChannelInfo) -> str:
    found = config.channel(channel.afi) if config is not None else None
    kept = f"{channel.filtered} filtered, " if found is not None and found.keep_filtered else ""
    exported = channel.exported or 0
    return f"{channel.imported} imported, {kept}{exported} exported, {channel.preferred} preferred"


def _statistics(s: Stats, indent: str) -> Iterator[str]:
    yield f"{indent}Route change stats:     received   rejected   filtered    ignored   accepted"
    rows: tuple[tuple[str, tuple[int | None, ...]], ...] = (
        (
            "Import updates:",
            (
                s.imp_updates_received,
                s.imp_updates_invalid,
                s.imp_updates_filtered,
                s.imp_updates_ignored,
                s.imp_updates_accepted,
            ),
        ),
        (
            "Import withdraws:",
            (
                s.imp_withdraws_received,
                s.imp_withdraws_invalid,
                None,
                s.imp_withdraws_ignored,
                s.imp_withdraws_accepted,
            ),
        ),
        (
            "Export updates:",
            (
                s.exp_updates_received,
                s.exp_updates_rejected,
                s.exp_updates_filtered,
                None,
                s.exp_updates_accepted,
            ),
        ),
        (
            "Export withdraws:",
            (s.exp_withdraws_received, None, None, None, s.exp_withdraws_accepted),
        ),
    )
    for name, values in rows:
        cells = " ".join(f"{'---' if v is None else v:>10}" for v in values)
        yield f"{indent}  {name:<19} {cells}"


# -- BIRD 1 ----------------------------------------------------------------------------------------


def _detail1(info: ProtocolInfo, config: BgpConfig | None, times: Times) -> Iterator[str]:
    if info.description:
        yield f"  Description:    {info.description}"
    channel = next((c for c in info.channels if c.afi is Afi.IPV4), None)
    if channel is None:
        preference, imports, exports = _PREFERENCES[info.proto], "ACCEPT", "REJECT"
    else:
        preference, imports = channel.preference, channel.import_filter
        exports = channel.export_filter
    yield f"  Preference:     {preference}"
    yield f"  Input filter:   {imports}"
    yield f"  Output filter:  {exports}"
    if channel is not None:
        yield from _limits(config, channel, "  ", 16)
    if info.state != "down":
        routes = "0 imported, 0 exported, 0 preferred"
        yield f"  Routes:         {routes if channel is None else _routes(config, channel)}"
        yield from _statistics(_NO_STATS if channel is None else channel.stats, "  ")
    if info.bgp is not None:
        yield from _session1(info.bgp, info.state, channel, config, times)


def _session1(
    bgp: BgpInfo,
    state: str,
    channel: ChannelInfo | None,
    config: BgpConfig | None,
    times: Times,
) -> Iterator[str]:
    yield f"  BGP state:          {bgp.state}"
    yield f"    Neighbor address: {format_ip(bgp.neighbor)}"
    yield f"    Neighbor AS:      {bgp.neighbor_as}"
    if channel is not None and channel.restart_active:
        yield "    Neighbor graceful restart active"
    if state == "start":
        yield from _waiting(bgp, times)
        if bgp.restart_timer is not None:
            yield f"    Restart timer:    {times.left(bgp.restart_timer)}/-"
    elif bgp.neighbor_id is not None and bgp.neighbor_capabilities is not None:
        yield f"    Neighbor ID:      {format_ip(bgp.neighbor_id)}"
        yield f"    Neighbor caps:   {_capability_words(bgp.neighbor_capabilities)}"
        words = _session_words(bgp)
        words += " add-path-rx" if bgp.add_path_rx else ""
        words += " add-path-tx" if bgp.add_path_tx else ""
        words += " ext-messages" if bgp.extended_messages else ""
        yield f"    Session:          {words}"
        yield from _timers(bgp, times)
    yield from _last_error(bgp)


def _session_words(bgp: BgpInfo) -> str:
    words = ["internal" if bgp.internal else "external"]
    for word, is_so in (
        ("multihop", bgp.multihop),
        ("route-reflector", bgp.rr_client),
        ("route-server", bgp.rs_client),
        ("AS4", bgp.as4),
    ):
        if is_so:
            words.append(word)
    return " ".join(words)


def _waiting(bgp: BgpInfo, times: Times) -> Iterator[str]:
    for name, timer in (("Error wait:", bgp.error_wait), ("Connect delay:", bgp.connect_delay)):
        if timer is not None:
            yield f"    {name:<17} {times.left(timer[0])}/{timer[1]:g}"


def _timers(bgp: BgpInfo, times: Times) -> Iterator[str]:
    yield f"    Source address:   {format_ip(bgp.source_address)}"
    for name, timer in (("Hold timer:", bgp.hold_timer), ("Keepalive timer:", bgp.keepalive_timer)):
        left, of = timer if timer is not None else (0.0, 0.0)
        yield f"    {name:<17} {times.left(left)}/{of:g}"


def _last_error(bgp: BgpInfo) -> Iterator[str]:
    if bgp.last_error[0]:
        yield f"    Last error:       {''.join(bgp.last_error)}"


def _capability_words(c: Capabilities) -> str:
    """What the neighbour can, each word after a blank."""
    receive = any(mode & 1 for _, mode in c.add_path)
    send = any(mode & 2 for _, mode in c.add_path)
    restart = long_lived = ""
    if c.restart is not None:
        restart = "restart-able" if c.restart.families else "restart-aware"
    if c.long_lived is not None:
        long_lived = "llgr-able" if c.long_lived.families else "llgr-aware"
    words = (
        "refresh" if c.route_refresh else "",
        "enhanced-refresh" if c.enhanced_refresh else "",
        restart,
        long_lived,
        "AS4" if c.as4 is not None else "",
        "add-path-rx" if receive else "",
        "add-path-tx" if send else "",
        "ext-messages" if c.extended_message else "",
    )
    return "".join(f" {word}" for word in words if word)


# -- BIRD 2 ----------------------------------------------------------------------------------------


def _detail2(info: ProtocolInfo, config: BgpConfig | None, times: Times) -> Iterator[str]:
    if info.description:
        yield f"  Description:    {info.description}"
    if info.bgp is not None:
        yield from _session2(info.bgp, info.state, info.channels, times)
    for channel in info.channels:
        yield from _channel2(info, channel, config, times)


def _session2(
    bgp: BgpInfo, state: str, channels: tuple[ChannelInfo, ...], times: Times
) -> Iterator[str]:
    yield f"  BGP state:          {bgp.state}"
    yield f"    Neighbor address: {format_ip(bgp.neighbor)}"
    if bgp.neighbor_port not in (None, BGP_PORT):
        yield f"    Neighbor port:    {bgp.neighbor_port}"
    yield f"    Neighbor AS:      {bgp.neighbor_as}"
    yield f"    Local AS:         {bgp.local_as}"
    if any(channel.restart_active for channel in channels):
        yield "    Neighbor graceful restart active"
    if state == "start":
        yield from _waiting(bgp, times)
        if bgp.restart_timer is not None:
            yield f"    Restart timer:    {times.left(bgp.restart_timer)}/-"
    elif bgp.neighbor_id is not None:
        yield f"    Neighbor ID:      {format_ip(bgp.neighbor_id)}"
        for name, capabilities in (
            ("Local", bgp.local_capabilities),
            ("Neighbor", bgp.neighbor_capabilities),
        ):
            if capabilities is not None:
                yield f"    {name} capabilities"
                yield from _capability_tree(capabilities)
        yield f"    Session:          {_session_words(bgp)}"
        yield from _timers(bgp, times)
    yield from _last_error(bgp)


def _capability_tree(c: Capabilities) -> Iterator[str]:
    if c.families:
        yield "      Multiprotocol"
        yield f"        AF announced:{_families(c.families)}"
    if c.route_refresh:
        yield "      Route refresh"
    if c.extended_message:
        yield "      Extended message"
    if c.restart is not None:
        yield "      Graceful restart"
        yield f"        Restart time: {c.restart.time_s}"
        if c.restart.restarting:
            yield "        Restart recovery"
        yield f"        AF supported:{_families(afi for afi, _ in c.restart.families)}"
        preserved = (afi for afi, forwarding in c.restart.families if forwarding)
        yield f"        AF preserved:{_families(preserved)}"
    if c.as4 is not None:
        yield "      4-octet AS numbers"
    if c.add_path:
        yield "      ADD-PATH"
        yield f"        RX:{_families(afi for afi, mode in c.add_path if mode & 1)}"
        yield f"        TX:{_families(afi for afi, mode in c.add_path if mode & 2)}"
    if c.enhanced_refresh:
        yield "      Enhanced refresh"
    if c.long_lived is not None:
        yield "      Long-lived graceful restart"
        if c.long_lived.families:
            longest = max(stale_s for _, _, stale_s in c.long_lived.families)
            yield f"        LL stale time: {longest}"
            yield f"        AF supported:{_families(f for f, _, _ in c.long_lived.families)}"
            kept = (f for f, forwarding, _ in c.long_lived.families if forwarding)
            yield f"        AF preserved:{_families(kept)}"


def _families(afis: Iterable[int]) -> str:
    return "".join(f" {_FAMILIES[afi]}" for afi in afis)


def _channel2(
    info: ProtocolInfo, channel: ChannelInfo, config: BgpConfig | None, times: Times
) -> Iterator[str]:
    # A BGP channel has no routes before its session is up, unless a restarted peer's are kept.
    down = info.bgp is not None and channel.state == "start" and not channel.restart_active
    state = "DOWN" if down else _STATES[channel.state]
    yield f"  Channel {_FAMILIES[channel.afi]}"
    yield f"    State:          {state}"
    yield f"    Table:          {table_name(channel.afi, times.dialect)}"
    yield f"    Preference:     {channel.preference}"
    yield f"    Input filter:   {channel.import_filter}"
    yield f"    Output filter:  {channel.export_filter}"
    yield from _limits(config, channel, "    ", 16)
    if state != "DOWN":
        yield f"    Routes:         {_routes(config, channel)}"
        yield from _statistics(channel.stats, "    ")
    if info.bgp is None:
        return
    if channel.restart_active:
        yield "    Neighbor GR:    active"
    if channel.next_hop and state == "UP":
        yield f"    BGP Next hop:   {format_address(channel.next_hop)}"
    family = "IPv4" if channel.afi is Afi.IPV4 else "IPv6"
    yield f"    IGP {family} table: {table_name(channel.afi, times.dialect)}"
