"""The receiving half of a TCP connection: reassembly, the window offered, SACK blocks."""

from __future__ import annotations

from collections import deque
from typing import Final

from emulator.netstack.sock.ranges import RangeSet

# What one connection may hold unread: between Linux's tcp_rmem default (128 KiB) and maximum
# (6 MiB); at 1 Gbit/s it is 4 ms of data, many times the round trip between two nodes.
RECEIVE_BUFFER: Final = 512 * 1024
MAX_SACK_BLOCKS: Final = 4  # RFC 2018 section 3: 40 bytes of options hold four


class Receiver:
    """RCV.NXT, the window and what was received; sequence numbers are unwrapped integers."""

    __slots__ = (
        "_chunks",
        "_late",
        "_late_chunks",
        "_newest",
        "acked",
        "advertised",
        "eof",
        "fin_at",
        "limit",
        "mss",
        "next",
        "queued",
        "scale",
        "unacked",
    )

    def __init__(self, start: int, mss: int) -> None:
        """``start`` is the sequence number of the first payload byte (IRS + 1)."""
        self.next = start
        self.acked = start  # RCV.NXT as the peer was last told
        self.advertised = start  # the right edge of the window as the peer was last told
        self.limit = RECEIVE_BUFFER
        self.mss = mss
        self.scale = 0
        self.queued = 0
        self.unacked = 0  # bytes received in order since the last ACK went out
        self.fin_at: int | None = None
        self.eof = False
        self._chunks: deque[bytes] = deque()
        self._late = RangeSet()
        self._late_chunks: dict[int, bytes] = {}
        self._newest: tuple[int, int] | None = None

    @property
    def has_gap(self) -> bool:
        """True while something out of order waits for what is missing."""
        return bool(self._late.ranges)

    def accept(self, seq: int, payload: bytes, fin: bool) -> bool:
        """Take a segment whose range touches the window; trims what lies outside of it.

        Returns True if it arrived in order and left no gap (a delayed ACK will do).  A FIN is
        remembered and counts (``eof``) once everything before it is here.
        """
        end = seq + len(payload)
        in_order = end <= self.advertised
        if not in_order:
            payload = payload[: max(0, self.advertised - seq)]
            end = seq + len(payload)
            fin = False
        if fin:
            self.fin_at = end
        if end > self.next:
            if seq < self.next:
                payload = payload[self.next - seq :]
                seq = self.next
            if seq == self.next and not self._late.ranges:
                self._take(payload)
            else:
                in_order = False
                self._take_late(seq, end, payload)
        elif payload:
            in_order = False  # a duplicate: the peer needs to hear where we are
        if self.fin_at == self.next and not self.eof:
            self.eof = True
            self.next += 1
        return in_order

    def _take(self, payload: bytes) -> None:
        size = len(payload)
        self._chunks.append(payload)
        self.queued += size
        self.unacked += size
        self.next += size

    def _take_late(self, seq: int, end: int, payload: bytes) -> None:
        for start, stop in self._late.add(seq, end):
            self._late_chunks[start] = payload[start - seq : stop - seq]
        self._newest = (seq, end)
        while (chunk := self._late_chunks.pop(self.next, None)) is not None:
            self._take(chunk)
        self._late.trim_below(self.next)

    def read(self) -> bytes:
        """Return everything in order so far (b"" if nothing) and free its space."""
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.queued = 0
        return data

    def _edge(self) -> int:
        """The right edge to offer: never moves left, moves right in useful steps (RFC 9293
        section 3.8.6.2.2)."""
        edge = self.next + self.limit - self.queued
        if edge - self.advertised >= min(self.mss, self.limit // 2):
            return edge
        return self.advertised

    def window_worth_telling(self) -> bool:
        """True if a reader freed so much that the peer should hear of it without asking."""
        left = self.advertised - self.next
        gain = self._edge() - self.advertised
        return gain >= 2 * self.mss and (left < self.limit // 2 or gain >= self.limit // 2)

    def window_field(self, *, syn: bool = False) -> int:
        """The window field for a segment that goes out now, which tells the peer ``next``.

        The window of a SYN is never scaled (RFC 7323 section 2.2).
        """
        scale = 0 if syn else self.scale
        # Rounded down: the edge may seem to move left by less than a unit (RFC 7323 section 2.4).
        # What was sent up to the edge told before is still taken; rounding up would let a peer
        # that sends crumbs push the edge on for ever.
        field = min(max(0, self._edge() - self.next) >> scale, 0xFFFF)
        self.acked = self.next
        self.unacked = 0
        self.advertised = max(self.advertised, self.next + (field << scale))
        return field

    def sack_blocks(self) -> tuple[tuple[int, int], ...]:
        """Ranges held beyond ``next``, the one that holds the newest first (RFC 2018 section 4)."""
        ranges = self._late.ranges
        if not ranges:
            return ()
        newest = self._newest
        first = [r for r in ranges if newest is not None and r[0] <= newest[0] < r[1]]
        rest = [r for r in ranges if r not in first]
        return tuple((first + rest)[:MAX_SACK_BLOCKS])
