"""Users, roles and whether auth is on: etcd's auth store, without IO, clock or hashing.

Every change moves the auth revision on and is given to ``log`` as the bytes of one record, so that
it is durable and replayed like any other change.  A password arrives here as its hash.

Source: etcd server/auth/store.go.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from etcd.core import errors
from etcd.core.auth_perms import MergedPermissions, Permission, is_valid_range
from etcd.core.errors import EtcdError
from etcd.core.pb import auth_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = "root"

_HEAD = struct.Struct("<BQ")  # enabled, auth revision
_ENTRY = struct.Struct("<BI")  # what, length
_PUT_USER, _DELETE_USER, _PUT_ROLE, _DELETE_ROLE = range(1, 5)


@dataclass(frozen=True, slots=True)
class User:
    """``password`` is a hash; a user without password can only come with a certificate."""

    name: str
    password: bytes
    roles: tuple[str, ...] = ()
    no_password: bool = False

    def message(self) -> auth_pb2.User:
        """Return the user as etcd stores it."""
        return auth_pb2.User(
            name=self.name.encode(),
            password=self.password,
            roles=self.roles,
            options=auth_pb2.UserAddOptions(no_password=self.no_password),
        )

    @classmethod
    def parse(cls, data: bytes) -> User:
        """Return a stored user; DecodeError or UnicodeDecodeError for what is none."""
        message = auth_pb2.User.FromString(data)
        return cls(
            message.name.decode(),
            message.password,
            tuple(message.roles),
            message.options.no_password,
        )


@dataclass(frozen=True, slots=True)
class Role:
    """A name for permissions, which are in the order of their keys."""

    name: str
    permissions: tuple[Permission, ...] = ()

    def message(self) -> auth_pb2.Role:
        """Return the role as etcd stores it."""
        granted = [entry.message() for entry in self.permissions]
        return auth_pb2.Role(name=self.name.encode(), keyPermission=granted)

    @classmethod
    def parse(cls, data: bytes) -> Role:
        """Return a stored role; DecodeError or UnicodeDecodeError for what is none."""
        message = auth_pb2.Role.FromString(data)
        return cls(message.name.decode(), tuple(map(Permission.of, message.keyPermission)))


class AuthInfo(NamedTuple):
    """Who calls, and the auth revision at which that was established."""

    username: str
    revision: int


# A caller who showed nothing.
NOBODY = AuthInfo("", 0)


class AuthStore:
    """All users and roles; every verb raises EtcdError with etcd's own text."""

    def __init__(self, log: Callable[[bytes], None]) -> None:
        self._log = log
        self._users: dict[str, User] = {}
        self._roles: dict[str, Role] = {}
        self._merged: dict[str, MergedPermissions] = {}
        self.enabled = False
        self.revision = 1

    # Durability ----------------------------------------------------------------------------

    def _commit(self, *changes: User | Role, gone: tuple[int, str] | None = None) -> None:
        """Apply one request's changes, move the revision on, log both as one record."""
        for change in changes:
            self._put(change)
        if gone is not None:
            self._delete(*gone)
        self.revision += 1
        self._merged.clear()
        entries = [_entry(change) for change in changes]
        if gone is not None:
            entries.append((gone[0], gone[1].encode()))
        self._log(self._record(entries))

    def _record(self, entries: Iterable[tuple[int, bytes]]) -> bytes:
        parts = [_HEAD.pack(self.enabled, self.revision)]
        for what, data in entries:
            parts += (_ENTRY.pack(what, len(data)), data)
        return b"".join(parts)

    def record(self) -> bytes:
        """Return the record that makes an empty store equal to this one."""
        everything: list[User | Role] = [*self._users.values(), *self._roles.values()]
        return self._record(_entry(entry) for entry in everything)

    def restore(
        self, *, enabled: bool, revision: int, users: Iterable[User], roles: Iterable[Role]
    ) -> None:
        """Fill an empty store, which then has to be made durable as a whole."""
        self.enabled, self.revision = enabled, max(revision, 1)
        self._users = {user.name: user for user in users}
        self._roles = {role.name: role for role in roles}

    def replay(self, record: bytes) -> None:
        """Apply a logged record again."""
        enabled, self.revision = _HEAD.unpack_from(record)
        self.enabled = bool(enabled)
        at = _HEAD.size
        while at < len(record):
            what, size = _ENTRY.unpack_from(record, at)
            at += _ENTRY.size
            data = record[at : at + size]
            at += size
            if what == _PUT_USER:
                self._put(User.parse(data))
            elif what == _PUT_ROLE:
                self._put(Role.parse(data))
            else:
                self._delete(what, data.decode())
        self._merged.clear()

    def _put(self, change: User | Role) -> None:
        if isinstance(change, User):
            self._users[change.name] = change
        else:
            self._roles[change.name] = change

    def _delete(self, what: int, name: str) -> None:
        if what == _DELETE_USER:
            del self._users[name]
        else:
            del self._roles[name]

    # On and off ----------------------------------------------------------------------------

    def enable(self) -> None:
        """Begin to enforce; there must be a root user with the root role."""
        if self.enabled:
            return
        root = self._users.get(ROOT)
        if root is None:
            raise EtcdError(*errors.ROOT_USER_MISSING)
        if ROOT not in root.roles:
            raise EtcdError(*errors.ROOT_ROLE_MISSING)
        self.enabled = True
        self._log(self._record(()))

    def disable(self) -> None:
        """Stop enforcing."""
        if self.enabled:
            self.enabled = False
            self._commit()

    # Users ---------------------------------------------------------------------------------

    def user(self, name: str) -> User:
        """Return a user; FAILED_PRECONDITION if there is none."""
        user = self._users.get(name)
        if user is None:
            raise EtcdError(*errors.USER_NOT_FOUND)
        return user

    def find_user(self, name: str) -> User | None:
        """Return a user, None if there is none."""
        return self._users.get(name)

    def users(self) -> list[User]:
        """Return all users in the order of their names' bytes."""
        return sorted(self._users.values(), key=lambda user: user.name.encode())

    def check_new_user(self, name: str) -> None:
        """Raise what ``user_add`` would, before the cost of hashing a password."""
        if not name:
            raise EtcdError(*errors.USER_EMPTY)
        if name in self._users:
            raise EtcdError(*errors.USER_EXISTS)

    def user_add(self, name: str, password: bytes, *, no_password: bool) -> None:
        """Add a user with a password's hash."""
        self.check_new_user(name)
        self._commit(User(name, b"" if no_password else password, (), no_password))

    def user_delete(self, name: str) -> None:
        """Forget a user; not root while auth is on."""
        if self.enabled and name == ROOT:
            raise EtcdError(*errors.INVALID_AUTH_MANAGEMENT)
        self.user(name)
        self._commit(gone=(_DELETE_USER, name))

    def user_change_password(self, name: str, password: bytes) -> None:
        """Replace the hash of a user's password."""
        user = self.user(name)
        self._commit(replace(user, password=b"" if user.no_password else password))

    def user_grant_role(self, name: str, role: str) -> None:
        """Give a user a role; the root role need not exist."""
        user = self.user(name)
        if role != ROOT:
            self.role(role)
        if role not in user.roles:
            roles = list(user.roles)
            insort(roles, role, key=str.encode)
            self._commit(replace(user, roles=tuple(roles)))

    def user_revoke_role(self, name: str, role: str) -> None:
        """Take a role from a user."""
        if self.enabled and name == ROOT and role == ROOT:
            raise EtcdError(*errors.INVALID_AUTH_MANAGEMENT)
        user = self.user(name)
        if role not in user.roles:
            raise EtcdError(*errors.ROLE_NOT_GRANTED)
        self._commit(replace(user, roles=_without(user.roles, role)))

    # Roles ---------------------------------------------------------------------------------

    def role(self, name: str) -> Role:
        """Return a role; FAILED_PRECONDITION if there is none."""
        role = self._roles.get(name)
        if role is None:
            raise EtcdError(*errors.ROLE_NOT_FOUND)
        return role

    def roles(self) -> list[Role]:
        """Return all roles in the order of their names' bytes."""
        return sorted(self._roles.values(), key=lambda role: role.name.encode())

    def role_add(self, name: str) -> None:
        """Add a role that grants nothing."""
        if not name:
            raise EtcdError(*errors.ROLE_EMPTY)
        if name in self._roles:
            raise EtcdError(*errors.ROLE_EXISTS)
        self._commit(Role(name))

    def role_delete(self, name: str) -> None:
        """Forget a role and take it from everybody; not root while auth is on."""
        if self.enabled and name == ROOT:
            raise EtcdError(*errors.INVALID_AUTH_MANAGEMENT)
        self.role(name)
        losers = [user for user in self._users.values() if name in user.roles]
        changed = (replace(user, roles=_without(user.roles, name)) for user in losers)
        self._commit(*changed, gone=(_DELETE_ROLE, name))

    def role_grant(self, name: str, permission: Permission | None) -> None:
        """Grant a role something, or change the kind of what it was granted on that range.

        As etcd does: only the first permission on a key is compared, so that a grant on a range
        whose key begins another range, too, may stand beside an older one instead.
        """
        if permission is None:
            raise EtcdError(*errors.PERMISSION_NOT_GIVEN)
        if not is_valid_range(permission.key, permission.range_end):
            raise EtcdError(*errors.INVALID_AUTH_MANAGEMENT)
        role = self.role(name)
        granted = list(role.permissions)
        at = bisect_left(granted, permission.key, key=_key_of)
        if at < len(granted) and granted[at][1:] == permission[1:]:
            granted[at] = permission
        else:
            insort(granted, permission, key=_key_of)
        self._commit(replace(role, permissions=tuple(granted)))

    def role_revoke(self, name: str, key: bytes, range_end: bytes) -> None:
        """Take back what a role was granted on exactly this range."""
        role = self.role(name)
        kept = [
            entry for entry in role.permissions if (entry.key, entry.range_end) != (key, range_end)
        ]
        if len(kept) == len(role.permissions):
            raise EtcdError(*errors.PERMISSION_NOT_GRANTED)
        self._commit(replace(role, permissions=tuple(kept)))

    # May they? -----------------------------------------------------------------------------

    def check_read(self, who: AuthInfo, key: bytes, range_end: bytes = b"") -> None:
        """Raise EtcdError unless the caller may read a key or range."""
        merged = self._granted(who)
        if merged is not None and not merged.reads.covers(key, range_end):
            raise EtcdError(*errors.PERMISSION_DENIED)

    def check_write(self, who: AuthInfo, key: bytes, range_end: bytes = b"") -> None:
        """Raise EtcdError unless the caller may write a key or range."""
        merged = self._granted(who)
        if merged is not None and not merged.writes.covers(key, range_end):
            raise EtcdError(*errors.PERMISSION_DENIED)

    def _granted(self, who: AuthInfo) -> MergedPermissions | None:
        """Return what a caller was granted, None for everything."""
        if not self.enabled:
            return None
        if who.revision == 0:
            raise EtcdError(*errors.USER_EMPTY)
        if who.revision < self.revision:
            raise EtcdError(*errors.AUTH_OLD_REVISION)
        user = self._users.get(who.username)
        if user is None:
            raise EtcdError(*errors.PERMISSION_DENIED)
        if ROOT in user.roles:
            return None
        merged = self._merged.get(user.name)
        if merged is None:
            roles = (self._roles[name] for name in user.roles if name in self._roles)
            merged = MergedPermissions(entry for role in roles for entry in role.permissions)
            self._merged[user.name] = merged
        return merged

    def check_admin(self, who: AuthInfo) -> None:
        """Raise EtcdError unless the caller has the root role."""
        if not self.enabled:
            return
        if not who.username:
            raise EtcdError(*errors.USER_EMPTY)
        if ROOT not in self.user(who.username).roles:
            raise EtcdError(*errors.PERMISSION_DENIED)

    def is_admin(self, who: AuthInfo) -> bool:
        """Whether the caller has the root role (anybody while auth is off)."""
        if not self.enabled:
            return True
        user = self._users.get(who.username)
        return user is not None and ROOT in user.roles

    def has_role(self, username: str, role: str) -> bool:
        """Whether a user exists and has a role."""
        user = self._users.get(username)
        return user is not None and role in user.roles


def _key_of(permission: Permission) -> bytes:
    return permission.key


def _without(roles: tuple[str, ...], gone: str) -> tuple[str, ...]:
    return tuple(role for role in roles if role != gone)


def _entry(change: User | Role) -> tuple[int, bytes]:
    what = _PUT_USER if isinstance(change, User) else _PUT_ROLE
    return what, change.message().SerializeToString()
