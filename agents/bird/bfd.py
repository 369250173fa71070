"""BFD: packets and sessions, sans IO (RFC 5880; RFC 5881 and 5883 say where packets go).

Theory of operation.  A session is a neighbour that is watched.  Both ends send control packets at
the interval the slower of sender and receiver asks for, less up to a quarter of it.  Whoever hears
nothing for the neighbour's multiplier times the interval takes it for dead.  ``TRANSITIONS`` is the
table of §6.8.6: (own state, received state) -> new state.  Until a session is up packets go once a
second (§6.8.3); a changed interval is announced with the Poll bit and counts once the Final bit
came back.  Asynchronous mode only, no echo, no authentication, as in BIRD.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.errors import PeerError

if TYPE_CHECKING:
    import random

    from agents.bird.config import BfdOptions

SINGLE_HOP_PORT: Final = 3784
MULTIHOP_PORT: Final = 4784
VERSION: Final = 1
SIZE: Final = 24
_FORMAT: Final = struct.Struct(">BBBBIIIII")
# Until a neighbour says otherwise it takes a packet each microsecond (§6.8.1).
_FIRST_REMOTE_MIN_RX_US: Final = 1
_MICRO: Final = 1_000_000
# What §6.8.7 takes off an interval: 0 to 25 %, 10 to 25 % where one lost packet is a failure.
_JITTER: Final = 0.25
_LEAST_JITTER: Final = 0.10


class BfdState(enum.IntEnum):
    """§4.1, Sta."""

    ADMIN_DOWN = 0
    DOWN = 1
    INIT = 2
    UP = 3

    @property
    def text(self) -> str:
        """As ``show bfd sessions`` has it."""
        return ("AdminDown", "Down", "Init", "Up")[self]


class Diagnostic(enum.IntEnum):
    """§4.1, why the session went down."""

    NOTHING = 0
    TIME_EXPIRED = 1
    ECHO_FAILED = 2
    NEIGHBOR_SIGNALED = 3
    FORWARDING_RESET = 4
    PATH_DOWN = 5
    CONCATENATED_DOWN = 6
    ADMIN_DOWN = 7


class BfdPacketError(PeerError):
    """Not a control packet that may be received (§6.8.6): it is dropped."""


class BfdPacket(NamedTuple):
    """A control packet without authentication; intervals are microseconds."""

    state: BfdState
    my_discriminator: int
    your_discriminator: int
    detect_multiplier: int
    desired_min_tx_us: int
    required_min_rx_us: int
    required_min_echo_us: int = 0
    diagnostic: int = 0
    poll: bool = False
    final: bool = False
    independent: bool = False
    demand: bool = False

    @classmethod
    def parse(cls, data: bytes) -> BfdPacket:
        """Check and read a packet; BfdPacketError says what is wrong with it."""
        if len(data) < SIZE:
            raise BfdPacketError(f"{len(data)} octets are no BFD control packet")
        first, flags, multiplier, length, mine, yours, tx, rx, echo = _FORMAT.unpack_from(data)
        if first >> 5 != VERSION:
            raise BfdPacketError(f"BFD version {first >> 5}")
        if not SIZE <= length <= len(data):
            raise BfdPacketError(f"length {length} in a packet of {len(data)} octets")
        if flags & 0x04:
            raise BfdPacketError("authentication is not in use")
        if flags & 0x01:
            raise BfdPacketError("the multipoint bit is set")
        if not multiplier:
            raise BfdPacketError("detect multiplier 0")
        if not mine:
            raise BfdPacketError("discriminator 0")
        state = BfdState(flags >> 6)
        if not yours and state not in (BfdState.DOWN, BfdState.ADMIN_DOWN):
            raise BfdPacketError(f"state {state.text} without our discriminator")
        return cls(
            state,
            mine,
            yours,
            multiplier,
            tx,
            rx,
            echo,
            first & 0x1F,
            bool(flags & 0x20),
            bool(flags & 0x10),
            bool(flags & 0x08),
            bool(flags & 0x02),
        )

    def emit(self) -> bytes:
        """The 24 octets."""
        flags = self.state << 6 | self.poll << 5 | self.final << 4
        flags |= self.independent << 3 | self.demand << 1
        return _FORMAT.pack(
            VERSION << 5 | self.diagnostic,
            flags,
            self.detect_multiplier,
            SIZE,
            self.my_discriminator,
            self.your_discriminator,
            self.desired_min_tx_us,
            self.required_min_rx_us,
            self.required_min_echo_us,
        )


_D, _I, _U, _A = BfdState.DOWN, BfdState.INIT, BfdState.UP, BfdState.ADMIN_DOWN
# §6.8.6; a pair that is not here changes nothing.
TRANSITIONS: Final = {
    (_D, _D): _I,
    (_D, _I): _U,
    (_I, _A): _D,
    (_I, _I): _U,
    (_I, _U): _U,
    (_U, _A): _D,
    (_U, _D): _D,
}


class BfdSession:
    """One watched neighbour; times are seconds of the caller's clock."""

    def __init__(
        self, discriminator: int, options: BfdOptions, rng: random.Random, *, now: float
    ) -> None:
        """``discriminator`` is ours, not 0 and of no other session."""
        self.discriminator = discriminator
        self.options = options
        self.state = BfdState.DOWN
        self.since = now
        self.diagnostic = Diagnostic.NOTHING
        self.remote_state = BfdState.DOWN
        self.remote_discriminator = 0
        self.remote_multiplier = 0
        # True once the neighbour was up and is dead; False if it said itself that it leaves.
        self.failed = False
        self._rng = rng
        self._remote_min_tx_us = 0
        self._remote_min_rx_us = _FIRST_REMOTE_MIN_RX_US
        self._remote_demand = False
        self._desired_us = self._idle_us
        # True from a changed interval on until the neighbour answered that it knows (§6.5).
        self._polling = False
        self._sent_at: float | None = None
        self._next_at: float | None = None if options.passive else now
        self._expires_at: float | None = None
        self._out: list[bytes] = []

    @property
    def _idle_us(self) -> int:
        return round(max(self.options.min_tx_s, self.options.idle_tx_s) * _MICRO)

    @property
    def _required_us(self) -> int:
        return round(self.options.min_rx_s * _MICRO)

    @property
    def interval_s(self) -> float:
        """Between packets we send, before jitter; 0 before the first."""
        if self._sent_at is None:
            return 0.0
        return max(self._desired_us, self._remote_min_rx_us) / _MICRO

    @property
    def timeout_s(self) -> float:
        """Without a packet for so long the neighbour is dead."""
        return max(self._required_us, self._remote_min_tx_us) * self.remote_multiplier / _MICRO

    def receive(self, packet: BfdPacket, *, now: float) -> None:
        """A packet of the neighbour, checked by ``BfdPacket.parse``."""
        self.remote_discriminator = packet.my_discriminator
        self.remote_state = packet.state
        self.remote_multiplier = packet.detect_multiplier
        self._remote_min_tx_us = packet.desired_min_tx_us
        before = self._remote_min_rx_us
        self._remote_min_rx_us = packet.required_min_rx_us
        self._remote_demand = packet.demand
        if packet.final:
            self._polling = False
        new = TRANSITIONS.get((self.state, packet.state))
        if new is not None:
            down = new is BfdState.DOWN
            self._change(new, Diagnostic.NEIGHBOR_SIGNALED if down else Diagnostic.NOTHING, now)
            self.failed = down and packet.state is not BfdState.ADMIN_DOWN and self.failed
        self._expires_at = now + self.timeout_s if self.state is not BfdState.DOWN else None
        if packet.poll:
            self._send(now, final=True)
        elif self._next_at is None or self._remote_min_rx_us != before:
            self._schedule(now)

    def _change(self, new: BfdState, diagnostic: Diagnostic, now: float) -> None:
        """The only writer of ``state``."""
        self.failed = self.state is BfdState.UP and new is BfdState.DOWN
        self.state = new
        self.since = now
        if new is BfdState.DOWN or self.diagnostic is not Diagnostic.NOTHING:
            self.diagnostic = diagnostic
        wanted = self._idle_us
        if new is BfdState.UP:
            wanted = round(self.options.min_tx_s * _MICRO)
        if wanted != self._desired_us:
            # The shorter interval of a session that is up counts at once, the longer one of one
            # that is down too; only a longer one under a session that stays up would have to wait.
            self._polling = new is BfdState.UP
            self._desired_us = wanted
        if new is BfdState.DOWN:
            self._expires_at = None
            self.remote_discriminator = 0
        # The neighbour waits for this news.
        self._send(now)

    def _schedule(self, now: float) -> None:
        """Set the next packet's time from the last one's."""
        if not self._remote_min_rx_us or (
            self._remote_demand and self.state is self.remote_state is BfdState.UP
        ):
            self._next_at = None
            return
        interval = max(self._desired_us, self._remote_min_rx_us) / _MICRO
        least = _LEAST_JITTER if self.options.multiplier == 1 else 0.0
        interval *= 1.0 - least - (_JITTER - least) * self._rng.random()
        last = self._sent_at if self._sent_at is not None else now
        self._next_at = max(now, last + interval)

    def _send(self, now: float, *, final: bool = False) -> None:
        packet = BfdPacket(
            self.state,
            self.discriminator,
            self.remote_discriminator,
            self.options.multiplier,
            self._desired_us,
            self._required_us,
            diagnostic=self.diagnostic,
            poll=self._polling and not final,
            final=final,
        )
        self._out.append(packet.emit())
        self._sent_at = now
        self._schedule(now)

    def get_timer(self) -> float | None:
        """When ``handle_timer`` is due."""
        if self._next_at is None or self._expires_at is None:
            return self._expires_at if self._next_at is None else self._next_at
        return min(self._next_at, self._expires_at)

    def handle_timer(self, *, now: float) -> None:
        """Send what is due; find the neighbour dead."""
        if self._expires_at is not None and now >= self._expires_at:
            self._change(BfdState.DOWN, Diagnostic.TIME_EXPIRED, now)
        if self._next_at is not None and now >= self._next_at:
            self._send(now)

    def datagrams_to_send(self) -> list[bytes]:
        """Packets for the neighbour."""
        out, self._out = self._out, []
        return out
