"""The frozen records that dumps of a namespace return, and the states they name."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class NeighState(enum.StrEnum):
    """NUD_* of linux/neighbour.h by iproute2's names."""

    NONE = "NONE"
    INCOMPLETE = "INCOMPLETE"
    REACHABLE = "REACHABLE"
    STALE = "STALE"
    DELAY = "DELAY"
    PROBE = "PROBE"
    FAILED = "FAILED"
    PERMANENT = "PERMANENT"
    NOARP = "NOARP"


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """One network device.

    ``running`` is LOWER_UP (a carrier), ``operstate`` RFC 2863's word.  ``link_index`` is the
    ifindex of a veth's peer, ``link_name`` its name if it is in the same namespace (``link_down``
    if it is down there), else ``link_netnsid`` numbers its namespace.  ``vni local dev port
    learning srcport ageing_s`` are a vxlan's, ``local remote ttl`` a tunnel's (``ttl`` 0: that of
    the packet inside); octet counters are bytes.
    """

    index: int
    name: str
    kind: str
    mac: bytes
    mtu: int
    up: bool
    running: bool
    operstate: str = "UNKNOWN"
    qdisc: str = "noqueue"
    txqlen: int = 1000
    master: str = ""
    hairpin: bool = False
    noarp: bool = False
    link_index: int = 0
    link_name: str = ""
    link_netnsid: int = -1
    link_down: bool = False
    vni: int = 0
    local: int = 0
    remote: int = 0
    ttl: int = 0
    dev: str = ""
    port: int = 0
    learning: bool = True
    srcport: tuple[int, int] = (0, 0)
    ageing_s: int = 300
    rx_packets: int = 0
    rx_bytes: int = 0
    rx_dropped: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True)
class AddrInfo:
    """One address of a device; ``broadcast`` None if none was set."""

    index: int
    dev: str
    ip: int
    length: int
    scope: str = "global"
    broadcast: int | None = None
    secondary: bool = False


@dataclass(frozen=True, slots=True)
class NeighInfo:
    """One neighbour entry; ``mac`` None while it is not known."""

    dev: str
    ip: int
    mac: bytes | None
    state: NeighState


@dataclass(frozen=True, slots=True)
class FdbInfo:
    """One forwarding entry: of a vxlan device (``dst`` is the VTEP) or of a bridge port."""

    mac: bytes
    dev: str
    dst: int | None = None
    master: str = ""
    permanent: bool = False
    self_: bool = False
    age_s: float = 0.0
