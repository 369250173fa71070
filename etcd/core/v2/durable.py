"""The v2 store as a part of the engine: logged, snapshotted, recovered with the v3 store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcd.core import wal
from etcd.core.errors import NO_SPACE, EtcdError
from etcd.core.v2 import log
from etcd.core.v2.store import (
    FIRST_START_INDEXES,
    RESTART_INDEXES,
    Op,
    Operation,
    V2Store,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from etcd.core.v2.hub import Event


class DurableV2:
    """See the module.  ``log_record`` appends a record to the log; ``full`` tells of no space."""

    def __init__(self, log_record: Callable[[bytes], None], full: Callable[[], bool]) -> None:
        self.store = V2Store()
        self._log_record = log_record
        self._full = full

    def apply(self, operation: Operation) -> Event | None:
        """Run an operation, log it, tell its watchers.

        Raises V2Error if it cannot be done, EtcdError when the log has no space.
        """
        if self._full():
            raise EtcdError(*NO_SPACE)
        return self._apply(operation)

    def _apply(self, operation: Operation) -> Event | None:
        event = self.store.apply(operation)
        self._log_record(wal.record(wal.Kind.V2_OPERATION, log.operation_bytes(operation)))
        # After the record: what listeners are told waits until the log is synced.
        self.store.hub.tell(self.store.take_notices())
        return event

    def publish(self, now_ns: int) -> None:
        """Take the indexes a member's start takes; a full disk keeps no server from starting."""
        indexes = RESTART_INDEXES if self.store.index else FIRST_START_INDEXES
        self._apply(Operation(Op.PUBLISH, now_ns, prev_index=indexes))

    def snapshot(self) -> list[bytes]:
        """Return the records of the state as of now."""
        records = [wal.record(wal.Kind.V2_HEAD, log.head_bytes(self.store))]
        records += [wal.record(wal.Kind.V2_NODES, rows) for rows in log.node_rows(self.store)]
        records += [wal.record(wal.Kind.V2_EVENTS, rows) for rows in log.event_rows(self.store)]
        return records

    def replay(self, kind: wal.Kind, data: bytes) -> None:
        """Apply one record of the log or of a snapshot."""
        match kind:
            case wal.Kind.V2_HEAD:
                log.restore_head(self.store, data)
            case wal.Kind.V2_NODES:
                log.restore_nodes(self.store, data)
            case wal.Kind.V2_EVENTS:
                log.restore_events(self.store, data)
            case _:
                self.store.apply(log.parse_operation(data))
                self.store.take_notices()
