"""A copy of parts of the datastore, kept current: what felix, confd and controllers decide from."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from agents.calico.datastore import Query
from etcd.client import CompactedError, EtcdError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterable, Sequence

    from agents.calico.datastore import Change, Datastore, KVPair

    OnChange = Callable[[tuple[str, ...]], None]

# Between two attempts to read everything anew while etcd refuses.
RETRY_S: Final = 1.0
RESOURCES: Final = "/calico/resources/"


class Mirror:
    """All keys under some prefixes of ``/calico/``.

    ``items`` holds every key in sorted order of first sight; ``on_change`` is called, from the
    task that runs ``run``, with the keys that changed since the last call, at first with all.
    It must not await: take the keys and wake whoever acts on them.  Changes of resources come in
    their order, those under other prefixes each in theirs.  Others of the same process may
    ``subscribe``: one copy, one watch, each change read once.
    """

    def __init__(
        self,
        datastore: Datastore,
        prefixes: Sequence[str],
        on_change: OnChange | None,
        log: logging.Logger,
    ) -> None:
        self._datastore = datastore
        self._prefixes = tuple(
            prefix
            for prefix in dict.fromkeys(prefixes)
            if not any(prefix != other and prefix.startswith(other) for other in prefixes)
        )
        self._log = log
        self.items: dict[str, KVPair] = {}
        self.revision = 0
        # Set once everything has been read for the first time.
        self.synced = asyncio.Event()
        self._subscribers: list[tuple[tuple[str, ...], OnChange]] = []
        if on_change is not None:
            self.subscribe(self._prefixes, on_change)

    def subscribe(self, prefixes: Sequence[str], on_change: OnChange) -> None:
        """Also tell of keys under some of the mirror's prefixes, as of its own."""
        assert all(prefix.startswith(self._prefixes) for prefix in prefixes), prefixes
        theirs = tuple(prefixes)
        self._subscribers.append((theirs, on_change))
        if self.synced.is_set():
            on_change(tuple(key for key in self.items if key.startswith(theirs)))

    def _tell(self, keys: Iterable[str], *, always: bool = False) -> None:
        touched = tuple(keys)
        for prefixes, on_change in self._subscribers:
            theirs = tuple(key for key in touched if key.startswith(prefixes))
            if theirs or always:
                on_change(theirs)

    async def run(self) -> None:
        """Follow the datastore until cancelled."""
        task = asyncio.current_task()
        assert task is not None
        while True:
            # A group tells of a watch that failed rather than of our end, where both happened.
            if task.cancelling():
                raise asyncio.CancelledError
            try:
                await self._read_all()
                start = self.revision + 1
                async with asyncio.TaskGroup() as group:
                    for prefixes in _watches(self._prefixes):
                        name = f"calico.watch{prefixes[0]}"
                        group.create_task(self._follow(prefixes, start), name=name)
            except* CompactedError as lost:
                text = str(lost.exceptions[0])
                self._log.warning("watch of %s: %s; reading all again", self._prefixes[0], text)
            except* EtcdError as refused:
                text = str(refused.exceptions[0])
                self._log.warning("datastore: %s; trying again in %s s", text, RETRY_S)
                await asyncio.sleep(0.0 if task.cancelling() else RETRY_S)

    async def _read_all(self) -> None:
        queries = [Query(prefix, prefix=True) for prefix in self._prefixes]
        snapshot = await self._datastore.read(*queries)
        now = {kvp.key: kvp for found in snapshot.results for kvp in found}
        changed = [
            key
            for key in dict.fromkeys((*self.items, *now))
            if key not in now
            or key not in self.items
            or now[key].revision != self.items[key].revision
        ]
        self.items = now
        self.revision = snapshot.revision
        if changed or not self.synced.is_set():
            first = not self.synced.is_set()
            self.synced.set()
            self._tell(changed, always=first)

    async def _follow(self, prefixes: tuple[str, ...], start: int) -> None:
        following = self._datastore.watch(_common(prefixes), from_revision=start, only=prefixes)
        async with following as changes:
            async for batch in changes:
                self._apply(batch)

    def _apply(self, batch: tuple[Change, ...]) -> None:
        touched: dict[str, None] = {}
        for kind, kvp in batch:
            self.revision = max(self.revision, kvp.revision)
            if kind == "PUT":
                self.items[kvp.key] = kvp
            elif self.items.pop(kvp.key, None) is None:
                continue
            touched[kvp.key] = None
        if touched:
            self._tell(touched)


def _watches(prefixes: Sequence[str]) -> list[tuple[str, ...]]:
    """The prefixes that share a watch: those of resources.

    What lies beside the others is mostly what other nodes write about themselves: to be told of all
    of it would wake every node at every claim of an address.
    """
    resources = tuple(prefix for prefix in prefixes if prefix.startswith(RESOURCES))
    alone: list[tuple[str, ...]] = [(each,) for each in prefixes if each not in resources]
    return [resources, *alone] if resources else alone


def _common(prefixes: Sequence[str]) -> str:
    low, high = min(prefixes), max(prefixes)
    for at, char in enumerate(low):
        if at >= len(high) or high[at] != char:
            return low[:at]
    return low
