"""The retransmission timeout of RFC 6298 with Linux's bounds."""

from __future__ import annotations

from typing import Final

RTO_INITIAL_S: Final = 1.0  # RFC 6298 (2.1), TCP_TIMEOUT_INIT
RTO_MIN_S: Final = 0.2  # TCP_RTO_MIN; RFC 6298 says 1 s, no stack waits that long
RTO_MAX_S: Final = 120.0  # TCP_RTO_MAX
_GRANULARITY_S: Final = 0.001


class RttEstimator:
    """SRTT, RTTVAR and the RTO with its backoff, all in seconds."""

    __slots__ = ("_base", "backoff", "srtt", "var")

    def __init__(self) -> None:
        self.srtt: float | None = None
        self.var = 0.0
        self.backoff = 0
        self._base = RTO_INITIAL_S

    def sample(self, rtt: float) -> None:
        """Take a round trip measured on a segment sent only once (Karn)."""
        if self.srtt is None:
            self.srtt = rtt
            self.var = rtt / 2
        else:
            self.var = 0.75 * self.var + 0.25 * abs(self.srtt - rtt)
            self.srtt = 0.875 * self.srtt + 0.125 * rtt
        self._base = max(RTO_MIN_S, self.srtt + max(_GRANULARITY_S, 4 * self.var))
        self.backoff = 0

    def rto(self) -> float:
        """The timeout to arm now, doubled for each expiry since the last progress."""
        # The exponent is bounded so that a long persist never computes a huge power.
        return min(RTO_MAX_S, self._base * (1 << min(self.backoff, 12)))
