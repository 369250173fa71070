"""One TCP connection against the text of RFC 9293: segment in, state and segments out."""

from __future__ import annotations

import errno
import itertools

import pytest

from emulator.netstack.sock import tcp_receive
from emulator.netstack.sock.segment import NO_OPTIONS, Segment
from emulator.netstack.sock.tcp import (
    ORPHAN_RETRIES,
    TIME_WAIT_S,
    Endpoint,
    TcpConnection,
)
from emulator.netstack.sock.tcp_state import TRANSITIONS, Input, State
from emulator.wire.tcp import ACK, FIN, PSH, RST, SYN, Options

US, THEM = Endpoint(1, 1000), Endpoint(2, 2000)
ISS, IRS = 1000, 5000
MSS = 1000


def connection() -> TcpConnection:
    return TcpConnection(US, THEM, iss=ISS, mss=MSS)


def out(c: TcpConnection, now: float = 0.0) -> list[Segment]:
    return c.segments_to_send(now=now)


def give(c: TcpConnection, flags: int, seq: int, ack: int = 0, now: float = 0.0, **rest):
    """Deliver a segment; ``seq`` and ``ack`` count from the first byte each way."""
    rest.setdefault("window", 10_000)
    segment = Segment(
        (IRS + 1 + seq) & 0xFFFFFFFF,
        ISS + 1 + ack if flags & ACK else 0,
        flags,
        rest.pop("window"),
        rest.pop("payload", b""),
        rest.pop("options", NO_OPTIONS),
    )
    assert not rest
    c.receive_segment(segment, now=now)
    return out(c, now)


def shape(segments: list[Segment]) -> list[tuple[str, int, int, int]]:
    """(flags, seq, ack, payload length) counted from the first byte each way."""
    letters = {FIN: "F", SYN: "S", RST: "R", ACK: "A"}
    return [
        (
            "".join(letter for bit, letter in letters.items() if s.flags & bit),
            s.seq - ISS - 1,
            s.ack - IRS - 1 if s.flags & ACK else 0,
            len(s.payload),
        )
        for s in segments
    ]


SYN_OPTIONS = Options(mss=MSS)


def established(options: Options = SYN_OPTIONS, window: int = 10_000) -> TcpConnection:
    c = connection()
    c.snd.nodelay = True
    c.connect()
    out(c)
    give(c, SYN | ACK, -1, 0, options=options, window=window)
    assert c.state is State.ESTABLISHED
    return c


def in_state(state: State) -> TcpConnection:
    """A connection brought to ``state`` by the shortest way."""
    if state is State.SYN_SENT:
        c = connection()
        c.connect()
        out(c)
        return c
    if state is State.SYN_RECEIVED:
        c = connection()
        c.accept(Segment(IRS, 0, SYN, 10_000, b"", SYN_OPTIONS))
        out(c)
        return c
    c = established()
    if state is State.ESTABLISHED:
        return c
    if state in (State.CLOSE_WAIT, State.LAST_ACK):
        give(c, FIN | ACK, 0, 0)
    if state is State.CLOSE_WAIT:
        return c
    c.shutdown()
    out(c)
    if state is State.FIN_WAIT_2:
        give(c, ACK, 0, 1)
    if state in (State.CLOSING, State.TIME_WAIT):
        give(c, FIN | ACK, 0, 0)
    if state is State.TIME_WAIT:
        give(c, ACK, 1, 1)
    return c


SYNCHRONIZED = [
    State.SYN_RECEIVED,
    State.ESTABLISHED,
    State.FIN_WAIT_1,
    State.FIN_WAIT_2,
    State.CLOSE_WAIT,
    State.CLOSING,
    State.LAST_ACK,
    State.TIME_WAIT,
]


@pytest.mark.parametrize("state", [State.SYN_SENT, *SYNCHRONIZED], ids=lambda s: s.name)
def test_every_state_is_reached(state: State) -> None:
    assert in_state(state).state is state


def test_the_table_names_every_state_and_every_end() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert all(TRANSITIONS[state, Input.DELETE] is State.CLOSED for state in State)


# Each row: state, (flags, seq, ack, payload), state after, what is sent at once.
CASES = [
    # RFC 9293 section 3.5 figures 6 to 9
    ("SYN_SENT", (SYN | ACK, -1, 0, b""), "ESTABLISHED", [("A", 0, 0, 0)]),
    ("SYN_SENT", (SYN, -1, 0, b""), "SYN_RECEIVED", [("SA", -1, 0, 0)]),
    ("SYN_SENT", (ACK, 0, 300, b""), "SYN_SENT", [("R", 300, 0, 0)]),
    ("SYN_SENT", (RST | ACK, 0, 0, b""), "CLOSED", []),
    ("SYN_SENT", (RST | ACK, 0, 7, b""), "SYN_SENT", []),
    ("SYN_SENT", (RST, 0, 0, b""), "SYN_SENT", []),
    ("SYN_RECEIVED", (ACK, 0, 0, b""), "ESTABLISHED", []),
    ("SYN_RECEIVED", (SYN, -1, 0, b""), "SYN_RECEIVED", [("SA", -1, 0, 0)]),
    ("SYN_RECEIVED", (SYN | ACK, -1, 0, b""), "ESTABLISHED", []),
    ("SYN_RECEIVED", (ACK, 0, 77, b""), "SYN_RECEIVED", [("R", 77, 0, 0)]),
    ("SYN_RECEIVED", (RST, 0, 0, b""), "CLOSED", []),
    # text
    ("ESTABLISHED", (ACK, 0, 0, bytes(100)), "ESTABLISHED", []),
    ("ESTABLISHED", (ACK, 0, 0, bytes(2000)), "ESTABLISHED", [("A", 0, 2000, 0)]),
    ("ESTABLISHED", (ACK, 500, 0, bytes(100)), "ESTABLISHED", [("A", 0, 0, 0)]),
    ("ESTABLISHED", (ACK, -100, 0, bytes(100)), "ESTABLISHED", [("A", 0, 0, 0)]),
    ("ESTABLISHED", (ACK, 0, 50, b""), "ESTABLISHED", [("A", 0, 0, 0)]),
    ("ESTABLISHED", (ACK, -1, 0, b""), "ESTABLISHED", [("A", 0, 0, 0)]),
    ("ESTABLISHED", (0, 0, 0, bytes(10)), "ESTABLISHED", []),
    # FIN
    ("ESTABLISHED", (FIN | ACK, 0, 0, b""), "CLOSE_WAIT", [("A", 0, 1, 0)]),
    ("ESTABLISHED", (FIN | ACK, 0, 0, bytes(10)), "CLOSE_WAIT", [("A", 0, 11, 0)]),
    ("ESTABLISHED", (FIN | ACK, 10, 0, b""), "ESTABLISHED", [("A", 0, 0, 0)]),
    ("FIN_WAIT_1", (ACK, 0, 1, b""), "FIN_WAIT_2", []),
    ("FIN_WAIT_1", (FIN | ACK, 0, 0, b""), "CLOSING", [("A", 1, 1, 0)]),
    ("FIN_WAIT_1", (FIN | ACK, 0, 1, b""), "TIME_WAIT", [("A", 1, 1, 0)]),
    ("FIN_WAIT_1", (ACK, 0, 0, bytes(2000)), "FIN_WAIT_1", [("A", 1, 2000, 0)]),
    ("FIN_WAIT_2", (FIN | ACK, 0, 1, b""), "TIME_WAIT", [("A", 1, 1, 0)]),
    ("CLOSING", (ACK, 1, 1, b""), "TIME_WAIT", []),
    ("CLOSE_WAIT", (FIN | ACK, 0, 0, b""), "CLOSE_WAIT", [("A", 0, 1, 0)]),
    ("LAST_ACK", (ACK, 1, 1, b""), "CLOSED", []),
    ("TIME_WAIT", (FIN | ACK, 0, 1, b""), "TIME_WAIT", [("A", 1, 1, 0)]),
    # RST and SYN in synchronized states: RFC 5961 sections 3.2 and 4.2
    ("ESTABLISHED", (RST, 0, 0, b""), "CLOSED", []),
    ("ESTABLISHED", (RST, 10, 0, b""), "ESTABLISHED", [("A", 0, 0, 0)]),
    ("ESTABLISHED", (RST, -10, 0, b""), "ESTABLISHED", []),
    ("ESTABLISHED", (SYN, 0, 0, b""), "ESTABLISHED", [("A", 0, 0, 0)]),
    ("ESTABLISHED", (SYN, -1, 0, b""), "ESTABLISHED", [("A", 0, 0, 0)]),
    ("ESTABLISHED", (ACK, 0, -60_000, b""), "ESTABLISHED", [("A", 0, 0, 0)]),
    ("FIN_WAIT_1", (RST, 0, 0, b""), "CLOSED", []),
    ("FIN_WAIT_2", (RST, 0, 0, b""), "CLOSED", []),
    ("CLOSE_WAIT", (RST, 1, 0, b""), "CLOSED", []),
    ("LAST_ACK", (RST, 1, 0, b""), "CLOSED", []),
    ("TIME_WAIT", (RST, 1, 0, b""), "CLOSED", []),
]


@pytest.mark.parametrize(("state", "segment", "after", "sent"), CASES)
def test_segment_in_state_and_segments_out(state, segment, after, sent) -> None:
    c = in_state(State[state])
    flags, seq, ack, payload = segment
    answer = give(c, flags, seq, ack, payload=payload)
    assert c.state.name == after
    assert shape(answer) == sent


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (State.SYN_SENT, errno.ECONNREFUSED),
        (State.ESTABLISHED, errno.ECONNRESET),
        (State.FIN_WAIT_2, errno.ECONNRESET),
        (State.CLOSE_WAIT, errno.EPIPE),
        (State.LAST_ACK, 0),
    ],
    ids=lambda value: str(value),
)
def test_a_reset_ends_with_the_errno_of_linux(state: State, error: int) -> None:
    c = in_state(state)
    give(c, RST | ACK, c.rcv.next - IRS - 1 if state is not State.SYN_SENT else 0, 0)
    assert c.state is State.CLOSED
    assert c.error == error
    assert c.get_timer() is None


def test_the_syn_carries_mss_window_scale_and_sack() -> None:
    c = connection()
    c.connect()
    (syn,) = out(c)
    assert syn.options == Options(mss=MSS, wscale=7, sack_ok=True)
    assert syn.window == 65535


def test_options_are_only_used_if_both_ends_have_them() -> None:
    c = established(Options(mss=500))
    assert c.snd.mss == 500
    assert c.rcv.scale == 0
    assert not c.snd.sack_ok
    c = established(Options(mss=2000, wscale=9, sack_ok=True), window=100)
    assert c.snd.mss == MSS, "never more than the path takes"
    assert c.rcv.scale == 7
    assert c.snd.window == 100, "the window of a SYN is not scaled"
    give(c, ACK, 0, 0, window=100)
    assert c.snd.window == 100 << 9


def test_silly_options_do_no_harm() -> None:
    c = established(Options(mss=1, wscale=255))
    assert c.snd.mss == 48
    assert c.snd.scale == 14


def test_a_lost_syn_is_sent_again_seven_times_over_127_seconds() -> None:
    c = connection()
    c.connect()
    now, times = 0.0, []
    while c.state is State.SYN_SENT:
        times += [now for _ in out(c, now)]
        at = c.get_timer()
        assert at is not None
        now = at
        c.handle_timer(now=now)
    assert times == [0, 1, 3, 7, 15, 31, 63]
    assert now == 127
    assert c.error == errno.ETIMEDOUT


def test_data_nobody_acknowledges_backs_off_and_times_out() -> None:
    c = established()
    c.send(b"x")
    now, times = 0.0, []
    while c.state is State.ESTABLISHED:
        times += [now for segment in out(c, now) if segment.payload]
        now = c.get_timer() or now
        c.handle_timer(now=now)
    assert [round(b - a, 1) for a, b in itertools.pairwise(times)][:5] == [
        0.2,
        0.4,
        0.8,
        1.6,
        3.2,
    ]
    assert len(times) == 16  # once and tcp_retries2 times again
    assert 900 < now < 950
    assert c.error == errno.ETIMEDOUT
    c = in_state(State.ESTABLISHED)
    c.receive_icmp(3, 1, 0, ISS + 1)
    assert c.soft_error == errno.EHOSTUNREACH


def test_an_ack_of_data_sent_again_gives_no_round_trip_sample() -> None:
    c = established()
    before = c.snd.rtt.srtt
    c.send(b"x")
    out(c, 0.0)
    c.handle_timer(now=0.2)
    out(c, 0.2)
    give(c, ACK, 0, 1, now=0.3)
    assert c.snd.rtt.srtt == before
    c.send(b"y")
    out(c, 1.0)
    give(c, ACK, 0, 2, now=1.5)
    assert c.snd.rtt.srtt != before


def test_ack_is_delayed_40_ms_and_rides_on_data() -> None:
    c = established()
    assert give(c, ACK, 0, 0, payload=b"x", now=5.0) == []
    assert c.get_timer() == pytest.approx(5.04)
    c.handle_timer(now=5.04)
    assert shape(out(c, 5.04)) == [("A", 0, 1, 0)]
    give(c, ACK, 1, 0, payload=b"y", now=6.0)
    c.send(b"answer")
    assert shape(out(c, 6.0)) == [("A", 0, 2, 6)]
    assert c.get_timer() != pytest.approx(6.04)


def test_nagle_holds_a_small_segment_while_one_is_out() -> None:
    c = established()
    c.snd.nodelay = False
    c.send(b"a")
    assert shape(out(c)) == [("A", 0, 0, 1)]
    c.send(b"bc")
    assert out(c) == []
    c.send(bytes(MSS))
    assert shape(out(c)) == [("A", 1, 0, MSS)]
    assert shape(give(c, ACK, 0, 1001)) == [("A", 1001, 0, 2)]


def test_at_most_ten_segments_before_the_first_ack_and_slow_start_after() -> None:
    c = established(Options(mss=MSS, wscale=7, sack_ok=True))
    give(c, ACK, 0, 0, window=60_000)
    c.send(bytes(100_000))
    assert sum(len(s.payload) for s in out(c)) == 10 * MSS
    assert sum(len(s.payload) for s in give(c, ACK, 0, 10_000, window=60_000)) == 20 * MSS


def test_a_super_segment_says_how_to_cut_it() -> None:
    c = established()
    c.send(bytes(4500))
    (segment,) = out(c)
    assert segment.gso_size == MSS
    assert segment.flags == ACK | PSH
    c.send(bytes(10))
    assert out(c)[0].gso_size == 0


def test_a_shut_window_is_probed_for_ever_while_the_peer_answers() -> None:
    c = established()
    give(c, ACK, 0, 0, window=0)
    c.send(b"wait")
    now = 0.0
    assert out(c, now) == []
    gaps = []
    for _ in range(40):
        before, now = now, c.get_timer()
        c.handle_timer(now=now)
        assert shape(out(c, now)) == [("A", -1, 0, 0)], "an old number: the peer must answer"
        gaps.append(now - before)
        give(c, ACK, 0, 0, window=0, now=now)
    assert gaps[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert gaps[-1] == 120
    assert shape(give(c, ACK, 0, 0, window=10, now=now)) == [("A", 0, 0, 4)]


def test_a_shut_window_of_a_dead_peer_ends() -> None:
    c = established()
    give(c, ACK, 0, 0, window=0)
    c.send(b"wait")
    now = 0.0
    while c.state is State.ESTABLISHED:
        out(c, now)
        now = c.get_timer() or now
        c.handle_timer(now=now)
    assert c.error == errno.ETIMEDOUT


def test_no_crumbs_into_a_small_window_until_the_override_timer() -> None:
    c = established(window=10_000)
    give(c, ACK, 0, 0, window=300)
    c.send(bytes(5000))
    assert out(c) == [], "300 is neither a full segment nor half of the largest window"
    now = c.get_timer()
    c.handle_timer(now=now)
    assert shape(out(c, now)) == [("A", 0, 0, 300)]


def test_the_window_closes_with_unread_data_and_opens_in_one_step() -> None:
    c = established(Options(mss=MSS, wscale=7))
    limit = c.rcv.limit
    seq, answer = 0, []
    while c.rcv.queued < limit:
        size = min(50_000, limit - c.rcv.queued)
        answer = give(c, ACK, seq, 0, payload=bytes(size))
        seq += size
    assert answer[-1].window == 0
    assert shape(give(c, ACK, seq, 0, payload=b"x")) == [("A", 0, limit, 0)], "beyond the window"
    assert c.rcv.queued == limit
    c.read()
    assert out(c)[0].window << 7 == limit


def test_three_duplicates_without_sack_send_the_hole_again() -> None:
    c = established()
    c.send(bytes(6000))
    out(c)
    assert give(c, ACK, 0, 0) == []
    assert give(c, ACK, 0, 0) == []
    assert shape(give(c, ACK, 0, 0)) == [("A", 0, 0, MSS)]
    assert c.snd.cc.cwnd == 3 * MSS
    assert shape(give(c, ACK, 0, 2000)) == [("A", 2000, 0, MSS)], "a partial ACK: the next hole"
    assert give(c, ACK, 0, 6000) == []
    assert c.snd.rto_at is None


def test_sack_sends_exactly_the_holes_again() -> None:
    c = established(Options(mss=MSS, sack_ok=True))
    c.send(bytes(10_000))
    out(c)
    one = ISS + 1
    blocks = ((one + 5000, one + 10_000), (one + 1000, one + 3000))
    answer = give(c, ACK, 0, 0, options=Options(sack=blocks))
    assert shape(answer) == [("A", 0, 0, 1000), ("A", 3000, 0, 2000)]
    assert give(c, ACK, 0, 10_000) == []
    assert c.snd.recovery.name == "OPEN"


@pytest.mark.parametrize(("timeouts", "again"), [(1, 3000), (2, 1000)])
def test_a_second_timeout_takes_back_what_sack_said(timeouts: int, again: int) -> None:
    """RFC 2018 section 8: the receiver may have thrown away what it had."""
    c = established(Options(mss=MSS, sack_ok=True))
    c.send(bytes(6000))
    out(c)
    one = ISS + 1
    give(c, ACK, 0, 0, options=Options(sack=((one + 1000, one + 3000),)))
    for _ in range(timeouts):
        now = c.get_timer()
        c.handle_timer(now=now)
        assert shape(out(c, now)) == [("A", 0, 0, MSS)]
    assert shape(give(c, ACK, 0, 1000, now=now))[0][1] == again


def test_crumbs_move_the_edge_of_the_window_in_steps_worth_sending_into(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RFC 9293 section 3.8.6.2.2: against silly windows."""
    monkeypatch.setattr(tcp_receive, "RECEIVE_BUFFER", 20_000)
    c = established()
    edges = []
    for seq in range(0, 5000, 10):
        give(c, ACK | PSH, seq, 0, payload=bytes(10))
        c.read()
        # The same again is answered at once.
        (answer,) = give(c, ACK | PSH, seq, 0, payload=bytes(10))
        edges.append(answer.ack - IRS - 1 + answer.window)
    steps = {after - before for before, after in itertools.pairwise(edges)} - {0}
    assert steps
    assert min(steps) >= MSS


def test_what_arrives_early_is_told_by_sack_newest_first() -> None:
    c = established(Options(mss=MSS, sack_ok=True))
    give(c, ACK, 1000, 0, payload=bytes(500))
    (answer,) = give(c, ACK, 3000, 0, payload=bytes(500))
    one = IRS + 1
    assert answer.options.sack == ((one + 3000, one + 3500), (one + 1000, one + 1500))
    (answer,) = give(c, ACK, 0, 0, payload=bytes(3000))
    assert answer.ack == one + 3500
    assert answer.options == NO_OPTIONS
    assert len(c.read()) == 3500


def test_half_close_still_receives() -> None:
    c = established()
    c.shutdown()
    assert shape(out(c)) == [("FA", 0, 0, 0)]
    give(c, ACK, 0, 1, payload=b"late")
    assert c.read() == b"late"
    c.send(b"ignored")
    assert c.send_queue == 0


def test_time_wait_lasts_60_seconds_from_the_last_fin() -> None:
    c = in_state(State.TIME_WAIT)
    give(c, FIN | ACK, 0, 1, now=30.0)
    assert c.get_timer() == 30 + TIME_WAIT_S
    c.handle_timer(now=90.0)
    assert c.state is State.CLOSED
    assert c.error == 0


def test_closing_with_unread_data_resets() -> None:
    c = established()
    give(c, ACK, 0, 0, payload=b"unread")
    c.close(now=0.0)
    assert shape(out(c)) == [("RA", 0, 6, 0)]
    assert c.state is State.CLOSED


def test_data_for_a_closed_socket_resets() -> None:
    c = established()
    c.close(now=0.0)
    assert shape(out(c)) == [("FA", 0, 0, 0)]
    assert shape(give(c, ACK, 0, 1, payload=b"x")) == [("RA", 1, 0, 0)]


def test_an_orphan_gives_up_after_eight_retries() -> None:
    c = established()
    c.send(b"x")
    c.close(now=0.0)
    now, sent = 0.0, 0
    while c.state is not State.CLOSED:
        sent += len(out(c, now))
        now = c.get_timer() or now
        c.handle_timer(now=now)
    assert sent == 1 + ORPHAN_RETRIES


def test_an_orphan_does_not_wait_for_ever_for_the_peers_fin() -> None:
    c = established()
    c.close(now=0.0)
    out(c)
    give(c, ACK, 0, 1, now=1.0)
    assert c.state is State.FIN_WAIT_2
    assert c.get_timer() == 61.0
    c.handle_timer(now=61.0)
    assert c.state is State.CLOSED


def test_challenge_acks_are_limited() -> None:
    c = established()
    assert len(give(c, RST, 10, 0, now=1.0)) == 1
    assert give(c, RST, 10, 0, now=1.1) == []
    assert len(give(c, SYN, 0, 0, now=1.6)) == 1


@pytest.mark.parametrize(
    ("icmp", "error"),
    [
        ((3, 0), errno.ENETUNREACH),
        ((3, 1), errno.EHOSTUNREACH),
        ((3, 3), errno.ECONNREFUSED),
        ((3, 13), errno.EHOSTUNREACH),
        ((11, 0), errno.EHOSTUNREACH),
    ],
)
def test_icmp_errors_end_only_a_connection_being_made(icmp, error) -> None:
    c = in_state(State.SYN_SENT)
    c.receive_icmp(*icmp, 0, ISS + 99)
    assert c.state is State.SYN_SENT, "quotes a number that was never sent"
    c.receive_icmp(*icmp, 0, ISS)
    assert (c.state, c.error) == (State.CLOSED, error)
    c = established()
    c.receive_icmp(*icmp, 0, ISS + 1)
    assert c.state is State.ESTABLISHED


def test_a_smaller_path_mtu_cuts_what_is_out_again() -> None:
    c = established()
    c.send(bytes(2000))
    out(c)
    c.receive_icmp(3, 4, 540, ISS + 1)
    (segment,) = out(c)
    assert (segment.gso_size, len(segment.payload)) == (500, 2000)
    c.receive_icmp(3, 4, 1400, ISS + 1)
    assert c.snd.mss == 500, "never larger again"


def test_sequence_numbers_wrap() -> None:
    c = TcpConnection(US, THEM, iss=0xFFFFFFF0, mss=MSS)
    c.connect()
    out(c)
    c.receive_segment(Segment(0xFFFFFFFE, 0xFFFFFFF1, SYN | ACK, 9000, b"", SYN_OPTIONS), now=0.0)
    out(c)
    c.send(bytes(100))
    assert out(c)[0].seq == 0xFFFFFFF1
    c.receive_segment(Segment(0xFFFFFFFF, 0x55, ACK, 9000, bytes(3000)), now=0.0)
    assert c.snd.flight == 0
    assert out(c)[0].ack == 2999
