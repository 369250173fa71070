"""The store over the etcd client."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agents.apiserver.store import Change, Stored, Written
from emulator.apimachinery.status import unavailable
from etcd.client import Code, Delete, EtcdError, Get, Put, RangeResult, mod_revision, version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from etcd.client import EtcdClient, TxnResult, Watch

# One lease serves all keys of the same lifetime written within this time (upstream's leaseManager).
LEASE_REUSE_S = 60


class EtcdStore:
    """``Store`` over etcd.  Raises StatusError 503 when etcd does not answer."""

    def __init__(self, client: EtcdClient, monotonic: Callable[[], float]) -> None:
        self._client = client
        self._monotonic = monotonic
        self._leases: dict[int, tuple[int, float]] = {}

    async def load(self, prefix: bytes) -> tuple[list[Stored], int]:
        """See Store."""
        with _speaking():
            result = await self._client.get(prefix, prefix=True)
        return [Stored(kv.key, kv.value, kv.mod_revision) for kv in result.kvs], result.revision

    async def create(self, key: bytes, value: bytes, ttl_s: int = 0) -> Written:
        """See Store."""
        with _speaking():
            put = Put(key, value, lease=await self._lease(ttl_s))
            result = await self._client.txn(compare=[version(key) == 0], success=[put])
        return Written(result.revision, None, result.succeeded)

    async def replace(self, key: bytes, value: bytes, revision: int, ttl_s: int = 0) -> Written:
        """See Store."""
        with _speaking():
            put = Put(key, value, lease=await self._lease(ttl_s))
            result = await self._client.txn(
                compare=[mod_revision(key) == revision], success=[put], failure=[Get(key)]
            )
        return _written(result)

    async def remove(self, key: bytes, revision: int) -> Written:
        """See Store."""
        with _speaking():
            result = await self._client.txn(
                compare=[mod_revision(key) == revision], success=[Delete(key)], failure=[Get(key)]
            )
        return _written(result)

    @contextlib.asynccontextmanager
    async def watch(
        self, first: bytes, end: bytes, start_revision: int
    ) -> AsyncIterator[AsyncIterator[tuple[list[Change], int]]]:
        """See Store."""
        async with self._client.watch(
            first, range_end=end, start_revision=start_revision, progress_notify=True
        ) as watch:
            yield _changes(watch)

    async def _lease(self, ttl_s: int) -> int:
        if not ttl_s:
            return 0
        now = self._monotonic()
        known = self._leases.get(ttl_s)
        if known is None or now >= known[1]:
            granted = await self._client.lease_grant(ttl_s + LEASE_REUSE_S)
            known = self._leases[ttl_s] = (granted.id, now + LEASE_REUSE_S)
        return known[0]


async def _changes(watch: Watch) -> AsyncIterator[tuple[list[Change], int]]:
    async for batch in watch:
        changes = [
            Change(
                event.kv.key,
                event.kv.value if event.kind == "PUT" else None,
                event.kv.mod_revision,
            )
            for event in batch.events
        ]
        yield changes, batch.revision


def _written(result: TxnResult) -> Written:
    if result.succeeded:
        return Written(result.revision, None, True)
    found = result.responses[0]
    assert isinstance(found, RangeResult)
    current = None
    if found.kvs:
        kv = found.kvs[0]
        current = Stored(kv.key, kv.value, kv.mod_revision)
    return Written(result.revision, current, False)


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    try:
        yield
    except (EtcdError, OSError) as error:
        if isinstance(error, EtcdError) and error.code is Code.RESOURCE_EXHAUSTED:
            raise unavailable(error.message) from error
        raise unavailable(f"etcd does not answer: {error}") from error
