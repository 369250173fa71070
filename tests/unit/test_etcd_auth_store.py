"""The rules of users, roles and tokens, without a server."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from etcd.core import auth_tokens, errors
from etcd.core.auth import NOBODY, AuthInfo, AuthStore
from etcd.core.auth_perms import Permission
from etcd.core.auth_tokens import SimpleTokens
from etcd.core.errors import EtcdError
from etcd.core.pb.auth_pb2 import Permission as PermissionMessage

if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE, BOTH = PermissionMessage.READ, PermissionMessage.WRITE, PermissionMessage.READWRITE


@pytest.fixture
def store() -> AuthStore:
    """Root, and alice who may read ``a``…``c`` and write ``b``; auth is on."""
    store = AuthStore(lambda _: None)
    for name in ("root", "alice"):
        store.user_add(name, b"hash", no_password=False)
    store.user_grant_role("root", "root")
    store.role_add("reader")
    store.role_grant("reader", Permission(READ, b"a", b"c"))
    store.role_grant("reader", Permission(READ, b"c", b"d"))
    store.role_add("writer")
    store.role_grant("writer", Permission(WRITE, b"b", b""))
    for role in ("writer", "reader"):
        store.user_grant_role("alice", role)
    store.enable()
    return store


def refused(status: errors.Status, call: Callable[[], object]) -> None:
    with pytest.raises(EtcdError) as caught:
        call()
    assert (caught.value.code, caught.value.message) == status


def test_auth_needs_a_root_user_with_the_root_role() -> None:
    store = AuthStore(lambda _: None)
    refused(errors.ROOT_USER_MISSING, store.enable)
    store.user_add("root", b"", no_password=False)
    refused(errors.ROOT_ROLE_MISSING, store.enable)
    store.user_grant_role("root", "root")
    store.enable()
    assert store.enabled


def test_every_change_moves_the_revision_and_enabling_does_not(store: AuthStore) -> None:
    before = store.revision
    store.enable()
    assert store.revision == before
    store.user_grant_role("alice", "reader")
    assert store.revision == before, "granted again: nothing changed"
    store.role_add("new")
    assert store.revision == before + 1
    store.disable()
    assert store.revision == before + 2


def test_permissions_of_several_roles_and_touching_ranges_count_together(store: AuthStore) -> None:
    alice = AuthInfo("alice", store.revision)
    store.check_read(alice, b"a", b"d")
    store.check_write(alice, b"b")
    refused(errors.PERMISSION_DENIED, lambda: store.check_read(alice, b"a", b"e"))
    refused(errors.PERMISSION_DENIED, lambda: store.check_read(alice, b"a", b"\0"))
    refused(errors.PERMISSION_DENIED, lambda: store.check_write(alice, b"a"))
    store.check_write(AuthInfo("root", store.revision), b"", b"\0")


def test_what_a_role_loses_its_users_lose_at_once(store: AuthStore) -> None:
    store.check_read(AuthInfo("alice", store.revision), b"c0")
    store.role_revoke("reader", b"c", b"d")
    refused(
        errors.PERMISSION_DENIED,
        lambda: store.check_read(AuthInfo("alice", store.revision), b"c0"),
    )
    store.role_delete("writer")
    assert store.user("alice").roles == ("reader",)


def test_a_caller_of_an_older_revision_and_one_who_is_nobody_are_told_so(store: AuthStore) -> None:
    old = AuthInfo("root", store.revision - 1)
    refused(errors.AUTH_OLD_REVISION, lambda: store.check_read(old, b"a"))
    refused(errors.USER_EMPTY, lambda: store.check_read(NOBODY, b"a"))
    refused(errors.USER_EMPTY, lambda: store.check_admin(NOBODY))
    gone = AuthInfo("gone", store.revision)
    refused(errors.PERMISSION_DENIED, lambda: store.check_read(gone, b"a"))
    refused(errors.USER_NOT_FOUND, lambda: store.check_admin(gone))


def test_root_is_safe_while_auth_is_on(store: AuthStore) -> None:
    refused(errors.INVALID_AUTH_MANAGEMENT, lambda: store.user_delete("root"))
    refused(errors.INVALID_AUTH_MANAGEMENT, lambda: store.role_delete("root"))
    refused(errors.INVALID_AUTH_MANAGEMENT, lambda: store.user_revoke_role("root", "root"))
    store.disable()
    store.user_delete("root")


def test_a_grant_on_the_same_range_replaces_the_first_of_its_key(store: AuthStore) -> None:
    store.role_grant("reader", Permission(WRITE, b"a", b"c"))
    store.role_grant("reader", Permission(READ, b"A", b""))
    store.role_grant("reader", Permission(BOTH, b"a", b"b"))
    in_order = [(READ, b"A", b""), (WRITE, b"a", b"c"), (BOTH, b"a", b"b"), (READ, b"c", b"d")]
    assert list(store.role("reader").permissions) == in_order
    # Not the first of its key: etcd lets it stand beside the older one.
    store.role_grant("reader", Permission(READ, b"a", b"b"))
    in_order.insert(3, (READ, b"a", b"b"))
    assert list(store.role("reader").permissions) == in_order
    store.role_revoke("reader", b"a", b"b")
    assert [entry.kind for entry in store.role("reader").permissions] == [READ, WRITE, READ]


def test_a_range_that_holds_nothing_cannot_be_granted(store: AuthStore) -> None:
    for key, end in ((b"b", b"a"), (b"b", b"b"), (b"", b""), (b"", b"\0")):
        given = Permission(READ, key, end)
        refused(
            errors.INVALID_AUTH_MANAGEMENT,
            lambda given=given: store.role_grant("reader", given),  # type: ignore[misc]
        )
    refused(errors.PERMISSION_NOT_GIVEN, lambda: store.role_grant("reader", None))


def _tokens(ttl_s: float = 300.0) -> SimpleTokens:
    letters = itertools.cycle(auth_tokens.LETTERS)
    return SimpleTokens(lambda: next(letters), ttl_s=ttl_s)


def test_a_token_lives_while_it_is_used() -> None:
    tokens = _tokens()
    token = tokens.assign("alice", 1, 17, now=0.0)
    assert token == "abcdefghijklmnop.17"
    for now in (299.0, 598.0):
        assert tokens.info(token, 5, now=now) == AuthInfo("alice", 5)
    assert tokens.info(token, 5, now=898.0) is None
    assert tokens.info(token, 5, now=898.0) is None


def test_the_tokens_of_a_user_or_of_all_can_be_forgotten() -> None:
    tokens = _tokens()
    alice, root = (tokens.assign(name, 1, 1, now=0.0) for name in ("alice", "root"))
    tokens.invalidate("alice")
    assert tokens.info(alice, 1, now=1.0) is None
    assert tokens.info(root, 1, now=1.0) == AuthInfo("root", 1)
    tokens.clear()
    assert tokens.info(root, 1, now=1.0) is None


def test_a_full_table_forgets_the_longest_unused_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_tokens, "MAX_TOKENS", 2)
    tokens = _tokens()
    first, second = (tokens.assign("alice", 1, number, now=0.0) for number in (1, 2))
    tokens.info(first, 1, now=1.0)
    tokens.assign("alice", 1, 3, now=2.0)
    assert len(tokens) == 2
    assert tokens.info(second, 1, now=2.0) is None
    assert tokens.info(first, 1, now=2.0) is not None
