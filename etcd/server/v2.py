"""The v2 store of a running member: changes through its log, TTLs on its clock."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from etcd.core.errors import EtcdError
from etcd.core.lease import EXPIRY_INTERVAL_S
from etcd.core.v2.request import Read, Wait, parse
from etcd.core.v2.store import SECOND_NS, Op, Operation

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from etcd.core.v2.hub import Event
    from etcd.core.v2.request import Change, Request
    from etcd.core.v2.store import V2Store
    from etcd.server.member import Member


class V2Keys:
    """What the HTTP side of the v2 API calls.

    Everything is applied at once; hold the answer back with ``Member.answer`` until it is durable.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        # Wall clock of the start, for /v2/stats/self.
        self.started_ns = self.now_ns()
        self._timer: asyncio.TimerHandle | None = None
        # When the timer rings, on the loop's clock.
        self._due = 0.0
        # The next expiry is no sooner: etcd looks every 500 ms.
        self._not_before = 0.0
        self.arm()

    @property
    def store(self) -> V2Store:
        return self.member.engine.enable_v2().store

    def now_ns(self) -> int:
        """The wall clock in Unix nanoseconds."""
        return int(self.member.env.clock.time() * SECOND_NS)

    def parse(self, method: str, path: str, sources: Sequence[bytes]) -> Request:
        """Return what a request asks for now; raises V2Error."""
        return parse(method, path, sources, now_ns=self.now_ns())

    def change(self, change: Change) -> Event:
        """Apply a change; raises V2Error, EtcdError when the log is full."""
        # Counted whether it is done or refused: a real cluster logs both.
        engine = self.member.engine
        index = engine.raft_index
        try:
            event = engine.enable_v2().apply(change.operation)
        finally:
            engine.raft_index = index + 1
        assert event is not None, "requests have events"
        self.member.schedule_flush()
        self.arm()
        return event

    def quorum(self, request: Read | Wait) -> None:
        """Count a read through the log."""
        if isinstance(request, Read) and request.quorum:
            self.member.engine.raft_index += 1

    # Expiration ----------------------------------------------------------------------------

    def arm(self) -> None:
        """Have the timer ring at the next expiration."""
        at_ns = self.store.next_expiration_ns()
        if at_ns is None:
            return
        loop = self.member.loop
        due = max(loop.time() + (at_ns - self.now_ns()) / SECOND_NS, self._not_before)
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = loop.call_at(due, self._expire)

    def _expire(self) -> None:
        self._timer = None
        member = self.member
        if member.stopped or member.failure.done():
            return
        now_ns = self.now_ns()
        at_ns = self.store.next_expiration_ns()
        if at_ns is not None and at_ns <= now_ns:
            self._not_before = member.loop.time() + EXPIRY_INTERVAL_S
            # On a full disk nothing expires: it could not be remembered.
            with contextlib.suppress(EtcdError):
                member.engine.enable_v2().apply(Operation(Op.EXPIRE, now_ns))
            member.schedule_flush()
        self.arm()

    def close(self) -> None:
        """Stop the timer; end the requests that wait."""
        if self._timer is not None:
            self._timer.cancel()
        self.store.hub.clear()
