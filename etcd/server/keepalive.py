"""Pings to quiet clients, so that connections whose other end vanished do not stay for ever.

Source: grpc-go keepalive.ServerParameters (Time, Timeout), etcd --grpc-keepalive-interval and
--grpc-keepalive-timeout.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Peer(Protocol):
    """A connection that can be pinged."""

    def check_alive(self, now: float, interval_s: float, timeout_s: float) -> bool:
        """Ping if nothing was heard for an interval, abort if a ping was not answered in time.

        Returns whether a ping is on its way.
        """


async def keep_alive(
    peers: Callable[[], Iterable[Peer]], interval_s: float, timeout_s: float
) -> None:
    """Look after connections until cancelled; an interval of 0 means never."""
    loop = asyncio.get_running_loop()
    while interval_s > 0:
        now = loop.time()
        waiting = [peer.check_alive(now, interval_s, timeout_s) for peer in peers()]
        await asyncio.sleep(timeout_s / 2 if any(waiting) else interval_s / 4)
