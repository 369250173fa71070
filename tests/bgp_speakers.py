"""Speakers joined by imaginary wires in virtual time, and a bare peer to play by hand."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agents.bird.config import (
    AddPaths,
    BgpConfig,
    ChannelConfig,
    GracefulRestart,
    SpeakerConfig,
    StaticConfig,
    StaticRoute,
    Timers,
)
from agents.bird.events import Dial, Event, HangUp
from agents.bird.filters import ACCEPT_ALL
from agents.bird.messages import (
    KEEPALIVE,
    MAX_EXTENDED_MESSAGE,
    OPEN,
    Framer,
    Open,
    message,
)
from agents.bird.net import Afi, Net, format_address
from agents.bird.speaker import Speaker
from emulator.addr import format_ip, parse_ip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agents.bird.capabilities import Capabilities
    from agents.bird.kernel import KernelPort

# A sender tries again so often while the wire is cut.
RETRANSMIT_S = 0.2
FAST = Timers(connect_delay_s=1.0, connect_retry_s=5.0, error_wait_min_s=5.0, error_wait_max_s=30.0)


def channel(**changes: object) -> ChannelConfig:
    """A family that lets everything in and out."""
    settings: dict[str, object] = {"export_filter": ACCEPT_ALL, **changes}
    return ChannelConfig(**settings)  # type: ignore[arg-type]


def bgp(name: str, neighbor: str, **changes: object) -> BgpConfig:
    """An iBGP protocol of AS 64512."""
    settings: dict[str, object] = {
        "peer_as": 64512,
        "local_as": 64512,
        "timers": FAST,
        "ipv4": channel(),
        **changes,
    }
    return BgpConfig(name=name, neighbor=parse_ip(neighbor), **settings)  # type: ignore[arg-type]


def speaker_config(
    router_id: str, peers: Iterable[BgpConfig] = (), routes: Iterable[str] = (), **changes: object
) -> SpeakerConfig:
    """A speaker with blackhole routes of its own."""
    static = StaticConfig(tuple(StaticRoute(Net.parse(text)) for text in routes))
    settings: dict[str, object] = {"static": (static,), **changes}
    return SpeakerConfig(parse_ip(router_id), tuple(peers), **settings)  # type: ignore[arg-type]


def calico_channel(**changes: object) -> ChannelConfig:
    """IPv4 as Calico's template has it."""
    return channel(add_paths=AddPaths.ON, **changes)


def calico_bgp(name: str, neighbor: str, **changes: object) -> BgpConfig:
    """A mesh peer as Calico's template has it."""
    return bgp(
        name,
        neighbor,
        ipv4=calico_channel(),
        graceful_restart=GracefulRestart.ON,
        **changes,
    )


@dataclass
class _End:
    speaker: str
    number: int
    other: _End | None = None
    closed: bool = False
    backlog: list[bytes | str] = field(default_factory=list)


@dataclass
class World:
    """Speakers by router id; each is its own address.  Events happen in order of time."""

    latency_s: float = 0.001
    now: float = 0.0
    speakers: dict[str, Speaker] = field(default_factory=dict)
    events: list[tuple[float, str, Event]] = field(default_factory=list)
    # Pairs whose packets are lost.
    cut: set[frozenset[str]] = field(default_factory=set)
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _serial: int = 0
    _ends: dict[tuple[str, int], _End] = field(default_factory=dict)

    def add(
        self,
        config: SpeakerConfig,
        *,
        seed: int = 0,
        kernel: KernelPort | None = None,
        recover: bool = False,
    ) -> Speaker:
        """Start a speaker."""
        name = format_ip(config.router_id)
        speaker = Speaker(
            config,
            random.Random(f"{name}/{seed}"),
            now=self.now,
            kernel=kernel,
            recover=recover,
        )
        self.speakers[name] = speaker
        self.settle(name)
        return speaker

    def _at(self, delay: float, what: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (self.now + delay, self._serial, what))

    def settle(self, name: str) -> None:
        """Do what a speaker wants."""
        speaker = self.speakers.get(name)
        if speaker is None:
            return
        while True:
            for number, data in speaker.data_to_send():
                end = self._ends.get((name, number))
                if end is not None and end.other is not None:
                    self._deliver(end.other, data, name)
            event = speaker.next_event()
            if event is None:
                break
            self.events.append((self.now, name, event))
            if isinstance(event, Dial):
                self._dial(name, event)
            elif isinstance(event, HangUp):
                self._close(name, event.connection)
        if speaker.has_work:
            self._at(0.0, lambda: self._work(name))

    def _work(self, name: str) -> None:
        speaker = self.speakers.get(name)
        if speaker is not None and speaker.has_work:
            speaker.work(now=self.now)
            self.settle(name)

    def _cut(self, a: str, b: str) -> bool:
        return frozenset((a, b)) in self.cut

    def _dial(self, name: str, dial: Dial) -> None:
        there = format_ip(dial.neighbor)
        speaker = self.speakers[name]

        def arrive() -> None:
            if self.speakers.get(name) is not speaker or self._cut(name, there):
                return
            other = self.speakers.get(there)
            number = other.accepted(parse_ip(name), now=self.now) if other is not None else None
            if number is None or other is None:
                self._at(self.latency_s, lambda: refuse("Connection refused"))
                if other is not None:
                    self.settle(there)
                return
            here, far = _End(name, dial.connection), _End(there, number)
            here.other, far.other = far, here
            self._ends[name, dial.connection] = here
            self._ends[there, number] = far
            self._at(self.latency_s, connect)
            self.settle(there)

        def refuse(reason: str) -> None:
            if self.speakers.get(name) is speaker:
                speaker.connection_lost(dial.connection, reason, now=self.now)
                self.settle(name)

        def connect() -> None:
            if self.speakers.get(name) is speaker and not self._cut(name, there):
                speaker.connected(dial.connection, now=self.now)
                self.settle(name)

        self._at(self.latency_s, arrive)

    def _deliver(self, end: _End, data: bytes | str, sender: str) -> None:
        """Bytes, or as a text the reason of an end; a cut wire holds both, as TCP does."""

        def arrive() -> None:
            if end.backlog or self._cut(sender, end.speaker):
                if not end.backlog:
                    self._at(RETRANSMIT_S, again)
                end.backlog.append(data)
            else:
                self._arrived(end, data)

        def again() -> None:
            if self._cut(sender, end.speaker):
                self._at(RETRANSMIT_S, again)
                return
            waiting, end.backlog = end.backlog, []
            for piece in waiting:
                self._arrived(end, piece)

        self._at(self.latency_s, arrive)

    def _arrived(self, end: _End, data: bytes | str) -> None:
        speaker = self.speakers.get(end.speaker)
        if speaker is None or end.closed:
            return
        if isinstance(data, bytes):
            speaker.receive_data(end.number, data, now=self.now)
        else:
            end.closed = True
            self._ends.pop((end.speaker, end.number), None)
            speaker.connection_lost(end.number, data, now=self.now)
        self.settle(end.speaker)

    def _close(self, name: str, number: int, reason: str = "") -> None:
        end = self._ends.pop((name, number), None)
        if end is None:
            return
        end.closed = True
        if end.other is not None:
            self._deliver(end.other, reason, name)

    def crash(self, name: str) -> None:
        """The process dies: its sockets are reset, nothing is said."""
        del self.speakers[name]
        for speaker, number in [key for key in self._ends if key[0] == name]:
            self._close(speaker, number, "Connection reset by peer")

    def reset(self, a: str, b: str) -> None:
        """Reset the connections between two speakers, at both ends."""
        for (name, number), end in list(self._ends.items()):
            if name == a and end.other is not None and end.other.speaker == b:
                self._close(name, number, "Connection reset by peer")
                self.speakers[name].connection_lost(
                    number, "Connection reset by peer", now=self.now
                )
                self.settle(name)

    def run(self, seconds: float, until: Callable[[], object] | None = None) -> bool:
        """Let time pass; with ``until`` stop as soon as it is true.  Returns whether it was."""
        deadline = self.now + seconds
        while True:
            if until is not None and until():
                return True
            upcoming = self._queue[0][0] if self._queue else deadline
            name = ""
            for candidate, speaker in self.speakers.items():
                at = speaker.get_timer()
                if at is not None and at < upcoming:
                    upcoming, name = at, candidate
            if upcoming >= deadline and (name or not self._queue or upcoming > deadline):
                self.now = deadline
                return until is None or bool(until())
            self.now = max(self.now, upcoming)
            if name:
                self.speakers[name].handle_timer(now=self.now)
                self.settle(name)
            else:
                _, _, what = heapq.heappop(self._queue)
                what()

    def configure(self, config: SpeakerConfig) -> None:
        """Reconfigure a speaker."""
        name = format_ip(config.router_id)
        self.speakers[name].configure(config, now=self.now)
        self.settle(name)

    def state(self, name: str, protocol: str) -> str:
        """A protocol's FSM state."""
        return str(self.speakers[name].peers[protocol].state)

    def is_up(self, *names: str) -> bool:
        """True if every protocol of these speakers is established."""
        return all(
            peer.session is not None
            for name in names
            for peer in self.speakers[name].peers.values()
        )

    def table(self, name: str, afi: Afi = Afi.IPV4) -> dict[str, list[str]]:
        """Networks with the names of the protocols that have a route, best first."""
        table = self.speakers[name].tables[afi]
        return {
            str(Net.from_key(afi, key)): [path.channel.name for path in paths]
            for key, paths in sorted(table.items())
        }

    def next_hop(self, name: str, net: str) -> str:
        """NEXT_HOP of a network's best route."""
        parsed = Net.parse(net)
        best = self.speakers[name].tables[parsed.afi].best(parsed.key)
        assert best is not None, f"{name} has no {net}"
        return format_address(best.attrs.next_hop)


class HandPeer:
    """The other end of one connection of a speaker, played by a test.

    The speaker listens; ``send`` passes whole messages, ``received`` are the (type, body) it sent.
    """

    def __init__(
        self,
        config: SpeakerConfig,
        *,
        neighbor: str = "10.0.0.9",
        now: float = 0.0,
        kernel: KernelPort | None = None,
    ) -> None:
        self.now = now
        self.speaker = Speaker(config, random.Random(1), now=now, kernel=kernel)
        self.neighbor = neighbor
        self.received: list[tuple[int, bytes]] = []
        self.closed = False
        self._framer = Framer()
        self._framer.limit = MAX_EXTENDED_MESSAGE
        self.number = -1
        self.connect()

    def connect(self) -> None:
        """Come (again) as the neighbour."""
        self.received.clear()
        self.closed = False
        self._framer = Framer()
        self._framer.limit = MAX_EXTENDED_MESSAGE
        number = self.speaker.accepted(parse_ip(self.neighbor), now=self.now)
        assert number is not None, "the speaker refused the connection"
        self.number = number
        self.pump()

    def pump(self) -> None:
        """Let the speaker finish everything it can."""
        for _ in range(100):
            for number, data in self.speaker.data_to_send():
                if number == self.number:
                    self._framer.feed(data)
            while messages := self._framer.take():
                self.received += messages
            while (event := self.speaker.next_event()) is not None:
                if isinstance(event, HangUp) and event.connection == self.number:
                    self.closed = True
            if not self.speaker.has_work:
                return
            self.speaker.work(now=self.now)
        raise AssertionError("the speaker never comes to rest")

    def send_bytes(self, data: bytes) -> None:
        """Raw bytes."""
        self.speaker.receive_data(self.number, data, now=self.now)
        self.pump()

    def send(self, kind: int, body: bytes = b"") -> None:
        """One message."""
        self.send_bytes(message(kind, body))

    def lose(self, reason: str = "") -> None:
        """The connection breaks."""
        self.speaker.connection_lost(self.number, reason, now=self.now)
        self.pump()

    def pass_time(self, seconds: float) -> None:
        """Let the speaker's timers expire in order."""
        deadline = self.now + seconds
        while (at := self.speaker.get_timer()) is not None and at <= deadline:
            self.now = max(self.now, at)
            self.speaker.handle_timer(now=self.now)
            self.pump()
        self.now = deadline

    def establish(
        self,
        capabilities: Capabilities,
        *,
        asn: int = 64512,
        router_id: str = "10.0.0.9",
        hold_s: int = 240,
    ) -> None:
        """Bring the session up."""
        self.send(OPEN, Open(asn, hold_s, parse_ip(router_id), capabilities).body())
        self.send(KEEPALIVE)

    def bodies(self, kind: int) -> list[bytes]:
        """What the speaker sent of one type, oldest first."""
        return [body for have, body in self.received if have == kind]

    def nets(self) -> list[str]:
        """The networks in the speaker's IPv4 table."""
        return [str(Net.from_key(Afi.IPV4, key)) for key in self.speaker.tables[Afi.IPV4].routes]
