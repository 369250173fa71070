"""Capabilities (RFC 5492): what each side says it can, and what a session then does.

Codes: multiprotocol RFC 4760, route refresh RFC 2918, extended messages RFC 8654, graceful restart
RFC 4724 (N bit RFC 8538), 4-octet AS RFC 6793, ADD-PATH RFC 7911, enhanced refresh RFC 7313,
long-lived graceful restart RFC 9494.  The order of ``encode`` is BIRD's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agents.bird.config import AddPaths, GracefulRestart
from agents.bird.errors import OPEN_ERROR, BgpPeerError
from agents.bird.net import SAFI_UNICAST, Afi

if TYPE_CHECKING:
    from agents.bird.config import BgpConfig

MULTIPROTOCOL: Final = 1
ROUTE_REFRESH: Final = 2
EXTENDED_MESSAGE: Final = 6
GRACEFUL_RESTART: Final = 64
AS4: Final = 65
ADD_PATH: Final = 69
ENHANCED_REFRESH: Final = 70
LONG_LIVED: Final = 71

# Flags of the graceful restart capability, in its first octet, and of each family in it.
RESTARTING: Final = 0x8
NOTIFICATION: Final = 0x4
FORWARDING: Final = 0x80

RECEIVE: Final = 1
SEND: Final = 2

# Sets of capabilities that are remembered with their octets; the nodes of a mesh send one.
MAX_KNOWN: Final = 64


@dataclass(frozen=True, slots=True)
class Restart:
    """Graceful restart: seconds, R and N bits, and per family whether forwarding was preserved."""

    time_s: int = 0
    restarting: bool = False
    notification: bool = False
    families: tuple[tuple[int, bool], ...] = ()

    def preserved(self, afi: int) -> bool | None:
        """The F bit of a family, None if the family is not in the capability."""
        return dict(self.families).get(afi)


@dataclass(frozen=True, slots=True)
class LongLived:
    """Long-lived graceful restart: per family the F bit and the stale time in seconds."""

    families: tuple[tuple[int, bool, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """One side's capabilities; families are AFIs, all with SAFI unicast.

    ``as4`` is the AS number or None, ``add_path`` maps an AFI to RECEIVE and SEND bits, ``unknown``
    are codes this speaker does not know.
    """

    families: tuple[int, ...] = ()
    route_refresh: bool = False
    extended_message: bool = False
    restart: Restart | None = None
    as4: int | None = None
    add_path: tuple[tuple[int, int], ...] = ()
    enhanced_refresh: bool = False
    long_lived: LongLived | None = None
    unknown: tuple[int, ...] = field(default=())

    @functools.lru_cache(maxsize=MAX_KNOWN)  # noqa: B019 -- few and small: peers' are mostly equal
    def encode(self) -> bytes:
        """The capabilities one after the other, without the optional parameter around them."""
        out = b""
        for afi in self.families:
            out += bytes((MULTIPROTOCOL, 4, 0, afi, 0, SAFI_UNICAST))
        if self.route_refresh:
            out += bytes((ROUTE_REFRESH, 0))
        if self.extended_message:
            out += bytes((EXTENDED_MESSAGE, 0))
        if self.restart is not None:
            r = self.restart
            flags = (RESTARTING if r.restarting else 0) | (NOTIFICATION if r.notification else 0)
            value = (flags << 12 | r.time_s).to_bytes(2, "big")
            for afi, forwarding in r.families:
                value += bytes((0, afi, SAFI_UNICAST, FORWARDING if forwarding else 0))
            out += bytes((GRACEFUL_RESTART, len(value))) + value
        if self.as4 is not None:
            out += bytes((AS4, 4)) + self.as4.to_bytes(4, "big")
        if self.add_path:
            value = b"".join(bytes((0, afi, SAFI_UNICAST, mode)) for afi, mode in self.add_path)
            out += bytes((ADD_PATH, len(value))) + value
        if self.enhanced_refresh:
            out += bytes((ENHANCED_REFRESH, 0))
        if self.long_lived is not None:
            value = b""
            for afi, forwarding, stale_s in self.long_lived.families:
                value += bytes((0, afi, SAFI_UNICAST, FORWARDING if forwarding else 0))
                value += stale_s.to_bytes(3, "big")
            out += bytes((LONG_LIVED, len(value))) + value
        return out


class CapabilityReader:
    """Collects capabilities from the optional parameters of one OPEN."""

    def __init__(self) -> None:
        self._fields: dict[str, object] = {}
        self._families: list[int] = []
        self._add_path: dict[int, int] = {}
        self._unknown: list[int] = []

    def read(self, data: bytes) -> None:
        """Read one parameter's list; BgpPeerError 2/0 if it is not one."""
        at = 0
        while at < len(data):
            if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
                raise BgpPeerError(OPEN_ERROR, 0)
            code, value = data[at], data[at + 2 : at + 2 + data[at + 1]]
            at += 2 + len(value)
            self._one(code, value)

    def _one(self, code: int, value: bytes) -> None:
        fields = self._fields
        match code:
            case 1:
                self._check(len(value) == 4)
                afi = int.from_bytes(value[:2], "big")
                if afi in (1, 2) and value[3] == SAFI_UNICAST and afi not in self._families:
                    self._families.append(afi)
            case 2:
                self._check(not value)
                fields["route_refresh"] = True
            case 6:
                self._check(not value)
                fields["extended_message"] = True
            case 64:
                self._check(len(value) >= 2 and len(value) % 4 == 2)
                head = int.from_bytes(value[:2], "big")
                families = [
                    (value[i + 1], bool(value[i + 3] & FORWARDING))
                    for i in range(2, len(value), 4)
                    if value[i] == 0 and value[i + 1] in (1, 2) and value[i + 2] == SAFI_UNICAST
                ]
                flags = head >> 12
                fields["restart"] = Restart(
                    head & 0xFFF,
                    bool(flags & RESTARTING),
                    bool(flags & NOTIFICATION),
                    tuple(families),
                )
            case 65:
                self._check(len(value) == 4)
                fields["as4"] = int.from_bytes(value, "big")
            case 69:
                self._check(len(value) % 4 == 0)
                for i in range(0, len(value), 4):
                    afi, safi, mode = value[i] << 8 | value[i + 1], value[i + 2], value[i + 3]
                    if afi in (1, 2) and safi == SAFI_UNICAST and 1 <= mode <= 3:
                        self._add_path[afi] = mode
            case 70:
                self._check(not value)
                fields["enhanced_refresh"] = True
            case 71:
                self._check(len(value) % 7 == 0)
                fields["long_lived"] = LongLived(
                    tuple(
                        (
                            value[i + 1],
                            bool(value[i + 3] & FORWARDING),
                            int.from_bytes(value[i + 4 : i + 7], "big"),
                        )
                        for i in range(0, len(value), 7)
                        if value[i] == 0 and value[i + 1] in (1, 2) and value[i + 2] == SAFI_UNICAST
                    )
                )
            case _:
                self._unknown.append(code)

    @staticmethod
    def _check(good: bool) -> None:
        if not good:
            raise BgpPeerError(OPEN_ERROR, 0)

    def result(self) -> Capabilities:
        """What was said."""
        return Capabilities(
            families=tuple(self._families),
            add_path=tuple(self._add_path.items()),
            unknown=tuple(self._unknown),
            **self._fields,  # type: ignore[arg-type]  # each case sets its own type
        )


_ADD_PATH_BITS: Final = {
    AddPaths.RX: RECEIVE,
    AddPaths.TX: SEND,
    AddPaths.ON: RECEIVE | SEND,
}


def local_capabilities(
    config: BgpConfig, *, restarting: bool = False, preserved: tuple[Afi, ...] = ()
) -> Capabilities:
    """What a protocol announces.  ``preserved``: families whose forwarding outlived a restart."""
    if not config.capabilities:
        return Capabilities()
    afis = [afi for afi in (Afi.IPV4, Afi.IPV6) if config.channel(afi) is not None]
    restart = long_lived = None
    if config.graceful_restart is GracefulRestart.AWARE:
        restart = Restart()
    elif config.graceful_restart is GracefulRestart.ON:
        restart = Restart(
            config.graceful_restart_time_s,
            restarting,
            config.notification_restart,
            tuple((int(afi), afi in preserved) for afi in afis),
        )
    if config.long_lived is GracefulRestart.AWARE:
        long_lived = LongLived()
    elif config.long_lived is GracefulRestart.ON:
        stale_s = config.long_lived_stale_time_s
        long_lived = LongLived(tuple((int(afi), afi in preserved, stale_s) for afi in afis))
    add_path = []
    for afi in afis:
        channel = config.channel(afi)
        assert channel is not None
        if channel.add_paths is not AddPaths.OFF:
            add_path.append((int(afi), _ADD_PATH_BITS[channel.add_paths]))
    return Capabilities(
        families=tuple(int(afi) for afi in afis),
        route_refresh=config.route_refresh,
        extended_message=config.extended_messages,
        restart=restart,
        as4=config.local_as if config.as4 else None,
        add_path=tuple(add_path),
        enhanced_refresh=config.route_refresh,
        long_lived=long_lived,
    )


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What both sides can: the terms of one session."""

    families: tuple[Afi, ...]
    as4: bool
    route_refresh: bool
    enhanced_refresh: bool
    extended_message: bool
    add_path_rx: tuple[Afi, ...]
    add_path_tx: tuple[Afi, ...]
    hold_s: int
    keepalive_s: int
    peer_restart: Restart | None
    peer_long_lived: LongLived | None
    notification_restart: bool


def negotiate(
    config: BgpConfig, ours: Capabilities, theirs: Capabilities, peer_hold_s: int
) -> Negotiated:
    """Combine two sides; BgpPeerError 2/7 if no family is common."""
    # A speaker that announces no family at all means IPv4 unicast (RFC 4760 §8).
    their_families = theirs.families or (1,)
    our_families = ours.families or tuple(
        int(afi) for afi in (Afi.IPV4, Afi.IPV6) if config.channel(afi) is not None
    )
    families = tuple(Afi(afi) for afi in our_families if afi in their_families)
    if not families:
        raise BgpPeerError(OPEN_ERROR, 7, Capabilities(families=our_families).encode())
    our_paths, their_paths = dict(ours.add_path), dict(theirs.add_path)
    hold = min(config.timers.hold_s, peer_hold_s)
    keepalive = config.timers.keepalive_s
    if keepalive is None:
        keepalive = hold // 3
    elif config.timers.hold_s:
        keepalive = keepalive * hold // config.timers.hold_s
    both_n = (
        ours.restart is not None
        and theirs.restart is not None
        and ours.restart.notification
        and theirs.restart.notification
    )
    refresh = ours.route_refresh and theirs.route_refresh
    return Negotiated(
        families=families,
        as4=ours.as4 is not None and theirs.as4 is not None,
        route_refresh=refresh,
        enhanced_refresh=refresh and ours.enhanced_refresh and theirs.enhanced_refresh,
        extended_message=ours.extended_message and theirs.extended_message,
        add_path_rx=tuple(
            afi
            for afi in families
            if our_paths.get(afi, 0) & RECEIVE and their_paths.get(afi, 0) & SEND
        ),
        add_path_tx=tuple(
            afi
            for afi in families
            if our_paths.get(afi, 0) & SEND and their_paths.get(afi, 0) & RECEIVE
        ),
        hold_s=hold,
        keepalive_s=max(1, keepalive) if hold else 0,
        peer_restart=theirs.restart if ours.restart is not None else None,
        peer_long_lived=theirs.long_lived if ours.long_lived is not None else None,
        notification_restart=both_n,
    )
