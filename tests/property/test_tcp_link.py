"""Two TCP cores joined by a link that loses, repeats, reorders and delays, in virtual time."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.netstack.sock.segment import Segment
from emulator.netstack.sock.tcp import Endpoint, TcpConnection
from emulator.netstack.sock.tcp_state import State
from emulator.wire.tcp import ACK, RST, SYN

A, B = Endpoint(0x0A020101, 40000), Endpoint(0x0A020202, 80)


def cut(segment: Segment) -> list[Segment]:
    """Cut a super-segment as the edge of a host does: FIN and PSH only on the last piece."""
    size = segment.gso_size
    if not size:
        return [segment]
    pieces = []
    for start in range(0, len(segment.payload), size):
        last = start + size >= len(segment.payload)
        pieces.append(
            segment._replace(
                seq=(segment.seq + start) & 0xFFFFFFFF,
                payload=segment.payload[start : start + size],
                flags=segment.flags if last else segment.flags & ~0x09,
                gso_size=0,
            )
        )
    return pieces


@dataclass
class Link:
    """Faults, each a probability; delay in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.005
    cut: bool = True


@dataclass
class World:
    """A client and a server connection, what each has written to it, what each has read."""

    link: Link
    seed: int = 0
    mss: int = 1410
    sack: bool = True
    now: float = 0.0
    read: dict[str, bytearray] = field(default_factory=lambda: {"a": bytearray(), "b": bytearray()})
    sent: list[tuple[float, str, Segment]] = field(default_factory=list)
    reading: dict[str, bool] = field(default_factory=lambda: {"a": True, "b": True})

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        iss_a, iss_b = self.rng.getrandbits(32), 0xFFFFFF00  # the second wraps at once
        self.a = TcpConnection(A, B, iss=iss_a, mss=self.mss)
        self.b = TcpConnection(B, A, iss=iss_b, mss=self.mss)
        self.wire: list[tuple[float, int, str, Segment]] = []
        self.count = 0
        self.a.connect()

    def carry(self, to: str, segment: Segment) -> None:
        if not self.sack and segment.flags & SYN:
            segment = segment._replace(options=segment.options._replace(sack_ok=False))
        for piece in cut(segment) if self.link.cut else [segment]:
            rng = self.rng
            if rng.random() < self.link.loss:
                continue
            for _ in range(2 if rng.random() < self.link.duplicate else 1):
                delay = self.link.delay
                if rng.random() < self.link.reorder:
                    delay += rng.random() * 3 * self.link.delay
                self.count += 1
                heapq.heappush(self.wire, (self.now + delay, self.count, to, piece))

    def flush(self) -> None:
        for name, connection, to in (("a", self.a, "b"), ("b", self.b, "a")):
            for segment in connection.segments_to_send(now=self.now):
                self.sent.append((self.now, name, segment))
                self.carry(to, segment)
            if self.reading[name]:
                self.read[name] += connection.read()
            for segment in connection.segments_to_send(now=self.now):
                self.sent.append((self.now, name, segment))
                self.carry(to, segment)

    def step(self) -> bool:
        """Move to the next instant something happens; False when nothing ever will."""
        self.flush()
        times = [c.get_timer() for c in (self.a, self.b)]
        times += [self.wire[0][0]] if self.wire else []
        due = [at for at in times if at is not None]
        if not due:
            return False
        self.now = max(self.now, min(due))
        while self.wire and self.wire[0][0] <= self.now:
            _, _, to, segment = heapq.heappop(self.wire)
            target = self.a if to == "a" else self.b
            if to == "b" and self.b.state is State.CLOSED and segment.flags == SYN:
                self.b.accept(segment)
            elif target.state is State.CLOSED and segment.flags & ACK:
                reset = Segment(segment.ack, 0, RST, 0)  # as the socket table answers
                self.carry("b" if to == "a" else "a", reset)
            else:
                target.receive_segment(segment, now=self.now)
        for connection in (self.a, self.b):
            at = connection.get_timer()
            if at is not None and at <= self.now:
                connection.handle_timer(now=self.now)
        self.flush()
        return True

    def until(self, condition, limit: float = 3000.0) -> None:
        while not condition():
            assert self.step(), f"nothing will ever happen: {self.a} {self.b}"
            assert self.now < limit, f"not within {limit} s: {self.a} {self.b}"

    def connected(self) -> bool:
        return self.a.state is State.ESTABLISHED and self.b.state is State.ESTABLISHED


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.01, 0.1, 0.25]),
    duplicate=st.sampled_from([0.0, 0.1]),
    reorder=st.sampled_from([0.0, 0.2]),
    sizes=st.tuples(st.integers(0, 200_000), st.integers(0, 50_000)),
    sack=st.booleans(),
    nodelay=st.booleans(),
    mss=st.sampled_from([100, 1410, 8000]),
)
def test_every_byte_arrives_in_order_and_both_ends_close(
    seed, loss, duplicate, reorder, sizes, sack, nodelay, mss
) -> None:
    world = World(Link(loss, duplicate, reorder), seed, mss, sack)
    data_a, data_b = random.Random(seed).randbytes(sizes[0]), random.Random(1).randbytes(sizes[1])
    world.a.snd.nodelay = world.b.snd.nodelay = nodelay
    world.until(world.connected)
    world.a.send(data_a)
    world.a.shutdown()
    world.b.send(data_b)
    world.until(lambda: len(world.read["b"]) == len(data_a) and world.b.eof)
    world.b.shutdown()
    world.until(lambda: len(world.read["a"]) == len(data_b) and world.a.eof)
    world.until(lambda: world.a.state is State.CLOSED and world.b.state is State.CLOSED)
    assert bytes(world.read["b"]) == data_a
    assert bytes(world.read["a"]) == data_b
    assert world.a.error == 0
    assert world.b.error == 0
    assert world.a.get_timer() is None
    assert world.b.get_timer() is None
    assert not world.a.snd.buffer
    assert not world.b.snd.buffer


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.2]), cut=st.booleans())
def test_a_reader_that_pauses_stops_the_writer_and_loses_nothing(seed, loss, cut) -> None:
    world = World(Link(loss, cut=cut), seed)
    data = random.Random(seed).randbytes(1_500_000)
    world.until(world.connected)
    world.reading["b"] = False
    world.a.send(data)
    world.until(lambda: world.now > 60)
    assert world.b.rcv.queued <= world.b.rcv.limit
    assert world.a.state is State.ESTABLISHED
    world.reading["b"] = True
    world.read["b"] += world.b.read()
    world.until(lambda: len(world.read["b"]) == len(data))
    assert bytes(world.read["b"]) == data


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    state=st.sampled_from(["SYN_SENT", "ESTABLISHED", "FIN_WAIT_1", "CLOSE_WAIT"]),
    forged=st.lists(
        st.tuples(
            st.integers(-70_000, 70_000),
            st.integers(-70_000, 70_000),
            st.integers(0, 63),
            st.integers(0, 65535),
            st.binary(max_size=50),
        ),
        max_size=20,
    ),
)
def test_no_forged_segment_ever_raises_or_breaks_the_machine(seed, state, forged) -> None:
    world = World(Link(), seed)
    if state != "SYN_SENT":
        world.until(world.connected)
        world.a.send(b"x" * 3000)
    if state == "FIN_WAIT_1":
        world.a.shutdown()
    if state == "CLOSE_WAIT":
        world.b.shutdown()
        world.until(lambda: world.a.state is State.CLOSE_WAIT)
    for seq, ack, flags, window, payload in forged:
        segment = Segment(
            (world.a.rcv.next + seq) & 0xFFFFFFFF,
            (world.a.snd.una + ack) & 0xFFFFFFFF,
            flags,
            window,
            payload,
        )
        world.a.receive_segment(segment, now=world.now)
        world.a.segments_to_send(now=world.now)
        snd = world.a.snd
        assert world.a.state is State.CLOSED or snd.una <= snd.nxt <= snd.last
        world.a.read()
