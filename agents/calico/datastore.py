"""libcalico's backend on etcd: JSON values under keys, changed by compare-and-swap.

One transaction may read many keys (a consistent snapshot) or change many keys (all or nothing);
every single-key verb of libcalico-go/lib/backend/etcdv3 is a special case of these.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from agents.calico import gojson
from agents.calico.errors import (
    AlreadyExistsError,
    DoesNotExistError,
    ParsingError,
    UpdateConflictError,
)
from etcd.client import Delete as EtcdDelete
from etcd.client import (
    EtcdClient,
    KeyValue,
    Put,
    RangeResult,
    mod_revision,
    prefix_end,
    version,
)
from etcd.client import Get as EtcdGet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from etcd.client import Watch, WatchBatch
    from etcd.client.model import Compare, Op

# etcd's default --max-txn-ops; a longer read is cut into several transactions.
MAX_TXN_OPS = 128


@dataclass(frozen=True, slots=True)
class KVPair:
    """A key, its decoded JSON (None: an empty value) and the revision of its last change."""

    key: str
    value: Any
    revision: int = 0

    def with_value(self, value: Any) -> KVPair:
        """The same key and revision with another value: what an update takes."""
        return replace(self, value=value)


class Query(NamedTuple):
    """One key, or with ``prefix`` all keys that begin with it."""

    key: str
    prefix: bool = False


class Snapshot(NamedTuple):
    """Answers to queries, in their order, all of one ``revision``."""

    results: tuple[tuple[KVPair, ...], ...]
    revision: int

    def one(self, index: int) -> KVPair | None:
        """The answer to a query of one key, None if there is no such key."""
        found = self.results[index]
        return found[0] if found else None


class Create(NamedTuple):
    """Put a key that must not exist."""

    key: str
    value: Any


class Update(NamedTuple):
    """Put a key that must still be at ``kvp.revision``."""

    kvp: KVPair


class Delete(NamedTuple):
    """Remove a key that must still be at ``revision``; 0: at any."""

    key: str
    revision: int = 0


class Check(NamedTuple):
    """Change nothing, but the key must still be at ``revision``; 0: must not exist."""

    key: str
    revision: int


class Unchanged(NamedTuple):
    """Change nothing, but no key with this prefix may have been written after ``revision``.

    A deletion leaves no trace here: ``Check`` the keys that must still be there.
    """

    key: str
    revision: int


Write = Create | Update | Delete | Check | Unchanged


class Change(NamedTuple):
    """One event of a watch; a DELETE's ``kvp`` has the value None and the deletion's revision."""

    kind: Literal["PUT", "DELETE"]
    kvp: KVPair


class ChangeStream(Protocol):
    """``async with datastore.watch(…) as changes: async for batch in changes: …``."""

    async def __aenter__(self) -> ChangeStream: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def __aiter__(self) -> ChangeStream: ...

    async def __anext__(self) -> tuple[Change, ...]: ...


class Datastore(Protocol):
    """What everything of Calico stands on: ``EtcdDatastore``, in tests ``MemoryDatastore``."""

    async def read(self, *queries: Query) -> Snapshot:
        """Answer all queries from one revision; unparsable values of a prefix are left out.

        Raises ParsingError for a single key whose value is not JSON.
        """

    async def commit(self, *writes: Write) -> int:
        """Do all writes or none; return their revision.

        Raises for the first write whose condition fails AlreadyExistsError (a Create),
        DoesNotExistError (the key is gone) or UpdateConflictError (it has changed).
        """

    def watch(self, prefix: str, *, from_revision: int, only: tuple[str, ...] = ()) -> ChangeStream:
        """Every change of the keys with a prefix, from a revision on; ``only`` of keys under these.

        Raises etcd.client.CompactedError when that history is gone: read again, then watch.
        """


# The verbs of one key --------------------------------------------------------------------------


async def get(datastore: Datastore, key: str) -> KVPair:
    """Read a key; DoesNotExistError if there is none."""
    found = (await datastore.read(Query(key))).one(0)
    if found is None:
        raise DoesNotExistError(key)
    return found


async def list_prefix(datastore: Datastore, prefix: str) -> tuple[KVPair, ...]:
    """Read all keys with a prefix, sorted by key."""
    return (await datastore.read(Query(prefix, prefix=True))).results[0]


async def create(datastore: Datastore, key: str, value: Any) -> KVPair:
    """Make a key; AlreadyExistsError if it is there."""
    return KVPair(key, value, await datastore.commit(Create(key, value)))


async def update(datastore: Datastore, kvp: KVPair) -> KVPair:
    """Write ``kvp.value`` if the key is still at ``kvp.revision``."""
    return replace(kvp, revision=await datastore.commit(Update(kvp)))


async def delete(datastore: Datastore, key: str, revision: int = 0) -> None:
    """Remove a key, if ``revision`` is given only at that revision."""
    await datastore.commit(Delete(key, revision))


# etcd ------------------------------------------------------------------------------------------


class EtcdDatastore:
    """The datastore of a cluster; raises EtcdError when etcd cannot be reached."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client

    async def read(self, *queries: Query) -> Snapshot:
        """See ``Datastore.read``."""
        if len(queries) == 1:
            query = queries[0]
            only = await self._client.get(query.key.encode(), prefix=query.prefix)
            return Snapshot((decode_answer(query, map(_raw, only.kvs)),), only.revision)
        results: list[tuple[KVPair, ...]] = []
        revision = 0
        for at in range(0, len(queries), MAX_TXN_OPS):
            part = queries[at : at + MAX_TXN_OPS]
            # Later parts are read at the first part's revision: one snapshot.
            answer = await self._client.txn(
                success=[
                    EtcdGet(query.key.encode(), prefix=query.prefix, revision=revision)
                    for query in part
                ]
            )
            revision = revision or answer.revision
            for query, response in zip(part, answer.responses, strict=True):
                assert isinstance(response, RangeResult)
                results.append(decode_answer(query, map(_raw, response.kvs)))
        return Snapshot(tuple(results), revision)

    async def commit(self, *writes: Write) -> int:
        """See ``Datastore.commit``."""
        keyed = [write for write in writes if not isinstance(write, Unchanged)]
        answer = await self._client.txn(
            compare=[compare for write in writes for compare in _conditions(write)],
            success=[operation for write in writes for operation in _operations(write)],
            failure=[EtcdGet(key_of(write).encode(), keys_only=True) for write in keyed],
        )
        if answer.succeeded:
            return answer.revision
        revisions = {
            key_of(write): response.kvs[0].mod_revision if response.kvs else 0
            for write, response in zip(keyed, answer.responses, strict=True)
            if isinstance(response, RangeResult)
        }
        raise refusal(writes, revisions)

    def watch(self, prefix: str, *, from_revision: int, only: tuple[str, ...] = ()) -> _EtcdChanges:
        """See ``Datastore.watch``."""
        watch = self._client.watch(prefix.encode(), prefix=True, start_revision=from_revision)
        return _EtcdChanges(watch, only or (prefix,))


class _EtcdChanges:
    def __init__(self, watch: Watch, only: tuple[str, ...]) -> None:
        self._watch = watch
        self._only = tuple(prefix.encode() for prefix in only)

    async def __aenter__(self) -> _EtcdChanges:
        await self._watch.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._watch.__aexit__(*exc)

    def __aiter__(self) -> _EtcdChanges:
        return self

    async def __anext__(self) -> tuple[Change, ...]:
        while True:
            changes = _changes(await self._watch.__anext__(), self._only)
            if changes:
                return changes


def _changes(batch: WatchBatch, only: tuple[bytes, ...]) -> tuple[Change, ...]:
    return tuple(
        decode_change(key, None if event.kind == "DELETE" else data, revision)
        for event in batch.events
        if event.kv.key.startswith(only)
        for key, data, revision in (_raw(event.kv),)
    )


def key_of(write: Write) -> str:
    """The key a write is about."""
    return write.kvp.key if isinstance(write, Update) else write.key


def refusal(
    writes: Sequence[Write], revisions: dict[str, int]
) -> AlreadyExistsError | DoesNotExistError | UpdateConflictError:
    """The error of a commit that failed; ``revisions`` of the keys now, 0: absent."""
    for write in writes:
        if isinstance(write, Unchanged):
            continue
        key = key_of(write)
        now = revisions[key]
        if isinstance(write, Create):
            if now:
                return AlreadyExistsError(key)
            continue
        wanted = write.kvp.revision if isinstance(write, Update) else write.revision
        if now and wanted and now != wanted:
            return UpdateConflictError(key)
        if not now and not (isinstance(write, Check) and not wanted):
            return DoesNotExistError(key)
        if now and isinstance(write, Check) and not wanted:
            return UpdateConflictError(key)
    # Something under a prefix has changed, or the condition that failed holds again by now.
    guards = [write.key for write in writes if isinstance(write, Unchanged)]
    return UpdateConflictError(guards[0] if guards else key_of(writes[0]))


def _conditions(write: Write) -> list[Compare]:
    key = key_of(write).encode()
    match write:
        case Create():
            return [version(key) == 0]
        case Update(kvp):
            return [mod_revision(key) == kvp.revision]
        case Check() | Unchanged():
            return [_guard(write)]
        case Delete(_, revision):
            return [mod_revision(key) == revision if revision else version(key) != 0]


# Typed: a Check and an Unchanged of the same fields are equal tuples.
@functools.lru_cache(maxsize=1024, typed=True)
def _guard(write: Check | Unchanged) -> Compare:
    """A host's guards are the same until something changes."""
    key = write.key.encode()
    if isinstance(write, Check):
        return mod_revision(key) == write.revision
    return mod_revision(key, prefix_end(key)) < write.revision + 1


def _operations(write: Write) -> list[Op]:
    match write:
        case Create(key, value):
            return [Put(key.encode(), encode(value))]
        case Update(kvp):
            return [Put(kvp.key.encode(), encode(kvp.value))]
        case Delete(key):
            return [EtcdDelete(key.encode())]
        case Check() | Unchanged():
            return []


def encode(value: Any) -> bytes:
    """A value's bytes in the datastore."""
    return b"" if value is None else gojson.dumps(value)


def decode(key: str, data: bytes) -> Any:
    """What ``encode`` was given; raises ParsingError."""
    if not data:
        return None
    try:
        return gojson.loads(data)
    except ValueError as error:
        raise ParsingError(key, data[:200].decode(errors="replace"), str(error)) from None


def decode_answer(query: Query, found: Iterable[tuple[str, bytes, int]]) -> tuple[KVPair, ...]:
    """Decode (key, data, revision); ParsingError only for a query of one key."""
    pairs: list[KVPair] = []
    for key, data, revision in found:
        try:
            pairs.append(KVPair(key, decode(key, data), revision))
        except ParsingError:
            # libcalico-go's list leaves out what does not parse.
            if not query.prefix:
                raise
    return tuple(pairs)


def decode_change(key: str, data: bytes | None, revision: int) -> Change:
    """One event; ``data`` None: deleted.  What nobody can read counts as absent, as in a list."""
    if data is not None:
        try:
            return Change("PUT", KVPair(key, decode(key, data), revision))
        except ParsingError:
            pass
    return Change("DELETE", KVPair(key, None, revision))


def _raw(kv: KeyValue) -> tuple[str, bytes, int]:
    return kv.key.decode(errors="replace"), kv.value, kv.mod_revision
