"""Events of the v2 store: the last thousand of them, and who waits for more.

Source: etcd 3.4 etcdserver/api/v2store/{event,event_history,event_queue,watcher,watcher_hub}.go.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from etcd.core.v2 import errors
from etcd.core.v2.errors import V2Error
from etcd.core.v2.paths import hidden_from, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable

# store.go newStore: the events a waitIndex can go back.
HISTORY_EVENTS: Final = 1000
# watcher_hub.go: events a stream watcher may be behind before it is ended.
WATCHER_EVENTS: Final = 100


class Extern(NamedTuple):
    """A node as an event shows it: without children.

    ``value`` is None for directories and for what was deleted; ``expiration_ns`` is Unix time, 0
    without a TTL; ``ttl_s`` was left when the event happened.
    """

    key: str
    value: str | None
    dir: bool
    expiration_ns: int
    ttl_s: int
    modified: int
    created: int


class Event(NamedTuple):
    """One change of the store; its number is the store's index after it."""

    action: str
    node: Extern
    previous: Extern | None
    refresh: bool = False

    @property
    def number(self) -> int:
        return self.node.modified

    @property
    def created(self) -> bool:
        """Whether the answer's status is 201."""
        return self.action == "create" or (self.action == "set" and self.previous is None)


class Notice(NamedTuple):
    """Whom an event concerns: the watchers of one path, or (path None) of all its parents."""

    event: Event
    path: str | None


class Listener(Protocol):
    """Where a watcher's events go."""

    def on_event(self) -> None:
        """One more event waits in the watcher."""

    def on_cleared(self) -> None:
        """The watcher was too slow, or the store was replaced: nothing comes any more."""


class Watcher:
    """One waiting request; ``stream`` watchers go on after their first event."""

    __slots__ = ("events", "key", "listener", "recursive", "since", "stream")

    def __init__(
        self, listener: Listener, key: str, *, recursive: bool, stream: bool, since: int
    ) -> None:
        self.listener = listener
        self.key = key
        self.recursive = recursive
        self.stream = stream
        self.since = since
        self.events: deque[Event] = deque()


class Hub:
    """The history and the watchers."""

    def __init__(self) -> None:
        self.history: deque[Event] = deque(maxlen=HISTORY_EVENTS)
        self._watchers: dict[str, dict[Watcher, None]] = {}
        self.count = 0

    def watch(self, watcher: Watcher, index: int) -> None:
        """Give the watcher the first matching event of the history, or have it wait.

        Raises V2Error 401 when the history no longer reaches back to ``watcher.since``.
        """
        found = self._scan(watcher, index)
        if found is not None:
            watcher.events.append(found)
            watcher.listener.on_event()
            return
        self._watchers.setdefault(watcher.key, {})[watcher] = None
        self.count += 1

    def _scan(self, watcher: Watcher, index: int) -> Event | None:
        history, since = self.history, watcher.since
        first = history[0].number if history else 0
        if since < first:
            cause = f"the requested history has been cleared [{first}/{since}]"
            raise V2Error(errors.EVENT_INDEX_CLEARED, cause, index)
        if not history or since > history[-1].number:
            return None
        below = watcher.key.rstrip("/") + "/"
        # Every index has its event, so the offset is known.
        for at in range(since - first, len(history)):
            event = history[at]
            if not event.refresh and self._matches(event, watcher, below):
                return event
        return None

    @staticmethod
    def _matches(event: Event, watcher: Watcher, below: str) -> bool:
        key = event.node.key
        if key == watcher.key or (watcher.recursive and key.startswith(below)):
            return True
        gone = event.previous
        return (
            event.action in ("delete", "expire")
            and gone is not None
            and gone.dir
            and watcher.key.startswith(gone.key)
        )

    def remove(self, watcher: Watcher) -> None:
        """Forget a watcher whose request is over; nothing happens if it is forgotten."""
        waiting = self._watchers.get(watcher.key)
        if waiting is None or watcher not in waiting:
            return
        del waiting[watcher]
        self.count -= 1
        if not waiting:
            del self._watchers[watcher.key]

    def tell(self, notices: Iterable[Notice]) -> None:
        """Hand events to those who wait for them, in the order of the notices."""
        for event, path in notices:
            if path is not None:
                self._tell_path(event, path, deleted=True)
                continue
            current = "/"
            self._tell_path(event, current, deleted=False)
            for part in parts_of(event.node.key):
                current = f"{current.rstrip('/')}/{part}"
                self._tell_path(event, current, deleted=False)

    def _tell_path(self, event: Event, path: str, *, deleted: bool) -> None:
        waiting = self._watchers.get(path)
        if not waiting:
            return
        key = event.node.key
        original = key == path
        if not original and hidden_from(path, key):
            return
        for watcher in list(waiting):
            if not (watcher.recursive or original or deleted) or event.number < watcher.since:
                continue
            if len(watcher.events) >= WATCHER_EVENTS:
                self.remove(watcher)
                watcher.listener.on_cleared()
                continue
            watcher.events.append(event)
            if not watcher.stream:
                self.remove(watcher)
            watcher.listener.on_event()

    def clear(self) -> None:
        """End all watchers: their store is replaced."""
        for waiting in list(self._watchers.values()):
            for watcher in list(waiting):
                self.remove(watcher)
                watcher.listener.on_cleared()
