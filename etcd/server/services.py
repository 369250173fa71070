"""The gRPC services: which path calls what.

Unary methods are plain functions from a request message to a response message; they run to the end
at once, and ``Member.answer`` holds the response back until it is durable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.message import DecodeError, Message

from etcd.core import errors
from etcd.core.counts import MethodCounts, Traffic
from etcd.core.errors import Code, EtcdError
from etcd.core.pb import health_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from etcd.core.pb import rpc_pb2 as pb
from etcd.server.config import CLUSTER_VERSION, SERVER_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from etcd.server.member import Member


class Unary(NamedTuple):
    """One request, one response."""

    request: type[Message]
    call: Callable[[Any], Message]
    # ``call`` with a serialized response, where that is quicker.
    payload: Callable[[Any], bytes] | None = None


def decode(request: type[Message], data: bytes) -> Message:
    """Parse a request; EtcdError with grpc-go's text for garbage."""
    try:
        return request.FromString(data)
    except DecodeError:
        raise EtcdError(
            Code.INTERNAL, "grpc: error unmarshalling request: unexpected EOF"
        ) from None


def unknown_method(path: str) -> EtcdError:
    """Return grpc-go's answer for a path nothing serves."""
    service, _, method = path.lstrip("/").rpartition("/")
    if service in SERVICES:
        return EtcdError(Code.UNIMPLEMENTED, f"unknown method {method} for service {service}")
    return EtcdError(Code.UNIMPLEMENTED, f"unknown service {service}")


def grant_lease(member: Member, request: pb.LeaseGrantRequest) -> pb.LeaseGrantResponse:
    """Lease.LeaseGrant."""
    engine = member.engine
    lease_id, ttl_s = engine.leases.choose(
        request.ID, request.TTL, lambda: member.env.rng.getrandbits(63)
    )
    return engine.lease_grant(lease_id, ttl_s, now=member.loop.time())


SERVICES = frozenset(
    service.full_name
    for file in (rpc_pb2, v3lock_pb2, v3election_pb2, health_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)


# "unary", "server_stream" or "bidi_stream" of every method, by path.
KINDS = {
    f"/{service.full_name}/{method.name}": (
        "bidi_stream"
        if method.client_streaming
        else "server_stream"
        if method.server_streaming
        else "unary"
    )
    for file in (rpc_pb2, v3lock_pb2, v3election_pb2, health_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Services:
    """The unary methods of a member by path."""

    def __init__(self, member: Member) -> None:
        self._member = member
        # Of every method there is, called or not, by path.
        self.counts: dict[str, MethodCounts] = {path: MethodCounts() for path in KINDS}
        self.traffic = Traffic()
        self.auth = member.auth
        kv, lease = "/etcdserverpb.KV/", "/etcdserverpb.Lease/"
        cluster, maintenance = "/etcdserverpb.Cluster/", "/etcdserverpb.Maintenance/"
        self.unary: dict[str, Unary] = {
            kv + "Range": Unary(pb.RangeRequest, lambda r: member.engine.range(r)),
            kv + "Put": Unary(
                pb.PutRequest,
                lambda r: member.engine.put(r),
                lambda r: member.engine.put_payload(r),
            ),
            kv + "DeleteRange": Unary(
                pb.DeleteRangeRequest, lambda r: member.engine.delete_range(r)
            ),
            kv + "Txn": Unary(pb.TxnRequest, lambda r: member.engine.txn(r)),
            lease + "LeaseGrant": Unary(pb.LeaseGrantRequest, self._lease_grant),
            lease + "LeaseRevoke": Unary(
                pb.LeaseRevokeRequest, lambda r: member.engine.lease_revoke(r.ID)
            ),
            lease + "LeaseTimeToLive": Unary(pb.LeaseTimeToLiveRequest, self._time_to_live),
            lease + "LeaseLeases": Unary(
                pb.LeaseLeasesRequest, lambda _: member.engine.lease_leases()
            ),
            cluster + "MemberList": Unary(pb.MemberListRequest, self._member_list),
            cluster + "MemberAdd": Unary(pb.MemberAddRequest, self._member_add),
            cluster + "MemberRemove": Unary(pb.MemberRemoveRequest, self._member_remove),
            cluster + "MemberUpdate": Unary(pb.MemberUpdateRequest, self._member_update),
            cluster + "MemberPromote": Unary(pb.MemberPromoteRequest, self._member_promote),
            maintenance + "Status": Unary(pb.StatusRequest, self._status),
            maintenance + "Alarm": Unary(pb.AlarmRequest, self._alarm),
            # Nothing to do, and no header, as etcd's answer has none.
            maintenance + "Defragment": Unary(
                pb.DefragmentRequest, lambda _: pb.DefragmentResponse()
            ),
            maintenance + "MoveLeader": Unary(pb.MoveLeaderRequest, self._move_leader),
            maintenance + "Downgrade": Unary(pb.DowngradeRequest, self._downgrade),
            "/grpc.health.v1.Health/Check": Unary(health_pb2.HealthCheckRequest, self._health),
        }
        self.unary |= {path: Unary(*pair) for path, pair in self.auth.methods().items()}

    # Lease ---------------------------------------------------------------------------------

    def _lease_grant(self, request: pb.LeaseGrantRequest) -> Message:
        return grant_lease(self._member, request)

    def _time_to_live(self, request: pb.LeaseTimeToLiveRequest) -> Message:
        return self._member.engine.lease_time_to_live(request, now=self._member.loop.time())

    # Cluster -------------------------------------------------------------------------------

    def _member_header(self) -> pb.ResponseHeader:
        """Return the header of membership calls, which carries no revision."""
        return self._member.engine.header(0)

    def _members(self) -> list[pb.Member]:
        member = self._member
        return [
            pb.Member(
                ID=member.engine.member_id,
                name=member.config.name,
                peerURLs=member.config.peer_urls,
                clientURLs=member.client_urls,
            )
        ]

    def _member_list(self, _: pb.MemberListRequest) -> Message:
        return pb.MemberListResponse(header=self._member_header(), members=self._members())

    def _member_add(self, request: pb.MemberAddRequest) -> Message:
        if not request.peerURLs:
            raise EtcdError(*errors.BAD_MEMBER_URLS)
        # A second member would never start: this server is always the whole cluster.
        raise EtcdError(*errors.NOT_ENOUGH_STARTED)

    def _member_remove(self, request: pb.MemberRemoveRequest) -> Message:
        self._must_be_me(request.ID)
        raise EtcdError(*errors.NOT_ENOUGH_STARTED)

    def _member_update(self, request: pb.MemberUpdateRequest) -> Message:
        self._must_be_me(request.ID)
        return pb.MemberUpdateResponse(header=self._member_header(), members=self._members())

    def _member_promote(self, request: pb.MemberPromoteRequest) -> Message:
        self._must_be_me(request.ID)
        raise EtcdError(*errors.ONLY_LEARNER)

    def _must_be_me(self, member_id: int) -> None:
        if member_id != self._member.engine.member_id:
            raise EtcdError(*errors.MEMBER_NOT_FOUND)

    # Maintenance ---------------------------------------------------------------------------

    def _status(self, _: pb.StatusRequest) -> Message:
        engine = self._member.engine
        return pb.StatusResponse(
            header=engine.header(),
            version=SERVER_VERSION,
            dbSize=engine.store.size,
            dbSizeInUse=engine.store.size,
            leader=engine.member_id,
            raftIndex=engine.raft_index,
            raftAppliedIndex=engine.raft_index,
            raftTerm=engine.raft_term,
            errors=[
                f"memberID:{member} alarm:{pb.AlarmType.Name(alarm)} "
                for member, alarm in engine.alarms
            ],
        )

    def _alarm(self, request: pb.AlarmRequest) -> Message:
        engine = self._member.engine
        changed: list[tuple[int, pb.AlarmType.ValueType]] = []
        if request.action == pb.AlarmRequest.GET:
            changed = [
                (member, alarm)
                for member, alarm in engine.alarms
                if request.alarm in (pb.NONE, alarm)
            ]
        else:
            active = request.action == pb.AlarmRequest.ACTIVATE
            known = active or request.action == pb.AlarmRequest.DEACTIVATE
            if known and engine.set_alarm(request.memberID, request.alarm, active=active):
                changed = [(request.memberID, request.alarm)]
        alarms = [pb.AlarmMember(memberID=member, alarm=alarm) for member, alarm in changed]
        return pb.AlarmResponse(header=engine.header(), alarms=alarms)

    def _move_leader(self, _: pb.MoveLeaderRequest) -> Message:
        raise EtcdError(*errors.BAD_LEADER_TRANSFEREE)

    def _downgrade(self, request: pb.DowngradeRequest) -> Message:
        """Validating works; a downgrade itself is refused, for there is no older one of us."""
        if request.action == pb.DowngradeRequest.CANCEL:
            raise EtcdError(*errors.NO_INFLIGHT_DOWNGRADE)
        parts = request.version.split(".")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise EtcdError(*errors.WRONG_DOWNGRADE_VERSION)
        major, minor, _ = CLUSTER_VERSION.split(".")
        if parts[:2] != [major, str(int(minor) - 1)]:
            raise EtcdError(*errors.INVALID_DOWNGRADE_VERSION)
        if request.action == pb.DowngradeRequest.ENABLE:
            raise EtcdError(*errors.NOT_CAPABLE)
        return pb.DowngradeResponse(header=self._member.engine.header(), version=CLUSTER_VERSION)

    def _health(self, _: health_pb2.HealthCheckRequest) -> Message:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
