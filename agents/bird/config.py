"""What a speaker is told to do: the structured form of BIRD's configuration language.

Addresses of peers are IPv4 integers, next hops 4 or 16 bytes, times seconds.  Defaults are BIRD's
(doc/reference), the values Calico sets are in ``CALICO_TIMERS``.  Everything is frozen and compares
by value: the speaker keeps each session whose protocol did not change.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from agents.bird.filters import ACCEPT_ALL, REJECT_ALL, Filter
from agents.bird.net import Afi, Net
from emulator.errors import UsageError

BGP_PORT: Final = 179
# `merge paths on` without a limit: BIRD's KRT_DEFAULT_ECMP_LIMIT.
DEFAULT_ECMP_LIMIT: Final = 16


class Dest(enum.StrEnum):
    """Where a static route leads (BIRD's RTD_*)."""

    UNICAST = "unicast"
    BLACKHOLE = "blackhole"
    UNREACHABLE = "unreachable"
    PROHIBIT = "prohibit"


class AddPaths(enum.StrEnum):
    """``add paths``: whether to offer receiving and sending several paths (RFC 7911)."""

    OFF = "off"
    RX = "rx"
    TX = "tx"
    ON = "on"


class NextHopRule(enum.StrEnum):
    """``next hop``: what goes into NEXT_HOP; AUTO is RFC 4271 §5.1.3 with BIRD's choices."""

    AUTO = "auto"
    SELF = "self"
    KEEP = "keep"


class LimitAction(enum.StrEnum):
    """What happens when a limit is reached."""

    WARN = "warn"
    BLOCK = "block"
    RESTART = "restart"
    DISABLE = "disable"


class GracefulRestart(enum.StrEnum):
    """``graceful restart``: OFF, AWARE (help others only), ON (also keep own forwarding)."""

    OFF = "off"
    AWARE = "aware"
    ON = "on"


@dataclass(frozen=True, slots=True)
class Limit:
    """``import limit N action A``."""

    count: int
    action: LimitAction = LimitAction.DISABLE


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """``route N blackhole`` or ``route N via G`` (also ``via "dev"``)."""

    net: Net
    dest: Dest = Dest.BLACKHOLE
    via: bytes = b""
    dev: str = ""


@dataclass(frozen=True, slots=True)
class StaticConfig:
    """``protocol static``."""

    routes: tuple[StaticRoute, ...] = ()
    name: str = "static1"
    preference: int = 200
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """``protocol device``: looks at the interfaces every ``scan_s``."""

    name: str = "device1"
    scan_s: float = 10.0
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class DirectConfig:
    """``protocol direct``: a route for each address of the matching interfaces.

    Patterns are globs, the first that matches decides, ``-glob`` refuses.
    """

    interfaces: tuple[str, ...] = ("*",)
    name: str = "direct1"
    preference: int = 240
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """``protocol kernel``: what goes into and comes out of the node's routing table.

    ``merge_paths`` is the most next hops of one route, 0 for no ECMP.
    """

    name: str = "kernel1"
    learn: bool = False
    persist: bool = False
    scan_s: float = 60.0
    merge_paths: int = 0
    graceful_restart: bool = False
    import_filter: Filter = ACCEPT_ALL
    export_filter: Filter = REJECT_ALL
    preference: int = 10
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class BfdConfig:
    """``protocol bfd``: without it, or while it is disabled, no neighbour is watched."""

    name: str = "bfd1"
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Timers:
    """BIRD's BGP timers; each start draws 75 to 100 % of the value.

    ``first_delay_s`` is the wait before the first attempt after a start; None means
    ``connect_delay_s``, as BIRD has it.  ``send_hold_s`` is RFC 9687's timer; None means twice the
    hold time but at least 480 s, 0 none.
    """

    hold_s: int = 240
    startup_hold_s: int = 240
    keepalive_s: int | None = None
    connect_delay_s: float = 5.0
    connect_retry_s: float = 120.0
    error_wait_min_s: float = 60.0
    error_wait_max_s: float = 300.0
    error_forget_s: float = 300.0
    first_delay_s: float | None = None
    send_hold_s: float | None = None


CALICO_TIMERS: Final = Timers(
    connect_delay_s=2.0, connect_retry_s=5.0, error_wait_min_s=5.0, error_wait_max_s=30.0
)


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """One address family of a session."""

    import_filter: Filter = ACCEPT_ALL
    export_filter: Filter = REJECT_ALL
    preference: int = 100
    add_paths: AddPaths = AddPaths.OFF
    next_hop: NextHopRule = NextHopRule.AUTO
    # `next hop address A`: 4 or 16 bytes; b"" takes the session's source address.
    next_hop_address: bytes = b""
    receive_limit: Limit | None = None
    import_limit: Limit | None = None
    export_limit: Limit | None = None
    # `import keep filtered`, for `show route filtered`.
    keep_filtered: bool = False


@dataclass(frozen=True, slots=True)
class BfdOptions:
    """``bfd``: BIRD's ``interval`` and ``multiplier``; ``graceful`` keeps routes."""

    min_tx_s: float = 0.1
    min_rx_s: float = 0.1
    idle_tx_s: float = 1.0
    multiplier: int = 5
    passive: bool = False
    graceful: bool = False


@dataclass(frozen=True, slots=True)
class BgpConfig:
    """``protocol bgp``.

    ``neighbor`` and ``source_address`` are emulated addresses; 0 as the source means the router id.
    ``multihop`` 0 means a directly connected neighbour (TTL 1 for eBGP).  ``peer_as`` may equal
    ``local_as`` (iBGP).  ``allow_local_as`` is how often the own AS may be in a path.
    ``is_calico_node`` and such things are confd's and not here.
    """

    name: str
    neighbor: int
    peer_as: int
    local_as: int
    source_address: int = 0
    neighbor_port: int | None = None
    description: str = ""
    passive: bool = False
    multihop: int = 64
    ttl_security: bool = False
    password: str = ""
    rr_client: bool = False
    rr_cluster_id: int | None = None
    rs_client: bool = False
    allow_local_as: int = 0
    enforce_first_as: bool = False
    default_local_pref: int = 100
    med_metric: bool = False
    path_metric: bool = True
    prefer_older: bool = False
    timers: Timers = Timers()
    ipv4: ChannelConfig | None = ChannelConfig()
    ipv6: ChannelConfig | None = None
    graceful_restart: GracefulRestart = GracefulRestart.AWARE
    graceful_restart_time_s: int = 120
    long_lived: GracefulRestart = GracefulRestart.AWARE
    long_lived_stale_time_s: int = 3600
    notification_restart: bool = False
    # Announce everything with the GRACEFUL_SHUTDOWN community (RFC 8326, the initiator), and give
    # routes that an external peer sends so LOCAL_PREF 0 (the receiver).
    graceful_shutdown: bool = False
    honor_graceful_shutdown: bool = True
    route_refresh: bool = True
    extended_messages: bool = False
    as4: bool = True
    capabilities: bool = True
    bfd: BfdOptions | None = None
    disabled: bool = False
    # What the peer is told in a Cease when this protocol is disabled (RFC 9003).
    shutdown_message: str = ""

    def __post_init__(self) -> None:
        """Refuse what BIRD refuses when it reads a configuration."""
        if not 0 < self.neighbor <= 0xFFFFFFFF:
            raise UsageError(f"{self.name}: Neighbor must be configured")
        if not 0 < self.local_as <= 0xFFFFFFFF:
            raise UsageError(f"{self.name}: Local AS number must be set")
        if not 0 < self.peer_as <= 0xFFFFFFFF:
            raise UsageError(f"{self.name}: Remote AS number must be set")
        if self.rr_client and self.peer_as != self.local_as:
            raise UsageError(f"{self.name}: Only internal neighbor can be RR client")
        if self.timers.hold_s in (1, 2):
            raise UsageError(f"{self.name}: Hold time must be 0 or at least 3 seconds")
        if self.ipv4 is None and self.ipv6 is None:
            raise UsageError(f"{self.name}: No channel: a session carries at least one family")
        if len(self.password.encode()) > 80:
            raise UsageError(f"{self.name}: Password is longer than 80 octets")

    @property
    def internal(self) -> bool:
        """iBGP."""
        return self.peer_as == self.local_as

    def channel(self, afi: Afi) -> ChannelConfig | None:
        """What is configured for a family."""
        return self.ipv4 if afi is Afi.IPV4 else self.ipv6


@dataclass(frozen=True, slots=True)
class SpeakerConfig:
    """A whole daemon.

    ``recovery_wait_s`` is how long a speaker started with ``-R`` waits for its peers' End-of-RIB
    before it exports and touches the kernel (BIRD's ``graceful restart wait``, 240).
    """

    router_id: int
    bgp: tuple[BgpConfig, ...] = ()
    static: tuple[StaticConfig, ...] = ()
    kernel: KernelConfig | None = None
    direct: DirectConfig | None = None
    device: DeviceConfig = field(default_factory=DeviceConfig)
    bfd: BfdConfig | None = None
    listen_port: int = BGP_PORT
    recovery_wait_s: float = 240.0
    hostname: str = ""

    def __post_init__(self) -> None:
        """Names are unique and the router id is a number other than 0."""
        if not 0 < self.router_id <= 0xFFFFFFFF:
            raise UsageError("Router ID must be configured and not be 0.0.0.0")
        names = [bgp.name for bgp in self.bgp] + [static.name for static in self.static]
        names.append(self.device.name)
        if self.kernel is not None:
            names.append(self.kernel.name)
        if self.direct is not None:
            names.append(self.direct.name)
        if self.bfd is not None:
            names.append(self.bfd.name)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"{twice!r} is the name of two protocols")
