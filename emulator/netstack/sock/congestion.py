"""NewReno congestion control in bytes (RFC 5681, RFC 6582, initial window of RFC 6928)."""

from __future__ import annotations

from typing import Final

INITIAL_WINDOW_SEGMENTS: Final = 10  # RFC 6928, TCP_INIT_CWND
LOSS_WINDOW_SEGMENTS: Final = 1  # RFC 5681 section 3.1
MIN_SSTHRESH_SEGMENTS: Final = 2  # RFC 5681 equation (4)
# Slow start's limit before the first loss: nothing in the emulator has a larger pipe.
INITIAL_SSTHRESH: Final = 1 << 30


class NewReno:
    """``cwnd`` and ``ssthresh`` in bytes; loss detection is the connection's."""

    __slots__ = ("_fraction", "cwnd", "mss", "ssthresh")

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self.cwnd = INITIAL_WINDOW_SEGMENTS * mss
        self.ssthresh = INITIAL_SSTHRESH
        self._fraction = 0

    def set_mss(self, mss: int) -> None:
        """The path changed (SYN exchanged, PMTU): keep the window in segments."""
        self.cwnd = max(mss, self.cwnd * mss // self.mss)
        self.mss = mss

    def on_ack(self, acked: int) -> None:
        """``acked`` new bytes were acknowledged while the window was what held us back."""
        if self.cwnd < self.ssthresh:
            self.cwnd += acked
            return
        self._fraction += self.mss * acked
        if self._fraction >= self.cwnd:
            self.cwnd += self._fraction // self.cwnd
            self._fraction %= self.cwnd

    def on_loss(self, flight: int) -> None:
        """Fast retransmit: halve (RFC 5681 section 3.2 step 2, without the inflation)."""
        self.ssthresh = max(flight // 2, MIN_SSTHRESH_SEGMENTS * self.mss)
        self.cwnd = self.ssthresh

    def on_timeout(self, flight: int, *, first: bool) -> None:
        """The retransmission timer fired; ``first`` is False while the same data backs off."""
        if first:
            self.ssthresh = max(flight // 2, MIN_SSTHRESH_SEGMENTS * self.mss)
        self.cwnd = LOSS_WINDOW_SEGMENTS * self.mss

    def on_idle(self) -> None:
        """Nothing was sent for an RTO: restart (RFC 5681 section 4.1)."""
        self.cwnd = min(self.cwnd, INITIAL_WINDOW_SEGMENTS * self.mss)
