"""gRPC status codes and etcd's own errors (etcd: api/v3rpc/rpctypes/error.go)."""

from __future__ import annotations

import enum
from typing import Final

from emulator.errors import PodwireError


class Code(enum.IntEnum):
    """gRPC status codes (grpc: doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def camel(self) -> str:
        """The name as grpc-go prints it."""
        if self is Code.CANCELLED:
            return "Canceled"
        return "OK" if self is Code.OK else "".join(map(str.capitalize, self.name.split("_")))


class EtcdError(PodwireError):
    """What a call answers instead of its response: a gRPC code and etcd's text."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{message} ({code.name})")
        self.code = code
        self.message = message


class CompactedError(EtcdError):
    """The history a watch or a read asks for is gone; start again at a newer revision."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(*COMPACTED)
        self.compact_revision = compact_revision


class CorruptionError(PodwireError):
    """Stored bytes that cannot be trusted; says which file, where, and what to do."""


Status = tuple[Code, str]

EMPTY_KEY: Final[Status] = (Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
KEY_NOT_FOUND: Final[Status] = (Code.INVALID_ARGUMENT, "etcdserver: key not found")
VALUE_PROVIDED: Final[Status] = (Code.INVALID_ARGUMENT, "etcdserver: value is provided")
LEASE_PROVIDED: Final[Status] = (Code.INVALID_ARGUMENT, "etcdserver: lease is provided")
TOO_MANY_OPS: Final[Status] = (
    Code.INVALID_ARGUMENT,
    "etcdserver: too many operations in txn request",
)
DUPLICATE_KEY: Final[Status] = (
    Code.INVALID_ARGUMENT,
    "etcdserver: duplicate key given in txn request",
)
INVALID_SORT: Final[Status] = (Code.INVALID_ARGUMENT, "etcdserver: invalid sort option")
REQUEST_TOO_LARGE: Final[Status] = (Code.INVALID_ARGUMENT, "etcdserver: request is too large")
COMPACTED: Final[Status] = (
    Code.OUT_OF_RANGE,
    "etcdserver: mvcc: required revision has been compacted",
)
FUTURE_REVISION: Final[Status] = (
    Code.OUT_OF_RANGE,
    "etcdserver: mvcc: required revision is a future revision",
)
LEASE_TTL_TOO_LARGE: Final[Status] = (Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")
NO_SPACE: Final[Status] = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
CORRUPT: Final[Status] = (Code.DATA_LOSS, "etcdserver: corrupt cluster")
TOO_MANY_REQUESTS: Final[Status] = (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
LEASE_NOT_FOUND: Final[Status] = (Code.NOT_FOUND, "etcdserver: requested lease not found")
LEASE_EXISTS: Final[Status] = (Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
MEMBER_NOT_FOUND: Final[Status] = (Code.NOT_FOUND, "etcdserver: member not found")
BAD_MEMBER_URLS: Final[Status] = (
    Code.INVALID_ARGUMENT,
    "etcdserver: given member URLs are invalid",
)
NOT_ENOUGH_STARTED: Final[Status] = (
    Code.FAILED_PRECONDITION,
    "etcdserver: re-configuration failed due to not enough started members",
)
ONLY_LEARNER: Final[Status] = (
    Code.FAILED_PRECONDITION,
    "etcdserver: can only promote a learner member",
)
BAD_LEADER_TRANSFEREE: Final[Status] = (
    Code.FAILED_PRECONDITION,
    "etcdserver: bad leader transferee",
)
ROOT_USER_MISSING: Final[Status] = (
    Code.FAILED_PRECONDITION,
    "etcdserver: root user does not exist",
)
ROOT_ROLE_MISSING: Final[Status] = (
    Code.FAILED_PRECONDITION,
    "etcdserver: root user does not have root role",
)
USER_EXISTS: Final[Status] = (Code.FAILED_PRECONDITION, "etcdserver: user name already exists")
USER_EMPTY: Final[Status] = (Code.INVALID_ARGUMENT, "etcdserver: user name is empty")
USER_NOT_FOUND: Final[Status] = (Code.FAILED_PRECONDITION, "etcdserver: user name not found")
ROLE_EXISTS: Final[Status] = (Code.FAILED_PRECONDITION, "etcdserver: role name already exists")
ROLE_EMPTY: Final[Status] = (Code.INVALID_ARGUMENT, "etcdserver: role name is empty")
ROLE_NOT_FOUND: Final[Status] = (Code.FAILED_PRECONDITION, "etcdserver: role name not found")
ROLE_NOT_GRANTED: Final[Status] = (
    Code.FAILED_PRECONDITION,
    "etcdserver: role is not granted to the user",
)
PERMISSION_NOT_GIVEN: Final[Status] = (
    Code.INVALID_ARGUMENT,
    "etcdserver: permission not given",
)
PERMISSION_NOT_GRANTED: Final[Status] = (
    Code.FAILED_PRECONDITION,
    "etcdserver: permission is not granted to the role",
)
PERMISSION_DENIED: Final[Status] = (Code.PERMISSION_DENIED, "etcdserver: permission denied")
AUTH_FAILED: Final[Status] = (
    Code.INVALID_ARGUMENT,
    "etcdserver: authentication failed, invalid user ID or password",
)
# No gRPC error of its own upstream, so it comes out raw.
NO_PASSWORD_USER: Final[Status] = (
    Code.UNKNOWN,
    "auth: authentication failed, password was given for no password user",
)
# golang.org/x/crypto/bcrypt, raw.
PASSWORD_TOO_LONG: Final[Status] = (
    Code.UNKNOWN,
    "bcrypt: password length exceeds 72 bytes",
)
INVALID_AUTH_TOKEN: Final[Status] = (Code.UNAUTHENTICATED, "etcdserver: invalid auth token")
INVALID_AUTH_MANAGEMENT: Final[Status] = (
    Code.INVALID_ARGUMENT,
    "etcdserver: invalid auth management",
)
AUTH_OLD_REVISION: Final[Status] = (
    Code.INVALID_ARGUMENT,
    "etcdserver: revision of auth store is old",
)
AUTH_NOT_ENABLED: Final[Status] = (
    Code.FAILED_PRECONDITION,
    "etcdserver: authentication is not enabled",
)
WRONG_DOWNGRADE_VERSION: Final[Status] = (
    Code.INVALID_ARGUMENT,
    "etcdserver: wrong downgrade target version format",
)
INVALID_DOWNGRADE_VERSION: Final[Status] = (
    Code.INVALID_ARGUMENT,
    "etcdserver: invalid downgrade target version",
)
NO_INFLIGHT_DOWNGRADE: Final[Status] = (
    Code.FAILED_PRECONDITION,
    "etcdserver: no inflight downgrade job",
)
NOT_CAPABLE: Final[Status] = (Code.FAILED_PRECONDITION, "etcdserver: not capable")
WATCH_CANCELED: Final[Status] = (Code.CANCELLED, "etcdserver: watch canceled")
SERVER_STOPPED: Final[Status] = (Code.UNAVAILABLE, "etcdserver: server stopped")

# mvcc texts a watch answers in cancel_reason (server/mvcc/watcher.go).
EMPTY_WATCHER_RANGE: Final = "mvcc: watcher range is empty"
DUPLICATE_WATCH_ID: Final = "mvcc: duplicate watch ID provided on the WatchStream"
