"""List, then watch, for ever: one collection as a stream of changes.

The reader of the watch only parses and hands batches on through a bounded queue; whoever
consumes them can be slow without stalling the read before the queue is full (then TCP's own
window tells the server).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from emulator.kubeclient.backoff import Backoff, BackoffPolicy
from emulator.kubeclient.errors import ApiError, ApiUnreachableError

if TYPE_CHECKING:
    from emulator.kubeclient.resource import Resource
    from emulator.kubeclient.rest import RestClient, WatchEvent

    Object = dict[str, Any]

# Batches (one socket read each) between the watch's reader and the store.
MAX_PENDING_BATCHES = 256
# Watches are renewed after a random time between this and twice this, so that the agents of a
# cluster do not all come back in the same second; client-go: 5 to 10 minutes.
MIN_WATCH_S = 300
# A watch that ends sooner than this without an event counts as a failure and is backed off.
SHORT_WATCH_S = 1.0


class Replace(NamedTuple):
    """The whole collection as just listed."""

    items: list[Object]


class Changes(NamedTuple):
    """Changes since, in order; bookmarks are left out."""

    events: list[WatchEvent]


class Reflector:
    """Feeds ``queue``: ``Replace`` first, ``Changes`` after, ``Replace`` again after a 410."""

    def __init__(
        self,
        client: RestClient,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        log: logging.Logger | None = None,
        backoff: BackoffPolicy | None = None,
    ) -> None:
        self._client = client
        self._resource = resource
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._log = log or logging.getLogger("podwire.kubeclient")
        self._backoff = Backoff(backoff or BackoffPolicy(), client.rng)
        self.queue: asyncio.Queue[Replace | Changes] = asyncio.Queue(MAX_PENDING_BATCHES)
        self.resource_version = ""
        """The newest revision seen: of the list, of an event, or of a bookmark."""
        self.relists = 0
        """Lists made so far, the first included."""
        self._failing = False

    async def run(self) -> None:
        """Never returns; failures to reach the server are logged and tried again."""
        listed = False
        while True:
            try:
                if not listed:
                    await self._list()
                    listed = True
                if await self._watch():
                    self._backoff.reset()
                    continue
            except ApiError as error:
                if listed and (error.is_expired or error.is_from_the_future):
                    self._log.info("watch of %s: %s; listing", self._resource.qualified, error)
                    listed = False
                else:
                    self._report(error)
            except ApiUnreachableError as error:
                self._report(error)
            await asyncio.sleep(self._backoff.next_delay_s())

    def _report(self, error: Exception) -> None:
        # One line when it breaks, one when it works again; the tries between are for debugging.
        level = logging.DEBUG if self._failing else logging.WARNING
        self._failing = True
        self._log.log(
            level, "list/watch of %s failed, trying again: %s", self._resource.qualified, error
        )

    async def _list(self) -> None:
        listed = await self._client.list(
            self._resource,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        self.relists += 1
        self.resource_version = listed.resource_version
        await self.queue.put(Replace(listed.items))

    async def _watch(self) -> bool:
        """Watch until the stream ends; False if it was too short to have been of use."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        seen = False
        async with self._client.watch(
            self._resource,
            self._namespace,
            resource_version=self.resource_version,
            timeout_s=int(MIN_WATCH_S * (1 + self._client.rng.random())),
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        ) as batches:
            self._backoff.reset()
            if self._failing:
                self._failing = False
                self._log.info("watch of %s works again", self._resource.qualified)
            async for batch in batches:
                seen = True
                changes = [event for event in batch if event.type != "BOOKMARK"]
                if changes:
                    await self.queue.put(Changes(changes))
                last = batch[-1].object.get("metadata") or {}
                self.resource_version = last.get("resourceVersion") or self.resource_version
        return seen or loop.time() - started >= SHORT_WATCH_S
