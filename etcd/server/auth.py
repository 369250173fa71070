"""The Auth service and the guard of all others: tokens, certificates, passwords.

A call's credentials are looked at when its message is there, so a stream that began before auth was
switched on is guarded like any other.  Sources: etcd server/etcdserver/v3_server.go, server/auth.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, NamedTuple

from emulator.errors import UsageError
from etcd.core import errors
from etcd.core.auth import AuthInfo
from etcd.core.auth_check import OPEN, CallCheck
from etcd.core.auth_perms import Permission
from etcd.core.auth_tokens import LETTERS, SimpleTokens, TokenProvider
from etcd.core.errors import EtcdError
from etcd.core.pb import rpc_pb2 as pb
from etcd.server.auth_hash import PasswordChecks, PasswordHasher

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message

    from emulator.runtime.role import RoleEnv
    from etcd.core.engine import Engine
    from etcd.core.http2.hpack import Header
    from etcd.server.config import EtcdConfig
    from etcd.server.member import Member


class Credentials(NamedTuple):
    """What a caller shows: a token, or the name in its verified certificate."""

    token: str | None = None
    common_name: str | None = None


def header_token(headers: Iterable[Header]) -> str | None:
    """Return the token in a call's metadata; ``token`` comes before ``authorization``."""
    token = authorization = None
    for name, value in headers:
        if name == b"token":
            token = token or value.decode("latin-1")
        elif name == b"authorization":
            authorization = authorization or value.decode("latin-1")
    return token or authorization


def common_name(transport: asyncio.BaseTransport) -> str | None:
    """Return the common name of a connection's verified client certificate, None without one."""
    certificate = transport.get_extra_info("peercert")
    if not certificate:
        return None
    names = (pair for part in certificate.get("subject", ()) for pair in part)
    return next((str(value) for key, value in names if key == "commonName"), "")


def _letter() -> str:
    # With hmac and OpenSSL behind it, it takes a tenth of a start that seldom needs it.
    import secrets

    return secrets.choice(LETTERS)


def token_provider(config: EtcdConfig, env: RoleEnv) -> TokenProvider:
    """Return what ``--auth-token`` names; UsageError when it names nothing that works."""
    kind, *pairs = config.auth_token.split(",")
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name in options:
            raise UsageError(f"--auth-token: option {pair!r}: write each once, as NAME=VALUE")
        options[name] = value
    if kind == "simple":
        return SimpleTokens(_letter, ttl_s=config.auth_token_ttl_s)
    if kind == "jwt":
        # Loads the whole of asymmetric cryptography, which simple tokens do without.
        from etcd.server.auth_jwt import JwtTokens

        return JwtTokens.from_options(options, env.clock.time)
    raise UsageError(f"--auth-token: {kind!r} is unknown; use simple or jwt,…")


class AuthService:
    """Auth of one member."""

    def __init__(self, member: Member) -> None:
        """Raise UsageError for token options that cannot work."""
        self._member = member
        self._tokens = token_provider(member.config, member.env)
        self._hasher = PasswordHasher(member.config.bcrypt_cost)
        self._rules: tuple[Engine, CallCheck] | None = None
        self._checks = PasswordChecks(self._hasher, member.loop)

    def close(self) -> None:
        """End the thread that compares passwords, if there is one."""
        self._checks.close()

    @property
    def enabled(self) -> bool:
        """Whether calls are checked at all."""
        return self._member.engine.auth.enabled

    # The guard -----------------------------------------------------------------------------

    def who(self, shown: Credentials) -> AuthInfo | None:
        """Return whose credentials these are, None for none; EtcdError for a token of nobody."""
        auth = self._member.engine.auth
        if shown.token is not None:
            info = self._tokens.info(shown.token, auth.revision, now=self._member.loop.time())
            if info is None:
                raise EtcdError(*errors.INVALID_AUTH_TOKEN)
            return info
        if shown.common_name is not None and self._member.config.client_cert_auth:
            return AuthInfo(shown.common_name, auth.revision)
        return None

    def _rules_now(self) -> CallCheck:
        engine = self._member.engine
        if self._rules is None or self._rules[0] is not engine:
            self._rules = (
                engine,
                CallCheck(engine.auth, engine.leases, self._member.config.max_txn_ops),
            )
        return self._rules[1]

    def admit(self, path: str, request: object, shown: Credentials) -> None:
        """Raise EtcdError unless the caller may make a call with this message."""
        if not self.enabled or path in OPEN:
            return
        checks = self._rules_now()
        checks.valid(path, request)
        checks.call(path, request, self.who(shown))

    def admit_stream(self, path: str, shown: Credentials) -> None:
        """Raise EtcdError unless the caller may begin a streaming call."""
        if self.enabled and path not in OPEN:
            self._rules_now().opening(path, self.who(shown))

    # The service -----------------------------------------------------------------------------

    def methods(self) -> dict[str, tuple[type[Message], Callable[[Any], Message]]]:
        """Return path → (request, method); ``admit`` has been asked before one is called.

        Authenticate is not among them: see ``auth_calls``.
        """
        prefix = "/etcdserverpb.Auth/"
        return {
            prefix + "AuthEnable": (pb.AuthEnableRequest, self._enable),
            prefix + "AuthDisable": (pb.AuthDisableRequest, self._disable),
            prefix + "AuthStatus": (pb.AuthStatusRequest, self._status),
            prefix + "UserAdd": (pb.AuthUserAddRequest, self._user_add),
            prefix + "UserGet": (pb.AuthUserGetRequest, self._user_get),
            prefix + "UserList": (pb.AuthUserListRequest, self._user_list),
            prefix + "UserDelete": (pb.AuthUserDeleteRequest, self._user_delete),
            prefix + "UserChangePassword": (
                pb.AuthUserChangePasswordRequest,
                self._user_change_password,
            ),
            prefix + "UserGrantRole": (pb.AuthUserGrantRoleRequest, self._user_grant_role),
            prefix + "UserRevokeRole": (pb.AuthUserRevokeRoleRequest, self._user_revoke_role),
            prefix + "RoleAdd": (pb.AuthRoleAddRequest, self._role_add),
            prefix + "RoleGet": (pb.AuthRoleGetRequest, self._role_get),
            prefix + "RoleList": (pb.AuthRoleListRequest, self._role_list),
            prefix + "RoleDelete": (pb.AuthRoleDeleteRequest, self._role_delete),
            prefix + "RoleGrantPermission": (
                pb.AuthRoleGrantPermissionRequest,
                self._role_grant_permission,
            ),
            prefix + "RoleRevokePermission": (
                pb.AuthRoleRevokePermissionRequest,
                self._role_revoke_permission,
            ),
        }

    @property
    def _engine(self) -> Engine:
        return self._member.engine

    def _enable(self, _: pb.AuthEnableRequest) -> Message:
        self._engine.auth.enable()
        return pb.AuthEnableResponse(header=self._engine.header())

    def _disable(self, _: pb.AuthDisableRequest) -> Message:
        self._engine.auth.disable()
        self._tokens.clear()
        return pb.AuthDisableResponse(header=self._engine.header())

    def _status(self, _: pb.AuthStatusRequest) -> Message:
        auth = self._engine.auth
        return pb.AuthStatusResponse(
            header=self._engine.header(), enabled=auth.enabled, authRevision=auth.revision
        )

    def authenticate(
        self,
        request: pb.AuthenticateRequest,
        done: Callable[[pb.AuthenticateResponse | EtcdError], None],
    ) -> None:
        """Auth.Authenticate: call ``done`` when the password has been compared.

        Raises EtcdError for what needs no comparing.
        """
        auth = self._engine.auth
        if not auth.enabled:
            raise EtcdError(*errors.AUTH_NOT_ENABLED)
        user = auth.find_user(request.name)
        if user is None:
            raise self._failed(request.name)
        if user.no_password:
            raise EtcdError(*errors.NO_PASSWORD_USER)
        hashed = user.password
        self._checks.check(
            request.password, hashed, lambda right: self._on_checked(request, hashed, right, done)
        )

    def _failed(self, name: str) -> EtcdError:
        self._member.env.log.warning("authentication of user %r failed", name)
        return EtcdError(*errors.AUTH_FAILED)

    def _on_checked(
        self,
        request: pb.AuthenticateRequest,
        hashed: bytes,
        right: bool,
        done: Callable[[pb.AuthenticateResponse | EtcdError], None],
    ) -> None:
        engine = self._engine
        user = engine.auth.find_user(request.name)
        if not engine.auth.enabled or user is None or user.password != hashed:
            # Changed while it was compared: begin again, as etcd does.
            try:
                self.authenticate(request, done)
            except EtcdError as error:
                done(error)
            return
        if not right:
            done(self._failed(request.name))
            return
        # An entry of the log in a cluster of several, and the second part of a simple token.
        engine.raft_index += 1
        token = self._tokens.assign(
            user.name, engine.auth.revision, engine.raft_index, now=self._member.loop.time()
        )
        done(pb.AuthenticateResponse(header=engine.header(), token=token))

    # Users ---------------------------------------------------------------------------------

    def _user_add(self, request: pb.AuthUserAddRequest) -> Message:
        no_password = request.options.no_password
        self._engine.auth.check_new_user(request.name)
        hashed = b"" if no_password else self._hasher.hash(request.password)
        self._engine.auth.user_add(request.name, hashed, no_password=no_password)
        return pb.AuthUserAddResponse(header=self._engine.header())

    def _user_get(self, request: pb.AuthUserGetRequest) -> Message:
        roles = self._engine.auth.user(request.name).roles
        return pb.AuthUserGetResponse(header=self._engine.header(), roles=roles)

    def _user_list(self, _: pb.AuthUserListRequest) -> Message:
        names = [user.name for user in self._engine.auth.users()]
        return pb.AuthUserListResponse(header=self._engine.header(), users=names)

    def _user_delete(self, request: pb.AuthUserDeleteRequest) -> Message:
        self._engine.auth.user_delete(request.name)
        self._tokens.invalidate(request.name)
        return pb.AuthUserDeleteResponse(header=self._engine.header())

    def _user_change_password(self, request: pb.AuthUserChangePasswordRequest) -> Message:
        auth = self._engine.auth
        if auth.user(request.name).no_password:
            hashed = b""
        elif request.password:
            hashed = self._hasher.hash(request.password)
        else:
            try:
                hashed = base64.b64decode(request.hashedPassword, validate=True)
            except (binascii.Error, ValueError):
                raise EtcdError(*errors.NO_PASSWORD_USER) from None
        auth.user_change_password(request.name, hashed)
        self._tokens.invalidate(request.name)
        return pb.AuthUserChangePasswordResponse(header=self._engine.header())

    def _user_grant_role(self, request: pb.AuthUserGrantRoleRequest) -> Message:
        self._engine.auth.user_grant_role(request.user, request.role)
        return pb.AuthUserGrantRoleResponse(header=self._engine.header())

    def _user_revoke_role(self, request: pb.AuthUserRevokeRoleRequest) -> Message:
        self._engine.auth.user_revoke_role(request.name, request.role)
        return pb.AuthUserRevokeRoleResponse(header=self._engine.header())

    # Roles ---------------------------------------------------------------------------------

    def _role_add(self, request: pb.AuthRoleAddRequest) -> Message:
        self._engine.auth.role_add(request.name)
        return pb.AuthRoleAddResponse(header=self._engine.header())

    def _role_get(self, request: pb.AuthRoleGetRequest) -> Message:
        granted = [entry.message() for entry in self._engine.auth.role(request.role).permissions]
        return pb.AuthRoleGetResponse(header=self._engine.header(), perm=granted)

    def _role_list(self, _: pb.AuthRoleListRequest) -> Message:
        names = [role.name for role in self._engine.auth.roles()]
        return pb.AuthRoleListResponse(header=self._engine.header(), roles=names)

    def _role_delete(self, request: pb.AuthRoleDeleteRequest) -> Message:
        self._engine.auth.role_delete(request.role)
        return pb.AuthRoleDeleteResponse(header=self._engine.header())

    def _role_grant_permission(self, request: pb.AuthRoleGrantPermissionRequest) -> Message:
        granted = Permission.of(request.perm) if request.HasField("perm") else None
        self._engine.auth.role_grant(request.name, granted)
        return pb.AuthRoleGrantPermissionResponse(header=self._engine.header())

    def _role_revoke_permission(self, request: pb.AuthRoleRevokePermissionRequest) -> Message:
        self._engine.auth.role_revoke(request.role, request.key, request.range_end)
        return pb.AuthRoleRevokePermissionResponse(header=self._engine.header())
