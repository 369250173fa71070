"""Probe thresholds (pure): results in, verdicts out (pkg/kubelet/prober/worker.go)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.kubelet.spec import ProbeSpec


class ProbeTracker:
    """Counts one probe's results in a row and says when they change the verdict.

    ``verdict`` starts as ``initial``: liveness is fine until it fails, readiness is not until it
    succeeds.
    """

    __slots__ = ("_run", "_same", "_spec", "verdict")

    def __init__(self, spec: ProbeSpec, *, initial: bool) -> None:
        self._spec = spec
        self._same: bool | None = None
        self._run = 0
        self.verdict = initial

    def observe(self, success: bool) -> bool:
        """Count one result; True when it changes the verdict."""
        self._run = self._run + 1 if success == self._same else 1
        self._same = success
        threshold = self._spec.success_threshold if success else self._spec.failure_threshold
        if self._run < threshold or self.verdict == success:
            return False
        self.verdict = success
        return True

    def failed_for_good(self) -> bool:
        """True once failures in a row reached the threshold."""
        return self._same is False and self._run >= self._spec.failure_threshold
