"""Bytes of the v2 store in the log and in snapshots.

An operation is logged as it was asked: with its time it is deterministic.  A snapshot is a head,
then nodes (parents first), then the history.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from etcd.core.v2.hub import Event, Extern
from etcd.core.v2.store import STATISTICS, Op, Operation, V2Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# op, flags, now, expiration, previous index, sizes of path, value and previous value
_OPERATION: Final = struct.Struct("<BBqqQIII")
_HEAD: Final = struct.Struct(f"<Q{len(STATISTICS)}Q")
# directory, expires, expiration, modified, created, sizes of path and value
_NODE: Final = struct.Struct("<??qQQII")
# flags, then for node and previous: expiration, ttl, modified, created; sizes of the action, the
# two keys and the two values
_EVENT: Final = struct.Struct("<B8q5I")
_DIR, _RECURSIVE, _REFRESH, _EXPIRES = 1, 2, 4, 8
_PREVIOUS, _NODE_DIR, _PREVIOUS_DIR, _NODE_VALUE, _PREVIOUS_VALUE = 2, 8, 16, 32, 64
# Rows of one record: some hundred kilobytes.
ROWS_PER_RECORD: Final = 1000


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def operation_bytes(operation: Operation) -> bytes:
    """Return an operation as a log record's payload."""
    path, value = _bytes(operation.path), _bytes(operation.value)
    prev_value = _bytes(operation.prev_value)
    flags = (
        _DIR * operation.dir
        | _RECURSIVE * operation.recursive
        | _REFRESH * operation.refresh
        | _EXPIRES * (operation.expires_ns is not None)
    )
    head = _OPERATION.pack(
        operation.op,
        flags,
        operation.now_ns,
        operation.expires_ns or 0,
        operation.prev_index,
        len(path),
        len(value),
        len(prev_value),
    )
    return head + path + value + prev_value


def parse_operation(data: bytes) -> Operation:
    """Return the operation of a record whose checksum was right."""
    op, flags, now_ns, expires_ns, prev_index, *sizes = _OPERATION.unpack_from(data)
    path, value, prev_value = _cut(data, _OPERATION.size, sizes)[0]
    return Operation(
        Op(op),
        now_ns,
        path,
        value,
        bool(flags & _DIR),
        bool(flags & _RECURSIVE),
        bool(flags & _REFRESH),
        expires_ns if flags & _EXPIRES else None,
        prev_value,
        prev_index,
    )


def _cut(data: bytes, at: int, sizes: Iterable[int]) -> tuple[list[str], int]:
    """Return strings of the given byte lengths and where they end."""
    texts = []
    for size in sizes:
        texts.append(_text(data[at : at + size]))
        at += size
    return texts, at


def head_bytes(store: V2Store) -> bytes:
    """Return index and counters."""
    return _HEAD.pack(store.index, *store.statistics.values())


def node_rows(store: V2Store) -> list[bytes]:
    """Return payloads of records that hold all nodes, parents first."""
    rows = []
    for node in store.nodes():
        path, value = _bytes(node.path), _bytes(node.value)
        expires = node.expires_ns is not None
        is_dir = node.children is not None
        head = _NODE.pack(
            is_dir,
            expires,
            node.expires_ns or 0,
            node.modified,
            node.created,
            len(path),
            len(value),
        )
        rows.append(head + path + value)
    return _joined(rows)


def event_rows(store: V2Store) -> list[bytes]:
    """Return payloads of records that hold the history, oldest first."""
    return _joined([_event_bytes(event) for event in store.hub.history])


def _joined(rows: list[bytes]) -> list[bytes]:
    return [
        b"".join(rows[at : at + ROWS_PER_RECORD]) for at in range(0, len(rows), ROWS_PER_RECORD)
    ]


def _event_bytes(event: Event) -> bytes:
    node, previous = event.node, event.previous
    shown = previous or Extern("", None, False, 0, 0, 0, 0)
    flags = (
        _REFRESH * event.refresh
        | _PREVIOUS * (previous is not None)
        | _NODE_DIR * node.dir
        | _PREVIOUS_DIR * shown.dir
        | _NODE_VALUE * (node.value is not None)
        | _PREVIOUS_VALUE * (shown.value is not None)
    )
    texts = [
        _bytes(text)
        for text in (event.action, node.key, shown.key, node.value or "", shown.value or "")
    ]
    numbers = (*node[3:], *shown[3:])
    return _EVENT.pack(flags, *numbers, *map(len, texts)) + b"".join(texts)


def restore_head(store: V2Store, data: bytes) -> None:
    """Take what ``head_bytes`` gave into an empty store."""
    store.index, *counters = _HEAD.unpack(data)
    store.statistics = dict(zip(STATISTICS, counters, strict=True))


def restore_nodes(store: V2Store, data: bytes) -> None:
    """Add a record's nodes."""
    at = 0
    while at < len(data):
        is_dir, expires, expires_ns, modified, created, *sizes = _NODE.unpack_from(data, at)
        (path, value), at = _cut(data, at + _NODE.size, sizes)
        store.restore_node(
            path,
            None if is_dir else value,
            expires_ns if expires else None,
            modified=modified,
            created=created,
        )


def restore_events(store: V2Store, data: bytes) -> None:
    """Add a record's events to the history."""
    store.hub.history.extend(_events(data))


def _events(data: bytes) -> Iterator[Event]:
    at = 0
    while at < len(data):
        flags, *numbers = _EVENT.unpack_from(data, at)
        texts, at = _cut(data, at + _EVENT.size, numbers[8:])
        action, key, previous_key, value, previous_value = texts
        node = Extern(
            key, value if flags & _NODE_VALUE else None, bool(flags & _NODE_DIR), *numbers[:4]
        )
        previous = None
        if flags & _PREVIOUS:
            shown = previous_value if flags & _PREVIOUS_VALUE else None
            previous = Extern(previous_key, shown, bool(flags & _PREVIOUS_DIR), *numbers[4:8])
        yield Event(action, node, previous, bool(flags & _REFRESH))
