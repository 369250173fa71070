"""What every role of a cluster (etcd, control plane, node) is handed by whoever runs it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from emulator.runtime.clock import Clock


def _nobody_waits(info: str) -> None:
    """The default of ``RoleEnv.on_ready``."""


@dataclass(frozen=True, slots=True)
class RoleEnv:
    """Time, randomness, a log and a way to say "ready".

    A role's ``run_…(config, env)`` returns only when cancelled and raises when it fails; it calls
    ``env.ready(info)`` once, as soon as clients can use it.
    """

    clock: Clock
    rng: random.Random
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("podwire"))
    on_ready: Callable[[str], None] = _nobody_waits

    def ready(self, info: str = "") -> None:
        """Tell whoever started this role that it serves; ``info`` is for the log."""
        self.log.info("ready%s", f": {info}" if info else "")
        self.on_ready(info)

    def child(self, name: str) -> RoleEnv:
        """The same world for a part of this role: its own log name, no ready signal of its own."""
        return RoleEnv(self.clock, self.rng, self.log.getChild(name))
