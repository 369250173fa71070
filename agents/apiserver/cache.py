"""The watch cache: every object in memory, one etcd watch, many client watches.

One watch feeds all resources, so there is one order of events and one current revision, which is
every list's resourceVersion.  Beside ``/registry/`` it may follow other roots, where a network's
own resources live.  An object and an event are encoded once, however
many watchers get them.  A read waits until the cache has seen this server's own latest write, so a
client always reads what it wrote.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Final

from agents.apiserver.config import FRESH_TIMEOUT_S, WATCH_RING
from emulator.apimachinery.behaviour import selectable_fields
from emulator.apimachinery.objects import dump_json
from emulator.apimachinery.status import expired, internal, too_large_revision, unavailable

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from agents.apiserver.store import Change, Store, Stored
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import ResourceType

    Encoder = Callable[["Entry"], Obj]

PREFIX: Final = b"/registry/"
RETRY_S: Final = 0.2


class Entry:
    """One version of one object; decoded when first needed, encoded once per API version."""

    __slots__ = ("_bodies", "_fields", "_obj", "key", "revision", "value")

    def __init__(self, key: str, value: bytes, revision: int) -> None:
        self.key = key
        self.value = value
        self.revision = revision
        self._obj: Obj | None = None
        self._bodies: dict[str, bytes] = {}
        self._fields: dict[str, str] | None = None

    @property
    def obj(self) -> Obj:
        """The object with its resourceVersion; not to be changed by the caller."""
        if self._obj is None:
            obj = decode(self.value)
            if obj is None:
                raise internal(
                    f"unable to decode {self.key}: etcd holds something else than an object there; "
                    "mend or delete its key"
                )
            obj.setdefault("metadata", {})["resourceVersion"] = str(self.revision)
            self._obj = obj
        return self._obj

    def fields(self, resource: ResourceType) -> dict[str, str]:
        """The fields a field selector may name."""
        if self._fields is None:
            self._fields = selectable_fields(resource, self.obj)
        return self._fields

    def body(self, form: str, convert: Callable[[Obj], Obj]) -> bytes:
        """JSON of the members after kind and apiVersion, without braces."""
        found = self._bodies.get(form)
        if found is None:
            rest = {k: v for k, v in convert(self.obj).items() if k not in ("kind", "apiVersion")}
            found = self._bodies[form] = dump_json(rest)[1:-1]
        return found

    def at(self, revision: int) -> Entry:
        """The same object at another revision (the last state in a DELETED event)."""
        return Entry(self.key, self.value, revision)


def decode(value: bytes) -> Obj | None:
    """A stored object, None for what is none."""
    try:
        obj = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(obj, dict) or not isinstance(obj.get("metadata", {}), dict):
        return None
    return obj


class Event:
    """A change of one object: ``before`` is None for a new one, ``after`` None for a deletion."""

    __slots__ = ("_lines", "after", "before", "last", "revision")

    def __init__(self, before: Entry | None, after: Entry | None, revision: int) -> None:
        self.before = before
        self.after = after
        self.revision = revision
        if after is not None:
            self.last = after
        else:
            assert before is not None
            self.last = before.at(revision)
        self._lines: dict[tuple[str, str], bytes] = {}

    def shown(self, kind: str) -> Entry:
        """The state a watcher is sent; one whose selection the object left gets the former."""
        if kind == "DELETED" and self.after is not None and self.before is not None:
            return self.before.at(self.revision)
        return self.last

    def line(self, kind: str, form: str, head: bytes, convert: Callable[[Obj], Obj]) -> bytes:
        """The watch line, made once per event type and API version."""
        found = self._lines.get((kind, form))
        if found is None:
            body = self.shown(kind).body(form, convert)
            found = b'{"type":"%b","object":%b%b}}\n' % (kind.encode(), head, body)
            self._lines[kind, form] = found
        return found


class Bucket:
    """All objects of one directory (``ResourceType.directory``)."""

    __slots__ = ("_order", "entries", "oldest", "ring", "watchers")

    def __init__(self, revision: int) -> None:
        self.entries: dict[str, Entry] = {}
        self._order: list[str] | None = None
        self.ring: deque[Event] = deque(maxlen=WATCH_RING)
        # A watch may resume after any revision from here on.
        self.oldest = revision
        self.watchers: dict[int, Callable[[Event | None], None]] = {}

    def order(self) -> list[str]:
        """Keys in list order."""
        if self._order is None:
            self._order = sorted(self.entries)
        return self._order

    def put(self, entry: Entry) -> Event:
        """Store a new version."""
        before = self.entries.get(entry.key)
        self.entries[entry.key] = entry
        if before is None:
            self._order = None
        return self._happened(Event(before, entry, entry.revision))

    def drop(self, key: str, revision: int) -> Event | None:
        """Remove an object; None if it was not there."""
        before = self.entries.pop(key, None)
        if before is None:
            return None
        self._order = None
        return self._happened(Event(before, None, revision))

    def _happened(self, event: Event) -> Event:
        if len(self.ring) == self.ring.maxlen:
            self.oldest = self.ring[0].revision
        self.ring.append(event)
        for deliver in list(self.watchers.values()):
            deliver(event)
        return event

    def since(self, revision: int) -> list[Event]:
        """Events after ``revision``; StatusError 410 if they are no longer known."""
        if revision < self.oldest:
            raise expired(f"too old resource version: {revision} ({self.oldest})")
        return [event for event in self.ring if event.revision > revision]


class Cache:
    """All buckets and the revision they have reached."""

    def __init__(self, store: Store, log: logging.Logger, roots: tuple[str, ...] = ()) -> None:
        """``roots`` are key prefixes beside ``/registry/``, ending in a slash."""
        self._store = store
        self._roots = tuple(root.encode() for root in roots)
        self._log = log
        self._buckets: dict[str, Bucket] = {}
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._written = 0
        # Every change after this revision has been seen.
        self._complete_from = 0
        self._next_watcher = 0
        self.revision = 0
        self.loaded = asyncio.Event()
        # Called after any change below a directory, and after the first load.
        self.on_change: dict[str, Callable[[], None]] = {}

    async def run(self) -> None:
        """Keep the cache in step with etcd until cancelled."""
        while True:
            try:
                await self._load()
                await self._follow()
            except Exception as error:
                self._log.warning("watch of etcd broke: %s; listing again", error)
                await asyncio.sleep(RETRY_S)

    async def _load(self) -> None:
        stored, revision = await self._store.load(PREFIX)
        for root in self._roots:
            # What changed between the two reads comes once more by the watch.
            stored += (await self._store.load(root))[0]
        for bucket in self._buckets.values():
            for deliver in list(bucket.watchers.values()):
                deliver(None)
        self._buckets = {}
        self.revision = self._complete_from = revision
        for item in stored:
            self._take(item)
        for notify in self.on_change.values():
            notify()
        self._wake()
        self.loaded.set()

    def _take(self, item: Stored) -> None:
        if self._is_readable(item.key, item.value):
            directory, key = self._split(item.key)
            self.bucket(directory).entries[key] = Entry(key, item.value, item.revision)

    def _is_readable(self, key: bytes, value: bytes) -> bool:
        """False for what another program left below its root that is no object.

        Below ``/registry/`` only this server writes: it does not look twice.
        """
        if not key.startswith(self._roots) or decode(value) is not None:
            return True
        self._log.warning("%s is left out: it is no object", key.decode("utf-8", "replace"))
        return False

    async def _follow(self) -> None:
        first = min((PREFIX, *self._roots))
        end = _prefix_end(max((PREFIX, *self._roots)))
        async with self._store.watch(first, end, self.revision + 1) as batches:
            async for changes, revision in batches:
                for change in changes:
                    if change.key.startswith((PREFIX, *self._roots)):
                        self._apply(change)
                self.revision = max(self.revision, revision)
                self._wake()

    def _apply(self, change: Change) -> None:
        self.revision = max(self.revision, change.revision)
        directory, key = self._split(change.key)
        bucket = self.bucket(directory)
        if change.value is None or not self._is_readable(change.key, change.value):
            bucket.drop(key, change.revision)
        else:
            bucket.put(Entry(key, change.value, change.revision))
        notify = self.on_change.get(directory)
        if notify is not None:
            notify()

    def _split(self, key: bytes) -> tuple[str, str]:
        """(directory, ``ns/name`` or ``name``) of a key."""
        for root in self._roots:
            if key.startswith(root):
                plural, _, rest = key[len(root) :].decode("utf-8", "replace").partition("/")
                return root.decode() + plural, rest
        return _registry_split(key)

    def bucket(self, directory: str) -> Bucket:
        """The bucket of a directory, made when first asked for."""
        found = self._buckets.get(directory)
        if found is None:
            found = self._buckets[directory] = Bucket(self._complete_from)
        return found

    def wrote(self, revision: int) -> None:
        """This server wrote at ``revision``: later reads must see it."""
        self._written = max(self._written, revision)

    async def fresh(self) -> None:
        """Wait until the cache holds this server's own latest write."""
        if self.revision < self._written:
            await self.reach(self._written)

    async def reach(self, revision: int) -> None:
        """Wait for a revision; StatusError 504 if it does not come in time."""
        if self.revision >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = revision
        try:
            async with asyncio.timeout(FRESH_TIMEOUT_S):
                await future
        except TimeoutError:
            if revision <= self._written:
                raise unavailable("the watch of etcd lags behind; try again") from None
            raise too_large_revision(revision, self.revision) from None
        finally:
            self._waiting.pop(future, None)

    def _wake(self) -> None:
        for future, revision in list(self._waiting.items()):
            if self.revision >= revision and not future.done():
                future.set_result(None)

    def subscribe(self, bucket: Bucket, deliver: Callable[[Event | None], None]) -> int:
        """Call ``deliver`` with each event of a bucket, None when history is lost."""
        self._next_watcher += 1
        bucket.watchers[self._next_watcher] = deliver
        return self._next_watcher


def _prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with ``prefix``, which ends in a slash."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _registry_split(key: bytes) -> tuple[str, str]:
    """(directory, ``ns/name`` or ``name``) of ``/registry/<directory>/…``."""
    directory, _, rest = key[len(PREFIX) :].decode("utf-8", "replace").partition("/")
    if directory == "services":
        # The one directory with two below it: services/specs and services/endpoints.
        part, _, rest = rest.partition("/")
        directory = f"{directory}/{part}"
    return directory, rest


def object_key(directory: str, namespace: str, name: str) -> bytes:
    """The etcd key of an object."""
    path = f"{namespace}/{name}" if namespace else name
    prefix = b"" if directory.startswith("/") else PREFIX
    return prefix + f"{directory}/{path}".encode()
