"""Our own BGP daemon beside the real ones of ``bgp_peers``."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agents.bird.daemon import BirdDaemon


@contextlib.asynccontextmanager
async def alive(daemon: BirdDaemon) -> AsyncIterator[BirdDaemon]:
    """A daemon that runs until the block ends; what ended it earlier is raised there."""
    task = asyncio.create_task(daemon.run(), name="bird")
    try:
        yield daemon
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
