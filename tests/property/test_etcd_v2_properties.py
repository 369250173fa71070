"""The v2 store: whatever happens to it, its log and its snapshot give the same store again."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from etcd.core import wal
from etcd.core.engine import Engine
from etcd.core.v2 import form, log, render
from etcd.core.v2.errors import V2Error
from etcd.core.v2.request import parse
from etcd.core.v2.store import SECOND_NS, Op, Operation, V2Store

NOW_NS = 1_700_000_000 * SECOND_NS
NAMES = st.sampled_from(["a", "b", "_h", "é", "\udcff"])
PATHS = st.lists(NAMES, max_size=3).map(lambda names: "/" + "/".join(names))
VALUES = st.sampled_from(["", "x", "y", "\udcfe<"])
OPERATIONS = st.builds(
    Operation,
    st.sampled_from(list(Op)),
    st.integers(0, 50).map(lambda s: NOW_NS + s * SECOND_NS),
    PATHS,
    VALUES,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), st.integers(-5, 60).map(lambda s: NOW_NS + s * SECOND_NS)),
    VALUES,
    st.integers(0, 12),
)


def picture(store: V2Store) -> object:
    """Everything a client could ever see of a store."""
    nodes = [
        (node.path, node.value, node.children is None, node.expires_ns, node.modified, node.created)
        for node in store.nodes()
    ]
    return nodes, store.index, list(store.hub.history), store.next_expiration_ns()


def apply_all(engine: Engine, operations: list[Operation]) -> bytes:
    v2 = engine.enable_v2()
    for operation in operations:
        with contextlib.suppress(V2Error):
            v2.apply(operation)
    return b"".join(engine.take_records())


@settings(deadline=None)
@given(st.lists(OPERATIONS, max_size=25), st.lists(OPERATIONS, max_size=8))
def test_log_and_snapshot_give_the_same_store(
    operations: list[Operation], more: list[Operation]
) -> None:
    engine = Engine(1, 2)
    records = apply_all(engine, operations)
    replayed = Engine(1, 2)
    replayed.replay(records)
    if records:
        assert picture(replayed.enable_v2().store) == picture(engine.enable_v2().store)
    restored = Engine(1, 2)
    restored.restore(list(engine.snapshot(7)), "snapshot")
    assert picture(restored.enable_v2().store) == picture(engine.enable_v2().store)
    # They also go on alike.
    assert apply_all(engine, more) == apply_all(restored, more)
    assert picture(restored.enable_v2().store) == picture(engine.enable_v2().store)


@settings(deadline=None)
@given(OPERATIONS)
def test_operations_round_trip(operation: Operation) -> None:
    assert log.parse_operation(log.operation_bytes(operation)) == operation


@settings(deadline=None)
@given(st.lists(OPERATIONS, max_size=25))
def test_every_index_has_exactly_one_event(operations: list[Operation]) -> None:
    store = V2Store()
    for operation in operations:
        before = store.index
        try:
            store.apply(operation)
        except V2Error:
            assert store.index == before
    numbers = [event.number for event in store.hub.history]
    assert numbers == list(range(1, store.index + 1))


@settings(deadline=None)
@given(
    st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE"]),
    st.binary(max_size=30),
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([b"ttl=5", b"prevIndex=1", b"refresh=true", b"wait=true", b"dir=1"]),
        ),
        max_size=4,
    ),
)
def test_any_request_is_understood_or_refused(
    method: str, path: bytes, fields: list[bytes]
) -> None:
    store = V2Store()
    try:
        asked = parse(method, form.text(path), [b"&".join(fields)], now_ns=NOW_NS)
        if hasattr(asked, "operation"):
            event = store.apply(asked.operation)
            assert event is not None
            render.event_json(event).encode()
            render.get_json(store.root, recursive=True, in_order=True, now_ns=NOW_NS).encode()
    except V2Error as error:
        render.error_json(error).encode()


def test_record_kinds_of_the_store_come_last() -> None:
    """Snapshots tell the v2 store's records from the rest by their numbers."""
    assert {kind.name for kind in wal.Kind if kind >= wal.Kind.V2_OPERATION} == {
        "V2_OPERATION", "V2_HEAD", "V2_NODES", "V2_EVENTS"
    }  # fmt: skip
