"""Which call needs which permission.

``CallCheck.unary`` and ``CallCheck.stream`` answer for every RPC of the server; a path without a
rule is for root only.  What is wrong with a request whoever asks is told first, as etcd does.

Sources: etcd server/etcdserver/apply/apply_auth.go, v3_server.go, api/v3rpc/{watch,maintenance}.go
and cluster membership checks in server.go.  Where releases differ the rules are those after the
fixes of GHSA-rfx7-8w68-q57q (transactions in transactions are checked), GHSA-x35m-3gp4-4fh5 (so are
prev_kv and lease of a put in a transaction), GHSA-xg4h-6gfc-h4m8 (a watch without end needs
everything it watches), GHSA-3p4g-rcw5-8298 (a lease's keys are told to who may read them) and
GHSA-q8m4-xhhv-38mg (leases, members, alarms, status and compaction are not for anonymous callers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from etcd.core import txn
from etcd.core.auth import NOBODY
from etcd.core.auth_perms import OPEN_END
from etcd.core.errors import USER_EMPTY, EtcdError
from etcd.core.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from etcd.core.auth import AuthInfo, AuthStore
    from etcd.core.lease import Lease, LeaseTable

_KV, _LEASE = "/etcdserverpb.KV/", "/etcdserverpb.Lease/"
_CLUSTER, _MAINTENANCE = "/etcdserverpb.Cluster/", "/etcdserverpb.Maintenance/"
_AUTH, _HEALTH = "/etcdserverpb.Auth/", "/grpc.health.v1.Health/"
_LOCK, _ELECTION = "/v3lockpb.Lock/", "/v3electionpb.Election/"
WATCH: Final = "/etcdserverpb.Watch/Watch"

# Calls that look at no credentials, so that a stale token does not spoil them.
OPEN: Final = frozenset({_AUTH + "Authenticate", _HEALTH + "Check", _HEALTH + "Watch"})
# Calls of anybody who is somebody.
_KNOWN: Final = frozenset(
    {
        _KV + "Compact",
        _LEASE + "LeaseGrant",
        _CLUSTER + "MemberList",
        _MAINTENANCE + "Status",
    }
)


class CallCheck:
    """Every verb raises EtcdError when ``who`` (None: showed nothing) may not make the call."""

    def __init__(
        self, auth: AuthStore, leases: LeaseTable, max_txn_ops: int = txn.MAX_TXN_OPS
    ) -> None:
        self._auth = auth
        self._leases = leases
        # What is wrong with these is told before who may not.
        self._valid: dict[str, Callable[[Any], None]] = {
            _KV + "Range": txn.check_range,
            _KV + "Put": txn.check_put,
            _KV + "DeleteRange": txn.check_delete,
            _KV + "Txn": lambda request: txn.check_txn(request, max_txn_ops),
        }
        self._rules: dict[str, Callable[[AuthInfo, Any], None]] = {
            _KV + "Range": self._range,
            _KV + "Put": self._put,
            _KV + "DeleteRange": self._delete,
            _KV + "Txn": self._txn,
            _LEASE + "LeaseRevoke": self._lease_revoke,
            _LEASE + "LeaseKeepAlive": self._lease_keep_alive,
            _LEASE + "LeaseTimeToLive": self._time_to_live,
            _LEASE + "LeaseLeases": self._lease_leases,
            _MAINTENANCE + "Alarm": self._alarm,
            _AUTH + "UserGet": self._user_get,
            _AUTH + "RoleGet": self._role_get,
            WATCH: self._watch,
            _LOCK + "Lock": self._hold_prefix,
            _LOCK + "Unlock": self._unlock,
            _ELECTION + "Campaign": self._hold_prefix,
            _ELECTION + "Proclaim": self._lead,
            _ELECTION + "Resign": self._lead,
            _ELECTION + "Leader": self._see_prefix,
            _ELECTION + "Observe": self._see_prefix,
        }

    def valid(self, path: str, request: object) -> None:
        """Raise EtcdError for a request that is wrong whoever makes it."""
        check = self._valid.get(path)
        if check is not None:
            check(request)

    def call(self, path: str, request: object, who: AuthInfo | None) -> None:
        """Check one request message of a call."""
        if path in OPEN:
            return
        if path in _KNOWN:
            self._known(who)
            return
        rule = self._rules.get(path)
        if rule is None:
            self._auth.check_admin(who or NOBODY)
        else:
            rule(who or NOBODY, request)

    def opening(self, path: str, who: AuthInfo | None) -> None:
        """Check a streaming call before its first message, where that says nothing more."""
        if path not in OPEN and path not in _KNOWN and path not in self._rules:
            self._auth.check_admin(who or NOBODY)

    @staticmethod
    def _known(who: AuthInfo | None) -> None:
        if who is None or who.revision == 0:
            raise EtcdError(*USER_EMPTY)

    # KV ------------------------------------------------------------------------------------

    def _range(self, who: AuthInfo, request: pb.RangeRequest) -> None:
        self._auth.check_read(who, request.key, request.range_end)

    def _put(self, who: AuthInfo, request: pb.PutRequest) -> None:
        self._auth.check_write(who, request.key)
        # Who attaches a key to a lease can end the lease's other keys, and keep them.
        self._lease_puts(who, self._leases.get(request.lease))
        if request.prev_kv:
            self._auth.check_read(who, request.key)

    def _delete(self, who: AuthInfo, request: pb.DeleteRangeRequest) -> None:
        self._auth.check_write(who, request.key, request.range_end)
        if request.prev_kv:
            self._auth.check_read(who, request.key, request.range_end)

    def _txn(self, who: AuthInfo, request: pb.TxnRequest) -> None:
        for compare in request.compare:
            self._auth.check_read(who, compare.key, compare.range_end)
        for branch in (request.success, request.failure):
            for op in branch:
                match op.WhichOneof("request"):
                    case "request_range":
                        self._range(who, op.request_range)
                    case "request_put":
                        self._put(who, op.request_put)
                    case "request_delete_range":
                        self._delete(who, op.request_delete_range)
                    case "request_txn":
                        self._txn(who, op.request_txn)
                    case _:
                        pass

    def _watch(self, who: AuthInfo, request: pb.WatchCreateRequest) -> None:
        self._auth.check_read(who, request.key or OPEN_END, request.range_end)

    # Leases --------------------------------------------------------------------------------

    def _lease_puts(self, who: AuthInfo, lease: Lease | None) -> None:
        if lease is not None and not self._auth.is_admin(who):
            for key in lease.keys:
                self._auth.check_write(who, key)

    def _lease_reads(self, who: AuthInfo, leases: Iterable[Lease]) -> None:
        if not self._auth.is_admin(who):
            for lease in leases:
                for key in lease.keys:
                    self._auth.check_read(who, key)

    def _lease_revoke(self, who: AuthInfo, request: pb.LeaseRevokeRequest) -> None:
        self._known(who)
        self._lease_puts(who, self._leases.get(request.ID))

    def _lease_keep_alive(self, who: AuthInfo, request: pb.LeaseKeepAliveRequest) -> None:
        self._known(who)
        self._lease_puts(who, self._leases.get(request.ID))

    def _time_to_live(self, who: AuthInfo, request: pb.LeaseTimeToLiveRequest) -> None:
        self._known(who)
        lease = self._leases.get(request.ID)
        if request.keys and lease is not None:
            self._lease_reads(who, (lease,))

    def _lease_leases(self, who: AuthInfo, _: pb.LeaseLeasesRequest) -> None:
        self._known(who)
        self._lease_reads(who, self._leases)

    # Administration --------------------------------------------------------------------------

    def _alarm(self, who: AuthInfo, request: pb.AlarmRequest) -> None:
        if request.action == pb.AlarmRequest.GET:
            self._known(who)
        else:
            self._auth.check_admin(who)

    def _user_get(self, who: AuthInfo, request: pb.AuthUserGetRequest) -> None:
        if request.name != who.username or not who.username:
            self._auth.check_admin(who)

    def _role_get(self, who: AuthInfo, request: pb.AuthRoleGetRequest) -> None:
        if not self._auth.has_role(who.username, request.role):
            self._auth.check_admin(who)

    # Locks and elections: keys under ``<name>/``, as the Go client's concurrency package has them.

    def _hold_prefix(self, who: AuthInfo, request: Any) -> None:
        self._see_prefix(who, request)
        prefix = request.name + b"/"
        self._auth.check_write(who, prefix, prefix[:-1] + b"0")
        self._lease_puts(who, self._leases.get(request.lease))

    def _see_prefix(self, who: AuthInfo, request: Any) -> None:
        prefix = request.name + b"/"
        self._auth.check_read(who, prefix, prefix[:-1] + b"0")

    def _unlock(self, who: AuthInfo, request: Any) -> None:
        self._auth.check_write(who, request.key)

    def _lead(self, who: AuthInfo, request: Any) -> None:
        self._auth.check_read(who, request.leader.key)
        self._auth.check_write(who, request.leader.key)
