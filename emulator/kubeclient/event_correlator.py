"""Which of many similar events are told apart, which are one, and which are too many (pure).

After k8s.io/client-go/tools/record/events_cache.go: the aggregator makes one event of those that
differ only in their message, the spam filter lets each source say only so much of one object.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

# Groups and objects remembered; client-go's maxLruCacheEntries.
MAX_REMEMBERED = 4096
# The tenth different message within ten minutes of the one before, and those after it, are one.
MAX_MESSAGES = 10
GROUP_INTERVAL_S = 600.0
COMBINED = "(combined from similar events): "
# What one source may say of one object: 25 at once, then one in five minutes.
BURST = 25
ONE_IN_S = 300.0


class Said(NamedTuple):
    """What makes an event the same as an earlier one."""

    source: str
    host: str
    namespace: str
    kind: str
    name: str
    uid: str
    field_path: str
    type: str
    reason: str
    message: str


class Correlated(NamedTuple):
    """``key`` is what events that are one have in common; ``message`` is what it says now."""

    key: Said
    message: str


class _Group:
    __slots__ = ("last_s", "messages")

    def __init__(self) -> None:
        self.messages: dict[str, None] = {}
        self.last_s = 0.0


class EventCorrelator:
    """One recorder's memory of what it said; times are seconds of any clock."""

    def __init__(self) -> None:
        self._groups: OrderedDict[Said, _Group] = OrderedDict()
        # object -> (tokens left, when that was so)
        self._buckets: OrderedDict[Said, tuple[float, float]] = OrderedDict()

    def aggregate(self, said: Said, now: float) -> Correlated:
        """Note an event; the tenth different message and all after it share one key."""
        # Nobody's container: the whole object's events of this reason.
        similar = said._replace(field_path="", message="")
        group = self._groups.pop(similar, None)
        if group is None or now - group.last_s > GROUP_INTERVAL_S:
            group = _Group()
        self._groups[similar] = group
        if len(self._groups) > MAX_REMEMBERED:
            self._groups.popitem(last=False)
        group.last_s = now
        group.messages[said.message] = None
        if len(group.messages) < MAX_MESSAGES:
            return Correlated(said, said.message)
        del group.messages[next(iter(group.messages))]
        return Correlated(similar, COMBINED + said.message)

    def may_say(self, said: Said, now: float) -> bool:
        """Whether the source may still speak of the object; asking counts."""
        about = said._replace(field_path="", type="", reason="", message="")
        left, since = self._buckets.pop(about, (float(BURST), now))
        left = min(left + (now - since) / ONE_IN_S, float(BURST))
        allowed = left >= 1
        self._buckets[about] = (left - 1 if allowed else left, now)
        if len(self._buckets) > MAX_REMEMBERED:
            self._buckets.popitem(last=False)
        return allowed
