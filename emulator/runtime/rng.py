"""The one place that reads real entropy."""

from __future__ import annotations

import os
import random


def real_rng() -> random.Random:
    """A generator seeded by the operating system; call it after a fork, never before."""
    return random.Random(os.urandom(32))


def seeded_rng(seed: int, *path: str) -> random.Random:
    """A generator for one part of a world: the same seed and path give the same numbers."""
    return random.Random(f"{seed}/{'/'.join(path)}")
