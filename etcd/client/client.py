"""EtcdClient: KV, transactions, leases and watches against any etcd v3."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from etcd.client import model as m
from etcd.client.channel import Backoff, Channel
from etcd.client.watch import Watch
from etcd.core.access import NO_ACCESS, EtcdAccess
from etcd.core.errors import LEASE_NOT_FOUND, Code, EtcdError
from etcd.core.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    import random
    import ssl as ssl_module
    from collections.abc import AsyncIterator, Sequence

_KV = "/etcdserverpb.KV/"
_LEASE = "/etcdserverpb.Lease/"
# A call's time, retries included; an etcd that restarts takes well under it.
DEFAULT_TIMEOUT_S = 10.0
# A renewal's time at least, however short the lease.
MIN_RENEWAL_TIMEOUT_S = 1.0
# Ends of a keepalive call that say nothing about the lease.
_TRANSIENT = frozenset(
    {Code.UNAVAILABLE, Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNKNOWN}
)


class EtcdClient:
    """An async context manager; see ARCHITECTURE.md, "etcd client".

    Endpoints are ``host:port`` or URLs; the first that answers serves all calls until it fails.
    ``access`` names a user and TLS files (``ssl`` takes a context instead); tokens are renewed.
    ``rng`` spreads reconnects; without it the pauses are exact.  All calls raise EtcdError.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        access: EtcdAccess = NO_ACCESS,
        ssl: ssl_module.SSLContext | None = None,
        rng: random.Random | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._timeout_s = timeout_s
        self._channel = Channel(endpoints, access=access, ssl=ssl, rng=rng, timeout_s=timeout_s)

    async def __aenter__(self) -> EtcdClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in progress fail."""
        await self._channel.close()

    # KV ------------------------------------------------------------------------------------

    async def get(
        self,
        key: bytes,
        *,
        prefix: bool = False,
        range_end: bytes | None = None,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        serializable: bool = False,
        sort_order: m.SortOrder = "none",
        sort_target: m.SortTarget = "key",
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
    ) -> m.RangeResult:
        """Read a key, the keys with a prefix, or ``[key, range_end)``."""
        start, end = m.bounds(key, prefix, range_end)
        request = pb.RangeRequest(
            key=start,
            range_end=end,
            limit=limit,
            revision=revision,
            keys_only=keys_only,
            count_only=count_only,
            serializable=serializable,
            sort_order=pb.RangeRequest.SortOrder.Value(sort_order.upper()),
            sort_target=pb.RangeRequest.SortTarget.Value(sort_target.upper()),
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
        )
        response = await self._channel.call(_KV + "Range", request, pb.RangeResponse, read=True)
        return m.range_result(response)

    async def put(
        self, key: bytes, value: bytes, *, lease: int = 0, prev_kv: bool = False
    ) -> m.PutResult:
        """Write a key."""
        request = pb.PutRequest(key=key, value=value, lease=lease, prev_kv=prev_kv)
        response = await self._channel.call(_KV + "Put", request, pb.PutResponse, read=False)
        return m.put_result(response)

    async def delete(
        self,
        key: bytes,
        *,
        prefix: bool = False,
        range_end: bytes | None = None,
        prev_kv: bool = False,
    ) -> m.DeleteResult:
        """Delete a key, the keys with a prefix, or ``[key, range_end)``."""
        start, end = m.bounds(key, prefix, range_end)
        request = pb.DeleteRangeRequest(key=start, range_end=end, prev_kv=prev_kv)
        response = await self._channel.call(
            _KV + "DeleteRange", request, pb.DeleteRangeResponse, read=False
        )
        return m.delete_result(response)

    async def txn(
        self,
        *,
        compare: Sequence[m.Compare] = (),
        success: Sequence[m.Op] = (),
        failure: Sequence[m.Op] = (),
    ) -> m.TxnResult:
        """If all comparisons hold run ``success``, else ``failure``, atomically."""
        request = m.txn_message(m.Txn(compare, success, failure))
        reads = all(isinstance(op, m.Get) for op in (*success, *failure))
        response = await self._channel.call(_KV + "Txn", request, pb.TxnResponse, read=reads)
        return m.txn_result(response)

    async def compact(self, revision: int) -> None:
        """Forget the history before a revision."""
        request = pb.CompactionRequest(revision=revision)
        await self._channel.call(_KV + "Compact", request, pb.CompactionResponse, read=False)

    # Leases --------------------------------------------------------------------------------

    async def lease_grant(self, ttl_s: int, lease_id: int = 0) -> m.LeaseInfo:
        """Make a lease; the server may lengthen a short TTL.  ``lease_id`` 0: it chooses."""
        request = pb.LeaseGrantRequest(TTL=ttl_s, ID=lease_id)
        response = await self._channel.call(
            _LEASE + "LeaseGrant", request, pb.LeaseGrantResponse, read=False
        )
        return m.LeaseInfo(response.ID, response.TTL)

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; EtcdError NOT_FOUND if there is none."""
        request = pb.LeaseRevokeRequest(ID=lease_id)
        await self._channel.call(
            _LEASE + "LeaseRevoke", request, pb.LeaseRevokeResponse, read=False
        )

    async def lease_time_to_live(self, lease_id: int, keys: bool = False) -> m.LeaseStatus:
        """Tell a lease's remaining time (-1: no such lease) and, if wanted, its keys."""
        request = pb.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
        response = await self._channel.call(
            _LEASE + "LeaseTimeToLive", request, pb.LeaseTimeToLiveResponse, read=True
        )
        return m.LeaseStatus(response.ID, response.TTL, response.grantedTTL, tuple(response.keys))

    async def leases(self) -> tuple[int, ...]:
        """List the ids of all leases."""
        response = await self._channel.call(
            _LEASE + "LeaseLeases", pb.LeaseLeasesRequest(), pb.LeaseLeasesResponse, read=True
        )
        return tuple(lease.ID for lease in response.leases)

    async def lease_keep_alive_once(self, lease_id: int) -> m.LeaseInfo:
        """Renew a lease; EtcdError NOT_FOUND if it is gone."""
        return await self._renew(lease_id, self._timeout_s)

    async def _renew(
        self, lease_id: int, timeout_s: float, *, new_token: bool = False
    ) -> m.LeaseInfo:
        stream = None
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self._channel.open(_LEASE + "LeaseKeepAlive")
                request = pb.LeaseKeepAliveRequest(ID=lease_id)
                stream.send(request.SerializeToString(), last=True)
                data = await stream.receive()
        except TimeoutError:
            if stream is not None:
                # A member without its leader holds renewals; the lease cannot wait for it.
                self._channel.leave(stream.connection)
            raise EtcdError(
                Code.DEADLINE_EXCEEDED, f"etcd: lease not renewed within {timeout_s:g} s"
            ) from None
        except EtcdError as error:
            if stream is not None:
                self._channel.suspect(stream.connection, error)
                if not new_token and self._channel.renews(stream.token, error.message):
                    return await self._renew(lease_id, timeout_s, new_token=True)
            raise
        finally:
            if stream is not None:
                stream.cancel()
        if data is None:
            raise EtcdError(Code.UNAVAILABLE, "etcd ended a keepalive without an answer")
        response = pb.LeaseKeepAliveResponse.FromString(data)
        if response.TTL <= 0:
            raise EtcdError(*LEASE_NOT_FOUND)
        return m.LeaseInfo(response.ID, response.TTL)

    @asynccontextmanager
    async def keep_alive(self, lease_id: int) -> AsyncIterator[None]:
        """Keep a lease alive while the body runs, over reconnects too.

        If the lease turns out to be gone, the body is cancelled and EtcdError NOT_FOUND raised.
        """
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(self._keep(lease_id), name="etcd.client.keep_alive")
                try:
                    yield
                finally:
                    task.cancel()
        except BaseExceptionGroup as group_error:
            # One cause is the caller's own or ours: no group around it.
            if len(group_error.exceptions) == 1:
                raise group_error.exceptions[0] from None
            raise

    async def _keep(self, lease_id: int) -> None:
        backoff = Backoff(self._channel.rng)
        timeout_s = self._timeout_s
        while True:
            try:
                info = await self._renew(lease_id, timeout_s)
            except EtcdError as error:
                if error.code not in _TRANSIENT:
                    raise
                await backoff.sleep()
                continue
            backoff.reset()
            # As the Go client: three renewals in a TTL; one that hangs leaves time for another.
            pause_s = info.ttl_s / 3
            timeout_s = min(self._timeout_s, max(pause_s, MIN_RENEWAL_TIMEOUT_S))
            await asyncio.sleep(pause_s)

    # Watch ---------------------------------------------------------------------------------

    def watch(
        self,
        key: bytes,
        *,
        prefix: bool = False,
        range_end: bytes | None = None,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress_notify: bool = False,
        filters: Sequence[str] = (),
    ) -> Watch:
        """Watch a key, the keys with a prefix, or a range, from a revision on (0: from now).

        ``filters``: ``"NOPUT"`` and ``"NODELETE"`` leave events out.
        """
        start, end = m.bounds(key, prefix, range_end)
        request = pb.WatchCreateRequest(
            key=start,
            range_end=end,
            start_revision=start_revision,
            prev_kv=prev_kv,
            progress_notify=progress_notify,
            filters=[pb.WatchCreateRequest.FilterType.Value(name) for name in filters],
        )
        return Watch(self._channel, request)

    # Maintenance -----------------------------------------------------------------------------

    async def status(self) -> m.ServerStatus:
        """Ask the connected member how it is."""
        response = await self._channel.call(
            "/etcdserverpb.Maintenance/Status", pb.StatusRequest(), pb.StatusResponse, read=True
        )
        return m.ServerStatus(
            response.version,
            response.dbSize,
            response.leader,
            response.header.member_id,
            response.header.revision,
        )

    async def hash_kv(self, revision: int = 0) -> tuple[int, int]:
        """Return (checksum, compacted revision) of the store at a revision (0: now)."""
        response = await self._channel.call(
            "/etcdserverpb.Maintenance/HashKV",
            pb.HashKVRequest(revision=revision),
            pb.HashKVResponse,
            read=True,
        )
        return response.hash, response.compact_revision
