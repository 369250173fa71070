"""The sending half of a TCP connection: what may go out now, and what was lost.

Theory of operation.  ``buffer`` holds everything from the first unacknowledged byte on.  Three
edges move right through it: ``una`` (acknowledged), ``nxt`` (sent once), ``end`` (written by the
application); the FIN takes the position ``end``.  While something is deemed lost, ``rexmit`` walks
from ``una`` to ``lost_end`` and sends again what is in no SACKed range.  What is in flight by our
best knowledge (RFC 6675's pipe) is bounded by the congestion window, what is sent at all by the
peer's window.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from emulator.netstack.sock.congestion import NewReno
from emulator.netstack.sock.ranges import RangeSet
from emulator.netstack.sock.rtt import RttEstimator

DUP_THRESH: Final = 3  # RFC 5681, RFC 6675
# A super-segment leaves the host as one send of VXLAN datagrams: at most 65,507 bytes (UDP over
# IPv4) with headers of up to 100 bytes (IP, TCP with options, Ethernet, VXLAN) before each piece,
# and at most 64 datagrams (UDP_MAX_SEGMENTS).
GSO_MAX_PIECES: Final = 64
GSO_MAX_BYTES: Final = 65507
GSO_PIECE_HEADERS: Final = 100


class Recovery(enum.Enum):
    """Why data is being sent again (Linux's tcp_ca_state)."""

    OPEN = "open"
    FAST = "recovery"
    LOSS = "loss"


class Piece(NamedTuple):
    """Something to send: ``fin`` says the FIN follows the payload."""

    seq: int
    payload: bytes
    fin: bool
    push: bool
    gso_size: int


class Sender:
    """SND.UNA, SND.NXT, the peer's window, loss recovery; times in seconds, sizes in bytes."""

    __slots__ = (
        "_dupacks",
        "_kick",
        "_limited",
        "_rtt_at",
        "_rtt_seq",
        "_sent_at",
        "base",
        "buffer",
        "cc",
        "fin_queued",
        "gso_bytes",
        "lost_end",
        "max_window",
        "mss",
        "nodelay",
        "nxt",
        "push_out",
        "recover",
        "recovery",
        "retransmits",
        "rexmit",
        "rto_at",
        "rtt",
        "sack_ok",
        "sacked",
        "scale",
        "una",
        "window",
        "wl1",
        "wl2",
    )

    def __init__(self, iss: int, mss: int) -> None:
        self.una = self.nxt = iss
        self.base = iss + 1  # sequence number of buffer[0]
        self.buffer = bytearray()
        self.fin_queued = False
        self.nodelay = False
        self.window = 0
        self.max_window = 0
        self.wl1 = self.wl2 = 0
        self.scale = 0  # the peer's window scale
        self.sack_ok = False
        self.sacked = RangeSet()
        self.cc = NewReno(mss)
        self.rtt = RttEstimator()
        self.rto_at: float | None = None
        self.retransmits = 0  # segments sent again, for ``ss``
        self.recovery = Recovery.OPEN
        self.recover = self.lost_end = self.rexmit = iss
        self.push_out = False
        self._dupacks = 0
        self._kick = False
        self._limited = False
        self._rtt_seq: int | None = None
        self._rtt_at = 0.0
        self._sent_at: float | None = None
        self.mss = mss
        self.gso_bytes = mss
        self.set_mss(mss)

    def set_mss(self, mss: int) -> None:
        """The largest payload of one packet changed (SYN options, PMTU)."""
        self.mss = mss
        self.cc.set_mss(mss)
        pieces = min(GSO_MAX_PIECES, GSO_MAX_BYTES // (mss + GSO_PIECE_HEADERS))
        self.gso_bytes = max(1, pieces) * mss

    @property
    def end(self) -> int:
        """Sequence number after the last byte written (the FIN's own, if one is queued)."""
        return self.base + len(self.buffer)

    @property
    def last(self) -> int:
        """Sequence number after everything there is to send, FIN included."""
        return self.base + len(self.buffer) + self.fin_queued

    @property
    def fin_acked(self) -> bool:
        return self.fin_queued and self.una == self.last

    @property
    def flight(self) -> int:
        return self.nxt - self.una

    def pipe(self) -> int:
        """What is in the network by our best knowledge (RFC 6675 section 4)."""
        pipe = self.nxt - self.una
        if self.sack_ok:
            pipe -= self.sacked.total
        else:
            pipe -= min(self._dupacks * self.mss, pipe)
        if self.rexmit < self.lost_end:
            lost = self.lost_end - self.rexmit - self.sacked.covered(self.rexmit, self.lost_end)
            pipe = max(0, pipe - lost)
        return pipe

    def start_window(self, window: int, seq: int, ack: int) -> None:
        """Take the window of the handshake."""
        self.window = self.max_window = window
        self.wl1, self.wl2 = seq, ack

    def time_syn(self, now: float) -> None:
        """The SYN goes out for the first time: its answer is the first round trip known."""
        self._rtt_at = now

    def sample_syn(self, now: float) -> None:
        """The SYN, sent once, was acknowledged."""
        self.rtt.sample(now - self._rtt_at)

    # -- what arrives ------------------------------------------------------------------------

    def on_ack(
        self,
        seq: int,
        ack: int,
        window: int,
        sack: list[tuple[int, int]],
        *,
        pure: bool,
        now: float,
    ) -> bool:
        """Take an acceptable acknowledgement (UNA - max window <= ack <= NXT).

        ``window`` is scaled; ``pure`` says the segment carried neither data nor SYN nor FIN.
        Returns True if it acknowledged something new.
        """
        fresh = 0
        if self.sack_ok:
            for left, right in sack:
                if self.una <= left < right <= self.nxt:
                    fresh += sum(b - a for a, b in self.sacked.add(left, right))
        advanced = ack > self.una
        duplicate = (
            pure and ack == self.una and window == self.window and not advanced and self.flight > 0
        )
        if self.wl1 < seq or (self.wl1 == seq and self.wl2 <= ack):
            if window > self.window and self.una == self.nxt:
                self.rto_at = None  # the persist timer's work is done
                self.rtt.backoff = 0
            self.window = window
            self.max_window = max(self.max_window, window)
            self.wl1, self.wl2 = seq, ack
        if advanced:
            self._advance(ack, now)
        elif duplicate and (fresh or not self.sack_ok):
            self._dupacks += 1
        if self.flight and (fresh or duplicate):
            self._detect_loss()
        return advanced

    def _advance(self, ack: int, now: float) -> None:
        flight = self.nxt - self.una
        acked = ack - self.una
        self.una = ack
        drop = min(ack, self.end) - self.base
        if drop > 0:
            del self.buffer[:drop]
            self.base += drop
        if self.sacked.ranges:
            self.sacked.trim_below(ack)
        self.rexmit = max(self.rexmit, ack)
        self._dupacks = 0
        if self._rtt_seq is not None and ack >= self._rtt_seq:
            self.rtt.sample(now - self._rtt_at)
            self._rtt_seq = None
        else:
            self.rtt.backoff = 0
        if self.recovery is not Recovery.OPEN:
            if ack >= self.recover:
                self.recovery = Recovery.OPEN
                self.lost_end = self.rexmit = ack
            elif self.recovery is Recovery.FAST and not self.sack_ok:
                # RFC 6582 section 3.2 step 3: a partial ACK points at the next hole.
                self.rexmit = ack
                self.lost_end = min(ack + self.mss, self.recover)
                self._kick = True
        cc = self.cc
        if self.recovery is not Recovery.FAST and (
            self._limited or (cc.cwnd < cc.ssthresh and 2 * flight > cc.cwnd)
        ):
            cc.on_ack(acked)
        self.rto_at = now + self.rtt.rto() if self.una < self.nxt else None

    def _detect_loss(self) -> None:
        if self.sack_ok:
            lost_end = self._sack_lost_end()
        elif self.recovery is Recovery.OPEN and self._dupacks >= DUP_THRESH:
            lost_end = self.una + self.mss
        else:
            return
        if lost_end <= self.una:
            return
        if self.recovery is Recovery.OPEN:
            # RFC 6582: data lost before the last recovery ended is not a new congestion signal.
            if self.una < self.recover and not self.sack_ok:
                return
            self.recovery = Recovery.FAST
            self.cc.on_loss(self.flight)
            self.recover = self.nxt
            self.rexmit = self.una
            self._kick = True
            self._rtt_seq = None
        if self.recovery is Recovery.FAST:
            self.lost_end = max(self.lost_end, min(lost_end, self.recover))

    def _sack_lost_end(self) -> int:
        """Everything below this and not SACKed is lost: three segments above it arrived."""
        above = 0
        for start, end in reversed(self.sacked.ranges):
            above += end - start
            if above >= DUP_THRESH * self.mss:
                return start
        # RFC 6675 IsLost(): or three separate ranges, however short.
        if len(self.sacked.ranges) >= DUP_THRESH:
            return self.sacked.ranges[-DUP_THRESH][0]
        return self.una

    # -- timers ------------------------------------------------------------------------------

    def on_timeout(self) -> None:
        """The retransmission timer fired with data in flight: all of it is lost (RFC 6298 5.4)."""
        first = self.rtt.backoff == 0
        self.cc.on_timeout(self.flight, first=first)
        self.rtt.backoff += 1
        if not first:
            self.sacked.clear()  # RFC 2018 section 8: the receiver may have reneged
        self.recovery = Recovery.LOSS
        self.recover = self.lost_end = self.nxt
        self.rexmit = self.una
        self._dupacks = 0
        self._kick = True
        self._rtt_seq = None
        self.rto_at = None

    def on_mtu(self, mss: int) -> None:
        """The path takes less: send again in smaller pieces, no congestion (RFC 1191 6.5)."""
        self.set_mss(mss)
        if self.flight:
            self.recovery = Recovery.LOSS
            self.recover = self.lost_end = self.nxt
            self.rexmit = self.una
            self._kick = True
            self._rtt_seq = None

    def on_persist(self) -> bool:
        """The persist timer fired; True if the window is shut and a probe is due, else what
        fits into the window goes out although it is little (RFC 9293 section 3.8.6.2.1)."""
        self.rtt.backoff += 1
        self.rto_at = None
        if self.window <= 0:
            return True
        self.push_out = True
        return False

    # -- what goes out -----------------------------------------------------------------------

    def poll(self, now: float) -> list[Piece]:
        """Return what may be sent now; arms the retransmission or persist timer."""
        pieces: list[Piece] = []
        if self._sent_at is not None and self.una == self.nxt < self.last:
            if now - self._sent_at > self.rtt.rto():
                self.cc.on_idle()
            self._sent_at = None
        if self.rexmit < self.lost_end or self._kick:
            self._poll_lost(pieces)
        if self.nxt < self.last:
            self._poll_new(pieces, now)
        if pieces:
            self._sent_at = now
        if self.rto_at is None and self.una < self.last:
            # With nothing in flight this is the persist timer (zero or silly window).
            self.rto_at = now + self.rtt.rto()
        return pieces

    def _poll_lost(self, pieces: list[Piece]) -> None:
        room = self.cc.cwnd - self.pipe()
        while self.rexmit < self.lost_end:
            gap = self.sacked.next_gap(self.rexmit, self.lost_end)
            if gap is None:
                self.rexmit = self.lost_end
                break
            start, stop = gap
            size = min(stop - start, self.gso_bytes)
            if size > room:
                size = room // self.mss * self.mss
                if size <= 0:
                    if not self._kick:
                        break
                    size = min(stop - start, self.mss)
            self._kick = False
            pieces.append(self._piece(start, start + size))
            self.retransmits += -(-size // self.mss)
            self.rexmit = start + size
            room -= size
        self._kick = False

    def _poll_new(self, pieces: list[Piece], now: float) -> None:
        mss = self.mss
        end, last = self.end, self.last
        usable = self.una + self.window - self.nxt
        room = self.cc.cwnd - self.pipe()
        self._limited = False
        while self.nxt < last:
            left = end - self.nxt
            size = min(left, usable, room, self.gso_bytes)
            if size < left:
                if size < mss and not self.push_out:
                    self._limited = room < mss
                    # Silly window avoidance: a full segment, or half of the largest window seen.
                    if room < mss or size <= 0 or size < self.max_window // 2:
                        break
                elif size > mss:
                    size -= size % mss
                if size <= 0:
                    break
            elif size > 0 and not self.nodelay and not self.fin_queued and not self.push_out:
                # Nagle: the tail waits while anything is unacknowledged.
                if size < mss and self.nxt > self.una:
                    break
                if size > mss:
                    size -= size % mss
            start = self.nxt
            stop = start + size
            if stop == end and self.fin_queued and usable > size:
                stop = last
            if stop == start:
                break
            pieces.append(self._piece(start, stop))
            self.nxt = stop
            usable -= size
            room -= size
            self.push_out = False
            if self._rtt_seq is None and self.recovery is Recovery.OPEN:
                self._rtt_seq = stop
                self._rtt_at = now

    def _piece(self, start: int, stop: int) -> Piece:
        end = self.end
        data_stop = min(stop, end)
        payload = bytes(memoryview(self.buffer)[start - self.base : data_stop - self.base])
        gso_size = self.mss if len(payload) > self.mss else 0
        return Piece(start, payload, stop > end, data_stop == end, gso_size)
