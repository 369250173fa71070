"""BFD in virtual time: sessions over a wire that loses and dies, and any octets as packets."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.bird.bfd import SIZE, BfdPacket, BfdPacketError, BfdSession, BfdState, Diagnostic
from agents.bird.config import BfdOptions

FAST = BfdOptions(min_tx_s=0.1, min_rx_s=0.1, idle_tx_s=1.0, multiplier=3)
U32 = st.integers(0, 2**32 - 1)
PACKETS = st.builds(
    BfdPacket,
    state=st.sampled_from(BfdState),
    my_discriminator=st.integers(1, 2**32 - 1),
    your_discriminator=st.integers(1, 2**32 - 1),
    detect_multiplier=st.integers(1, 255),
    desired_min_tx_us=U32,
    required_min_rx_us=U32,
    required_min_echo_us=U32,
    diagnostic=st.integers(0, 31),
    poll=st.booleans(),
    final=st.booleans(),
    independent=st.booleans(),
    demand=st.booleans(),
)


@dataclass
class Pair:
    """Two sessions and the wire between them; ``loses`` says whether a packet is lost."""

    ours: BfdSession
    theirs: BfdSession
    now: float = 0.0
    delay_s: float = 0.005
    cut: bool = False
    loss: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    sent: list[tuple[float, BfdSession, BfdPacket]] = field(default_factory=list)
    _wire: list[tuple[float, BfdSession, bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, a: BfdOptions = FAST, b: BfdOptions = FAST) -> Pair:
        rng = random.Random(3)
        return cls(BfdSession(1, a, rng, now=0.0), BfdSession(2, b, rng, now=0.0))

    def _collect(self) -> None:
        for sender, receiver in ((self.ours, self.theirs), (self.theirs, self.ours)):
            for data in sender.datagrams_to_send():
                self.sent.append((self.now, sender, BfdPacket.parse(data)))
                if not self.cut and self.rng.random() >= self.loss:
                    self._wire.append((self.now + self.delay_s, receiver, data))

    def run(self, seconds: float) -> None:
        deadline = self.now + seconds
        while True:
            self._collect()
            times = [at for at, _, _ in self._wire]
            times += [at for s in (self.ours, self.theirs) if (at := s.get_timer()) is not None]
            if not times or min(times) > deadline:
                self.now = deadline
                return
            self.now = max(self.now, min(times))
            arrived = [item for item in self._wire if item[0] <= self.now]
            self._wire = [item for item in self._wire if item[0] > self.now]
            for _, receiver, data in arrived:
                receiver.receive(BfdPacket.parse(data), now=self.now)
            for session in (self.ours, self.theirs):
                session.handle_timer(now=self.now)

    @property
    def up(self) -> bool:
        return self.ours.state is self.theirs.state is BfdState.UP


def test_sessions_come_up_within_a_second_and_then_speed_up() -> None:
    pair = Pair.of()
    pair.run(1.2)
    assert pair.up
    before = len(pair.sent)
    pair.run(10)
    # Each sends every 75 to 100 ms: 100 to 134 packets in ten seconds.
    assert 200 <= len(pair.sent) - before <= 268
    assert pair.ours.interval_s == pytest.approx(0.1)
    assert pair.ours.timeout_s == pytest.approx(0.3)
    polled = [packet for _, _, packet in pair.sent if packet.poll]
    answered = [packet for _, _, packet in pair.sent if packet.final]
    assert polled
    assert len(answered) >= 2


def test_a_dead_neighbour_is_noticed_within_multiplier_intervals() -> None:
    pair = Pair.of()
    pair.run(5)
    pair.cut = True
    heard = pair.now
    while not pair.ours.failed:
        pair.run(0.01)
        assert pair.now - heard < 0.35
    assert pair.ours.state is BfdState.DOWN
    assert pair.ours.diagnostic is Diagnostic.TIME_EXPIRED
    pair.cut = False
    pair.run(3)
    assert pair.up
    assert not pair.ours.failed


def test_the_slower_side_sets_the_pace() -> None:
    slow = BfdOptions(min_tx_s=0.5, min_rx_s=0.4, multiplier=5)
    pair = Pair.of(FAST, slow)
    pair.run(5)
    assert pair.up
    # We send as often as they take it, they as often as they want.
    assert pair.ours.interval_s == pytest.approx(0.4)
    assert pair.theirs.interval_s == pytest.approx(0.5)
    assert pair.ours.timeout_s == pytest.approx(5 * 0.5)
    assert pair.theirs.timeout_s == pytest.approx(3 * 0.4)


def test_one_lost_packet_may_not_end_a_session_of_multiplier_1() -> None:
    """RFC 5880 §6.8.7: at most 90 % of the interval then, else up to all of it."""
    for multiplier, most in ((1, 0.09), (3, 0.1)):
        options = BfdOptions(min_tx_s=0.1, min_rx_s=0.1, multiplier=multiplier)
        pair = Pair.of(options, options)
        pair.run(2)
        pair.sent.clear()
        pair.run(20)
        times = [at for at, sender, packet in pair.sent if sender is pair.ours]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert len(gaps) > 190
        assert 0.075 <= min(gaps) < 0.08
        assert most - 0.005 < max(gaps) <= most + 1e-9


def test_a_neighbour_that_is_switched_off_does_not_time_out() -> None:
    session = BfdSession(1, FAST, random.Random(1), now=0.0)
    session.handle_timer(now=0.0)
    session.receive(BfdPacket(BfdState.ADMIN_DOWN, 9, 1, 3, 100_000, 100_000), now=0.5)
    session.handle_timer(now=60.0)
    assert (session.state, session.since) == (BfdState.DOWN, 0.0)
    assert session.diagnostic is Diagnostic.NOTHING


def test_a_passive_side_waits_to_be_spoken_to() -> None:
    quiet = BfdOptions(min_tx_s=0.1, min_rx_s=0.1, passive=True)
    pair = Pair.of(quiet, quiet)
    pair.run(5)
    assert pair.sent == []
    pair = Pair.of(quiet, FAST)
    pair.run(3)
    assert pair.up


def test_a_neighbour_that_leaves_politely_has_not_failed() -> None:
    pair = Pair.of()
    pair.run(5)
    bye = BfdPacket(BfdState.ADMIN_DOWN, 2, 1, 3, 100_000, 100_000)
    pair.ours.receive(bye, now=pair.now)
    assert pair.ours.state is BfdState.DOWN
    assert not pair.ours.failed


def test_a_neighbour_that_forgot_us_has_failed() -> None:
    pair = Pair.of()
    pair.run(5)
    pair.ours.receive(BfdPacket(BfdState.DOWN, 7, 0, 3, 1_000_000, 100_000), now=pair.now)
    assert pair.ours.failed
    assert pair.ours.diagnostic is Diagnostic.NEIGHBOR_SIGNALED


@given(st.integers(0, 2**32), st.floats(0.0, 0.3))
def test_loss_never_keeps_a_session_down(seed: int, loss: float) -> None:
    pair = Pair.of()
    pair.rng, pair.loss = random.Random(seed), loss
    pair.run(20)
    pair.loss = 0.0
    pair.run(4)
    assert pair.up


@given(PACKETS)
def test_packets_round_trip(packet: BfdPacket) -> None:
    data = packet.emit()
    assert len(data) == SIZE
    assert BfdPacket.parse(data) == packet


@given(st.binary(max_size=64))
def test_any_octets_are_a_packet_or_refused(data: bytes) -> None:
    try:
        packet = BfdPacket.parse(data)
    except BfdPacketError:
        return
    session = BfdSession(1, FAST, random.Random(1), now=0.0)
    session.receive(packet, now=1.0)
    session.handle_timer(now=2.0)
    assert all(len(each) == SIZE for each in session.datagrams_to_send())


def test_the_octets_of_a_first_packet() -> None:
    # The first packet of a session of 100 ms and 3: Down, nobody known yet.
    data = bytes.fromhex("20400318 5a0c1f6b 00000000 000f4240 000186a0 00000000".replace(" ", ""))
    packet = BfdPacket.parse(data)
    assert packet.state is BfdState.DOWN
    assert (packet.desired_min_tx_us, packet.required_min_rx_us) == (1_000_000, 100_000)
    assert packet.emit() == data
