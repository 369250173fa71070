"""One TCP connection (RFC 9293), without I/O: segments and timers in, segments out.

Theory of operation.  ``receive_segment`` follows RFC 9293 section 3.10.7 step by step: sequence
check, RST, SYN, ACK, text, FIN.  It never sends: it leaves marks (an ACK is owed, a SYN is due,
data waits) and ``segments_to_send`` turns the marks into segments, so a burst of input costs one
answer and no output ever runs inside input.  Sequence numbers are unwrapped into Python integers
on entry and cut to 32 bits on exit.

Further: RFC 5961 (challenge ACKs), RFC 7323 (window scale), RFC 2018/6675 (SACK), RFC 5681/6582
(congestion), RFC 6298 (retransmission timer), RFC 1191 (PMTU), RFC 5927 (ICMP).  Not spoken:
timestamps, urgent data, Fast Open, ECN.

One long file: everything that may change the state of a connection is here, nothing else does.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.netstack.sock.segment import NO_OPTIONS, SEQ_MASK, Segment
from emulator.netstack.sock.tcp_receive import Receiver
from emulator.netstack.sock.tcp_send import Sender
from emulator.netstack.sock.tcp_state import RECEIVING, SENDING, TRANSITIONS, Input, State
from emulator.wire.tcp import ACK, FIN, PSH, RST, SYN, Options

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_MSS: Final = 536  # RFC 9293 section 3.7.1: when the peer names none
MIN_MSS: Final = 48  # TCP_MIN_SND_MSS: a peer cannot make us send crumbs
WINDOW_SCALE: Final = 7  # what Linux offers with its default tcp_rmem
DELAYED_ACK_S: Final = 0.04  # TCP_DELACK_MIN
SYN_RETRIES: Final = 6  # net.ipv4.tcp_syn_retries: 127 s in all
SYNACK_RETRIES: Final = 5  # net.ipv4.tcp_synack_retries
RETRIES_2: Final = 15  # net.ipv4.tcp_retries2: about 15 minutes
ORPHAN_RETRIES: Final = 8  # net.ipv4.tcp_orphan_retries 0 means 8
FIN_TIMEOUT_S: Final = 60.0  # net.ipv4.tcp_fin_timeout
TIME_WAIT_S: Final = 60.0  # TCP_TIMEWAIT_LEN
CHALLENGE_INTERVAL_S: Final = 0.5  # net.ipv4.tcp_invalid_ratelimit

# icmp_err_convert of Linux: (errno, fatal for an established connection's socket if it asks).
ICMP_UNREACHABLE_ERRNO: Final[dict[int, int]] = {
    0: errno.ENETUNREACH,
    1: errno.EHOSTUNREACH,
    2: errno.ENOPROTOOPT,
    3: errno.ECONNREFUSED,
    4: errno.EMSGSIZE,
    5: errno.EOPNOTSUPP,
    6: errno.ENETUNREACH,
    7: errno.EHOSTDOWN,
    8: errno.ENONET,
    9: errno.ENETUNREACH,
    10: errno.EHOSTUNREACH,
    11: errno.ENETUNREACH,
    12: errno.EHOSTUNREACH,
    13: errno.EHOSTUNREACH,
    14: errno.EHOSTUNREACH,
    15: errno.EHOSTUNREACH,
}


def icmp_errno(icmp_type: int, code: int) -> int:
    """The errno Linux gives for an ICMP error; 0 for types that are none."""
    if icmp_type == 3:
        return ICMP_UNREACHABLE_ERRNO.get(code, errno.EHOSTUNREACH)
    if icmp_type == 11:
        return errno.EHOSTUNREACH
    if icmp_type == 12:
        return errno.EPROTO
    return 0


class Endpoint(NamedTuple):
    """An address and a port."""

    ip: int
    port: int


class TcpInfo(NamedTuple):
    """What ``ss`` shows of one TCP socket; a listener's queues are its accept queue and backlog."""

    state: State
    receive_queue: int
    send_queue: int
    local: Endpoint
    remote: Endpoint
    cwnd: int
    rtt_s: float
    retransmits: int


def _nothing() -> None:
    """The default of ``TcpConnection.notify``."""


def _nowhere(_: TcpConnection) -> None:
    """The default of ``TcpConnection.schedule``."""


class TcpConnection:
    """A connection from SYN to the end of TIME_WAIT.

    ``notify`` is called when something an application waits for may have changed (connected,
    readable, room to write if ``wants_room``, ended); ``schedule`` when there is something to send.
    ``error`` is the errno that ended it, 0 for an orderly end.
    """

    __slots__ = (
        "_ack_now",
        "_acks_owed",
        "_challenge_at",
        "_delack_at",
        "_iss",
        "_linger_at",
        "_probes",
        "_replies",
        "_retries",
        "_syn_due",
        "_wants_probe",
        "error",
        "local",
        "mss",
        "notify",
        "orphan",
        "queued_for_output",
        "rcv",
        "remote",
        "schedule",
        "snd",
        "soft_error",
        "state",
        "timer_at",
        "wants_room",
    )

    def __init__(self, local: Endpoint, remote: Endpoint, *, iss: int, mss: int) -> None:
        """``mss`` is what the path allows (its MTU less 40), ``iss`` our first number."""
        self.local = local
        self.remote = remote
        self.mss = mss
        self.state = State.CLOSED
        self.error = 0
        self.soft_error = 0
        self.orphan = False
        self.wants_room = False
        self.notify: Callable[[], None] = _nothing
        self.schedule: Callable[[TcpConnection], None] = _nowhere
        self.queued_for_output = False  # the socket table's: already in its output queue
        self.timer_at: float | None = None  # the socket table's: when its heap looks at us next
        self.snd = Sender(iss, min(mss, DEFAULT_MSS))
        self.rcv = Receiver(0, mss)
        self._iss = iss
        self._syn_due = False
        self._ack_now = False
        self._acks_owed = 0
        self._delack_at: float | None = None
        self._linger_at: float | None = None
        self._challenge_at = -CHALLENGE_INTERVAL_S
        self._retries = 0
        self._probes = 0
        self._wants_probe = False
        self._replies: list[Segment] = []

    def __repr__(self) -> str:
        return f"<TcpConnection {self.state.name} {self.local} -> {self.remote}>"

    def _transition(self, event: Input) -> None:
        self.state = TRANSITIONS[self.state, event]

    # -- the application's side ----------------------------------------------------------------

    def connect(self) -> None:
        """Active OPEN."""
        self._transition(Input.OPEN)
        self._syn_due = True
        self.schedule(self)

    def accept(self, syn: Segment) -> None:
        """Passive OPEN: become the child of a listener for this SYN."""
        self._take_syn(syn)
        self._transition(Input.SYN)
        self._syn_due = True
        self.schedule(self)

    @property
    def connected(self) -> bool:
        """True once established and until it has ended."""
        return self.state not in (State.CLOSED, State.SYN_SENT, State.SYN_RECEIVED)

    @property
    def send_queue(self) -> int:
        """Bytes written and not acknowledged."""
        return len(self.snd.buffer)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Append to the stream; the caller bounds ``send_queue``.  Ignored once ended."""
        if self.state is State.CLOSED or self.snd.fin_queued:
            return
        self.snd.buffer += data
        if self.state in SENDING:
            self.schedule(self)

    def read(self) -> bytes:
        """Return and free all that arrived in order, b"" if nothing; see ``eof``.

        What arrived before an error can still be read after it, as in Linux.
        """
        data = self.rcv.read()
        if data and self.state in RECEIVING and self.rcv.window_worth_telling():
            self._ack_now = True
            self.schedule(self)
        return data

    @property
    def eof(self) -> bool:
        """The peer has sent FIN and everything before it was read."""
        return self.rcv.eof and not self.rcv.queued

    def shutdown(self) -> None:
        """Send FIN after what is queued; receiving goes on (half-close).

        In SYN_RECEIVED it is queued until the connection is established.
        """
        state = self.state
        if self.snd.fin_queued or state not in (
            State.SYN_RECEIVED,
            State.ESTABLISHED,
            State.CLOSE_WAIT,
        ):
            return
        self.snd.fin_queued = True
        if state is not State.SYN_RECEIVED:
            self._transition(Input.CLOSE)
            self.schedule(self)

    def close(self, *, now: float) -> None:
        """The application lets go.  Unread data means RST (RFC 2525 section 2.17), else FIN."""
        if self.orphan:
            return
        self.orphan = True
        self.notify = _nothing
        if self.state is State.SYN_SENT:
            self._end(0)
        elif self.rcv.queued and self.state is not State.CLOSED:
            self.abort()
        else:
            self.shutdown()
            if self.state is State.FIN_WAIT_2:
                self._linger_at = now + FIN_TIMEOUT_S
                self.schedule(self)

    def abort(self, error: int = 0) -> None:
        """End at once; the peer is told by RST if it knows of us (RFC 9293 section 3.10.5)."""
        if self.state is State.CLOSED:
            return
        if self.state not in (State.SYN_SENT, State.TIME_WAIT):
            self._reply(self.snd.nxt, RST | ACK)
        self._end(error)
        self.schedule(self)

    # -- what arrives --------------------------------------------------------------------------

    def receive_segment(self, segment: Segment, *, now: float) -> None:
        """Take one segment (or super-segment) addressed to this connection."""
        state = self.state
        if state is State.CLOSED:
            return
        if state is State.SYN_SENT:
            self._receive_in_syn_sent(segment, now)
            return
        rcv = self.rcv
        payload = segment.payload
        flags = segment.flags
        seq = rcv.next + ((segment.seq - rcv.next + 0x80000000) & SEQ_MASK) - 0x80000000
        if state is State.SYN_RECEIVED and flags & SYN and seq == rcv.next - 1:
            if not flags & ACK:
                self._syn_due = True  # our SYN,ACK was lost
                return
            seq += 1  # the other half of a simultaneous open
            flags &= ~SYN
        end = seq + len(payload)
        self._probes = 0

        # First, check the sequence number (with Linux's bounds: tcp_sequence()).
        if end < rcv.acked or seq > max(rcv.advertised, rcv.next):
            if flags & RST:
                return
            if state is State.TIME_WAIT and flags & FIN:
                self._linger_at = now + TIME_WAIT_S
            if payload or flags & (FIN | SYN):
                self._owe_ack()
            else:
                self._challenge(now)
            return
        # Second, check RST (RFC 5961 section 3.2: only the exact number resets).
        if flags & RST:
            if seq == rcv.next:
                self._receive_reset()
            else:
                self._challenge(now)
            return
        # Fourth, check SYN (RFC 5961 section 4.2).
        if flags & SYN:
            self._challenge(now)
            return
        # Fifth, check ACK.
        if not flags & ACK or not self._receive_ack(segment, seq, flags, now):
            return
        # Seventh and eighth, process text and FIN.
        if payload or flags & FIN:
            self._receive_text(seq, payload, flags, now)

    def _take_syn(self, syn: Segment) -> None:
        """Learn the peer's sequence number and options."""
        options = syn.options
        snd = self.snd
        self.rcv = Receiver(syn.seq + 1, self.mss)
        snd.set_mss(max(MIN_MSS, min(self.mss, options.mss or DEFAULT_MSS)))
        if options.wscale is not None:
            self.rcv.scale = WINDOW_SCALE
        snd.scale = min(options.wscale or 0, 14)  # RFC 7323 section 2.3
        snd.sack_ok = options.sack_ok

    def _receive_in_syn_sent(self, segment: Segment, now: float) -> None:
        flags = segment.flags
        snd = self.snd
        ack_ok = bool(flags & ACK) and segment.ack == snd.nxt & SEQ_MASK and snd.nxt > self._iss
        if flags & ACK and not ack_ok:
            if not flags & RST:
                self._replies.append(Segment(segment.ack, 0, RST, 0))
            return
        if flags & RST:
            if ack_ok:
                self._end(errno.ECONNREFUSED)
            return
        if not flags & SYN:
            return
        self._take_syn(segment)
        snd.start_window(segment.window, segment.seq, snd.nxt)
        if ack_ok:
            self._establish(Input.SYN_ACK, now)
            self._ack_now = True
            if segment.payload:
                self._receive_text(segment.seq + 1, segment.payload, flags, now)
        else:
            self._transition(Input.SYN)
            self._syn_due = True

    def _establish(self, event: Input, now: float) -> None:
        snd = self.snd
        snd.una = snd.nxt = self._iss + 1
        snd.rexmit = snd.lost_end = snd.recover = snd.una
        snd.rto_at = None
        if self._retries == 0:
            snd.sample_syn(now)
        snd.rtt.backoff = 0
        self._retries = 0
        self._syn_due = False
        self._transition(event)
        if snd.fin_queued:
            self._transition(Input.CLOSE)
        self.notify()

    def _receive_ack(self, segment: Segment, seq: int, flags: int, now: float) -> bool:
        """Process the ACK field; False if the segment ends here."""
        snd = self.snd
        una = snd.una
        ack = una + ((segment.ack - una + 0x80000000) & SEQ_MASK) - 0x80000000
        window = segment.window << snd.scale
        if self.state is State.SYN_RECEIVED:
            if not una < ack <= snd.nxt:
                self._replies.append(Segment(segment.ack, 0, RST, 0))
                return False
            self._establish(Input.SYN_ACKED, now)
            snd.start_window(window, seq, ack)
            una = snd.una
        if ack > snd.nxt:
            self._challenge(now)
            return False
        if ack < una:
            if ack < una - max(snd.max_window, 1):
                self._challenge(now)  # RFC 5961 section 5.2
                return False
            ack = una
        sack = [
            (una + ((left - una) & SEQ_MASK), una + ((right - una) & SEQ_MASK))
            for left, right in segment.options.sack
        ]
        pure = not segment.payload and not flags & (SYN | FIN)
        if snd.on_ack(seq, ack, window, sack, pure=pure, now=now):
            self._retries = 0
            self.soft_error = 0
            if self.wants_room:
                self.notify()
            if snd.fin_acked:
                self._fin_acked(now)
        return self.connected

    def _fin_acked(self, now: float) -> None:
        state = self.state
        if state not in (State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK):
            return
        self._transition(Input.FIN_ACKED)
        if self.state is State.FIN_WAIT_2 and self.orphan:
            self._linger_at = now + FIN_TIMEOUT_S
        elif self.state is State.TIME_WAIT:
            self._enter_time_wait(now)
        elif self.state is State.CLOSED:
            self._end(0, transition=False)

    def _receive_text(self, seq: int, payload: bytes, flags: int, now: float) -> None:
        if self.state not in RECEIVING:
            if self.state is State.TIME_WAIT:
                self._owe_ack()
                self._linger_at = now + TIME_WAIT_S
            return
        rcv = self.rcv
        if self.orphan and payload and seq + len(payload) > rcv.next:
            self.abort(errno.ECONNRESET)  # nobody will ever read it (RFC 9293 section 3.10.4)
            return
        before = rcv.queued
        in_order = rcv.accept(seq, payload, bool(flags & FIN))
        if rcv.eof:
            self._ack_now = True
            self._transition(Input.FIN)
            if self.state is State.TIME_WAIT:
                self._enter_time_wait(now)
        elif not in_order or rcv.has_gap:
            self._owe_ack()
        elif rcv.unacked >= 2 * rcv.mss:
            self._ack_now = True
        elif payload and self._delack_at is None:
            self._delack_at = now + DELAYED_ACK_S
        if rcv.eof or rcv.queued != before:
            self.notify()

    def _enter_time_wait(self, now: float) -> None:
        self._linger_at = now + TIME_WAIT_S
        self.snd.rto_at = None

    def _receive_reset(self) -> None:
        match self.state:
            case State.SYN_RECEIVED:
                self._end(errno.ECONNREFUSED)
            case State.CLOSE_WAIT:
                self._end(errno.EPIPE)
            case State.TIME_WAIT | State.CLOSING | State.LAST_ACK:
                self._end(0)
            case _:
                self._end(errno.ECONNRESET)

    def receive_icmp(self, icmp_type: int, code: int, mtu: int, seq: int) -> None:
        """An ICMP error quoted a segment of ours with wire sequence number ``seq``.

        Handled as Linux does: fatal while connecting, else only remembered for the timeout
        (RFC 5927); a smaller path MTU cuts the segments.  ``mtu`` 0 means the router named none.
        """
        snd = self.snd
        quoted = snd.una + ((seq - snd.una + 0x80000000) & SEQ_MASK) - 0x80000000
        if self.state is State.CLOSED or not snd.una <= quoted <= snd.nxt:
            return
        if icmp_type == 3 and code == 4:
            mss = max(MIN_MSS, (mtu or 576) - 40)
            if mss < snd.mss:
                self.mss = min(self.mss, mss)
                snd.on_mtu(mss)
                self.schedule(self)
            return
        error = icmp_errno(icmp_type, code)
        if not error:
            return
        if self.state in (State.SYN_SENT, State.SYN_RECEIVED):
            self._end(error)
        else:
            self.soft_error = error

    # -- timers --------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        """When ``handle_timer`` wants to be called; None if nothing waits."""
        at = self.snd.rto_at
        if self._delack_at is not None and (at is None or self._delack_at < at):
            at = self._delack_at
        if self._linger_at is not None and (at is None or self._linger_at < at):
            at = self._linger_at
        return at

    def handle_timer(self, *, now: float) -> None:
        """Do what is due; call ``segments_to_send`` afterwards."""
        snd = self.snd
        if self._delack_at is not None and now >= self._delack_at:
            self._delack_at = None
            self._ack_now = True
        if self._linger_at is not None and now >= self._linger_at:
            self._linger_at = None
            if self.state is State.TIME_WAIT:
                self._transition(Input.TIMEOUT_2MSL)
            self._end(0, transition=self.state is not State.CLOSED)
            return
        if snd.rto_at is not None and now >= snd.rto_at:
            self._retransmission_timeout()

    def _retransmission_timeout(self) -> None:
        snd = self.snd
        match self.state:
            case State.SYN_SENT:
                limit = SYN_RETRIES
            case State.SYN_RECEIVED:
                limit = SYNACK_RETRIES
            case _:
                limit = ORPHAN_RETRIES if self.orphan else RETRIES_2
        if snd.una == snd.nxt:
            # A shut window that still answers is alive for ever (RFC 9293 section 3.8.6.1) ...
            self._probes += 1
            self._retries += self.orphan
            if self._probes > limit or self._retries > limit:
                self.abort(self.soft_error or errno.ETIMEDOUT)
            elif snd.on_persist():
                self._wants_probe = True
            return
        self._retries += 1
        if self._retries > limit:
            # ... silence is not.
            self._end(self.soft_error or errno.ETIMEDOUT)
            return
        if self.state in (State.SYN_SENT, State.SYN_RECEIVED):
            snd.rtt.backoff += 1
            snd.rto_at = None
            self._syn_due = True
        else:
            snd.on_timeout()

    # -- what goes out -------------------------------------------------------------------------

    def segments_to_send(self, *, now: float) -> list[Segment]:
        """Return what is due now; the caller sends it in this order."""
        out, self._replies = self._replies, []
        state = self.state
        if self._syn_due:
            self._syn_due = False
            out.append(self._syn(now))
        elif state in SENDING and (self.snd.una < self.snd.last):
            ack, window, options = -1, 0, NO_OPTIONS
            for piece in self.snd.poll(now):
                if ack < 0:
                    window = self.rcv.window_field()
                    ack = self.rcv.next & SEQ_MASK
                    options = self._sack_options()
                flags = ACK | (FIN if piece.fin else 0) | (PSH if piece.push else 0)
                payload, gso_size = piece.payload, piece.gso_size
                out.append(
                    Segment(piece.seq & SEQ_MASK, ack, flags, window, payload, options, gso_size)
                )
            if ack >= 0:
                self._clear_ack()
        if self._wants_probe:
            self._wants_probe = False
            out.append(self._ack_segment(self.snd.una - 1))  # old number: the peer must answer
        for _ in range(max(self._acks_owed, int(self._ack_now))):
            if self.state is not State.CLOSED:
                out.append(self._ack_segment(self.snd.nxt))
        self._clear_ack()
        return out

    def _clear_ack(self) -> None:
        self._ack_now = False
        self._acks_owed = 0
        if not self.rcv.unacked:
            self._delack_at = None

    def _syn(self, now: float) -> Segment:
        snd = self.snd
        snd.nxt = self._iss + 1
        if self._retries == 0:
            snd.time_syn(now)
        snd.rto_at = now + snd.rtt.rto()
        if self.state is State.SYN_SENT:
            options = Options(mss=self.mss, wscale=WINDOW_SCALE, sack_ok=True)
            return Segment(self._iss & SEQ_MASK, 0, SYN, 0xFFFF, b"", options)
        wscale = WINDOW_SCALE if self.rcv.scale else None
        options = Options(mss=self.mss, wscale=wscale, sack_ok=snd.sack_ok)
        window = self.rcv.window_field(syn=True)
        ack = self.rcv.next & SEQ_MASK
        return Segment(self._iss & SEQ_MASK, ack, SYN | ACK, window, b"", options)

    def _sack_options(self) -> Options:
        if not self.snd.sack_ok or not self.rcv.has_gap:
            return NO_OPTIONS
        blocks = self.rcv.sack_blocks()
        return Options(sack=tuple((left & SEQ_MASK, right & SEQ_MASK) for left, right in blocks))

    def _ack_segment(self, seq: int) -> Segment:
        window = self.rcv.window_field()
        ack = self.rcv.next & SEQ_MASK
        return Segment(seq & SEQ_MASK, ack, ACK, window, b"", self._sack_options())

    def _owe_ack(self) -> None:
        """An ACK for this very segment: without SACK the number of duplicates is the message."""
        if self.snd.sack_ok:
            self._ack_now = True
        else:
            self._acks_owed += 1

    def _challenge(self, now: float) -> None:
        """An ACK that corrects a confused or forging peer, at a bounded rate (RFC 5961)."""
        if now - self._challenge_at >= CHALLENGE_INTERVAL_S:
            self._challenge_at = now
            self._ack_now = True

    def _reply(self, seq: int, flags: int) -> None:
        self._replies.append(Segment(seq & SEQ_MASK, self.rcv.next & SEQ_MASK, flags, 0))

    def _end(self, error: int, *, transition: bool = True) -> None:
        if transition:
            self._transition(Input.DELETE)
        self.error = error
        self.snd.rto_at = self._delack_at = self._linger_at = None
        self._syn_due = self._ack_now = self._wants_probe = False
        self._acks_owed = 0
        self.snd.buffer.clear()
        self.notify()

    def info(self) -> TcpInfo:
        """A snapshot for ``ss``."""
        snd = self.snd
        return TcpInfo(
            self.state,
            self.rcv.queued,
            len(snd.buffer),
            self.local,
            self.remote,
            snd.cc.cwnd // snd.mss,
            snd.rtt.srtt or 0.0,
            snd.retransmits,
        )
