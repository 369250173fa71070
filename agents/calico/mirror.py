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


class Mirror:
    """All keys under some prefixes of ``/calico/``.

    ``items`` holds every key in sorted order of first sight; ``on_change`` is called, from the
    task that runs ``run``, with the keys that changed since the last call, at first with all.
    It must not await: take the keys and wake whoever acts on them.  Others of the same process may
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
        self._subscribers: list[tuple[tuple[str, ...], OnChange]] = []
        if on_change is not None:
            self.subscribe(self._prefixes, on_change)
        self._log = log
        self.items: dict[str, KVPair] = {}
        self.revision = 0
        # Set once everything has been read for the first time.
        self.synced = asyncio.Event()

    def subscribe(self, prefixes: Sequence[str], on_change: OnChange) -> None:
        """Also tell of keys under some of the mirror's prefixes, as of its own."""
        assert all(prefix.startswith(self._prefixes) for prefix in prefixes), prefixes
        self._subscribers.append((tuple(prefixes), on_change))

    def _tell(self, keys: Iterable[str], *, always: bool = False) -> None:
        touched = tuple(keys)
        for prefixes, on_change in self._subscribers:
            theirs = tuple(key for key in touched if key.startswith(prefixes))
            if theirs or always:
                on_change(theirs)

    async def run(self) -> None:
        """Follow the datastore until cancelled."""
        while True:
            try:
                await self._read_all()
                await self._follow()
            except CompactedError as error:
                self._log.warning("watch of %s: %s; reading all again", self._prefixes[0], error)
            except EtcdError as error:
                self._log.warning("datastore: %s; trying again in %s s", error, RETRY_S)
                await asyncio.sleep(RETRY_S)

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

    async def _follow(self) -> None:
        """One watch over what the prefixes have in common: one order of all changes."""
        common = _common(self._prefixes)
        following = self._datastore.watch(
            common, from_revision=self.revision + 1, only=self._prefixes
        )
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


def _common(prefixes: Sequence[str]) -> str:
    low, high = min(prefixes), max(prefixes)
    for at, char in enumerate(low):
        if at >= len(high) or high[at] != char:
            return low[:at]
    return low
