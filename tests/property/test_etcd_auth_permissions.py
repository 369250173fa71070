"""Merged permissions against a model that only knows single keys; the auth store against replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from etcd.core.auth import AuthStore
from etcd.core.auth_perms import KeySet, MergedPermissions, Permission
from etcd.core.errors import EtcdError
from etcd.core.pb import auth_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

# Few letters and short keys, so that ranges touch, overlap and contain each other.
KEYS = st.text("abc", min_size=1, max_size=2).map(str.encode)
ENDS = st.one_of(st.just(b""), st.just(b"\0"), KEYS)
KINDS = st.sampled_from(
    [auth_pb2.Permission.READ, auth_pb2.Permission.WRITE, auth_pb2.Permission.READWRITE]
)
PERMISSIONS = st.lists(st.builds(Permission, KINDS, KEYS, ENDS), max_size=8)


def _grants(permission: Permission, key: bytes) -> bool:
    if not permission.range_end:
        return key == permission.key
    return permission.key <= key and (permission.range_end == b"\0" or key < permission.range_end)


def _end(permission: Permission) -> bytes | None:
    """The first key after the permission, None if it has no end."""
    if permission.range_end == b"\0":
        return None
    return permission.range_end or permission.key + b"\0"


def _covered(permissions: list[Permission], key: bytes, range_end: bytes) -> bool:
    """Walk from key to key that nothing has granted yet: at most one per permission."""
    at = key
    stop = key + b"\0" if not range_end else None if range_end == b"\0" else range_end
    while True:
        holders = [permission for permission in permissions if _grants(permission, at)]
        if not holders:
            return False
        ends = [_end(permission) for permission in holders]
        if None in ends:
            return True
        at = max(end for end in ends if end is not None)
        if stop is not None and at >= stop:
            return True


@settings(max_examples=500)
@given(PERMISSIONS, KEYS, ENDS)
def test_a_range_is_granted_when_the_permissions_together_cover_it(
    permissions: list[Permission], key: bytes, range_end: bytes
) -> None:
    merged = MergedPermissions(permissions)
    reads = [entry for entry in permissions if entry.kind != auth_pb2.Permission.WRITE]
    writes = [entry for entry in permissions if entry.kind != auth_pb2.Permission.READ]
    assert merged.reads.covers(key, range_end) == _covered(reads, key, range_end)
    assert merged.writes.covers(key, range_end) == _covered(writes, key, range_end)


@given(st.lists(st.tuples(KEYS, st.none() | KEYS), max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_the_grants_does_not_matter(
    intervals: list[tuple[bytes, bytes | None]], rng: object
) -> None:
    shuffled = list(intervals)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random
    keys = [key for key, _ in intervals]
    for key in keys:
        for end in (b"", b"\0", *keys):
            assert KeySet(intervals).covers(key, end) == KeySet(shuffled).covers(key, end)


NAMES = st.sampled_from(["root", "a", "b", "ä"])
Step = tuple[str, tuple[object, ...]]
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("user_add"), st.tuples(NAMES, st.binary(max_size=4))),
    st.tuples(st.just("user_delete"), st.tuples(NAMES)),
    st.tuples(st.just("user_change_password"), st.tuples(NAMES, st.binary(max_size=4))),
    st.tuples(st.just("user_grant_role"), st.tuples(NAMES, NAMES)),
    st.tuples(st.just("user_revoke_role"), st.tuples(NAMES, NAMES)),
    st.tuples(st.just("role_add"), st.tuples(NAMES)),
    st.tuples(st.just("role_delete"), st.tuples(NAMES)),
    st.tuples(st.just("role_grant"), st.tuples(NAMES, st.builds(Permission, KINDS, KEYS, ENDS))),
    st.tuples(st.just("role_revoke"), st.tuples(NAMES, KEYS, ENDS)),
    st.tuples(st.just("enable"), st.just(())),
    st.tuples(st.just("disable"), st.just(())),
)


def _state(store: AuthStore) -> tuple[object, ...]:
    return store.enabled, store.revision, store.users(), store.roles()


@given(st.lists(STEPS, max_size=40), st.integers(0, 40))
def test_replaying_the_log_or_a_snapshot_and_the_rest_of_the_log_gives_the_same_store(
    steps: list[Step], snapshot_after: int
) -> None:
    log: list[bytes] = []
    store = AuthStore(log.append)
    snapshot, covered = store.record(), 0
    for number, (verb, arguments) in enumerate(steps):
        before, logged = _state(store), len(log)
        call: Callable[..., None] = getattr(store, verb)
        try:
            call(*arguments, **({"no_password": False} if verb == "user_add" else {}))
        except EtcdError:
            assert (_state(store), len(log)) == (before, logged)
        # One request, at most one record: a crash never leaves half of it.
        assert len(log) <= logged + 1
        assert (_state(store) == before) == (len(log) == logged)
        if number == snapshot_after:
            snapshot, covered = store.record(), len(log)
    for first, rest in ((None, log), (snapshot, log[covered:])):
        again = AuthStore(lambda _: None)
        for record in ([] if first is None else [first]) + rest:
            again.replay(record)
        assert _state(again) == _state(store)
