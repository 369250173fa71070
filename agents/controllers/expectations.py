"""What a controller has done that its informer has not shown yet; pure.

Until its own creations and deletions are visible, an owner's pods are not counted again: that is
how no pod is ever created twice.  Source: pkg/controller/controller_utils.go.
"""

from __future__ import annotations

# A watch event that never comes must not stop an owner for ever; client-go: 5 minutes.
EXPECTATION_TIMEOUT_S = 300.0


class _Expected:
    __slots__ = ("creations", "deletions", "since")

    def __init__(self, since: float) -> None:
        self.creations = 0
        self.deletions: dict[str, None] = {}
        self.since = since


class Expectations:
    """By owner key: creations still to be seen (a count) and deletions (uids)."""

    def __init__(self) -> None:
        self._expected: dict[str, _Expected] = {}

    def satisfied(self, key: str, now: float) -> bool:
        """True when everything done is visible (or was waited for too long)."""
        expected = self._expected.get(key)
        if expected is None:
            return True
        if expected.creations <= 0 and not expected.deletions:
            del self._expected[key]
            return True
        if now - expected.since > EXPECTATION_TIMEOUT_S:
            # Given up: what comes next is counted anew, or it would wait for these as well.
            del self._expected[key]
            return True
        return False

    def expect_creations(self, key: str, count: int, now: float) -> None:
        """``count`` creations are about to be asked for."""
        self._of(key, now).creations += count

    def expect_deletion(self, key: str, uid: str, now: float) -> None:
        """One deletion is about to be asked for."""
        self._of(key, now).deletions[uid] = None

    def creation_seen(self, key: str) -> None:
        """One creation became visible, or failed."""
        expected = self._expected.get(key)
        if expected is not None and expected.creations > 0:
            expected.creations -= 1

    def deletion_seen(self, key: str, uid: str) -> None:
        """One deletion became visible (deletionTimestamp or gone), or failed."""
        expected = self._expected.get(key)
        if expected is not None:
            expected.deletions.pop(uid, None)

    def forget(self, key: str) -> None:
        """The owner is gone."""
        self._expected.pop(key, None)

    def _of(self, key: str, now: float) -> _Expected:
        expected = self._expected.setdefault(key, _Expected(now))
        expected.since = now
        return expected
