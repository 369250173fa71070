"""Serving one watch: from a revision on, through selectors, as a stream of JSON lines."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from aiohttp import web

from agents.apiserver.config import (
    BOOKMARK_PERIOD_S,
    MAX_WATCH_BACKLOG,
    MIN_WATCH_S,
    WATCH_LIVENESS_S,
)
from emulator.apimachinery.objects import dump_json
from emulator.apimachinery.status import StatusError, bad_request, expired

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from agents.apiserver.cache import Cache, Entry, Event
    from agents.apiserver.forms import Form

INITIAL_END = "k8s.io/initial-events-end"


class Watcher:
    """The queue between the cache and one client; ``lost`` ends the stream."""

    __slots__ = ("_matches", "lost", "queue", "wake")

    def __init__(self, matches: Callable[[Entry], bool]) -> None:
        self._matches = matches
        self.queue: deque[tuple[str, Event]] = deque()
        self.wake = asyncio.Event()
        self.lost = False

    def deliver(self, event: Event | None) -> None:
        """Take an event as this client sees it: a change may enter or leave the selection."""
        if self.lost:
            # What comes after a gap would let the client resume behind it.
            return
        if event is None or len(self.queue) >= MAX_WATCH_BACKLOG:
            self.lost = True
            self.wake.set()
            return
        had = event.before is not None and self._matches(event.before)
        has = event.after is not None and self._matches(event.after)
        if has:
            self.queue.append(("MODIFIED" if had else "ADDED", event))
        elif had:
            self.queue.append(("DELETED", event))
        else:
            return
        self.wake.set()


class WatchRequest:
    """The parameters of a watch, read from the query."""

    __slots__ = ("bookmarks", "initial_events", "revision", "timeout_s")

    def __init__(self, query: Any, rng: random.Random) -> None:
        self.bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        self.revision = parse_revision(query)
        self.initial_events = query.get("sendInitialEvents") in ("true", "1")
        match = query.get("resourceVersionMatch", "")
        if match and "sendInitialEvents" not in query:
            raise StatusError(
                422,
                "Invalid",
                'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: '
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )
        if "sendInitialEvents" in query and match != "NotOlderThan":
            raise StatusError(
                422,
                "Invalid",
                'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: '
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )
        try:
            seconds = int(query.get("timeoutSeconds") or 0)
        except ValueError:
            raise bad_request(
                f'strconv.ParseInt: parsing "{query["timeoutSeconds"]}": invalid syntax'
            ) from None
        self.timeout_s = float(seconds) if seconds > 0 else MIN_WATCH_S * (1 + rng.random())


def parse_revision(query: Any) -> int | None:
    """``resourceVersion`` as a number, None where it is not given; StatusError 400."""
    text = query.get("resourceVersion") or ""
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise bad_request(
            f'Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        )
    return int(text)


async def serve(
    request: web.BaseRequest,
    cache: Cache,
    directory: str,
    asked: WatchRequest,
    form: Form,
    matches: Callable[[Entry], bool],
) -> web.StreamResponse:
    """Answer a watch until its time is over, the client leaves or history is lost."""
    watcher = Watcher(matches)
    if asked.revision:
        await cache.reach(asked.revision)
    else:
        await cache.fresh()
    # A reload of the cache makes new buckets, so this one is looked up after the waiting.
    bucket = cache.bucket(directory)
    too_old: StatusError | None = None
    opening: list[bytes] = []
    revision = cache.revision
    # From here to subscribe nothing awaits, so no event falls between.
    if asked.initial_events or not asked.revision:
        opening = [
            form.added(entry) for key in bucket.order() if matches(entry := bucket.entries[key])
        ]
        if asked.initial_events:
            opening.append(form.bookmark(revision, {INITIAL_END: "true"}))
    else:
        try:
            for event in bucket.since(asked.revision):
                watcher.deliver(event)
        except StatusError as error:
            too_old = error
    number = cache.subscribe(bucket, watcher.deliver)
    response = web.StreamResponse(headers={"Cache-Control": "no-cache, private"})
    try:
        response.headers["Content-Type"] = form.content_type
        response.enable_chunked_encoding()
        await response.prepare(request)
        if too_old is not None:
            await response.write(_error_line(too_old))
        else:
            if opening:
                await response.write(b"".join(opening))
            await _pump(request, response, watcher, cache, asked, form)
        await response.write_eof()
        return response
    except ConnectionError:
        # The client left; there is nobody to tell.
        return response
    finally:
        bucket.watchers.pop(number, None)


async def _pump(
    request: web.BaseRequest,
    response: web.StreamResponse,
    watcher: Watcher,
    cache: Cache,
    asked: WatchRequest,
    form: Form,
) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + asked.timeout_s
    bookmark_at = loop.time() + BOOKMARK_PERIOD_S if asked.bookmarks else deadline
    while True:
        while watcher.queue:
            batch = b"".join(form.line(kind, event) for kind, event in watcher.queue)
            watcher.queue.clear()
            await response.write(batch)
        if watcher.lost:
            await response.write(_error_line(expired("the watch fell behind; list again")))
            return
        watcher.wake.clear()
        try:
            look_at = loop.time() + WATCH_LIVENESS_S
            async with asyncio.timeout_at(min(deadline, bookmark_at, look_at)):
                await watcher.wake.wait()
        except TimeoutError:
            if request.transport is None:
                return
            now = loop.time()
            if watcher.queue or watcher.lost:
                # The time was up in the very moment of a change: a bookmark would overtake it.
                continue
            if asked.bookmarks and now >= bookmark_at:
                await response.write(form.bookmark(cache.revision, None))
                bookmark_at = now + BOOKMARK_PERIOD_S
            if now >= deadline:
                return


def _error_line(error: StatusError) -> bytes:
    return dump_json({"type": "ERROR", "object": error.to_status()}) + b"\n"
