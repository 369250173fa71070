"""Waiting for what other tasks or the network bring about, for as long as a busy machine needs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A test waits so long only to fail; a machine that does ten things at once stalls for seconds.
DEADLINE_S = 30.0


async def until(
    condition: Callable[[], object], what: str = "", within_s: float = DEADLINE_S
) -> None:
    """Return as soon as the condition holds; AssertionError with ``what`` after the deadline."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what or condition}") from None
