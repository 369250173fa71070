"""What a BGP protocol instance and the speaker around it know of each other."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random

    from agents.bird.events import Event, MessageTap
    from agents.bird.net import Afi
    from agents.bird.nexthop import Resolver
    from agents.bird.peer import Peer
    from agents.bird.rib import Table


class Life(enum.StrEnum):
    """Protocol states, by the words of ``show protocols``."""

    DOWN = "down"
    START = "start"
    UP = "up"
    FLUSH = "flush"


class PeerHost(Protocol):
    """What a peer needs of the speaker it belongs to."""

    router_id: int
    rng: random.Random
    tables: dict[Afi, Table]
    resolvers: dict[Afi, Resolver]
    tap: MessageTap | None
    now: float

    @property
    def recovering(self) -> bool:
        """True while the speaker's own graceful restart goes on."""

    @property
    def preserved(self) -> tuple[Afi, ...]:
        """Families whose forwarding outlived our restart."""

    @property
    def watches_neighbors(self) -> bool:
        """True while there is BFD."""

    def emit(self, event: Event) -> None:
        """Tell the shell."""

    def register(self, peer: Peer) -> int:
        """A new connection's number."""

    def unregister(self, number: int) -> None:
        """The connection is over."""

    def link_to(self, neighbor: int) -> str:
        """The interface on whose network an IPv4 address is, "" if there is none."""

    def recovery_moved(self) -> None:
        """A peer the speaker's own restart may wait for came, went or told everything."""

    def touch(self, peer: Peer) -> None:
        """Something of the peer waits: output, work or another deadline."""
