"""What a speaker tells its shell and whoever watches it.

The shell acts on ``Dial``, ``HangUp``, ``Listen`` and the BFD requests; the rest is for logs, BMP
and MRT.  ``connection`` numbers TCP connections: the speaker gives them out, never twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from agents.bird.config import BfdOptions
    from agents.bird.fsm import State


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a TCP connection; answer with ``connected`` or ``connection_lost``.

    ``ttl`` is what packets leave with, ``min_ttl`` (0 none) what they must arrive with (RFC 5082).
    """

    connection: int
    neighbor: int
    port: int | None
    source_address: int
    ttl: int
    min_ttl: int
    password: str


@dataclass(frozen=True, slots=True)
class HangUp:
    """Send what ``data_to_send`` still has for this connection, then close it."""

    connection: int


@dataclass(frozen=True, slots=True)
class PeerListChanged:
    """Protocols came or went: passwords of the listening socket may need to change."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """One connection's FSM moved."""

    peer: str
    connection: int
    outgoing: bool
    old: State
    new: State


@dataclass(frozen=True, slots=True)
class SessionUp:
    """A session is established."""

    peer: str
    connection: int


@dataclass(frozen=True, slots=True)
class SessionDown:
    """An established session ended.

    ``notification`` is the body of the NOTIFICATION that was sent or received, b"" if none was;
    ``received`` says which.  ``graceful`` means the peer's routes are kept for its restart.
    """

    peer: str
    connection: int
    reason: str
    notification: bytes
    received: bool
    graceful: bool


@dataclass(frozen=True, slots=True)
class ProtocolLogged:
    """A line for the log, as BIRD writes them: the protocol's name and the text."""

    protocol: str
    text: str


@dataclass(frozen=True, slots=True)
class Traced:
    """A line somebody asked for with ``debug``."""

    text: str


@dataclass(frozen=True, slots=True)
class BfdWanted:
    """A session wants its neighbour watched; answer with ``Speaker.bfd_down``."""

    peer: str
    neighbor: int
    source_address: int
    multihop: bool
    options: BfdOptions


@dataclass(frozen=True, slots=True)
class BfdUnwanted:
    """The session no longer needs it."""

    peer: str
    neighbor: int


Event = (
    Dial
    | HangUp
    | PeerListChanged
    | StateChanged
    | SessionUp
    | SessionDown
    | ProtocolLogged
    | Traced
    | BfdWanted
    | BfdUnwanted
)


class MessageTap(Protocol):
    """Somebody who sees every message: MRT's BGP4MP, BMP's route monitoring, ``debug packets``."""

    def message(
        self, peer: str, connection: int, kind: int, body: bytes, *, received: bool, now: float
    ) -> None:
        """One whole message; ``kind`` is its type, ``body`` without the header."""
